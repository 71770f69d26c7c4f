//! The tier through the store, on a simulated disk: what a caller sees of it.

use crate::io::{PPM, SimFaults};
use crate::key::Key;
use crate::stats::SsdStats;
use crate::store::{
    EngineKind, PolicyKind, PutOptions, Rows, RowsMut, SsdConfig, Store, StoreConfig,
};
use std::sync::Arc;
use std::time::Duration;

const BLOCK: usize = 4096;

pub(super) fn config(frames: u64, slots: u64) -> StoreConfig {
    let capacity = 16_384 + slots * 4096 + (slots.div_ceil(42)) * 4096;
    let mut ssd = SsdConfig::new("", capacity);
    ssd.engine = EngineKind::Sim;
    StoreConfig {
        deterministic: true,
        manual_clock: true,
        ssd: Some(ssd),
        ..StoreConfig::new(frames * 4096, BLOCK as u64)
    }
}

pub(super) fn open(frames: u64, slots: u64) -> Arc<Store> {
    Store::open(&config(frames, slots)).expect("a store on a simulated disk")
}

pub(super) fn keys(range: std::ops::Range<u64>) -> Vec<Key> {
    range.map(|n| Key::from_words([n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n])).collect()
}

pub(super) fn fill(n: u64) -> Vec<u8> {
    (0..BLOCK as u64).map(|i| (n * 31 + i) as u8).collect()
}

pub(super) fn put(store: &Store, range: std::ops::Range<u64>) -> usize {
    let rows: Vec<Vec<u8>> = range.clone().map(fill).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    store.put(&keys(range), &Rows::list(&rows), &PutOptions::default()).expect("open")
}

pub(super) fn get(store: &Store, range: std::ops::Range<u64>) -> usize {
    let count = (range.end - range.start) as usize;
    let mut out = vec![0; count * BLOCK];
    let got = store.get(&keys(range.clone()), &mut RowsMut::packed(&mut out, BLOCK)).expect("open");
    for (row, n) in out.chunks(BLOCK).take(got).zip(range) {
        assert!(row == fill(n), "block {n} holds other bytes");
    }
    got
}

pub(super) fn valid(store: &Store) {
    if let Err(wrong) = store.validate() {
        panic!("{wrong:?}");
    }
}

#[test]
fn four_times_the_ram_comes_back_whole() {
    let store = open(8, 64);
    for chain in 0..8 {
        assert_eq!(put(&store, chain * 4..chain * 4 + 4), 4);
        valid(&store);
    }
    for chain in 0..8 {
        assert_eq!(get(&store, chain * 4..chain * 4 + 4), 4, "chain {chain}");
        valid(&store);
    }
    let ssd = store.stats().ssd.expect("a tier");
    assert_eq!(ssd.dropped_waited + ssd.dropped_refused + ssd.lost, 0);
}

#[test]
fn a_chain_of_four_times_the_ram_is_put_and_got() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..32), 32);
    valid(&store);
    assert_eq!(get(&store, 0..32), 32);
    valid(&store);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    let again = store.crash(3, false).expect("a disk to open");
    valid(&again);
    assert_eq!(get(&again, 0..32), 32);
    valid(&again);
}

#[test]
fn what_was_written_is_warm_after_a_kill() {
    let store = open(16, 64);
    assert_eq!(put(&store, 0..12), 12);
    for _ in 0..30 {
        store.step(100_000);
    }
    let again = store.crash(1, false).expect("a disk to open");
    valid(&again);
    assert_eq!(
        again.match_run(&keys(0..12)).ok().map(|found| (found.ram, found.ssd)),
        Some((0, 12))
    );
    assert_eq!(get(&again, 0..12), 12);
    valid(&again);
}

#[test]
fn what_was_removed_or_cleared_stays_gone() {
    let store = open(16, 64);
    assert_eq!(put(&store, 0..12), 12);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    assert_eq!(store.remove(&keys(6..7), true).ok(), Some(1));
    valid(&store);
    let store = store.crash(1, true).expect("a disk to open");
    valid(&store);
    assert_eq!(store.match_prefix(&keys(0..12)).ok(), Some(6));
    assert_eq!(put(&store, 6..7), 1);
    store.clear().expect("the disk confirms");
    valid(&store);
    let store = store.crash(2, true).expect("a disk to open");
    assert_eq!(store.match_prefix(&keys(0..12)).ok(), Some(0));
    valid(&store);
}

pub(super) fn ssd(store: &Store) -> SsdStats {
    store.stats().ssd.expect("a tier")
}

pub(super) fn faults(store: &Store, change: impl FnOnce(&mut SimFaults)) {
    store.world().expect("a simulated disk").disk.faults(change);
}

/// Flips a bit of a block's payload on disk, whatever slot it has.
pub(super) fn spoil(store: &Store, n: u64) {
    let disk = &store.world().expect("a simulated disk").disk;
    let file = crate::io::FileId(super::SLOTS_FILE);
    let mut page = vec![0; BLOCK];
    for slot in 0..disk.file_len(file) / 4096 {
        disk.read(file, slot * 4096, &mut page);
        if page == fill(n) {
            disk.flip(file, slot * 4096 + 99, 1);
        }
    }
}

#[test]
fn nothing_is_written_twice_where_everything_is_hot() {
    let store = open(16, 8);
    assert_eq!(put(&store, 0..16), 16);
    let mut written = Vec::new();
    for _ in 0..40 {
        assert_eq!(get(&store, 0..16), 16);
        store.step(100_000);
        written.push(ssd(&store).write_bytes);
    }
    valid(&store);
    assert!(written[39] <= 8 * 4096 && written[39] == written[20], "{written:?}");
}

#[test]
fn a_device_that_only_fails_is_left_alone_and_ram_goes_on() {
    let store = open(8, 64);
    faults(&store, |faults| (faults.eio_write_ppm, faults.eio_read_ppm) = (PPM, PPM));
    for chain in 0..8 {
        assert_eq!(put(&store, chain * 4..chain * 4 + 4), 4, "chain {chain}");
        assert_eq!(get(&store, chain * 4..chain * 4 + 4), 4, "chain {chain}");
        valid(&store);
    }
    let off = ssd(&store);
    assert_eq!((off.state, off.breaker_opened), ("off", 1), "{off:?}");
    assert!(off.dropped_off > 0 && off.io_errors >= 8, "{off:?}");
    faults(&store, |faults| (faults.eio_write_ppm, faults.eio_read_ppm) = (0, 0));
    for _ in 0..100 {
        store.step(50_000);
    }
    let back = ssd(&store);
    assert_eq!((back.state, back.breaker_closed), ("ok", 1), "{back:?}");
    assert_eq!(put(&store, 100..116), 16);
    assert_eq!(get(&store, 100..116), 16);
    valid(&store);
}

#[test]
fn a_read_that_hangs_is_a_miss_and_keeps_its_frame() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..4), 4);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    assert_eq!(put(&store, 10..18), 8);
    assert_eq!(store.match_run(&keys(0..4)).ok().map(|found| found.ssd), Some(4));
    faults(&store, |faults| faults.hang_all = true);
    assert_eq!(get(&store, 0..4), 0, "nothing came in time");
    valid(&store);
    let hung = ssd(&store);
    assert!(hung.requests_in_flight > 0 && hung.late > 0, "{hung:?}");
    faults(&store, |faults| faults.hang_all = false);
    store.world().expect("a simulated disk").disk.release_hangs();
    for _ in 0..40 {
        store.step(50_000);
    }
    assert_eq!(get(&store, 0..4), 4);
    valid(&store);
}

#[test]
fn a_put_that_waits_in_vain_drops_what_it_must() {
    let mut config = config(100, 200);
    config.put_wait = Duration::from_millis(200);
    let store = Store::open(&config).expect("a store on a simulated disk");
    faults(&store, |faults| faults.latency_us = [(10, 20), (900_000, 950_000), (10, 20)]);
    for chain in 0..32 {
        assert_eq!(put(&store, chain * 4..chain * 4 + 4), 4, "chain {chain}");
        valid(&store);
    }
    let slow = ssd(&store);
    assert!(slow.dropped_waited > 0, "{slow:?}");
    assert_eq!(slow.late, 0, "{slow:?}");
}

#[test]
fn over_the_budget_only_what_was_hit_is_written() {
    let mut config = config(8, 64);
    config.ssd.as_mut().expect("a tier").write_bytes_per_s = Some(4096);
    let store = Store::open(&config).expect("a store on a simulated disk");
    for chain in 0..12 {
        assert_eq!(put(&store, chain * 4..chain * 4 + 4), 4, "chain {chain}");
        valid(&store);
    }
    let lean = ssd(&store);
    assert!(lean.refused > 0 && lean.dropped_refused > 0, "{lean:?}");
    assert_eq!(lean.dropped_waited, 0, "a refused block is not waited for: {lean:?}");
    assert!(lean.writes < 24, "{lean:?}");
}

#[test]
fn what_its_user_gave_up_is_never_written() {
    let store = open(32, 64);
    assert_eq!(put(&store, 0..8), 8);
    assert_eq!(store.retire(&keys(0..8)).ok(), Some(8));
    for chain in 1..5 {
        put(&store, chain * 8..chain * 8 + 8);
    }
    let given = ssd(&store);
    assert!(given.dropped_retired > 0, "{given:?}");
    assert_eq!(store.match_run(&keys(0..8)).ok().map(|found| found.ssd), Some(0));
    valid(&store);
}

#[test]
fn a_lease_brings_blocks_back_and_keeps_them() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..6), 6);
    assert_eq!(put(&store, 10..18), 8);
    let lease = store.lease(&keys(0..6), 0).expect("open");
    assert_eq!(lease.len(), 6);
    for at in 0..6 {
        let (place, len) = lease.block(at).expect("leased");
        assert_eq!((len, place.is_null()), (BLOCK, false));
    }
    put(&store, 20..28);
    valid(&store);
    assert_eq!(store.match_run(&keys(0..6)).ok().map(|found| found.ram), Some(6));
    drop(lease);
    valid(&store);
}

#[test]
fn a_lease_of_a_device_left_alone_ends_without_what_is_there() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..6), 6);
    assert_eq!(put(&store, 10..18), 8);
    faults(&store, |faults| (faults.eio_write_ppm, faults.eio_read_ppm) = (PPM, PPM));
    for chain in 5..12 {
        put(&store, chain * 4..chain * 4 + 4);
    }
    assert_eq!(ssd(&store).state, "off");
    assert_eq!(store.lease(&keys(0..6), 0).expect("open").len(), 0);
    valid(&store);
}

#[test]
fn arc_works_over_an_ssd_too() {
    let config = StoreConfig { policy: PolicyKind::Arc, ..config(8, 64) };
    let store = Store::open(&config).expect("a store on a simulated disk");
    for turn in 0..40 {
        let chain = turn * 7 % 10;
        get(&store, chain * 4..chain * 4 + 4);
        assert_eq!(put(&store, chain * 4..chain * 4 + 4), 4);
        valid(&store);
    }
    for chain in 0..10 {
        assert_eq!(get(&store, chain * 4..chain * 4 + 4), 4, "chain {chain}");
    }
    valid(&store);
}

#[test]
fn a_store_without_ram_works_past_it() {
    let store = open(0, 64);
    assert_eq!(put(&store, 0..12), 12);
    valid(&store);
    assert_eq!(get(&store, 0..12), 12);
    assert_eq!(store.lease(&keys(0..12), 0).expect("open").len(), 0);
    valid(&store);
}

#[test]
fn a_bad_copy_becomes_a_hole_that_refills() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..6), 6);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    let store = store.crash(5, false).expect("a disk to open");
    spoil(&store, 3);
    assert_eq!(get(&store, 0..6), 3);
    valid(&store);
    assert_eq!((ssd(&store).bad_tags, ssd(&store).lost), (1, 1));
    assert_eq!(store.match_prefix(&keys(0..6)).ok(), Some(3));
    assert_eq!(put(&store, 3..4), 1);
    assert_eq!(get(&store, 0..6), 6);
    valid(&store);
}
