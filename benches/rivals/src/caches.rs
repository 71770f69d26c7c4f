//! The caches in the contest: the store and its rivals, each used as its documentation advises.
//!
//! Owns: how each is built and spoken to. Never measures. Invariants: rivals map a key of 128 bits
//! to a number of 32, weigh every entry 1, hash with their default hasher and choose their number
//! of shards themselves; what `insert` leaves for later is done when `settle` returns.

use std::sync::Arc;

use foyer_memory::{CacheBuilder, EvictionConfig, LruConfig, S3FifoConfig};
use keystow_core::key::Key;
use keystow_core::store::{PolicyKind, Prefault, PutOptions, Rows, Store, StoreConfig};
use moka::policy::EvictionPolicy;

const FRAME_BYTES: u64 = 4096;
/// One byte a block: bookkeeping is measured, and the cache misses of as many frames.
static PAYLOAD: [u8; 8192] = [7; 8192];

/// What the contest asks of a cache.
pub trait Cache {
    fn name(&self) -> &str;
    fn kind(&self) -> &'static str {
        "rival"
    }
    /// Stores keys that the cache has never seen.
    fn insert(&self, batch: &[Key]);
    /// Does whatever maintenance the cache has put off.
    fn settle(&self) {}
    fn entries(&self) -> usize;
    fn holds(&self, key: &Key) -> bool;
}

/// The store. Each batch is one chain and evicts as many blocks, leaves first.
pub struct Ours {
    pub store: Arc<Store>,
    policy: PolicyKind,
}

impl Ours {
    pub fn open(policy: PolicyKind, entries: usize) -> Self {
        let mut config = StoreConfig::new(entries as u64 * FRAME_BYTES, 1);
        config.policy = policy;
        config.prefault = Prefault::Now;
        let store = Store::open(&config).expect("4 KiB of free RAM an entry");
        Self { store, policy }
    }
}

impl Cache for Ours {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn kind(&self) -> &'static str {
        "ours"
    }

    fn insert(&self, batch: &[Key]) {
        let rows = Rows::packed(&PAYLOAD[..batch.len()], 1);
        let stored = self.store.put(batch, &rows, &PutOptions::default()).expect("rows that fit");
        assert_eq!(stored, batch.len());
    }

    fn entries(&self) -> usize {
        self.store.stats().blocks as usize
    }

    fn holds(&self, key: &Key) -> bool {
        self.store.contains(&[*key]).expect("an open store")[0]
    }
}

fn number(key: &Key) -> u128 {
    u128::from_le_bytes(key.0)
}

struct QuickCache(quick_cache::sync::Cache<u128, u32>);

impl Cache for QuickCache {
    fn name(&self) -> &str {
        "quick_cache"
    }

    fn insert(&self, batch: &[Key]) {
        batch.iter().zip(0..).for_each(|(key, value)| self.0.insert(number(key), value));
    }

    fn entries(&self) -> usize {
        self.0.len()
    }

    fn holds(&self, key: &Key) -> bool {
        self.0.contains_key(&number(key))
    }
}

/// An insert in 64 or so works off the log of writes and evicts; the rest of it, at most a few
/// hundred entries, is what `settle` is for.
struct Moka(&'static str, moka::sync::Cache<u128, u32>);

impl Moka {
    fn new(name: &'static str, entries: usize, policy: EvictionPolicy) -> Self {
        let builder = moka::sync::Cache::builder();
        let builder = builder.max_capacity(entries as u64).initial_capacity(entries);
        Self(name, builder.eviction_policy(policy).build())
    }
}

impl Cache for Moka {
    fn name(&self) -> &str {
        self.0
    }

    fn insert(&self, batch: &[Key]) {
        batch.iter().zip(0..).for_each(|(key, value)| self.1.insert(number(key), value));
    }

    fn settle(&self) {
        self.1.run_pending_tasks();
    }

    fn entries(&self) -> usize {
        self.1.entry_count() as usize
    }

    fn holds(&self, key: &Key) -> bool {
        self.1.contains_key(&number(key))
    }
}

struct Foyer(&'static str, foyer_memory::Cache<u128, u32>);

impl Foyer {
    fn new(name: &'static str, entries: usize, policy: impl Into<EvictionConfig>) -> Self {
        Self(name, CacheBuilder::new(entries).with_eviction_config(policy).build())
    }
}

impl Cache for Foyer {
    fn name(&self) -> &str {
        self.0
    }

    fn insert(&self, batch: &[Key]) {
        for (key, value) in batch.iter().zip(0..) {
            self.1.insert(number(key), value);
        }
    }

    fn entries(&self) -> usize {
        self.1.entries()
    }

    fn holds(&self, key: &Key) -> bool {
        self.1.contains(&number(key))
    }
}

/// All rivals, each of `entries` entries.
pub fn rivals(entries: usize) -> Vec<Box<dyn Cache>> {
    vec![
        Box::new(QuickCache(quick_cache::sync::Cache::new(entries))),
        Box::new(Moka::new("moka lru", entries, EvictionPolicy::lru())),
        Box::new(Moka::new("moka tiny-lfu", entries, EvictionPolicy::tiny_lfu())),
        Box::new(Foyer::new("foyer lru", entries, LruConfig::default())),
        Box::new(Foyer::new("foyer s3-fifo", entries, S3FifoConfig::default())),
    ]
}
