//! The thread of the ring: it alone touches the ring, from setup to the end.
//!
//! Owns: the ring, what is in flight in it, and the turn of the queues. Never does: wait for
//! anything but the ring. Invariants: at most `IN_FLIGHT_BYTES_MAX` are in flight of each
//! queue, one piece at least; a read of the eventfd is in the ring whenever it waits, so that
//! new requests and completions end the same wait; nothing is dropped that the kernel still uses.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::super::{Completion, Op, bytes_of, digest_of, refusal};
use super::Shared;
use super::kernel::{entry, own_ring};
use super::registered::Registered;
use super::transfer::{Back, End, Piece, Transfer};

/// In flight of each of the two queues: more is only latency, for what is urgent too.
const IN_FLIGHT_BYTES_MAX: [u64; 2] = [8 << 20, 4 << 20];
/// Of what is not urgent while something urgent is in flight, and a little longer: who reads in
/// batches has the next one at hand.
const BESIDE_URGENT_BYTES_MAX: u64 = 256 << 10;
const URGENT_AFTERGLOW: Duration = Duration::from_millis(2);
/// Pieces in flight of each of the two; the ring has room for them and the eventfd.
const PIECES_MAX: [u32; 2] = [128, 64];
const ENTRIES: u32 = 256;
const _: () = assert!(PIECES_MAX[0] + PIECES_MAX[1] < ENTRIES);
/// Calls of the ring in a row that may fail before it is given up.
const FAILURES_MAX: u32 = 64;
const FAILURE_WAIT: Duration = Duration::from_millis(1);
/// The mark of the eventfd's read among the pieces.
const BELL: u64 = u64::MAX;

/// Requests of one kind: those waiting, and what of them is in flight.
#[derive(Default)]
struct Queue {
    /// Numbers of transfers that have pieces to cut.
    waiting: VecDeque<u32>,
    bytes: u64,
    pieces: u32,
}

/// What is in the ring and before it.
pub(super) struct Ring {
    ring: ManuallyDrop<IoUring>,
    registered: Registered,
    shared: Arc<Shared>,
    transfers: Slab<Transfer>,
    pieces: Slab<Piece>,
    /// What is urgent, and the rest.
    queues: [Queue; 2],
    /// Where the kernel puts what it reads from the eventfd. Boxed: it must not move.
    bell: ManuallyDrop<Box<u64>>,
    bell_armed: bool,
    failures: u32,
    /// What is not urgent is held back until then.
    urgent_until: Option<Instant>,
}

/// Things by number; numbers are used again.
struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    fn add(&mut self, thing: T) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() as u32 - 1
        });
        self.places[at as usize] = Some(thing);
        at
    }

    fn get(&mut self, at: u32) -> &mut T {
        self.places[at as usize].as_mut().expect("a number in use")
    }

    fn take(&mut self, at: u32) -> T {
        self.free.push(at);
        self.places[at as usize].take().expect("a number in use")
    }

    fn used(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

impl Ring {
    /// For the thread that will run it: the kernel takes calls from no other.
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let ring = own_ring(ENTRIES)?;
        let registered = Registered::new(&ring.submitter(), &shared.memory);
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            registered,
            shared,
            transfers: Slab::new(),
            pieces: Slab::new(),
            queues: [Queue::default(), Queue::default()],
            bell: ManuallyDrop::new(Box::new(0)),
            bell_armed: false,
            failures: 0,
            urgent_until: None,
        })
    }

    /// Serves until the engine is closed and the kernel has given everything back.
    pub(super) fn run(mut self) {
        loop {
            self.shared.turns.fetch_add(1, Ordering::Relaxed);
            let closed = self.take_in();
            if closed && self.pieces.used() == 0 && !self.bell_armed {
                break;
            }
            self.register();
            if !closed {
                self.fill();
            }
            if let Err(errno) = self.wait(closed) {
                self.give_up(errno);
                return;
            }
            self.take_back();
        }
        // SAFETY: neither is used again; the kernel has nothing that points into them.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            ManuallyDrop::drop(&mut self.bell);
        }
    }

    /// Takes over what was submitted; whether the engine is closed, and what waits is dropped.
    fn take_in(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.inbox();
        inbox.parked = false;
        if inbox.closed {
            inbox.requests.clear();
            self.queues.iter_mut().for_each(|queue| queue.waiting.clear());
            return true;
        }
        let requests = std::mem::take(&mut inbox.requests);
        drop(inbox);
        for request in requests {
            if request.file.0 as usize >= shared.files.len() {
                shared.outbox.complete(refusal(&request, Errno::BADF));
                continue;
            }
            let at = self.transfers.add(Transfer::new(request, 0));
            self.queues[usize::from(!request.urgent)].waiting.push_back(at);
        }
        false
    }

    fn register(&mut self) {
        let (ring, memory) = (&self.ring, &self.shared.memory);
        if let Some(bytes) = self.registered.go_on(&ring.submitter(), memory) {
            self.shared.registered_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Starts as many pieces as may be in flight, what is urgent first.
    fn fill(&mut self) {
        if self.queues[0].pieces > 0 || !self.queues[0].waiting.is_empty() {
            self.urgent_until = Some(Instant::now() + URGENT_AFTERGLOW);
        }
        for which in 0..self.queues.len() {
            while let Some(&at) = self.queues[which].waiting.front() {
                let Some(len) = self.transfers.get(at).next_len() else {
                    self.queues[which].waiting.pop_front();
                    continue;
                };
                if !self.has_room(which, len) {
                    break;
                }
                self.begin(at);
                let transfer = self.transfers.get(at);
                let piece = transfer.next(at).expect("it has a length");
                let queue = &mut self.queues[which];
                queue.bytes += u64::from(len);
                queue.pieces += 1;
                let piece_at = self.pieces.add(piece);
                self.push(piece_at);
            }
        }
    }

    fn has_room(&self, which: usize, len: u32) -> bool {
        let queue = &self.queues[which];
        let most = if which == 1 && self.urgent_until.is_some_and(|until| Instant::now() < until) {
            BESIDE_URGENT_BYTES_MAX
        } else {
            IN_FLIGHT_BYTES_MAX[which]
        };
        let fits = queue.pieces == 0 || queue.bytes + u64::from(len) <= most;
        fits && queue.pieces < PIECES_MAX[which]
    }

    /// Before the first piece of a write: its digest.
    fn begin(&mut self, at: u32) {
        let transfer = self.transfers.get(at);
        let request = transfer.request;
        if request.op == Op::Write && !transfer.has_begun() && request.digest.is_some() {
            // SAFETY: the region is the engine's until this request completes, and nobody writes
            // what an engine writes to disk.
            let bytes = unsafe { bytes_of(&self.shared.memory, request.region) };
            transfer.digest = digest_of(&request, bytes);
        }
    }

    /// Puts a piece, or what is left of it, into the ring.
    fn push(&mut self, piece_at: u32) {
        let piece = *self.pieces.get(piece_at);
        let request = self.transfers.get(piece.of).request;
        let index = self.registered.index_of(request.region);
        let entry = entry(&self.shared, &request, &piece, index).user_data(piece_at.into());
        self.push_entry(&entry);
    }

    fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points to (the region, the bell, the file) is this engine's until
        // its completion has come back, and is leaked where that can't be known.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the ring has room for all pieces");
    }

    /// Hands the ring what is new and waits for what comes back, or for the bell. Fails where the
    /// ring is beyond use.
    fn wait(&mut self, closed: bool) -> Result<(), Errno> {
        if !self.bell_armed && !closed {
            let bell: *mut u64 = &mut **self.bell;
            let file = types::Fd(self.shared.bell.as_raw_fd());
            let read = opcode::Read::new(file, bell.cast(), 8).build().user_data(BELL);
            self.push_entry(&read);
            self.bell_armed = true;
        }
        let sleep = {
            let mut inbox = self.shared.inbox();
            inbox.parked = inbox.requests.is_empty() && (closed || !inbox.closed);
            inbox.parked
        };
        match self.ring.submit_and_wait(usize::from(sleep)) {
            Ok(_) => self.failures = 0,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => {
                // EAGAIN and EBUSY: the kernel is short of something, or completions wait.
                self.failures += 1;
                if self.failures == FAILURES_MAX {
                    return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
                }
                std::thread::sleep(FAILURE_WAIT);
            }
        }
        Ok(())
    }

    /// Takes back what has completed.
    fn take_back(&mut self) {
        loop {
            let Some((said, mark)) =
                self.ring.completion().next().map(|entry| (entry.result(), entry.user_data()))
            else {
                return;
            };
            if mark == BELL {
                self.bell_armed = false;
                continue;
            }
            let piece_at = mark as u32;
            let piece = self.pieces.get(piece_at);
            let (of, len) = (piece.of, piece.len);
            let transfer = self.transfers.get(of);
            let which = usize::from(!transfer.request.urgent);
            if transfer.back(piece, said) == Back::Again && !self.shared.inbox().closed {
                self.push(piece_at);
                continue;
            }
            self.pieces.take(piece_at);
            self.queues[which].bytes -= u64::from(len);
            self.queues[which].pieces -= 1;
            if let Some(end) = self.transfers.get(of).end() {
                // It may have ended before all of it was cut; only the first in turn is partly cut.
                if self.queues[which].waiting.front() == Some(&of) {
                    self.queues[which].waiting.pop_front();
                }
                self.end(of, end);
            }
        }
    }

    /// Tells how a transfer ended, or hands it on.
    fn end(&mut self, at: u32, end: End) {
        let Transfer { request, mut digest, .. } = self.transfers.take(at);
        let result = match end {
            End::Result(result) => result,
            End::Elsewhere => return self.shared.elsewhere(request),
        };
        if request.op == Op::Read && request.digest.is_some() && result == Ok(request.region.len) {
            // SAFETY: the region is the engine's until this request completes.
            let bytes = unsafe { bytes_of(&self.shared.memory, request.region) };
            digest = digest_of(&request, bytes);
        }
        self.shared.outbox.complete(Completion { id: request.id, result, digest });
    }

    /// The ring answers no more: what waits goes elsewhere, as does all that comes; what is in
    /// flight never completes, and its memory is never given back.
    fn give_up(mut self, why: Errno) {
        let waiting = self.shared.lose(why);
        waiting.into_iter().for_each(|request| self.shared.elsewhere(request));
        for which in 0..self.queues.len() {
            while let Some(at) = self.queues[which].waiting.pop_front() {
                if !self.transfers.get(at).has_begun() {
                    let request = self.transfers.take(at).request;
                    self.shared.elsewhere(request);
                }
            }
        }
        std::mem::forget(Arc::clone(&self.shared));
    }
}
