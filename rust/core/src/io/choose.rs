//! Which engine: what was asked for, or the best that is seen to work.
//!
//! Owns: the trial of a ring. Never does: trust a version number or a list of error codes.
//! Invariant: a ring serves a directory only after a write, a read and a sync through one have
//! come back right in that directory.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outbox::Outbox;
use super::uring::Uring;
use super::{Digest, Engine, Fault, FileId, IO_ALIGN_BYTES, Op, Pool, Request, digest};
use crate::arena::{Arena, ArenaConfig, Memory, MemoryId, Prefault, Region, Rows, RowsMut};

/// How long a trial may take; a disk that is slower is served by the pool.
const TRIAL_WAIT: Duration = Duration::from_secs(5);
/// A ring that has died is noticed after so long.
const TRIAL_LOOK: Duration = Duration::from_millis(10);
const TRIAL_BYTES: u32 = IO_ALIGN_BYTES as u32;
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A ring where it works, else the pool.
    Best,
    Pool,
    /// A ring or an error.
    Uring,
}

/// Why there is no ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What was tried.
    pub(crate) step: &'static str,
    /// What it ended with; 0 where it went wrong without an error.
    pub(crate) errno: i32,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring does not work here ({}", self.step)?;
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        if let Ok(value) = std::fs::read_to_string(SYSCTL) {
            write!(f, "; kernel.io_uring_disabled = {}", value.trim())?;
        }
        write!(f, ")")
    }
}

impl Refusal {
    fn of(step: &'static str, error: &io::Error) -> Self {
        Self { step, errno: error.raw_os_error().unwrap_or(0) }
    }
}

/// Why there is no engine at all.
#[derive(Debug)]
pub(crate) enum NoEngine {
    Uring(Refusal),
    Pool(io::Error),
}

/// An engine over the files, and why it is not the best one. Its completions go to the outbox,
/// which several engines can share. `scratch` makes an empty file in the files' directory.
pub(crate) fn choose(
    wanted: Wanted,
    outbox: &Arc<Outbox>,
    files: Vec<(OwnedFd, bool)>,
    memory: Memory,
    pool_threads: usize,
    scratch: impl FnOnce() -> io::Result<(OwnedFd, bool)>,
) -> Result<(Box<dyn Engine>, Option<Refusal>), NoEngine> {
    let pool = |files, memory, why| {
        let pool = Pool::beside(Arc::clone(outbox), files, memory, pool_threads)
            .map_err(NoEngine::Pool)?;
        Ok((Box::new(pool) as Box<dyn Engine>, why))
    };
    if wanted == Wanted::Pool {
        return pool(files, memory, None);
    }
    let tried = scratch().map_err(|error| Refusal::of("a file to try it on", &error));
    match tried.and_then(|file| try_ring(vec![file])) {
        Err(refusal) if wanted == Wanted::Uring => return Err(NoEngine::Uring(refusal)),
        Err(refusal) => return pool(files, memory, Some(refusal)),
        Ok(()) => {}
    }
    let copies = files.iter().map(|(file, direct)| Ok((file.try_clone()?, *direct)));
    let ring = copies
        .collect::<io::Result<Vec<_>>>()
        .and_then(|files| Uring::beside(Arc::clone(outbox), files, memory.clone()));
    match ring {
        Ok(ring) => Ok((Box::new(ring), None)),
        Err(error) => {
            let refusal = Refusal::of("setup", &error);
            if wanted == Wanted::Uring {
                return Err(NoEngine::Uring(refusal));
            }
            pool(files, memory, Some(refusal))
        }
    }
}

/// Writes, syncs, reads and compares through a ring over a file of no bytes.
pub(crate) fn try_ring(file: Vec<(OwnedFd, bool)>) -> Result<(), Refusal> {
    let config = ArenaConfig {
        who: MemoryId::ARENA,
        frames: 2,
        stride_bytes: TRIAL_BYTES,
        prefault: Prefault::Now,
        threads: 1,
    };
    let no_memory = |_| Refusal { step: "memory", errno: libc::ENOMEM };
    let arena = Arc::new(Arena::map(config).map_err(no_memory)?);
    let memory = Memory::new(vec![Arc::clone(&arena)]);
    let ring = Uring::new(file, memory).map_err(|error| Refusal::of("setup", &error))?;
    let bytes: Vec<u8> = (0..TRIAL_BYTES).map(|at| (at * 31 + at / 256) as u8).collect();
    let frame = |number| Region { offset: number * u64::from(TRIAL_BYTES), ..region() };
    arena.write(frame(0), &Rows::packed(&bytes, bytes.len()), 0);
    let wanted = Digest { seed: 7, len: TRIAL_BYTES };
    let expected = digest(wanted.seed, &bytes);
    let request = |id, op, region| Request {
        id,
        op,
        file: FileId(0),
        offset: 0,
        region,
        digest: (op != Op::Sync).then_some(wanted),
        urgent: op == Op::Read,
    };
    let nothing = Region { len: 0, ..region() };
    let steps = [
        ("write", request(1, Op::Write, frame(0)), (TRIAL_BYTES, expected)),
        ("sync", request(2, Op::Sync, nothing), (0, 0)),
        ("read", request(3, Op::Read, frame(1)), (TRIAL_BYTES, expected)),
    ];
    for (step, request, right) in steps {
        match run(&ring, &request) {
            Some((Ok(moved), digest)) if (moved, digest) == right => {}
            // The file system has answered through the ring; no room is not the ring's fault.
            Some((Err(Fault::Full), _)) => return Ok(()),
            Some((Err(fault), _)) => return Err(Refusal { step, errno: errno_of(fault) }),
            Some((Ok(_), _)) => return Err(Refusal { step, errno: 0 }),
            None => return Err(Refusal { step, errno: libc::ETIMEDOUT }),
        }
    }
    let mut back = vec![0; bytes.len()];
    let len = back.len();
    arena.read(frame(1), &RowsMut::packed(&mut back, len), 0);
    if back == bytes { Ok(()) } else { Err(Refusal { step: "compare", errno: 0 }) }
}

const fn region() -> Region {
    Region { who: MemoryId::ARENA, offset: 0, len: TRIAL_BYTES }
}

fn errno_of(fault: Fault) -> i32 {
    match fault {
        Fault::Io(errno) => errno,
        Fault::Full => libc::ENOSPC,
        Fault::ReadOnly => libc::EROFS,
    }
}

/// Result and digest of one request, or nothing in time.
fn run(ring: &Uring, request: &Request) -> Option<(Result<u32, Fault>, u128)> {
    let (begun, mut done) = (Instant::now(), Vec::new());
    ring.submit(&[*request]);
    while done.is_empty() {
        if let Some(errno) = ring.lost() {
            return Some((Err(Fault::Io(errno.raw_os_error())), 0));
        }
        if begun.elapsed() > TRIAL_WAIT {
            return None;
        }
        ring.reap(TRIAL_LOOK, &mut done);
    }
    done.pop().map(|done| (done.result, done.digest))
}
