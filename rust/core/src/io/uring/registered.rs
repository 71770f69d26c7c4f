//! Memory that the kernel has been told of, so that it need not look its pages up each time.
//!
//! Owns: which pieces of memory are registered with a ring. Never does: fail: what the kernel
//! refuses goes the ordinary way. Invariants: a piece is registered only when all of its pages are
//! there, and stays so until the ring is gone, which is before the memory is.

use io_uring::Submitter;
use rustix::io::Errno;

use crate::arena::{Memory, Region};

/// The most that the kernel takes as one buffer.
const PIECE_BYTES: u64 = 1 << 30;
/// The most buffers that a ring knows.
const PIECES_MAX: usize = 16_384;

/// The registered memory of one ring.
#[derive(Default)]
pub(super) struct Registered {
    /// All pieces of all memories, in their order; the first so many are registered.
    pieces: Vec<Region>,
    known: usize,
    over: bool,
}

impl Registered {
    /// Makes room for all pieces of the memory; none are registered yet.
    pub(super) fn new(submitter: &Submitter<'_>, memory: &Memory) -> Self {
        let mut pieces = memory.pieces(PIECE_BYTES as u32);
        pieces.truncate(PIECES_MAX);
        // Kernels before 5.19 refuse it: then nothing is registered.
        let over = submitter.register_buffers_sparse(pieces.len() as u32).is_err();
        Self { pieces, known: 0, over }
    }

    /// Registers the next piece if its pages are there. What was refused is not asked for again.
    pub(super) fn go_on(&mut self, submitter: &Submitter<'_>, memory: &Memory) -> Option<u64> {
        if self.over {
            return None;
        }
        let Some(piece) = self.pieces.get(self.known).copied() else {
            self.over = true;
            return None;
        };
        if !memory.is_ready(piece.who) {
            return None;
        }
        let buffer = libc::iovec { iov_base: memory.at(piece).cast(), iov_len: piece.len as usize };
        // SAFETY: the memory outlives the ring: the ring's thread holds a share of it, and gives it
        // up after the ring.
        let told = unsafe { submitter.register_buffers_update(self.known as u32, &[buffer], None) };
        match told {
            Ok(()) => {
                self.known += 1;
                Some(u64::from(piece.len))
            }
            Err(error) => {
                self.over = Errno::from_io_error(&error) != Some(Errno::INTR);
                None
            }
        }
    }

    /// The number of the registered buffer in which a region lies whole.
    pub(super) fn index_of(&self, region: Region) -> Option<u16> {
        let end = region.offset + u64::from(region.len);
        let within = |piece: &Region| {
            piece.who == region.who
                && piece.offset <= region.offset
                && end <= piece.offset + u64::from(piece.len)
        };
        // Few pieces: one a GiB.
        self.pieces[..self.known].iter().position(within).map(|index| index as u16)
    }
}
