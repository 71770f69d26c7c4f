//! The index against a plain model, and its protocol steps one by one.

use super::*;
use std::collections::HashMap;

fn key(n: u64) -> Key {
    Key::from_words([n, 77])
}

fn block(directory: &Directory, n: u64, parent: Option<&Entry>, pins: u32) -> Block {
    let parent = parent.map(|p| (p.slot, p.generation));
    let frame = FrameId(n as u32);
    let home = Home::Frame(frame);
    Block { key: key(n), parent, home, len: n as u32, epoch: directory.epoch(), pins }
}

fn stored(commit: Commit) -> Entry {
    match commit {
        Commit::Stored { entry, .. } => entry,
        other => panic!("not stored: {other:?}"),
    }
}

/// Commits under a pinned parent and counts it at once, as the keeper does with an insert event.
fn insert(directory: &Directory, n: u64, parent: Option<&Entry>) -> Entry {
    if let Some(parent) = parent {
        assert!(directory.pin(parent.slot, parent.generation));
    }
    let entry = stored(directory.commit(&block(directory, n, parent, 1)));
    directory.count_child(entry.slot, false, true);
    directory.drop_event_pins(entry.slot);
    entry
}

/// Both halves of an eviction.
fn evict(directory: &Directory, slot: Slot) -> Option<Gone> {
    let Some(Left::Gone(gone)) = directory.evict(slot, Dirty::Leaves) else { return None };
    directory.bury(slot);
    Some(gone)
}

fn sound(directory: &Directory) -> recount::Counted {
    let (count, wrong) = directory.recount();
    assert!(wrong.is_empty(), "{wrong:?}");
    count
}

/// Takes in the wake stack as the keeper does.
fn wake_all(directory: &Directory) -> Vec<Settled> {
    let (mut settled, mut next) = (Vec::new(), directory.take_woken());
    while let Some(slot) = next {
        let (more, waits) = directory.wake_up(slot);
        settled.push(if waits { directory.settle(slot) } else { Settled::Block });
        next = more.or_else(|| directory.take_woken());
    }
    settled
}

#[test]
fn a_committed_block_is_found_until_evicted() {
    let directory = Directory::new(8);
    let entry = insert(&directory, 1, None);
    assert_eq!(directory.find_one(key(1)), Some(entry));
    assert_eq!(directory.located(&entry), Located::Ram(FrameId(1), 1));
    let gone = evict(&directory, entry.slot).expect("a leaf without pins leaves");
    assert_eq!((gone.key, gone.frame), (key(1), Some(FrameId(1))));
    assert_eq!(directory.find_one(key(1)), None);
    assert_eq!(directory.located(&entry), Located::Gone, "another generation");
    assert!(!directory.pin(entry.slot, entry.generation));
    assert_eq!(sound(&directory).blocks, 0);
}

#[test]
fn a_key_is_entered_once() {
    let directory = Directory::new(8);
    let first = insert(&directory, 1, None);
    let again = directory.commit(&block(&directory, 1, None, 1));
    assert!(matches!(again, Commit::Present(entry) if entry == first), "{again:?}");
    assert_eq!(sound(&directory).blocks, 1);
}

#[test]
fn pins_and_children_keep_a_block() {
    let directory = Directory::new(8);
    let head = insert(&directory, 1, None);
    let tail = insert(&directory, 2, Some(&head));
    assert!(
        directory.stays(head.slot, Dirty::Leaves) && evict(&directory, head.slot).is_none(),
        "has a child"
    );
    assert!(directory.pin(tail.slot, tail.generation));
    assert!(
        directory.stays(tail.slot, Dirty::Leaves) && evict(&directory, tail.slot).is_none(),
        "pinned"
    );
    directory.unpin(tail.slot);
    assert_eq!(wake_all(&directory).len(), 1, "the last unpin of a skipped block wakes it");
    assert!(evict(&directory, tail.slot).is_some());
    assert_eq!(wake_all(&directory).len(), 1, "the last child of a skipped block wakes it");
    assert!(!directory.stays(head.slot, Dirty::Leaves) && evict(&directory, head.slot).is_some());
    sound(&directory);
}

#[test]
fn a_removed_block_in_mid_chain_goes_after_its_child() {
    let directory = Directory::new(8);
    let head = insert(&directory, 1, None);
    let middle = insert(&directory, 2, Some(&head));
    let tail = insert(&directory, 3, Some(&middle));
    let removed = directory.remove(key(2)).expect("it is there");
    assert_eq!((removed.slot, removed.len), (middle.slot, 2));
    assert!(directory.remove(key(2)).is_none(), "only once");
    assert_eq!(directory.find_one(key(2)), None);
    assert!(matches!(directory.settle(middle.slot), Settled::Kept));
    let again = insert(&directory, 2, Some(&head));
    assert_ne!(again.slot, middle.slot, "the key is free again at once");
    assert!(evict(&directory, tail.slot).is_some());
    let settled = wake_all(&directory);
    assert!(matches!(settled[0], Settled::Released(Some(FrameId(2)))), "{settled:?}");
    assert_eq!(sound(&directory).blocks, 2);
}

#[test]
fn a_hole_waits_for_its_head_and_goes_with_its_last_child() {
    let directory = Directory::new(8);
    let hole = directory.hole(key(1), directory.epoch()).expect("room for a hole");
    let tail = stored(directory.commit(&block(&directory, 2, Some(&hole), 1)));
    directory.count_child(tail.slot, false, true);
    directory.drop_event_pins(tail.slot);
    assert_eq!(wake_all(&directory).len(), 1, "a hole without pins is looked at");
    let mut run = Vec::new();
    directory.match_run(&[key(1), key(2)], |entry| run.push(entry));
    assert!(run.is_empty(), "a match stops at a hole");
    let refill = directory.commit(&block(&directory, 1, None, 1));
    assert!(matches!(refill, Commit::Stored { refilled: true, entry } if entry.slot == hole.slot));
    directory.count_child(hole.slot, true, true);
    directory.drop_event_pins(hole.slot);
    directory.match_run(&[key(1), key(2)], |entry| run.push(entry));
    let linked: Vec<_> = pieces(&run).map(|piece| piece.len()).collect();
    assert_eq!(linked, [2], "one chain");
    assert!(directory.stays(hole.slot, Dirty::Leaves));
    assert_eq!(sound(&directory).holes, 0);
    assert!(evict(&directory, tail.slot).is_some() && evict(&directory, hole.slot).is_none());
    wake_all(&directory);
    assert!(evict(&directory, hole.slot).is_some());
    sound(&directory);
}

#[test]
fn an_unused_hole_is_released_and_their_number_is_bounded() {
    let directory = Directory::new(16);
    let hole = |n| directory.hole(key(n), directory.epoch());
    let first = hole(0).expect("an eighth of 16 frames: two holes");
    assert_eq!(hole(0), Some(first), "the same, pinned again");
    let second = hole(1).expect("the second");
    assert_eq!(hole(2), None);
    for slot in [first.slot, first.slot, second.slot] {
        directory.unpin(slot);
    }
    assert_eq!(wake_all(&directory).len(), 2);
    assert_eq!((directory.holes(), sound(&directory).holes), (0, 0));
}

#[test]
fn only_one_of_two_puts_refills_a_hole() {
    let directory = Directory::new(8);
    let hole = directory.hole(key(1), directory.epoch()).expect("room for a hole");
    let header = directory.header(hole.slot);
    assert!(header.update(|s| Some(s.hold())).is_ok(), "another put is at it");
    let refill = directory.commit(&block(&directory, 1, None, 1));
    assert!(matches!(refill, Commit::Present(_)), "{refill:?}");
    assert_eq!(header.state().pins(), 1, "no pin is left behind");
}

#[test]
fn a_clear_hides_all_and_a_put_in_flight() {
    let directory = Directory::new(8);
    let old = insert(&directory, 1, None);
    let in_flight = block(&directory, 2, None, 1);
    directory.next_epoch();
    assert_eq!(directory.find_one(key(1)), None);
    assert!(matches!(directory.commit(&in_flight), Commit::Stale));
    let new = insert(&directory, 1, None);
    assert_ne!(new.slot, old.slot);
    assert_eq!(directory.find_one(key(1)), Some(new), "the stale entry was unlinked");
    assert!(directory.hide_stale(new.slot).is_none());
    assert_eq!(directory.hide_stale(old.slot).map(|r| r.len), Some(1));
    assert!(matches!(directory.settle(old.slot), Settled::Released(Some(FrameId(1)))));
    assert_eq!(sound(&directory).blocks, 1);
}

#[test]
fn a_bin_takes_21_keys_and_says_when_full() {
    let directory = Directory::with_headers(64, 1, [1, 2]);
    let home = directory.bins.place(key(0).words());
    let same = |n: &u64| directory.bins.same_bin(directory.bins.place(key(*n).words()), home);
    let colliding: Vec<u64> = (0..).filter(same).take(23).collect();
    let mut entries: Vec<Entry> = Vec::new();
    for n in &colliding[..21] {
        entries.push(stored(directory.commit(&block(&directory, *n, None, 0))));
    }
    let more = directory.commit(&block(&directory, colliding[21], None, 0));
    assert!(matches!(more, Commit::Full), "{more:?}");
    for (n, entry) in colliding.iter().zip(&entries) {
        assert_eq!(directory.find_one(key(*n)), Some(*entry));
    }
    for entry in entries.iter().rev() {
        assert!(evict(&directory, entry.slot).is_some());
    }
    assert_eq!(directory.bins.units_in_use(), 0, "an empty unit goes back");
    sound(&directory);
}

#[test]
fn the_index_equals_a_map_over_random_histories() {
    let mut random = 1_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    let directory = Directory::new(300);
    let mut map: HashMap<u64, Entry> = HashMap::new();
    for step in 0..40_000 {
        let n = next(400);
        match (map.get(&n).copied(), next(3)) {
            (None, 0..2) if map.len() < 300 => {
                map.insert(n, insert(&directory, n, None));
            }
            (Some(entry), 0) => {
                assert!(evict(&directory, entry.slot).is_some());
                map.remove(&n);
            }
            (Some(_), 1) => {
                let removed = directory.remove(key(n)).expect("the map has it");
                directory.settle(removed.slot);
                map.remove(&n);
            }
            _ => assert_eq!(directory.find_one(key(n)), map.get(&n).copied(), "step {step}"),
        }
    }
    let keys: Vec<Key> = (0..400).map(key).collect();
    let mut found = Vec::new();
    assert_eq!(directory.find(&keys, &mut found), 0, "nobody else writes: every miss is certain");
    let expected: Vec<_> = (0..400).map(|n| map.get(&n).copied()).collect();
    assert_eq!(found, expected);
    sound(&directory);
}

#[test]
fn a_full_pin_count_refuses_the_next_pin() {
    let directory = Directory::new(8);
    let entry = insert(&directory, 1, None);
    let header = directory.header(entry.slot);
    let most = (1 << 20) - 1;
    assert!(header.update(|s| s.pinned(most)).is_ok());
    assert!(!directory.pin(entry.slot, entry.generation));
    directory.unpin(entry.slot);
    assert!(directory.pin(entry.slot, entry.generation));
}

#[test]
fn a_length_is_told_for_the_block_that_was_found_only() {
    let directory = Directory::new(8);
    let short = insert(&directory, 1, None);
    assert_eq!(directory.len_of(&short), Some(1));
    assert!(evict(&directory, short.slot).is_some());
    assert_eq!(directory.len_of(&short), None, "gone");
    let long = insert(&directory, 7, None);
    assert_eq!(long.slot, short.slot, "the header is used again");
    assert_eq!((directory.len_of(&short), directory.len_of(&long)), (None, Some(7)));
}
