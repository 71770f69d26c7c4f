//! Tests of the directory on disk, over real files.

mod hints;
mod reclaiming;
mod removal;
mod room;
mod sights;
mod sizes;

use super::*;
use crate::ssd::format::{self, PAGE_BYTES, SUPER_BYTES};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

const STRIDE: u32 = 4096;
const FINGERPRINT: [u8; 16] = [0xA7; 16];
const HEX: &str = "a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7";
const LAYOUT: &str = "{\"layers\": 2}";

/// A root for one test; gone with the value.
pub(super) struct Root(pub(super) PathBuf);

impl Root {
    pub(super) fn new(name: &str) -> Self {
        Self::under(&std::env::temp_dir(), name)
    }

    fn under(base: &Path, name: &str) -> Self {
        let root = base.join(format!("keystow-dir-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        Self(root)
    }

    /// A store of `slots` slots, three to a file.
    pub(super) fn config(&self, slots: u32) -> DirConfig<'_> {
        DirConfig {
            root: &self.0,
            fingerprint: FINGERPRINT,
            member: "0",
            layout_json: LAYOUT,
            capacity_bytes: capacity_of(slots),
            stride_bytes: STRIDE,
            reset_on_mismatch: false,
            reclaim: false,
            read_only: false,
            slots_a_file: 3,
            direct: false,
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(HEX).join("0").join(name)
    }

    /// A directory that its tier has written: SUPER, a record page, every slot.
    fn stored(&self, slots: u32) {
        let opened = open(&self.config(slots)).expect("open");
        self.write_super(&super_of(&opened));
        self.write(TABLE, 0, &[0xEE; 64]);
        for slot in 0..opened.slots {
            let (file, offset) = format::place(slot, opened.slots_a_file, STRIDE);
            self.write(&slots_name(file), offset, &[slot as u8 + 1; STRIDE as usize]);
        }
    }

    /// Both copies, as a tier writes them at open.
    fn write_super(&self, first: &Super) {
        let second = Super { sequence: first.sequence + 1, ..first.clone() };
        for copy in [first, &second] {
            let offset = (copy.sequence % 2) * PAGE_BYTES as u64;
            self.write(SUPER, offset, &copy.encode());
        }
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.file(name)).expect("open");
        file.write_all_at(bytes, offset).expect("write");
    }

    /// First byte of each slot, as far as there are files.
    fn slots(&self, slots: u32) -> Vec<Option<u8>> {
        let first = |slot| {
            let (file, offset) = format::place(slot, 3, STRIDE);
            let bytes = fs::read(self.file(&slots_name(file))).ok()?;
            let slot = bytes.get(offset as usize..offset as usize + STRIDE as usize)?;
            assert!(slot.iter().all(|byte| *byte == slot[0]));
            Some(slot[0])
        };
        (0..slots).map(first).collect()
    }

    /// Everything below the root: path, and length or link.
    pub(super) fn tree(&self) -> BTreeMap<PathBuf, u64> {
        let mut todo = vec![self.0.clone()];
        let mut tree = BTreeMap::new();
        while let Some(path) = todo.pop() {
            let Ok(stat) = fs::symlink_metadata(&path) else { continue };
            if stat.is_dir() {
                todo.extend(fs::read_dir(&path).expect("read").map(|e| e.expect("entry").path()));
            }
            tree.insert(path, if stat.is_file() { stat.len() } else { u64::MAX });
        }
        tree
    }

    /// The bytes of all files.
    fn bytes(&self) -> u64 {
        self.tree().values().filter(|bytes| **bytes != u64::MAX).sum()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The least capacity that has so many slots.
fn capacity_of(slots: u32) -> u64 {
    let pages = u64::from(format::table_pages(slots)) * PAGE_BYTES as u64;
    SUPER_BYTES + format::LAYOUT_BYTES_MAX + pages + u64::from(slots) * u64::from(STRIDE)
}

fn super_of(opened: &Opened) -> Super {
    Super {
        uuid: [9; 16],
        sequence: 2,
        epoch: 1,
        clear_epoch: 0,
        fingerprint: FINGERPRINT,
        layout_hash: opened.layout_hash,
        block_bytes: STRIDE,
        stride_bytes: STRIDE,
        slots: opened.slots,
        slots_a_file: opened.slots_a_file,
        key_check: [0; 16],
        clean: false,
        distrusted: false,
        boots: Vec::new(),
    }
}

/// Kind and code of an open that must fail.
fn refusal(config: &DirConfig<'_>) -> (ErrorKind, &'static str) {
    let error = open(config).expect_err("refused");
    assert!(!error.hint.is_empty() && !error.message.is_empty());
    (error.kind, error.code)
}

fn says(sentences: &[String], word: &str) -> bool {
    sentences.iter().any(|sentence| sentence.contains(word))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn a_new_directory_is_private_whole_and_no_larger_than_asked() {
    let root = Root::new("new");
    let opened = open(&root.config(7)).expect("open");
    assert!(opened.fresh && opened.super_block.is_none() && opened.lock.is_some());
    assert_eq!((opened.slots, opened.slots_a_file), (7, 3));
    assert_eq!(opened.warnings, Vec::<String>::new());
    assert_eq!(opened.path, root.file("").join("").components().collect::<PathBuf>());
    let page = PAGE_BYTES as u64;
    let lengths: Vec<u64> = opened
        .files
        .iter()
        .map(|(file, _)| fs::File::from(file.try_clone().expect("dup")).metadata().expect("stat"))
        .map(|stat| stat.len())
        .collect();
    assert_eq!(lengths, [2 * page, page, 3 * page, 3 * page, page]);
    assert_eq!(fs::read_to_string(root.file("layout.json")).expect("read"), LAYOUT);
    assert_eq!(opened.layout_hash, *blake3::hash(LAYOUT.as_bytes()).as_bytes());
    for (path, bytes) in root.tree() {
        let expected = if bytes == u64::MAX { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    assert!(root.bytes() <= capacity_of(7));
}

#[test]
fn a_reopen_finds_what_was_there() {
    let root = Root::new("reopen");
    root.stored(7);
    let other = DirConfig { slots_a_file: 5, ..root.config(7) };
    let opened = open(&other).expect("open");
    assert!(!opened.fresh);
    assert_eq!((opened.slots, opened.slots_a_file), (7, 3));
    assert_eq!(opened.super_block.map(|found| found.sequence), Some(3));
    assert_eq!(opened.warnings, Vec::<String>::new());
    assert_eq!(root.slots(7), (1..=7).map(Some).collect::<Vec<_>>());
    assert_eq!(fs::read(root.file(TABLE)).expect("read")[..64], [0xEE; 64]);
}

#[test]
fn the_description_is_written_anew_when_lost() {
    let root = Root::new("description");
    root.stored(3);
    for damage in [None, Some("{}")] {
        match damage {
            None => fs::remove_file(root.file("layout.json")).expect("remove"),
            Some(text) => fs::write(root.file("layout.json"), text).expect("write"),
        }
        let opened = open(&root.config(3)).expect("open");
        assert!(says(&opened.warnings, "layout.json"), "{:?}", opened.warnings);
        assert_eq!(fs::read_to_string(root.file("layout.json")).expect("read"), LAYOUT);
    }
    let long = "x".repeat(format::LAYOUT_BYTES_MAX as usize + 1);
    let config = DirConfig { layout_json: &long, ..root.config(3) };
    assert_eq!(refusal(&config), (ErrorKind::Config, "KS-CFG-307"));
}

#[test]
fn roots_that_cannot_be_are_named() {
    let root = Root::new("roots");
    fs::create_dir(&root.0).expect("create");
    let file = root.0.join("file");
    fs::write(&file, "mine").expect("write");
    let opening = |path: &Path| {
        let error = open(&DirConfig { root: path, ..root.config(3) }).expect_err("refused");
        assert!(error.message.contains(&*path.to_string_lossy()), "{error}");
        (error.kind, error.code)
    };
    assert_eq!(opening(&file), (ErrorKind::Config, "KS-CFG-302"));
    assert_eq!(opening(&file.join("below")), (ErrorKind::Config, "KS-CFG-302"));
    assert_eq!(opening(&root.0.join("a/b")), (ErrorKind::Config, "KS-CFG-303"));
    assert_eq!(opening(Path::new("")), (ErrorKind::Config, "KS-CFG-303"));
    assert_eq!(fs::read_to_string(&file).expect("read"), "mine");
    assert_eq!(root.tree().len(), 2, "nothing was made");
}

#[test]
fn only_safe_names_are_members() {
    let root = Root::new("members");
    let long = "m".repeat(place::MEMBER_BYTES_MAX + 1);
    for member in ["", ".", "..", "a/b", "a b", "ä", "a\0", "\n", &long] {
        let config = DirConfig { member, ..root.config(3) };
        assert_eq!(refusal(&config), (ErrorKind::Config, "KS-CFG-304"), "{member:?}");
    }
    assert!(!root.0.exists());
    for member in ["0", "rank-3.of_8", "...", &long[1..]] {
        open(&DirConfig { member, ..root.config(3) }).expect(member);
    }
}

#[test]
fn a_loose_directory_is_a_warning() {
    let root = Root::new("loose");
    root.stored(3);
    for (loose, path, warned) in [
        (0o777, &root.0, true),
        (0o1777, &root.0, false),
        (0o755, &root.0, false),
        (0o755, &root.0.join(HEX), true),
    ] {
        chmod(path, loose);
        let opened = open(&root.config(3)).expect("open");
        let word = format!("{loose:o}");
        assert_eq!(says(&opened.warnings, &word), warned, "{loose:o}: {:?}", opened.warnings);
    }
}

#[test]
fn foreign_files_are_left_alone_and_said() {
    let root = Root::new("foreign");
    root.stored(3);
    for name in ["notes.txt", "slots.00001", "slots.x", "slots.+001"] {
        fs::write(root.file(name), "mine").expect("write");
    }
    fs::create_dir(root.file("folder")).expect("create");
    let before = root.tree();
    let config = DirConfig { reset_on_mismatch: true, ..root.config(3) };
    let opened = open(&config).expect("open");
    assert!(says(&opened.warnings, "5 files") && says(&opened.warnings, "notes.txt"));
    assert_eq!(root.tree(), before);
}

#[test]
fn a_failed_open_leaves_nothing_behind() {
    let root = Root::new("nothing");
    let config = DirConfig { capacity_bytes: capacity_of(1) - 1, ..root.config(0) };
    let error = open(&config).expect_err("refused");
    assert_eq!((error.kind, error.code), (ErrorKind::Config, "KS-CFG-305"));
    assert!(error.message.contains(&capacity_of(1).to_string()), "{error}");
    assert!(!root.0.exists());
    let config = DirConfig { slots_a_file: 1, ..root.config(format::SLOTS_FILES_MAX + 100) };
    assert_eq!(refusal(&config), (ErrorKind::Config, "KS-CFG-306"));
    assert!(!root.0.exists(), "{:?}", root.tree());
    let opened = open(&DirConfig { capacity_bytes: capacity_of(1), ..config }).expect("open");
    assert_eq!(opened.slots, 1);
}
