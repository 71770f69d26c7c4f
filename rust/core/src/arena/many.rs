//! Copies of many rows at once, shared by the arena's team where they are large.
//!
//! Owns: how a batch is cut into pieces. Never does: copy less or more than `write` and `read`
//! would for each row. Invariant: pieces of one batch touch different bytes.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::pace::Pace;
use super::{Arena, FrameId, Region, Rows, RowsMut, copy};

/// From this many bytes on a batch is shared; below, waking threads costs what they win
/// (`benches/README.md`).
const SHARED_BYTES_MIN: usize = 4 << 20;
/// A thread takes so much at a time: as long as it is worth waiting for at the end of a batch, and
/// far longer than taking it takes.
const PIECE_BYTES: usize = 256 << 10;

/// A batch of rows in pieces: several rows each, or parts of one row.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    rows_a_piece: usize,
    pieces_a_row: usize,
}

impl Cut {
    fn new(rows: usize, largest_row: usize) -> Self {
        let rows_a_piece = (PIECE_BYTES / largest_row.max(1)).max(1);
        Self { rows, rows_a_piece, pieces_a_row: largest_row.div_ceil(PIECE_BYTES).max(1) }
    }

    fn pieces(self) -> usize {
        self.rows.div_ceil(self.rows_a_piece) * self.pieces_a_row
    }

    /// The rows of a piece, and which of their bytes.
    fn piece(self, number: usize) -> (Range<usize>, Range<usize>) {
        let first = number / self.pieces_a_row * self.rows_a_piece;
        let from = number % self.pieces_a_row * PIECE_BYTES;
        let last = number % self.pieces_a_row + 1 == self.pieces_a_row;
        let to = if last { usize::MAX } else { from + PIECE_BYTES };
        (first..(first + self.rows_a_piece).min(self.rows), from..to)
    }
}

impl Arena {
    /// Whether a batch of so many bytes is copied by several threads.
    pub(crate) fn shares(&self, bytes: usize) -> bool {
        self.team.size() > 1 && bytes >= SHARED_BYTES_MIN
    }

    /// Threads that share a large copy, the caller's included.
    pub(crate) fn copy_threads(&self) -> usize {
        self.team.size()
    }

    /// Large copies that several threads shared.
    pub(crate) fn copies_shared(&self) -> u64 {
        self.writes.shared() + self.reads.shared()
    }

    /// Makes a large copy by the team, or alone where that was faster lately or the team is at
    /// another one.
    fn share(
        &self,
        pace: &Pace,
        bytes: usize,
        pieces: usize,
        call: &(dyn Fn(usize) + Sync),
        alone: impl FnOnce(),
    ) {
        self.team.get_ready();
        let begun = Instant::now();
        let shared = pace.choose() && self.team.run(pieces, call);
        if !shared {
            alone();
        }
        pace.took(shared, bytes, begun.elapsed());
    }

    /// Copies each of the chosen rows into its frame and zeroes the rest of that frame; as `write`.
    pub(crate) fn write_many(&self, frames: &[FrameId], rows: &Rows<'_>, chosen: &[usize]) {
        assert!(frames.len() <= chosen.len(), "{} frames, {} rows", frames.len(), chosen.len());
        let (mut bytes, mut largest) = (0_usize, 0);
        for row in &chosen[..frames.len()] {
            let len = rows.row_bytes(*row);
            (bytes, largest) = (bytes.saturating_add(len), largest.max(len));
        }
        let alone = || {
            for (frame, row) in frames.iter().zip(chosen) {
                self.write(self.frame(*frame, rows.row_bytes(*row) as u32), rows, *row);
            }
        };
        if !self.shares(bytes) {
            return alone();
        }
        let cut = Cut::new(frames.len(), largest);
        let call = |piece| {
            let (these, part) = cut.piece(piece);
            for at in these {
                self.write_part(frames[at], rows, chosen[at], &part);
            }
        };
        self.share(&self.writes, bytes, cut.pieces(), &call, alone);
    }

    /// Copies regions to the starts of their rows; as `read`.
    pub(crate) fn read_many(&self, from: &[(Region, usize)], rows: &RowsMut<'_>) {
        let lengths = from.iter().map(|(region, _)| region.len as usize);
        let (bytes, largest) = lengths
            .fold((0_usize, 0), |(sum, largest), len| (sum.saturating_add(len), largest.max(len)));
        let alone = || from.iter().for_each(|(region, row)| self.read(*region, rows, *row));
        if !self.shares(bytes) {
            return alone();
        }
        let cut = Cut::new(from.len(), largest);
        let call = |piece| {
            let (these, part) = cut.piece(piece);
            for (region, row) in &from[these] {
                self.read_part(*region, rows, *row, &part);
            }
        };
        self.share(&self.reads, bytes, cut.pieces(), &call, alone);
    }

    /// The bytes of `part` of a row into its frame; who has the first ones zeroes the rest.
    fn write_part(&self, frame: FrameId, rows: &Rows<'_>, row: usize, part: &Range<usize>) {
        let (source, len) = rows.row(row);
        let (from, to) = (part.start.min(len), part.end.min(len));
        let target = self.checked(self.frame(frame, self.stride_bytes));
        assert!(len <= self.stride_bytes as usize, "a row of {len} bytes in a frame");
        // SAFETY: `from..to` lies in the row and in the frame, which has at least as many bytes;
        // the frame is its owner's, and other threads of this call have other parts (contract of
        // `write`).
        unsafe { copy::into_frame(source.add(from), target.add(from), to - from, 0) };
        if part.start == 0 {
            let dirty = self.zero_from[frame.index()].swap(len as u32, Ordering::Relaxed) as usize;
            if dirty > len {
                // SAFETY: as above; nobody else has what lies behind the row.
                unsafe { std::ptr::write_bytes(target.add(len), 0, dirty - len) };
            }
        }
    }

    /// The bytes of `part` of a region to their place in a row.
    fn read_part(&self, region: Region, rows: &RowsMut<'_>, row: usize, part: &Range<usize>) {
        let (target, row_bytes) = rows.row(row);
        let len = region.len as usize;
        assert!(row_bytes >= len, "a row of {row_bytes} bytes for a block of {len}");
        let (from, to) = (part.start.min(len), part.end.min(len));
        let source = self.checked(region);
        // SAFETY: `from..to` lies in the region, which nobody writes while its block is pinned, and
        // in the row, of which other threads of this call have other parts (contract of `read`).
        unsafe { copy::out_of_frame(source.add(from), target.add(from), to - from, true) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{ArenaConfig, ArenaOptions, MemoryId, Prefault};
    use super::*;

    const STRIDE: usize = 4 << 20;

    #[test]
    fn a_cut_covers_every_byte_once() {
        for (rows, largest) in [(1, 9 << 20), (3, PIECE_BYTES), (7, PIECE_BYTES + 1), (900, 4097)] {
            let cut = Cut::new(rows, largest);
            let mut covered = vec![0; rows];
            for piece in 0..cut.pieces() {
                let (these, part) = cut.piece(piece);
                for at in these {
                    assert_eq!(covered[at], part.start, "row {at} of {rows} x {largest}");
                    covered[at] = part.end;
                }
            }
            assert!(covered.iter().all(|end| *end == usize::MAX), "{rows} x {largest}");
        }
    }

    fn arena(copy_threads: usize) -> Arena {
        let config = ArenaConfig {
            who: MemoryId::ARENA,
            frames: 6,
            stride_bytes: STRIDE as u32,
            prefault: Prefault::Now,
            threads: 1,
        };
        Arena::map_with(config, ArenaOptions { copy_threads, ..ArenaOptions::default() })
            .expect("map")
    }

    /// What the frames hold after these rows were written over others, and what is read of them.
    fn written(copy_threads: usize, lens: &[usize]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let arena = arena(copy_threads);
        let bytes: Vec<u8> = (0..STRIDE + 64).map(|i| (i * 31 + i / 251) as u8 | 1).collect();
        let frames: Vec<FrameId> = (1..=lens.len() as u32).map(FrameId).collect();
        let all: Vec<usize> = (0..lens.len()).rev().collect();
        let before: Vec<&[u8]> = lens.iter().map(|_| &bytes[..STRIDE]).collect();
        arena.write_many(&frames, &Rows::list(&before), &all);
        let rows: Vec<&[u8]> = lens.iter().enumerate().map(|(i, l)| &bytes[i..i + l]).collect();
        // Once for each way of copying: shared is tried from the second large copy on.
        for _ in 0..3 {
            arena.write_many(&frames, &Rows::list(&rows), &all);
        }
        let whole = |region: Region| {
            let mut out = vec![7; STRIDE];
            arena.read(region, &RowsMut::packed(&mut out, STRIDE), 0);
            out
        };
        let held = (0..6).map(|f| whole(arena.frame(FrameId(f), STRIDE as u32))).collect();
        let mut outs: Vec<Vec<u8>> = lens.iter().map(|len| vec![9; len + 5]).collect();
        let mut slices: Vec<&mut [u8]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
        let from =
            frames.iter().zip(&all).map(|(f, row)| (arena.frame(*f, lens[*row] as u32), *row));
        let (from, rows) = (from.collect::<Vec<_>>(), RowsMut::list(&mut slices));
        (0..3).for_each(|_| arena.read_many(&from, &rows));
        let large = lens.iter().sum::<usize>() >= SHARED_BYTES_MIN;
        assert_eq!(arena.copies_shared() >= 2, copy_threads > 1 && large);
        (held, outs)
    }

    #[test]
    fn several_threads_leave_the_bytes_of_one() {
        let mixed = [STRIDE, 3 << 20, 1, 0, (1 << 20) + 77];
        let even = [1 << 20; 5];
        for lens in [&mixed[..], &even[..], &[STRIDE][..], &[4096; 3][..]] {
            let alone = written(1, lens);
            assert!(alone.1.iter().zip(lens).all(|(out, len)| out[*len..] == [9; 5]));
            for threads in [2, 3] {
                assert!(written(threads, lens) == alone, "{threads} threads, {lens:?}");
            }
        }
    }

    #[test]
    fn only_large_copies_are_shared() {
        assert!(!arena(1).shares(usize::MAX));
        assert!(!arena(2).shares(SHARED_BYTES_MIN - 1));
        assert!(arena(2).shares(SHARED_BYTES_MIN));
    }
}
