//! What a followed table says, by key: which slot has a block, and what its record tells of it.
//!
//! Owns: one line a slot, the cells that find it, and when each page was read. Never does: I/O, a
//! clock, or say whether a payload is right. Invariants: a slot with a block has exactly one cell;
//! at most half of the cells are used; an older reading of a page never replaces a newer one.

use crate::arena::prefetch;
use crate::key::Key;
use crate::ssd::format::{RECORDS_A_PAGE, Record, epoch_of, table_pages};
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// So far ahead a key's cell is asked for, and half as far its line.
const AHEAD: usize = 16;

/// A block in a followed directory; a line of the cache.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) key: Key,
    /// The block before it; zeros without one.
    parent: Key,
    pub(crate) tag: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) len: u32,
    /// As in a record; zeros: no block.
    flags: u32,
}

const _: () = assert!(size_of::<Known>() == 64);
const WORDS: usize = size_of::<Known>() / 8;

impl Known {
    const NONE: Self = Self {
        key: Key([0; 16]),
        parent: Key([0; 16]),
        tag: [0; 16],
        generation: 0,
        len: 0,
        flags: 0,
    };

    /// What a record tells; none where it does not count.
    pub(crate) fn of(record: &Record, block_bytes: u32, clear_epoch: u32) -> Self {
        if !record.is_sane(block_bytes) || epoch_of(record.generation) <= clear_epoch {
            return Self::NONE;
        }
        let Record { key, parent, tag, generation, len, flags, .. } = *record;
        Self { key, parent, tag, generation, len, flags: flags.into() }
    }

    fn is_none(&self) -> bool {
        self.flags == 0
    }

    /// The key of the block before it.
    pub(crate) fn parent(&self) -> Option<Key> {
        (self.flags & u32::from(Record::HAS_PARENT) != 0).then_some(self.parent)
    }
}

/// A page of the table, as it was read last.
#[derive(Clone, Copy, Default)]
struct Page {
    sequence: u64,
    /// Before the read; 0: not yet, or not any more.
    read_us: u64,
}

/// The table.
pub(crate) struct Index {
    /// {hash 32, slot + 1 32}; 0 is empty.
    cells: Vec<u64>,
    /// A [`Known`] each, from `aligned` on, so that each is in one line of the cache; words, so
    /// that the vector starts as untouched zero pages.
    lines: Vec<u64>,
    aligned: usize,
    slots: u32,
    pages: Vec<Page>,
    /// Drawn anew each time: no set of keys collides everywhere.
    secret: [u64; 2],
    /// The owner has told of every change since then, to who looked at `as_of_us`.
    pub(super) hinted_since_us: u64,
    pub(super) as_of_us: u64,
}

impl Index {
    pub(crate) fn new(slots: u32) -> Self {
        let draw = |_| RandomState::new().hash_one(0);
        let cells = vec![0_u64; (2 * slots as usize).next_power_of_two()];
        let lines = vec![0_u64; (slots as usize + 1) * WORDS];
        let aligned = lines.as_ptr().align_offset(size_of::<Known>()).min(WORDS);
        crate::arena::prefer_huge_pages(&cells);
        crate::arena::prefer_huge_pages(&lines);
        Self {
            cells,
            lines,
            aligned,
            slots,
            pages: vec![Page::default(); table_pages(slots) as usize],
            secret: std::array::from_fn(draw),
            hinted_since_us: u64::MAX,
            as_of_us: 0,
        }
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let cells = self.cells.as_bytes().len() + self.lines.as_bytes().len();
        (cells + self.pages.len() * size_of::<Page>()) as u64
    }

    pub(super) fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    fn words_of(&self, slot: u32) -> std::ops::Range<usize> {
        let first = self.aligned + slot as usize * WORDS;
        first..first + WORDS
    }

    fn line(&self, slot: u32) -> &Known {
        Known::ref_from_bytes(self.lines[self.words_of(slot)].as_bytes())
            .expect("as many words, aligned alike")
    }

    fn hash(&self, key: &Key) -> u64 {
        let [low, high] = key.words();
        let product = u128::from(low ^ self.secret[0]) * u128::from(high ^ self.secret[1]);
        (product >> 64) as u64 ^ product as u64
    }

    fn cell(&self, hash: u64) -> usize {
        hash as usize & (self.cells.len() - 1)
    }

    /// Asks for the cell of a key that will be looked for soon.
    #[inline]
    fn fetch_cell(&self, hash: u64) {
        prefetch(&self.cells[self.cell(hash)]);
    }

    /// Asks for the line of a key that will be looked for next.
    #[inline]
    fn fetch_line(&self, hash: u64) {
        let cell = self.cells[self.cell(hash)];
        if cell != 0 {
            prefetch(&self.lines[self.words_of(slot_of(cell)).start]);
        }
    }

    /// The block of a key, and its slot: the newest of several.
    #[inline]
    pub(crate) fn find(&self, key: &Key) -> Option<(u32, &Known)> {
        self.find_by(self.hash(key), key)
    }

    #[inline]
    fn find_by(&self, hash: u64, key: &Key) -> Option<(u32, &Known)> {
        let mut at = self.cell(hash);
        let mut best: Option<(u32, &Known)> = None;
        loop {
            let cell = self.cells[at];
            if cell == 0 {
                return best;
            }
            if (cell ^ hash) >> 32 == 0 {
                let line = self.line(slot_of(cell));
                if line.key == *key && best.is_none_or(|(_, it)| it.generation < line.generation) {
                    best = Some((slot_of(cell), line));
                }
            }
            at = (at + 1) & (self.cells.len() - 1);
        }
    }

    /// The generation of the block in a slot.
    pub(super) fn generation_in(&self, slot: u32) -> Option<u64> {
        let line = self.line(slot);
        (!line.is_none()).then_some(line.generation)
    }

    /// Until when what is known of a page is known to be so.
    pub(super) fn known_until_us(&self, page: u32) -> u64 {
        let read_us = self.pages[page as usize].read_us;
        if read_us >= self.hinted_since_us { read_us.max(self.as_of_us) } else { read_us }
    }

    /// What is known of a page may be wrong.
    pub(super) fn distrust(&mut self, page: u32) {
        self.pages[page as usize].read_us = 0;
    }

    /// Takes a page in that was read after `read_us`.
    pub(crate) fn take_in(&mut self, page: u32, sequence: u64, read_us: u64, lines: &[Known]) {
        let state = &mut self.pages[page as usize];
        if sequence < state.sequence {
            return;
        }
        let same = sequence == state.sequence && state.read_us > 0;
        *state = Page { sequence, read_us: read_us.max(state.read_us) };
        if !same {
            let first = page * RECORDS_A_PAGE as u32;
            for (slot, line) in (first..self.slots).zip(lines) {
                self.set(slot, *line);
            }
        }
    }

    fn set(&mut self, slot: u32, line: Known) {
        let before = *self.line(slot);
        if before == line {
            return;
        }
        if !before.is_none() && (line.is_none() || before.key != line.key) {
            self.take_out(slot, &before.key);
        }
        let words = self.words_of(slot);
        self.lines[words].as_mut_bytes().copy_from_slice(line.as_bytes());
        if !line.is_none() && (before.is_none() || before.key != line.key) {
            self.put_in(slot, &line.key);
        }
    }

    fn put_in(&mut self, slot: u32, key: &Key) {
        let hash = self.hash(key);
        let mut at = hash as usize & (self.cells.len() - 1);
        while self.cells[at] != 0 {
            at = (at + 1) & (self.cells.len() - 1);
        }
        self.cells[at] = hash & u64::MAX << 32 | u64::from(slot + 1);
    }

    /// Empties a slot's cell, and moves up what stood behind it for want of it.
    fn take_out(&mut self, slot: u32, key: &Key) {
        let mask = self.cells.len() - 1;
        let mut hole = self.hash(key) as usize & mask;
        while slot_of(self.cells[hole]) != slot {
            assert!(self.cells[hole] != 0, "a slot with a block has a cell");
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let cell = self.cells[at];
            if cell == 0 {
                break;
            }
            let home = self.hash(&self.line(slot_of(cell)).key) as usize & mask;
            // Whether its way from home leads over the hole.
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.cells[hole] = cell;
                hole = at;
            }
        }
        self.cells[hole] = 0;
    }

    /// Slots with a block.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn blocks(&self) -> u64 {
        self.cells.iter().filter(|cell| **cell != 0).count() as u64
    }
}

/// Looks keys up in several tables: hands each key's block, and the number of its table, to
/// `visit`, until that says false; how many keys were passed.
pub(crate) fn walk(
    tables: &[impl Deref<Target = Index>],
    keys: &[Key],
    counts: impl Fn(&Known) -> bool,
    mut visit: impl FnMut(usize, Option<(usize, u32, &Known)>) -> bool,
) -> usize {
    // The hashes of the keys on their way, for each table.
    let mut hashes = vec![0; AHEAD * tables.len()];
    let places = |at: usize| at % AHEAD * tables.len()..(at % AHEAD + 1) * tables.len();
    let ask = |hashes: &mut [u64], at: usize| {
        let Some(key) = keys.get(at) else { return };
        for (hash, table) in hashes[places(at)].iter_mut().zip(tables) {
            *hash = table.hash(key);
            table.fetch_cell(*hash);
        }
    };
    (0..AHEAD).for_each(|at| ask(&mut hashes, at));
    let mut first = 0;
    for (at, key) in keys.iter().enumerate() {
        if at + AHEAD / 2 < keys.len() {
            let soon = &hashes[places(at + AHEAD / 2)];
            soon.iter().zip(tables).for_each(|(hash, table)| table.fetch_line(*hash));
        }
        let known = &hashes[places(at)];
        // A chain is mostly in one table.
        let found = (first..tables.len()).chain(0..first).find_map(|table| {
            let (slot, known) = tables[table].find_by(known[table], key)?;
            counts(known).then_some((table, slot, known))
        });
        first = found.map_or(first, |(table, ..)| table);
        if !visit(at, found) {
            return at;
        }
        ask(&mut hashes, at + AHEAD);
    }
    keys.len()
}

/// The slot that a cell names; none for an empty one.
fn slot_of(cell: u64) -> u32 {
    (cell as u32).wrapping_sub(1)
}

#[cfg(all(test, not(loom)))]
mod tests;
