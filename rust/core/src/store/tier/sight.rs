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
    /// Of those, writes: each has memory for a page.
    pub(in crate::store) super_writes: u32,
    /// Devices that have not confirmed their SUPER.
    pub(in crate::store) supers_pending: u32,
    pub(in crate::store) dirty_pages: u32,
    pub(in crate::store) slots_free: u32,
    /// Memory for table pages that is not free.
    pub(in crate::store) bounce_used: u32,
}

impl Tier {
    pub(in crate::store) fn outstanding(&self) -> Outstanding {
        let mut out = Outstanding {
            dirty_pages: self
                .devices
                .iter()
                .map(|device| device.table.dirty_pages() + device.table.in_flight())
                .sum(),
            slots_free: self.devices.slots_free(),
            bounce_used: self.bounce.frames()
                - self.devices.iter().map(|it| it.bounce_free.len() as u32).sum::<u32>(),
            half_a_super: self.devices.iter().any(|device| device.superblock.has_half()),
            supers_pending: self
                .devices
                .iter()
                .map(|device| u32::from(device.superblock.is_pending()))
                .sum(),
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
                Job::Super => {
                    out.supers += 1;
                    out.super_writes += 1;
                }
                Job::SyncSuper => out.supers += 1,
                Job::SyncTable | Job::SyncSlots => out.table_syncs += 1,
            }
        }
        out
    }

    /// Blocks on each device.
    pub(in crate::store) fn blocks_of_each(&self) -> Vec<u64> {
        self.devices.iter().map(|device| device.order.len()).collect()
    }

    /// Blocks that are to be looked at before the policy's order goes on.
    pub(in crate::store) fn waiting_to_clean(&self) -> usize {
        self.redo.len() + self.plan.len()
    }

    /// How the records found at open were sorted out.
    pub(in crate::store) fn sorted_out(&self) -> Counts {
        self.sorted_out
    }

    /// Records of the image that are not free.
    pub(in crate::store) fn records(&self) -> u64 {
        self.devices.records_from(0).filter(|(_, record)| !record.is_free()).count() as u64
    }

    /// What a recovery changes: records, dirty pages, blocks entered, blocks in their order.
    pub(super) fn taken_in(&self) -> [u64; 4] {
        let pages = self.devices.iter().map(|it| u64::from(it.table.dirty_pages())).sum();
        [self.records(), pages, self.stats.recovered, self.devices.blocks()]
    }

    /// The most of one of these that one hold has changed.
    pub(in crate::store) fn recovered_a_hold_max(&self) -> u64 {
        self.recovered_a_hold_max
    }

    /// Of each device: its first file, and whether a sync has failed that no other has made good.
    pub(in crate::store) fn distrusts(&self) -> Vec<(u32, bool)> {
        let of = |it: &super::Device| (it.place.first_file, it.superblock.is_distrusted());
        self.devices.iter().map(of).collect()
    }

    /// Whether the disk was given every change of the table.
    pub(in crate::store) fn settled(&self) -> bool {
        self.devices.iter().all(|device| device.table.settled())
    }
}
