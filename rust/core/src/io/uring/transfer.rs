//! One request on its way through a ring: the pieces it is cut into, and how they add up.
//!
//! Owns: the arithmetic of pieces. Never does: a system call. Invariants: a request has one end,
//! after its last piece; what it says it moved is whole from its first byte on; after a failure
//! or a short piece no further piece is cut.

use rustix::io::Errno;

use super::super::pool::RETRIES_MAX;
use super::super::{Fault, IO_ALIGN_BYTES, Op, Request, fault_of};

/// Larger requests are cut: the device starts on them earlier, and no piece is longer than what
/// the kernel takes at once.
pub(super) const PIECE_BYTES_MAX: u32 = 4 << 20;

/// A request under way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) request: Request,
    /// Of what is written, taken before.
    pub(super) digest: u128,
    /// Bytes cut into pieces so far.
    cut: u32,
    /// Pieces that have not come back.
    out: u32,
    /// Bytes from its start that are moved once all pieces are back.
    end: u32,
    fault: Option<Fault>,
    elsewhere: bool,
    begun: bool,
}

/// A part of a transfer, in the kernel's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which transfer it is of.
    pub(super) of: u32,
    /// Bytes from the transfer's start.
    pub(super) from: u32,
    pub(super) len: u32,
    moved: u32,
    retries: u32,
}

impl Piece {
    /// What of it is still to be moved: bytes from the transfer's start, and how many.
    pub(super) fn rest(&self) -> (u32, u32) {
        (self.from + self.moved, self.len - self.moved)
    }
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    /// It goes out again, for its rest.
    Again,
    /// It is over.
    Over,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Result(Result<u32, Fault>),
    /// The ring can't do it: to be done from its start in another way.
    Elsewhere,
}

impl Transfer {
    pub(super) fn new(request: Request, digest: u128) -> Self {
        let end = request.region.len;
        let (fault, elsewhere, begun) = (None, false, false);
        Self { request, digest, cut: 0, out: 0, end, fault, elsewhere, begun }
    }

    fn is_cut(&self) -> bool {
        let whole = self.begun && self.cut == self.request.region.len;
        whole || self.fault.is_some() || self.elsewhere || self.end < self.cut
    }

    /// Whether a piece of it was ever cut.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// The length of the piece that comes next, if there is one.
    pub(super) fn next_len(&self) -> Option<u32> {
        (!self.is_cut()).then(|| PIECE_BYTES_MAX.min(self.request.region.len - self.cut))
    }

    /// Cuts off the next piece. `at`: the number of this transfer.
    pub(super) fn next(&mut self, at: u32) -> Option<Piece> {
        let len = self.next_len()?;
        let piece = Piece { of: at, from: self.cut, len, moved: 0, retries: 0 };
        self.begun = true;
        self.cut += len;
        self.out += 1;
        Some(piece)
    }

    /// Takes back a piece with what the kernel said: bytes moved, or a negative errno.
    pub(super) fn back(&mut self, piece: &mut Piece, said: i32) -> Back {
        let back = match u32::try_from(said) {
            Ok(moved) => self.moved(piece, moved),
            Err(_) => self.failed(piece, Errno::from_raw_os_error(said.saturating_neg())),
        };
        self.out -= u32::from(back == Back::Over);
        back
    }

    fn moved(&mut self, piece: &mut Piece, moved: u32) -> Back {
        piece.moved += moved;
        let aligned = u64::from(piece.moved).is_multiple_of(IO_ALIGN_BYTES);
        if piece.moved < piece.len {
            if moved > 0 && aligned {
                return Back::Again;
            }
            self.end = self.end.min(piece.from + piece.moved);
        }
        Back::Over
    }

    /// A sync is told anew after EINTR alone: any other failure may have marked clean what it did
    /// not write.
    fn failed(&mut self, piece: &mut Piece, errno: Errno) -> Back {
        match errno {
            Errno::INTR if piece.retries + 1 < RETRIES_MAX => {
                piece.retries += 1;
                return Back::Again;
            }
            Errno::OPNOTSUPP => self.elsewhere = true,
            Errno::AGAIN if self.request.op != Op::Sync => self.elsewhere = true,
            other => self.fault = self.fault.or(Some(fault_of(other))),
        }
        Back::Over
    }

    /// How it ended, once no piece is out and none will be cut.
    pub(super) fn end(&self) -> Option<End> {
        if self.out > 0 || !self.is_cut() {
            return None;
        }
        Some(match self.fault {
            Some(fault) => End::Result(Err(fault)),
            None if self.elsewhere => End::Elsewhere,
            None => End::Result(Ok(self.end)),
        })
    }
}
