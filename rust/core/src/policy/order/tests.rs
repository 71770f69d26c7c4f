//! Cursor and heap against a scan of the whole order, and what a victim costs at worst.

use crate::policy::{Arc, Lru, Policy, Residents, Search};
use crate::units::Slot;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

/// Blocks with one parent each, pins, and the marks that the store keeps in its headers.
struct World {
    parent: RefCell<Vec<Option<u32>>>,
    kids: RefCell<Vec<u32>>,
    pinned: RefCell<HashSet<u32>>,
    marked: RefCell<HashSet<u32>>,
    asked: Cell<u64>,
}

impl World {
    fn new(slots: usize) -> Self {
        Self {
            parent: RefCell::new(vec![None; slots]),
            kids: RefCell::new(vec![0; slots]),
            pinned: RefCell::default(),
            marked: RefCell::default(),
            asked: Cell::new(0),
        }
    }

    fn can_leave(&self, slot: u32) -> bool {
        self.kids.borrow()[slot as usize] == 0 && !self.pinned.borrow().contains(&slot)
    }

    fn born(&self, slot: u32, parent: Option<u32>) {
        self.parent.borrow_mut()[slot as usize] = parent;
        if let Some(parent) = parent {
            self.kids.borrow_mut()[parent as usize] += 1;
        }
    }

    /// Its parent may be able to leave now.
    fn gone(&self, slot: u32, policy: &mut dyn Policy) {
        self.marked.borrow_mut().remove(&slot);
        if let Some(parent) = self.parent.borrow_mut()[slot as usize].take() {
            self.kids.borrow_mut()[parent as usize] -= 1;
            self.wake(parent, policy);
        }
    }

    fn unpin(&self, slot: u32, policy: &mut dyn Policy) {
        self.pinned.borrow_mut().remove(&slot);
        self.wake(slot, policy);
    }

    fn wake(&self, slot: u32, policy: &mut dyn Policy) {
        if self.can_leave(slot) && self.marked.borrow_mut().remove(&slot) {
            policy.wake(Slot(slot));
        }
    }
}

impl Residents for World {
    fn stays(&self, slot: Slot) -> bool {
        self.asked.set(self.asked.get() + 1);
        let stays = !self.can_leave(slot.0);
        if stays {
            self.marked.borrow_mut().insert(slot.0);
        }
        stays
    }
}

fn key(slot: u32) -> [u64; 2] {
    [u64::from(slot), 0]
}

/// The next victim, in as many holds of `budget` as it takes; how many.
fn victim(policy: &mut dyn Policy, world: &World, budget: u32) -> (Option<u32>, u32) {
    let mut holds = 1;
    loop {
        let mut left = budget;
        match policy.victim(None, world, &mut left) {
            Search::Victim(slot) => return (Some(slot.0), holds),
            Search::Nothing => return (None, holds),
            Search::Again => holds += 1,
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// Chains grown block by block to thousands, many blocks pinned, evictions between: the victim is
/// always the one that a scan finds, at a bounded number of steps.
#[test]
fn the_victim_is_the_one_a_scan_finds_on_chains_of_ten_thousand() {
    const SLOTS: u32 = 30_000;
    let (world, mut random) = (World::new(SLOTS as usize), Random(11));
    let mut lru = Lru::new(SLOTS);
    let (mut tips, mut evictions) = (vec![None; 3], 0);
    for slot in 0..SLOTS {
        let chain = random.below(3) as usize;
        world.born(slot, tips[chain]);
        lru.insert(Slot(slot), key(slot), 0, &world);
        tips[chain] = Some(slot);
        if slot % 5 == 0 {
            world.pinned.borrow_mut().insert(slot);
        }
        if slot % 7 == 0 {
            world.unpin(random.below(u64::from(slot) + 1) as u32, &mut lru);
        }
        if slot % 1_000 == 999 {
            // A chain ends: its blocks can go from the tail up.
            tips[chain] = None;
            for _ in 0..40 {
                let order = lru.validate();
                let expected = order.iter().map(|s| s.0).find(|s| world.can_leave(*s));
                let (found, _) = victim(&mut lru, &world, u32::MAX);
                assert_eq!(found, expected, "after {slot} inserts");
                let Some(found) = found else { break };
                lru.leave(Slot(found), key(found), None);
                world.gone(found, &mut lru);
                tips.iter_mut().for_each(|tip| *tip = tip.filter(|t| *t != found));
                evictions += 1;
            }
        }
    }
    assert!(evictions > 500, "{evictions}");
    let steps = world.asked.get();
    assert!(steps < 4 * u64::from(SLOTS) + 4 * evictions, "{steps} steps");
}

/// Every block but the last is a head with a child on the other list: the victim lies behind tens
/// of thousands that stay. Inserts have moved the cursor ahead; one search crosses only the
/// youngest, in holds of 128.
#[test]
fn one_arc_victim_behind_tens_of_thousands_of_heads_is_found_in_bounded_holds() {
    const HEADS: u32 = 40_000;
    let world = World::new(2 * HEADS as usize + 1);
    let mut arc = Arc::new(2 * HEADS + 1, 2 * HEADS + 1, false);
    for head in 0..HEADS {
        world.born(head, None);
        arc.insert(Slot(head), key(head), 0, &world);
    }
    // Children, touched into the other list: none of them may leave either (pinned).
    for child in HEADS..2 * HEADS {
        world.born(child, Some(child - HEADS));
        world.pinned.borrow_mut().insert(child);
        arc.insert(Slot(child), key(child), 0, &world);
        arc.touch(Slot(child), &world);
    }
    world.born(2 * HEADS, None);
    arc.insert(Slot(2 * HEADS), key(2 * HEADS), 0, &world);
    let (found, holds) = victim(&mut arc, &world, 128);
    assert_eq!(found, Some(2 * HEADS));
    assert!(holds < 12, "{holds} holds of 128 blocks");
    let (again, holds) = victim(&mut arc, &world, 128);
    assert_eq!((again, holds), (Some(2 * HEADS), 1), "what was passed is not passed again");
}

/// The same without any insert since: the search is resumed, hold after hold, and ends.
#[test]
fn a_search_over_a_long_list_goes_on_across_holds() {
    const SLOTS: u32 = 20_000;
    let world = World::new(SLOTS as usize);
    let mut lru = Lru::new(SLOTS);
    for slot in 0..SLOTS {
        world.born(slot, None);
        lru.insert(Slot(slot), key(slot), 0, &world);
    }
    world.pinned.borrow_mut().extend(0..SLOTS - 1);
    let (found, holds) = victim(&mut lru, &world, 128);
    assert_eq!(found, Some(SLOTS - 1));
    assert_eq!(holds, SLOTS / 128 + 1);
    for slot in (0..SLOTS - 1).rev() {
        world.unpin(slot, &mut lru);
    }
    for slot in 0..SLOTS {
        assert_eq!(victim(&mut lru, &world, 128), (Some(slot), 1));
        lru.leave(Slot(slot), key(slot), None);
    }
}
