//! A second ring for a caller that waits for one read: it waits in the kernel itself, without the
//! way through the ring's thread and back.
//!
//! Owns: that ring, and the read in it. Never does: wait for the ring's user: who finds it taken
//! goes the ordinary way; write. Invariants: one read at a time; one that is late stays in the ring
//! and completes in the outbox like any other, its memory being the engine's until then.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use io_uring::{IoUring, types};

use super::Shared;
use super::kernel::{entry, shared_ring};
use super::transfer::{Back, End, PIECE_BYTES_MAX, Piece, Transfer};
use crate::io::{Completion, Op, Request, bytes_of, digest_of};

/// A read that takes longer is waited for in the ordinary way: its caller has a deadline.
const WAIT: Duration = Duration::from_millis(200);
const ENTRIES: u32 = 4;

/// The ring, if this kernel can wait for a limited time in one.
pub(super) struct Express {
    lane: Option<Mutex<Lane>>,
    /// The lane has a late read in it.
    late: AtomicBool,
}

struct Lane {
    ring: ManuallyDrop<IoUring>,
    out: Option<(Transfer, Piece)>,
    /// The kernel said what it should not say: the ring is used no more.
    broken: bool,
}

/// Where a read is after its wait.
enum Waited {
    Ended(Completion),
    Late,
    /// It never began, or has to be done in another way.
    Elsewhere,
}

impl Express {
    pub(super) fn new() -> Self {
        let ring = shared_ring(ENTRIES).ok().filter(|ring| ring.params().is_feature_ext_arg());
        let lane = ring.map(|ring| {
            Mutex::new(Lane { ring: ManuallyDrop::new(ring), out: None, broken: false })
        });
        Self { lane, late: AtomicBool::new(false) }
    }

    /// Carries a read out and returns its completion; `Err`: it was not taken; `Ok(None)`: it is
    /// taken, and late.
    pub(super) fn carry_out(
        &self,
        shared: &Shared,
        request: &Request,
    ) -> Result<Option<Completion>, ()> {
        let fits = request.op == Op::Read
            && request.region.len <= PIECE_BYTES_MAX
            && (request.file.0 as usize) < shared.files.len();
        let lane = self.lane.as_ref().filter(|_| fits).ok_or(())?;
        let mut lane = match lane.try_lock() {
            Ok(lane) => lane,
            Err(TryLockError::Poisoned(lane)) => lane.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(()),
        };
        if lane.out.is_some() || lane.broken {
            return Err(());
        }
        let mut transfer = Transfer::new(*request, 0);
        let piece = transfer.next(0).ok_or(())?;
        match lane.carry_out(shared, transfer, piece) {
            Waited::Ended(completion) => Ok(Some(completion)),
            Waited::Elsewhere => Err(()),
            Waited::Late => {
                // It is counted: there is room for one more than the limit.
                shared.outbox.admit();
                self.late.store(true, Ordering::Release);
                Ok(None)
            }
        }
    }

    /// Looks whether a late read has completed.
    pub(super) fn look(&self, shared: &Shared) {
        let Some(lane) = &self.lane else { return };
        if !self.late.load(Ordering::Acquire) {
            return;
        }
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        match lane.wait(shared, Duration::ZERO) {
            Waited::Late => return,
            Waited::Ended(completion) => shared.outbox.complete(completion),
            Waited::Elsewhere => {
                if let Some((transfer, _)) = lane.out.take() {
                    shared.elsewhere(transfer.request);
                }
            }
        }
        self.late.store(false, Ordering::Release);
    }

    /// At the end of the engine: a read that is still in the ring keeps the ring and its memory.
    pub(super) fn close(&self, shared: &Arc<Shared>) {
        self.look(shared);
        let Some(lane) = &self.lane else { return };
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        if lane.out.is_some() {
            std::mem::forget(Arc::clone(shared));
        } else if !lane.broken {
            lane.broken = true;
            // SAFETY: nothing is in it, and `broken` keeps everybody from using it again.
            unsafe { ManuallyDrop::drop(&mut lane.ring) };
        }
    }
}

impl Lane {
    fn carry_out(&mut self, shared: &Shared, transfer: Transfer, piece: Piece) -> Waited {
        self.push(shared, &transfer, &piece);
        self.out = Some((transfer, piece));
        let waited = self.wait(shared, WAIT);
        if !matches!(waited, Waited::Late) {
            self.out = None;
        }
        waited
    }

    fn push(&mut self, shared: &Shared, transfer: &Transfer, piece: &Piece) {
        let entry = entry(shared, &transfer.request, piece, None);
        // SAFETY: the region is the engine's until the completion, and is leaked where none comes;
        // the file is `shared`'s, which outlives the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has room for its one read");
    }

    /// Waits for the read that is out. Late and Elsewhere leave it in `out`.
    fn wait(&mut self, shared: &Shared, most: Duration) -> Waited {
        let until = Instant::now() + most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = types::Timespec::from(left);
            let args = types::SubmitArgs::new().timespec(&timeout);
            let said = self.ring.submitter().submit_with_args(1, &args);
            let taken = self.ring.submission().is_empty();
            let end = self.ring.completion().next().map(|entry| entry.result());
            if let Some(said) = end {
                match self.take_back(shared, said) {
                    Some(waited) => return waited,
                    None => continue,
                }
            }
            match said.map_err(|error| error.raw_os_error()) {
                Ok(_) | Err(Some(libc::EINTR)) if !left.is_zero() => {}
                Ok(_) | Err(Some(libc::EINTR | libc::ETIME)) => return Waited::Late,
                Err(_) if taken => return Waited::Late,
                Err(_) => {
                    // The kernel has not taken it, and will not: the ring is not entered again.
                    self.broken = true;
                    return Waited::Elsewhere;
                }
            }
        }
    }

    /// What the kernel said of the read: how it ended, or nothing where it is out again.
    fn take_back(&mut self, shared: &Shared, said: i32) -> Option<Waited> {
        let (mut transfer, mut piece) = self.out.take()?;
        if transfer.back(&mut piece, said) == Back::Again {
            self.push(shared, &transfer, &piece);
            self.out = Some((transfer, piece));
            return None;
        }
        let request = transfer.request;
        let Some(End::Result(result)) = transfer.end() else {
            self.out = Some((transfer, piece));
            return Some(Waited::Elsewhere);
        };
        let mut digest = 0;
        if result == Ok(request.region.len) {
            // SAFETY: the region is the engine's until this request completes.
            digest = digest_of(&request, unsafe { bytes_of(&shared.memory, request.region) });
        }
        Some(Waited::Ended(Completion { id: request.id, result, digest }))
    }
}
