//! A store that begins in RAM because another one has the directory, and takes it later.

mod model;

use super::tests::{config, fill, get, keys, open, put, valid};
use crate::error::ErrorKind;
use crate::ssd::format::EPOCH_MAX;
use crate::stats::SsdStats;
use crate::store::attach::Phase;
use crate::store::{OnLocked, PutOptions, Rows, RowsMut, SimWorld, Store};
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// Opens a store in RAM: somebody has the directory.
fn open_apart(world: &SimWorld, frames: u64, slots: u64) -> Arc<Store> {
    world.hold(true);
    let mut config = config(frames, slots);
    config.ssd.as_mut().expect("a tier").on_locked = OnLocked::Ram;
    Store::open_on(&config, Some(world.clone()), &mut |_| true).expect("a store in RAM")
}

/// A disk that holds chains of five of these keys, and a store that waits for it.
fn apart(blocks: u64, frames: u64, slots: u64) -> (SimWorld, Arc<Store>) {
    let before = open(64, slots);
    for chain in 0..blocks / 5 {
        assert_eq!(put(&before, chain * 5..chain * 5 + 5), 5);
    }
    assert_eq!(before.close(SOON).left, 0);
    let world = before.world().cloned().expect("a simulated disk");
    let store = open_apart(&world, frames, slots);
    (world, store)
}

fn ssd(store: &Store) -> SsdStats {
    store.stats().ssd.expect("a tier is asked for")
}

/// One turn at a time until the store has come so far.
fn turn_until(store: &Store, phase: Phase) {
    for _ in 0..10_000 {
        if store.phase() == phase {
            return;
        }
        store.turn(Duration::from_millis(20));
    }
    panic!("{:?} and not {phase:?}", store.phase());
}

/// Gives the directory back, and lets the store have it whole.
fn settle(world: &SimWorld, store: &Store) {
    world.hold(false);
    turn_until(store, Phase::Settled);
    valid(store);
}

/// The same disk after a kill.
fn killed(store: &Store) -> Arc<Store> {
    let store = store.crash(1, false).expect("a disk to open");
    valid(&store);
    store
}

#[test]
fn a_store_begins_in_ram_and_takes_the_directory_when_it_is_free() {
    let (world, store) = apart(20, 64, 200);
    assert_eq!((ssd(&store).state, store.stats().fallbacks.len()), ("waiting", 1));
    assert_eq!(put(&store, 100..110), 10);
    assert_eq!((get(&store, 100..110), get(&store, 0..5)), (10, 0));
    store.step(1_000_000);
    assert_eq!((ssd(&store).state, store.phase()), ("waiting", Phase::Waiting));
    assert_eq!(store.flush(SOON).ok(), Some(10), "all are in RAM only");
    world.hold(false);
    turn_until(&store, Phase::Taking);
    assert_eq!(ssd(&store).state, "recovering");
    settle(&world, &store);
    let found = ssd(&store);
    assert_eq!((found.state, found.recovered, found.recovery_all), ("ok", 20, 20));
    assert_eq!(store.stats().fallbacks, Vec::<String>::new());
    assert_eq!((get(&store, 0..5), get(&store, 100..110)), (5, 10));
    assert_eq!(store.flush(SOON).ok(), Some(0), "what came before the tier is written too");
    let again = killed(&store);
    assert_eq!((get(&again, 15..20), get(&again, 100..110)), (5, 10));
}

#[test]
fn a_flush_or_close_waits_for_a_tier_that_is_being_taken_and_for_no_other() {
    let (world, store) = apart(20, 64, 200);
    assert_eq!(put(&store, 100..110), 10);
    world.hold(false);
    turn_until(&store, Phase::Taking);
    assert_eq!(store.flush(SOON).ok(), Some(0));
    assert_eq!(put(&store, 110..120), 10);
    let closed = store.close(SOON);
    assert_eq!((closed.written, closed.left), (40, 0));
    let waiting = open_apart(&world, 64, 200);
    assert_eq!(put(&waiting, 200..207), 7);
    let before_us = waiting.parts.clock.now_us();
    let closed = waiting.close(SOON);
    assert_eq!((closed.written, closed.left), (0, 7));
    assert_eq!(waiting.parts.clock.now_us(), before_us, "at once");
}

#[test]
fn what_ram_has_is_newer_and_heads_come_back_above_their_children() {
    let (world, store) = apart(20, 64, 200);
    // Another length tells the newer one.
    let newer = vec![7_u8; 100];
    let options = PutOptions { chained: false, ..PutOptions::default() };
    store.put(&keys(3..4), &Rows::list(&[&newer]), &options).expect("open");
    // The end of a chain whose head is on disk only.
    let options = PutOptions { parent: Some(keys(9..10)[0]), ..PutOptions::default() };
    let tail = fill(300);
    assert_eq!(store.put(&keys(300..301), &Rows::list(&[&tail]), &options).ok(), Some(1));
    settle(&world, &store);
    let found = ssd(&store);
    assert_eq!((found.recovered, found.recovery_all), (19, 20));
    let entry = |key: u64| store.parts.directory.find_one(keys(key..key + 1)[0]).expect("there");
    assert!(entry(3).is_parent_of(&entry(4)), "the newer one stands in its chain");
    let look = |store: &Store| {
        let mut out = vec![0; 4096];
        let got = store.get(&keys(3..4), &mut RowsMut::packed(&mut out, 4096)).expect("open");
        assert_eq!((got, &out[..101]), (1, [&newer[..], &[0]].concat().as_slice()));
        let chain = [keys(5..10), keys(300..301)].concat();
        assert_eq!(store.match_prefix(&chain).ok(), Some(6));
        assert_eq!(store.match_prefix(&keys(0..5)).ok(), Some(5));
        valid(store);
    };
    look(&store);
    assert_eq!(store.flush(SOON).ok(), Some(0));
    look(&killed(&store));
}

#[test]
fn a_use_before_the_tier_is_there_counts_for_the_record() {
    let (world, store) = apart(20, 64, 200);
    store.step(600_000_000);
    assert_eq!(put(&store, 100..101), 1);
    store.step(60_000_000);
    assert_eq!(get(&store, 100..101), 1);
    settle(&world, &store);
    assert_eq!(store.flush(SOON).ok(), Some(0));
    let again = killed(&store);
    let entry = again.parts.directory.find_one(keys(100..101)[0]).expect("it is warm");
    assert_eq!(again.parts.directory.usage(entry.slot), (11, 1));
}

#[test]
fn what_was_removed_meanwhile_does_not_come_back() {
    let (world, store) = apart(20, 64, 200);
    assert_eq!(put(&store, 100..105), 5);
    assert_eq!(store.remove(&[keys(2..3), keys(104..105)].concat(), false).ok(), Some(1));
    let error = store.remove(&keys(7..8), true).expect_err("nothing confirms it");
    assert_eq!((error.kind, error.code), (ErrorKind::Ssd, "KS-SSD-109"));
    // Removed and put again.
    assert_eq!(store.remove(&keys(11..12), false).ok(), Some(0));
    assert_eq!(put(&store, 11..12), 1);
    settle(&world, &store);
    assert_eq!(ssd(&store).recovered, 17);
    assert_eq!((get(&store, 0..5), get(&store, 5..10), get(&store, 10..15)), (2, 2, 5));
    store.step(1_000_000);
    let again = killed(&store);
    assert_eq!((get(&again, 0..5), get(&again, 5..10), get(&again, 3..5)), (2, 2, 2));
    assert_eq!(get(&again, 100..105), 4);
}

#[test]
fn more_removed_keys_than_are_remembered_take_everything_with_them() {
    let (world, store) = apart(20, 64, 200);
    let some: Vec<_> = keys(1000..1000 + (1 << 16)).to_vec();
    assert_eq!(store.remove(&some, false).ok(), Some(0));
    assert_eq!(store.remove(&keys(2..3), false).ok(), Some(0));
    assert_eq!(put(&store, 100..105), 5);
    settle(&world, &store);
    assert_eq!((ssd(&store).recovered, get(&store, 0..2), get(&store, 100..105)), (0, 0, 5));
    store.step(1_000_000);
    assert_eq!(get(&killed(&store), 0..5), 0);
}

#[test]
fn a_clear_before_the_tier_is_there_is_done_to_it_as_well() {
    for taking in [false, true] {
        let (world, store) = apart(20, 64, 200);
        assert_eq!(put(&store, 100..110), 10);
        if taking {
            world.hold(false);
            turn_until(&store, Phase::Taking);
        }
        let error = store.clear().expect_err("nothing confirms it");
        assert_eq!((error.kind, error.code), (ErrorKind::Ssd, "KS-SSD-109"));
        assert_eq!((get(&store, 100..110), put(&store, 110..115)), (0, 5));
        settle(&world, &store);
        assert_eq!((ssd(&store).recovered, get(&store, 0..5)), (0, 0));
        assert_eq!(store.flush(SOON).ok(), Some(0));
        store.clear().expect("the disk confirms");
        assert_eq!(put(&store, 115..120), 5);
        assert_eq!(store.flush(SOON).ok(), Some(0));
        let again = store.crash(2, true).expect("a disk to open");
        let there = |range| get(&again, range);
        assert_eq!((there(0..5), there(110..115), there(115..120)), (0, 0, 5));
    }
}

/// A clear that waits for its disk is on it once the tier is settled: a power cut brings nothing
/// back.
#[test]
fn a_clear_of_before_survives_a_power_cut() {
    let (world, store) = apart(20, 64, 200);
    assert!(store.clear().is_err());
    settle(&world, &store);
    store.step(1_000_000);
    let again = store.crash(3, true).expect("a disk to open");
    assert_eq!((get(&again, 0..5), ssd(&again).recovered), (0, 0));
}

/// Everything may happen between two pieces.
#[test]
fn puts_gets_removes_and_a_clear_go_on_while_blocks_come_in() {
    let (world, store) = apart(3000, 16, 4000);
    world.hold(false);
    turn_until(&store, Phase::Entering);
    let come = || ssd(&store).recovered;
    let mut heard = vec![come()];
    // A piece is a budget's: nobody waits longer for the lock.
    while come() < 300 {
        store.turn(Duration::ZERO);
        heard.push(come());
        // The parent of what comes next may be gone by then.
        let there = store.contains(&keys(0..3000)).expect("open");
        let youngest = there.iter().rposition(|there| *there).expect("some are in") as u64;
        assert_eq!(store.remove(&keys(youngest..youngest + 1), false).ok(), Some(1));
        heard.push(come());
        valid(&store);
    }
    assert!(heard.windows(2).all(|two| two[1] - two[0] <= 128), "{heard:?}");
    assert_eq!((ssd(&store).state, ssd(&store).recovery_all), ("recovering", 3000));
    assert_eq!(get(&store, 0..5), 5, "what is in is read at once");
    // RAM is small: what is put pushes out others unwritten, and waits for nobody.
    let before_us = store.parts.clock.now_us();
    assert_eq!(put(&store, 5000..5016), 16);
    assert_eq!(put(&store, 5100..5116), 16);
    assert_eq!(store.parts.clock.now_us(), before_us);
    let last = keys(2995..3000);
    assert_eq!(store.remove(&[keys(1..2), last.clone()].concat(), false).ok(), Some(1));
    assert_eq!(store.phase(), Phase::Entering);
    valid(&store);
    while store.phase() == Phase::Entering {
        store.turn(Duration::ZERO);
        valid(&store);
    }
    assert_eq!(ssd(&store).recovered, 2995);
    assert_eq!(store.contains(&last).ok(), Some(vec![false; 5]));
    assert_eq!((get(&store, 0..5), get(&store, 2990..2995)), (1, 5));
    assert!(store.with_tier(|tier, _| tier.recovered_a_hold_max()) <= Some(128));
    assert!(store.stats().lock_blocks_max <= 128);
    assert_eq!(store.flush(SOON).ok(), Some(0));
    let again = killed(&store);
    assert_eq!((get(&again, 0..5), again.contains(&last).ok()), (1, Some(vec![false; 5])));
}

#[test]
fn a_clear_while_blocks_come_in_ends_their_coming() {
    let (world, store) = apart(1000, 16, 2000);
    world.hold(false);
    turn_until(&store, Phase::Entering);
    while ssd(&store).recovered == 0 {
        store.turn(Duration::ZERO);
    }
    let came = ssd(&store).recovered;
    store.clear().expect("the disk confirms");
    valid(&store);
    assert_eq!((store.stats().blocks, put(&store, 5000..5005)), (0, 5));
    while store.phase() == Phase::Entering {
        store.turn(Duration::ZERO);
        valid(&store);
    }
    assert_eq!((ssd(&store).recovered, store.stats().blocks), (came, 5));
    assert_eq!(store.with_tier(|tier, _| tier.records()), Some(ssd(&store).blocks));
    assert_eq!(store.flush(SOON).ok(), Some(0));
    let again = store.crash(4, true).expect("a disk to open");
    assert_eq!((again.stats().blocks, get(&again, 5000..5005)), (5, 5));
}

/// A durable remove is not confirmed before its record was seen.
#[test]
fn a_durable_remove_while_blocks_come_in_waits_for_the_last_one() {
    let (world, store) = apart(1000, 16, 2000);
    world.hold(false);
    turn_until(&store, Phase::Entering);
    assert_eq!(store.remove(&keys(990..995), true).ok(), Some(0));
    assert_eq!(store.phase(), Phase::Settled);
    let again = store.crash(5, true).expect("a disk to open");
    assert_eq!((again.stats().blocks, get(&again, 990..995)), (995, 0));
}

/// A slot that no header names may hold a block that is still to come.
#[test]
fn nothing_is_written_to_a_slot_before_all_blocks_are_in() {
    let (world, store) = apart(3000, 16, 4000);
    assert_eq!(put(&store, 5000..5010), 10);
    world.hold(false);
    turn_until(&store, Phase::Entering);
    let mut confirmed = 0;
    while ssd(&store).recovered < 3000 {
        store.turn(Duration::from_millis(20));
        valid(&store);
        let wrote = ssd(&store);
        assert_eq!((wrote.writes, wrote.requests_in_flight * confirmed), (0, 0));
        // SUPER is on disk after some of them: from then on nothing else keeps a write back.
        confirmed = u64::from(wrote.requests_in_flight == 0 && wrote.recovered > 1000);
    }
    assert_eq!(confirmed, 1);
    // Longer than RAM: the rest has nowhere to go yet.
    assert_eq!(store.phase(), Phase::Entering);
    assert_eq!((put(&store, 6000..6024), ssd(&store).staged), (16, 0));
    settle(&world, &store);
    assert_eq!(store.flush(SOON).ok(), Some(0));
    assert_eq!((put(&store, 6000..6024), ssd(&store).recovered), (24, 3000));
    valid(&store);
}

/// The order of the SSD is that of the last use, also for blocks used while others came in.
#[test]
fn the_oldest_on_disk_leave_first() {
    let before = open(64, 110);
    for chain in 0..20 {
        assert_eq!(put(&before, chain * 5..chain * 5 + 5), 5);
        before.step(120_000_000);
    }
    assert_eq!(before.close(SOON).left, 0);
    let world = before.world().cloned().expect("a simulated disk");
    let store = open_apart(&world, 8, 110);
    world.hold(false);
    turn_until(&store, Phase::Entering);
    while ssd(&store).recovered < 100 {
        store.turn(Duration::ZERO);
    }
    assert_eq!(store.touch(&keys(5..10)).ok(), Some(5));
    settle(&world, &store);
    // Two old chains make room; the one that was touched is not among them.
    for chain in 0..4 {
        assert_eq!(put(&store, 1000 + chain * 5..1005 + chain * 5), 5);
        assert_eq!(store.flush(SOON).ok(), Some(0));
    }
    let left = |chain: u64| store.match_prefix(&keys(chain * 5..chain * 5 + 5)).unwrap_or(0);
    assert_eq!([0, 1, 2, 3].map(left), [0, 5, 0, 5]);
}

#[test]
fn a_directory_that_cannot_be_used_leaves_the_store_in_ram() {
    let (world, store) = apart(20, 64, 200);
    world.disk.write_raw(super::SUPER_FILE, 0, &[0xA5; 8192]);
    assert_eq!(put(&store, 100..110), 10);
    world.hold(false);
    turn_until(&store, Phase::Off);
    let stats = store.stats();
    assert_eq!(stats.ssd.as_ref().map(|ssd| ssd.state), Some("off"));
    assert!(stats.fallbacks[0].starts_with("the SSD tier is off: "), "{:?}", stats.fallbacks);
    store.step(1_000_000);
    assert_eq!((get(&store, 100..110), store.flush(SOON).ok()), (10, Some(10)));
    assert_eq!(store.clear().map_err(|error| error.code), Err("KS-SSD-109"));
    assert_eq!(put(&store, 100..103), 3);
    valid(&store);
    let closed = store.close(SOON);
    assert_eq!((closed.written, closed.left), (0, 3));
}

#[test]
fn a_directory_without_epochs_leaves_the_store_in_ram() {
    let (world, store) = apart(20, 64, 200);
    super::open_tests::spend_epochs(&world, EPOCH_MAX);
    world.hold(false);
    turn_until(&store, Phase::Off);
    assert!(store.stats().fallbacks[0].contains("16777215"), "{:?}", store.stats().fallbacks);
    assert_eq!(put(&store, 0..5), 5);
    valid(&store);
}

/// Pages that can't be read cost their blocks and nothing else.
#[test]
fn faults_while_the_table_is_read_are_survived() {
    let (world, store) = apart(100, 64, 200);
    world.disk.faults(|faults| faults.eio_read_ppm = 300_000);
    world.hold(false);
    turn_until(&store, Phase::Settled);
    world.disk.faults(|faults| faults.eio_read_ppm = 0);
    valid(&store);
    assert!(ssd(&store).recovered <= 100);
    assert_eq!(put(&store, 1000..1005), 5);
    assert_eq!(get(&store, 1000..1005), 5);
}
