//! The store's time: microseconds since it was opened.
//!
//! Owns: the choice of a real clock or one that tests move. Invariant: it never goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A clock.
pub(super) enum Clock {
    /// The machine's monotonic clock.
    Real(Instant),
    /// Moved by `advance` only.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub(super) fn new(manual: bool) -> Self {
        if manual { Self::Manual(Arc::default()) } else { Self::Real(Instant::now()) }
    }

    /// The word of a manual clock, which a simulated engine moves where others would wait.
    pub(super) fn word(&self) -> Option<Arc<AtomicU64>> {
        if let Self::Manual(word) = self { Some(Arc::clone(word)) } else { None }
    }

    pub(super) fn now_us(&self) -> u64 {
        match self {
            Self::Real(begun) => u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Lets so much time go by, where no engine does.
    pub(super) fn pass(&self, wait: Duration) {
        match self {
            Self::Real(_) => std::thread::sleep(wait),
            Self::Manual(_) => self.advance(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)),
        }
    }

    /// Moves a manual clock; a real one goes by itself.
    pub(super) fn advance(&self, us: u64) {
        if let Self::Manual(now) = self {
            now.fetch_add(us, Ordering::Relaxed);
        }
    }
}
