//! What histories, campaigns and machines have found, one test each.

use super::tests::{config, faults, fill, get, keys, open, put, spoil, ssd, valid};
use crate::io::{FailNext, Fault, Mishap, Op, PPM};
use crate::key::Key;
use crate::store::{PutOptions, Rows, Store};
use std::time::Duration;

fn put_keys(store: &Store, keys: &[Key]) -> usize {
    let rows: Vec<Vec<u8>> = keys.iter().map(|key| fill(key.words()[1])).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    store.put(keys, &Rows::list(&rows), &PutOptions::default()).expect("open")
}

fn some(numbers: &[u64]) -> Vec<Key> {
    numbers.iter().flat_map(|n| keys(*n..*n + 1)).collect()
}

#[test]
fn a_key_twice_in_a_put_past_ram_is_stored_once() {
    let store = open(0, 64);
    assert_eq!(put_keys(&store, &some(&[1, 1, 2, 1])), 4);
    assert_eq!((store.stats().puts, store.stats().put_present), (2, 2));
    assert_eq!((ssd(&store).writes, ssd(&store).writes_lost), (2, 0));
    valid(&store);
}

#[test]
fn a_put_past_ram_does_not_push_out_its_own_batch() {
    let store = open(0, 5);
    assert_eq!(put(&store, 0..4), 4);
    let batch = some(&[8, 9, 3]);
    let rows = [fill(8), fill(9), fill(77)];
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    let stored = store.put(&batch, &Rows::list(&rows), &PutOptions::default()).expect("open");
    assert_eq!(store.match_prefix(&batch).ok(), Some(stored), "stored is what is there");
    assert_eq!(store.contains(&batch[2..]).ok(), Some(vec![true]), "it was there before");
    assert_eq!(get(&store, 3..4), 1, "and with the bytes of before");
    valid(&store);
}

#[test]
fn blocks_that_are_only_on_ssd_take_no_frames_from_a_put() {
    let store = open(4, 64);
    assert_eq!(put(&store, 0..8), 8);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    let store = store.crash(1, false).expect("a disk to open");
    assert_eq!(put(&store, 0..11), 11);
    let found = store.match_run(&keys(0..11)).expect("open");
    assert_eq!((found.ram, found.ssd, ssd(&store).staged), (3, 8, 0));
    valid(&store);
}

/// It looped under the lock: the search named a block that the eviction refused.
#[test]
fn a_retired_dirty_block_with_a_child_on_ssd_can_leave() {
    let mut config = config(2, 64);
    config.put_wait = Duration::from_millis(10);
    let store = Store::open(&config).expect("a store on a simulated disk");
    assert_eq!(put(&store, 0..3), 3, "the last one past RAM");
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    store.retire(&keys(0..3)).expect("open");
    // Their copies are bad: they are dirty again, and not written since they are retired.
    for n in 0..2 {
        spoil(&store, n);
    }
    assert_eq!(
        store.verify(None, Duration::from_secs(5)).ok().map(|scrubbed| scrubbed.bad),
        Some(2)
    );
    assert_eq!(store.match_run(&keys(0..3)).ok().map(|found| found.ram), Some(2));
    assert_eq!(put(&store, 40..42), 2);
    valid(&store);
}

#[test]
fn super_survives_writes_that_fail_again_and_again() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..4), 4);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    faults(&store, |faults| faults.torn_write_ppm = 0);
    faults(&store, |faults| faults.eio_write_ppm = PPM);
    assert!(store.clear().is_err(), "the disk confirms nothing");
    for _ in 0..20 {
        store.step(200_000);
    }
    faults(&store, |faults| faults.eio_write_ppm = 0);
    let again = store.crash(3, true).expect("one copy is whole");
    valid(&again);
    get(&again, 0..4);
}

#[test]
fn a_close_that_the_disk_does_not_confirm_is_unclean() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..4), 4);
    faults(&store, |faults| faults.hang_all = true);
    let closed = store.close(Duration::from_secs(1));
    assert_eq!((closed.written, closed.left), (0, 4));
    assert!(ssd(&store).unclean);
}

/// The frame it waits for is a load's that nobody waits for any more.
#[test]
fn a_put_waits_for_a_read_under_way() {
    let store = open(1, 64);
    assert_eq!(put(&store, 0..2), 2);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    let store = store.crash(1, false).expect("a disk to open");
    faults(&store, |faults| faults.latency_us = [(50_000, 60_000), (10, 20), (10, 20)]);
    let mut out = vec![0; 4096];
    let mut rows = crate::store::RowsMut::packed(&mut out, 4096);
    let timeout = Some(Duration::from_millis(1));
    assert_eq!(store.get_within(&keys(0..1), &mut rows, timeout).ok(), Some(0), "too late");
    assert_eq!(put(&store, 10..11), 1);
    assert_eq!(store.match_run(&keys(10..11)).ok().map(|found| found.ram), Some(1));
    valid(&store);
}

#[test]
fn a_hanging_device_costs_get_each_one_timeout() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..6), 6);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    let store = store.crash(1, false).expect("a disk to open");
    faults(&store, |faults| faults.hang_all = true);
    let mut out = vec![0; 6 * 4096];
    let mut rows = crate::store::RowsMut::packed(&mut out, 4096);
    let from_us = store.parts.clock.now_us();
    assert_eq!(store.get_each(&keys(0..6), &mut rows).ok(), Some(vec![false; 6]));
    assert!(store.parts.clock.now_us() - from_us < 1_500_000, "one second for all");
    valid(&store);
}

#[test]
fn a_step_does_on_the_way_what_falls_due() {
    let store = open(16, 64);
    assert_eq!(put(&store, 0..12), 12);
    store.step(3_000_000);
    let again = store.crash(1, false).expect("a disk to open");
    assert_eq!(again.match_prefix(&keys(0..12)).ok(), Some(12));
}

/// Its blocks went into the slots of bad ones after the table was confirmed: gone at reopen.
#[test]
fn what_a_close_calls_written_is_there_again() {
    let store = open(4, 2);
    assert_eq!(put(&store, 0..2), 2);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    (0..2).for_each(|n| spoil(&store, n));
    let store = store.crash(1, false).expect("a disk to open");
    faults(&store, |faults| faults.latency_us = [(50_000, 60_000), (10, 20), (10, 20)]);
    let mut out = vec![0; 2 * 4096];
    let mut rows = crate::store::RowsMut::packed(&mut out, 4096);
    let timeout = Some(Duration::from_millis(1));
    assert_eq!(store.get_within(&keys(0..2), &mut rows, timeout).ok(), Some(0), "too late");
    assert_eq!(put(&store, 10..12), 2);
    let closed = store.close(Duration::from_secs(5));
    assert_eq!((closed.written, closed.left), (2, 0), "the reads have given their slots back");
    let again = store.crash(2, false).expect("a disk to open");
    assert_eq!(get(&again, 10..12), 2);
}

/// The cleaner had passed it over while it was retired, and never came back.
#[test]
fn a_retired_block_that_is_kept_after_all_is_written() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..1) + put(&store, 10..11), 2);
    assert_eq!(store.retire(&some(&[0])).ok(), Some(1));
    assert_eq!(store.retire(&some(&[10])).ok(), Some(1));
    store.step(1_000_000);
    assert_eq!(ssd(&store).writes, 0, "what its user gave up is not worth a write");
    assert_eq!(store.retain(&some(&[0]), Duration::from_secs(9)).ok(), Some(1));
    assert_eq!(get(&store, 10..11), 1);
    store.step(1_000_000);
    assert_eq!(ssd(&store).writes, 2);
    valid(&store);
}

/// The kernel marks clean what a failed sync did not write, and tells no later process.
#[test]
fn a_failed_sync_is_made_good_by_the_next_owner() {
    for seed in 0..16 {
        let store = open(8, 64);
        assert_eq!(put(&store, 0..4), 4);
        assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
        let mishap = Mishap::Error(Fault::Io(5));
        let next = FailNext { op: Some(Op::Sync), after: 0, mishap, forever: false };
        faults(&store, |faults| faults.fail_next = Some(next));
        assert!(store.remove(&keys(3..4), true).is_err(), "the disk has not confirmed it");
        store.step(100_000);
        let next = store.crash(seed, false).expect("a disk to open");
        assert_eq!(next.match_prefix(&keys(0..4)).ok(), Some(3), "it reads what was written");
        assert_eq!(next.remove(&keys(3..4), true).ok(), Some(0));
        let last = next.crash(seed, true).expect("a disk to open");
        assert_eq!(last.contains(&keys(3..4)).ok(), Some(vec![false]), "seed {seed}");
    }
}

#[test]
fn a_flush_whose_sync_fails_does_not_say_that_all_is_safe() {
    let store = open(8, 64);
    assert_eq!(put(&store, 0..4), 4);
    let mishap = Mishap::Error(Fault::Io(5));
    let next = FailNext { op: Some(Op::Sync), after: 0, mishap, forever: false };
    faults(&store, |faults| faults.fail_next = Some(next));
    assert_eq!(store.flush_some(Duration::from_secs(5)).ok(), Some((1, true)), "and ends at once");
    assert_eq!(store.flush_some(Duration::from_secs(5)).ok(), Some((0, true)));
    valid(&store);
}

/// Each open may die before its sync: what the next one found was in no copy on the disk yet, and
/// it wrote over the other one.
#[test]
fn opens_that_die_one_after_the_other_leave_a_whole_super() {
    for (syncs, seed) in (0..3).flat_map(|syncs| (0..16).map(move |seed| (syncs, seed))) {
        let store = open(8, 64);
        assert_eq!(put(&store, 0..4), 4);
        assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
        for _ in 0..2 {
            let next =
                FailNext { op: Some(Op::Sync), after: syncs, mishap: Mishap::Hang, forever: true };
            faults(&store, |faults| faults.fail_next = Some(next));
            let _ = store.crash(seed, false);
        }
        faults(&store, |faults| faults.fail_next = None);
        let last = store.crash(seed, true).expect("one copy is whole");
        assert_eq!(get(&last, 0..4), 4, "after {syncs} syncs, seed {seed}");
    }
}
