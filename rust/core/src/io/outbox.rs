//! What has completed, on its way from an engine's threads to whoever reaps.
//!
//! Owns: the completions between an engine and `reap`, the count of what is outstanding, and the
//! count of an engine's threads. Never does: I/O. Invariants: a request that `admit` took is
//! counted until its completion is handed out; a reaper that waits is woken by the first
//! completion, by `wake`, or by its time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Completion;

/// Requests outstanding; one past them ends as EBUSY.
pub(super) const OUTSTANDING_MAX: usize = 16_384;
/// How long a drop waits for threads that are in a call.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Completions of one engine, or of two that serve the same files.
#[derive(Default)]
pub(crate) struct Outbox {
    done: Mutex<Done>,
    /// Something completed, or someone woke the reaper.
    news: Condvar,
    outstanding: AtomicUsize,
}

#[derive(Default)]
struct Done {
    completions: Vec<Completion>,
    woken: bool,
}

impl Outbox {
    /// Counts a request as outstanding; whether there is room for it. It completes either way.
    pub(super) fn admit(&self) -> bool {
        self.outstanding.fetch_add(1, Ordering::AcqRel) < OUTSTANDING_MAX
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    pub(super) fn complete(&self, completion: Completion) {
        let mut done = lock(&self.done);
        done.completions.push(completion);
        let first = done.completions.len() == 1;
        drop(done);
        // Who was woken for the first takes them all.
        if first {
            self.news.notify_all();
        }
    }

    pub(super) fn reap(&self, wait: Duration, into: &mut Vec<Completion>) {
        let idle = |done: &mut Done| done.completions.is_empty() && !done.woken;
        let mut done = lock(&self.done);
        if !wait.is_zero() {
            let waited = self.news.wait_timeout_while(done, wait, idle);
            (done, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        done.woken = false;
        self.outstanding.fetch_sub(done.completions.len(), Ordering::AcqRel);
        into.append(&mut done.completions);
    }

    pub(super) fn wake(&self) {
        lock(&self.done).woken = true;
        self.news.notify_all();
    }
}

/// The threads of an engine, counted.
#[derive(Default)]
pub(super) struct Crew {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Crew {
    pub(super) fn begin(&self) {
        *lock(&self.running) += 1;
    }

    pub(super) fn end(&self) {
        *lock(&self.running) -= 1;
        self.ended.notify_all();
    }

    /// Waits until all have ended, at most `CLOSE_WAIT`; whether they have.
    pub(super) fn wait(&self) -> bool {
        let running = lock(&self.running);
        let waited = self.ended.wait_timeout_while(running, CLOSE_WAIT, |running| *running > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// The state under these locks is whole between any two statements that change it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
