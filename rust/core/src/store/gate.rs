//! Calls in progress, and how a put without frames waits for them.
//!
//! Owns: the count of calls that hold frames or passing pins, and the wait for one of them to end.
//! Never does: wait for a lease, which may last for ever. Invariant: who waits holds nothing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// The gate.
#[derive(Default)]
pub(super) struct Gate {
    inside: AtomicU32,
    waiting: AtomicU32,
    lock: Mutex<()>,
    left: Condvar,
}

/// A call in progress, until dropped.
pub(super) struct Inside<'a>(&'a Gate);

impl Gate {
    pub(super) fn enter(&self) -> Inside<'_> {
        self.inside.fetch_add(1, Ordering::SeqCst);
        Inside(self)
    }

    /// Waits until some call inside has left; false at once if none is inside, or at the deadline.
    pub(super) fn wait_for_one(&self, deadline: Instant) -> bool {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SeqCst on both sides: either this sees the leaver gone, or the leaver sees this waiting.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let inside = self.inside.load(Ordering::SeqCst) > 0;
        let left = deadline.saturating_duration_since(Instant::now());
        if inside && !left.is_zero() {
            drop(self.left.wait_timeout(guard, left));
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        inside && Instant::now() < deadline
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            // The lock makes sure that a waiter between its check and its sleep is not missed.
            drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.0.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nobody_inside_is_nothing_to_wait_for() {
        let gate = Gate::default();
        let far = Instant::now() + Duration::from_secs(3600);
        assert!(!gate.wait_for_one(far));
        drop(gate.enter());
        assert!(!gate.wait_for_one(far));
    }

    #[test]
    fn a_waiter_goes_on_when_a_call_leaves() {
        let gate = &Gate::default();
        let inside = gate.enter();
        std::thread::scope(|scope| {
            let far = Instant::now() + Duration::from_secs(3600);
            let waiter = scope.spawn(move || gate.wait_for_one(far));
            while gate.waiting.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(inside);
            assert_eq!(waiter.join().ok(), Some(true));
        });
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let gate = Gate::default();
        let _inside = gate.enter();
        assert!(!gate.wait_for_one(Instant::now()));
    }
}
