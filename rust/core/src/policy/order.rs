//! An order of slots with an exact "oldest that can leave": list, cursor and woken heap.
//!
//! Owns: links and stamps of all slots, and the lists they are on. Never does: decide what a list
//! means. Invariants: stamps grow along a list; every block older than the cursor was seen to stay
//! (and is marked so) or is in the heap under its present stamp; a heap entry with another stamp
//! is void. So the heap's least valid entry, else the block at the cursor, is the oldest that can
//! leave, at amortised O(log k): each block passed is paid for by one insert, touch or wake.

use super::{Residents, Search};
use crate::units::{NONE, Slot};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use zerocopy::IntoBytes;

/// Blocks looked at ahead, so that no later search crosses a long list at once: two for each insert
/// and touch, taken together once in `AHEAD_EVERY`.
const AHEAD: u32 = 2 * AHEAD_EVERY as u32;
const AHEAD_EVERY: u64 = 8;
/// The youngest blocks are not looked at ahead: they are pinned or parents of what comes next, and
/// each one passed costs a turn through the heap. So a search may have to pass as many more.
const YOUNG: u64 = 256;
/// Void heap entries tolerated before they are thrown out, beside as many as there are blocks.
const VOID_MAX: usize = 64;

/// {older, younger, stamp low, stamp high}; stamp 0: on no list. An array, so that the vector
/// starts as untouched zero pages.
type Node = [u32; 4];

const OLDER: usize = 0;
const YOUNGER: usize = 1;

struct List {
    oldest: u32,
    youngest: u32,
    /// The next block to look at; NONE: all were.
    cursor: u32,
    /// The next block that `upcoming` names; NONE: all were.
    front: u32,
    /// Blocks older than `front`.
    ahead: u64,
    len: u64,
    woken: BinaryHeap<Reverse<(u64, u32)>>,
}

/// `LISTS` lists over one set of slots; a slot is on at most one of them.
pub(crate) struct Order<const LISTS: usize> {
    nodes: Vec<Node>,
    lists: [List; LISTS],
    clock: u64,
    steps: u64,
}

impl<const LISTS: usize> Order<LISTS> {
    pub(crate) fn new(slots: u32) -> Self {
        let list = |_| List {
            oldest: NONE,
            youngest: NONE,
            cursor: NONE,
            front: NONE,
            ahead: 0,
            len: 0,
            woken: BinaryHeap::new(),
        };
        Self {
            nodes: vec![[0; 4]; slots as usize],
            lists: std::array::from_fn(list),
            clock: 0,
            steps: 0,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.nodes.len() * size_of::<Node>()) as u64
    }

    pub(crate) fn table(&self) -> &[u8] {
        self.nodes.as_bytes()
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn len(&self, list: usize) -> u64 {
        self.lists[list].len
    }

    /// The stamp is the clock with the list's number in its low bits: one word says both.
    fn stamp(&self, slot: u32) -> u64 {
        let node = &self.nodes[slot as usize];
        u64::from(node[3]) << 32 | u64::from(node[2])
    }

    fn set_stamp(&mut self, slot: u32, stamp: u64) {
        let node = &mut self.nodes[slot as usize];
        (node[2], node[3]) = (stamp as u32, (stamp >> 32) as u32);
    }

    /// The list a slot is on.
    pub(crate) fn list_of(&self, slot: Slot) -> Option<usize> {
        let stamp = self.stamp(slot.0);
        (stamp != 0).then(|| (stamp % LISTS as u64) as usize)
    }

    /// Enters a slot, which is on no list, at the young end.
    pub(crate) fn push(&mut self, list: usize, slot: Slot) {
        debug_assert_eq!(self.list_of(slot), None);
        self.clock += 1;
        self.set_stamp(slot.0, self.clock * LISTS as u64 + list as u64);
        let youngest = self.lists[list].youngest;
        self.nodes[slot.index()][OLDER] = youngest;
        self.nodes[slot.index()][YOUNGER] = NONE;
        match youngest {
            NONE => self.lists[list].oldest = slot.0,
            youngest => self.nodes[youngest as usize][YOUNGER] = slot.0,
        }
        let list = &mut self.lists[list];
        list.youngest = slot.0;
        list.len += 1;
        if list.cursor == NONE {
            list.cursor = slot.0;
        }
        if list.front == NONE {
            list.front = slot.0;
        }
    }

    /// Takes a slot off its list, if it is on one.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let Some(list) = self.list_of(slot) else { return };
        let [older, younger, ..] = self.nodes[slot.index()];
        let front = self.lists[list].front;
        // Where nothing was named yet there is nothing to look up: a store in RAM alone.
        let named =
            self.lists[list].ahead > 0 && (front == NONE || self.stamp(slot.0) < self.stamp(front));
        match older {
            NONE => self.lists[list].oldest = younger,
            older => self.nodes[older as usize][YOUNGER] = younger,
        }
        match younger {
            NONE => self.lists[list].youngest = older,
            younger => self.nodes[younger as usize][OLDER] = older,
        }
        self.set_stamp(slot.0, 0);
        let list = &mut self.lists[list];
        list.len -= 1;
        if list.cursor == slot.0 {
            list.cursor = younger;
        }
        if list.front == slot.0 {
            list.front = younger;
        }
        list.ahead -= u64::from(named);
    }

    /// The oldest block that this has not named yet, as long as fewer than `within` are older.
    pub(crate) fn upcoming(&mut self, list: usize, within: u64) -> Option<Slot> {
        let list = &mut self.lists[list];
        let front = list.front;
        if front == NONE || list.ahead >= within {
            return None;
        }
        list.front = self.nodes[front as usize][YOUNGER];
        list.ahead += 1;
        Some(Slot(front))
    }

    /// Every block is named again by `upcoming`.
    pub(crate) fn name_again(&mut self) {
        for list in &mut self.lists {
            (list.front, list.ahead) = (list.oldest, 0);
        }
    }

    /// Every block is looked at again: what made those passed stay has ended without a wake.
    pub(crate) fn rewind(&mut self) {
        for list in &mut self.lists {
            list.cursor = list.oldest;
            list.woken.clear();
        }
    }

    /// A block behind the cursor may leave again; one ahead of it will be looked at anyway.
    pub(crate) fn wake(&mut self, slot: Slot) {
        let Some(list) = self.list_of(slot) else { return };
        let stamp = self.stamp(slot.0);
        let cursor = self.lists[list].cursor;
        if cursor != NONE && stamp >= self.stamp(cursor) {
            return;
        }
        self.lists[list].woken.push(Reverse((stamp, slot.0)));
        if self.lists[list].woken.len() > VOID_MAX + 2 * self.lists[list].len as usize {
            let mut woken = std::mem::take(&mut self.lists[list].woken);
            woken.retain(|Reverse((stamp, slot))| self.stamp(*slot) == *stamp);
            self.lists[list].woken = woken;
        }
    }

    /// The oldest block of a list that can leave. It stays where it is.
    pub(crate) fn oldest(&mut self, list: usize, who: &dyn Residents, budget: &mut u32) -> Search {
        while let Some(Reverse((stamp, slot))) = self.lists[list].woken.peek().copied() {
            if *budget == 0 {
                return Search::Again;
            }
            *budget -= 1;
            self.steps += 1;
            if self.stamp(slot) == stamp && !who.stays(Slot(slot)) {
                return Search::Victim(Slot(slot));
            }
            self.lists[list].woken.pop();
        }
        loop {
            let slot = self.lists[list].cursor;
            if slot == NONE {
                return Search::Nothing;
            }
            if *budget == 0 {
                return Search::Again;
            }
            *budget -= 1;
            self.steps += 1;
            let younger = self.nodes[slot as usize][YOUNGER];
            if younger != NONE {
                who.soon(Slot(younger));
            }
            if !who.stays(Slot(slot)) {
                return Search::Victim(Slot(slot));
            }
            self.lists[list].cursor = younger;
        }
    }

    /// After each push: now and then moves every cursor past blocks that stay and are not among the
    /// youngest.
    #[inline]
    pub(crate) fn advance(&mut self, who: &dyn Residents) {
        if self.clock.is_multiple_of(AHEAD_EVERY) {
            self.look_ahead(who);
        }
    }

    fn look_ahead(&mut self, who: &dyn Residents) {
        for list in 0..LISTS {
            for _ in 0..AHEAD {
                let slot = self.lists[list].cursor;
                let old = (self.clock.saturating_sub(YOUNG)) * LISTS as u64;
                if slot == NONE || self.stamp(slot) >= old || !who.stays(Slot(slot)) {
                    break;
                }
                self.steps += 1;
                self.lists[list].cursor = self.nodes[slot as usize][YOUNGER];
            }
        }
    }

    /// Walks a list, oldest first; panics where links, stamps or counts disagree.
    pub(crate) fn validate(&self, list: usize) -> Vec<Slot> {
        let (mut slots, mut older, mut last) = (Vec::new(), NONE, 0);
        let mut at = self.lists[list].oldest;
        while at != NONE {
            assert_eq!(self.nodes[at as usize][OLDER], older, "slot {at} has another neighbour");
            assert_eq!(self.list_of(Slot(at)), Some(list), "slot {at} is stamped for another list");
            assert!(self.stamp(at) > last, "slot {at} is older than its elder");
            last = self.stamp(at);
            slots.push(Slot(at));
            (older, at) = (at, self.nodes[at as usize][YOUNGER]);
        }
        assert_eq!(self.lists[list].youngest, older, "the young end");
        assert_eq!(self.lists[list].len, slots.len() as u64, "the length");
        let cursor = self.lists[list].cursor;
        assert!(cursor == NONE || slots.contains(&Slot(cursor)), "the cursor left the list");
        let front = slots.iter().position(|slot| slot.0 == self.lists[list].front);
        let ahead = front.unwrap_or(slots.len()) as u64;
        assert_eq!(self.lists[list].ahead, ahead, "blocks before the front");
        slots
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
