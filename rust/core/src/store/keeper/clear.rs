//! What a clear leaves to do.
//!
//! Owns: the epochs' sweep. Never does: wait. Invariants: a clear is O(1); the sweep takes the
//! cleared blocks away a budget at a time, and never falls so far behind that two epochs look the
//! same.

use super::{Budget, Keeper};
use crate::event::EventKind;
use crate::store::Parts;
use crate::units::Slot;

/// Headers the sweep looks at for the price of one block: it reads them in order.
const SWEEP_HEADERS: u32 = 16;
/// Epochs after which a clear waits for the sweep: below `EPOCH_CELLS`, far below the 2^16 epochs
/// that a header can tell apart.
const SWEEP_LAG_MAX: u32 = crate::stats::EPOCH_CELLS / 2;

/// How a clear ended.
pub(in crate::store) enum Cleared {
    /// Too many clears wait for the sweep, which has to go on first.
    Later,
    /// The directory has no such epoch any more; nothing was cleared.
    NoEpoch(u32),
    /// Done here; where there is an SSD tier, the round by which the disk has it.
    Done(Option<u64>),
}

impl Keeper {
    /// Makes everything stored so far invisible; the sweep takes it away.
    pub(in crate::store) fn clear(&mut self, parts: &Parts) -> Cleared {
        if self.sweeping() && self.unswept_clears >= SWEEP_LAG_MAX {
            return Cleared::Later;
        }
        let round = match self.tier.as_mut().map(|tier| tier.clear()).transpose() {
            Ok(round) => round,
            Err(epoch) => return Cleared::NoEpoch(epoch),
        };
        self.forget_before();
        parts.directory.next_epoch();
        (self.sweep_at, self.sweep_end) = (0, parts.directory.used_headers());
        self.unswept_clears += 1;
        self.log.add(EventKind::Cleared, None, if self.tier.is_some() { "" } else { "ram" });
        Cleared::Done(round)
    }

    /// Takes cleared blocks away, a budget at a time; false while some may be left.
    pub(in crate::store) fn sweep(&mut self, parts: &Parts, budget: &mut Budget) -> bool {
        while self.sweeping() {
            if !budget.spend() {
                return false;
            }
            for _ in 0..SWEEP_HEADERS.min(self.sweep_end - self.sweep_at) {
                let slot = Slot(self.sweep_at);
                self.sweep_at += 1;
                // A block that the policy doesn't know yet is cleared with its insert note.
                let known = self.knows(slot).contains(&true);
                if known && self.clear_block(parts, slot) && !budget.spend() {
                    return false;
                }
            }
        }
        self.unswept_clears = 0;
        true
    }

    pub(super) fn sweeping(&self) -> bool {
        self.sweep_at < self.sweep_end
    }

    pub(super) fn clear_block(&mut self, parts: &Parts, slot: Slot) -> bool {
        let Some(hidden) = parts.directory.hide_stale(slot) else { return false };
        parts.counters.resident(u32::from(hidden.epoch), -1, -i64::from(hidden.len));
        self.cleared += 1;
        self.settle(parts, slot);
        true
    }

    /// Blocks that left by a clear, those included that the sweep has not reached.
    pub(in crate::store) fn cleared(&self, parts: &Parts) -> u64 {
        self.cleared + parts.counters.resident_now(parts.directory.epoch()).2
    }
}
