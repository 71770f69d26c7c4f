//! The index against a plain list of slots.

use super::*;
use std::collections::HashMap;

/// A small generator with good bits (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

fn key(number: u64) -> Key {
    Key::from_words([number, 0])
}

fn line(number: u64, generation: u64) -> Known {
    let flags = u32::from(Record::LIVE);
    Known { key: key(number), generation, len: number as u32, flags, ..Known::NONE }
}

#[test]
fn it_finds_the_newest_of_what_stands_in_the_slots() {
    const SLOTS: u32 = 5 * RECORDS_A_PAGE as u32 - 3;
    let mut random = Random(3);
    let mut index = Index::new(SLOTS);
    let mut slots: Vec<Option<(u64, u64)>> = vec![None; SLOTS as usize];
    for generation in 1..6_000_u64 {
        let page = random.below(5) as u32;
        let first = page as usize * RECORDS_A_PAGE;
        let end = (first + RECORDS_A_PAGE).min(SLOTS as usize);
        for slot in &mut slots[first..end] {
            match random.below(16) {
                // Few keys: most of them stand in several slots.
                0 => *slot = Some((random.below(60), generation * 64 + random.below(60))),
                1 => *slot = None,
                _ => {}
            }
        }
        let lines = slots[first..end].iter().map(|it| it.map_or(Known::NONE, |(k, g)| line(k, g)));
        let lines: Vec<Known> = lines.collect();
        index.take_in(page, generation, generation, &lines);
        let mut newest: HashMap<u64, u64> = HashMap::new();
        for (number, generation) in slots.iter().flatten() {
            let of = newest.entry(*number).or_default();
            *of = (*generation).max(*of);
        }
        for number in 0..60 {
            let found = index.find(&key(number));
            let of = newest.get(&number).copied();
            assert_eq!(found.map(|(_, line)| line.generation), of, "{number} at {generation}");
            if let Some((slot, line)) = found {
                assert_eq!(slots[slot as usize], Some((number, line.generation)));
                assert_eq!(index.generation_in(slot), of);
            }
        }
        assert_eq!(index.blocks(), slots.iter().flatten().count() as u64);
    }
}

#[test]
fn an_older_reading_of_a_page_changes_nothing() {
    let mut index = Index::new(10);
    index.take_in(0, 7, 100, &[line(1, 5)]);
    index.take_in(0, 6, 200, &[line(1, 4), line(2, 3)]);
    assert_eq!(index.find(&key(1)).map(|(slot, it)| (slot, it.generation)), Some((0, 5)));
    assert!(index.find(&key(2)).is_none());
    assert_eq!(index.known_until_us(0), 100, "what was read later was older");
    index.take_in(0, 7, 300, &[line(1, 5)]);
    assert_eq!(index.known_until_us(0), 300);
    index.take_in(0, 8, 400, &[Known::NONE]);
    assert!(index.find(&key(1)).is_none() && index.generation_in(0).is_none());
}

#[test]
fn what_a_page_says_holds_as_long_as_the_owner_has_told_of_every_change() {
    let mut index = Index::new(100);
    index.take_in(0, 1, 100, &[]);
    index.take_in(1, 1, 300, &[]);
    assert_eq!([index.known_until_us(0), index.known_until_us(1)], [100, 300], "nobody tells");
    (index.hinted_since_us, index.as_of_us) = (200, 900);
    assert_eq!([index.known_until_us(0), index.known_until_us(1)], [100, 900]);
    index.distrust(1);
    assert_eq!(index.known_until_us(1), 0);
}

#[test]
fn cleared_and_insane_records_are_none() {
    let generation = crate::ssd::format::generation(4, 1);
    let record =
        Record { key: key(1), generation, len: 5, stored_len: 5, flags: 1, ..Record::FREE };
    assert!(!Known::of(&record, 5, 3).is_none());
    assert!(Known::of(&record, 5, 4).is_none() && Known::of(&record, 4, 3).is_none());
    assert!(Known::of(&Record { flags: 9, ..record }, 5, 3).is_none());
    assert!(Known::of(&Record::FREE, 5, 0).is_none());
}
