//! Table pages and SUPER go to disk, and where somebody waits, to stable storage.
//!
//! Owns: the writes of pages and of both SUPER copies, and the rounds by which callers learn that
//! the disk has confirmed. Never does: choose what they say. Invariants: pages go ahead of
//! everything once they are due; a round of SUPER is two copies, one after the other, each written
//! and then synced; a failed sync fails its round, and the next round writes again (a failed fsync
//! is never retried as success).

use super::faults::Trust;
use super::jobs::Job;
use super::{End, SLOTS_FILE, SUPER_FILE, TABLE_FILE, Tier};
use crate::arena::{MemoryId, Region, Rows};
use crate::io::{FileId, Op, Request};
use crate::ssd::format::{EPOCH_MAX, PAGE_BYTES, SUPER_COPIES, Super};
use crate::ssd::table::FLUSH_US;
use crate::units::FrameId;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Writing,
    Syncing,
}

/// SUPER: what it says, and how far the disk has it.
pub(super) struct Superblock {
    image: Super,
    phase: Phase,
    copies_left: usize,
    /// Rounds asked for, running, confirmed and failed, by number.
    asked: u64,
    running: u64,
    done: u64,
    failed: u64,
    retry_at_us: u64,
    /// What was found at open is on stable storage. Until then the other copy must stay as it is:
    /// an earlier process may have died between the write of the newest one and its sync.
    found_is_stable: bool,
}

impl Superblock {
    pub(super) fn new(image: Super) -> Self {
        Self {
            image,
            phase: Phase::Idle,
            copies_left: 0,
            asked: 0,
            running: 0,
            done: 0,
            failed: 0,
            retry_at_us: 0,
            found_is_stable: false,
        }
    }

    pub(super) fn epoch(&self) -> u32 {
        self.image.epoch
    }

    pub(super) fn clear_epoch(&self) -> u32 {
        self.image.clear_epoch
    }

    /// A sync has failed, or one has confirmed the whole table: the next owner is told, who else
    /// would take for written what the kernel has given up.
    fn distrust(&mut self, distrusted: bool) {
        if self.image.distrusted != distrusted {
            self.image.distrusted = distrusted;
            self.ask();
        }
    }

    pub(super) fn is_distrusted(&self) -> bool {
        self.image.distrusted
    }

    /// A new epoch begins, with nothing cleared.
    pub(super) fn boot(&mut self, epoch: u32) -> u64 {
        self.image.epoch = epoch;
        self.image.clean = false;
        self.ask()
    }

    /// Whether a change of it is not on disk yet: no slot is written until it is.
    pub(super) fn is_pending(&self) -> bool {
        self.done < self.asked
    }

    /// Whether one copy of it is confirmed and the other one is not.
    #[cfg(all(test, not(loom)))]
    pub(super) fn has_half(&self) -> bool {
        self.phase != Phase::Idle && self.copies_left < SUPER_COPIES
    }

    fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.retry_at_us = 0;
        self.asked
    }
}

/// Rounds of "all pages written, then the table synced".
#[derive(Default)]
pub(super) struct Syncing {
    asked: u64,
    /// The round that includes the files of slots.
    with_slots: u64,
    running: u64,
    /// Syncs of the running round that are out.
    out: u32,
    broken: bool,
    done: u64,
    failed: u64,
    /// Table pages whose writes have ended since they were last taken: a hint for followers.
    changed: Vec<u32>,
}

impl Syncing {
    fn wanted(&self) -> bool {
        self.asked > self.done.max(self.failed)
    }

    /// A caller waits for the table: no new blocks are written, so that it settles.
    pub(super) fn holds_writes(&self) -> bool {
        self.wanted()
    }

    pub(super) fn wrote_page(&mut self, page: u32, whole: bool) {
        self.changed.push(page);
        if !whole && self.wanted() {
            self.failed = self.asked;
        }
    }

    /// A sync of the running round has ended; whether that has confirmed the round.
    fn synced(&mut self, good: bool) -> bool {
        self.out -= 1;
        self.broken |= !good;
        if self.out > 0 {
            return false;
        }
        let end = if self.broken { &mut self.failed } else { &mut self.done };
        *end = (*end).max(self.running);
        !self.broken
    }
}

/// How far a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Round {
    Pending,
    Confirmed,
    Failed,
}

fn round(mine: u64, done: u64, failed: u64) -> Round {
    if done >= mine {
        Round::Confirmed
    } else if failed >= mine {
        Round::Failed
    } else {
        Round::Pending
    }
}

impl Tier {
    /// Everything stored so far is void, on disk too once the round is confirmed.
    ///
    /// # Errors
    /// The epoch that would have to begin, where the format has none left; nothing has changed.
    pub(in crate::store) fn clear(&mut self) -> Result<u64, u32> {
        let epoch = self.superblock.epoch() + 1;
        if epoch > EPOCH_MAX {
            return Err(epoch);
        }
        self.superblock.image.clear_epoch = self.superblock.image.epoch;
        self.superblock.image.epoch = epoch;
        Ok(self.superblock.ask())
    }

    /// Brings SUPER to disk as it is.
    pub(in crate::store) fn write_super(&mut self, clean: bool) -> u64 {
        self.superblock.image.clean = clean;
        self.superblock.ask()
    }

    pub(in crate::store) fn super_round(&self, mine: u64) -> Round {
        round(mine, self.superblock.done, self.superblock.failed)
    }

    /// Brings the table to stable storage as it is now, and the slots if asked.
    pub(in crate::store) fn sync(&mut self, slots_too: bool) -> u64 {
        self.syncing.asked += 1;
        if slots_too {
            self.syncing.with_slots = self.syncing.asked;
        }
        self.syncing.asked
    }

    pub(in crate::store) fn sync_round(&self, mine: u64) -> Round {
        round(mine, self.syncing.done, self.syncing.failed)
    }

    /// Table pages whose writes have ended since the last call.
    pub(in crate::store) fn take_changed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.syncing.changed)
    }

    /// After a failed sync nobody knows what the disk has of the pages: all are written again.
    pub(super) fn distrust_table(&mut self, now_us: u64) {
        (0..self.table.pages()).for_each(|page| self.table.distrust(page, now_us));
    }

    pub(super) fn end_sync(&mut self, now_us: u64, good: bool) {
        if !good {
            self.distrust_table(now_us);
            self.superblock.distrust(true);
        }
        // A round begins when every page is written.
        if self.syncing.synced(good) {
            self.superblock.distrust(false);
        }
    }

    pub(super) fn start_settling(&mut self, now_us: u64) {
        // Until all records are seen, those to be blanked are not blank.
        let urgent = self.syncing.wanted() && !self.recovering;
        if self.end == End::Nothing {
            return;
        }
        if self.breaker.trust(now_us) != Trust::Full && !urgent && !self.superblock.is_pending() {
            return;
        }
        while !self.bounce_free.is_empty()
            && let Some(page) = self.table.next_due(now_us, urgent)
        {
            let mut bytes = [0; PAGE_BYTES];
            self.table.begin(page, &mut bytes);
            let job = |frame| Job::Page { page, frame };
            let offset = u64::from(page) * PAGE_BYTES as u64;
            self.write_page(job, TABLE_FILE, offset, &bytes, now_us);
        }
        if urgent && self.syncing.out == 0 && self.table.settled() {
            self.start_sync(now_us);
        }
        let wanted = self.superblock.is_pending() && now_us >= self.superblock.retry_at_us;
        if wanted && self.superblock.phase == Phase::Idle && !self.bounce_free.is_empty() {
            self.superblock.running = self.superblock.asked;
            self.superblock.copies_left = SUPER_COPIES;
            if self.superblock.found_is_stable {
                self.start_super(now_us);
            } else {
                self.superblock.phase = Phase::Syncing;
                self.sync_file(SUPER_FILE, Job::SyncSuper, now_us);
            }
        }
    }

    fn write_page(
        &mut self,
        job: impl FnOnce(FrameId) -> Job,
        file: FileId,
        offset: u64,
        bytes: &[u8],
        now_us: u64,
    ) {
        let frame = self.bounce_free.pop().expect("the caller saw a free one");
        let region = self.bounce.frame(frame, PAGE_BYTES as u32);
        self.bounce.write(region, &Rows::packed(bytes, PAGE_BYTES), 0);
        let id = self.begin(job(frame), PAGE_BYTES as u32, now_us, false);
        self.jobs.set_frame(id, frame);
        let request =
            Request { id, op: Op::Write, file, offset, region, digest: None, urgent: true };
        self.outbox.push(request);
    }

    fn start_sync(&mut self, now_us: u64) {
        self.syncing.running = self.syncing.asked;
        self.syncing.broken = false;
        let slots = self.syncing.with_slots > self.syncing.done;
        let files = self.table.slots().div_ceil(self.geometry.slots_a_file);
        self.sync_file(TABLE_FILE, Job::SyncTable, now_us);
        for file in (0..files).filter(|_| slots) {
            self.sync_file(FileId(SLOTS_FILE + file), Job::SyncSlots, now_us);
        }
    }

    fn sync_file(&mut self, file: FileId, job: Job, now_us: u64) {
        self.syncing.out += u32::from(!matches!(job, Job::SyncSuper));
        let id = self.begin(job, 0, now_us, false);
        let region = Region { who: MemoryId::PAGES, offset: 0, len: 0 };
        let request =
            Request { id, op: Op::Sync, file, offset: 0, region, digest: None, urgent: true };
        self.outbox.push(request);
    }

    fn start_super(&mut self, now_us: u64) {
        self.superblock.phase = Phase::Writing;
        self.superblock.image.sequence += 1;
        let bytes = self.superblock.image.encode();
        let offset = (self.superblock.image.copy() * PAGE_BYTES) as u64;
        self.write_page(|_| Job::Super, SUPER_FILE, offset, &bytes, now_us);
    }

    pub(super) fn end_super(&mut self, now_us: u64, frame: FrameId, whole: bool) {
        self.bounce_free.push(frame);
        if whole {
            self.superblock.phase = Phase::Syncing;
            self.sync_file(SUPER_FILE, Job::SyncSuper, now_us);
        } else {
            self.fail_super(now_us);
        }
    }

    pub(super) fn end_super_sync(&mut self, now_us: u64, good: bool) {
        if !self.superblock.found_is_stable {
            // Nothing of this round was written yet.
            self.superblock.found_is_stable = good;
            if !good {
                self.fail_round(now_us);
            } else if self.bounce_free.is_empty() {
                self.superblock.phase = Phase::Idle;
            } else {
                self.start_super(now_us);
            }
            return;
        }
        self.superblock.copies_left -= 1;
        if !good {
            self.fail_super(now_us);
        } else if self.superblock.running < self.superblock.asked {
            // It has changed meanwhile: both copies again.
            self.superblock.phase = Phase::Idle;
        } else if self.superblock.copies_left > 0 && !self.bounce_free.is_empty() {
            self.start_super(now_us);
        } else if self.superblock.copies_left > 0 {
            self.superblock.phase = Phase::Idle;
        } else {
            self.superblock.phase = Phase::Idle;
            self.superblock.done = self.superblock.running;
        }
    }

    fn fail_super(&mut self, now_us: u64) {
        // The same copy again: the other one is whole.
        self.superblock.image.sequence += 1;
        self.fail_round(now_us);
    }

    fn fail_round(&mut self, now_us: u64) {
        self.superblock.phase = Phase::Idle;
        self.superblock.failed = self.superblock.running;
        self.superblock.retry_at_us = now_us + FLUSH_US;
    }
}
