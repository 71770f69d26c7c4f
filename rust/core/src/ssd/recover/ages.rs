//! Who is oldest: an order of blocks by last use, hits and depth.
//!
//! Owns: sorting them in pieces. Never does: compare two of them. Invariants: the sort is by digits
//! from the lowest on, each pass stable and over all blocks, and they come in the order of their
//! places; so the result is the one there is, however it was cut, and takes O(n).

use super::Found;
use crate::arena::{prefer_huge_pages, room_for};
use std::mem::{replace, swap};

/// {unused 24, last use 32, hits 8, depth inverted 32, place 32}.
type Age = u128;

/// The digits that count, from the lowest on, as shifts.
const DIGITS: [u32; 9] = [32, 40, 48, 56, 64, 72, 80, 88, 96];
const BUCKETS: usize = 256;

/// Blocks on their way into an order.
#[derive(Default)]
pub(super) struct Ages {
    /// Their places, oldest first, as far as it is done.
    pub(super) by_age: Vec<u32>,
    ages: Vec<Age>,
    other: Vec<Age>,
    /// How many have which digit.
    counts: Vec<[u32; BUCKETS]>,
    /// Passes that are done or not needed.
    pass: usize,
    /// How many the running pass has moved.
    moved: usize,
}

fn digit(age: Age, pass: usize) -> usize {
    (age >> DIGITS[pass]) as usize % BUCKETS
}

impl Ages {
    pub(super) fn new(blocks: usize) -> Self {
        Self { ages: room_for(blocks), counts: vec![[0; BUCKETS]; DIGITS.len()], ..Self::default() }
    }

    /// The next block, at this place. Within the same minute and hits, children are older.
    pub(super) fn push(&mut self, block: &Found, depth: u32, place: u32) {
        let used = Age::from(block.last_use) << 8 | Age::from(block.hits);
        let age = used << 64 | Age::from(!depth) << 32 | Age::from(place);
        for (pass, counts) in self.counts.iter_mut().enumerate() {
            counts[digit(age, pass)] += 1;
        }
        self.ages.push(age);
    }

    /// No more blocks come.
    pub(super) fn begin(&mut self) {
        self.by_age = room_for(self.ages.len());
        self.begin_pass();
    }

    /// Passes over digits that are the same in all blocks; turns the counts of the next one into
    /// where its buckets begin.
    fn begin_pass(&mut self) {
        let same = |counts: &[u32; BUCKETS]| counts.contains(&(self.ages.len() as u32));
        while self.pass < DIGITS.len() && same(&self.counts[self.pass]) {
            self.pass += 1;
        }
        let Some(counts) = self.counts.get_mut(self.pass) else { return };
        let mut begin = 0;
        for count in counts {
            begin += replace(count, begin);
        }
        if self.other.is_empty() {
            self.other = vec![0; self.ages.len()];
            prefer_huge_pages(&self.other);
        }
    }

    /// Goes on by at most so many blocks; true where all are in `by_age`.
    pub(super) fn step(&mut self, most: usize) -> bool {
        if let Some(begins) = self.counts.get_mut(self.pass) {
            let end = self.ages.len().min(self.moved.saturating_add(most));
            for age in &self.ages[self.moved..end] {
                let place = &mut begins[digit(*age, self.pass)];
                self.other[*place as usize] = *age;
                *place += 1;
            }
            self.moved = end;
            if end == self.ages.len() {
                swap(&mut self.ages, &mut self.other);
                (self.pass, self.moved) = (self.pass + 1, 0);
                self.begin_pass();
            }
            return false;
        }
        let end = self.ages.len().min(self.moved.saturating_add(most));
        self.by_age.extend(self.ages[self.moved..end].iter().map(|age| *age as u32));
        self.moved = end;
        if end < self.ages.len() {
            return false;
        }
        (self.ages, self.other) = (Vec::new(), Vec::new());
        true
    }

    /// Blocks moved in all passes, and how many there are to be.
    pub(super) fn progress(&self) -> (usize, usize) {
        let blocks = self.ages.len();
        (self.pass * blocks + self.moved, (DIGITS.len() + 1) * blocks)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::units::SsdSlot;
    use proptest::prelude::*;

    fn used(last_use: u32, hits: u8) -> Found {
        let (key, slot) = (Key::from_words([0, 0]), SsdSlot(0));
        let (parent, len, generation, priority) = (None, 0, 0, 0);
        Found { key, parent, slot, len, generation, last_use, hits, priority }
    }

    fn wide() -> impl Strategy<Value = u32> {
        prop_oneof![0..4_u32, any::<u32>(), Just(1 << 8), Just(1 << 16), Just(1 << 24)]
    }

    proptest! {
        #[test]
        fn ages_are_sorted_as_by_comparing(
            blocks in proptest::collection::vec((wide(), any::<u8>(), wide()), 0..300),
            most in prop_oneof![Just(1_usize), Just(7), Just(1000)],
        ) {
            let mut ages = Ages::new(blocks.len());
            for (place, (last_use, hits, depth)) in blocks.iter().enumerate() {
                ages.push(&used(*last_use, *hits), *depth, place as u32);
            }
            ages.begin();
            while !ages.step(most) {}
            let mut sorted: Vec<u32> = (0..blocks.len() as u32).collect();
            sorted.sort_by_key(|place| {
                let (last_use, hits, depth) = blocks[*place as usize];
                (last_use, hits, !depth)
            });
            prop_assert_eq!(ages.by_age, sorted);
        }
    }
}
