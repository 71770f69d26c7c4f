//! Room for an open from what nobody has open, on a disk that is made small.

use super::*;
use crate::ssd::dir::files::fallocate;
use crate::ssd::dir::remove::remove_by_steps;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

/// Directories that a disk holds, and the room that it then has left.
const OLD: [u8; 16] = [0x01; 16];
const NEW: [u8; 16] = [0x02; 16];

thread_local! {
    /// What is on the disk, and how much that can be.
    static DISK: RefCell<(PathBuf, u64)> = RefCell::default();
    /// What the quota of this user still lets through.
    static QUOTA: Cell<u64> = const { Cell::new(u64::MAX) };
}

fn used(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(stat) if stat.is_dir() => used(&entry.path()),
        Ok(stat) => stat.len().next_multiple_of(4096),
        Err(_) => 0,
    });
    sizes.sum()
}

fn free(_: BorrowedFd<'_>) -> Option<u64> {
    DISK.with_borrow(|(path, bytes)| Some(bytes.saturating_sub(used(path))))
}

fn reserve(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    let there = DISK.with_borrow(|(path, _)| used(path));
    if there.saturating_add(len) > QUOTA.get() {
        return Err(Errno::DQUOT);
    }
    fallocate(file, offset, len)
}

const SMALL: Disk = Disk { fallocate: reserve, free_bytes: free };

fn opened_at(root: &Root, config: &DirConfig<'_>, unix_s: u64) {
    let opened = open(config).expect("open");
    let of = Super { fingerprint: config.fingerprint, ..super_of(&opened) };
    for copy in [&of, &Super { sequence: of.sequence + 1, ..of.clone() }] {
        let file = fs::OpenOptions::new().write(true).open(opened.path.join(SUPER)).expect("open");
        let offset = (copy.sequence % 2) * PAGE_BYTES as u64;
        file.write_all_at(&copy.encode(), offset).expect("write");
    }
    let lock = root.0.join(hex(&config.fingerprint)).join(config.member).join(lock::LOCK);
    // Not through another descriptor while it is held: to close that would drop the lock.
    drop(opened);
    let file = fs::OpenOptions::new().write(true).open(lock).expect("open");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s)).expect("a time");
}

/// A disk with directories of 40 slots, opened in the order a, c (of one fingerprint), b; it has
/// room for 10 slots more.
fn crowded(name: &str) -> Root {
    let root = Root::new(name);
    for (fingerprint, member, unix_s) in [(OLD, "a", 1000), (NEW, "b", 3000), (OLD, "c", 2000)] {
        let config = DirConfig { fingerprint, member, ..root.config(40) };
        opened_at(&root, &config, unix_s);
    }
    QUOTA.set(u64::MAX);
    DISK.set((root.0.clone(), used(&root.0) + capacity_of(10)));
    root
}

fn reclaiming<'a>(root: &'a Root, slots: u32) -> DirConfig<'a> {
    DirConfig { reclaim: true, ..root.config(slots) }
}

/// Members that are left, in order.
fn left(root: &Root) -> Vec<String> {
    let mut found: Vec<_> =
        list_all(&root.0).expect("list").into_iter().map(|it| it.member).collect();
    found.sort();
    found
}

#[test]
fn the_least_recently_opened_go_until_it_fits() {
    for (slots, gone) in [(10, ""), (12, "a"), (40, "a"), (60, "ac"), (100, "acb"), (130, "acb")] {
        let root = crowded("until");
        let opened = open_on(&reclaiming(&root, slots), SMALL).expect("room");
        assert_eq!(opened.slots, slots);
        let mut expected: Vec<String> = "abc0".chars().map(String::from).collect();
        expected.retain(|member| !gone.contains(member.as_str()));
        expected.sort();
        assert_eq!(left(&root), expected, "{slots}");
        let said: Vec<_> = opened.warnings.iter().filter(|it| it.contains("reclaimed")).collect();
        assert_eq!(said.len(), gone.len(), "{said:?}");
        for (sentence, member) in said.iter().zip(gone.chars()) {
            assert!(sentence.contains(&format!("/{member} for room: ")), "{sentence}");
            assert!(sentence.contains("last opened 1970-01-01 00:"), "{sentence}");
        }
    }
}

#[test]
fn nothing_goes_without_being_asked_for_or_where_it_would_not_do() {
    let root = crowded("asked");
    let before = root.tree();
    let error = open_on(&root.config(40), SMALL).expect_err("no room");
    assert_eq!(error.code, "KS-SSD-002");
    assert!(!error.message.contains("reclaimed"), "{error}");
    assert_eq!(root.tree(), before);
    let error = open_on(&reclaiming(&root, 200), SMALL).expect_err("no room");
    assert_eq!(error.code, "KS-SSD-002");
    assert!(error.message.contains("Nothing was reclaimed: 3 unlocked"), "{error}");
    assert_eq!(root.tree(), before);
    // Nor where it would do with what is locked.
    let held = open(&DirConfig { fingerprint: NEW, member: "b", ..root.config(40) }).expect("open");
    let error = open_on(&reclaiming(&root, 120), SMALL).expect_err("no room");
    assert!(error.message.contains("Nothing was reclaimed: 2 unlocked"), "{error}");
    drop(held);
    assert_eq!(root.tree(), before);
}

#[test]
fn before_it_is_locked_ones_own_stays_too() {
    let root = Root::new("own");
    opened_at(&root, &root.config(5), 10);
    DISK.set((root.0.clone(), 0));
    let config = reclaiming(&root, 5);
    let mut reclaim = Reclaim::new(&config, SMALL);
    assert!(!reclaim.make_room_in_root());
    assert_eq!(left(&root), ["0"]);
    let other = DirConfig { member: "1", ..config.clone() };
    assert!(Reclaim::new(&other, SMALL).make_room_in_root(), "it is another's own");
    assert_eq!(left(&root), Vec::<String>::new());
}

#[test]
fn locked_and_foreign_ones_stay_and_so_does_ones_own() {
    let root = crowded("locked");
    opened_at(&root, &root.config(5), 10);
    fs::write(root.0.join(hex(&OLD)).join("c").join("notes.txt"), "mine").expect("write");
    let held = open(&DirConfig { fingerprint: OLD, member: "a", ..root.config(40) }).expect("open");
    let opened = open_on(&reclaiming(&root, 30), SMALL).expect("room");
    assert_eq!((opened.fresh, opened.slots), (false, 30));
    assert_eq!(left(&root), ["0", "a", "c"]);
    assert!(says(&opened.warnings, "not reclaimed: ") && says(&opened.warnings, "notes.txt"));
    assert!(says(&opened.warnings, "/b for room"));
    assert!(!says(&opened.warnings, "/a"), "{:?}", opened.warnings);
    drop((opened, held));
}

#[test]
fn the_rest_of_a_removal_goes_first() {
    let root = crowded("rest");
    let mut left_steps = 2;
    let stopped = remove_by_steps(&root.0, NEW, "b", &mut |_| {
        left_steps -= 1;
        if left_steps >= 0 { Ok(()) } else { Err(broken(&root.0, "stopped")) }
    });
    stopped.expect_err("cut short");
    let opened = open_on(&reclaiming(&root, 40), SMALL).expect("room");
    assert_eq!(left(&root), ["0", "a", "c"]);
    assert!(says(&opened.warnings, "the rest of a removal"), "{:?}", opened.warnings);
}

#[test]
fn what_went_in_vain_is_named() {
    let root = crowded("vain");
    // A quota that the disk says nothing of: each step fails until nothing is left to remove.
    QUOTA.set(4096);
    let error = open_on(&reclaiming(&root, 9), SMALL).expect_err("no room");
    assert_eq!(error.code, "KS-SSD-002");
    assert_eq!(left(&root), Vec::<String>::new());
    for member in ["/a", "/b", "/c"] {
        assert!(error.message.contains(member), "{error}");
    }
    assert!(error.context.contains(&("reclaimed", "3".to_owned())), "{error:?}");
    assert_eq!(root.tree().len(), 1, "{:?}", root.tree());
}

#[test]
fn a_quota_takes_no_more_than_it_needs() {
    let root = crowded("quota");
    QUOTA.set(used(&root.0) - capacity_of(20));
    let opened = open_on(&reclaiming(&root, 9), SMALL).expect("room");
    assert_eq!(left(&root), ["0", "b", "c"]);
    assert_eq!(opened.warnings.iter().filter(|it| it.contains("for room")).count(), 1);
}
