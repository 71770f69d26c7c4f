//! Copies of many rows at once, shared by the arena's team where they are large.
//!
//! Owns: how a batch is cut into pieces. Never does: copy less or more than `write` and `read`
//! would for each row. Invariants: pieces of one batch touch different bytes, so rows that share
//! memory are copied one after the other; there are no more pieces than the bytes are worth.

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

/// What a thread takes at a time: some rows, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    rows: Range<usize>,
    /// Which bytes of each of them, as far as it has so many.
    part: Range<usize>,
}

/// Cuts rows of these lengths into pieces of at most `PIECE_BYTES`; any two neighbours have more
/// together.
fn cut(lengths: impl Iterator<Item = usize>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    // Bytes of the last piece, where rows may still join it.
    let mut open = None;
    for (row, len) in lengths.enumerate() {
        if let (Some(bytes), Some(piece)) = (open, pieces.last_mut())
            && len <= PIECE_BYTES - bytes
        {
            piece.rows.end = row + 1;
            open = Some(bytes + len);
            continue;
        }
        let parts = (0..len.max(1)).step_by(PIECE_BYTES);
        pieces
            .extend(parts.map(|from| Piece { rows: row..row + 1, part: from..from + PIECE_BYTES }));
        open = (len <= PIECE_BYTES).then_some(len);
    }
    pieces
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
        let lengths = || chosen[..frames.len()].iter().map(|row| rows.row_bytes(*row));
        let bytes = lengths().fold(0_usize, usize::saturating_add);
        let alone = || {
            for (frame, row) in frames.iter().zip(chosen) {
                self.write(self.frame(*frame, rows.row_bytes(*row) as u32), rows, *row);
            }
        };
        if !self.shares(bytes) {
            return alone();
        }
        for (frame, row) in frames.iter().zip(chosen) {
            // A panic may leave any part of a frame written: until its row is whole, and what lies
            // behind it is zeroed, the frame is dirty as far as either goes.
            let whole = self.frame(*frame, rows.row_bytes(*row) as u32);
            self.expect_read(*frame, whole.len);
        }
        let pieces = cut(lengths());
        let call = |piece: usize| {
            let Piece { rows: these, part } = &pieces[piece];
            for at in these.clone() {
                self.write_part(frames[at], rows, chosen[at], part);
            }
        };
        self.share(&self.writes, bytes, pieces.len(), &call, alone);
    }

    /// Copies regions to the starts of their rows; as `read`.
    pub(crate) fn read_many(&self, from: &[(Region, usize)], rows: &RowsMut<'_>) {
        let lengths = || from.iter().map(|(region, _)| region.len as usize);
        let bytes = lengths().fold(0_usize, usize::saturating_add);
        let alone = || from.iter().for_each(|(region, row)| self.read(*region, rows, *row));
        if !self.shares(bytes) || rows.overlap(lengths().zip(from).map(|(len, of)| (of.1, len))) {
            return alone();
        }
        let pieces = cut(lengths());
        let call = |piece: usize| {
            let Piece { rows: these, part } = &pieces[piece];
            for (region, row) in &from[these.clone()] {
                self.read_part(*region, rows, *row, part);
            }
        };
        self.share(&self.reads, bytes, pieces.len(), &call, alone);
    }

    /// The bytes of `part` of a row into its frame; who has the first ones zeroes the rest.
    fn write_part(&self, frame: FrameId, rows: &Rows<'_>, row: usize, part: &Range<usize>) {
        let (source, len) = rows.row(row);
        let (from, to) = (part.start.min(len), part.end.min(len));
        let target = self.checked(self.frame(frame, self.stride_bytes));
        assert!(len <= self.stride_bytes as usize, "a row of {len} bytes in a frame");
        // SAFETY: as in `write`, and `from..to` lies in the row and in the frame, which is as long.
        // The frame is no other row's, and other threads of the call have other parts of it.
        unsafe { copy::into_frame(source.add(from), target.add(from), to - from, 0) };
        if part.start == 0 {
            let dirty = self.zero_from[frame.index()].swap(len as u32, Ordering::Relaxed) as usize;
            if dirty > len {
                // SAFETY: `dirty` is at most the stride, for only lengths up to it are stored; as
                // above, and who has the row's first bytes alone has what lies behind the row.
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
        // SAFETY: as in `read`, and `from..to` lies in the region and in the row. Other threads of
        // the call have other parts of this row, and no two of its rows overlap (`read_many`).
        unsafe { copy::out_of_frame(source.add(from), target.add(from), to - from, true) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{ArenaConfig, ArenaOptions, MemoryId, Prefault};
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    const STRIDE: usize = 4 << 20;

    #[test]
    fn a_cut_covers_every_byte_once_in_no_more_pieces_than_they_are_worth() {
        let few_large = [vec![256 << 20], vec![1; 5000], vec![0, 1 << 20, 0]].concat();
        let uneven = (0..3000).map(|i| i * 7919 % 600_000).collect();
        let even = [(1, 9 << 20), (3, PIECE_BYTES), (7, PIECE_BYTES + 1), (900, 4097), (9, 0)];
        let mut batches = vec![few_large, uneven, vec![]];
        batches.extend(even.map(|(rows, len)| vec![len; rows]));
        for lens in batches {
            let pieces = cut(lens.iter().copied());
            let mut covered: Vec<Option<usize>> = vec![None; lens.len()];
            for Piece { rows, part } in &pieces {
                let bytes = lens[rows.clone()].iter().map(|len| part.end.min(*len) - part.start);
                assert!(bytes.sum::<usize>() <= PIECE_BYTES);
                for at in rows.clone() {
                    assert_eq!(covered[at].unwrap_or(0), part.start, "row {at}");
                    covered[at] = Some(part.end);
                }
            }
            let whole = |(end, len): (&Option<usize>, &usize)| end.is_some_and(|end| end >= *len);
            assert!(covered.iter().zip(&lens).all(whole));
            let worth = lens.iter().sum::<usize>() / PIECE_BYTES;
            assert!(pieces.len() <= 2 * worth + 1, "{} pieces for {worth}", pieces.len());
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

    /// Callers may pass the same memory twice: then the last block of the call is in it, as where
    /// one thread copies.
    #[test]
    fn rows_that_share_memory_are_copied_one_after_the_other() {
        let arena = arena(3);
        let rows: Vec<Vec<u8>> = (1..=4).map(|byte| vec![byte; STRIDE]).collect();
        let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
        let frames: Vec<FrameId> = (0..4).map(FrameId).collect();
        arena.write_many(&frames, &Rows::list(&rows), &[0, 1, 2, 3]);
        let mut out = vec![0; STRIDE + 1];
        let base = out.as_mut_ptr();
        let at = |offset: usize| (base.wrapping_add(offset), STRIDE);
        // SAFETY: all rows lie in `out`, which nobody else uses.
        let targets = unsafe { RowsMut::from_raw_list(vec![at(0), at(0), at(1), at(0)]) };
        let from = frames.iter().map(|frame| arena.frame(*frame, STRIDE as u32));
        let from: Vec<(Region, usize)> = from.zip(0..).collect();
        for _ in 0..8 {
            arena.read_many(&from, &targets);
            assert_eq!((arena.reads.shared(), out[0], out[STRIDE - 1]), (0, 4, 4));
            assert_eq!(out[STRIDE], 3);
            out.fill(0);
        }
    }

    #[test]
    fn a_row_too_long_is_refused_before_a_byte_is_written() {
        let arena = arena(2);
        let (good, bad) = (vec![1; STRIDE], vec![2; STRIDE + 1]);
        let rows = [&good[..], &bad[..]];
        let write = || arena.write_many(&[FrameId(0), FrameId(1)], &Rows::list(&rows), &[0, 1]);
        arena.writes.took(false, 1, Duration::from_secs(1));
        assert!(catch_unwind(AssertUnwindSafe(write)).is_err());
        let mut out = vec![7; STRIDE];
        arena.read(arena.frame(FrameId(0), STRIDE as u32), &RowsMut::packed(&mut out, STRIDE), 0);
        assert_eq!(out, vec![0; STRIDE]);
        // And whoever has the frame next leaves nothing behind its row.
        arena.write(arena.frame(FrameId(0), 1), &Rows::packed(&[3], 1), 0);
        arena.read(arena.frame(FrameId(0), STRIDE as u32), &RowsMut::packed(&mut out, STRIDE), 0);
        assert_eq!((out[0], out[1..].iter().any(|byte| *byte != 0)), (3, false));
    }

    #[test]
    fn only_large_copies_are_shared() {
        assert!(!arena(1).shares(usize::MAX));
        assert!(!arena(2).shares(SHARED_BYTES_MIN - 1));
        assert!(arena(2).shares(SHARED_BYTES_MIN));
    }
}
