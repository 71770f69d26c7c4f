//! The scrub on a simulated disk: what is rotten is found and given up, and nothing is kept.

use crate::io::{FailNext, FileId, Mishap, Op};
use crate::key::Key;
use crate::store::{
    EngineKind, PutOptions, Rows, RowsMut, Scrubbed, SsdConfig, Store, StoreConfig,
};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: usize = 4096;
const LONG: Duration = Duration::from_secs(1000);
/// Of the slots.
const FILE: FileId = FileId(2);

fn open(frames: u64, slots: u64) -> Arc<Store> {
    let capacity = 16_384 + slots * 4096 + (slots.div_ceil(42)) * 4096;
    let mut ssd = SsdConfig::new("", capacity);
    ssd.engine = EngineKind::Sim;
    let config = StoreConfig {
        deterministic: true,
        manual_clock: true,
        ssd: Some(ssd),
        ..StoreConfig::new(frames * 4096, BLOCK as u64)
    };
    Store::open(&config).expect("a store on a simulated disk")
}

fn keys(range: Range<u64>) -> Vec<Key> {
    range.map(|n| Key::from_words([n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n])).collect()
}

fn fill(n: u64) -> Vec<u8> {
    (0..3000 + n % 500).map(|i| (n * 31 + i) as u8).collect()
}

fn put(store: &Store, range: Range<u64>) -> usize {
    let rows: Vec<Vec<u8>> = range.clone().map(fill).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    store.put(&keys(range), &Rows::list(&rows), &PutOptions::default()).expect("open")
}

fn get(store: &Store, range: Range<u64>) -> usize {
    let count = (range.end - range.start) as usize;
    let mut out = vec![0; count * BLOCK];
    let got = store.get(&keys(range.clone()), &mut RowsMut::packed(&mut out, BLOCK)).expect("open");
    for (row, n) in out.chunks(BLOCK).take(got).zip(range) {
        assert!(row.starts_with(&fill(n)), "block {n} holds other bytes");
    }
    got
}

/// Puts a chain and brings it to SSD; all of it stays in RAM too if it fits.
fn stored(frames: u64, slots: u64, blocks: u64) -> Arc<Store> {
    let store = open(frames, slots);
    assert_eq!(put(&store, 0..blocks), blocks as usize);
    assert_eq!(store.flush(LONG).ok(), Some(0));
    store
}

fn rot(store: &Store, n: u64) {
    let key = keys(n..n + 1)[0];
    let slot = store.with_tier(|tier, _| {
        let mut from = 0;
        while let Some((slot, _)) = tier.next_on_ssd(from) {
            if tier.key_of(slot) == key {
                return Some(u64::from(slot.0));
            }
            from = slot.0 + 1;
        }
        None
    });
    let slot = slot.flatten().expect("the block is on SSD");
    store.world().expect("simulated").disk.flip(FILE, slot * 4096 + 11, 4);
}

fn scrub(store: &Store) -> [u64; 3] {
    let found = store.verify(None, LONG).expect("open");
    assert!(found.done);
    assert_eq!(found.bytes > 0, found.blocks > 0);
    sound(store);
    [found.blocks, found.bad, found.skipped]
}

/// Nothing is kept: no pin, no staging frame.
fn sound(store: &Store) {
    let recount = store.validate().unwrap_or_else(|wrong| panic!("{wrong:#?}"));
    assert_eq!(recount.pins, 0);
    let staging = store.parts.staging.as_ref().expect("a tier");
    assert_eq!(staging.frames.free(), staging.frames.total());
}

#[test]
fn a_sound_store_is_read_whole_and_not_moved() {
    let store = stored(16, 64, 10);
    let before = (store.stats().blocks_ram, store.stats().hits);
    assert_eq!(scrub(&store), [10, 0, 0]);
    assert_eq!(store.verify(None, LONG).expect("open").bytes, 30_045);
    assert_eq!((store.stats().blocks_ram, store.stats().hits), before);
    assert_eq!(get(&store, 0..10), 10);
}

#[test]
fn a_bad_copy_of_a_block_in_ram_is_written_again() {
    let store = stored(16, 64, 10);
    rot(&store, 3);
    rot(&store, 7);
    assert_eq!(scrub(&store), [10, 2, 0], "the new copies lie further on");
    assert_eq!(store.flush(LONG).ok(), Some(0));
    assert_eq!(scrub(&store), [10, 0, 0]);
    assert_eq!((get(&store, 0..10), store.stats().ssd.expect("a tier").lost), (10, 0));
}

#[test]
fn a_bad_copy_of_a_block_on_ssd_alone_is_a_miss() {
    let store = stored(8, 64, 32);
    let (found, deep) = (store.match_run(&keys(0..32)).expect("open"), 20);
    assert!(found.blocks == 32 && found.ssd >= 24);
    rot(&store, deep);
    assert_eq!(scrub(&store), [31, 1, 0]);
    let there = store.contains(&keys(0..32)).expect("open");
    assert_eq!(there.iter().position(|there| !there), Some(deep as usize));
    assert_eq!(there.iter().filter(|there| **there).count(), 31);
    assert_eq!(get(&store, 0..32), deep as usize);
    assert_eq!(scrub(&store), [31, 0, 0]);
    assert_eq!(put(&store, 0..32), 32);
    assert_eq!(get(&store, 0..32), 32, "the hole is filled again");
    sound(&store);
}

#[test]
fn it_goes_on_where_it_stopped_and_keeps_its_pace() {
    let store = stored(16, 64, 10);
    let mut found = Scrubbed::default();
    store.verify_more(&mut found, None, Duration::ZERO).expect("open");
    assert_eq!(found, Scrubbed::default());
    let (begun_us, mut calls) = (store.parts.clock.now_us(), 0);
    while !found.done {
        // A block takes 30 ms at this pace: ten of them three slices each.
        store.verify_more(&mut found, Some(100_000), Duration::from_millis(10)).expect("open");
        store.step(1_000);
        calls += 1;
        assert!(calls < 1000, "{found:?}");
    }
    assert_eq!((found.blocks, found.bad, found.skipped), (10, 0, 0));
    let took_us = store.parts.clock.now_us() - begun_us;
    assert!((270_000..400_000).contains(&took_us), "{took_us} us in {calls} calls");
    sound(&store);
}

#[test]
fn blocks_behind_many_free_slots_are_found() {
    let store = open(32, 2500);
    for chain in 0..150 {
        assert_eq!(put(&store, chain * 16..chain * 16 + 16), 16);
    }
    assert_eq!(store.flush(LONG).ok(), Some(0));
    assert_eq!(store.remove(&keys(0..2390), false).ok(), Some(2390));
    assert_eq!(scrub(&store), [10, 0, 0]);
}

#[test]
fn a_device_that_hangs_or_fails_is_skipped() {
    let store = stored(16, 64, 10);
    let disk = &store.world().expect("simulated").disk;
    let next = |after, mishap| FailNext { op: Some(Op::Read), after, mishap, forever: false };
    disk.faults(|faults| faults.fail_next = Some(next(4, Mishap::Short)));
    assert_eq!(scrub(&store), [9, 0, 1]);
    disk.faults(|faults| faults.fail_next = Some(next(4, Mishap::Hang)));
    let found = store.verify(None, LONG).expect("open");
    assert_eq!((found.blocks, found.bad, found.skipped, found.done), (9, 0, 1, true));
    let staging = store.parts.staging.as_ref().expect("a tier");
    assert_eq!(staging.frames.free() + 1, staging.frames.total(), "the read may still land");
    disk.release_hangs();
    store.step(10_000);
    sound(&store);
    // An error gives the slot up: what is in RAM too is written elsewhere.
    let eio = Mishap::Error(crate::io::Fault::Io(5));
    disk.faults(|faults| faults.fail_next = Some(next(0, eio)));
    assert_eq!(scrub(&store), [10, 1, 0]);
    assert_eq!(store.stats().ssd.expect("a tier").quarantined, 1);
    assert_eq!(store.flush(LONG).ok(), Some(0));
    assert_eq!(scrub(&store), [10, 0, 0]);
}

#[test]
fn a_device_that_is_left_alone_is_skipped() {
    let store = stored(16, 64, 10);
    let disk = &store.world().expect("simulated").disk;
    let short = FailNext { op: Some(Op::Read), after: 0, mishap: Mishap::Short, forever: true };
    disk.faults(|faults| faults.fail_next = Some(short));
    assert_eq!(scrub(&store), [0, 0, 10]);
    let ssd = store.stats().ssd.expect("a tier");
    assert!((ssd.breaker_opened, ssd.short_transfers < 10) == (1, true), "{ssd:?}");
    disk.faults(|faults| faults.fail_next = None);
    store.step(2_000_000);
    assert_eq!(scrub(&store), [10, 0, 0]);
}

#[test]
fn without_a_tier_or_after_close_there_is_nothing_to_do() {
    let store = Store::open(&StoreConfig::new(1 << 20, BLOCK as u64)).expect("open");
    let found = store.verify(None, LONG).expect("open");
    assert_eq!((found.done, found.blocks), (true, 0));
    for store in [store, stored(16, 64, 3)] {
        store.close(LONG);
        assert_eq!(store.verify(None, LONG).map_err(|error| error.code).err(), Some("KS-CLO-001"));
    }
}
