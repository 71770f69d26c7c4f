//! Looking without owning: read-only opens and the list of a root.

use super::*;

fn look_of<'a>(root: &'a Root) -> DirConfig<'a> {
    DirConfig {
        read_only: true,
        layout_json: "",
        stride_bytes: 0,
        capacity_bytes: 0,
        ..root.config(0)
    }
}

#[test]
fn a_look_changes_nothing_and_needs_no_lock() {
    let root = Root::new("look");
    root.stored(7);
    let times = |root: &Root| -> Vec<_> {
        root.tree()
            .into_keys()
            .map(|path| fs::metadata(&path).and_then(|stat| stat.modified()).expect("stat"))
            .collect()
    };
    fs::write(root.file("layout.json"), "changed").expect("write");
    fs::write(root.file("slots.0009"), "ours, and too much").expect("write");
    let _owner = open(&root.config(7)).expect("open");
    fs::remove_file(root.file(lock::LOCK)).expect("remove");
    let before = (root.tree(), times(&root));
    let opened = open(&look_of(&root)).expect("look");
    assert!(opened.lock.is_none() && !opened.fresh);
    assert_eq!((opened.slots, opened.slots_a_file, opened.files.len()), (7, 3, 5));
    assert_eq!(opened.super_block.as_ref().map(|found| found.slots), Some(7));
    let file = fs::File::from(opened.files[2].0.try_clone().expect("dup"));
    assert!(file.write_at(&[0], 0).is_err(), "not opened to write");
    drop(opened);
    assert_eq!((root.tree(), times(&root)), before);
}

#[test]
fn a_look_at_nothing_says_what_is_missing() {
    let root = Root::new("nothing-there");
    assert_eq!(refusal(&look_of(&root)), (ErrorKind::Config, "KS-CFG-301"));
    assert!(!root.0.exists());
    fs::create_dir(&root.0).expect("create");
    assert_eq!(refusal(&look_of(&root)), (ErrorKind::Config, "KS-CFG-301"));
    drop(open(&root.config(7)).expect("open"));
    assert_eq!(refusal(&look_of(&root)), (ErrorKind::Config, "KS-CFG-301"), "SUPER is empty");
    root.stored(7);
    let other = DirConfig { stride_bytes: 2 * STRIDE, ..look_of(&root) };
    assert_eq!(refusal(&other), (ErrorKind::Format, "KS-FMT-003"));
    let reset = DirConfig { reset_on_mismatch: true, ..other };
    assert_eq!(refusal(&reset), (ErrorKind::Format, "KS-FMT-003"), "a look resets nothing");
    let other = DirConfig { layout_json: "{}", ..look_of(&root) };
    assert_eq!(refusal(&other), (ErrorKind::Format, "KS-FMT-003"));
}

#[test]
fn a_look_takes_the_files_that_are_there() {
    let root = Root::new("partly");
    root.stored(9);
    fs::remove_file(root.file("slots.0001")).expect("remove");
    let opened = open(&look_of(&root)).expect("look");
    assert_eq!((opened.slots, opened.files.len()), (3, 3));
    assert!(says(&opened.warnings, "slots.0001 is missing"), "{:?}", opened.warnings);
    fs::remove_file(root.file("slots.0000")).expect("remove");
    assert_eq!(refusal(&look_of(&root)), (ErrorKind::Format, "KS-FMT-002"));
}

#[test]
fn a_root_lists_its_stores() {
    let root = Root::new("list");
    assert_eq!(list(&root.0).expect_err("no root").code, "KS-SSD-001");
    root.stored(7);
    let second = DirConfig { member: "one", fingerprint: [0x10; 16], ..root.config(20) };
    let held = open(&second).expect("open");
    for stray in ["not-hex", "A7A7A7A7A7A7A7A7A7A7A7A7A7A7A7A7", HEX] {
        fs::create_dir_all(root.0.join(stray).join("a member?")).expect("create");
    }
    fs::write(root.0.join(HEX).join("file"), "mine").expect("write");
    let found = list(&root.0).expect("list");
    let facts: Vec<_> = found.iter().map(|l| (l.fingerprint[0], &*l.member, l.locked)).collect();
    assert_eq!(facts, [(0x10, "one", true), (0xA7, "0", false)]);
    let layout = LAYOUT.len() as u64;
    let expected = |slots| capacity_of(slots) - format::LAYOUT_BYTES_MAX + layout;
    assert_eq!((found[0].bytes, found[1].bytes), (expected(20), expected(7)));
    drop(held);
    assert!(list(&root.0).expect("list").iter().all(|listed| !listed.locked));
    fs::remove_file(root.file(lock::LOCK)).expect("remove");
    std::os::unix::fs::symlink("/dev/null", root.file(lock::LOCK)).expect("link");
    assert!(list(&root.0).expect("list")[1].locked, "what can't be told is locked");
}
