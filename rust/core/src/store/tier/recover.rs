//! What the table says comes back into the index, at open or while the store is in use.
//!
//! Owns: the way from pages to headers. Never does: read a payload; the first read of each block
//! verifies it; hold the lock for more than a piece. Invariants: no record is trusted
//! (`ssd::recover` sorts them out); parents come before children, a missing one becomes a hole;
//! what does not come back is blanked; the order is that of the last use. In a store in use what
//! RAM has is newer, what was removed stays gone, and a clear ends it: no more blocks come.

use super::settle::Superblock;
use super::{OnSsd, TABLE_FILE, Tier, With};
use crate::arena::room_for;
use crate::directory::Restored;
use crate::event::EventKind;
use crate::io::FileId;
use crate::key::Key;
use crate::policy::Policy;
use crate::ssd::format::{self, EPOCH_MAX, PAGE_BYTES};
use crate::ssd::recover::{Found as Block, Parent, Plan, Sorter};
use crate::units::Slot;
use std::collections::HashSet;

/// So far ahead a bin is asked for before its block is entered.
const AHEAD: usize = 16;

/// Records, pages or blocks of one piece at open, while nobody else wants the lock.
pub(in crate::store) const RECOVERED_A_HOLD: usize = 4096;

/// Keys remembered as removed; with more, nothing comes back.
const REMOVED_MAX: usize = 1 << 16;

/// Keys removed before their records were seen.
#[derive(Default)]
pub(in crate::store) struct Removed {
    keys: HashSet<[u64; 2]>,
    /// There were too many.
    all: bool,
}

impl Removed {
    pub(in crate::store) fn add(&mut self, keys: &[Key]) {
        if self.keys.len() + keys.len() > REMOVED_MAX {
            *self = Self { keys: HashSet::new(), all: true };
        } else if !self.all {
            self.keys.extend(keys.iter().map(Key::words));
        }
    }

    fn has(&self, key: &Key) -> bool {
        self.all || self.keys.contains(&key.words())
    }
}

/// A recovery under way: what is to be blanked and entered, and how far that is.
pub(in crate::store) struct Recovery {
    plan: Plan,
    /// In this epoch of the disk: later ones have cleared what it would bring back.
    epoch: u32,
    /// Calls are in progress meanwhile.
    in_use: bool,
    /// How many of the slots to blank are blank.
    blanked: usize,
    /// Of which devices the pages from here on are to be marked as to be written anew.
    distrusted: Vec<(usize, u32)>,
    /// Where the first blocks of the plan are now; none where one did not come in.
    entered: Vec<Option<(Slot, u32)>>,
    /// How many of those, oldest first, have their place in the order.
    aged: usize,
    /// Blocks used since they were entered, youngest again once all have their place.
    used: Vec<u32>,
    round: u64,
}

impl Recovery {
    /// Blocks entered, and blocks there are.
    pub(in crate::store) fn progress(&self) -> (u64, u64) {
        (self.entered.len() as u64, self.plan.blocks.len() as u64)
    }

    /// The round by which SUPER says on disk that a new epoch has begun.
    pub(in crate::store) fn round(&self) -> u64 {
        self.round
    }
}

impl Tier {
    /// Pages of each device's table.
    pub(in crate::store) fn pages(&self) -> impl Iterator<Item = u32> {
        self.devices.iter().map(|device| device.table.pages())
    }

    /// A page's place for the engine: file and offset.
    pub(in crate::store) fn page_place(&self, device: usize, page: u32) -> (FileId, u64) {
        (self.devices[device].file(TABLE_FILE), u64::from(page) * PAGE_BYTES as u64)
    }

    /// Takes over what the disk holds of a page. A page that was never written is free; one that
    /// is torn, rotten or another directory's is written anew.
    pub(in crate::store) fn load_page(
        &mut self,
        device: usize,
        page: u32,
        bytes: &[u8],
        now_us: u64,
    ) {
        debug_assert_eq!(bytes.len(), PAGE_BYTES);
        let device = &mut self.devices[device];
        if let Some((sequence, records)) = format::open(bytes, &device.place.uuid, page) {
            if !device.table.load_page(page, sequence, &records) {
                // They must not come back when there are more slots again, removed meanwhile.
                device.table.distrust(page, now_us);
            }
        } else if bytes.iter().any(|byte| *byte != 0) {
            self.stats.pages_bad += 1;
            device.table.distrust(page, now_us);
        }
    }

    /// A page that could not be read.
    pub(in crate::store) fn miss_page(&mut self, device: usize, page: u32, now_us: u64) {
        self.stats.pages_bad += 1;
        self.devices[device].table.distrust(page, now_us);
    }

    /// Bounce frames that a hung read may still write to are not used any more.
    pub(in crate::store) fn lose_bounce(&mut self, frames: std::ops::Range<u32>) {
        for device in self.devices.iter_mut() {
            device.bounce_free.retain(|frame| !frames.contains(&frame.0));
        }
    }

    /// Finds out which devices have missed an open or a clear of the others: what was removed
    /// meanwhile may still be there.
    pub(in crate::store) fn leave_behind(&mut self) -> Vec<bool> {
        let supers = || self.devices.iter().map(|device| &device.superblock);
        let misses = |(at, this): (usize, &Superblock)| {
            let others = supers().enumerate().filter(|(other, _)| *other != at);
            others.into_iter().any(|(_, other)| this.misses(other))
        };
        let behind: Vec<bool> = supers().enumerate().map(misses).collect();
        for (device, behind) in self.devices.iter_mut().zip(&behind) {
            device.behind = *behind;
        }
        behind
    }

    /// Begins to sort out the records of all pages.
    pub(in crate::store) fn begin_sorting(&self) -> Sorter {
        let slots = self.devices.slots() as usize;
        Sorter::new(slots, self.devices.clear_epochs(), self.geometry.block_bytes)
    }

    /// Sorts out some more; whether that was all. The image does not change meanwhile.
    pub(in crate::store) fn sort_some(&self, sorter: &mut Sorter) -> bool {
        let told = sorter.told();
        sorter.step(self.devices.records_from(told), RECOVERED_A_HOLD)
    }

    /// Begins a new epoch: nothing of an earlier one is written any more. What the records came to
    /// is taken in by `recover_some`. `in_use`: while calls are in progress.
    ///
    /// # Errors
    /// The epoch that would have to begin, where the format has none left; nothing has changed.
    pub(in crate::store) fn begin_recovery(
        &mut self,
        plan: Plan,
        in_use: bool,
    ) -> Result<Recovery, u32> {
        #[cfg(all(test, not(loom)))]
        {
            self.sorted_out = plan.counts;
        }
        let epochs = self.devices.iter().map(|device| device.superblock.epoch());
        let epoch = epochs.fold(plan.epoch_max, u32::max) + 1;
        if epoch > EPOCH_MAX {
            return Err(epoch);
        }
        for device in self.devices.iter_mut() {
            device.superblock.boot(self.geometry.boot, epoch, device.behind);
        }
        let round = self.ask_super();
        self.stats.recovery_all = plan.blocks.len() as u64;
        self.stats.recovered_orphans = u64::from(plan.counts.orphans);
        // What was read may be in the disk's cache alone, and its owner believed lost.
        let distrusted = (0..).zip(self.devices.iter());
        let distrusted = distrusted.filter(|(_, it)| it.behind || it.superblock.is_distrusted());
        let distrusted = distrusted.map(|(device, _)| (device, 0)).collect();
        let entered = room_for(plan.blocks.len());
        let (blanked, aged, used) = (0, 0, Vec::new());
        Ok(Recovery { plan, epoch, in_use, blanked, distrusted, entered, aged, used, round })
    }

    /// Takes in at most so many more slots to blank, pages to write anew, blocks, or blocks in
    /// their order of age; how many it did. None are left where it did none.
    pub(in crate::store) fn recover_some(
        &mut self,
        with: &mut With<'_>,
        recovery: &mut Recovery,
        removed: Option<&Removed>,
        most: usize,
    ) -> usize {
        #[cfg(all(test, not(loom)))]
        let before = self.taken_in();
        let did = self.take_in_some(with, recovery, removed, most);
        #[cfg(all(test, not(loom)))]
        {
            let did = self.taken_in().into_iter().zip(before).map(|(is, was)| is.abs_diff(was));
            self.recovered_a_hold_max = did.fold(self.recovered_a_hold_max, u64::max);
        }
        did
    }

    fn take_in_some(
        &mut self,
        with: &mut With<'_>,
        recovery: &mut Recovery,
        removed: Option<&Removed>,
        most: usize,
    ) -> usize {
        let Recovery { plan, blanked, distrusted, entered, .. } = recovery;
        let (first, end) = (*blanked, plan.blank.len().min(*blanked + most));
        if first < end {
            plan.blank[first..end].iter().for_each(|slot| self.devices.blank(*slot, with.now_us));
            *blanked = end;
            return end - first;
        }
        if let Some((device, page)) = distrusted.pop() {
            let device_of = &mut self.devices[device];
            let end = device_of.table.pages().min(page.saturating_add(most as u32));
            (page..end).for_each(|page| device_of.renew_page(page, with.now_us));
            if end < device_of.table.pages() {
                distrusted.push((device, end));
            } else {
                device_of.behind = false;
            }
            return (end - page) as usize;
        }
        if entered.len() < plan.blocks.len() {
            return self.enter_some(with, recovery, removed, most);
        }
        self.age_some(with, recovery, most)
    }

    /// Whether a clear has voided what is still to come.
    fn is_void(&self, recovery: &Recovery) -> bool {
        self.epoch() != recovery.epoch
    }

    fn enter_some(
        &mut self,
        with: &mut With<'_>,
        recovery: &mut Recovery,
        removed: Option<&Removed>,
        most: usize,
    ) -> usize {
        let void = self.is_void(recovery);
        let Recovery { plan, entered, in_use, .. } = recovery;
        let epoch = with.parts.directory.epoch();
        let before = (self.stats.recovered, self.stats.recovered_bytes);
        let (first, end) = (entered.len(), plan.blocks.len().min(entered.len() + most));
        for at in first..end {
            let block = &plan.blocks[at];
            if void || removed.is_some_and(|removed| removed.has(&block.key)) {
                self.devices.blank(block.slot, with.now_us);
                entered.push(None);
                continue;
            }
            if let Some(soon) = plan.blocks.get(at + AHEAD) {
                with.parts.directory.fetch_bin(soon.key);
            }
            let (parent, above) = match block.parent {
                Some(Parent::Block(at)) => {
                    (entered[at as usize], Some(plan.blocks[at as usize].key))
                }
                Some(Parent::Missing(key)) => (None, Some(key)),
                None => (None, None),
            };
            let parent = parent.filter(|(slot, of)| with.parts.directory.is_live(*slot, *of));
            let entry = self.enter_block(with, block, parent, above, epoch);
            if let (true, Some((slot, _))) = (*in_use, entry) {
                // Whatever happens to the block until all are in finds it in the order.
                let order = self.devices.order_of(block.slot);
                order.insert(slot, block.key.words(), 0, &OnSsd(&with.parts.directory));
            }
            entered.push(entry);
        }
        let blocks = (self.stats.recovered - before.0) as i64;
        let bytes = (self.stats.recovered_bytes - before.1) as i64;
        with.parts.counters.resident(epoch, blocks, bytes);
        end - first
    }

    /// Gives some more blocks their place in the order of age, oldest first.
    fn age_some(&mut self, with: &mut With<'_>, recovery: &mut Recovery, most: usize) -> usize {
        if self.is_void(recovery) {
            return 0;
        }
        let Recovery { plan, entered, in_use, aged, used, .. } = recovery;
        let directory = &with.parts.directory;
        let first = *aged;
        let all = plan.by_age.len();
        for at in first..(all + used.len()).min(first + most) {
            *aged += 1;
            let number = if at < all { plan.by_age[at] } else { used[at - all] };
            let Some((slot, of)) = entered[number as usize] else { continue };
            let block = &plan.blocks[number as usize];
            if !*in_use {
                let order = self.devices.order_of(block.slot);
                order.insert(slot, block.key.words(), 0, &OnSsd(directory));
            } else if directory.is_live(slot, of) {
                let (last_use, hits) = directory.usage(slot);
                if at < all && (last_use != block.last_use || hits > block.hits) {
                    used.push(number);
                } else {
                    self.devices.order_of(block.slot).touch(slot, &OnSsd(directory));
                }
            }
        }
        *aged - first
    }

    /// Enters one block under its parent, or blanks its record. A parent that is not where it was
    /// entered, or never was, is looked for by its key.
    fn enter_block(
        &mut self,
        with: &mut With<'_>,
        block: &Block,
        parent: Option<(Slot, u32)>,
        above: Option<Key>,
        epoch: u32,
    ) -> Option<(Slot, u32)> {
        let directory = &with.parts.directory;
        let by_key = above.filter(|_| parent.is_none());
        let found = by_key.and_then(|key| directory.hole(key, epoch));
        let parent = parent.or(found.map(|found| (found.slot, found.generation)));
        let usage = (block.last_use, block.hits);
        let (key, ssd, len) = (block.key, block.slot, block.len);
        let entry = directory.restore(&Restored { key, parent, ssd, len, usage });
        if let Some(found) = found {
            directory.unpin(found.slot);
            if entry.is_some() && with.policy.take_back(found.slot) {
                self.wanted_again(found.slot, found.generation);
            }
        }
        if let Some(entry) = &entry {
            let above = directory.parent_of(entry.slot).map(|(parent, _)| parent);
            self.spread.found(entry.slot, above, self.devices.of(ssd));
            self.devices.mark_used(ssd);
            with.log.add(EventKind::Stored, Some(key), "ssd");
            self.stats.recovered += 1;
            self.stats.recovered_bytes += u64::from(len);
        } else {
            self.devices.blank(ssd, with.now_us);
        }
        entry.map(|entry| (entry.slot, entry.generation))
    }
}
