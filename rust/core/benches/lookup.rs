//! Batched lookups in the index against the standard library's hash map under one read lock a
//! batch.
//!
//! Run by `benches/run.py`, or alone: `cargo bench -p keystow-core --bench lookup`. Prints one
//! JSON object a line: name, our rates and the rival's in keys a second, round by round. Both
//! answer the same question, the length of the leading run of present keys, for the same batches
//! of 8,192 random keys; they take turns in every round.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::RwLock;
use std::time::Instant;

use keystow_core::bench::{FollowedIndex, Index};
use keystow_core::key::Key;

const BATCH: usize = 8192;

/// A small generator with good bits (splitmix64); the seed is fixed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn key(&mut self) -> Key {
        Key::from_words([self.next(), self.next()])
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// How large a run is.
struct Size {
    entries: usize,
    batches: usize,
    rounds: usize,
}

fn rate(batches: &[Vec<Key>], find: impl Fn(&[Key]) -> usize) -> f64 {
    let start = Instant::now();
    for batch in batches {
        let found = find(black_box(batch));
        assert_eq!(found, batch.len(), "every key asked is present");
    }
    (batches.len() * BATCH) as f64 / start.elapsed().as_secs_f64()
}

fn compare(size: &Size) {
    let mut random = Random(5);
    let keys: Vec<Key> = (0..size.entries).map(|_| random.key()).collect();
    let batches: Vec<Vec<Key>> = (0..size.batches)
        .map(|_| (0..BATCH).map(|_| keys[random.below(keys.len())]).collect())
        .collect();
    let index = Index::filled(&keys);
    let map: HashMap<[u8; 16], u32> = keys.iter().zip(0..).map(|(key, n)| (key.0, n)).collect();
    let map = RwLock::new(map);
    drop(keys);
    let ours = |batch: &[Key]| index.match_prefix(batch);
    let rival = |batch: &[Key]| {
        let map = map.read().expect("no writer, no panic");
        // The value is read, as whoever wants the block would.
        let found = batch.iter().map_while(|key| map.get(&key.0).map(|&n| u64::from(n)));
        let (mut run, mut sum) = (0, 0);
        found.for_each(|n| (run, sum) = (run + 1, sum + n));
        black_box(sum);
        run
    };
    let (mut our_rates, mut rival_rates) = (Vec::new(), Vec::new());
    for round in 0..=size.rounds {
        let turn = [rate(&batches, ours), rate(&batches, rival)];
        if round > 0 {
            our_rates.push(turn[0]);
            rival_rates.push(turn[1]);
        }
    }
    println!(
        "{{\"name\": \"match_prefix from Rust, {} M entries\", \"ours\": {our_rates:?}, \
         \"rival\": {rival_rates:?}, \"rival_name\": \"HashMap under RwLock\"}}",
        size.entries as f64 / 1e6
    );
}

/// A key of a followed directory beside one of one's own: this index costs at most twice as much.
fn compare_followed(size: &Size) {
    let mut random = Random(6);
    let keys: Vec<Key> = (0..size.entries).map(|_| random.key()).collect();
    let batches: Vec<Vec<Key>> = (0..size.batches)
        .map(|_| (0..BATCH).map(|_| keys[random.below(keys.len())]).collect())
        .collect();
    let (own, followed) = (Index::filled(&keys), FollowedIndex::filled(&keys));
    drop(keys);
    let (mut our_rates, mut own_rates) = (Vec::new(), Vec::new());
    for round in 0..=size.rounds {
        let turn = [
            rate(&batches, |batch| followed.match_prefix(batch)),
            rate(&batches, |batch| own.match_prefix(batch)),
        ];
        if round > 0 {
            our_rates.push(turn[0]);
            own_rates.push(turn[1]);
        }
    }
    println!(
        "{{\"name\": \"lookup in a followed directory, {} M entries\", \"ours\": {our_rates:?}, \
         \"rival\": {own_rates:?}, \"rival_name\": \"one's own index\"}}",
        size.entries as f64 / 1e6
    );
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (sizes, batches, rounds) =
        if quick { ([10_000, 20_000], 2, 2) } else { ([1_000_000, 10_000_000], 64, 9) };
    for entries in sizes {
        compare(&Size { entries, batches, rounds });
        compare_followed(&Size { entries, batches, rounds });
    }
}
