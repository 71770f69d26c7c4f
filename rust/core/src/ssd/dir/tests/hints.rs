//! `changes`: when it is there, and what it costs.

use super::*;
use crate::ssd::changes::CHANGES_BYTES;

/// More than fit on the pages that a follower reads whole.
const MANY: u32 = 65 * 42;

fn many(root: &Root) -> DirConfig<'_> {
    DirConfig { slots_a_file: 1000, ..root.config(MANY) }
}

fn length(root: &Root) -> Option<u64> {
    fs::metadata(root.file(CHANGES)).ok().map(|stat| stat.len())
}

#[test]
fn a_long_table_has_one_within_the_capacity() {
    let root = Root::new("hint");
    let config = DirConfig { capacity_bytes: capacity_of(MANY) + CHANGES_BYTES, ..many(&root) };
    let opened = open(&config).expect("open");
    assert_eq!((opened.slots, opened.changes.is_some()), (MANY, true));
    assert_eq!(length(&root), Some(CHANGES_BYTES));
    assert!(root.bytes() <= config.capacity_bytes);
    root.write_super(&super_of(&opened));
    drop(opened);
    let looked = open(&DirConfig { read_only: true, ..config.clone() }).expect("look");
    assert!(looked.changes.is_some() && looked.warnings.is_empty(), "{:?}", looked.warnings);
    remove(&root.0, FINGERPRINT, "0").expect("remove");
    assert!(!root.file(CHANGES).exists());
}

#[test]
fn a_short_table_has_none() {
    let root = Root::new("no-hint");
    let opened = open(&root.config(40)).expect("open");
    assert!(opened.changes.is_none() && length(&root).is_none());
}

#[test]
fn it_takes_no_slot_of_a_directory_that_is_there() {
    let root = Root::new("hint-room");
    // Made when there was no such file.
    let opened = open(&many(&root)).expect("open");
    assert!(opened.slots < MANY && opened.changes.is_some(), "a new one has room for it");
    root.write_super(&Super { slots: MANY, ..super_of(&opened) });
    drop(opened);
    let opened = open(&many(&root)).expect("open");
    assert_eq!((opened.slots, opened.changes.is_some()), (MANY, false));
    assert!(length(&root).is_none() && root.bytes() <= capacity_of(MANY));
}

#[test]
fn an_open_goes_without_one_that_cannot_be_made() {
    let root = Root::new("hint-full");
    let disk = Disk {
        fallocate: |file, offset, len| match len {
            CHANGES_BYTES => Err(Errno::NOSPC),
            _ => (Disk::REAL.fallocate)(file, offset, len),
        },
        ..Disk::REAL
    };
    let config = DirConfig { capacity_bytes: capacity_of(MANY) + CHANGES_BYTES, ..many(&root) };
    let opened = open_on(&config, disk).expect("open");
    assert!(opened.changes.is_none() && says(&opened.fallbacks, "changes"));
    assert!(length(&root).is_none());
}
