//! What tests see of a tier at one moment.
//!
//! Owns: the snapshot. Never does: change anything.

use super::Tier;
use super::jobs::Job;
use crate::policy::Policy;
use crate::ssd::recover::Counts;

/// Requests that are out, by purpose, and what the disk does not have yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Outstanding {
    pub(in crate::store) writes: u32,
    pub(in crate::store) reads: u32,
    /// Reads nobody waits for any more.
    pub(in crate::store) late_reads: u32,
    pub(in crate::store) pages: u32,
    pub(in crate::store) table_syncs: u32,
    /// SUPER is being written or synced, and one copy of it is confirmed.
    pub(in crate::store) half_a_super: bool,
    pub(in crate::store) supers: u32,
    pub(in crate::store) dirty_pages: u32,
    pub(in crate::store) slots_free: u32,
    /// Memory for table pages that is not free.
    pub(in crate::store) bounce_used: u32,
}

impl Tier {
    pub(in crate::store) fn outstanding(&self) -> Outstanding {
        let mut out = Outstanding {
            dirty_pages: self.table.dirty_pages() + self.table.in_flight(),
            slots_free: self.slots.free(),
            bounce_used: self.bounce.frames() - self.bounce_free.len() as u32,
            half_a_super: self.superblock.has_half(),
            ..Outstanding::default()
        };
        for begun in self.jobs.iter() {
            match begun.job {
                Job::Clean { .. } | Job::Stage(_) => out.writes += 1,
                Job::Load { .. } | Job::Peek(_) => {
                    out.reads += 1;
                    out.late_reads += u32::from(begun.late);
                }
                Job::Page { .. } => out.pages += 1,
                Job::Super | Job::SyncSuper => out.supers += 1,
                Job::SyncTable | Job::SyncSlots => out.table_syncs += 1,
            }
        }
        out
    }

    /// How the records found at open were sorted out.
    pub(in crate::store) fn sorted_out(&self) -> Counts {
        self.sorted_out
    }

    /// Records of the image that are not free.
    pub(in crate::store) fn records(&self) -> u64 {
        self.table.records().count() as u64
    }

    /// What a recovery changes: records, dirty pages, blocks entered, blocks in their order.
    pub(super) fn taken_in(&self) -> [u64; 4] {
        let pages = u64::from(self.table.dirty_pages());
        [self.records(), pages, self.stats.recovered, self.order.len()]
    }

    /// The most of one of these that one hold has changed.
    pub(in crate::store) fn recovered_a_hold_max(&self) -> u64 {
        self.recovered_a_hold_max
    }

    /// Whether a sync has failed that no other has made good.
    pub(in crate::store) fn distrusts(&self) -> bool {
        self.superblock.is_distrusted()
    }

    /// Whether the disk was given every change of the table.
    pub(in crate::store) fn settled(&self) -> bool {
        self.table.settled()
    }
}
