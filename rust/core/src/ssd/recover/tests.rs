//! Tests of recovery: against a plain reference, on chains too long to recurse, on circles.

use super::super::format::generation;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const BLOCK_BYTES: u32 = 4096;

fn key(name: u32) -> Key {
    Key::from_words([u64::from(name).wrapping_mul(0x9E37_79B9_7F4A_7C15), 1])
}

fn record(name: u32, parent: Option<u32>, generation: u64) -> Record {
    let mut record = Record { key: key(name), generation, flags: Record::LIVE, ..Record::FREE };
    if let Some(parent) = parent {
        record.parent = key(parent);
        record.flags |= Record::HAS_PARENT;
    }
    record
}

fn numbered(records: &[Record]) -> impl Iterator<Item = (SsdSlot, Record)> {
    records.iter().enumerate().map(|(slot, record)| (SsdSlot(slot as u32), *record))
}

fn slots(slots: &[u32]) -> Vec<SsdSlot> {
    slots.iter().copied().map(SsdSlot).collect()
}

#[test]
fn a_chain_comes_back_with_its_head_first() {
    let now = generation(5, 1);
    let chain = [record(3, Some(2), now), record(1, None, now), record(2, Some(1), now)];
    let plan = plan(numbered(&chain), 4, BLOCK_BYTES);
    let names: Vec<_> = plan.blocks.iter().map(|block| (block.key, block.parent)).collect();
    let expected =
        [(key(1), None), (key(2), Some(Parent::Block(0))), (key(3), Some(Parent::Block(1)))];
    assert_eq!(names, expected);
    assert_eq!(plan.by_age, [2, 1, 0], "of one age, the tail leaves first");
    assert_eq!(plan.blank, []);
    assert_eq!(plan.counts, Counts { live: 3, ..Counts::default() });
    assert_eq!(plan.epoch_max, 5);
}

#[test]
fn what_does_not_count_is_blanked() {
    let records = [
        record(1, None, generation(3, 9)),
        record(2, None, generation(4, 0)),
        Record { codec: 7, ..record(3, None, generation(90, 0)) },
        Record::FREE,
        record(2, Some(8), generation(4, 1)),
        Record { stored_len: 1, ..record(4, None, generation(4, 0)) },
    ];
    let plan = plan(numbered(&records), 3, BLOCK_BYTES);
    let counts =
        Counts { live: 1, stale: 1, insane: 2, losers: 1, orphans: 1, ..Counts::default() };
    assert_eq!(plan.counts, counts);
    assert_eq!(plan.blocks[0].slot, SsdSlot(4));
    assert_eq!(plan.blocks[0].parent, Some(Parent::Missing(key(8))));
    let mut blank = plan.blank.clone();
    blank.sort_unstable();
    assert_eq!(blank, slots(&[0, 1, 2, 5]));
    assert_eq!(plan.epoch_max, 4, "an insane record says nothing about epochs");
}

#[test]
fn a_circle_is_cut_above_its_oldest_block_and_nothing_is_lost() {
    let parents = [(1, 3), (2, 1), (3, 2), (4, 3), (5, 4), (6, 6), (7, 6)];
    let born = |name: u32| generation(1, u64::from(10 - name));
    let records: Vec<Record> =
        parents.iter().map(|&(name, parent)| record(name, Some(parent), born(name))).collect();
    for turn in 0..records.len() {
        let mut turned = records.clone();
        turned.rotate_left(turn);
        let plan = plan(numbered(&turned), 0, BLOCK_BYTES);
        assert_eq!((plan.counts.cycles, plan.counts.live, plan.counts.orphans), (2, 7, 0));
        let parent_of = |name| {
            let block = plan.blocks.iter().find(|block| block.key == key(name));
            match block.expect("it stays").parent {
                Some(Parent::Block(at)) => Some(plan.blocks[at as usize].key),
                _ => None,
            }
        };
        let links = [(1, Some(3)), (2, Some(1)), (3, None), (4, Some(3)), (6, None), (7, Some(6))];
        for (name, parent) in links {
            assert_eq!(parent_of(name), parent.map(key), "block {name}");
        }
        assert!(plan.blank.is_empty());
    }
}

#[test]
fn a_lost_parent_of_a_winner_is_not_replaced_by_the_losers_one() {
    let records = [
        record(1, None, generation(1, 1)),
        record(2, Some(1), generation(1, 2)),
        record(2, None, generation(1, 3)),
    ];
    let plan = plan(numbered(&records), 0, BLOCK_BYTES);
    assert!(plan.blocks.iter().all(|block| block.parent.is_none()));
    assert_eq!(plan.blank, slots(&[1]));
}

#[test]
fn age_is_last_use_then_hits_then_depth() {
    let now = generation(1, 1);
    let old = Record { last_use: 2, hits: 255, ..record(1, None, now) };
    let idle = Record { last_use: 3, hits: 0, ..record(2, Some(1), now) };
    let busy = Record { last_use: 3, hits: 3, ..record(3, Some(2), now) };
    let busy_head = Record { last_use: 3, hits: 3, ..record(4, None, now) };
    let plan = plan(numbered(&[busy_head, busy, idle, old]), 0, BLOCK_BYTES);
    let ages: Vec<Key> = plan.by_age.iter().map(|at| plan.blocks[*at as usize].key).collect();
    assert_eq!(ages, [1, 2, 3, 4].map(key));
}

#[test]
fn nothing_comes_of_nothing() {
    let plan = plan(std::iter::empty(), 7, BLOCK_BYTES);
    assert!(plan.blocks.is_empty() && plan.by_age.is_empty() && plan.blank.is_empty());
    assert_eq!((plan.counts, plan.epoch_max), (Counts::default(), 0));
}

#[test]
fn long_chains_and_circles_need_no_stack() {
    const LONG: u32 = 300_000;
    let now = generation(1, 1);
    let chain: Vec<Record> =
        (0..LONG).rev().map(|name| record(name, name.checked_sub(1), now)).collect();
    let straight = plan(numbered(&chain), 0, BLOCK_BYTES);
    assert_eq!((straight.counts.live, straight.counts.orphans), (LONG, 0));
    assert_eq!(straight.blocks[LONG as usize - 1].key, key(LONG - 1));
    let mut circle = chain;
    circle[LONG as usize - 1] = record(0, Some(LONG - 2), now);
    let round = plan(numbered(&circle), 0, BLOCK_BYTES);
    assert_eq!((round.counts.cycles, round.counts.live), (1, LONG));
    assert_eq!(round.blocks[0].parent, None);
}

/// Sorts records out in steps of so many; also how many steps that took.
fn in_steps(records: &[Record], clear_epoch: u32, most: usize) -> (Plan, usize) {
    let mut sorter = Sorter::new(records.len(), vec![(SsdSlot(0), clear_epoch)], BLOCK_BYTES);
    let (mut steps, mut before) = (0, (0, records.len() as u64));
    loop {
        steps += 1;
        let told = sorter.told();
        let done = sorter.step(numbered(records).skip(told), most);
        let now = sorter.progress();
        assert!(before.0 <= now.0 && now.0 <= now.1 && now.1 == before.1, "{before:?} {now:?}");
        before = now;
        if done {
            assert_eq!(now.0, now.1);
            return (sorter.finish(), steps);
        }
    }
}

fn same(one: &Plan, other: &Plan) -> bool {
    (&one.blocks, &one.by_age, &one.blank) == (&other.blocks, &other.by_age, &other.blank)
        && (one.counts, one.epoch_max) == (other.counts, other.epoch_max)
}

/// By the number of steps: none did more than its share, on a chain as long as the table that is
/// met from its end, and on a circle of everything.
#[test]
fn a_step_does_no_more_than_it_may() {
    const LONG: u32 = 5000;
    const MOST: usize = 64;
    let born = |name: u32| generation(1, u64::from(LONG - name));
    let mut records: Vec<Record> =
        (0..LONG).rev().map(|name| record(name, name.checked_sub(1), born(name))).collect();
    let looks = |stage: usize| stage.div_ceil(MOST);
    let once = LONG as usize;
    // Candidates, winners, links; start, up and down; blocks; two digits of the depth, the end.
    let least = |chains| 7 * looks(once) + looks(chains);
    let least_steps = least(3 * once);
    let (straight, steps) = in_steps(&records, 0, MOST);
    assert!(steps >= least_steps, "{steps} steps, {least_steps} at least");
    assert!(same(&straight, &plan(numbered(&records), 0, BLOCK_BYTES)));
    // The youngest closes a circle: around it, all but the oldest given up, and up once more.
    records[once - 1] = record(0, Some(LONG - 1), born(0));
    let (round, steps) = in_steps(&records, 0, MOST);
    assert_eq!((round.counts.cycles, round.counts.live), (1, LONG));
    let least_steps = least(6 * once - 3);
    assert!(steps >= least_steps, "{steps} steps, {least_steps} at least");
    assert!(same(&round, &plan(numbered(&records), 0, BLOCK_BYTES)));
}

#[test]
fn keys_of_one_hash_are_told_apart() {
    let records: Vec<Record> = (0..50).map(|name| record(name, None, generation(1, 1))).collect();
    let mut sorter = Sorter::new(records.len(), Vec::new(), BLOCK_BYTES);
    sorter.step(numbered(&records), usize::MAX);
    let found = &sorter.found;
    let mut index = Index::new(found.len());
    // The second word of all these keys: every product is 0.
    index.secret[1] = 1;
    for (number, block) in found.iter().enumerate() {
        let (at, cell) = index.cell(found, &block.key);
        assert_eq!((at, candidate(cell)), (number, NONE));
        index.cells[at] = cell | (number as u64 + 1);
    }
    for (number, block) in found.iter().enumerate() {
        assert_eq!(candidate(index.cell(found, &block.key).1), number as u32);
    }
    assert_eq!(candidate(index.cell(found, &key(50)).1), NONE);
}

/// What the module says, as one would first write it.
struct Naive {
    winners: BTreeMap<[u64; 2], (SsdSlot, Record)>,
    circles: BTreeSet<BTreeSet<[u64; 2]>>,
    blank: BTreeSet<SsdSlot>,
}

fn naive(records: &[Record], clear_epoch: u32) -> Naive {
    let mut winners: BTreeMap<[u64; 2], (SsdSlot, Record)> = BTreeMap::new();
    let mut blank = BTreeSet::new();
    for (slot, record) in numbered(records).filter(|(_, record)| !record.is_free()) {
        blank.insert(slot);
        if !record.is_sane(BLOCK_BYTES) || epoch_of(record.generation) <= clear_epoch {
            continue;
        }
        let held = winners.entry(record.key.words()).or_insert((slot, record));
        if record.generation > held.1.generation {
            *held = (slot, record);
        }
    }
    let circle_of = |start: &Record| {
        let mut at = *start;
        let mut circle = BTreeSet::from([start.key.words()]);
        for _ in 0..=winners.len() {
            let (_, above) = winners.get(&at.parent()?.words())?;
            if above.key == start.key {
                return Some(circle);
            }
            circle.insert(above.key.words());
            at = *above;
        }
        None
    };
    let circles: BTreeSet<BTreeSet<[u64; 2]>> =
        winners.values().filter_map(|(_, record)| circle_of(record)).collect();
    for (slot, _) in winners.values() {
        blank.remove(slot);
    }
    Naive { winners, circles, blank }
}

fn depth_of(plan: &Plan, at: usize) -> u32 {
    match plan.blocks[at].parent {
        Some(Parent::Block(parent)) => depth_of(plan, parent as usize) + 1,
        _ => 0,
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    let links = (0..9_u32, proptest::option::of(0..9_u32));
    let generation = (1..4_u32, 0..3_u64).prop_map(|(epoch, counter)| generation(epoch, counter));
    let uses = (0..4_u32, prop_oneof![0..2_u8, 254..=255_u8]);
    let damage = prop_oneof![12 => Just(0_u8), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    (links, generation, uses, damage).prop_map(|(links, generation, uses, damage)| {
        let mut record = record(links.0, links.1, generation);
        (record.last_use, record.hits) = uses;
        match damage {
            1 => return Record::FREE,
            2 => record.flags ^= Record::LIVE,
            3 => (record.len, record.stored_len) = (BLOCK_BYTES + 1, BLOCK_BYTES + 1),
            _ => {}
        }
        record
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn a_plan_is_what_the_reference_says(
        records in proptest::collection::vec(any_record(), 0..14), clear_epoch in 0..3_u32,
    ) {
        let plan = plan(numbered(&records), clear_epoch, BLOCK_BYTES);
        let naive = naive(&records, clear_epoch);
        let blank: BTreeSet<SsdSlot> = plan.blank.iter().copied().collect();
        prop_assert_eq!(blank.len(), plan.blank.len(), "each slot once");
        prop_assert_eq!(&blank, &naive.blank);
        prop_assert_eq!(plan.blocks.len(), naive.winners.len());
        prop_assert_eq!(plan.counts.live as usize, naive.winners.len());
        prop_assert_eq!(plan.counts.cycles as usize, naive.circles.len());
        let Counts { live, stale, insane, losers, .. } = plan.counts;
        let taken = records.iter().filter(|record| !record.is_free()).count();
        prop_assert_eq!((live + stale + insane + losers) as usize, taken);
        let (mut orphans, mut cut) = (0, BTreeSet::new());
        for (at, block) in plan.blocks.iter().enumerate() {
            let (slot, record) = naive.winners[&block.key.words()];
            prop_assert_eq!((block.slot, block.len), (slot, record.len));
            prop_assert_eq!(block.generation, record.generation);
            prop_assert_eq!((block.last_use, block.hits), (record.last_use, record.hits));
            match block.parent {
                None if record.parent().is_some() => {
                    let of = |words: &[u64; 2]| naive.winners[words].1.generation;
                    let circle = naive.circles.iter().find(|c| c.contains(&block.key.words()));
                    let circle = circle.expect("only circles are cut");
                    prop_assert!(circle.iter().all(|words| of(words) >= block.generation));
                    prop_assert!(cut.insert(circle), "once");
                }
                None => {}
                Some(Parent::Block(parent)) => {
                    prop_assert!((parent as usize) < at);
                    prop_assert_eq!(Some(plan.blocks[parent as usize].key), record.parent());
                }
                Some(Parent::Missing(key)) => {
                    orphans += 1;
                    prop_assert_eq!(Some(key), record.parent());
                    prop_assert!(!naive.winners.contains_key(&key.words()));
                }
            }
        }
        prop_assert_eq!(plan.counts.orphans, orphans);
        prop_assert_eq!(cut.len(), naive.circles.len());
        let mut ages = plan.by_age.clone();
        let age = |at: &u32| {
            let block = &plan.blocks[*at as usize];
            (block.last_use, block.hits, !depth_of(&plan, *at as usize), *at)
        };
        prop_assert!(ages.is_sorted_by_key(age));
        ages.sort_unstable();
        prop_assert_eq!(ages, (0..live).collect::<Vec<_>>());
    }

    /// The plan is the same, however small the pieces are in which it is made.
    #[test]
    fn pieces_of_any_size_make_the_same_plan(
        records in proptest::collection::vec(any_record(), 0..40), clear_epoch in 0..3_u32,
    ) {
        let whole = plan(numbered(&records), clear_epoch, BLOCK_BYTES);
        for most in [1, 2, 7, 1000, usize::MAX] {
            let (pieces, _) = in_steps(&records, clear_epoch, most);
            prop_assert!(same(&pieces, &whole), "{most}: {pieces:?} {whole:?}");
        }
    }

    /// Bytes of any kind make a plan that accounts for each of them.
    #[test]
    fn any_bytes_make_a_plan(
        bytes in proptest::collection::vec(any::<[u8; 96]>(), 0..40),
        flags in 0..4_u8, clear_epoch: u32, block_bytes: u32,
    ) {
        let tamed = |bytes: &[u8; 96]| {
            let mut record = Record::decode(bytes);
            (record.pool, record.codec, record.flags) = (0, 0, flags);
            record.stored_len = record.len;
            record
        };
        let records: Vec<Record> = bytes.iter().map(tamed).collect();
        let plan = plan(numbered(&records), clear_epoch >> 8, block_bytes);
        prop_assert_eq!(plan.blocks.len() + plan.blank.len(), records.len());
    }
}
