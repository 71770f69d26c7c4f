//! Slots for blocks that go to SSD, and slots given back.
//!
//! Owns: from which device a slot comes, and who leaves for it. Never does: begin a transfer.
//! Invariants: a slot comes from the free list or of a block that is only on SSD and can leave; a
//! device that is busy or left alone is passed over; a quarantined slot is never handed out again.

use super::{OnSsd, Tier, With};
use crate::event::EventKind;
use crate::policy::{Policy, Search};
use crate::store::keeper::Budget;
use crate::units::{Slot, SsdSlot};

impl Tier {
    fn ready(&self, device: usize, now_us: u64, urgent: bool) -> Option<bool> {
        self.devices[device].ready(now_us, self.geometry.stride_bytes, urgent)
    }

    /// Which device a block is on.
    pub(in crate::store) fn device_of(&self, with: &With<'_>, slot: Slot) -> Option<usize> {
        with.parts.directory.ssd_slot_of(slot).map(|ssd| self.devices.of(ssd))
    }

    /// Whether a block could be written to some device now.
    pub(super) fn any_ready(&self, now_us: u64, urgent: bool) -> bool {
        (0..self.devices.len()).any(|device| self.ready(device, now_us, urgent).is_some())
    }

    /// Whether a device has a free slot and can take a block, now or once it has ended another.
    pub(super) fn any_room(&self, now_us: u64) -> bool {
        (0..self.devices.len()).any(|at| {
            let device = &self.devices[at];
            let may = self.ready(at, now_us, true).is_some();
            device.slots.free() > 0 && may && !device.stalled
        })
    }

    /// Whether a device that can't take a block now soon may.
    pub(super) fn any_busy(&self, now_us: u64) -> bool {
        (0..self.devices.len()).any(|at| {
            let device = &self.devices[at];
            let waits = device.is_trusted(now_us) && !device.stalled;
            waits && self.ready(at, now_us, false).is_none()
        })
    }

    /// A slot for a block that is to go to `wanted`, and whether its write is a probe: there, or,
    /// where that device is busy, full or left alone, on the next one that can take it. Nothing
    /// leaves for it while any of them has a free slot.
    pub(super) fn take_slot(
        &mut self,
        with: &mut With<'_>,
        wanted: usize,
        urgent: bool,
        budget: &mut Budget,
    ) -> Option<(SsdSlot, bool)> {
        for evict in [false, true] {
            if evict && self.any_room(with.now_us) {
                return None;
            }
            if let Some(probe) = self.ready(wanted, with.now_us, urgent)
                && let Some(ssd) = self.take_slot_of(with, wanted, evict, budget)
            {
                return Some((ssd, probe));
            }
            let devices = self.devices.len();
            for (probe, at) in [false, true].into_iter().flat_map(|probe| {
                (wanted + 1..wanted + devices).map(move |at| (probe, at % devices))
            }) {
                if self.ready(at, with.now_us, urgent) == Some(probe)
                    && let Some(ssd) = self.take_slot_of(with, at, evict, budget)
                {
                    return Some((ssd, probe));
                }
            }
        }
        None
    }

    /// A free slot of a device: from its list, or, where one may be evicted, of a block that is
    /// only there and can leave.
    fn take_slot_of(
        &mut self,
        with: &mut With<'_>,
        device: usize,
        evict: bool,
        budget: &mut Budget,
    ) -> Option<SsdSlot> {
        let directory = &with.parts.directory;
        loop {
            let device = &mut self.devices[device];
            if let Some(ssd) = device.take_free() {
                return Some(ssd);
            }
            if !evict {
                return None;
            }
            let found = device.order.victim(None, &OnSsd(directory), budget.left());
            let Search::Victim(slot) = found else { return None };
            let Some((gone, ssd)) = directory.evict_from_ssd(slot) else { continue };
            device.order.forget(slot);
            self.devices.blank(ssd, with.now_us);
            directory.bury(slot);
            with.parts.counters.resident(u32::from(gone.epoch), -1, -i64::from(gone.len));
            if gone.epoch == directory.epoch() as u16 {
                self.stats.evictions += 1;
                with.log.add(EventKind::Removed, Some(gone.key), "ssd");
            } else {
                *with.cleared += 1;
            }
            return Some(ssd);
        }
    }

    /// The block gives up its SSD copy, if it has one and no read of it is out: the record goes,
    /// the slot is free (or, after a fault, never used again).
    pub(super) fn give_up(&mut self, with: &mut With<'_>, slot: Slot, quarantine: bool) {
        let directory = &with.parts.directory;
        if let Some(ssd) = directory.give_up_ssd(slot) {
            self.devices.forget(slot);
            self.release(ssd, quarantine, with.now_us);
        } else if let Some(ssd) = directory.ssd_slot_of(slot) {
            // Being read: its slot follows with the completion.
            self.devices.blank(ssd, with.now_us);
        }
    }

    pub(super) fn release(&mut self, ssd: SsdSlot, quarantine: bool, now_us: u64) {
        self.devices.blank(ssd, now_us);
        if quarantine {
            self.devices.quarantine(ssd);
        } else {
            self.devices.give(ssd);
        }
    }
}
