//! Dirty blocks go to SSD: which, when, and what becomes of them.
//!
//! Owns: the choice of the next block to write and both ends of its write. Never does: choose who
//! leaves RAM; it follows the policy's own order. Invariants: the next victims are clean or in
//! flight as far as the device keeps up; a block's dirty ancestors are written before it, unless a
//! put waits; a block that is not written is counted with the reason.

use super::jobs::{Begun, Job};
use super::{End, Geometry, IDLE_US, OnSsd, Tier, With};
use crate::event::EventKind;
use crate::io::{Fault, Op};
use crate::policy::Policy;
use crate::ssd::admit::{Reasons, Verdict};
use crate::ssd::format::{Record, tag_bytes};
use crate::store::keeper::Budget;
use crate::units::{FrameId, NONE, Slot, SsdSlot};

/// A sixteenth of the frames at least so many, a quarter at most, are kept clean ahead of need.
const CLEAN_AHEAD_MIN: u64 = 32;

/// A record waits so long for its parent's: a hung request must not hold back others.
const PARENT_WAIT_US: u64 = 500_000;

/// How the search for a block to write ended.
enum Pick {
    Block(Slot),
    Nothing,
    /// The budget is used up.
    Again,
}

impl Tier {
    /// Starts writes while the device has room for them; false where the budget ended first.
    pub(super) fn start_cleaning(&mut self, with: &mut With<'_>, budget: &mut Budget) -> bool {
        loop {
            if self.recovering || self.end > End::NotYet || !self.any_ready(with.now_us, false) {
                return true;
            }
            let begun = match self.next_to_clean(with, budget) {
                Pick::Block(slot) => self.start_clean(with, slot, budget),
                Pick::Nothing => false,
                Pick::Again => return false,
            };
            if !begun {
                self.stuck = self.devices.writing() == 0 && !self.any_busy(with.now_us);
                return true;
            }
            self.stuck = false;
        }
    }

    /// How many of the oldest blocks are to be clean now.
    fn clean_ahead(&self, with: &With<'_>) -> u64 {
        if self.flushing > 0 || self.waiting_puts > 0 {
            return u64::MAX;
        }
        let frames = &with.parts.frames;
        let total = u64::from(frames.total());
        let wanted = (total / 16).max(CLEAN_AHEAD_MIN).min(total / 4).max(1);
        wanted.saturating_sub(u64::from(frames.free()))
    }

    /// The next block in the order of victims: one that is to be clean now, or, where the device
    /// has nothing to do and a slot is free, any. A copy ahead of need pushes nothing out.
    fn upcoming(&mut self, with: &mut With<'_>) -> Option<Slot> {
        let idle = self.jobs.is_empty()
            && with.now_us.saturating_sub(self.last_request_us) >= IDLE_US
            && self.any_room(with.now_us);
        let within = self.clean_ahead(with);
        let needed = with.policy.upcoming(within);
        needed.or_else(|| idle.then(|| with.policy.upcoming(u64::MAX)).flatten())
    }

    fn next_to_clean(&mut self, with: &mut With<'_>, budget: &mut Budget) -> Pick {
        let alone = self.waiting_puts > 0;
        if alone {
            // The pick itself, whose ancestors' turn comes later.
            self.plan.truncate(1);
        }
        loop {
            if !alone && self.is_climbing(with) && !self.climb(with, budget) {
                return Pick::Again;
            }
            while let Some((slot, generation)) = self.plan.pop() {
                if !budget.spend() {
                    self.plan.push((slot, generation));
                    return Pick::Again;
                }
                if self.is_to_clean(with, slot, generation) && !self.is_replica(with, slot) {
                    return Pick::Block(slot);
                }
            }
            match self.pick(with, budget) {
                Pick::Block(slot) => {
                    self.plan.push((slot, with.parts.directory.generation_of(slot)));
                    if !alone && !self.climb(with, budget) {
                        return Pick::Again;
                    }
                    if !self.admit(with) {
                        self.plan.clear();
                    }
                }
                end => return end,
            }
        }
    }

    /// Whether everything that can be written is: nothing is under way, and nothing was found.
    pub(in crate::store) fn has_written(&self) -> bool {
        self.stuck && !self.is_writing()
    }

    fn is_to_clean(&self, with: &With<'_>, slot: Slot, generation: u32) -> bool {
        let directory = &with.parts.directory;
        directory.is_live(slot, generation) && directory.is_dirty(slot)
    }

    /// The next dirty block in the order of victims.
    fn pick(&mut self, with: &mut With<'_>, budget: &mut Budget) -> Pick {
        loop {
            if !budget.spend() {
                return Pick::Again;
            }
            let slot = match self.redo.pop_front() {
                Some((slot, of)) if with.parts.directory.is_live(slot, of) => slot,
                Some(_) => continue,
                None => match self.upcoming(with) {
                    Some(slot) => slot,
                    None => return Pick::Nothing,
                },
            };
            // What its user gave up leaves unwritten.
            let retired = self.flushing == 0 && with.policy.is_retired(slot);
            let dirty = with.parts.directory.is_dirty(slot) && !retired;
            if dirty && !self.is_replica(with, slot) {
                return Pick::Block(slot);
            }
        }
    }

    /// Whether a followed directory has the block: then it may leave RAM unwritten.
    fn is_replica(&mut self, with: &mut With<'_>, slot: Slot) -> bool {
        let follow = with.parts.follow.as_ref().filter(|follow| follow.is_replicated());
        let key = with.parts.directory.describe(slot).0;
        if !follow.is_some_and(|follow| follow.holds(&key)) {
            return false;
        }
        if !self.refused.get(slot) {
            self.refused.set(slot, true);
            self.stats.replica_skips += 1;
            with.policy.wake(slot);
        }
        true
    }

    /// Whether the last block of the plan has a dirty parent.
    fn is_climbing(&self, with: &With<'_>) -> bool {
        self.plan.last().is_some_and(|(slot, generation)| {
            let parent = with.parts.directory.parent_of(*slot);
            let parent = parent.filter(|_| with.parts.directory.is_live(*slot, *generation));
            parent.is_some_and(|(parent, of)| self.is_to_clean(with, parent, of))
        })
    }

    /// Adds the dirty ancestors of the last block to the plan.
    fn climb(&mut self, with: &With<'_>, budget: &mut Budget) -> bool {
        while self.is_climbing(with) {
            if !budget.spend() {
                return false;
            }
            let last = self.plan.last().and_then(|(slot, _)| with.parts.directory.parent_of(*slot));
            self.plan.extend(last);
        }
        true
    }

    /// Asks admission about the chain of the plan, as a whole.
    fn admit(&mut self, with: &mut With<'_>) -> bool {
        let directory = &with.parts.directory;
        let Some((pick, _)) = self.plan.first().copied() else { return false };
        if self.flushing > 0 {
            return true;
        }
        let stride = u64::from(self.geometry.stride_bytes);
        let reasons = Reasons {
            hit: self.plan.iter().any(|(slot, _)| directory.usage(*slot).1 > 0),
            child_on_ssd: directory.has_child_elsewhere(pick),
            hinted: with.policy.is_retained(pick),
        };
        let key = directory.describe(pick).0.words();
        let bytes = self.plan.len() as u64 * stride;
        let verdict = self.admission.decide(with.now_us, bytes, reasons, key);
        if verdict == Verdict::Refuse {
            self.stats.refused += 1;
            for (slot, _) in &self.plan {
                self.refused.set(*slot, true);
                with.policy.wake(*slot);
            }
        }
        verdict == Verdict::Write
    }

    /// False where there is no slot for it: then nothing else will find one either.
    fn start_clean(&mut self, with: &mut With<'_>, slot: Slot, budget: &mut Budget) -> bool {
        let generation_of = with.parts.directory.generation_of(slot);
        let wanted = self.spread.device(slot);
        let Some((ssd, probe)) = self.take_slot(with, wanted, false, budget) else {
            self.stats.no_slot += 1;
            self.plan.push((slot, generation_of));
            return false;
        };
        let Some(moving) = with.parts.directory.begin_clean(slot) else {
            self.devices.give(ssd);
            return true;
        };
        let len = Geometry::rounded(moving.len);
        let generation = self.next_generation();
        let job = Job::Clean { slot, ssd, generation };
        let device = self.devices.of(ssd);
        let id = self.begin(device, job, len, with.now_us, probe);
        let region = with.parts.arena.frame(moving.frame, len);
        let digest = self.digest(ssd, moving.key, moving.len, generation);
        let request = self.request(id, Op::Write, ssd, region, digest);
        self.outbox.push(request);
        self.devices[device].writing.add(len);
        true
    }

    /// Notes a request that is about to be made of a device.
    pub(super) fn begin(
        &mut self,
        device: usize,
        job: Job,
        len: u32,
        now_us: u64,
        probe: bool,
    ) -> u64 {
        if probe {
            self.devices[device].breaker.begin_probe();
        }
        self.last_request_us = now_us;
        let frame = FrameId(NONE);
        self.jobs.add(Begun { device, job, len, frame, begun_us: now_us, late: false, probe })
    }

    /// A write has ended. Its record waits where its parent's is on its way.
    pub(super) fn end_clean(&mut self, with: &mut With<'_>, done: Done) {
        self.stuck = false;
        if done.result == Ok(true) && self.waits_for_parent(with, &done) {
            self.written.push_back(done);
        } else {
            self.show_clean(with, &done);
        }
    }

    fn waits_for_parent(&self, with: &With<'_>, done: &Done) -> bool {
        let parent = with.parts.directory.parent_of(done.slot);
        let fresh = with.now_us.saturating_sub(done.since_us) < PARENT_WAIT_US;
        fresh && parent.is_some_and(|(parent, _)| with.parts.directory.is_being_cleaned(parent))
    }

    /// Enters the records whose parents' are in the image, or have been too long on their way.
    pub(super) fn enter_written(&mut self, with: &mut With<'_>) {
        // A block entered may be the parent of another, so once more as long as one was.
        let mut waiting = self.written.len();
        while waiting > 0 {
            for _ in 0..waiting {
                let Some(done) = self.written.pop_front() else { return };
                if self.waits_for_parent(with, &done) {
                    self.written.push_back(done);
                } else {
                    self.show_clean(with, &done);
                }
            }
            if self.written.len() == waiting {
                return;
            }
            waiting = self.written.len();
        }
    }

    fn show_clean(&mut self, with: &mut With<'_>, done: &Done) {
        let Done { slot, ssd, generation, digest, result, .. } = *done;
        let directory = &with.parts.directory;
        let whole = result == Ok(true) && self.end < End::NoMoreRecords;
        let moving = directory.moving(slot);
        let again = (slot, directory.generation_of(slot));
        if directory.end_clean(slot, whole.then_some(ssd)) {
            let usage = directory.usage(slot);
            let record = self.record(&moving.into(), digest, generation, usage);
            self.devices.set(ssd, record, with.now_us);
            self.devices.order_of(ssd).insert(slot, moving.key.words(), 0, &OnSsd(directory));
            with.policy.wake(slot);
            with.log.add(EventKind::Stored, Some(moving.key), "ssd");
            self.stats.writes += 1;
            self.stats.write_bytes += u64::from(moving.len);
            return;
        }
        self.stats.writes_lost += 1;
        self.release(ssd, matches!(result, Err(Fault::Io(_))), with.now_us);
        if !whole {
            self.redo.push_back(again);
        }
    }

    /// The record of a block whose bytes are on disk.
    pub(super) fn record(
        &self,
        block: &Written,
        digest: u128,
        generation: u64,
        (last_use, hits): (u32, u8),
    ) -> Record {
        let parent = block.parent.unwrap_or(Record::FREE.parent);
        let with_parent = if block.parent.is_some() { Record::HAS_PARENT } else { 0 };
        Record {
            key: block.key,
            parent,
            tag: tag_bytes(digest),
            generation,
            len: block.len,
            stored_len: block.len,
            flags: Record::LIVE | with_parent,
            last_use,
            hits,
            ..Record::FREE
        }
    }
}

/// A block's write that has ended. `Ok(false)`: short.
pub(super) struct Done {
    pub(super) slot: Slot,
    pub(super) ssd: SsdSlot,
    pub(super) generation: u64,
    pub(super) digest: u128,
    pub(super) result: Result<bool, Fault>,
    pub(super) since_us: u64,
}

/// What a record says of a block beside its write.
pub(super) struct Written {
    pub(super) key: crate::key::Key,
    pub(super) parent: Option<crate::key::Key>,
    pub(super) len: u32,
}

impl From<crate::directory::Moving> for Written {
    fn from(moving: crate::directory::Moving) -> Self {
        Self { key: moving.key, parent: moving.parent, len: moving.len }
    }
}
