//! A followed directory whose owner is this test: pages, SUPER and hints written by hand.

use super::*;
use crate::key::Key;
use crate::ssd::changes::Changes;
use crate::ssd::dir::LockGuard;
use crate::ssd::format::{Record, generation, seal};
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt;

const FINGERPRINT: [u8; 16] = [0xA7; 16];
const STRIDE: u32 = 4096;
const LONG: u32 = 70;

/// An owner, and a clock for who follows.
struct Owner {
    root: PathBuf,
    files: Vec<File>,
    changes: Option<Changes>,
    found: Super,
    sequences: Vec<u64>,
    now_us: Cell<u64>,
    _lock: Option<LockGuard>,
}

impl Owner {
    fn new(name: &str, pages: u32) -> Self {
        let name = format!("keystow-follow-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let _gone = fs::remove_dir_all(&root);
        let mut owner = Self::open(root, pages);
        let (uuid, epoch, clear_epoch) = ([9; 16], 1, 0);
        let first = Super { uuid, epoch, clear_epoch, ..owner.found.clone() };
        owner.write_super(first);
        owner.hint();
        owner
    }

    fn open(root: PathBuf, pages: u32) -> Self {
        let slots = pages * RECORDS_A_PAGE as u32;
        let least = SUPER_BYTES + format::LAYOUT_BYTES_MAX + u64::from(pages) * 4096;
        let hint = if pages > WHOLE_PAGES_MAX { crate::ssd::changes::CHANGES_BYTES } else { 0 };
        let config = DirConfig {
            layout_json: "{}",
            capacity_bytes: least + u64::from(slots) * u64::from(STRIDE) + hint,
            stride_bytes: STRIDE,
            read_only: false,
            slots_a_file: 100,
            ..DirConfig::to_look(&root, FINGERPRINT, "0")
        };
        let opened = dir::open(&config).expect("open");
        assert_eq!(opened.slots, slots);
        let found = Super {
            uuid: [0; 16],
            sequence: 0,
            epoch: 1,
            clear_epoch: 0,
            fingerprint: FINGERPRINT,
            layout_hash: opened.layout_hash,
            block_bytes: STRIDE,
            stride_bytes: STRIDE,
            slots,
            slots_a_file: opened.slots_a_file,
            key_check: [0; 16],
            clean: false,
            distrusted: false,
            boots: Vec::new(),
        };
        let changes = opened.changes.map(|file| Changes::begin(file.into(), [9; 16]).expect("new"));
        Self {
            files: opened.files.into_iter().map(|(file, _)| File::from(file)).collect(),
            changes,
            found,
            sequences: vec![0; pages as usize],
            now_us: Cell::new(1_000_000),
            _lock: opened.lock,
            root,
        }
    }

    /// Begins a new count, as every open does.
    fn hint(&mut self) {
        let path = self.path().join("changes");
        let file = fs::OpenOptions::new().read(true).write(true).open(path).ok();
        self.changes = file.map(|file| Changes::begin(file, [9; 16]).expect("begin"));
    }

    fn path(&self) -> PathBuf {
        self.root.join(dir::hex(&FINGERPRINT)).join("0")
    }

    fn write_super(&mut self, next: Super) {
        self.found = Super { sequence: self.found.sequence + 1, ..next };
        let at = (self.found.copy() * PAGE_BYTES) as u64;
        self.files[SUPER_AT].write_all_at(&self.found.encode(), at).expect("write");
    }

    /// What the payload of a key and a generation is.
    fn payload(key: u64, number: u64) -> Vec<u8> {
        (0..4000).map(|at| (at as u64 * 7 + key * 31 + number) as u8).collect()
    }

    fn record(&self, key: u64, number: u64) -> Record {
        let (key_of, len) = (Key::from_words([key, 1]), 4000);
        let generation = generation(self.found.epoch, number);
        let seed = tag_seed(&self.found.uuid, &FINGERPRINT, &key_of, len, generation);
        let tag = tag_bytes(digest(seed, &Self::payload(key, number)));
        let flags = Record::LIVE;
        Record { key: key_of, tag, generation, len, stored_len: len, flags, ..Record::FREE }
    }

    /// Writes a page whose first slots have these blocks, and their payloads.
    fn page(&mut self, page: u32, blocks: &[(u64, u64)]) {
        let records: Vec<Record> = blocks.iter().map(|(k, n)| self.record(*k, *n)).collect();
        for (slot, (key, number)) in (page * RECORDS_A_PAGE as u32..).zip(blocks) {
            let (file, at) = format::place(slot, self.found.slots_a_file, STRIDE);
            let file = &self.files[SLOTS_AT + file as usize];
            file.write_all_at(&Self::payload(*key, *number), at).expect("write");
        }
        self.sequences[page as usize] += 1;
        let mut bytes = [0; PAGE_BYTES];
        seal(&mut bytes, &self.found.uuid, page, self.sequences[page as usize], &records);
        self.table(page, &bytes);
    }

    fn table(&self, page: u32, bytes: &[u8]) {
        self.files[TABLE_AT].write_all_at(bytes, u64::from(page) * 4096).expect("write");
    }

    fn tell(&mut self, pages: &[u32]) {
        self.changes.as_mut().expect("hints").enter(pages).expect("enter");
    }

    fn follow(&self) -> Followed {
        Followed::open(&self.root, FINGERPRINT, "0").expect("a directory to follow")
    }

    /// Time goes by, and everything there is to be read is read; how many pages that were.
    fn look(&self, followed: &Followed, us: u64) -> (Looked, u64) {
        self.now_us.set(self.now_us.get() + us);
        let before = followed.looks.pages.load(Ordering::Relaxed);
        let mut looked = Looked::More;
        for _ in 0..100 {
            looked = followed.look(&|| self.now_us.get());
            if looked != Looked::More || !followed.is_urgent() {
                break;
            }
        }
        (looked, followed.looks.pages.load(Ordering::Relaxed) - before)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.root);
    }
}

/// The generation's number under which a key is known, if it is, and its slot.
fn known(followed: &Followed, key: u64) -> Option<(u32, u64)> {
    let index = followed.index();
    let (slot, known) = index.find(&Key::from_words([key, 1]))?;
    Some((slot, known.generation & format::COUNTER_MAX))
}

/// Whether the block that is known of a key can be read, and is confirmed.
fn get(owner: &Owner, followed: &Followed, key: u64) -> Option<u64> {
    let (slot, known) = {
        let index = followed.index();
        let (slot, known) = index.find(&Key::from_words([key, 1]))?;
        (slot, *known)
    };
    let mut buffer = Buffer::default();
    let good = followed.payload(slot, &known, &mut buffer) == Payload::Good;
    let number = known.generation & format::COUNTER_MAX;
    assert!(!good || buffer.get(4000) == Owner::payload(key, number), "{key}");
    let now_us = || owner.now_us.get();
    let stands = followed.confirm(slot, known.generation, &now_us, &mut Buffer::default());
    (good && stands).then_some(number)
}

#[test]
fn only_pages_that_were_told_of_are_read_again() {
    let mut owner = Owner::new("told", LONG);
    owner.page(3, &[(1, 1), (2, 2)]);
    owner.page(69, &[(3, 3)]);
    let followed = owner.follow();
    assert_eq!(owner.look(&followed, 0), (Looked::Whole, LONG.into()));
    assert_eq!([1, 2, 3].map(|key| get(&owner, &followed, key)), [Some(1), Some(2), Some(3)]);
    assert_eq!(owner.look(&followed, 200_000), (Looked::Whole, 0));
    owner.page(3, &[(1, 4)]);
    owner.page(40, &[(5, 5)]);
    assert_eq!(owner.look(&followed, 200_000).1, 0, "nobody has told");
    owner.tell(&[40, 3, 40]);
    assert_eq!(owner.look(&followed, 200_000), (Looked::Whole, 2));
    assert_eq!([1, 2, 5].map(|key| get(&owner, &followed, key)), [Some(4), None, Some(5)]);
    assert_eq!(followed.looks.scans.load(Ordering::Relaxed), 1);
}

#[test]
fn a_short_table_is_read_whole_each_time() {
    let mut owner = Owner::new("short", 3);
    let followed = owner.follow();
    assert_eq!(owner.look(&followed, 0), (Looked::Whole, 3));
    owner.page(2, &[(1, 1)]);
    assert_eq!(owner.look(&followed, 200_000), (Looked::Whole, 3));
    assert_eq!(get(&owner, &followed, 1), Some(1));
}

#[test]
fn who_is_overtaken_or_heard_nothing_for_long_reads_everything() {
    let mut owner = Owner::new("lapped", LONG);
    let followed = owner.follow();
    owner.look(&followed, 0);
    // Told of other pages so often that this one's entry is gone.
    owner.page(7, &[(1, 1)]);
    owner.tell(&[7]);
    (0..9).for_each(|_| owner.tell(&[0; 1000]));
    assert_eq!(owner.look(&followed, 200_000), (Looked::Whole, LONG.into()));
    assert_eq!(get(&owner, &followed, 1), Some(1));
    // It died between the page and its entry.
    owner.page(8, &[(2, 2)]);
    assert_eq!(owner.look(&followed, STALE_US - 1).1, 0);
    assert_eq!(owner.look(&followed, 1), (Looked::Whole, LONG.into()));
    assert_eq!(get(&owner, &followed, 2), Some(2));
    assert_eq!(owner.look(&followed, 200_000).1, 0, "once, not each time");
}

#[test]
fn a_torn_page_counts_as_it_was_and_is_read_again() {
    let mut owner = Owner::new("torn", LONG);
    owner.page(5, &[(1, 1)]);
    let followed = owner.follow();
    owner.look(&followed, 0);
    let mut torn = vec![0; PAGE_BYTES];
    owner.files[TABLE_AT].read_exact_at(&mut torn, 5 * 4096).expect("read");
    torn[100] ^= 1;
    owner.table(5, &torn);
    owner.tell(&[5]);
    assert_eq!(owner.look(&followed, 200_000), (Looked::More, 1));
    assert_eq!(known(&followed, 1), Some((5 * 42, 1)));
    assert_eq!(get(&owner, &followed, 1), None, "its page can't be told now");
    owner.page(5, &[(1, 2)]);
    assert_eq!(owner.look(&followed, 200_000), (Looked::Whole, 1));
    assert_eq!(get(&owner, &followed, 1), Some(2));
}

#[test]
fn what_was_seen_long_ago_is_looked_at_before_it_is_served() {
    let mut owner = Owner::new("confirm", LONG);
    owner.page(5, &[(1, 1), (2, 2)]);
    let followed = owner.follow();
    owner.look(&followed, 0);
    owner.page(5, &[(1, 1)]);
    owner.now_us.set(owner.now_us.get() + FRESH_US);
    assert_eq!(get(&owner, &followed, 2), Some(2), "less than a second ago it was there");
    owner.now_us.set(owner.now_us.get() + 1);
    assert!(known(&followed, 2).is_some(), "nobody has looked");
    assert_eq!([2, 1].map(|key| get(&owner, &followed, key)), [None, Some(1)]);
    assert_eq!(known(&followed, 2), None, "and it is known now");
}

#[test]
fn a_clear_another_owner_and_another_directory_end_it() {
    let mut owner = Owner::new("ends", LONG);
    owner.page(5, &[(1, 1)]);
    let before = owner.follow();
    owner.look(&before, 0);
    assert_eq!(get(&owner, &before, 1), Some(1));
    let clear = Super { epoch: 3, clear_epoch: 1, ..owner.found.clone() };
    owner.write_super(clear);
    owner.now_us.set(owner.now_us.get() + FRESH_US + 1);
    assert_eq!(get(&owner, &before, 1), None, "also without a look");
    assert_eq!(owner.look(&before, 0), (Looked::Gone, 0));
    let after = owner.follow();
    owner.look(&after, 0);
    assert_eq!(known(&after, 1), None);
    owner.page(5, &[(2, 2)]);
    owner.tell(&[5]);
    owner.look(&after, 200_000);
    assert_eq!(get(&owner, &after, 2), Some(2));
    // Only the last use was written, or the close.
    let closed = Super { clean: true, ..owner.found.clone() };
    owner.write_super(closed);
    assert_eq!(owner.look(&after, 200_000), (Looked::Whole, 0));
    // The name goes away, and another directory takes it.
    let path = owner.path();
    fs::rename(&path, path.with_file_name("0~1")).expect("rename");
    assert_eq!(owner.look(&after, 200_000), (Looked::Gone, 0));
    assert!(Followed::open(&owner.root, FINGERPRINT, "0").is_err());
}

#[test]
fn a_directory_that_was_reset_is_another_one() {
    let mut owner = Owner::new("reset", LONG);
    owner.page(5, &[(1, 1)]);
    let followed = owner.follow();
    owner.look(&followed, 0);
    // The same folder; SUPER is a new file, of which the open one knows nothing.
    let path = owner.path().join(SUPER_NAME);
    let bytes = fs::read(&path).expect("read");
    fs::remove_file(&path).expect("remove");
    fs::write(&path, bytes).expect("write");
    assert_eq!(owner.look(&followed, 200_000), (Looked::Gone, 0));
}

const SUPER_NAME: &str = "SUPER";

#[test]
fn a_slot_that_was_written_anew_is_no_block() {
    let mut owner = Owner::new("anew", LONG);
    owner.page(5, &[(1, 1)]);
    let followed = owner.follow();
    owner.look(&followed, 0);
    let (file, at) = format::place(5 * 42, 100, STRIDE);
    let file = &owner.files[SLOTS_AT + file as usize];
    file.write_all_at(&Owner::payload(1, 2), at).expect("write");
    assert_eq!(known(&followed, 1), Some((5 * 42, 1)));
    assert_eq!(get(&owner, &followed, 1), None);
}
