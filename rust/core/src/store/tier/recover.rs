//! The tier at open: what the table says comes back into the index.
//!
//! Owns: the way from pages to headers. Never does: read a payload; the first read of each block
//! verifies it; hold the lock for more than a piece. Invariants: no record is trusted
//! (`ssd::recover` sorts them out); parents come before children, a missing one becomes a hole;
//! what does not come back is blanked; the order is that of the last use.

use super::{OnSsd, Tier, With};
use crate::directory::Restored;
use crate::event::EventKind;
use crate::policy::Policy;
use crate::ssd::format::{self, EPOCH_MAX, PAGE_BYTES};
use crate::ssd::recover::{Found as Block, Parent, Plan, Sorter};
use crate::units::Slot;

/// So far ahead a bin is asked for before its block is entered.
const AHEAD: usize = 16;

/// Which pieces of work one hold of the lock takes up, at most.
pub(in crate::store) const RECOVERED_A_HOLD: usize = 4096;

/// A recovery under way: what is to be blanked and entered, and how far that is.
pub(in crate::store) struct Recovery {
    plan: Plan,
    /// How many of the slots to blank are blank, and of the pages to be written anew marked.
    blanked: usize,
    distrusted: u32,
    /// Where the first blocks of the plan are now; none where one did not come in.
    entered: Vec<Option<(Slot, u32)>>,
    /// How many of those, oldest first, have their place in the order.
    aged: usize,
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
    /// Pages of the table.
    pub(in crate::store) fn pages(&self) -> u32 {
        self.table.pages()
    }

    /// Takes over what the disk holds of a page. A page that was never written is free; one that
    /// is torn, rotten or another directory's is written anew.
    pub(in crate::store) fn load_page(&mut self, page: u32, bytes: &[u8], now_us: u64) {
        debug_assert_eq!(bytes.len(), PAGE_BYTES);
        if let Some((sequence, records)) = format::open(bytes, &self.geometry.uuid, page) {
            if !self.table.load_page(page, sequence, &records) {
                // They must not come back when there are more slots again, removed meanwhile.
                self.table.distrust(page, now_us);
            }
        } else if bytes.iter().any(|byte| *byte != 0) {
            self.stats.pages_bad += 1;
            self.table.distrust(page, now_us);
        }
    }

    /// A page that could not be read.
    pub(in crate::store) fn miss_page(&mut self, page: u32, now_us: u64) {
        self.stats.pages_bad += 1;
        self.table.distrust(page, now_us);
    }

    /// Bounce frames that a hung read may still write to are not used any more.
    pub(in crate::store) fn lose_bounce(&mut self, frames: std::ops::Range<u32>) {
        self.bounce_free.retain(|frame| !frames.contains(&frame.0));
    }

    /// Begins to sort out the records of all pages.
    pub(in crate::store) fn begin_sorting(&self) -> Sorter {
        let clear_epoch = self.superblock.clear_epoch();
        Sorter::new(self.table.slots() as usize, clear_epoch, self.geometry.block_bytes)
    }

    /// Sorts out some more; whether that was all. The image does not change meanwhile.
    pub(in crate::store) fn sort_some(&self, sorter: &mut Sorter) -> bool {
        let told = sorter.told();
        sorter.step(self.table.records_from(told), RECOVERED_A_HOLD)
    }

    /// Begins a new epoch: nothing of an earlier one is written any more. What the records came to
    /// is taken in by `recover_some`.
    ///
    /// # Errors
    /// The epoch that would have to begin, where the format has none left; nothing has changed.
    pub(in crate::store) fn begin_recovery(
        &mut self,
        with: &With<'_>,
        plan: Plan,
    ) -> Result<Recovery, u32> {
        #[cfg(all(test, not(loom)))]
        {
            self.sorted_out = plan.counts;
        }
        let epoch = self.superblock.epoch().max(plan.epoch_max) + 1;
        if epoch > EPOCH_MAX {
            return Err(epoch);
        }
        with.parts.directory.set_epoch(epoch);
        let round = self.superblock.boot(epoch);
        self.stats.recovered_orphans = u64::from(plan.counts.orphans);
        // What was read may be in the disk's cache alone, and its owner believed lost.
        let distrusted = if self.superblock.is_distrusted() { 0 } else { self.table.pages() };
        let entered = Vec::with_capacity(plan.blocks.len());
        Ok(Recovery { plan, blanked: 0, distrusted, entered, aged: 0, round })
    }

    /// Takes in some more: slots to blank, pages to write anew, blocks, their order of age, as many
    /// of one of them as one hold allows; whether that was all.
    pub(in crate::store) fn recover_some(
        &mut self,
        with: &mut With<'_>,
        recovery: &mut Recovery,
    ) -> bool {
        #[cfg(all(test, not(loom)))]
        let before = self.taken_in();
        let done = self.take_in_some(with, recovery);
        #[cfg(all(test, not(loom)))]
        {
            let did = self.taken_in().into_iter().zip(before).map(|(is, was)| is.abs_diff(was));
            self.recovered_a_hold_max = did.fold(self.recovered_a_hold_max, u64::max);
        }
        done
    }

    fn take_in_some(&mut self, with: &mut With<'_>, recovery: &mut Recovery) -> bool {
        let Recovery { plan, blanked, distrusted, .. } = recovery;
        if *blanked < plan.blank.len() {
            let end = plan.blank.len().min(*blanked + RECOVERED_A_HOLD);
            plan.blank[*blanked..end].iter().for_each(|slot| self.table.blank(*slot, with.now_us));
            *blanked = end;
            return false;
        }
        if *distrusted < self.table.pages() {
            let end = self.table.pages().min(*distrusted + RECOVERED_A_HOLD as u32);
            (*distrusted..end).for_each(|page| self.table.distrust(page, with.now_us));
            *distrusted = end;
            return false;
        }
        if recovery.entered.len() < plan.blocks.len() {
            self.enter_some(with, recovery);
            return false;
        }
        self.age_some(with, recovery)
    }

    /// Enters some more blocks.
    fn enter_some(&mut self, with: &mut With<'_>, recovery: &mut Recovery) {
        let Recovery { plan, entered, .. } = recovery;
        let epoch = with.parts.directory.epoch();
        let before = (self.stats.recovered, self.stats.recovered_bytes);
        let end = plan.blocks.len().min(entered.len() + RECOVERED_A_HOLD);
        for at in entered.len()..end {
            if let Some(soon) = plan.blocks.get(at + AHEAD) {
                with.parts.directory.fetch_bin(soon.key);
            }
            let parent = match plan.blocks[at].parent {
                Some(Parent::Block(at)) => entered[at as usize],
                _ => None,
            };
            entered.push(self.enter_block(with, &plan.blocks[at], parent, epoch));
        }
        let blocks = (self.stats.recovered - before.0) as i64;
        let bytes = (self.stats.recovered_bytes - before.1) as i64;
        with.parts.counters.resident(epoch, blocks, bytes);
    }

    /// Gives some more blocks their place in the order of age; whether all have it.
    fn age_some(&mut self, with: &mut With<'_>, recovery: &mut Recovery) -> bool {
        let Recovery { plan, entered, aged, .. } = recovery;
        let end = plan.by_age.len().min(*aged + RECOVERED_A_HOLD);
        let directory = &with.parts.directory;
        for at in &plan.by_age[*aged..end] {
            if let Some((slot, _)) = entered[*at as usize] {
                let key = plan.blocks[*at as usize].key;
                self.order.insert(slot, key.words(), 0, &OnSsd(directory));
            }
        }
        *aged = end;
        end == plan.by_age.len()
    }

    /// Enters one block under its parent, or blanks its record.
    fn enter_block(
        &mut self,
        with: &mut With<'_>,
        block: &Block,
        parent: Option<(Slot, u32)>,
        epoch: u32,
    ) -> Option<(Slot, u32)> {
        let directory = &with.parts.directory;
        let hole = match block.parent {
            Some(Parent::Missing(key)) => directory.hole(key, epoch),
            _ => None,
        };
        let parent = parent.or(hole.map(|hole| (hole.slot, hole.generation)));
        let usage = (block.last_use, block.hits);
        let (key, ssd, len) = (block.key, block.slot, block.len);
        let entry = directory.restore(&Restored { key, parent, ssd, len, usage });
        if let Some(hole) = hole {
            directory.unpin(hole.slot);
        }
        if entry.is_some() {
            self.slots.mark_used(ssd);
            with.log.add(EventKind::Stored, Some(key), "ssd");
            self.stats.recovered += 1;
            self.stats.recovered_bytes += u64::from(len);
        } else {
            self.table.blank(ssd, with.now_us);
        }
        entry.map(|entry| (entry.slot, entry.generation))
    }
}
