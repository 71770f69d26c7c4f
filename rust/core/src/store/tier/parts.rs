//! Small parts of the tier: what is in flight, one bit a header, who may leave which tier.
//!
//! Owns: these. Never does: anything by itself.

use super::Tier;
use crate::directory::{Directory, Dirty};
use crate::policy::Residents;
use crate::units::Slot;

/// In flight in one direction at a time: more is only latency (2 to 4 requests of 1 MiB saturate a
/// drive, 32 of 64 KiB).
const IN_FLIGHT_BYTES_MAX: u64 = 8 << 20;
const IN_FLIGHT_MAX: u32 = 64;
const IN_FLIGHT_MIN: u32 = 2;
/// Transfers of one direction.
#[derive(Default)]
pub(super) struct InFlight {
    pub(super) count: u32,
    bytes: u64,
}

impl InFlight {
    pub(super) fn has_room(&self, len: u32) -> bool {
        let few = self.count < IN_FLIGHT_MIN;
        let fits = self.bytes + u64::from(len) <= IN_FLIGHT_BYTES_MAX;
        few || (self.count < IN_FLIGHT_MAX && fits)
    }

    pub(super) fn add(&mut self, len: u32) {
        self.count += 1;
        self.bytes += u64::from(len);
    }

    pub(super) fn remove(&mut self, len: u32) {
        self.count -= 1;
        self.bytes -= u64::from(len);
    }
}

/// One bit a header.
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn new(bits: u32) -> Self {
        Self(vec![0; (bits as usize).div_ceil(64)])
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.0.len() * 8) as u64
    }

    pub(super) fn get(&self, slot: Slot) -> bool {
        self.0[slot.index() / 64] >> (slot.index() % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, slot: Slot, on: bool) {
        let bit = 1 << (slot.index() % 64);
        let word = &mut self.0[slot.index() / 64];
        *word = if on { *word | bit } else { *word & !bit };
    }
}

/// Who can't leave RAM, as the policy asks.
pub(in crate::store) struct InRam<'a> {
    pub(in crate::store) directory: &'a Directory,
    pub(in crate::store) tier: Option<&'a Tier>,
}

impl InRam<'_> {
    /// How far a block may leave although it is dirty.
    pub(in crate::store) fn dirty_of(&self, slot: Slot) -> Dirty {
        self.tier.map_or(Dirty::Leaves, |tier| tier.dirty_of(slot))
    }
}

impl Residents for InRam<'_> {
    fn stays(&self, slot: Slot) -> bool {
        self.directory.stays(slot, self.dirty_of(slot))
    }

    fn stays_retired(&self, slot: Slot) -> bool {
        self.directory.stays(slot, Dirty::Leaves)
    }

    fn soon(&self, slot: Slot) {
        self.directory.fetch_header(slot);
    }
}

/// Who can't leave the SSD.
pub(super) struct OnSsd<'a>(pub(super) &'a Directory);

impl Residents for OnSsd<'_> {
    fn stays(&self, slot: Slot) -> bool {
        self.0.stays_on_ssd(slot)
    }
}
