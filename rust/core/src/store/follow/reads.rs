//! Reading blocks of followed directories: a few threads, and memory of their own.
//!
//! Owns: the threads, the buffers, the queue. Never does: deliver a block, or wait for a disk in a
//! caller's stead. Invariants: at most `STAGING_BYTES` of buffers, two at least; a buffer is in one
//! job, with one caller, or free; one that a disk does not give back is not used again.

use super::{Member, lock};
use crate::ssd::follow::{Known, Payload};
use crate::ssd::reads::Buffer;
use crate::store::tier::STAGING_BYTES;
use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Reads under way at once.
const THREADS: usize = 4;

/// A buffer, free again when dropped.
pub(super) struct Lent {
    buffer: Buffer,
    shared: Arc<Shared>,
}

impl Lent {
    /// The first `len` bytes.
    pub(super) fn get(&mut self, len: usize) -> &mut [u8] {
        self.buffer.get(len)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.shared.state).free.push(std::mem::take(&mut self.buffer));
        self.shared.freed.notify_all();
    }
}

/// A read that has ended: the number of the job, how, and the bytes.
pub(super) struct Done {
    pub(super) at: usize,
    pub(super) payload: Payload,
    pub(super) buffer: Lent,
}

/// A read to be done.
pub(super) struct Job {
    pub(super) at: usize,
    pub(super) member: Arc<Member>,
    pub(super) slot: u32,
    pub(super) known: Known,
    pub(super) buffer: Lent,
    pub(super) reply: Sender<Done>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    free: Vec<Buffer>,
    /// Buffers that there may still be.
    unmade: usize,
    threads: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A job was queued, or it closes.
    work: Condvar,
    /// A buffer is free, or a thread has ended.
    freed: Condvar,
}

/// The reader of all followed directories.
pub(super) struct Reads {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    threaded: bool,
}

impl Reads {
    pub(super) fn new(stride_bytes: u32, threaded: bool) -> Self {
        let shared = Arc::new(Shared::default());
        lock(&shared.state).unmade = (STAGING_BYTES / u64::from(stride_bytes)).max(2) as usize;
        Self { shared, threads: Mutex::default(), threaded }
    }

    /// A free buffer, if there is one by then.
    pub(super) fn buffer(&self, deadline: Option<Instant>) -> Option<Lent> {
        let lend = |buffer| Some(Lent { buffer, shared: Arc::clone(&self.shared) });
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(buffer) = state.free.pop() {
                return lend(buffer);
            }
            if state.unmade > 0 {
                state.unmade -= 1;
                return lend(Buffer::default());
            }
            let left = deadline?.checked_duration_since(Instant::now())?;
            let waited = self.shared.freed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Begins a read; where there are no threads it ends here. False once the reader is closed.
    pub(super) fn submit(&self, job: Job) -> bool {
        if !self.threaded || !self.start() {
            carry_out(job);
            return true;
        }
        let mut state = lock(&self.shared.state);
        if state.closed {
            // A buffer goes back under this lock.
            drop(state);
            return false;
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.work.notify_one();
        true
    }

    /// Starts the threads with the first read; false where there are none.
    fn start(&self) -> bool {
        let mut threads = lock(&self.threads);
        while threads.len() < THREADS {
            let shared = Arc::clone(&self.shared);
            lock(&self.shared.state).threads += 1;
            let thread = std::thread::Builder::new().name("keystow-read".to_owned());
            match thread.spawn(move || shared.serve()) {
                Ok(thread) => threads.push(thread),
                Err(_) => {
                    lock(&self.shared.state).threads -= 1;
                    break;
                }
            }
        }
        !threads.is_empty()
    }

    /// Ends the threads; those that hang in the kernel are left behind.
    pub(super) fn stop(&self, wait: Duration) {
        let mut state = lock(&self.shared.state);
        state.closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        // Their buffers go back under this lock.
        drop(state);
        drop(jobs);
        self.shared.work.notify_all();
        let state = lock(&self.shared.state);
        let still = |state: &mut State| state.threads > 0;
        let waited = self.shared.freed.wait_timeout_while(state, wait, still);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        for thread in lock(&self.threads).drain(..).filter(JoinHandle::is_finished) {
            drop(thread.join());
        }
    }

    /// In a forked child: the threads are the parent's.
    pub(super) fn forget(&self) {
        if let Ok(mut threads) = self.threads.try_lock() {
            std::mem::forget(std::mem::take(&mut *threads));
        }
    }
}

impl Shared {
    fn serve(&self) {
        while let Some(job) = self.next() {
            carry_out(job);
        }
        lock(&self.state).threads -= 1;
        self.freed.notify_all();
    }

    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn carry_out(job: Job) {
    let Job { at, member, slot, known, mut buffer, reply } = job;
    let payload = member.followed.payload(slot, &known, &mut buffer.buffer);
    // Whoever asked may have gone.
    drop(reply.send(Done { at, payload, buffer }));
}
