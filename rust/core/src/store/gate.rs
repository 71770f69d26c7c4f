//! Calls in progress, and how a put without frames waits for them.
//!
//! Owns: the count of calls that hold frames or passing pins, of the frames they hold, and the wait
//! for all of them to end. Never does: wait for a lease, which may last for ever. Invariants: who
//! waits holds nothing; a call that enters after a wait began does not prolong it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// The gate. Calls enter on the present side; a wait closes that side for newcomers and lasts until
/// it is empty.
#[derive(Default)]
pub(super) struct Gate {
    inside: [AtomicU32; 2],
    side: AtomicU32,
    frames: AtomicU32,
    waiting: AtomicU32,
    waits: Mutex<Waits>,
    emptied: Condvar,
}

#[derive(Default)]
struct Waits {
    /// The side that is being waited for.
    closed: Option<usize>,
    /// Waits that have ended.
    ended: u64,
}

/// A call in progress, until dropped.
pub(super) struct Inside<'a> {
    gate: &'a Gate,
    side: usize,
    frames: u32,
}

impl Gate {
    pub(super) fn enter(&self) -> Inside<'_> {
        loop {
            let side = self.side.load(Ordering::SeqCst) as usize & 1;
            self.inside[side].fetch_add(1, Ordering::SeqCst);
            let inside = Inside { gate: self, side, frames: 0 };
            // Counted on a side that was open after the count: no wait can have missed it.
            if self.side.load(Ordering::SeqCst) as usize & 1 == side {
                return inside;
            }
        }
    }

    /// Frames that calls in progress hold and have not stored in.
    pub(super) fn frames_held(&self) -> u32 {
        self.frames.load(Ordering::SeqCst)
    }

    /// Waits until every call that is inside now has left; false at once where none is, or at the
    /// deadline.
    pub(super) fn wait_for_all(&self, deadline: Instant) -> bool {
        let empty = |side: usize| self.inside[side].load(Ordering::SeqCst) == 0;
        if empty(0) && empty(1) {
            return false;
        }
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        // SeqCst on both sides: either a leaver sees this waiting, or this sees the leaver gone.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // A wait under way began earlier: calls that came since are covered by the next one.
        let enough = waits.ended + 1 + u64::from(waits.closed.is_some());
        let done = loop {
            if waits.closed.is_some_and(empty) {
                (waits.closed, waits.ended) = (None, waits.ended + 1);
                self.emptied.notify_all();
            }
            if waits.ended >= enough {
                break true;
            }
            if waits.closed.is_none() {
                waits.closed = Some(self.side.fetch_add(1, Ordering::SeqCst) as usize & 1);
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            let woken = self.emptied.wait_timeout(waits, left);
            waits = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        done
    }
}

impl Inside<'_> {
    /// This call holds so many frames more.
    pub(super) fn hold(&mut self, frames: usize) {
        self.frames += frames as u32;
        self.gate.frames.fetch_add(frames as u32, Ordering::SeqCst);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.gate.frames.fetch_sub(self.frames, Ordering::SeqCst);
        let last = self.gate.inside[self.side].fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.gate.waiting.load(Ordering::SeqCst) > 0 {
            // The lock makes sure that a waiter between its check and its sleep is not missed.
            drop(self.gate.waits.lock().unwrap_or_else(PoisonError::into_inner));
            self.gate.emptied.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[test]
    fn nobody_inside_is_nothing_to_wait_for() {
        let gate = Gate::default();
        assert!(!gate.wait_for_all(far()));
        drop(gate.enter());
        assert!(!gate.wait_for_all(far()));
    }

    #[test]
    fn a_wait_ends_with_the_calls_that_were_inside_whoever_comes_after() {
        let gate = &Gate::default();
        let first = gate.enter();
        std::thread::scope(|scope| {
            let waiters = [0; 2].map(|_| scope.spawn(move || gate.wait_for_all(far())));
            while gate.waiting.load(Ordering::SeqCst) < 2 || gate.side.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let late = gate.enter();
            drop(first);
            // The second waiter may have come while the first was waiting: then it covers `late`.
            std::thread::sleep(Duration::from_millis(20));
            assert!(waiters.iter().any(|waiter| waiter.is_finished()));
            drop(late);
            for waiter in waiters {
                assert_eq!(waiter.join().ok(), Some(true));
            }
        });
        assert_eq!(gate.waiting.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_deadline_ends_the_wait_and_the_next_one_goes_on() {
        let gate = Gate::default();
        let mut inside = gate.enter();
        inside.hold(3);
        assert!(!gate.wait_for_all(Instant::now()));
        assert_eq!(gate.frames_held(), 3);
        drop(inside);
        assert_eq!(gate.frames_held(), 0);
        let again = gate.enter();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.wait_for_all(far()));
            while gate.waiting.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(again);
            assert_eq!(waiter.join().ok(), Some(true));
        });
    }
}
