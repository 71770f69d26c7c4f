//! Several devices: where blocks go, and what becomes of the others when one is lost.

use super::SUPER_FILE;
use super::tests::{config, faults, get, keys, open, put, ssd, valid};
use crate::io::{Fault, FileId, Mishap};
use crate::store::simulated::FILES_A_DEVICE;
use crate::store::{SsdPlace, Store, StoreConfig};
use std::sync::Arc;
use std::time::Duration;

const EIO: Mishap = Mishap::Error(Fault::Io(5));
/// Blocks of a stretch.
const STRETCH: u64 = 4;

/// A store over `devices` devices of so many slots each.
fn several(frames: u64, slots: u64, devices: u64) -> StoreConfig {
    let mut config = config(frames, slots);
    let ssd = config.ssd.as_mut().expect("an SSD tier");
    let place = SsdPlace { path: "".into(), capacity_bytes: ssd.capacity_bytes };
    ssd.others = vec![place; devices as usize - 1];
    ssd.stretch_bytes = STRETCH * 4096;
    config.io_timeout = Duration::from_millis(100);
    config
}

fn open_several(frames: u64, slots: u64, devices: u64) -> Arc<Store> {
    Store::open(&several(frames, slots, devices)).expect("a store on simulated devices")
}

fn flush(store: &Store) {
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
}

fn blocks_of_each(store: &Store) -> Vec<u64> {
    store.with_tier(|tier, _| tier.blocks_of_each()).expect("a tier")
}

/// A device does not answer any more, or fails.
fn lose(store: &Store, device: u32, mishap: Mishap) {
    let files = device * FILES_A_DEVICE..(device + 1) * FILES_A_DEVICE;
    faults(store, |faults| faults.lost_files = Some((files, mishap)));
}

fn restore(store: &Store) {
    faults(store, |faults| faults.lost_files = None);
    store.world().expect("a simulated disk").disk.release_hangs();
}

#[test]
fn a_chain_is_spread_over_all_devices_and_comes_back() {
    let store = open_several(64, 64, 3);
    assert_eq!(put(&store, 0..48), 48);
    flush(&store);
    assert_eq!(blocks_of_each(&store), [16, 16, 16]);
    let store = store.crash(1, true).expect("devices to open");
    assert_eq!(blocks_of_each(&store), [16, 16, 16]);
    assert_eq!(get(&store, 0..48), 48);
    valid(&store);
}

#[test]
fn nothing_leaves_while_another_device_has_room() {
    let store = open_several(16, 30, 2);
    for chain in 0..10 {
        assert_eq!(put(&store, chain * 6..chain * 6 + 6), 6);
        flush(&store);
    }
    assert_eq!((ssd(&store).evictions, blocks_of_each(&store)), (0, vec![30, 30]));
    valid(&store);
}

/// Free slots of a device that is left alone are no room.
#[test]
fn a_copy_ahead_of_need_pushes_nothing_out_where_a_device_is_lost() {
    let store = open_several(40, 24, 2);
    lose(&store, 1, EIO);
    let fill = |chains: std::ops::Range<u64>, rest_us| {
        for chain in chains {
            assert_eq!(put(&store, chain * 6..chain * 6 + 6), 6);
            store.step(rest_us);
        }
    };
    fill(0..4, 2_000_000);
    assert_eq!(ssd(&store).state, "degraded");
    assert_eq!(blocks_of_each(&store)[0], 24);
    // The next to leave RAM are clean: nothing need be written, though the disk is idle, but the
    // chain of the one probe that falls into this time.
    fill(4..8, 200_000);
    let evictable = store.stats().blocks - store.stats().blocks_ram;
    assert_eq!((ssd(&store).evictions + evictable, ssd(&store).evictions), (8, 6));
    assert_eq!(blocks_of_each(&store)[0], 24);
    let waiting = store.with_tier(|tier, _| tier.waiting_to_clean());
    assert!(waiting <= Some(12), "{waiting:?}: looked at again and again, kept once");
    valid(&store);
}

#[test]
fn what_a_lost_device_had_is_warm_again_after_one_recompute() {
    for mishap in [EIO, Mishap::Hang] {
        let store = open_several(64, 200, 2);
        assert_eq!(put(&store, 0..48), 48);
        flush(&store);
        let store = store.crash(1, true).expect("devices to open");
        lose(&store, 1, mishap);
        // Until the device is left alone.
        for _ in 0..60 {
            assert!(get(&store, 0..48) < 48);
            store.step(100_000);
        }
        assert_eq!(ssd(&store).state, "degraded", "{mishap:?}");
        assert_eq!(put(&store, 0..48), 48);
        assert_eq!(get(&store, 0..48), 48, "{mishap:?}");
        assert_eq!(ssd(&store).dropped_off, 0, "the other device takes it");
        store.step(2_000_000);
        let before = ssd(&store).reads_refused;
        let other = put(&store, 100..160);
        assert_eq!(other, 60, "everything of the chain may leave RAM");
        assert_eq!(get(&store, 0..48), 48, "it is on the device that is left");
        assert_eq!(ssd(&store).reads_refused, before);
        restore(&store);
        store.step(70_000_000);
        assert_eq!(put(&store, 200..201), 1);
        store.step(70_000_000);
        assert_eq!(ssd(&store).state, "ok", "{mishap:?}");
        assert_eq!(get(&store, 0..48), 48);
        valid(&store);
    }
}

#[test]
fn a_device_that_hangs_keeps_nobody_from_the_others() {
    let store = open_several(64, 100, 2);
    assert_eq!(put(&store, 0..48), 48);
    flush(&store);
    let store = store.crash(1, true).expect("devices to open");
    lose(&store, 1, Mishap::Hang);
    let from_us = store.parts.clock.now_us();
    let mut there = 0;
    let mut out = vec![0; 48 * 4096];
    let mut rows = crate::store::RowsMut::packed(&mut out, 4096);
    for got in store.get_each(&keys(0..48), &mut rows).expect("open") {
        there += u64::from(got);
    }
    assert_eq!(there, 24, "all of the other device");
    assert!(store.parts.clock.now_us() - from_us < 150_000, "one timeout for all");
    valid(&store);
}

#[test]
fn a_store_opens_without_a_device_that_does_not_confirm() {
    let store = open_several(64, 100, 2);
    assert_eq!(put(&store, 0..16), 16);
    flush(&store);
    for mishap in [EIO, Mishap::Hang] {
        lose(&store, 1, mishap);
        let store = store.crash(1, true).expect("the other device confirms");
        let notes = store.stats().fallbacks;
        assert!(
            notes.iter().any(|note| note.starts_with("sim 1: it did not confirm")),
            "{notes:?}"
        );
        assert_eq!(put(&store, 20..30), 10);
        assert_eq!(put(&store, 0..16), 16);
        assert_eq!(get(&store, 0..16), 16);
        assert!(store.clear().is_err(), "what the lost device has, it keeps");
        restore(&store);
    }
}

/// What was removed while a device was away must not come back with it.
#[test]
fn a_device_that_was_away_brings_nothing_back() {
    let with_both = several(64, 100, 2);
    let mut alone = with_both.clone();
    alone.ssd.as_mut().expect("an SSD tier").others.clear();
    let store = Store::open(&with_both).expect("a store");
    assert_eq!(put(&store, 0..48), 48);
    flush(&store);
    let world = store.world().cloned();
    assert_eq!(store.close(Duration::from_secs(5)).left, 0);
    let reopened = |config: &StoreConfig| {
        Store::open_on(config, world.clone(), &mut |_| true).expect("a store")
    };
    let first = reopened(&alone);
    assert_eq!(blocks_of_each(&first), [24]);
    assert_eq!(first.remove(&keys(40..48), true).ok(), Some(4), "of the device that is there");
    assert_eq!(first.close(Duration::from_secs(5)).left, 0);
    let both = reopened(&with_both);
    assert_eq!(blocks_of_each(&both), [20, 0]);
    assert_eq!(both.contains(&keys(40..48)).ok(), Some(vec![false; 8]));
    let notes = both.stats().fallbacks;
    assert!(notes.iter().any(|note| note.contains("not there at the last open")), "{notes:?}");
    assert_eq!(put(&both, 0..48), 48);
    flush(&both);
    assert_eq!(both.close(Duration::from_secs(5)).left, 0);
    let again = reopened(&with_both);
    let of_each = blocks_of_each(&again);
    assert!(of_each.iter().sum::<u64>() == 48 && of_each[1] >= 20, "{of_each:?}");
    valid(&again);
}

/// Its first SUPER never came to be.
#[test]
fn a_replaced_device_is_taken_as_a_new_one() {
    let store = open_several(64, 100, 2);
    assert_eq!(put(&store, 0..48), 48);
    flush(&store);
    assert_eq!(store.close(Duration::from_secs(5)).left, 0);
    let world = store.world().cloned().expect("a simulated disk");
    for file in [SUPER_FILE.0, 1, 2] {
        world.disk.resize(FileId(FILES_A_DEVICE + file), 0);
    }
    let store = Store::open_on(&several(64, 100, 2), Some(world), &mut |_| true).expect("a store");
    assert_eq!(blocks_of_each(&store), [24, 0]);
    assert_eq!(put(&store, 0..48), 48);
    assert_eq!(get(&store, 0..48), 48, "the holes are filled");
    flush(&store);
    assert_eq!(blocks_of_each(&store), [24, 24], "by the emptier device");
    valid(&store);
}

#[test]
fn one_device_in_a_list_is_one_device() {
    let (plain, list) = (open(16, 64), open_several(16, 64, 1));
    for store in [&plain, &list] {
        assert_eq!(put(store, 0..12), 12);
        flush(store);
    }
    assert_eq!(plain.stats().index_bytes, list.stats().index_bytes);
    assert_eq!(ssd(&plain).slots_total, ssd(&list).slots_total);
}
