//! Opening a tier again: its last epoch, and who watches.

use super::SUPER_FILE;
use super::tests::{config, get, keys, open, put, valid};
use crate::error::ErrorKind;
use crate::ssd::format::{EPOCH_MAX, PAGE_BYTES, SUPER_BYTES, Super, newest};
use crate::store::{Progress, SimWorld, Store};
use std::sync::Arc;
use std::time::Duration;

/// A disk with some blocks, whose SUPER has left only so many epochs.
fn almost_out_of_epochs(blocks: u64, left: u32) -> Arc<Store> {
    let store = open(16, 64);
    assert_eq!(put(&store, 0..blocks), blocks as usize);
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    spend_epochs(store.world().expect("a simulated disk"), EPOCH_MAX - left);
    store
}

/// SUPER says that the disk is in this epoch.
pub(super) fn spend_epochs(world: &SimWorld, epoch: u32) {
    let mut copies = vec![0; SUPER_BYTES as usize];
    world.disk.read(SUPER_FILE, 0, &mut copies);
    let found = newest(&copies[..PAGE_BYTES], &copies[PAGE_BYTES..]).expect("a good SUPER");
    let later = Super { epoch, sequence: found.sequence + 2, ..found };
    world.disk.write_raw(SUPER_FILE, (later.copy() * PAGE_BYTES) as u64, &later.encode());
}

#[test]
fn a_directory_without_epochs_refuses_and_changes_nothing() {
    let store = almost_out_of_epochs(4, 2).crash(1, false).expect("one more epoch is left");
    store.clear().expect("that was the last epoch");
    assert_eq!(put(&store, 0..4), 4);
    let refused = store.clear().expect_err("no epoch is left");
    assert_eq!((refused.kind, refused.code), (ErrorKind::Format, "KS-FMT-005"));
    assert_eq!(get(&store, 0..4), 4, "nothing was cleared");
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    for _ in 0..2 {
        let refused = store.crash(2, false).err().expect("no epoch is left");
        assert_eq!((refused.kind, refused.code), (ErrorKind::Format, "KS-FMT-005"));
    }
    valid(&store);
}

#[test]
fn an_open_tells_how_far_it_is_and_can_be_ended() {
    let store = open(16, 6000);
    let world = store.world().cloned();
    for chain in 0..1000 {
        assert_eq!(put(&store, chain * 5..chain * 5 + 5), 5);
    }
    assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    assert_eq!(store.close(Duration::from_secs(5)).left, 0);
    for ends_at in
        [("pages", 1), ("pages", 3), ("records", 1), ("records", 9), ("blocks", 1), ("", 0)]
    {
        let mut heard: Vec<(&str, u64, u64)> = Vec::new();
        let opened = Store::open_on(&config(16, 6000), world.clone(), &mut |progress| {
            let Progress::Recovers { what, done, all } = progress else { return true };
            heard.push((what, done, all));
            let (last, times) = ends_at;
            last.is_empty() || heard.iter().filter(|told| told.0 == last).count() < times
        });
        let turn = |what| ["pages", "records", "blocks"].iter().position(|known| *known == what);
        assert!(heard.is_sorted_by_key(|told| (turn(told.0), told.1)), "{heard:?}");
        assert!(heard.iter().all(|told| turn(told.0).is_some()), "{heard:?}");
        assert!(heard.iter().all(|told| told.1 <= told.2), "{heard:?}");
        if ends_at.1 > 0 {
            let error = opened.err().expect("the watch has ended it");
            assert_eq!((error.kind, error.code), (ErrorKind::Ssd, "KS-SSD-107"));
            assert_eq!(heard.last().map(|told| told.0), Some(ends_at.0));
            continue;
        }
        let store = opened.expect("a store");
        assert!(heard.contains(&("blocks", 4096, 5000)));
        let told = heard.iter().filter(|told| told.0 == "records").count();
        // Six stages over 5,000 or 6,000; one of them has three looks at each.
        assert!(told >= 12, "{heard:?}");
        assert_eq!(store.match_prefix(&keys(0..5)).ok(), Some(5));
        assert_eq!(store.stats().blocks, 5000);
        valid(&store);
    }
}

/// By counter: a hold blanks or enters no more than its share.
#[test]
fn nothing_at_open_is_done_in_one_hold() {
    let store = open(16, 10_000);
    let world = store.world().cloned();
    let fill = |store: &Store| {
        for chain in 0..2000 {
            assert_eq!(put(store, chain * 5..chain * 5 + 5), 5);
        }
        assert_eq!(store.flush(Duration::from_secs(5)).ok(), Some(0));
    };
    let crash_and_open = |store: &Store| {
        drop(store.crash(1, false));
        let opened = Store::open_on(&config(16, 10_000), world.clone(), &mut |_| true);
        let store = opened.expect("a store");
        let most = store.with_tier(|tier, _| tier.recovered_a_hold_max());
        (store, most)
    };
    fill(&store);
    let (store, most) = crash_and_open(&store);
    assert_eq!((store.stats().blocks, most), (10_000, Some(4096)));
    store.clear().expect("the disk confirms");
    let (store, most) = crash_and_open(&store);
    assert_eq!((store.stats().blocks, most), (0, Some(4096)));
    valid(&store);
}

/// Its record stood on the page of the last slots, beyond them, and was out of sight for a while.
#[test]
fn what_was_removed_from_a_smaller_ssd_is_gone_from_a_larger_one() {
    let store = open(8, 60);
    assert_eq!(put(&store, 0..8), 8);
    for chain in 0..13 {
        assert_eq!(put(&store, chain * 4..chain * 4 + 4), 4);
    }
    let world = store.world().cloned();
    let opened = |slots| {
        let opened = Store::open_on(&config(8, slots), world.clone(), &mut |_| true);
        opened.expect("a store")
    };
    assert_eq!(store.close(Duration::from_secs(5)).left, 0);
    let smaller = opened(44);
    let all = keys(0..52);
    let there = smaller.contains(&all).expect("open");
    let gone = all.iter().zip(there).filter(|(_, there)| !there).map(|(key, _)| *key);
    let gone: Vec<_> = gone.collect();
    assert_eq!(gone.len(), 8, "their slots are gone");
    assert_eq!(smaller.remove(&gone, true).ok(), Some(0));
    drop(smaller.crash(1, true));
    assert_eq!(opened(60).contains(&gone).ok(), Some(vec![false; 8]));
}
