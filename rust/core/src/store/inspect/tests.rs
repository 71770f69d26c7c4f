//! Looking into real directories: what is told of them, in whatever state they are.

mod snapshots;
mod verifying;

use super::*;
use crate::key::Key;
use crate::ssd::format::{self, PAGE_BYTES, RECORDS_A_PAGE, Record, Super};
use crate::store::{Closed, PutOptions, Rows, SsdConfig, Store, StoreConfig};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const BLOCK: u64 = 4096;
const FINGERPRINT: [u8; 16] = [0xA7; 16];
const HEX: &str = "a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7";
const LAYOUT: &str = "{\"layers\": 2}";
const LONG: Duration = Duration::from_secs(60);

/// A root of its own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("keystow-inspect-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _gone = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a temporary directory");
        Self(path)
    }

    fn member(&self) -> PathBuf {
        self.0.join(HEX).join("0")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.member().join(name)
    }

    fn config(&self, slots: u64) -> StoreConfig {
        let mut ssd = SsdConfig::new(&self.0, 16_384 + slots * BLOCK + slots.div_ceil(42) * 4096);
        ssd.fingerprint = FINGERPRINT;
        ssd.layout = LAYOUT.to_owned();
        StoreConfig { ssd: Some(ssd), ..StoreConfig::new(64 * BLOCK, BLOCK) }
    }

    fn open(&self, slots: u64) -> Arc<Store> {
        Store::open(&self.config(slots)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A store of 64 slots that was closed with these blocks in it, one chain.
    fn stored(&self, blocks: Range<u64>) {
        let store = self.open(64);
        assert_eq!(put(&store, blocks.clone()), (blocks.end - blocks.start) as usize);
        assert_eq!(store.close(LONG), Closed { written: blocks.end - blocks.start, left: 0 });
    }

    /// Changes a file's bytes from an offset on.
    fn change(&self, name: &str, offset: u64, bytes: usize, change: impl FnOnce(&mut [u8])) {
        let file = OpenOptions::new().read(true).write(true).open(self.file(name)).expect("open");
        let mut there = vec![0; bytes];
        file.read_exact_at(&mut there, offset).expect("read");
        change(&mut there);
        file.write_all_at(&there, offset).expect("write");
    }

    /// Flips a bit of the payload in a slot.
    fn flip(&self, slot: u32, at: u64) {
        self.change("slots.0000", u64::from(slot) * BLOCK + at, 1, |byte| byte[0] ^= 0x10);
    }

    fn superblock(&self) -> Super {
        let bytes = fs::read(self.file("SUPER")).expect("read");
        format::newest(&bytes[..PAGE_BYTES], &bytes[PAGE_BYTES..]).expect("SUPER")
    }

    /// The records of a page of the table.
    fn page(&self, page: u32) -> [Record; RECORDS_A_PAGE] {
        let bytes = fs::read(self.file("table")).expect("read");
        let bytes = &bytes[page as usize * PAGE_BYTES..][..PAGE_BYTES];
        format::open(bytes, &self.superblock().uuid, page).expect("a page").1
    }

    fn write_page(&self, page: u32, records: &[Record]) {
        let uuid = self.superblock().uuid;
        let offset = u64::from(page) * PAGE_BYTES as u64;
        self.change("table", offset, PAGE_BYTES, |bytes| {
            format::seal(bytes, &uuid, page, 1_000, records);
        });
    }

    fn slot_of(&self, n: u64) -> u32 {
        let pages = fs::metadata(self.file("table")).expect("a table").len() as usize / PAGE_BYTES;
        let all = (0..pages as u32).flat_map(|page| self.page(page));
        let found = all.enumerate().find(|(_, record)| record.key == key(n));
        found.expect("a record of this key").0 as u32
    }

    /// Every path below the root, with its length and the time of its last change.
    fn tree(&self) -> BTreeMap<PathBuf, (u64, SystemTime)> {
        let mut todo = vec![self.0.clone()];
        let mut tree = BTreeMap::new();
        while let Some(path) = todo.pop() {
            let stat = fs::symlink_metadata(&path).expect("stat");
            if stat.is_dir() {
                todo.extend(fs::read_dir(&path).expect("list").map(|it| it.expect("entry").path()));
            }
            tree.insert(path, (stat.len(), stat.modified().expect("a time")));
        }
        tree
    }

    fn contents(&self) -> Contents {
        let mut found = inspect(&self.0).expect("a root");
        assert_eq!(found.len(), 1);
        found.remove(0).contents.unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn key(n: u64) -> Key {
    Key::from_words([n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n])
}

fn keys(range: Range<u64>) -> Vec<Key> {
    range.map(key).collect()
}

/// A block's bytes; its length depends on its number too.
fn fill(n: u64) -> Vec<u8> {
    (0..3000 + n % 500).map(|i| (n * 31 + i) as u8).collect()
}

fn put(store: &Store, range: Range<u64>) -> usize {
    let rows: Vec<Vec<u8>> = range.clone().map(fill).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    store.put(&keys(range), &Rows::list(&rows), &PutOptions::default()).expect("an open store")
}

fn code<T>(result: Result<T, Error>) -> &'static str {
    result.map_or_else(|error| error.code, |_| "nothing went wrong")
}

#[test]
fn a_closed_store_is_described() {
    let folder = Folder::new("closed");
    folder.stored(0..10);
    let found = inspect(&folder.0).expect("a root");
    assert_eq!(found.len(), 1);
    let Inspected { fingerprint, member, path, locked, bytes, .. } = &found[0];
    assert_eq!((fingerprint.as_str(), member.as_str(), *locked), (HEX, "0", false));
    assert_eq!(*path, fs::canonicalize(folder.member()).expect("a path"));
    let pages = 2 * PAGE_BYTES as u64;
    assert_eq!(*bytes, 8192 + LAYOUT.len() as u64 + pages + 64 * BLOCK);
    let contents = folder.contents();
    let expected = Contents {
        format_version: 1,
        layout: Some(LAYOUT.to_owned()),
        block_bytes: BLOCK as u32,
        stride_bytes: BLOCK as u32,
        slots: 64,
        slots_used: 10,
        live: 10,
        live_bytes: (0..10).map(|n| fill(n).len() as u64).sum(),
        chains: 1,
        epoch: 1,
        clean: true,
        pages: 2,
        oldest_use_unix_s: contents.oldest_use_unix_s,
        newest_use_unix_s: contents.newest_use_unix_s,
        ..Contents::default()
    };
    assert_eq!(contents, expected);
}

#[test]
fn each_kind_of_record_is_counted() {
    let folder = Folder::new("kinds");
    folder.stored(0..1);
    let superblock = folder.superblock();
    folder.change("SUPER", 0, 2 * PAGE_BYTES, |bytes| {
        let cleared = Super { epoch: 3, clear_epoch: 1, ..superblock.clone() };
        for (at, copy) in bytes.chunks_mut(PAGE_BYTES).enumerate() {
            let sequence = superblock.sequence + 2 + at as u64;
            copy.copy_from_slice(&Super { sequence, ..cleared.clone() }.encode());
        }
    });
    let block = |n: u64, parent: Option<u64>, epoch: u32| Record {
        key: key(n),
        parent: parent.map_or(Record::FREE.parent, key),
        generation: format::generation(epoch, n),
        len: 100,
        stored_len: 100,
        last_use: 60 + n as u32,
        flags: Record::LIVE | if parent.is_some() { Record::HAS_PARENT } else { 0 },
        ..Record::FREE
    };
    let records = [
        block(1, None, 2),
        block(2, Some(1), 2),
        block(3, Some(99), 2),
        Record::FREE,
        block(4, None, 1),
        Record { last_use: 0, ..block(9, Some(3), 2) },
        Record { len: BLOCK as u32 + 1, stored_len: BLOCK as u32 + 1, ..block(5, None, 2) },
        Record { flags: 0x81, ..block(6, None, 2) },
        block(2, Some(1), 3),
        block(7, Some(8), 2),
        block(8, Some(7), 2),
    ];
    folder.write_page(0, &records);
    let found = folder.contents();
    assert_eq!((found.slots_used, found.live, found.live_bytes), (10, 6, 600));
    assert_eq!((found.chains, found.orphans), (2, 1));
    assert_eq!((found.stale, found.insane, found.losers, found.cycles), (1, 2, 1, 1));
    assert_eq!((found.epoch, found.clear_epoch, found.clean), (3, 1, true));
    let minute = |n: u64| Some(UNIX_SECONDS_OF_2020 + (60 + n) * 60);
    assert_eq!((found.oldest_use_unix_s, found.newest_use_unix_s), (minute(1), minute(8)));
}

#[test]
fn a_running_store_is_seen_as_locked_and_stays_so() {
    let folder = Folder::new("running");
    let store = folder.open(64);
    assert_eq!(put(&store, 0..10), 10);
    assert_eq!(store.flush(LONG).ok(), Some(0));
    for _ in 0..2 {
        let found = inspect(&folder.0).expect("a root").remove(0);
        assert!(found.locked);
        let contents = found.contents.expect("contents");
        assert_eq!((contents.live, contents.clean), (10, false));
    }
    assert_eq!(put(&store, 100..110), 10, "the owner goes on");
    store.close(LONG);
    assert!(!inspect(&folder.0).expect("a root")[0].locked);
    assert_eq!(folder.contents().live, 20);
}

#[test]
fn a_page_that_does_not_check_is_counted_and_its_blocks_are_not() {
    let folder = Folder::new("pages");
    folder.stored(0..50);
    let (all, second) = (folder.contents(), folder.page(1));
    let on_second = second.iter().filter(|record| !record.is_free()).count() as u32;
    assert!(all.live == 50 && on_second > 0);
    folder.change("table", PAGE_BYTES as u64 + 200, 1, |byte| byte[0] ^= 1);
    let found = folder.contents();
    assert_eq!((found.pages, found.pages_unreadable, found.live), (2, 1, 50 - on_second));
    let table = OpenOptions::new().write(true).open(folder.file("table")).expect("open");
    table.set_len(100).expect("cut");
    let found = folder.contents();
    assert_eq!((found.pages, found.pages_unreadable, found.live), (2, 2, 0));
    assert_eq!(found.oldest_use_unix_s, None);
}

#[test]
fn what_is_wrong_with_one_member_hides_no_other() {
    let folder = Folder::new("wrong");
    folder.stored(0..3);
    for (member, what) in [("broken", "SUPER"), ("empty", ""), ("foreign", "SUPER")] {
        let path = folder.0.join(HEX).join(member);
        fs::create_dir(&path).expect("create");
        if !what.is_empty() {
            let bytes = if member == "broken" { vec![0xEE; 8192] } else { b"mine".to_vec() };
            fs::write(path.join(what), bytes).expect("write");
        }
    }
    fs::write(folder.0.join("notes.txt"), "mine").expect("write");
    let found = inspect(&folder.0).expect("a root");
    let told: Vec<_> = found
        .iter()
        .map(|it| {
            let what = it.contents.as_ref().map(|contents| contents.live);
            (it.member.as_str(), what.map_err(|error| error.code))
        })
        .collect();
    let expected = [
        ("0", Ok(3)),
        ("broken", Err("KS-FMT-002")),
        ("empty", Err("KS-CFG-301")),
        ("foreign", Err("KS-FMT-002")),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_layout_that_super_does_not_mean_is_not_told() {
    let folder = Folder::new("layout");
    folder.stored(0..3);
    fs::write(folder.file("layout.json"), "{\"layers\": 3}").expect("write");
    let found = folder.contents();
    assert_eq!((found.layout, found.live), (None, 3));
    assert!(found.warnings[0].contains("layout.json: not the one"), "{:?}", found.warnings);
    fs::remove_file(folder.file("layout.json")).expect("remove");
    assert!(folder.contents().warnings[0].contains("No such file"));
}

#[test]
fn a_path_names_a_root_a_fingerprint_or_a_member() {
    let folder = Folder::new("paths");
    folder.stored(0..3);
    let other = StoreConfig::clone(&folder.config(64));
    let ssd = other.ssd.map(|ssd| SsdConfig { fingerprint: [1; 16], ..ssd });
    drop(Store::open(&StoreConfig { ssd, ..other }).expect("open"));
    let count = |path: &Path| inspect(path).expect("a place").len();
    assert_eq!((count(&folder.0), count(&folder.0.join(HEX))), (2, 1));
    assert_eq!((count(&folder.member()), count(&folder.member().join("../0/."))), (1, 1));
    let link = folder.0.with_extension("link");
    let _gone = fs::remove_file(&link);
    std::os::unix::fs::symlink(folder.member(), &link).expect("link");
    assert_eq!(count(&link), 1);
    fs::remove_file(&link).expect("remove");

    let empty = folder.0.join("empty");
    fs::create_dir(&empty).expect("create");
    assert_eq!(count(&empty), 0);
    assert_eq!(code(inspect(&folder.0.join("absent"))), "KS-CFG-401");
    assert_eq!(code(inspect(&folder.file("SUPER"))), "KS-CFG-402");
    fs::rename(folder.member(), empty.join("copy")).expect("rename");
    assert_eq!(code(inspect(&empty.join("copy"))), "KS-CFG-403");
}

#[test]
fn looking_changes_nothing() {
    let folder = Folder::new("unchanged");
    folder.stored(0..10);
    folder.flip(folder.slot_of(4), 7);
    fs::write(folder.file("stray"), "mine").expect("write");
    fs::remove_file(folder.file("LOCK")).expect("remove");
    let before = folder.tree();
    folder.contents();
    assert_eq!(verify(&folder.0, None, &mut |_, _| true).expect("verify").bad, 1);
    let snapshot = Snapshot::open(&folder.0).expect("a snapshot");
    assert_eq!(snapshot.match_run(&keys(0..10)), 10);
    drop(snapshot);
    assert_eq!(folder.tree(), before);
}
