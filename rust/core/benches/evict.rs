//! Eviction and insert in a full store: every put of a chain makes as many blocks leave.
//!
//! Run by `benches/run.py`, or alone: `cargo bench -p keystow-core --bench evict`. Prints one JSON
//! object a line: blocks a second, round by round, and the counters of the lock. Payload is one
//! byte a block: what is measured is bookkeeping, and the cache misses of as many frames.

use std::time::Instant;

use keystow_core::key::Key;
use keystow_core::store::{PolicyKind, PutOptions, Rows, RowsMut, Store, StoreConfig};

const BATCH: usize = 64;
const TOUCHED: usize = 8192;

/// Keys of one chain after the other, each as random as a hash.
struct Chains(u64);

impl Chains {
    fn next(&mut self, blocks: usize) -> Vec<Key> {
        let mut word = || {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed ^ (mixed >> 31)
        };
        (0..blocks).map(|_| Key::from_words([word(), word()])).collect()
    }
}

fn put(store: &Store, keys: &[Key]) {
    let payload = [7; TOUCHED];
    let rows = Rows::packed(&payload[..keys.len()], 1);
    let stored = store.put(keys, &rows, &PutOptions::default()).expect("rows that fit");
    assert_eq!(stored, keys.len());
}

fn run(policy: PolicyKind, frames: usize, rounds: usize, batches: usize) {
    let mut config = StoreConfig::new(frames as u64 * 4096, 1);
    config.policy = policy;
    config.prefault = keystow_core::store::Prefault::Now;
    let store = Store::open(&config).expect("room for the arena");
    let mut chains = Chains(1);
    for _ in 0..frames / BATCH + 1 {
        put(&store, &chains.next(BATCH));
    }
    let mut rates = Vec::new();
    for round in 0..=rounds {
        let keys: Vec<_> = (0..batches).map(|_| chains.next(BATCH)).collect();
        let begun = Instant::now();
        keys.iter().for_each(|keys| put(&store, keys));
        if round > 0 {
            rates.push((batches * BATCH) as f64 / begun.elapsed().as_secs_f64());
        }
    }
    let long = chains.next(TOUCHED.min(frames / 2));
    put(&store, &long);
    let mut out = vec![0; long.len()];
    let touches: Vec<f64> = (0..rounds.max(3))
        .map(|_| {
            let begun = Instant::now();
            let touched = store.touch(&long).expect("an open store");
            let us = begun.elapsed().as_secs_f64() * 1e6;
            assert_eq!(touched, long.len());
            us
        })
        .collect();
    assert_eq!(store.get(&long, &mut RowsMut::packed(&mut out, 1)).ok(), Some(long.len()));
    let stats = store.stats();
    assert!(stats.evictions as usize >= rounds * batches * BATCH, "{}", stats.evictions);
    println!(
        "{{\"name\": \"evict + insert, {}, {} frames\", \"ours\": {rates:?}, \
         \"touch_blocks\": {}, \"touch_us\": {touches:?}, \"lock_blocks_max\": {}, \
         \"steps_per_eviction\": {:.3}}}",
        policy.name(),
        frames,
        long.len(),
        stats.lock_blocks_max,
        stats.policy_steps as f64 / stats.evictions as f64,
    );
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (frames, rounds, batches) = if quick { (4096, 2, 8) } else { (1 << 20, 7, 4096) };
    for policy in [PolicyKind::Lru, PolicyKind::Arc] {
        run(policy, frames, rounds, batches);
    }
}
