//! The tier at open: what the table says comes back into the index.
//!
//! Owns: the way from pages to headers. Never does: read a payload; the first read of each block
//! verifies it. Invariants: no record is trusted (`ssd::recover` sorts them out); parents come
//! before children, a missing one becomes a hole; what does not come back is blanked; the order is
//! that of the last use.

use super::{OnSsd, Tier, With};
use crate::directory::Restored;
use crate::event::EventKind;
use crate::policy::Policy;
use crate::ssd::format::{self, PAGE_BYTES};
use crate::ssd::recover::{Parent, plan};
use crate::units::Slot;

/// What came back.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::store) struct Found {
    pub(in crate::store) blocks: u64,
    pub(in crate::store) bytes: u64,
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
            self.table.load_page(page, sequence, &records);
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

    /// Enters the blocks of all pages, and begins a new epoch: nothing of an earlier one is
    /// written any more. Returns also the round by which SUPER says so on disk.
    pub(in crate::store) fn recover(&mut self, with: &mut With<'_>) -> (Found, u64) {
        let clear_epoch = self.superblock.clear_epoch();
        let plan = plan(self.table.records(), clear_epoch, self.geometry.block_bytes);
        #[cfg(all(test, not(loom)))]
        {
            self.sorted_out = plan.counts;
        }
        let directory = &with.parts.directory;
        let epoch = self.superblock.epoch().max(plan.epoch_max) + 1;
        directory.set_epoch(epoch);
        let round = self.superblock.boot(epoch);
        for slot in &plan.blank {
            self.table.blank(*slot, with.now_us);
        }
        let mut found = Found::default();
        let mut entered: Vec<Option<(Slot, u32)>> = Vec::with_capacity(plan.blocks.len());
        for (at, block) in plan.blocks.iter().enumerate() {
            if let Some(soon) = plan.blocks.get(at + 16) {
                directory.fetch_bin(soon.key);
            }
            let (parent, hole) = match block.parent {
                Some(Parent::Block(at)) => (entered[at as usize], None),
                Some(Parent::Missing(key)) => {
                    let hole = directory.hole(key, epoch);
                    (hole.map(|hole| (hole.slot, hole.generation)), hole)
                }
                None => (None, None),
            };
            let usage = (block.last_use, block.hits);
            let (key, ssd, len) = (block.key, block.slot, block.len);
            let entry = directory.restore(&Restored { key, parent, ssd, len, usage });
            if let Some(hole) = hole {
                directory.unpin(hole.slot);
            }
            entered.push(entry.map(|entry| (entry.slot, entry.generation)));
            if entry.is_some() {
                self.slots.mark_used(ssd);
                with.log.add(EventKind::Stored, Some(key), "ssd");
                found.blocks += 1;
                found.bytes += u64::from(len);
            } else {
                self.table.blank(ssd, with.now_us);
            }
        }
        for slot in plan.by_age.iter().filter_map(|at| entered[*at as usize]) {
            let key = directory.describe(slot.0).0;
            self.order.insert(slot.0, key.words(), 0, &OnSsd(directory));
        }
        with.parts.counters.resident(epoch, found.blocks as i64, found.bytes as i64);
        self.stats.recovered = found.blocks;
        self.stats.recovered_bytes = found.bytes;
        self.stats.recovered_orphans = u64::from(plan.counts.orphans);
        (found, round)
    }
}
