//! The store in Rust: what threads, panics and budgets can do to it. The Python tests hold the
//! histories against a model.

use super::*;
use crate::key::Key;
use crate::units::Slot;
use std::time::Instant;

const BLOCK: usize = 4096;

fn open(frames: u64, deterministic: bool) -> Arc<Store> {
    let mut config = StoreConfig::new(frames * BLOCK as u64, BLOCK as u64);
    config.deterministic = deterministic;
    match Store::open(&config) {
        Ok(store) => store,
        Err(error) => panic!("{error}"),
    }
}

fn keys(range: std::ops::Range<u64>) -> Vec<Key> {
    range.map(|n| Key::from_words([n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n])).collect()
}

/// What a block of this key must hold: its first word, all over.
fn bytes_of(keys: &[Key]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.words()[1].to_le_bytes().repeat(BLOCK / 8)).collect()
}

fn put(store: &Store, keys: &[Key]) -> usize {
    let bytes = bytes_of(keys);
    let rows = Rows::packed(&bytes, BLOCK);
    store.put(keys, &rows, &PutOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn get(store: &Store, keys: &[Key]) -> usize {
    let mut out = vec![0xEE; keys.len() * BLOCK];
    let n =
        store.get(keys, &mut RowsMut::packed(&mut out, BLOCK)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(out[..n * BLOCK], bytes_of(&keys[..n]), "other bytes than were put");
    n
}

fn sound(store: &Store) -> Recount {
    store.validate().unwrap_or_else(|wrong| panic!("{wrong:#?}"))
}

#[test]
fn blocks_come_back_and_are_not_stored_twice() {
    let store = open(8, true);
    let chain = keys(0..5);
    assert_eq!((put(&store, &chain), put(&store, &chain)), (5, 5));
    assert_eq!(get(&store, &chain), 5);
    assert_eq!(get(&store, &keys(3..9)), 2, "a run may begin in mid-chain");
    let stats = store.stats();
    assert_eq!((stats.puts, stats.put_present, stats.blocks), (5, 5, 5));
    assert_eq!(sound(&store).evictable, 5);
}

/// Copies that are left for the end of a round rely on it.
#[test]
fn a_block_is_kept_where_its_pin_outlasts_the_visit() {
    let store = open(4, true);
    let one = keys(0..1);
    assert_eq!(put(&store, &one), 1);
    let run = store.look_up(&one);
    let reach = |reach, own: Option<&mut Vec<Slot>>| {
        let mut kept = None;
        let mut visit = |block: past::Bytes<'_>| kept.replace(block.kept).is_none();
        let mut ahead = past::Ahead::default();
        let said = store.reach(&run, 0, past::Way::to(reach), &mut ahead, own, &mut visit);
        assert_eq!(said, Some(true));
        kept
    };
    let mut pins = Vec::new();
    assert_eq!((reach(past::Reach::Past, Some(&mut pins)), pins.len()), (Some(false), 0));
    assert_eq!((reach(past::Reach::Frame, Some(&mut pins)), pins.len()), (Some(true), 1));
    assert_eq!(reach(past::Reach::Past, None), Some(true));
    pins.into_iter().for_each(|slot| store.parts.directory.unpin(slot));
    assert_eq!(sound(&store).pins, 0);
}

#[test]
fn a_chain_longer_than_ram_keeps_its_head() {
    let store = open(8, true);
    assert_eq!(put(&store, &keys(100..104)), 4);
    let chain = keys(0..20);
    assert_eq!(put(&store, &chain), 8);
    assert_eq!((get(&store, &chain), store.stats().put_short), (8, 12));
    sound(&store);
}

#[test]
fn a_key_twice_in_a_batch_counts_as_present() {
    let store = open(4, true);
    let mut twice = keys(0..3);
    twice.extend(keys(0..3));
    assert_eq!(put(&store, &twice), 6);
    assert_eq!(store.stats().puts, 3);
    let one = vec![keys(7..8)[0]; 50];
    assert_eq!(put(&store, &one), 50);
    sound(&store);
}

#[test]
fn a_lease_keeps_its_blocks_and_nothing_is_refused_for_others() {
    let store = open(8, true);
    let kept = keys(0..5);
    assert_eq!(put(&store, &kept), 5);
    let lease = store.lease(&kept, 5).unwrap_or_else(|e| panic!("{e}"));
    for n in 1..20 {
        assert_eq!(put(&store, &keys(n * 100..n * 100 + 4)), 3, "three frames are not leased");
    }
    assert_eq!((get(&store, &kept), sound(&store).evictable), (5, 3));
    drop(lease);
    assert_eq!(sound(&store).evictable, 8, "all handles dropped: everything can leave");
    assert_eq!(put(&store, &keys(5000..5008)), 8);
    sound(&store);
}

#[test]
fn everything_leased_means_nothing_stored_and_nothing_changed() {
    let store = open(4, true);
    let kept = keys(0..4);
    put(&store, &kept);
    let lease = store.lease(&kept, 0).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(put(&store, &keys(10..12)), 0);
    assert_eq!(store.stats().put_short, 2);
    let too_many = store.lease(&keys(0..6), 5);
    assert_eq!(too_many.err().map(|e| e.code), Some("KS-CAP-001"));
    drop(lease);
    assert_eq!(sound(&store).pins, 0);
    assert_eq!(put(&store, &keys(10..12)), 2);
}

#[test]
fn a_poisoned_store_misses_and_stores_nothing() {
    let store = open(8, true);
    let chain = keys(0..3);
    put(&store, &chain);
    store.fault_panic_under_lock();
    assert_eq!((get(&store, &chain), put(&store, &keys(10..13))), (0, 0));
    assert_eq!((store.match_prefix(&chain).ok(), store.stats().state), (Some(0), "poisoned"));
}

#[test]
fn one_hold_of_the_lock_is_bounded_for_any_batch() {
    let store = open(2000, false);
    for round in 0..6 {
        put(&store, &keys(round * 1500..round * 1500 + 1500));
        get(&store, &keys(round * 1500..round * 1500 + 1500));
    }
    store.clear().unwrap_or_else(|e| panic!("{e}"));
    let stats = store.stats();
    assert!(stats.lock_blocks_max <= u64::from(LOCK_BLOCKS_MAX), "{}", stats.lock_blocks_max);
    assert!(stats.lock_holds > 100 && stats.evictions > 1000);
    sound(&store);
}

#[test]
fn many_clears_in_a_row_leave_a_sound_store() {
    let store = open(64, false);
    for round in 0..200 {
        put(&store, &keys(round..round + 20));
        store.clear().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(store.match_prefix(&keys(round..round + 20)).ok(), Some(0));
    }
    assert_eq!((sound(&store).blocks, store.stats().cleared), (0, 4000));
    assert_eq!(store.stats().frames_free, 64);
}

#[test]
fn a_put_waits_for_a_call_in_progress_to_give_frames_back() {
    let store = open(8, false);
    let all: Vec<_> = (0..8).filter_map(|_| store.parts.frames.take_one()).collect();
    let inside = store.gate.enter();
    std::thread::scope(|scope| {
        let putter = scope.spawn(|| put(&store, &keys(0..3)));
        std::thread::sleep(Duration::from_millis(30));
        for frame in all {
            store.parts.frames.give(frame);
        }
        drop(inside);
        assert_eq!(putter.join().ok(), Some(3));
    });
    sound(&store);
}

#[test]
fn two_threads_each_put_and_lease_sixty_percent() {
    let store = open(100, false);
    for round in 0..50 {
        let begun = Instant::now();
        let leased: Vec<usize> = std::thread::scope(|scope| {
            let threads = [0, 1].map(|thread: u64| {
                let store = &store;
                scope.spawn(move || {
                    let chain = keys(round * 1000 + thread * 100..round * 1000 + thread * 100 + 60);
                    put(store, &chain);
                    let lease = store.lease(&chain, 0).unwrap_or_else(|e| panic!("{e}"));
                    lease.len()
                })
            });
            threads.map(|t| t.join().unwrap_or(usize::MAX)).to_vec()
        });
        assert!(leased.iter().all(|n| *n <= 60), "{leased:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "somebody waited");
    }
    sound(&store);
}

#[test]
fn readers_see_right_bytes_or_a_miss_while_writers_evict() {
    let store = open(40, false);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let store = &store;
            scope.spawn(move || {
                for i in 0..3_000_u64 {
                    let start = (i * 7 + thread * 3) % 16 * 10;
                    put(store, &keys(start..start + 10));
                    if i % 64 == 0 {
                        let _ = store.remove(&keys(start + 4..start + 6), true);
                    }
                    if i % 512 == 0 {
                        let _ = store.clear();
                    }
                }
            });
            scope.spawn(move || {
                let mut found = 0;
                for i in 0..6_000_u64 {
                    let start = (i * 5 + thread) % 16 * 10;
                    found += get(store, &keys(start..start + 10));
                    if let Ok(lease) = store.lease(&keys(start..start + 3), 0) {
                        assert!(lease.len() <= 3);
                    }
                }
                assert!(found > 0, "never a hit: nothing was tested");
            });
        }
    });
    let recount = sound(&store);
    assert_eq!((recount.pins, recount.evictable), (0, recount.blocks));
}

fn manual(frames: u64, policy: PolicyKind) -> Arc<Store> {
    let mut config = StoreConfig::new(frames * BLOCK as u64, BLOCK as u64);
    (config.deterministic, config.manual_clock, config.policy) = (true, true, policy);
    Store::open(&config).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_retired_chain_leaves_first_but_not_the_head_it_shares() {
    for policy in [PolicyKind::Lru, PolicyKind::Arc] {
        let store = manual(8, policy);
        let (mut dead, mut live) = (keys(0..4), keys(0..2));
        put(&store, &keys(20..22));
        live.extend(keys(10..12));
        put(&store, &dead);
        put(&store, &live);
        assert_eq!(get(&store, &dead), 4, "now the youngest of all");
        assert_eq!(store.retire(&dead).ok(), Some(2), "the other chain's head stays");
        assert_eq!(store.match_prefix(&dead).ok(), Some(4), "still readable");
        assert_eq!(put(&store, &keys(30..32)), 2);
        dead.truncate(2);
        assert_eq!((get(&store, &dead), get(&store, &live)), (2, 4));
        assert_eq!(get(&store, &keys(20..22)), 2, "older, and not retired");
        assert_eq!(store.match_prefix(&keys(2..3)).ok(), Some(0));
        sound(&store);
    }
}

#[test]
fn a_hit_takes_a_retired_chain_back() {
    let store = manual(4, PolicyKind::Lru);
    put(&store, &keys(0..2));
    put(&store, &keys(10..12));
    assert_eq!(store.retire(&keys(10..12)).ok(), Some(2));
    assert_eq!(get(&store, &keys(10..12)), 2);
    put(&store, &keys(20..22));
    assert_eq!((get(&store, &keys(10..12)), get(&store, &keys(0..2))), (2, 0));
    sound(&store);
}

#[test]
fn retained_blocks_outlive_younger_ones_until_their_deadline() {
    for policy in [PolicyKind::Lru, PolicyKind::Arc] {
        let store = manual(8, policy);
        let kept = keys(0..3);
        put(&store, &kept);
        assert_eq!(store.retain(&kept, Duration::from_secs(30)).ok(), Some(3));
        for n in 1..6 {
            assert_eq!(put(&store, &keys(n * 10..n * 10 + 5)), 5);
        }
        assert_eq!(store.match_prefix(&kept).ok(), Some(3));
        assert_eq!(put(&store, &keys(100..108)), 8, "never a reason to refuse");
        assert_eq!(store.match_prefix(&kept).ok(), Some(0));
        put(&store, &kept);
        assert_eq!(store.retain(&kept, Duration::from_secs(30)).ok(), Some(3));
        store.step(30_000_000);
        for n in 20..22 {
            assert_eq!(put(&store, &keys(n * 10..n * 10 + 5)), 5);
        }
        assert_eq!(store.match_prefix(&kept).ok(), Some(0), "past the deadline");
        sound(&store);
    }
}

#[test]
fn at_most_half_the_frames_are_retained() {
    let store = manual(8, PolicyKind::Lru);
    let (first, second) = (keys(0..4), keys(10..13));
    put(&store, &first);
    put(&store, &second);
    assert_eq!(store.retain(&first, Duration::from_secs(10)).ok(), Some(4));
    assert_eq!(store.retain(&second, Duration::from_secs(20)).ok(), Some(3));
    assert_eq!(put(&store, &keys(20..24)), 4);
    assert_eq!(store.match_prefix(&second).ok(), Some(3));
    assert_eq!(store.match_prefix(&first).ok(), Some(1), "the head outlives its tail");
    assert_eq!(store.retain(&second, Duration::ZERO).ok(), Some(0), "ended");
    sound(&store);
}

/// Keys chosen by number, so that tests can say which.
fn some(numbers: &[u64]) -> Vec<Key> {
    numbers.iter().flat_map(|n| keys(*n..*n + 1)).collect()
}

fn held(store: &Store, among: std::ops::Range<u64>) -> Vec<u64> {
    let there = store.contains(&keys(among.clone())).unwrap_or_default();
    among.zip(there).filter_map(|(n, there)| there.then_some(n)).collect()
}

fn put_under(store: &Store, parent: u64, numbers: &[u64]) -> usize {
    let (keys, parent) = (some(numbers), some(&[parent])[0]);
    let bytes = bytes_of(&keys);
    let options = PutOptions { parent: Some(parent), ..PutOptions::default() };
    store.put(&keys, &Rows::packed(&bytes, BLOCK), &options).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_piece_does_not_evict_the_block_it_hangs_on() {
    let store = open(4, true);
    put(&store, &some(&[0, 1]));
    put(&store, &some(&[50]));
    put(&store, &some(&[51]));
    assert_eq!(put_under(&store, 1, &[2]), 1);
    assert_eq!(held(&store, 0..60), [0, 1, 2, 51]);
    let store = open(4, true);
    put(&store, &some(&[0, 1, 2, 3]));
    assert_eq!(put_under(&store, 3, &[4, 5, 6, 7]), 0);
    assert_eq!(held(&store, 0..60), [0, 1, 2, 3]);
    sound(&store);
}

#[test]
fn a_key_twice_in_a_batch_takes_one_frame_and_evicts_for_one() {
    let store = open(4, true);
    (50..53).for_each(|n| assert_eq!(put(&store, &some(&[n])), 1));
    assert_eq!(put(&store, &some(&[0, 0, 0, 0])), 4);
    assert_eq!(held(&store, 0..60), [0, 50, 51, 52]);
    let store = open(4, true);
    put(&store, &some(&[0]));
    assert_eq!(put(&store, &some(&[0, 0, 0, 0, 1])), 5);
    assert_eq!(held(&store, 0..60), [0, 1]);
    sound(&store);
}

#[test]
fn a_removed_block_woken_before_its_note_leaves_the_order_too() {
    let store = open(4, true);
    put(&store, &some(&[8, 9]));
    let lease = store.lease(&some(&[8, 9]), 2).unwrap_or_else(|e| panic!("{e}"));
    put(&store, &some(&[1, 2]));
    assert_eq!(put(&store, &some(&[3, 4])), 2, "a search has passed the leased ones");
    drop(lease);
    assert_eq!(store.remove(&some(&[9, 8]), true).ok(), Some(2));
    put(&store, &some(&[5, 6]));
    sound(&store);
    let events = store.events().unwrap_or_default();
    let removed = |n| (EventKind::Removed, Some(some(&[n])[0]));
    for n in [8, 9] {
        let count = events.iter().filter(|e| (e.kind, e.key) == removed(n)).count();
        assert_eq!(count, 1, "one report of {n}");
    }
}

#[test]
fn the_frames_of_a_cleared_chain_are_free_once_the_stats_are_asked() {
    let store = open(64, false);
    put(&store, &keys(0..40));
    store.clear().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(store.stats().frames_free, 64, "parents are woken by the sweep of their children");
}

#[test]
fn parents_named_in_a_circle_make_no_circle() {
    let store = open(4, true);
    assert_eq!(put_under(&store, 2, &[1]), 1, "1 under the absent 2: a hole");
    assert_eq!(put_under(&store, 1, &[2]), 1, "2 under 1: the hole is filled and stays a root");
    assert_eq!((held(&store, 0..60), sound(&store).holes), (vec![1, 2], 0));
    assert_eq!((get(&store, &some(&[2, 1])), get(&store, &some(&[1, 2]))), (2, 2));
    assert_eq!(put(&store, &some(&[10, 11, 12, 13])), 4, "both can leave");
    assert_eq!(held(&store, 0..60), [10, 11, 12, 13]);
    sound(&store);
}

#[test]
fn a_pinned_match_counts_as_a_lookup_and_touches_nothing() {
    let store = open(4, true);
    put(&store, &some(&[1]));
    (2..5).for_each(|n| assert_eq!(put(&store, &some(&[n])), 1));
    let pinned = store.match_pinned(&some(&[1, 9])).unwrap_or_else(|e| panic!("{e}"));
    let stats = store.stats();
    assert_eq!((pinned.0.len(), stats.hits, stats.misses), (1, 0, 0));
    assert_eq!((stats.lookup_hits, stats.lookup_misses, stats.frames_pinned), (1, 1, 1));
    drop(pinned);
    put(&store, &some(&[6]));
    assert_eq!(held(&store, 0..60), [2, 3, 4, 6], "1 is still the oldest");
    sound(&store);
}
