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

    pub(super) fn misses(&self, other: &Self) -> bool {
        self.image.misses(&other.image)
    }

    pub(super) fn is_distrusted(&self) -> bool {
        self.image.distrusted
    }

    /// A new epoch begins, with nothing cleared, or all that is older.
    pub(super) fn boot(&mut self, id: u64, epoch: u32, cleared: bool) {
        self.image.boot(id, epoch);
        if cleared {
            self.image.clear_epoch = epoch - 1;
        }
        self.image.clean = false;
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

    fn ask(&mut self) {
        self.ask_for(self.asked + 1);
    }

    fn fail(&mut self, now_us: u64) {
        // The same copy again: the other one is whole.
        self.image.sequence += 1;
        self.fail_round(now_us);
    }

    fn fail_round(&mut self, now_us: u64) {
        self.phase = Phase::Idle;
        self.failed = self.running;
        self.retry_at_us = now_us + FLUSH_US;
    }

    /// Asks for the round of this number, which is later than those before it.
    fn ask_for(&mut self, round: u64) {
        self.asked = round;
        self.retry_at_us = 0;
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

/// How far a round of all devices is: confirmed where each has confirmed it.
fn all_of(rounds: impl Iterator<Item = Round>) -> Round {
    let mut all = Round::Confirmed;
    for round in rounds {
        match round {
            Round::Pending => return Round::Pending,
            Round::Failed => all = Round::Failed,
            Round::Confirmed => {}
        }
    }
    all
}

impl Tier {
    /// Everything stored so far is void, on disk too once the round is confirmed.
    ///
    /// # Errors
    /// The epoch that would have to begin, where the format has none left; nothing has changed.
    pub(in crate::store) fn clear(&mut self) -> Result<u64, u32> {
        let (cleared, epoch) = (self.epoch(), self.epoch() + 1);
        if epoch > EPOCH_MAX {
            return Err(epoch);
        }
        for device in self.devices.iter_mut() {
            device.superblock.image.clear_epoch = cleared;
            device.superblock.image.epoch = epoch;
        }
        Ok(self.ask_super())
    }

    /// Brings every SUPER to disk as it is.
    pub(in crate::store) fn write_super(&mut self, clean: bool) -> u64 {
        self.devices.iter_mut().for_each(|device| device.superblock.image.clean = clean);
        self.ask_super()
    }

    /// A round of all devices: its number is later than any of each one's own.
    pub(super) fn ask_super(&mut self) -> u64 {
        let round = self.devices.iter().map(|it| it.superblock.asked).max().unwrap_or(0) + 1;
        self.devices.iter_mut().for_each(|device| device.superblock.ask_for(round));
        round
    }

    pub(in crate::store) fn super_round(&self, mine: u64) -> Round {
        all_of(self.super_rounds(mine))
    }

    /// How far the round is on each device.
    pub(in crate::store) fn super_rounds(&self, mine: u64) -> impl Iterator<Item = Round> {
        let supers = self.devices.iter().map(|device| &device.superblock);
        supers.map(move |it| round(mine, it.done, it.failed))
    }

    /// Brings the tables to stable storage as they are now, and the slots if asked.
    pub(in crate::store) fn sync(&mut self, slots_too: bool) -> u64 {
        for device in self.devices.iter_mut() {
            device.syncing.asked += 1;
            if slots_too {
                device.syncing.with_slots = device.syncing.asked;
            }
        }
        self.devices[0].syncing.asked
    }

    pub(in crate::store) fn sync_round(&self, mine: u64) -> Round {
        let syncs = self.devices.iter().map(|device| &device.syncing);
        all_of(syncs.map(|it| round(mine, it.done, it.failed)))
    }

    /// Table pages whose writes have ended since the last call, by device.
    pub(in crate::store) fn take_changed(&mut self) -> Vec<(usize, Vec<u32>)> {
        let devices = self.devices.iter_mut().enumerate();
        let changed = devices.map(|(at, it)| (at, std::mem::take(&mut it.syncing.changed)));
        changed.filter(|(_, pages)| !pages.is_empty()).collect()
    }

    /// After a failed sync nobody knows what the disk has of the pages: all are written again.
    fn distrust_table(&mut self, device: usize, now_us: u64) {
        let table = &mut self.devices[device].table;
        (0..table.pages()).for_each(|page| table.distrust(page, now_us));
    }

    pub(super) fn end_sync(&mut self, device: usize, now_us: u64, good: bool) {
        if !good {
            self.distrust_table(device, now_us);
            self.devices[device].superblock.distrust(true);
        }
        // A round begins when every page is written.
        let device = &mut self.devices[device];
        if device.syncing.synced(good) {
            device.superblock.distrust(false);
        }
    }

    pub(super) fn start_settling(&mut self, now_us: u64) {
        if self.end != End::Nothing {
            (0..self.devices.len()).for_each(|device| self.settle(device, now_us));
        }
    }

    fn settle(&mut self, at: usize, now_us: u64) {
        // Until all records are seen, those to be blanked are not blank.
        let urgent = self.devices[at].syncing.wanted() && !self.recovering;
        let device = &self.devices[at];
        let pending = device.superblock.is_pending();
        if device.breaker.trust(now_us) != Trust::Full && !urgent && !pending {
            return;
        }
        while !self.devices[at].bounce_free.is_empty()
            && let Some(page) = self.devices[at].table.next_due(now_us, urgent)
        {
            let mut bytes = [0; PAGE_BYTES];
            self.devices[at].table.begin(page, &mut bytes);
            let job = |frame| Job::Page { page, frame };
            let offset = u64::from(page) * PAGE_BYTES as u64;
            self.write_page(at, job, TABLE_FILE, offset, &bytes, now_us);
        }
        let device = &mut self.devices[at];
        if urgent && device.syncing.out == 0 && device.table.settled() {
            self.start_sync(at, now_us);
        }
        let device = &mut self.devices[at];
        let superblock = &mut device.superblock;
        let wanted = superblock.is_pending() && now_us >= superblock.retry_at_us;
        if wanted && superblock.phase == Phase::Idle && !device.bounce_free.is_empty() {
            superblock.running = superblock.asked;
            superblock.copies_left = SUPER_COPIES;
            if superblock.found_is_stable {
                self.start_super(at, now_us);
            } else {
                superblock.phase = Phase::Syncing;
                self.sync_file(at, SUPER_FILE, Job::SyncSuper, now_us);
            }
        }
    }

    fn write_page(
        &mut self,
        device: usize,
        job: impl FnOnce(FrameId) -> Job,
        file: FileId,
        offset: u64,
        bytes: &[u8],
        now_us: u64,
    ) {
        let frame = self.devices[device].bounce_free.pop().expect("the caller saw a free one");
        let region = self.bounce.frame(frame, PAGE_BYTES as u32);
        self.bounce.write(region, &Rows::packed(bytes, PAGE_BYTES), 0);
        let id = self.begin(device, job(frame), PAGE_BYTES as u32, now_us, false);
        self.jobs.set_frame(id, frame);
        let file = self.devices[device].file(file);
        let request =
            Request { id, op: Op::Write, file, offset, region, digest: None, urgent: true };
        self.outbox.push(request);
    }

    fn start_sync(&mut self, at: usize, now_us: u64) {
        let device = &mut self.devices[at];
        device.syncing.running = device.syncing.asked;
        device.syncing.broken = false;
        let slots = device.syncing.with_slots > device.syncing.done;
        let files = device.table.slots().div_ceil(device.place.slots_a_file);
        self.sync_file(at, TABLE_FILE, Job::SyncTable, now_us);
        for file in (0..files).filter(|_| slots) {
            self.sync_file(at, FileId(SLOTS_FILE + file), Job::SyncSlots, now_us);
        }
    }

    fn sync_file(&mut self, device: usize, file: FileId, job: Job, now_us: u64) {
        self.devices[device].syncing.out += u32::from(!matches!(job, Job::SyncSuper));
        let id = self.begin(device, job, 0, now_us, false);
        let region = Region { who: MemoryId::PAGES, offset: 0, len: 0 };
        let file = self.devices[device].file(file);
        let request =
            Request { id, op: Op::Sync, file, offset: 0, region, digest: None, urgent: true };
        self.outbox.push(request);
    }

    fn start_super(&mut self, device: usize, now_us: u64) {
        let superblock = &mut self.devices[device].superblock;
        superblock.phase = Phase::Writing;
        superblock.image.sequence += 1;
        let bytes = superblock.image.encode();
        let offset = (superblock.image.copy() * PAGE_BYTES) as u64;
        self.write_page(device, |_| Job::Super, SUPER_FILE, offset, &bytes, now_us);
    }

    pub(super) fn end_super(&mut self, device: usize, now_us: u64, frame: FrameId, whole: bool) {
        self.devices[device].bounce_free.push(frame);
        let superblock = &mut self.devices[device].superblock;
        if whole {
            superblock.phase = Phase::Syncing;
            self.sync_file(device, SUPER_FILE, Job::SyncSuper, now_us);
        } else {
            superblock.fail(now_us);
        }
    }

    pub(super) fn end_super_sync(&mut self, at: usize, now_us: u64, good: bool) {
        let device = &mut self.devices[at];
        let superblock = &mut device.superblock;
        if !superblock.found_is_stable {
            // Nothing of this round was written yet.
            superblock.found_is_stable = good;
            if !good {
                superblock.fail_round(now_us);
            } else if device.bounce_free.is_empty() {
                superblock.phase = Phase::Idle;
            } else {
                self.start_super(at, now_us);
            }
            return;
        }
        superblock.copies_left -= 1;
        if !good {
            superblock.fail(now_us);
        } else if superblock.running < superblock.asked {
            // It has changed meanwhile: both copies again.
            superblock.phase = Phase::Idle;
        } else if superblock.copies_left > 0 && !device.bounce_free.is_empty() {
            self.start_super(at, now_us);
        } else if superblock.copies_left > 0 {
            superblock.phase = Phase::Idle;
        } else {
            superblock.phase = Phase::Idle;
            superblock.done = superblock.running;
        }
    }
}
