//! The tier on real files with threads: what callers see while everything happens at once.

use crate::key::Key;
use crate::store::{OnLocked, PutOptions, Rows, RowsMut, SsdConfig, SsdPlace, Store, StoreConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const BLOCK: usize = 16 << 10;

/// A directory of its own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("keystow-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn open(folder: &Folder, frames: u64, slots: u64) -> Arc<Store> {
    open_on(folder, frames, slots, OnLocked::Fail)
}

fn open_on(folder: &Folder, frames: u64, slots: u64, on_locked: OnLocked) -> Arc<Store> {
    let capacity = 16_384 + slots * BLOCK as u64 + slots.div_ceil(42) * 4096;
    let config = StoreConfig {
        ssd: Some(SsdConfig { on_locked, ..SsdConfig::new(&folder.0, capacity) }),
        ..StoreConfig::new(frames * BLOCK as u64, BLOCK as u64)
    };
    Store::open(&config).unwrap_or_else(|error| panic!("{error}"))
}

fn key(n: u64) -> Key {
    Key::from_words([n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n])
}

fn bytes_of(n: u64, version: u64) -> Vec<u8> {
    let words = std::iter::once(n).chain(std::iter::repeat(version));
    words.take(BLOCK / 8).flat_map(u64::to_le_bytes).collect()
}

/// The version a row holds, if it is one of this key's.
fn version_of(n: u64, row: &[u8]) -> u64 {
    let word = |at: usize| u64::from_le_bytes(row[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
    assert!(row == bytes_of(n, word(1)), "key {n}: bytes that no put has carried");
    word(1)
}

fn put(store: &Store, range: std::ops::Range<u64>, version: u64) -> usize {
    let keys: Vec<Key> = range.clone().map(key).collect();
    let rows: Vec<u8> = range.flat_map(|n| bytes_of(n, version)).collect();
    store.put(&keys, &Rows::packed(&rows, BLOCK), &PutOptions::default()).unwrap_or(0)
}

fn get(store: &Store, range: std::ops::Range<u64>) -> Vec<u64> {
    let keys: Vec<Key> = range.clone().map(key).collect();
    let mut out = vec![0; keys.len() * BLOCK];
    let got = store.get(&keys, &mut RowsMut::packed(&mut out, BLOCK)).unwrap_or(0);
    range.zip(out.chunks(BLOCK)).take(got).map(|(n, row)| version_of(n, row)).collect()
}

/// As many as a device of some ten terabytes has: none is taken for a file of the next device.
#[test]
fn devices_of_many_files_keep_to_their_own() {
    const SLOTS: u64 = 300;
    let folders = [Folder::new("files-a"), Folder::new("files-b")];
    let capacity_bytes = 16_384 + SLOTS * BLOCK as u64 + SLOTS.div_ceil(42) * 4096;
    let mut ssd = SsdConfig::new(&folders[0].0, capacity_bytes);
    ssd.others = vec![SsdPlace { path: folders[1].0.clone(), capacity_bytes }];
    (ssd.slots_a_file, ssd.stretch_bytes) = (1, BLOCK as u64);
    let config = StoreConfig { ssd: Some(ssd), ..StoreConfig::new(8 * BLOCK as u64, BLOCK as u64) };
    let open = || Store::open(&config).unwrap_or_else(|error| panic!("{error}"));
    let all = 2 * SLOTS;
    let store = open();
    for chain in (0..all).step_by(6) {
        assert_eq!(put(&store, chain..chain + 6, 1), 6);
    }
    assert_eq!(store.flush(Duration::from_secs(30)).ok(), Some(0));
    assert_eq!(store.close(Duration::from_secs(30)).written, all);
    drop(store);
    let store = open();
    assert_eq!(store.stats().ssd.map(|ssd| ssd.recovered), Some(all));
    for chain in (0..all).step_by(6) {
        assert_eq!(get(&store, chain..chain + 6), [1; 6], "chain {chain}");
    }
}

/// A run that is partly in RAM, partly on its way and partly on SSD is read while its blocks are
/// evicted for others: what a get copies from a frame must be kept there by a pin.
#[test]
fn chains_longer_than_ram_are_read_whole_by_many() {
    const CHAIN: u64 = 24;
    let folder = Folder::new("stretches");
    let store = open(&folder, 16, 256);
    for chain in 0..4 {
        assert_eq!(put(&store, chain * CHAIN..(chain + 1) * CHAIN, chain), CHAIN as usize);
    }
    assert_eq!(store.flush(Duration::from_secs(20)).ok(), Some(0));
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let store = &store;
            scope.spawn(move || {
                for turn in 0..150_u64 {
                    let chain = (turn * 5 + thread) % 4;
                    for version in get(store, chain * CHAIN..(chain + 1) * CHAIN) {
                        assert_eq!(version, chain);
                    }
                }
            });
        }
    });
    store.validate().unwrap_or_else(|wrong| panic!("{wrong:?}"));
}

#[test]
fn threads_get_right_bytes_or_less_and_everything_adds_up() {
    let folder = Folder::new("threads");
    let store = open(&folder, 64, 256);
    let cleared = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (store, cleared) = (&store, &cleared);
            scope.spawn(move || {
                for turn in 0..300_u64 {
                    let chain = (turn * 7 + thread * 13) % 24 * 16;
                    let before = cleared.load(Ordering::SeqCst);
                    let version = turn << 8 | thread;
                    let found = get(store, chain..chain + 12);
                    put(store, chain + found.len() as u64..chain + 16, version);
                    assert!(cleared.load(Ordering::SeqCst) >= before);
                    if let Ok(lease) = store.lease(&[key(chain), key(chain + 1)], 0) {
                        for at in 0..lease.len() {
                            assert!(lease.block(at).is_some());
                        }
                    }
                }
            });
        }
        for turn in 0..12_u64 {
            std::thread::sleep(Duration::from_millis(20));
            let keys: Vec<Key> = (turn * 16 + 3..turn * 16 + 6).map(key).collect();
            store.remove(&keys, true).expect("the disk confirms");
            if turn % 5 == 4 {
                store.clear().expect("the disk confirms");
                cleared.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    assert_eq!(store.flush(Duration::from_secs(20)).ok(), Some(0));
    store.validate().unwrap_or_else(|wrong| panic!("{wrong:?}"));
    let stats = store.stats();
    let ssd = stats.ssd.expect("a tier");
    assert_eq!((ssd.bad_tags, ssd.lost, ssd.io_errors, ssd.late), (0, 0, 0, 0), "{ssd:?}");
    assert!(ssd.promotions > 0 && ssd.demotions > 0, "{ssd:?}");
    let closed = store.close(Duration::from_secs(20));
    assert_eq!(closed.left, 0);
    drop(store);
    let again = open(&folder, 64, 256);
    again.validate().unwrap_or_else(|wrong| panic!("{wrong:?}"));
    assert_eq!(again.stats().blocks, stats.blocks, "warm");
    for chain in 0..24 {
        get(&again, chain * 16..chain * 16 + 16);
    }
    again.validate().unwrap_or_else(|wrong| panic!("{wrong:?}"));
}

#[test]
fn a_store_that_closed_while_it_waited_takes_nothing_later() {
    let folder = Folder::new("closed-waiting");
    let owner = open(&folder, 16, 64);
    assert_eq!(put(&owner, 0..8, 1), 8);
    let waiting = open_on(&folder, 16, 64, OnLocked::Ram);
    assert_eq!(put(&waiting, 20..24, 1), 4);
    assert_eq!(waiting.close(Duration::from_secs(20)).left, 4);
    assert_eq!(owner.close(Duration::from_secs(20)).left, 0);
    // Longer than two looks at the lock.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(open(&folder, 16, 64).stats().blocks, 8);
}
