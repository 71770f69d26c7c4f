//! The keeper: whoever holds the policy lock counts children, orders blocks and makes room.
//!
//! Owns: the policy, the event log, the sweep after a clear, the unfinished touch and wake list,
//! and the SSD tier's state. Never does: copy bytes, or wait. Invariants: one hold works on at most
//! `LOCK_BLOCKS_MAX` blocks and then returns, whatever is left; woken blocks are taken in before
//! any victim is chosen; child counts change here and in the tier, under the same lock.

mod apart;
mod clear;

pub(super) use apart::Apart;
pub(super) use clear::Cleared;

use super::Parts;
use super::ring::Note;
use super::tier::{InRam, Tier, With};
use crate::directory::{Dirty, Entry, Gone, Left, Settled};
use crate::event::{EventKind, EventLog};
use crate::io::{Completion, Request};
use crate::policy::{Fingerprint, Hints, Policy, Search};
use crate::units::{FrameId, Slot};
use std::collections::VecDeque;

/// Inserts, evictions, touches, wakes and blocks looked at in one hold of the lock. Above 128 a
/// hold can last long enough for others to notice; below, the lock itself costs more than the work.
pub const LOCK_BLOCKS_MAX: u32 = 128;
/// What is left of one hold.
pub(super) struct Budget(u32);

impl Budget {
    pub(super) fn full() -> Self {
        Self(LOCK_BLOCKS_MAX)
    }

    pub(super) fn spent(&self) -> u32 {
        LOCK_BLOCKS_MAX - self.0
    }

    pub(super) fn left(&mut self) -> &mut u32 {
        &mut self.0
    }

    pub(super) fn spend(&mut self) -> bool {
        let any = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        any
    }
}

/// How the search for one frame ended.
pub(super) enum Room {
    /// A frame that is the caller's now.
    Frame(FrameId),
    /// Every frame is pinned, held or reserved.
    Nothing,
    /// What could leave is dirty: the cleaner has to write it first.
    Dirty,
    /// The budget is used up.
    Again,
}

/// What only one thread at a time may change.
pub(super) struct Keeper {
    policy: Hints,
    pub(super) tier: Option<Box<Tier>>,
    /// Until the tier is all there, in a store that did not wait for it.
    apart: Option<Apart>,
    pub(super) log: EventLog,
    /// The rest of a touch that a budget cut short.
    touch: Option<(Slot, u32, u32)>,
    /// Evicted in this hold; their entries leave the index when many cache misses can overlap.
    dying: Vec<Slot>,
    /// The rest of the wake list.
    woken: Option<Slot>,
    sweep_at: u32,
    sweep_end: u32,
    unswept_clears: u32,
    pub(super) evictions: u64,
    pub(super) cleared: u64,
    pub(super) holds: u64,
    pub(super) hold_blocks_max: u32,
}

impl Keeper {
    pub(super) fn new(policy: Hints, apart: Option<Apart>) -> Self {
        Self {
            policy,
            tier: None,
            apart,
            log: EventLog::default(),
            touch: None,
            dying: Vec::with_capacity(LOCK_BLOCKS_MAX as usize),
            woken: None,
            sweep_at: 0,
            sweep_end: 0,
            unswept_clears: 0,
            evictions: 0,
            cleared: 0,
            holds: 0,
            hold_blocks_max: 0,
        }
    }

    pub(super) fn policy(&self) -> &dyn Policy {
        &self.policy
    }

    /// The tier, and what it is lent of the keeper.
    pub(super) fn tier<'a>(&'a mut self, parts: &'a Parts) -> Option<(&'a mut Tier, With<'a>)> {
        let tier = self.tier.as_deref_mut()?;
        let (policy, log, cleared) = (&mut self.policy, &mut self.log, &mut self.cleared);
        Some((tier, With { parts, policy, log, cleared, now_us: parts.clock.now_us() }))
    }

    /// One step of the tier; true where it has nothing more to do at once.
    pub(super) fn step(
        &mut self,
        parts: &Parts,
        completions: &mut VecDeque<Completion>,
        requests: &mut Vec<Request>,
        budget: &mut Budget,
    ) -> bool {
        let Some((tier, mut with)) = self.tier(parts) else { return true };
        tier.step(&mut with, completions, requests, budget)
    }

    /// Takes in everything that calls have told; false where the budget ended first.
    pub(super) fn drain(&mut self, parts: &Parts, budget: &mut Budget) -> bool {
        while self.wake(parts, budget) && self.go_on_touching(parts, budget) {
            if budget.0 == 0 {
                return parts.ring.is_empty() && !self.sweeping();
            }
            match parts.ring.pop() {
                Some(note) => self.apply(parts, note, budget),
                None if !self.sweep(parts, budget) => return false,
                // What the sweep released may have woken its parents.
                None if !parts.directory.has_woken() && self.woken.is_none() => return true,
                None => {}
            }
        }
        false
    }

    /// A block that had its frame was not stored after all.
    pub(super) fn withdraw(&mut self, key: Fingerprint) {
        self.policy.withdraw(key);
    }

    /// Makes one frame free: `ahead` of need, or for a caller who takes any. `incoming` names the
    /// block it is for, where the policy is to know before the block is inserted.
    pub(super) fn make_room(
        &mut self,
        parts: &Parts,
        incoming: Option<Fingerprint>,
        ahead: bool,
        budget: &mut Budget,
    ) -> Room {
        self.policy.expire(|| parts.clock.now_us(), &mut budget.0);
        loop {
            if !self.wake(parts, budget) {
                return Room::Again;
            }
            // A released block may have given its frame back.
            if let Some(frame) = (!ahead).then(|| parts.frames.take_one()).flatten() {
                if let Some(key) = incoming {
                    self.policy.admit(key);
                }
                return Room::Frame(frame);
            }
            // What was cleared leaves before anything that is still wanted.
            if self.sweeping() {
                if !self.sweep(parts, budget) {
                    return Room::Again;
                }
                continue;
            }
            let who = InRam { directory: &parts.directory, tier: self.tier.as_deref() };
            match self.policy.victim(incoming, &who, &mut budget.0) {
                Search::Victim(slot) => {
                    let retired = self.policy.is_retired(slot);
                    let dirty = match who.dirty_of(slot) {
                        Dirty::Stay if retired => Dirty::Leaves,
                        dirty => dirty,
                    };
                    if let Some(left) = parts.directory.evict(slot, dirty) {
                        return Room::Frame(self.left(parts, slot, left, incoming, retired));
                    }
                }
                Search::Again => return Room::Again,
                Search::Nothing if parts.directory.has_woken() || self.woken.is_some() => {}
                Search::Nothing if budget.0 == 0 => return Room::Again,
                // Blocks whose event is still in the ring are pinned by it.
                Search::Nothing => match parts.ring.pop() {
                    Some(note) => self.apply(parts, note, budget),
                    None if self.touch.is_none() => {
                        let Some((tier, mut with)) = self.tier(parts) else { return Room::Nothing };
                        if tier.keeps_dirty() {
                            return Room::Dirty;
                        }
                        if !tier.let_more_leave(&mut with) {
                            return if tier.is_moving() { Room::Dirty } else { Room::Nothing };
                        }
                    }
                    None => {
                        if !self.go_on_touching(parts, budget) {
                            return Room::Again;
                        }
                    }
                },
            }
        }
    }

    /// Keeps frames free ahead of need; false where the budget ended first.
    pub(super) fn refill(&mut self, parts: &Parts, budget: &mut Budget) -> bool {
        while self.wake(parts, budget) {
            if parts.frames.free() >= parts.reserve {
                return true;
            }
            match self.make_room(parts, None, true, budget) {
                Room::Frame(frame) => parts.frames.give(frame),
                Room::Nothing | Room::Dirty => return true,
                Room::Again => return false,
            }
        }
        false
    }

    /// Ends the eviction of what left in this hold: entries out of the bins, headers free. Called
    /// before the lock is let go.
    pub(super) fn bury(&mut self, parts: &Parts) {
        for slot in self.dying.drain(..) {
            parts.directory.bury(slot);
        }
    }

    /// A victim has left RAM; its frame.
    fn left(
        &mut self,
        parts: &Parts,
        slot: Slot,
        left: Left,
        incoming: Option<Fingerprint>,
        retired: bool,
    ) -> FrameId {
        let (Left::Gone(gone) | Left::Demoted(gone) | Left::Hole(gone)) = left;
        self.policy.leave(slot, gone.key.words(), incoming);
        let current = gone.epoch == parts.directory.epoch() as u16;
        if let Left::Demoted(_) = left {
            if let Some(tier) = &mut self.tier {
                tier.demoted(slot);
            }
        } else {
            self.left_the_store(parts, slot, &gone, current, retired);
            if let Left::Gone(_) = left {
                self.dying.push(slot);
            }
        }
        if current {
            self.log.add(EventKind::Removed, Some(gone.key), "ram");
        }
        gone.frame.expect("a block in RAM has a frame")
    }

    fn left_the_store(
        &mut self,
        parts: &Parts,
        slot: Slot,
        gone: &Gone,
        current: bool,
        retired: bool,
    ) {
        parts.counters.resident(u32::from(gone.epoch), -1, -i64::from(gone.len));
        *(if current { &mut self.evictions } else { &mut self.cleared }) += 1;
        if let Some(tier) = &mut self.tier {
            tier.dropped(slot, retired);
        }
    }

    /// Takes in the blocks that lost their last pin, hold or child.
    fn wake(&mut self, parts: &Parts, budget: &mut Budget) -> bool {
        loop {
            if self.woken.is_none() {
                self.woken = parts.directory.take_woken();
            }
            let Some(slot) = self.woken else { return true };
            if !budget.spend() {
                return false;
            }
            let (next, waits) = parts.directory.wake_up(slot);
            self.woken = next;
            if waits {
                self.removed(parts, slot);
                continue;
            }
            self.policy.wake(slot);
            if let Some(tier) = &mut self.tier {
                tier.wake(slot);
            }
        }
    }

    fn settle(&mut self, parts: &Parts, slot: Slot) {
        self.policy.forget(slot);
        if let Some((tier, mut with)) = self.tier(parts) {
            tier.forget(&mut with, slot);
        }
        if let Settled::Released(Some(frame)) = parts.directory.settle(slot) {
            parts.frames.give(frame);
        }
    }

    fn apply(&mut self, parts: &Parts, note: Note, budget: &mut Budget) {
        match note {
            Note::Insert { slot, refilled, .. } => {
                budget.spend();
                self.inserted(parts, slot, refilled);
            }
            Note::Touch { slot, generation, length } => {
                self.touch = Some((slot, generation, length));
            }
            Note::Removed { slot, generation } => {
                budget.spend();
                if parts.directory.is_live(slot, generation) {
                    self.removed(parts, slot);
                }
            }
        }
    }

    fn inserted(&mut self, parts: &Parts, slot: Slot, refilled: bool) {
        let directory = &parts.directory;
        directory.count_child(slot, refilled, true);
        let (key, _, epoch) = directory.describe(slot);
        let shown = directory.is_shown(slot);
        if !shown && epoch != directory.epoch() as u16 {
            self.clear_block(parts, slot);
        }
        if let Some((parent, of)) = directory.parent_of(slot) {
            self.take_back(parent, of);
        }
        directory.drop_event_pins(slot);
        if shown {
            if let Some((tier, with)) = self.tier(parts) {
                tier.inserted(&with, slot);
            }
            self.note_apart(parts, slot, true);
            let who = InRam { directory, tier: self.tier.as_deref() };
            self.policy.insert(slot, key.words(), 0, &who);
            self.log.add(EventKind::Stored, Some(key), "ram");
        }
    }

    fn knows(&self, slot: Slot) -> [bool; 2] {
        let on_ssd = self.tier.as_ref().is_some_and(|tier| tier.contains(slot));
        [self.policy.contains(slot), on_ssd]
    }

    /// Reports a block hidden by name, once, and releases it if nothing keeps it. Comes with its
    /// note, or with a wake before that.
    fn removed(&mut self, parts: &Parts, slot: Slot) {
        // A block whose insert was not yet reported is not reported at all; one whose key was
        // stored and reported again meanwhile is not reported as gone.
        let known = self.knows(slot);
        if known.contains(&true) {
            let (key, _, epoch) = parts.directory.describe(slot);
            let again = parts.directory.find_one(key).map(|entry| self.knows(entry.slot));
            let again = again.unwrap_or_default();
            for (at, tier) in ["ram", "ssd"].into_iter().enumerate() {
                if known[at] && !again[at] && epoch == parts.directory.epoch() as u16 {
                    self.log.add(EventKind::Removed, Some(key), tier);
                }
            }
        }
        self.settle(parts, slot);
    }

    fn go_on_touching(&mut self, parts: &Parts, budget: &mut Budget) -> bool {
        while let Some((slot, generation, left)) = self.touch {
            if left == 0 || !parts.directory.is_live(slot, generation) {
                self.touch = None;
                return true;
            }
            if !budget.spend() {
                return false;
            }
            self.take_back(slot, generation);
            let who = InRam { directory: &parts.directory, tier: self.tier.as_deref() };
            self.policy.touch(slot, &who);
            if let Some((tier, mut with)) = self.tier(parts) {
                tier.touch(&mut with, slot);
            }
            self.note_apart(parts, slot, false);
            self.touch = parts.directory.parent_of(slot).map(|(slot, g)| (slot, g, left - 1));
        }
        true
    }

    /// Ends a block's retirement, if it is retired; the cleaner has passed it over.
    fn take_back(&mut self, slot: Slot, generation: u32) {
        if self.policy.take_back(slot)
            && let Some(tier) = &mut self.tier
        {
            tier.wanted_again(slot, generation);
        }
    }

    /// Retires a run, told tail first, from block `done` on up to the first one with a child that
    /// is not the run's own; how far it came, and whether to go on.
    pub(super) fn retire(
        &mut self,
        parts: &Parts,
        run: &[Entry],
        mut done: usize,
        budget: &mut Budget,
    ) -> (usize, bool) {
        while let Some(entry) = run.get(done) {
            if !budget.spend() {
                return (done, true);
            }
            let below = done > 0 && entry.is_parent_of(&run[done - 1]);
            let live = parts.directory.is_live(entry.slot, entry.generation);
            if !live || parts.directory.children(entry.slot) > u32::from(below) {
                break;
            }
            self.policy.retire(entry.slot);
            done += 1;
        }
        (done, false)
    }

    /// Retains the blocks of a run, told tail first, until `deadline_us`; how many were worked on,
    /// and how many of those are retained.
    pub(super) fn retain(
        &mut self,
        parts: &Parts,
        run: &[Entry],
        deadline_us: u64,
        budget: &mut Budget,
    ) -> (usize, usize) {
        let (mut retained, over) = (0, deadline_us <= parts.clock.now_us());
        for (done, entry) in run.iter().enumerate() {
            if !budget.spend() {
                return (done, retained);
            }
            if !parts.directory.is_live(entry.slot, entry.generation) {
                continue;
            }
            if over {
                self.policy.release(entry.slot);
            } else {
                self.take_back(entry.slot, entry.generation);
                retained += usize::from(self.policy.retain(entry.slot, deadline_us));
            }
        }
        (run.len(), retained)
    }
}
