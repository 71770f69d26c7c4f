//! I/O: submit and complete, on Regions.
//!
//! Owns: the engines, and a Region from its submission to its completion, whoever lost interest
//! meanwhile. Never does: know what a block, a key or a record is. Invariants: every request
//! accepted ends in exactly one completion, or none where a device hangs; until then its memory
//! is the engine's; a short transfer is a normal result and says how many bytes it moved.

mod cached;
mod choose;
mod many;
mod outbox;
mod pool;
mod sim;
#[cfg(all(test, not(loom)))]
mod tests;
mod uring;

use std::time::Duration;

use rustix::io::Errno;
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::arena::{Memory, Region};

pub(crate) use cached::cached_pages;
pub(crate) use choose::{NoEngine, Wanted, choose, try_ring};
pub(crate) use many::Many;
pub(crate) use outbox::Outbox;
pub(crate) use pool::Pool;
pub(crate) use sim::{Crash, Sim, SimDisk};
#[cfg(all(test, not(loom)))]
pub(crate) use sim::{FailNext, Mishap, PPM, Rng, SimCounts, SimFaults, Snapshot};

/// Offsets, lengths and memory of every transfer are multiples of this.
pub(crate) const IO_ALIGN_BYTES: u64 = 4096;

/// A file of the tier, by the place in which it was handed to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId(pub(crate) u32);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// All completed writes of the file to stable storage; the region is empty.
    Sync,
}

/// XXH3-128 with `seed` over the first `len` bytes of the region: before a write, after a read
/// that came whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) seed: u64,
    pub(crate) len: u32,
}

/// One transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Unique among those outstanding; chosen by the submitter.
    pub(crate) id: u64,
    pub(crate) op: Op,
    pub(crate) file: FileId,
    /// Bytes from the start of the file.
    pub(crate) offset: u64,
    pub(crate) region: Region,
    pub(crate) digest: Option<Digest>,
    /// Goes before those that are not.
    pub(crate) urgent: bool,
}

/// Why a transfer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The device did not do it (EIO and whatever has no name here); the errno.
    Io(i32),
    /// No room (ENOSPC, EDQUOT).
    Full,
    /// The file system takes no writes any more (EROFS).
    ReadOnly,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) id: u64,
    /// Bytes moved.
    pub(crate) result: Result<u32, Fault>,
    /// What `Request::digest` asked for; 0 where it could not be had.
    pub(crate) digest: u128,
}

/// An I/O engine. Any thread may call any method.
pub(crate) trait Engine: Send + Sync {
    /// Takes requests over; never waits for one. How many are outstanding is the submitter's to
    /// bound.
    fn submit(&self, requests: &[Request]);

    /// Carries one request out in this thread and returns its completion, where that is possible
    /// and soon over; else takes it over like `submit`. It does not go past a deadline that every
    /// call can keep, and other requests go on meanwhile.
    fn carry_out(&self, request: &Request) -> Option<Completion> {
        self.submit(std::slice::from_ref(request));
        None
    }

    /// Appends what has completed. Waits for the first one, for `wake`, or for `wait`; a simulated
    /// engine moves its clock instead of waiting.
    fn reap(&self, wait: Duration, into: &mut Vec<Completion>);

    /// Ends a `reap` that waits now, or the next one.
    fn wake(&self);

    /// Its name, for people: "sim", "pool", "uring".
    fn name(&self) -> &'static str;

    /// Whether transfers bypass the page cache.
    fn direct(&self) -> bool;

    /// Memory that the kernel keeps mapped for transfers: they save its doing so each time.
    fn registered_bytes(&self) -> u64 {
        0
    }
}

/// XXH3-128 of `bytes`.
pub(crate) fn digest(seed: u64, bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot_with_seed(seed, bytes)
}

/// XXH3-64 of `bytes`.
pub(crate) fn digest64(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// What every request owes to every engine. Panics in the submitter, not in a thread of an engine.
fn check(memory: &Memory, request: &Request) {
    memory.at(request.region);
    let Region { offset, len, .. } = request.region;
    let aligned = [request.offset, offset, u64::from(len)]
        .iter()
        .all(|number| number.is_multiple_of(IO_ALIGN_BYTES));
    assert!(aligned, "not in multiples of {IO_ALIGN_BYTES}: {request:?}");
    assert!((request.op == Op::Sync) == (len == 0), "{len} bytes to move: {request:?}");
    let digest_len = request.digest.map_or(0, |digest| digest.len);
    assert!(digest_len <= len, "a digest over more than is moved: {request:?}");
}

/// What a request asks to be digested of its bytes; 0 where it asks for nothing.
fn digest_of(request: &Request, bytes: &[u8]) -> u128 {
    request.digest.map_or(0, |wanted| digest(wanted.seed, &bytes[..wanted.len as usize]))
}

/// The end of a request that was never begun.
fn refusal(request: &Request, errno: Errno) -> Completion {
    Completion { id: request.id, result: Err(fault_of(errno)), digest: 0 }
}

fn fault_of(errno: Errno) -> Fault {
    match errno {
        Errno::NOSPC | Errno::DQUOT => Fault::Full,
        Errno::ROFS => Fault::ReadOnly,
        other => Fault::Io(other.raw_os_error()),
    }
}

/// The bytes of a region.
///
/// # Safety
/// The region is an engine's, from a submission to its completion, and nobody writes it meanwhile.
unsafe fn bytes_of(memory: &Memory, region: Region) -> &[u8] {
    // SAFETY: `at` has checked that the bytes lie in memory that lives as long as `memory`; nobody
    // writes them (contract).
    unsafe { std::slice::from_raw_parts(memory.at(region), region.len as usize) }
}

/// The bytes of a region that is being filled.
///
/// # Safety
/// The region is an engine's, from a submission to its completion, and nobody else touches it.
#[allow(clippy::mut_from_ref, reason = "the memory is not the `Memory`'s: who owns a region may")]
unsafe fn bytes_mut_of(memory: &Memory, region: Region) -> &mut [u8] {
    // SAFETY: as above, and nobody else touches them (contract).
    unsafe { std::slice::from_raw_parts_mut(memory.at(region), region.len as usize) }
}
