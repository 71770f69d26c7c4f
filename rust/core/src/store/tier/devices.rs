//! The devices of a tier: each a directory with SUPER, a table and slots of its own.
//!
//! Owns: what is one device's alone, and which device an SSD slot is of: slots are numbered through
//! over all devices. Never does: choose a device for a block; `spread` does. Invariants: nothing of
//! one device waits for another's: each has its own requests in flight, memory for pages, breaker
//! and order of blocks; a slot's record, order and bytes are on one device.

use super::faults::{Breaker, Trust};
use super::parts::InFlight;
use super::settle::{Superblock, Syncing};
use super::spread::Room;
use super::{DevicePlace, SLOTS_FILE};
use crate::io::{FileId, Request};
use crate::policy::{Lru, Policy};
use crate::ssd::format::{self, Record, Super};
use crate::ssd::slots::Slots;
use crate::ssd::table::Table;
use crate::units::{FrameId, Slot, SsdSlot};
use std::collections::VecDeque;

/// One device.
pub(super) struct Device {
    pub(super) place: DevicePlace,
    /// The number of its first slot among all of the tier.
    first_slot: u32,
    pub(super) table: Table,
    pub(super) slots: Slots,
    pub(super) order: Lru,
    /// Reads that wait for room in flight: each has its memory already.
    pub(super) waiting_reads: VecDeque<Request>,
    pub(super) reading: InFlight,
    pub(super) writing: InFlight,
    /// Memory for table pages on their way.
    pub(super) bounce_free: Vec<FrameId>,
    pub(super) superblock: Superblock,
    pub(super) syncing: Syncing,
    pub(super) breaker: Breaker,
    /// When a request of it last came back.
    pub(super) completed_us: u64,
    /// A request is late, and nothing has come back since it became so.
    pub(super) stalled: bool,
    /// It has missed an open or a clear of the others: what is on it does not count. Until its
    /// table is blank.
    pub(super) behind: bool,
}

impl Device {
    /// A device that holds what `superblock` says; nothing is known yet of its blocks. Its memory
    /// for pages are so many frames.
    pub(super) fn new(
        place: DevicePlace,
        superblock: Super,
        first_slot: u32,
        headers: u32,
        bounce: std::ops::Range<u32>,
    ) -> Self {
        let order = Lru::new(headers);
        order.tables().into_iter().for_each(crate::arena::prefer_huge_pages);
        Self {
            first_slot,
            table: Table::new(superblock.slots, superblock.uuid),
            slots: Slots::new(superblock.slots),
            order,
            waiting_reads: VecDeque::new(),
            reading: InFlight::default(),
            writing: InFlight::default(),
            bounce_free: bounce.map(FrameId).collect(),
            superblock: Superblock::new(superblock),
            syncing: Syncing::default(),
            breaker: Breaker::default(),
            completed_us: 0,
            stalled: false,
            behind: false,
            place,
        }
    }

    /// Whether a block can be written to it now, and whether that write decides if the device is
    /// trusted again. An `urgent` one, whose caller waits, is only kept back where no write may
    /// begin.
    pub(super) fn ready(&self, now_us: u64, stride_bytes: u32, urgent: bool) -> Option<bool> {
        let trust = self.breaker.trust(now_us);
        let has_room = self.writing.has_room(stride_bytes) && !self.syncing.holds_writes();
        let may = trust != Trust::Nothing && !self.superblock.is_pending();
        (may && (has_room || urgent)).then_some(trust == Trust::Probe)
    }

    pub(super) fn is_trusted(&self, now_us: u64) -> bool {
        self.breaker.trust(now_us) != Trust::Nothing
    }

    /// The number among its own slots.
    pub(super) fn own(&self, ssd: SsdSlot) -> SsdSlot {
        SsdSlot(ssd.0 - self.first_slot)
    }

    /// The number among all slots of the tier.
    fn shared(&self, own: SsdSlot) -> SsdSlot {
        SsdSlot(own.0 + self.first_slot)
    }

    /// A free slot, if there is one.
    pub(super) fn take_free(&mut self) -> Option<SsdSlot> {
        let own = self.slots.take()?;
        Some(self.shared(own))
    }

    /// One of its files, as the engine knows it.
    pub(super) fn file(&self, file: FileId) -> FileId {
        FileId(self.place.first_file + file.0)
    }

    /// A page is to be written anew; where the device is behind, without what was on it.
    pub(super) fn renew_page(&mut self, page: u32, now_us: u64) {
        if self.behind {
            self.table.blank_page(page);
        }
        self.table.distrust(page, now_us);
    }

    /// Where a slot lies.
    fn location(&self, ssd: SsdSlot, stride_bytes: u32) -> (FileId, u64) {
        let own = self.own(ssd);
        let (file, offset) = format::place(own.0, self.place.slots_a_file, stride_bytes);
        (self.file(FileId(SLOTS_FILE + file)), offset)
    }

    fn records_from(&self, first: usize) -> impl Iterator<Item = (SsdSlot, Record)> {
        let behind = self.behind;
        self.table.records_from(first).map(move |(own, record)| {
            (self.shared(own), if behind { Record::FREE } else { record })
        })
    }
}

/// All of a tier, at least one.
pub(super) struct Devices(Vec<Device>);

impl Devices {
    pub(super) fn new(all: Vec<Device>) -> Self {
        assert!(!all.is_empty(), "a tier has a device");
        Self(all)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Device> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Device> {
        self.0.iter_mut()
    }

    /// Which device a slot is of.
    pub(super) fn of(&self, ssd: SsdSlot) -> usize {
        // Few of them, in the order of their slots.
        self.0.iter().rposition(|device| device.first_slot <= ssd.0).unwrap_or(0)
    }

    fn at(&self, ssd: SsdSlot) -> (&Device, SsdSlot) {
        let device = &self.0[self.of(ssd)];
        (device, device.own(ssd))
    }

    fn at_mut(&mut self, ssd: SsdSlot) -> (&mut Device, SsdSlot) {
        let at = self.of(ssd);
        let device = &mut self.0[at];
        let own = device.own(ssd);
        (device, own)
    }

    pub(super) fn location(&self, ssd: SsdSlot, stride_bytes: u32) -> (FileId, u64) {
        self.at(ssd).0.location(ssd, stride_bytes)
    }

    pub(super) fn uuid(&self, ssd: SsdSlot) -> &[u8; 16] {
        &self.at(ssd).0.place.uuid
    }

    pub(super) fn record(&self, ssd: SsdSlot) -> &Record {
        let (device, own) = self.at(ssd);
        device.table.get(own)
    }

    /// The record of a slot as it is to be from now on.
    pub(super) fn set(&mut self, ssd: SsdSlot, record: Record, now_us: u64) {
        let (device, own) = self.at_mut(ssd);
        device.table.set(own, record, now_us);
    }

    pub(super) fn blank(&mut self, ssd: SsdSlot, now_us: u64) {
        let (device, own) = self.at_mut(ssd);
        device.table.blank(own, now_us);
    }

    pub(super) fn touch_meta(&mut self, ssd: SsdSlot, last_use: u32, hits: u8) {
        let (device, own) = self.at_mut(ssd);
        device.table.touch_meta(own, last_use, hits);
    }

    pub(super) fn give(&mut self, ssd: SsdSlot) {
        let (device, own) = self.at_mut(ssd);
        device.slots.give(own);
    }

    pub(super) fn quarantine(&mut self, ssd: SsdSlot) {
        let (device, own) = self.at_mut(ssd);
        device.slots.quarantine(own);
    }

    pub(super) fn mark_used(&mut self, ssd: SsdSlot) {
        let (device, own) = self.at_mut(ssd);
        device.slots.mark_used(own);
    }

    /// The order that a slot's block stands in, or is to.
    pub(super) fn order_of(&mut self, ssd: SsdSlot) -> &mut Lru {
        &mut self.at_mut(ssd).0.order
    }

    /// The block leaves whichever order it stands in.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.0.iter_mut().for_each(|device| device.order.forget(slot));
    }

    pub(super) fn wake(&mut self, slot: Slot) {
        self.0.iter_mut().for_each(|device| device.order.wake(slot));
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.0.iter().any(|device| device.order.contains(slot))
    }

    /// From which slot on which epoch was cleared.
    pub(super) fn clear_epochs(&self) -> Vec<(SsdSlot, u32)> {
        let of = |it: &Device| (SsdSlot(it.first_slot), it.superblock.clear_epoch());
        self.0.iter().map(of).collect()
    }

    /// Slots of all devices.
    pub(super) fn slots(&self) -> u32 {
        self.0.iter().map(|device| device.table.slots()).sum()
    }

    pub(super) fn slots_free(&self) -> u32 {
        self.0.iter().map(|device| device.slots.free()).sum()
    }

    /// Blocks on all devices.
    pub(super) fn blocks(&self) -> u64 {
        self.0.iter().map(|device| device.order.len()).sum()
    }

    /// The records of all slots from `first` on, free ones included.
    pub(super) fn records_from(&self, first: usize) -> impl Iterator<Item = (SsdSlot, Record)> {
        self.0.iter().flat_map(move |device| {
            device.records_from(first.saturating_sub(device.first_slot as usize))
        })
    }

    /// Writes of blocks under way.
    pub(super) fn writing(&self) -> u32 {
        self.0.iter().map(|device| device.writing.count).sum()
    }

    pub(super) fn reading(&self) -> u32 {
        self.0.iter().map(|device| device.reading.count).sum()
    }
}

impl Room for Devices {
    fn free(&self, device: usize) -> u32 {
        self.0[device].slots.free()
    }
}

impl std::ops::Index<usize> for Devices {
    type Output = Device;

    fn index(&self, device: usize) -> &Device {
        &self.0[device]
    }
}

impl std::ops::IndexMut<usize> for Devices {
    fn index_mut(&mut self, device: usize) -> &mut Device {
        &mut self.0[device]
    }
}
