//! A few threads that share one large copy with the thread that asks for it.
//!
//! Owns: the threads, started with the first large copy and parked between copies, and the one job
//! that they share. Never does: decide what is copied where. Invariants: `run` returns, or unwinds,
//! after the last call of its closure has ended; one job at a time, a second caller works alone;
//! nothing is allocated once the threads are there; no thread outlives the value.

use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, PoisonError, TryLockError};

use super::fork::fork_count;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering};

/// Threads at one copy, the caller's included.
pub const COPY_THREADS_MAX: usize = 64;

pub(super) struct Team {
    shared: Arc<Shared>,
    /// Held for the length of a job; None until the first one.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
    size: usize,
    forks_at_birth: u64,
    /// Why there are fewer threads than wanted.
    refused: OnceLock<String>,
}

#[derive(Default)]
struct Shared {
    job: Mutex<Job>,
    /// There is a job, or the team closes.
    work: Condvar,
    /// The last thread left the job.
    left: Condvar,
}

#[derive(Default)]
struct Job {
    task: Option<Task>,
    /// Which job it is: nobody enters one twice.
    number: u64,
    inside: usize,
    panicked: bool,
    closed: bool,
}

type Call<'a> = *const (dyn Fn(usize) + Sync + 'a);

/// A closure on the stack of `run`, and its pieces.
#[derive(Clone, Copy)]
struct Task {
    call: Call<'static>,
    next: *const AtomicUsize,
    count: usize,
}

// SAFETY: both pointers are to values on the stack of `run`, which does not return while a thread
// is inside the job; the closure is `Sync`.
unsafe impl Send for Task {}

impl Task {
    /// Takes pieces until none is left.
    ///
    /// # Safety
    /// Inside the job: `run` has not returned.
    unsafe fn work(self) {
        // SAFETY: `run` keeps both alive (contract).
        let (call, next) = unsafe { (&*self.call, &*self.next) };
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.count {
                return;
            }
            call(piece);
        }
    }
}

impl Team {
    /// A team of `size` threads, the caller's included; none is started yet.
    pub(super) fn new(size: usize) -> Self {
        let size = size.clamp(1, COPY_THREADS_MAX);
        let (shared, threads) = (Arc::default(), Mutex::new(None));
        let refused = OnceLock::new();
        Self { shared, threads, size, forks_at_birth: fork_count(), refused }
    }

    /// What the kernel refused, in a sentence.
    pub(super) fn fallback(&self) -> Option<&String> {
        self.refused.get()
    }

    /// Threads at one copy, the caller's included.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Starts the threads, the first time, so that no copy takes the blame for it.
    pub(super) fn get_ready(&self) {
        if let Some(mut threads) = self.take() {
            threads.get_or_insert_with(|| self.start());
        }
    }

    /// The team, if it is at no job.
    fn take(&self) -> Option<MutexGuard<'_, Option<Vec<JoinHandle<()>>>>> {
        match self.threads.try_lock() {
            Ok(threads) => Some(threads),
            Err(TryLockError::Poisoned(threads)) => Some(threads.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Calls `call` once for each piece below `count`, in any order, in several threads at once.
    /// False, and nothing was called, where there are no others or they are at another job.
    pub(super) fn run(&self, count: usize, call: &(dyn Fn(usize) + Sync)) -> bool {
        if self.size < 2 || count < 2 {
            return false;
        }
        let Some(mut threads) = self.take() else { return false };
        let others = threads.get_or_insert_with(|| self.start()).len();
        if others == 0 {
            return false;
        }
        let next = AtomicUsize::new(0);
        // SAFETY: only the lifetime changes; `end` takes the job back and waits for all who entered
        // it, before this function ends in any way.
        let call = unsafe { mem::transmute::<Call<'_>, Call<'static>>(call) };
        let task = Task { call, next: &raw const next, count };
        let end = Entered(&self.shared);
        self.shared.offer(task, others.min(count - 1));
        // SAFETY: inside `run`.
        unsafe { task.work() };
        drop(end);
        assert!(!lock(&self.shared.job).panicked, "a thread of the copy team panicked");
        true
    }

    /// `run` without its end: for the model that shows what the end is for.
    #[cfg(all(test, loom))]
    pub(super) fn run_without_end(&self, count: usize, call: impl Fn(usize) + Sync + 'static) {
        let call: Call<'static> = Box::leak(Box::new(call));
        let task = Task { call, next: Box::leak(Box::new(AtomicUsize::new(0))), count };
        if let Some(mut threads) = self.take() {
            let others = threads.get_or_insert_with(|| self.start()).len();
            self.shared.offer(task, others);
            // SAFETY: both are leaked: no thread comes too late.
            unsafe { task.work() };
        }
    }

    /// Starts the threads; with fewer than wanted it goes on.
    fn start(&self) -> Vec<JoinHandle<()>> {
        let mut threads = Vec::with_capacity(self.size - 1);
        for _ in 1..self.size {
            let shared = Arc::clone(&self.shared);
            let named = thread::Builder::new().name("keystow-copy".to_owned());
            match named.spawn(move || shared.serve()) {
                Ok(thread) => threads.push(thread),
                // Copies are right with any number of threads; the next large one does not retry.
                Err(error) => {
                    let (there, size) = (threads.len() + 1, self.size);
                    self.refused.get_or_init(|| {
                        format!("large copies by {there} threads, not {size}: {error}")
                    });
                    break;
                }
            }
        }
        threads
    }
}

/// The end of a job, however it comes: nobody enters any more, and who is inside is waited for.
struct Entered<'a>(&'a Shared);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut job = lock(&self.0.job);
        job.task = None;
        while job.inside > 0 {
            job = self.0.left.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    /// Begins a job and wakes so many for it.
    fn offer(&self, task: Task, wanted: usize) {
        let mut job = lock(&self.job);
        job.task = Some(task);
        job.number += 1;
        job.panicked = false;
        drop(job);
        (0..wanted).for_each(|_| self.work.notify_one());
    }

    /// What one thread does.
    fn serve(&self) {
        let mut last = 0;
        let mut job = lock(&self.job);
        loop {
            if job.closed {
                return;
            }
            let Some(task) = job.task.filter(|_| job.number != last) else {
                job = self.work.wait(job).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            last = job.number;
            job.inside += 1;
            drop(job);
            // SAFETY: counted as inside, which `run` waits for.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { task.work() }));
            job = lock(&self.job);
            job.panicked |= done.is_err();
            job.inside -= 1;
            if job.inside == 0 {
                self.left.notify_one();
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if fork_count() != self.forks_at_birth {
            // The threads live in the parent only, and one of them may have held the lock.
            return mem::forget(threads);
        }
        lock(&self.shared.job).closed = true;
        self.shared.work.notify_all();
        for thread in threads.into_iter().flatten() {
            let joined = thread.join();
            debug_assert!(joined.is_ok(), "a panic left a copy thread");
        }
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("size", &self.size).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::panic::resume_unwind;
    use std::sync::atomic::AtomicU32;
    use std::thread::ThreadId;
    use std::time::Duration;

    fn calls(team: &Team, count: usize) -> Vec<u32> {
        let seen: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
        let call = |piece: usize| {
            seen[piece].fetch_add(1, Ordering::Relaxed);
        };
        if !team.run(count, &call) {
            (0..count).for_each(call);
        }
        seen.into_iter().map(AtomicU32::into_inner).collect()
    }

    #[test]
    fn each_piece_is_called_once_whatever_the_size() {
        for size in [1, 2, 3, 7] {
            let team = Team::new(size);
            for count in [0, 1, 2, 3, 100, 1] {
                assert_eq!(calls(&team, count), vec![1; count], "{count} pieces, {size} threads");
            }
        }
        assert_eq!((Team::new(0).size(), Team::new(1000).size()), (1, COPY_THREADS_MAX));
    }

    /// Runs a job whose pieces wait for each other, so that nobody can take two of them.
    fn meet(team: &Team, then: &(dyn Fn() + Sync)) -> bool {
        let (arrived, met) = (Mutex::new(0), Condvar::new());
        team.run(team.size(), &|_| {
            let mut arrived = lock(&arrived);
            *arrived += 1;
            met.notify_all();
            while *arrived < team.size() {
                arrived = met.wait(arrived).unwrap_or_else(PoisonError::into_inner);
            }
            drop(arrived);
            then();
        })
    }

    #[test]
    fn all_threads_are_at_each_job() {
        assert!(!meet(&Team::new(1), &|| ()));
        for size in [2, 3] {
            let team = Team::new(size);
            team.get_ready();
            for _ in 0..20 {
                let ids: Mutex<HashSet<ThreadId>> = Mutex::default();
                assert!(meet(&team, &|| {
                    lock(&ids).insert(thread::current().id());
                }));
                assert_eq!(lock(&ids).len(), size);
                // Long enough that the others are asleep at the next one, mostly.
                thread::yield_now();
            }
        }
    }

    #[test]
    fn callers_at_once_all_get_their_pieces() {
        let team = Team::new(3);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..200 {
                        let count = 2 + round % 5;
                        assert_eq!(calls(&team, count), vec![1; count]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_comes_out_only_after_the_last_call_has_ended() {
        let team = Team::new(2);
        let caller = thread::current().id();
        let ended = AtomicU32::new(0);
        let then = || {
            if thread::current().id() == caller {
                // Without a message, which takes longer than what is waited for.
                resume_unwind(Box::new("a bad piece"));
            }
            thread::sleep(Duration::from_millis(50));
            ended.store(1, Ordering::Relaxed);
        };
        assert!(catch_unwind(AssertUnwindSafe(|| meet(&team, &then))).is_err());
        assert_eq!(ended.into_inner(), 1);
    }

    #[test]
    fn a_panic_in_a_piece_comes_out_and_the_team_goes_on() {
        let team = Team::new(2);
        let caller = thread::current().id();
        for callers in [true, false] {
            let bad = || assert!((thread::current().id() == caller) != callers, "a bad piece");
            assert!(catch_unwind(AssertUnwindSafe(|| meet(&team, &bad))).is_err());
            assert_eq!(calls(&team, 8), vec![1; 8]);
        }
    }
}
