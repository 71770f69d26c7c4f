//! The engine that works everywhere: threads in `pread`, `pwrite` and `fdatasync`.
//!
//! Owns: the threads, the two queues, and a share of the files and the memory for as long as a
//! thread is in a call on them. Never does: wait in `submit`; unmap or close what the kernel may
//! still use. Invariants: a request is in a queue, with one thread, or among the completed;
//! background writes never have all threads where there are two; every retry is bounded; after a
//! drop nothing completes any more.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;

use super::outbox::{Crew, Outbox, lock};
use super::{
    Completion, Engine, Fault, IO_ALIGN_BYTES, Op, Request, bytes_mut_of, bytes_of, check,
    digest_of, fault_of, refusal,
};
use crate::arena::{Memory, fork_count};

/// Calls of one transfer that may end in EINTR or EAGAIN.
pub(super) const RETRIES_MAX: u32 = 64;
/// Between a call that ended in EAGAIN and the next.
const AGAIN_WAIT: Duration = Duration::from_millis(1);

/// Threads that read and write.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    direct: bool,
    forks_at_birth: u64,
}

/// What a thread asks of the system; tests put themselves in its place.
trait Calls: Send + Sync {
    fn read(&self, file: &OwnedFd, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
        rustix::io::pread(file, into, offset)
    }

    fn write(&self, file: &OwnedFd, from: &[u8], offset: u64) -> Result<usize, Errno> {
        rustix::io::pwrite(file, from, offset)
    }

    fn sync(&self, file: &OwnedFd) -> Result<(), Errno> {
        rustix::fs::fdatasync(file)
    }
}

struct System;

impl Calls for System {}

struct Shared {
    files: Vec<OwnedFd>,
    calls: Box<dyn Calls>,
    memory: Memory,
    queues: Mutex<Queues>,
    /// Something was queued, a background place came free, or the pool closes.
    work: Condvar,
    outbox: Arc<Outbox>,
    crew: Crew,
}

#[derive(Default)]
struct Queues {
    urgent: VecDeque<Request>,
    rest: VecDeque<Request>,
    /// Threads at requests that are not urgent, and how many may be.
    at_rest: usize,
    at_rest_max: usize,
    closed: bool,
}

impl Pool {
    /// Starts `threads` threads (at least one) on files that are `(open, bypasses the page cache)`.
    ///
    /// # Errors
    /// The system gives no thread at all; with fewer than asked it goes on.
    pub(crate) fn new(
        files: Vec<(OwnedFd, bool)>,
        memory: Memory,
        threads: usize,
    ) -> io::Result<Self> {
        Self::beside(Arc::default(), files, memory, threads)
    }

    /// One whose completions go to the outbox of another engine.
    pub(super) fn beside(
        outbox: Arc<Outbox>,
        files: Vec<(OwnedFd, bool)>,
        memory: Memory,
        threads: usize,
    ) -> io::Result<Self> {
        Self::with_calls(outbox, files, memory, threads, Box::new(System))
    }

    fn with_calls(
        outbox: Arc<Outbox>,
        files: Vec<(OwnedFd, bool)>,
        memory: Memory,
        threads: usize,
        calls: Box<dyn Calls>,
    ) -> io::Result<Self> {
        let direct = files.iter().all(|(_, direct)| *direct);
        let shared = Arc::new(Shared {
            files: files.into_iter().map(|(file, _)| file).collect(),
            calls,
            memory,
            queues: Mutex::default(),
            work: Condvar::new(),
            outbox,
            crew: Crew::default(),
        });
        let mut pool = Self { shared, threads: Vec::new(), direct, forks_at_birth: fork_count() };
        for _ in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            pool.shared.crew.begin();
            let thread =
                thread::Builder::new().name("keystow-io".to_owned()).spawn(move || shared.serve());
            match thread {
                Ok(thread) => pool.threads.push(thread),
                Err(error) => {
                    pool.shared.crew.end();
                    if pool.threads.is_empty() {
                        return Err(error);
                    }
                    break;
                }
            }
        }
        lock(&pool.shared.queues).at_rest_max = (pool.threads.len() - 1).max(1);
        pool.shared.work.notify_all();
        Ok(pool)
    }

    /// Requests accepted and not yet handed out by `reap`.
    pub(crate) fn outstanding(&self) -> usize {
        self.shared.outbox.outstanding()
    }

    /// Takes over what another engine has admitted to the outbox they share.
    pub(super) fn take_over(&self, request: Request) {
        self.shared.queue(&mut lock(&self.shared.queues), request);
        self.shared.work.notify_one();
    }

    /// Threads that serve it.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }
}

impl Engine for Pool {
    fn submit(&self, requests: &[Request]) {
        requests.iter().for_each(|request| check(&self.shared.memory, request));
        let mut queues = lock(&self.shared.queues);
        for request in requests {
            if self.shared.outbox.admit() {
                self.shared.queue(&mut queues, *request);
            } else {
                self.shared.outbox.complete(refusal(request, Errno::BUSY));
            }
        }
        drop(queues);
        if requests.len() == 1 {
            self.shared.work.notify_one();
        } else {
            self.shared.work.notify_all();
        }
    }

    fn reap(&self, wait: Duration, into: &mut Vec<Completion>) {
        self.shared.outbox.reap(wait, into);
    }

    fn wake(&self) {
        self.shared.outbox.wake();
    }

    fn name(&self) -> &'static str {
        "pool"
    }

    fn direct(&self) -> bool {
        self.direct
    }
}

impl Drop for Pool {
    /// What no thread has begun is dropped. Threads that don't return from the kernel in time are
    /// left behind; their share of the files and the memory stays with them.
    fn drop(&mut self) {
        if fork_count() != self.forks_at_birth {
            // A child has none of the threads, and maybe a lock that one of them held.
            return std::mem::forget(std::mem::take(&mut self.threads));
        }
        lock(&self.shared.queues).closed = true;
        self.shared.work.notify_all();
        let all_ended = self.shared.crew.wait();
        for thread in self.threads.drain(..) {
            if all_ended || thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads.len())
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// What one thread does.
    fn serve(&self) {
        let mut was_at_rest = false;
        while let Some(request) = self.next(was_at_rest) {
            was_at_rest = !request.urgent;
            let completion = self.carry_out(&request);
            self.outbox.complete(completion);
        }
        self.crew.end();
    }

    fn queue(&self, queues: &mut Queues, request: Request) {
        let queue = if request.urgent { &mut queues.urgent } else { &mut queues.rest };
        queue.push_back(request);
    }

    /// Waits for a request that may begin; none once the pool closes. `was_at_rest`: the thread
    /// comes from one that was not urgent, whose place is free again.
    fn next(&self, was_at_rest: bool) -> Option<Request> {
        let mut queues = lock(&self.queues);
        queues.at_rest -= usize::from(was_at_rest);
        loop {
            if queues.closed {
                return None;
            }
            if let Some(request) = queues.urgent.pop_front() {
                if was_at_rest && !queues.rest.is_empty() {
                    // Another thread may have found no place free.
                    self.work.notify_one();
                }
                return Some(request);
            }
            if queues.at_rest < queues.at_rest_max
                && let Some(request) = queues.rest.pop_front()
            {
                queues.at_rest += 1;
                return Some(request);
            }
            queues = self.work.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn carry_out(&self, request: &Request) -> Completion {
        let Some(file) = self.files.get(request.file.0 as usize) else {
            return refusal(request, Errno::BADF);
        };
        let (result, digest) = match request.op {
            Op::Read => {
                // SAFETY: the region is the engine's until this request completes.
                let bytes = unsafe { bytes_mut_of(&self.memory, request.region) };
                let len = bytes.len();
                let read = |moved| {
                    self.calls.read(file, &mut bytes[moved..], request.offset + moved as u64)
                };
                let result = transfer(len, read);
                let whole = result == Ok(len as u32);
                (result, if whole { digest_of(request, bytes) } else { 0 })
            }
            Op::Write => {
                // SAFETY: as above; nobody writes what an engine writes to disk.
                let bytes = unsafe { bytes_of(&self.memory, request.region) };
                let digest = digest_of(request, bytes);
                let write =
                    |moved| self.calls.write(file, &bytes[moved..], request.offset + moved as u64);
                (transfer(bytes.len(), write), digest)
            }
            Op::Sync => (persist(|| self.calls.sync(file)), 0),
        };
        Completion { id: request.id, result, digest }
    }
}

/// Moves `len` bytes by calls of `step`, each from what has been moved so far. A short step is
/// gone on with where direct I/O can, else the transfer ends short.
fn transfer(len: usize, mut step: impl FnMut(usize) -> Result<usize, Errno>) -> Result<u32, Fault> {
    let (mut moved, mut retries) = (0, 0);
    while moved < len {
        match step(moved) {
            Ok(0) => break,
            Ok(some) => moved += some,
            Err(errno) => retry(errno, &mut retries)?,
        }
        if !moved.is_multiple_of(IO_ALIGN_BYTES as usize) {
            break;
        }
    }
    Ok(moved as u32)
}

/// A sync is told anew after EINTR alone: any other failure may have marked clean what it did not
/// write, and a second call would call that success.
fn persist(mut step: impl FnMut() -> Result<(), Errno>) -> Result<u32, Fault> {
    let mut retries = 0;
    loop {
        match step() {
            Ok(()) => return Ok(0),
            Err(Errno::INTR) => retry(Errno::INTR, &mut retries)?,
            Err(errno) => return Err(fault_of(errno)),
        }
    }
}

/// Whether to call again, waiting where that helps.
fn retry(errno: Errno, retries: &mut u32) -> Result<(), Fault> {
    *retries += 1;
    match errno {
        Errno::INTR if *retries < RETRIES_MAX => Ok(()),
        Errno::AGAIN if *retries < RETRIES_MAX => {
            thread::sleep(AGAIN_WAIT);
            Ok(())
        }
        _ => Err(fault_of(errno)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
