//! What calls tell the keeper, in a bounded ring.
//!
//! Owns: the ring of packed events and their order. Never does: drop or apply one. Invariant: a
//! cell belongs to whoever its sequence number names (Vyukov's bounded queue), so a push or pop
//! never waits for another but to see a cell completed.

use crate::sync::{AtomicU64, Ordering};
use crate::units::Slot;

/// Most events in the ring; a power of two. Two puts of 8,192 blocks fit.
const RING_EVENTS_MAX: usize = 1 << 14;

/// A message to the keeper. It names a header in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// A block came; carries one pin of its own and one of its parent. `refilled`: it was a hole.
    Insert { slot: Slot, generation: u32, refilled: bool },
    /// A linked piece of a run was delivered: this block and `length - 1` of its ancestors.
    Touch { slot: Slot, generation: u32, length: u32 },
    /// A block was hidden by name.
    Removed { slot: Slot, generation: u32 },
}

struct Cell {
    sequence: AtomicU64,
    words: [AtomicU64; 2],
}

/// The ring.
pub(super) struct Ring {
    cells: Box<[Cell]>,
    head: AtomicU64,
    tail: AtomicU64,
}

fn pack(note: Note) -> [u64; 2] {
    let (tag, slot, generation, length) = match note {
        Note::Insert { slot, generation, refilled } => (u64::from(refilled), slot, generation, 1),
        Note::Touch { slot, generation, length } => (2, slot, generation, length),
        Note::Removed { slot, generation } => (3, slot, generation, 1),
    };
    [u64::from(length) << 32 | u64::from(slot.0), tag << 32 | u64::from(generation)]
}

fn unpack([place, what]: [u64; 2]) -> Note {
    let (slot, length, generation) = (Slot(place as u32), (place >> 32) as u32, what as u32);
    match what >> 32 {
        tag @ (0 | 1) => Note::Insert { slot, generation, refilled: tag == 1 },
        2 => Note::Touch { slot, generation, length },
        _ => Note::Removed { slot, generation },
    }
}

impl Ring {
    /// A ring for a store of so many headers.
    pub(super) fn new(headers: u32) -> Self {
        let len = (headers as usize).next_power_of_two().min(RING_EVENTS_MAX);
        let cell = |i| Cell {
            sequence: AtomicU64::new(i as u64),
            words: [AtomicU64::new(0), AtomicU64::new(0)],
        };
        Self {
            cells: (0..len).map(cell).collect(),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
        }
    }

    fn cell(&self, position: u64) -> &Cell {
        &self.cells[position as usize & (self.cells.len() - 1)]
    }

    /// False where the ring is full.
    #[must_use]
    pub(super) fn push(&self, note: Note) -> bool {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            let cell = self.cell(tail);
            // Acquire: the pop that freed the cell has read it.
            let sequence = cell.sequence.load(Ordering::Acquire);
            if sequence < tail {
                return false;
            }
            if sequence > tail {
                tail = self.tail.load(Ordering::Relaxed);
                continue;
            }
            let next = tail + 1;
            let order = Ordering::Relaxed;
            match self.tail.compare_exchange_weak(tail, next, order, order) {
                Ok(_) => {
                    for (word, value) in cell.words.iter().zip(pack(note)) {
                        word.store(value, Ordering::Relaxed);
                    }
                    // Release: who sees this number sees the words, and all that the caller did.
                    cell.sequence.store(next, Ordering::Release);
                    return true;
                }
                Err(now) => tail = now,
            }
        }
    }

    /// The oldest completed note; only under the keeper's lock.
    pub(super) fn pop(&self) -> Option<Note> {
        let head = self.head.load(Ordering::Relaxed);
        let cell = self.cell(head);
        if cell.sequence.load(Ordering::Acquire) != head + 1 {
            return None;
        }
        let note = unpack([0, 1].map(|i: usize| cell.words[i].load(Ordering::Relaxed)));
        self.head.store(head + 1, Ordering::Relaxed);
        cell.sequence.store(head + self.cells.len() as u64, Ordering::Release);
        Some(note)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == self.tail.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn notes_survive_packing_in_order() {
        let ring = Ring::new(8);
        let (slot, generation) = (Slot(7), u32::MAX);
        let notes = [
            Note::Insert { slot, generation, refilled: false },
            Note::Insert { slot, generation, refilled: true },
            Note::Touch { slot, generation, length: 9_000 },
            Note::Removed { slot, generation },
        ];
        for note in notes {
            assert!(ring.push(note));
        }
        assert_eq!(notes.map(Some), [0; 4].map(|_| ring.pop()));
        assert!(ring.pop().is_none() && ring.is_empty());
    }

    #[test]
    fn a_full_ring_refuses_and_goes_round() {
        let ring = Ring::new(4);
        let note = |slot| Note::Removed { slot: Slot(slot), generation: 0 };
        for slot in 0..1_000 {
            for i in 0..4 {
                assert!(ring.push(note(slot + i)));
            }
            assert!(!ring.push(note(0)));
            for i in 0..4 {
                assert_eq!(ring.pop(), Some(note(slot + i)));
            }
        }
    }

    #[test]
    fn threads_push_while_one_pops() {
        let ring = Ring::new(64);
        let seen = std::thread::scope(|scope| {
            for thread in 0..3 {
                let ring = &ring;
                scope.spawn(move || {
                    for i in 0..10_000 {
                        let note = Note::Removed { slot: Slot(thread), generation: i };
                        while !ring.push(note) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut next = [0; 3];
            while next.iter().sum::<u32>() < 30_000 {
                match ring.pop() {
                    Some(Note::Removed { slot, generation }) => {
                        assert_eq!(generation, next[slot.index()], "in order within a thread");
                        next[slot.index()] += 1;
                    }
                    Some(other) => panic!("nobody pushed {other:?}"),
                    None => std::thread::yield_now(),
                }
            }
            next
        });
        assert_eq!(seen, [10_000; 3]);
    }
}
