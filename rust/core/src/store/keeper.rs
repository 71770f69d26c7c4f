//! The keeper: whoever holds the policy lock counts children, orders blocks and makes room.
//!
//! Owns: the policy, the event log, the sweep after a clear, the unfinished touch and wake list.
//! Never does: copy bytes, or wait. Invariants: one hold works on at most `LOCK_BLOCKS_MAX` blocks
//! and then returns, whatever is left; woken blocks are taken in before any victim is chosen;
//! child counts change here and nowhere else.

use super::Parts;
use super::ring::Note;
use crate::directory::{Entry, Gone, Settled};
use crate::event::{EventKind, EventLog};
use crate::policy::{Fingerprint, Hints, Policy, Search};
use crate::units::{FrameId, Slot};

/// Inserts, evictions, touches, wakes and blocks looked at in one hold of the lock. Above 128 a
/// hold can last long enough for others to notice; below, the lock itself costs more than the work.
pub const LOCK_BLOCKS_MAX: u32 = 128;
/// Headers the sweep looks at for the price of one block: it reads them in order.
const SWEEP_HEADERS: u32 = 16;
/// Epochs after which a clear waits for the sweep: below `EPOCH_CELLS`, far below the 2^16 epochs
/// that a header can tell apart.
const SWEEP_LAG_MAX: u32 = crate::stats::EPOCH_CELLS / 2;

/// What is left of one hold.
pub(super) struct Budget(u32);

impl Budget {
    pub(super) fn full() -> Self {
        Self(LOCK_BLOCKS_MAX)
    }

    pub(super) fn spent(&self) -> u32 {
        LOCK_BLOCKS_MAX - self.0
    }

    fn spend(&mut self) -> bool {
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
    /// The budget is used up.
    Again,
}

/// What only one thread at a time may change.
pub(super) struct Keeper {
    policy: Hints,
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
    pub(super) fn new(policy: Hints) -> Self {
        Self {
            policy,
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
            match self.policy.victim(incoming, &parts.directory, &mut budget.0) {
                Search::Victim(slot) => {
                    if let Some(gone) = parts.directory.evict(slot) {
                        return Room::Frame(self.evicted(parts, slot, gone, incoming));
                    }
                }
                Search::Again => return Room::Again,
                Search::Nothing if parts.directory.has_woken() || self.woken.is_some() => {}
                Search::Nothing if budget.0 == 0 => return Room::Again,
                // Blocks whose event is still in the ring are pinned by it.
                Search::Nothing => match parts.ring.pop() {
                    Some(note) => self.apply(parts, note, budget),
                    None if self.touch.is_none() => return Room::Nothing,
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
                Room::Nothing => return true,
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

    fn evicted(
        &mut self,
        parts: &Parts,
        slot: Slot,
        gone: Gone,
        incoming: Option<Fingerprint>,
    ) -> FrameId {
        self.dying.push(slot);
        self.policy.leave(slot, gone.key.words(), incoming);
        parts.counters.resident(u32::from(gone.epoch), -1, -i64::from(gone.len));
        if gone.epoch == parts.directory.epoch() as u16 {
            self.evictions += 1;
            self.log.add(EventKind::Removed, Some(gone.key));
        } else {
            self.cleared += 1;
        }
        gone.frame.expect("a block in RAM has a frame")
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
            } else {
                self.policy.wake(slot);
            }
        }
    }

    fn settle(&mut self, parts: &Parts, slot: Slot) {
        self.policy.forget(slot);
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
        directory.count_child(slot, refilled);
        let (key, _, epoch) = directory.describe(slot);
        let shown = directory.is_shown(slot);
        if !shown && epoch != directory.epoch() as u16 {
            self.clear_block(parts, slot);
        }
        if let Some((parent, _)) = directory.parent_of(slot) {
            self.policy.take_back(parent);
        }
        directory.drop_event_pins(slot);
        if shown {
            self.policy.insert(slot, key.words(), 0, directory);
            self.log.add(EventKind::Stored, Some(key));
        }
    }

    /// Reports a block hidden by name, once, and releases it if nothing keeps it. Comes with its
    /// note, or with a wake before that.
    fn removed(&mut self, parts: &Parts, slot: Slot) {
        // A block whose insert was not yet reported is not reported at all; one whose key was
        // stored and reported again meanwhile is not reported as gone.
        if self.policy.contains(slot) {
            let (key, _, epoch) = parts.directory.describe(slot);
            let again = parts.directory.find_one(key);
            let again = again.is_some_and(|entry| self.policy.contains(entry.slot));
            if !again && epoch == parts.directory.epoch() as u16 {
                self.log.add(EventKind::Removed, Some(key));
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
            self.policy.touch(slot, &parts.directory);
            self.touch = parts.directory.parent_of(slot).map(|(slot, g)| (slot, g, left - 1));
        }
        true
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
                retained += usize::from(self.policy.retain(entry.slot, deadline_us));
            }
        }
        (run.len(), retained)
    }

    /// Makes everything stored so far invisible; the sweep takes it away. False: too many clears
    /// wait for the sweep, which has to go on first.
    pub(super) fn clear(&mut self, parts: &Parts) -> bool {
        if self.sweeping() && self.unswept_clears >= SWEEP_LAG_MAX {
            return false;
        }
        parts.directory.next_epoch();
        (self.sweep_at, self.sweep_end) = (0, parts.directory.used_headers());
        self.unswept_clears += 1;
        self.log.add(EventKind::Cleared, None);
        true
    }

    /// Takes cleared blocks away, a budget at a time; false while some may be left.
    pub(super) fn sweep(&mut self, parts: &Parts, budget: &mut Budget) -> bool {
        while self.sweeping() {
            if !budget.spend() {
                return false;
            }
            for _ in 0..SWEEP_HEADERS.min(self.sweep_end - self.sweep_at) {
                let slot = Slot(self.sweep_at);
                self.sweep_at += 1;
                // A block that the policy doesn't know yet is cleared with its insert note.
                let known = self.policy.contains(slot);
                if known && self.clear_block(parts, slot) && !budget.spend() {
                    return false;
                }
            }
        }
        self.unswept_clears = 0;
        true
    }

    fn sweeping(&self) -> bool {
        self.sweep_at < self.sweep_end
    }

    fn clear_block(&mut self, parts: &Parts, slot: Slot) -> bool {
        let Some(hidden) = parts.directory.hide_stale(slot) else { return false };
        parts.counters.resident(u32::from(hidden.epoch), -1, -i64::from(hidden.len));
        self.cleared += 1;
        self.settle(parts, slot);
        true
    }

    /// Blocks that left by a clear, those included that the sweep has not reached.
    pub(super) fn cleared(&self, parts: &Parts) -> u64 {
        self.cleared + parts.counters.resident_now(parts.directory.epoch()).2
    }
}
