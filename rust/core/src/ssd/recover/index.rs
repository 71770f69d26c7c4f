//! Candidates by key.
//!
//! Owns: one table of cells over the candidates' numbers. Never does: say which candidate counts.
//! Invariant: a key's cell is found whatever keys there are; at most half of the cells are used.

use super::Found;
use crate::arena::prefetch;
use crate::key::Key;
use std::hash::{BuildHasher, RandomState};

/// So far ahead a cell is asked for before its key is looked for.
pub(super) const AHEAD: usize = 16;

/// Candidates by key: open addressing, at most half full.
#[derive(Default)]
pub(super) struct Index {
    /// {hash 32, candidate + 1 32}; 0 is empty.
    pub(super) cells: Vec<u64>,
    /// Drawn anew each time, so that no set of keys collides in every plan; no plan depends on it.
    pub(super) secret: [u64; 2],
}

impl Index {
    pub(super) fn new(candidates: usize) -> Self {
        let draw = |_| RandomState::new().hash_one(0);
        let cells = vec![0_u64; (2 * candidates).next_power_of_two()];
        crate::arena::prefer_huge_pages(&cells);
        Self { cells, secret: std::array::from_fn(draw) }
    }

    fn hash(&self, key: &Key) -> u64 {
        let [low, high] = key.words();
        let product = u128::from(low ^ self.secret[0]) * u128::from(high ^ self.secret[1]);
        (product >> 64) as u64 ^ product as u64
    }

    /// Loads the cell of a key that will be looked for soon.
    pub(super) fn fetch(&self, key: &Key) {
        prefetch(&self.cells[self.hash(key) as usize & (self.cells.len() - 1)]);
    }

    /// The cell of a key and what is in it; else the empty cell for it, and what to put there.
    pub(super) fn cell(&self, found: &[Found], key: &Key) -> (usize, u64) {
        let hash = self.hash(key);
        let mut at = hash as usize & (self.cells.len() - 1);
        loop {
            let cell = self.cells[at];
            if cell == 0 {
                return (at, hash & u64::MAX << 32);
            }
            if (cell ^ hash) >> 32 == 0 && found[candidate(cell) as usize].key == *key {
                return (at, cell);
            }
            at = (at + 1) & (self.cells.len() - 1);
        }
    }
}

/// Whom a cell names; `NONE` if nobody.
pub(super) fn candidate(cell: u64) -> u32 {
    (cell as u32).wrapping_sub(1)
}
