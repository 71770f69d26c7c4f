//! The engine over io_uring: one thread and one ring.
//!
//! Owns: the way from `submit` to the ring's thread, and that thread. Never does: wait in `submit`;
//! unmap or close what the kernel may still use; spin. Invariants: a request is in the inbox, with
//! the ring's thread, with the pool that stands in, or among the completed; whoever fills an empty
//! inbox rings the bell if the thread is parked; after a drop nothing completes any more.
//!
//! What the ring refuses one by one (EOPNOTSUPP, EAGAIN) a pool does, which is started by the first
//! of them.

mod express;
mod kernel;
mod registered;
mod ring;
#[cfg(all(test, not(loom)))]
mod tests;
mod transfer;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::outbox::{Crew, Outbox, lock};
use super::{Completion, Engine, Pool, Request, check, refusal};
use crate::arena::{Memory, fork_count};
use express::Express;
use ring::Ring;

/// Threads of the pool that stands in for single requests.
const STAND_IN_THREADS: usize = 2;

/// One ring and its thread.
pub(crate) struct Uring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    direct: bool,
    forks_at_birth: u64,
}

struct Shared {
    files: Vec<OwnedFd>,
    memory: Memory,
    inbox: Mutex<Inbox>,
    /// Written to when the ring's thread is to look at its inbox.
    bell: OwnedFd,
    outbox: Arc<Outbox>,
    crew: Crew,
    express: Express,
    stand_in: OnceLock<Option<Pool>>,
    registered_bytes: AtomicU64,
    /// How often the ring's thread has looked around.
    turns: AtomicU64,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<Request>,
    /// The ring's thread waits in the kernel and looks here only after the bell.
    parked: bool,
    closed: bool,
    /// The ring answers no more, and what the kernel said.
    lost: Option<Errno>,
}

impl Uring {
    /// Sets up a ring over files that are `(open, bypasses the page cache)`.
    ///
    /// # Errors
    /// The kernel gives no ring, no eventfd or no thread.
    pub(crate) fn new(files: Vec<(OwnedFd, bool)>, memory: Memory) -> io::Result<Self> {
        Self::beside(Arc::default(), files, memory)
    }

    /// One whose completions go to an outbox that others may share.
    pub(super) fn beside(
        outbox: Arc<Outbox>,
        files: Vec<(OwnedFd, bool)>,
        memory: Memory,
    ) -> io::Result<Self> {
        let direct = files.iter().all(|(_, direct)| *direct);
        let shared = Arc::new(Shared {
            files: files.into_iter().map(|(file, _)| file).collect(),
            memory,
            inbox: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC)?,
            outbox,
            crew: Crew::default(),
            express: Express::new(),
            stand_in: OnceLock::new(),
            registered_bytes: AtomicU64::new(0),
            turns: AtomicU64::new(0),
        });
        let (tell, told) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        let work = move || {
            let crew = Arc::clone(&theirs);
            match Ring::new(theirs) {
                Ok(ring) => {
                    drop(tell.send(Ok(())));
                    ring.run();
                }
                Err(error) => drop(tell.send(Err(error))),
            }
            crew.crew.end();
        };
        shared.crew.begin();
        let thread = thread::Builder::new().name("keystow-ring".to_owned()).spawn(work);
        let begun = thread.and_then(|thread| {
            told.recv().unwrap_or_else(|_| Err(Errno::IO.into()))?;
            Ok(thread)
        });
        let thread = begun.inspect_err(|_| shared.express.close(&shared))?;
        Ok(Self { shared, thread: Some(thread), direct, forks_at_birth: fork_count() })
    }

    /// What the kernel said where the ring is beyond use.
    pub(super) fn lost(&self) -> Option<Errno> {
        self.shared.inbox().lost
    }

    /// Requests accepted and not yet handed out by `reap`.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn outstanding(&self) -> usize {
        self.shared.outbox.outstanding()
    }
}

impl Engine for Uring {
    fn submit(&self, requests: &[Request]) {
        requests.iter().for_each(|request| check(&self.shared.memory, request));
        let mut inbox = self.shared.inbox();
        for request in requests {
            if !self.shared.outbox.admit() {
                self.shared.outbox.complete(refusal(request, Errno::BUSY));
            } else if inbox.lost.is_some() {
                self.shared.elsewhere(*request);
            } else {
                inbox.requests.push(*request);
            }
        }
        let ring_it = std::mem::take(&mut inbox.parked);
        drop(inbox);
        if ring_it {
            self.shared.ring_bell();
        }
    }

    fn carry_out(&self, request: &Request) -> Option<Completion> {
        check(&self.shared.memory, request);
        self.shared.express.carry_out(&self.shared, request).unwrap_or_else(|()| {
            self.submit(std::slice::from_ref(request));
            None
        })
    }

    fn reap(&self, wait: Duration, into: &mut Vec<Completion>) {
        self.shared.express.look(&self.shared);
        self.shared.outbox.reap(wait, into);
    }

    fn wake(&self) {
        self.shared.outbox.wake();
    }

    fn name(&self) -> &'static str {
        "uring"
    }

    fn direct(&self) -> bool {
        self.direct
    }

    fn registered_bytes(&self) -> u64 {
        self.shared.registered_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Uring {
    /// What the kernel has not begun is dropped. A ring that it does not give back in time is left
    /// behind with its thread, its share of the files and of the memory.
    fn drop(&mut self) {
        if fork_count() != self.forks_at_birth {
            // A child has no such thread, and maybe a lock that it held.
            return std::mem::forget(self.thread.take());
        }
        self.shared.inbox().closed = true;
        self.shared.ring_bell();
        let ended = self.shared.crew.wait();
        self.shared.express.close(&self.shared);
        if let Some(thread) = self.thread.take()
            && (ended || thread.is_finished())
        {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outstanding = self.shared.outbox.outstanding();
        f.debug_struct("Uring").field("outstanding", &outstanding).finish_non_exhaustive()
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    fn ring_bell(&self) {
        // It fails only where its counter is full, and then it has been rung.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Marks the ring as beyond use; what is in the inbox.
    fn lose(&self, why: Errno) -> Vec<Request> {
        let mut inbox = self.inbox();
        inbox.lost = Some(why);
        std::mem::take(&mut inbox.requests)
    }

    /// Has a request done by the pool.
    fn elsewhere(&self, request: Request) {
        let stand_in = self.stand_in.get_or_init(|| {
            let files = self.files.iter().map(|file| Ok((file.try_clone()?, true)));
            let files = files.collect::<io::Result<Vec<_>>>().ok()?;
            let (outbox, memory) = (Arc::clone(&self.outbox), self.memory.clone());
            Pool::beside(outbox, files, memory, STAND_IN_THREADS).ok()
        });
        match stand_in {
            Some(pool) => pool.take_over(request),
            None => self.outbox.complete(refusal(&request, Errno::OPNOTSUPP)),
        }
    }
}
