//! Eviction and insert in a full cache, and touches: the store beside other caches.
//!
//! Run by `benches/run.py`, or alone from the root: `cargo run --release --locked --manifest-path
//! benches/rivals/Cargo.toml --target-dir target/rivals`. Prints one JSON object a line: a cache's
//! rates in blocks a second, round by round, then the touches of the store. One thread; all caches
//! take turns in every round, each round starting with another one. Each round gives each cache
//! fresh random keys in batches of 64, generated before the clock starts.

mod caches;

use std::time::Instant;

use caches::{Cache, Ours};
use keystow_core::key::Key;
use keystow_core::store::{LOCK_BLOCKS_MAX, PolicyKind};

const BATCH: usize = 64;
const TOUCHED: usize = 8192;
const POLICIES: [PolicyKind; 2] = [PolicyKind::Lru, PolicyKind::Arc];

/// How large a run is.
struct Size {
    entries: usize,
    rounds: usize,
    batches: usize,
}

/// Keys as random as hashes (splitmix64); the seed is fixed.
struct Keys(u64);

impl Keys {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn take(&mut self, count: usize) -> Vec<Key> {
        (0..count).map(|_| Key::from_words([self.word(), self.word()])).collect()
    }
}

/// A cache in the contest.
struct Contestant<'a> {
    cache: &'a dyn Cache,
    rates: Vec<f64>,
    /// The keys of the last round.
    last: Vec<Key>,
}

impl<'a> Contestant<'a> {
    /// Fills the cache twice over, so that its ghosts are in their steady state too.
    fn full(cache: &'a dyn Cache, size: &Size, keys: &mut Keys) -> Self {
        for _ in 0..2 * size.entries / BATCH {
            cache.insert(&keys.take(BATCH));
        }
        cache.settle();
        Self { cache, rates: Vec::new(), last: Vec::new() }
    }

    fn play(&mut self, size: &Size, keys: &mut Keys, counts: bool) {
        let fresh = keys.take(size.batches * BATCH);
        let begun = Instant::now();
        fresh.chunks(BATCH).for_each(|batch| self.cache.insert(batch));
        self.cache.settle();
        let seconds = begun.elapsed().as_secs_f64();
        let (entries, name) = (self.cache.entries(), self.cache.name());
        // Nine tenths: a store keeps frames free ahead of need, and shards fill unevenly.
        let full = size.entries * 9 / 10..=size.entries;
        assert!(full.contains(&entries), "{name} has {entries} of {}", size.entries);
        if counts {
            self.rates.push(fresh.len() as f64 / seconds);
        }
        self.last = fresh;
    }

    /// Share of the last round's keys that the cache has.
    fn kept(&self) -> f64 {
        let kept = self.last.iter().filter(|key| self.cache.holds(key)).count();
        kept as f64 / self.last.len() as f64
    }
}

fn contest(caches: &[&dyn Cache], size: &Size, keys: &mut Keys) {
    let mut all: Vec<_> = caches.iter().map(|&cache| Contestant::full(cache, size, keys)).collect();
    for round in 0..=size.rounds {
        for turn in 0..all.len() {
            let at = (round + turn) % all.len();
            all[at].play(size, keys, round > 0);
        }
    }
    for one in all {
        println!(
            "{{\"kind\": \"{}\", \"name\": \"{}\", \"entries\": {}, \"rates\": {:?}, \
             \"kept\": {:.4}}}",
            one.cache.kind(),
            one.cache.name(),
            size.entries,
            one.rates,
            one.kept(),
        );
    }
}

/// Touches one long chain again and again; the counters are those of the whole run.
fn touch(ours: &Ours, size: &Size, keys: &mut Keys) {
    let chain = keys.take(TOUCHED.min(size.entries / 2));
    ours.insert(&chain);
    let touch_us: Vec<f64> = (0..size.rounds)
        .map(|_| {
            let begun = Instant::now();
            let touched = ours.store.touch(&chain).expect("an open store");
            let us = begun.elapsed().as_secs_f64() * 1e6;
            assert_eq!(touched, chain.len());
            us
        })
        .collect();
    let stats = ours.store.stats();
    assert!(stats.lock_blocks_max <= u64::from(LOCK_BLOCKS_MAX), "{}", stats.lock_blocks_max);
    assert_eq!(stats.touches_dropped, 0, "a touch that is not counted costs nothing");
    println!(
        "{{\"kind\": \"touch\", \"name\": \"{}\", \"blocks\": {}, \"us\": {touch_us:?}, \
         \"lock_blocks_max\": {}, \"steps_per_eviction\": {:.3}}}",
        ours.name(),
        chain.len(),
        stats.lock_blocks_max,
        stats.policy_steps as f64 / stats.evictions as f64,
    );
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (entries, rounds, batches) = if quick { (8192, 2, 8) } else { (1 << 20, 9, 2048) };
    let size = Size { entries, rounds, batches };
    let mut keys = Keys(1);
    let ours = POLICIES.map(|policy| Ours::open(policy, entries));
    let rivals = caches::rivals(entries);
    let caches: Vec<&dyn Cache> = ours
        .iter()
        .map(|cache| cache as &dyn Cache)
        .chain(rivals.iter().map(AsRef::as_ref))
        .collect();
    contest(&caches, &size, &mut keys);
    ours.iter().for_each(|store| touch(store, &size, &mut keys));
}
