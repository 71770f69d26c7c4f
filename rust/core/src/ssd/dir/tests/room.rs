//! Full disks, file systems that lack something, directories of others.

use super::*;
use crate::ssd::dir::files::free_bytes;
use rustix::io::Errno;
use std::cell::Cell;
use std::os::fd::BorrowedFd;

thread_local! {
    /// Calls of the faked fallocate that still succeed, and what comes then.
    static LEFT: Cell<u32> = const { Cell::new(0) };
    static THEN: Cell<Errno> = const { Cell::new(Errno::NOSPC) };
}

/// The kernel's, until it fails half way through a call.
fn faked(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    if LEFT.get() == 0 {
        if THEN.get() == Errno::NOSPC {
            lengthen(file, offset, len / 2)?;
        }
        return Err(THEN.get());
    }
    LEFT.set(LEFT.get() - 1);
    lengthen(file, offset, len)
}

/// With its room where the file system of these tests can.
fn lengthen(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    match files::fallocate(file, offset, len) {
        Err(Errno::OPNOTSUPP) => {
            let has = rustix::fs::fstat(file)?.st_size as u64;
            rustix::fs::ftruncate(file, has.max(offset + len))
        }
        other => other,
    }
}

fn open_failing(config: &DirConfig<'_>, left: u32, then: Errno) -> Result<Opened, Error> {
    LEFT.set(left);
    THEN.set(then);
    open_on(config, Disk { fallocate: faked, ..Disk::REAL })
}

#[test]
fn more_than_the_disk_has_fails_fast_and_leaves_nothing() {
    let root = Root::new("free");
    let temp = fs::File::open(std::env::temp_dir()).expect("open");
    let free = free_bytes(temp.as_fd()).expect("statvfs");
    let config = DirConfig { capacity_bytes: free + (1 << 30), slots_a_file: 0, ..root.config(0) };
    let config = DirConfig { stride_bytes: 1 << 20, ..config };
    let error = open(&config).expect_err("refused");
    assert_eq!((error.kind, error.code), (ErrorKind::Ssd, "KS-SSD-002"), "{error}");
    let number = |name| -> u64 {
        let found = error.context.iter().find(|(key, _)| *key == name).expect("a number");
        found.1.parse().expect("digits")
    };
    assert!(number("needed_bytes") > number("free_bytes"));
    assert!(error.message.contains(&number("free_bytes").to_string()), "{error}");
    assert!(!root.0.exists(), "{:?}", root.tree());
}

#[test]
fn a_disk_that_fills_up_during_an_open_is_left_as_it_was() {
    let root = Root::new("fills");
    // SUPER, the table and three slots files.
    for left in 0..5 {
        let error = open_failing(&root.config(9), left, Errno::NOSPC).expect_err("full");
        assert_eq!((error.kind, error.code), (ErrorKind::Ssd, "KS-SSD-002"));
        assert!(!root.0.exists(), "{left}: {:?}", root.tree());
    }
    root.stored(4);
    let before = root.tree();
    // The table's first page is there; slots.0001 grows, slots.0002 and on are made.
    for left in 0..4 {
        open_failing(&root.config(13), left, Errno::NOSPC).expect_err("full");
        assert_eq!(root.tree(), before, "{left}");
        assert_eq!(root.slots(4), [Some(1), Some(2), Some(3), Some(4)]);
    }
    assert_eq!(open_failing(&root.config(13), 100, Errno::NOSPC).expect("enough").slots, 13);
}

#[test]
fn a_failure_after_the_files_takes_them_back_too() {
    let root = Root::new("late");
    fs::create_dir_all(root.file("layout.json.new")).expect("create");
    let before = root.tree();
    let error = open(&root.config(3)).expect_err("a directory has the name");
    assert_eq!(error.code, "KS-FMT-004");
    assert_eq!(root.tree(), before);
}

#[test]
fn without_fallocate_the_lengths_are_right_and_it_is_said() {
    let root = Root::new("sparse");
    let opened = open_failing(&root.config(9), 0, Errno::OPNOTSUPP).expect("open");
    assert_eq!(opened.fallbacks.iter().filter(|said| said.contains("fallocate")).count(), 1);
    assert_eq!(fs::metadata(root.file("slots.0002")).expect("stat").len(), 3 * 4096);
    root.write_super(&super_of(&opened));
    drop(opened);
    // Sparse now: the room of what is there is reserved late, or its lack is said.
    let opened = open_failing(&root.config(9), 0, Errno::NOSPC).expect("open");
    assert!(says(&opened.fallbacks, "reserved"), "{:?}", opened.fallbacks);
    drop(opened);
    let opened = open(&root.config(9)).expect("open");
    if says(&opened.fallbacks, "reserved") {
        return eprintln!("skipped: the file system of these tests has no fallocate");
    }
    let stat = fs::metadata(root.file("slots.0002")).expect("stat");
    assert!(stat.blocks() * 512 >= stat.len(), "{} blocks", stat.blocks());
}

#[test]
fn signals_do_not_fail_an_open_and_do_not_hold_it_for_ever() {
    let root = Root::new("signals");
    let error = open_failing(&root.config(9), 2, Errno::INTR).expect_err("interrupted");
    assert_eq!((error.kind, error.code), (ErrorKind::Ssd, "KS-SSD-001"));
    fn at_times(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
        LEFT.set(LEFT.get() + 1);
        if LEFT.get().is_multiple_of(3) { lengthen(file, offset, len) } else { Err(Errno::INTR) }
    }
    LEFT.set(0);
    let disk = Disk { fallocate: at_times, ..Disk::REAL };
    assert_eq!(open_on(&root.config(9), disk).expect("open").slots, 9);
}

#[test]
fn direct_io_or_the_reason_why_not() {
    let root = Root::new("direct");
    let opened = open(&DirConfig { direct: true, ..root.config(3) }).expect("open");
    let why_not = says(&opened.fallbacks, "O_DIRECT") || says(&opened.fallbacks, "tmpfs");
    assert_eq!(opened.direct, !why_not, "{:?}", opened.fallbacks);
    for (file, direct) in &opened.files {
        let flags = rustix::fs::fcntl_getfl(file).expect("flags");
        assert_eq!(flags.contains(rustix::fs::OFlags::DIRECT), *direct);
    }
    drop(opened);
    let opened = open(&root.config(3)).expect("open");
    assert!(!opened.direct && opened.files.iter().all(|(_, direct)| !direct));
}

#[test]
fn memory_is_not_taken_for_a_disk() {
    let shm = Path::new("/dev/shm");
    let root = Root::under(shm, "tmpfs");
    let opened = match open(&DirConfig { direct: true, ..root.config(3) }) {
        Ok(opened) if shm.is_dir() => opened,
        other => return eprintln!("skipped: /dev/shm can't be used here: {other:?}"),
    };
    if fs::read_to_string("/proc/mounts").is_ok_and(|mounts| mounts.contains("/dev/shm tmpfs")) {
        assert!(!opened.direct && says(&opened.fallbacks, "tmpfs is memory"));
    }
}

#[test]
fn what_belongs_to_another_user_is_refused() {
    let root = Root::new("others");
    root.stored(3);
    let member = root.file("").components().collect::<PathBuf>();
    for path in [member, root.0.join(HEX), root.file(TABLE), root.file(lock::LOCK)] {
        if let Err(error) = std::os::unix::fs::chown(&path, Some(12_345), None) {
            return eprintln!("skipped: only root can give files away: {error}");
        }
        let config = DirConfig { reset_on_mismatch: true, ..root.config(3) };
        let error = open(&config).expect_err("refused");
        assert_eq!((error.kind, error.code), (ErrorKind::Ssd, "KS-SSD-003"), "{error}");
        open(&DirConfig { read_only: true, ..root.config(3) }).expect("root may look");
        assert!(error.message.contains("12345"), "{error}");
        std::os::unix::fs::chown(&path, Some(0), None).expect("chown");
    }
    std::os::unix::fs::chown(&root.0, Some(12_345), None).expect("chown");
    let opened = open(&root.config(3)).expect("open");
    assert!(says(&opened.warnings, "belongs to user 12345"), "{:?}", opened.warnings);
}
