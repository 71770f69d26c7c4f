//! `changes` from both sides, against what was entered.

use super::*;
use std::fs::OpenOptions;

const UUID: [u8; 16] = [7; 16];

/// A file of the right length, without a name.
fn file(name: &str) -> File {
    let name = format!("keystow-changes-{name}-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    std::fs::remove_file(&path).expect("remove");
    let file = made.expect("create");
    file.set_len(CHANGES_BYTES).expect("extend");
    file
}

fn both(name: &str) -> (Changes, Reader) {
    let file = file(name);
    let reader = Reader::new(file.try_clone().expect("clone"), UUID);
    (Changes::begin(file, UUID).expect("begin"), reader)
}

#[test]
fn what_was_entered_is_read_once_in_order_and_without_repeats() {
    let (mut owner, mut follower) = both("once");
    owner.enter(&[9]).expect("enter");
    assert_eq!(follower.read(), Changed::All, "it does not know what was before");
    assert_eq!(follower.read(), Changed::Pages(vec![]));
    owner.enter(&[5, 3]).expect("enter");
    owner.enter(&[5]).expect("enter");
    assert_eq!(follower.read(), Changed::Pages(vec![3, 5]));
    assert_eq!(follower.read(), Changed::Pages(vec![]));
}

#[test]
fn every_page_is_read_over_many_turns_of_the_ring() {
    let (mut owner, mut follower) = both("turns");
    assert_eq!(follower.read(), Changed::All);
    let mut next = 0;
    for some in [1, 4_000, 8_192, 5_000, 3, 8_191, 8_192, 700, 8_000] {
        let pages: Vec<u32> = (next..next + some).collect();
        pages.chunks(997).for_each(|pages| owner.enter(pages).expect("enter"));
        assert_eq!(follower.read(), Changed::Pages(pages), "{some} from {next}");
        next += some;
    }
}

#[test]
fn a_follower_that_is_overtaken_reads_everything() {
    let (mut owner, mut follower) = both("lapped");
    assert_eq!(follower.read(), Changed::All);
    (0..ENTRIES as u32 + 1).for_each(|page| owner.enter(&[page]).expect("enter"));
    assert_eq!(follower.read(), Changed::All);
    owner.enter(&[4]).expect("enter");
    assert_eq!(follower.read(), Changed::Pages(vec![4]));
    // Too many at once are not written at all.
    owner.enter(&vec![8; ENTRIES as usize + 1]).expect("enter");
    assert_eq!(follower.read(), Changed::All);
}

#[test]
fn a_torn_entry_and_a_torn_head_are_known() {
    let (mut owner, mut follower) = both("torn");
    assert_eq!(follower.read(), Changed::All);
    owner.enter(&[1, 2]).expect("enter");
    // The page of one write, the mark of another.
    owner.file.write_all_at(&6_u32.to_le_bytes(), place(1)).expect("write");
    assert_eq!(follower.read(), Changed::All);
    owner.enter(&[3]).expect("enter");
    assert_eq!(follower.read(), Changed::Pages(vec![3]));
    owner.file.write_all_at(&[1], 30).expect("write");
    assert_eq!(follower.read(), Changed::Unknown);
    assert_eq!(follower.read(), Changed::Unknown);
    owner.enter(&[5]).expect("enter");
    assert_eq!(follower.read(), Changed::All, "what came meanwhile is not known");
    owner.give_up().expect("give up");
    assert_eq!(follower.read(), Changed::Unknown);
}

#[test]
fn another_owner_and_another_directory_are_known() {
    let (mut owner, mut follower) = both("owners");
    assert_eq!(follower.read(), Changed::All);
    owner.enter(&[1]).expect("enter");
    let file = owner.file.try_clone().expect("clone");
    let mut next = Changes::begin(file, UUID).expect("begin");
    next.enter(&[2]).expect("enter");
    assert_eq!(follower.read(), Changed::All, "the same count, of another owner");
    let file = next.file.try_clone().expect("clone");
    Changes::begin(file, [8; 16]).expect("begin");
    assert_eq!(follower.read(), Changed::Unknown);
}
