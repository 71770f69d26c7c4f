//! Whether it pays to share a copy here and now, by what copies took lately.
//!
//! Owns: two rates, alone and shared. Never does: copy, or look at a clock. A machine whose cores
//! are busy takes a thread off in the middle of its piece, and the caller waits for it: then one
//! thread is faster, and only a trial now and then is shared. Invariant: both ways are tried again
//! for ever, every `TRIAL_CALLS` calls.

// Not `crate::sync`: a heuristic that any interleaving leaves a heuristic.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The slower way is tried so often; oftener at first, when threads have just been started.
const TRIAL_CALLS: u32 = 64;
/// A new time of the faster way counts one so-manieth,
const WEIGHT: i64 = 8;
/// one of the slower way more: there are few of them.
const WEIGHT_TRIAL: i64 = 2;
/// One time counts no more than so many times the average: a single hiccup decides nothing.
const TIMES_MAX: u64 = 4;

#[derive(Debug, Default)]
pub(super) struct Pace {
    calls: AtomicU32,
    /// Picoseconds a byte, alone and shared; 0: not known yet.
    took_ps: [AtomicU32; 2],
    shared: AtomicU64,
}

impl Pace {
    /// Whether to share the next copy.
    pub(super) fn choose(&self) -> bool {
        let [alone, shared] = [0, 1].map(|way| self.took_ps[way].load(Ordering::Relaxed));
        if alone == 0 || shared == 0 {
            return alone != 0;
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let trial = call.is_multiple_of(TRIAL_CALLS) || call.is_power_of_two();
        (shared < alone) != trial
    }

    /// So long took a copy.
    pub(super) fn took(&self, shared: bool, bytes: usize, time: Duration) {
        self.shared.fetch_add(u64::from(shared), Ordering::Relaxed);
        let way = usize::from(shared);
        let [before, other] = [way, 1 - way].map(|way| self.took_ps[way].load(Ordering::Relaxed));
        let weight = if before > other { WEIGHT_TRIAL } else { WEIGHT };
        let before = u64::from(before);
        let now = (time.as_nanos() as u64).saturating_mul(1000) / bytes.max(1) as u64;
        let next = if before == 0 {
            now
        } else {
            let now = now.min(before * TIMES_MAX);
            before.saturating_add_signed((now as i64 - before as i64) / weight)
        };
        let next = u32::try_from(next).unwrap_or(u32::MAX).max(1);
        self.took_ps[way].store(next, Ordering::Relaxed);
    }

    /// Copies that were shared.
    pub(super) fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Calls 1, 2, 4 ... 64.
    const TRIALS_AT_FIRST: u32 = 7;

    /// Shared copies of so many, where both ways take so many microseconds.
    fn shared_of(pace: &Pace, calls: u32, alone_us: u64, shared_us: u64) -> u32 {
        (0..calls).fold(0, |count, _| {
            let shared = pace.choose();
            let us = if shared { shared_us } else { alone_us };
            pace.took(shared, 4 << 20, Duration::from_micros(us));
            count + u32::from(shared)
        })
    }

    #[test]
    fn both_ways_are_tried_first_then_the_faster_is_taken() {
        let pace = Pace::default();
        assert!(!pace.choose());
        pace.took(false, 4 << 20, Duration::from_micros(200));
        assert!(pace.choose());
        pace.took(true, 4 << 20, Duration::from_micros(100));
        assert_eq!(shared_of(&pace, TRIAL_CALLS, 200, 100), TRIAL_CALLS - TRIALS_AT_FIRST);
        assert_eq!(shared_of(&Pace::default(), 2 + TRIAL_CALLS, 200, 300), 1 + TRIALS_AT_FIRST);
    }

    #[test]
    fn the_other_way_is_tried_now_and_then() {
        let pace = Pace::default();
        shared_of(&pace, 2 + TRIAL_CALLS, 200, 300);
        let before = pace.shared();
        // 128, 256 and 512 are no trials beside those that come anyway.
        assert_eq!(shared_of(&pace, 10 * TRIAL_CALLS, 200, 300), 10);
        assert_eq!(pace.shared(), before + 10);
    }

    #[test]
    fn a_change_is_noticed_and_a_hiccup_is_not() {
        let pace = Pace::default();
        shared_of(&pace, 100, 200, 100);
        pace.took(true, 4 << 20, Duration::from_secs(1));
        assert!(shared_of(&pace, 10, 200, 100) >= 9);
        // Cores become busy: within a few copies it is alone again.
        assert!(shared_of(&pace, 200, 200, 5000) <= 10);
        // And free: within some trials it is shared again.
        shared_of(&pace, 8 * TRIAL_CALLS, 200, 100);
        assert!(shared_of(&pace, 100, 200, 100) > 90);
    }
}
