//! `verify`: exactly what is rotten is found, and nothing that an owner was changing.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

fn verified(folder: &Folder) -> Verified {
    verify(&folder.0, None, &mut |_, _| true).unwrap_or_else(|error| panic!("{error}"))
}

/// Blocks: all, good, bad, unreadable, changed.
fn counts(found: &Verified) -> [u64; 5] {
    [found.blocks, found.good, found.bad, found.unreadable, found.changed]
}

#[test]
fn a_clean_directory_verifies() {
    let folder = Folder::new("verify-clean");
    folder.stored(0..50);
    let mut heard = Vec::new();
    let found = verify(&folder.0, None, &mut |done, all| {
        heard.push((done, all));
        true
    });
    let found = found.expect("a directory");
    assert_eq!(counts(&found), [50, 50, 0, 0, 0]);
    assert_eq!(found.bytes, (0..50).map(|n| fill(n).len() as u64).sum::<u64>());
    assert!(found.is_sound() && found.seconds > 0.0);
    assert_eq!(heard.last(), Some(&(50, 50)));
}

#[test]
fn flipped_bits_are_found_each_block_once() {
    let folder = Folder::new("verify-flips");
    folder.stored(0..50);
    for n in [3, 17, 49] {
        let slot = folder.slot_of(n);
        folder.flip(slot, 0);
        folder.flip(slot, fill(n).len() as u64 - 1);
    }
    // Behind the payload nothing counts.
    folder.flip(folder.slot_of(5), fill(5).len() as u64);
    let found = verified(&folder);
    assert_eq!(counts(&found), [50, 47, 3, 0, 0]);
    assert!(!found.is_sound());
    let again = verified(&folder);
    assert_eq!(counts(&again), [50, 47, 3, 0, 0], "verify repairs nothing");
}

#[test]
fn a_file_cut_short_is_unreadable_and_a_rotten_page_is_told() {
    let folder = Folder::new("verify-short");
    folder.stored(0..50);
    let slots = OpenOptions::new().write(true).open(folder.file("slots.0000")).expect("open");
    slots.set_len(40 * BLOCK + 10).expect("cut");
    let found = verified(&folder);
    let beyond = [folder.page(0), folder.page(1)].concat();
    let beyond = beyond.iter().skip(40).filter(|record| !record.is_free()).count() as u64;
    assert!(beyond > 0);
    assert_eq!(counts(&found), [50, 50 - beyond, 0, beyond, 0]);
    folder.change("table", 300, 1, |byte| byte[0] ^= 1);
    let found = verified(&folder);
    assert_eq!((found.pages_unreadable, found.is_sound()), (1, false));
}

#[test]
fn older_copies_of_a_key_do_not_count() {
    let folder = Folder::new("verify-losers");
    folder.stored(0..4);
    let mut records = folder.page(0);
    let older = Record { generation: records[0].generation - 1, ..records[0] };
    let free = records.iter().position(Record::is_free).expect("a free slot");
    records[free] = older;
    folder.write_page(0, &records);
    assert_eq!(counts(&verified(&folder)), [4, 4, 0, 0, 0]);
}

#[test]
fn what_changes_meanwhile_is_not_called_bad() {
    let folder = Folder::new("verify-changes");
    folder.stored(0..20);
    let records = folder.page(0);
    let mut changed = false;
    // 20 blocks a second: the progress is heard while most are still to be read.
    let found = verify(&folder.0, Some(20 * 3000), &mut |done, _| {
        if done >= 2 && !changed {
            changed = true;
            folder.flip(15, 0);
            folder.flip(16, 0);
            folder.flip(17, 0);
            let mut records = records;
            records[15] = Record::FREE;
            records[16].generation += 1_000;
            folder.write_page(0, &records);
        }
        true
    });
    let found = found.expect("a directory");
    assert!(changed);
    assert_eq!(counts(&found), [20, 17, 1, 0, 2]);
}

#[test]
fn what_was_cleared_meanwhile_is_not_called_bad() {
    let folder = Folder::new("verify-clear");
    folder.stored(0..20);
    let superblock = folder.superblock();
    let mut cleared = false;
    let found = verify(&folder.0, Some(20 * 3000), &mut |done, _| {
        if done >= 2 && !cleared {
            cleared = true;
            let Super { epoch, sequence, .. } = superblock;
            let now = Super {
                epoch: epoch + 1,
                clear_epoch: epoch,
                sequence: sequence + 1,
                ..superblock.clone()
            };
            folder.change("SUPER", now.copy() as u64 * PAGE_BYTES as u64, PAGE_BYTES, |page| {
                page.copy_from_slice(&now.encode());
            });
            (15..20).for_each(|slot| folder.flip(slot, 0));
        }
        true
    });
    assert_eq!(counts(&found.expect("a directory")), [20, 15, 0, 0, 5]);
}

/// The owner replaces every block several times a second, in slots that are all used; its record
/// pages follow up to half a second later.
#[test]
fn a_busy_owner_has_no_bad_blocks() {
    let folder = Folder::new("verify-busy");
    let store = folder.open(64);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut from = 0;
            while !stop.load(Ordering::Relaxed) {
                put(&store, from..from + 16);
                from += 16;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        std::thread::sleep(Duration::from_millis(700));
        let (mut found, begun) = (Verified::default(), Instant::now());
        while found.changed + found.bad == 0 && begun.elapsed() < Duration::from_secs(20) {
            found = verify(&folder.0, Some(64 * 3000 * 4), &mut |_, _| true).unwrap_or_default();
        }
        // The owner ends before anything is judged.
        stop.store(true, Ordering::Relaxed);
        assert!(found.changed > 0, "nothing changed: this tests nothing");
        assert_eq!((found.bad, found.unreadable, found.pages_unreadable), (0, 0, 0));
    });
}

#[test]
fn it_keeps_its_pace_and_can_be_stopped() {
    let folder = Folder::new("verify-pace");
    folder.stored(0..20);
    let bytes: u64 = (0..20).map(|n| fill(n).len() as u64).sum();
    let begun = Instant::now();
    let found = verify(&folder.0, Some(bytes * 2), &mut |_, _| true).expect("verify");
    assert!(found.is_sound());
    // The last block's time is not waited for.
    let took = begun.elapsed().as_secs_f64();
    assert!((0.4..5.0).contains(&took), "{took} s");
    let found = verify(&folder.0, Some(20_000), &mut |done, _| done == 0).expect("verify");
    assert!(found.stopped && !found.is_sound());
    assert_eq!(found.blocks, 1);
}

#[test]
fn a_member_that_cannot_be_opened_is_told_beside_the_others() {
    let folder = Folder::new("verify-failed");
    assert_eq!(code(verify(&folder.0, None, &mut |_, _| true)), "KS-CFG-404");
    folder.stored(0..3);
    let broken = folder.0.join(HEX).join("broken");
    fs::create_dir(&broken).expect("create");
    fs::write(broken.join("SUPER"), "mine").expect("write");
    let found = verified(&folder);
    assert_eq!((counts(&found), found.is_sound()), ([3, 3, 0, 0, 0], false));
    let failed: Vec<_> =
        found.failed.iter().map(|(path, error)| (path.clone(), error.code)).collect();
    assert_eq!(failed, [(fs::canonicalize(&broken).expect("a path"), "KS-FMT-002")]);
}
