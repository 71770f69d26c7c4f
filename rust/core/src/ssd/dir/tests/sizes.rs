//! Growing, cutting, mending, resetting.

use super::*;

fn some(bytes: impl IntoIterator<Item = u8>) -> Vec<Option<u8>> {
    bytes.into_iter().map(Some).collect()
}

#[test]
fn a_larger_capacity_grows_in_place() {
    let root = Root::new("grow");
    root.stored(7);
    let opened = open(&root.config(100)).expect("open");
    assert_eq!((opened.slots, opened.files.len()), (100, 2 + 34));
    assert_eq!(opened.super_block.map(|found| found.slots), Some(7));
    assert_eq!(opened.warnings, Vec::<String>::new());
    assert_eq!(root.slots(100), some((1..=7).chain([0; 93])));
    let table = fs::read(root.file(TABLE)).expect("read");
    assert_eq!(table.len(), 3 * PAGE_BYTES);
    assert_eq!((&table[..64], &table[64..]), (&[0xEE; 64][..], &[0; 3 * PAGE_BYTES - 64][..]));
    assert!(root.bytes() <= capacity_of(100));
}

#[test]
fn a_smaller_capacity_drops_slots_only() {
    let root = Root::new("shrink");
    root.stored(100);
    let opened = open(&root.config(4)).expect("open");
    assert_eq!((opened.slots, opened.files.len()), (4, 2 + 2));
    assert!(says(&opened.warnings, "96 of 100"), "{:?}", opened.warnings);
    assert!(root.bytes() <= capacity_of(4), "{:?}", root.tree());
    assert_eq!(root.slots(6), [Some(1), Some(2), Some(3), Some(4), None, None]);
    drop(opened);
    // SUPER still says 100, as after a crash right here.
    let opened = open(&root.config(4)).expect("open");
    assert!(!says(&opened.warnings, "whole"), "{:?}", opened.warnings);
    drop(opened);
    drop(open(&root.config(7)).expect("open"));
    assert_eq!(root.slots(7), some([1, 2, 3, 4, 0, 0, 0]));
}

#[test]
fn the_files_never_take_more_than_the_capacity() {
    let root = Root::new("capacity");
    let mut draw = 7_u64;
    for round in 0..60 {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let capacity_bytes = capacity_of(1) + (draw >> 33) % (1 << 20);
        let config = DirConfig { capacity_bytes, ..root.config(0) };
        let opened = open(&config).expect("open");
        assert!(root.bytes() <= capacity_bytes, "{} > {capacity_bytes}", root.bytes());
        let one_more = capacity_bytes - root.bytes();
        let reserved = format::LAYOUT_BYTES_MAX + PAGE_BYTES as u64 + u64::from(STRIDE);
        assert!(one_more < reserved, "{one_more} bytes not used");
        if round % 3 == 0 {
            root.write_super(&super_of(&opened));
        }
    }
}

#[test]
fn a_lock_that_holds_bytes_is_cut() {
    let root = Root::new("fat-lock");
    root.stored(7);
    fs::rename(root.file("slots.0000"), root.file("LOCK")).expect("rename");
    drop(open(&root.config(7)).expect("open"));
    assert!(root.bytes() <= capacity_of(7), "{:?}", root.tree());
}

#[test]
fn missing_and_short_files_are_made_whole() {
    let root = Root::new("mend");
    root.stored(9);
    fs::remove_file(root.file("slots.0001")).expect("remove");
    fs::OpenOptions::new()
        .write(true)
        .open(root.file("slots.0002"))
        .and_then(|file| file.set_len(u64::from(STRIDE)))
        .expect("cut");
    let opened = open(&root.config(9)).expect("open");
    assert!(says(&opened.warnings, "2 files, from slots.0001 on"), "{:?}", opened.warnings);
    assert_eq!(root.slots(9), some([1, 2, 3, 0, 0, 0, 7, 0, 0]));
    drop(opened);
    fs::remove_file(root.file(TABLE)).expect("remove");
    let opened = open(&root.config(9)).expect("open");
    assert!(!opened.fresh && says(&opened.warnings, "1 files, from table on"));
    assert_eq!(fs::read(root.file(TABLE)).expect("read"), [0; PAGE_BYTES]);
    assert_eq!(root.slots(9), some([1, 2, 3, 0, 0, 0, 7, 0, 0]));
}

#[test]
fn longer_and_further_files_of_ours_are_cut() {
    let root = Root::new("longer");
    root.stored(4);
    fs::write(root.file("slots.0007"), [1; 9000]).expect("write");
    for name in [SUPER, TABLE, "slots.0001"] {
        let bytes = fs::read(root.file(name)).expect("read");
        fs::write(root.file(name), [bytes, vec![1; 9000]].concat()).expect("write");
    }
    drop(open(&root.config(4)).expect("open"));
    assert!(root.bytes() <= capacity_of(4), "{:?}", root.tree());
    assert_eq!(root.slots(4), some([1, 2, 3, 4]));
    assert!(!root.file("slots.0007").exists());
}

/// What must be a Format error of this code without a reset, and a fresh directory with it.
fn refused_then_reset(root: &Root, config: &DirConfig<'_>, code: &str) {
    let before = root.tree();
    assert_eq!(refusal(config), (ErrorKind::Format, code));
    assert_eq!(root.tree(), before, "a refusal changes nothing");
    let opened =
        open(&DirConfig { reset_on_mismatch: true, ..config.clone() }).expect("a fresh start");
    assert!(opened.fresh && opened.super_block.is_none());
    assert!(says(&opened.warnings, "afresh"), "{:?}", opened.warnings);
    assert!(fs::read(root.file(SUPER)).expect("read").iter().all(|byte| *byte == 0));
    assert!(fs::read(root.file(TABLE)).expect("read").iter().all(|byte| *byte == 0));
    assert!(root.bytes() <= config.capacity_bytes);
}

#[test]
fn another_layout_is_refused_or_reset() {
    let root = Root::new("layout");
    root.stored(9);
    let stride = DirConfig { stride_bytes: 2 * STRIDE, ..root.config(9) };
    refused_then_reset(&root, &stride, "KS-FMT-003");
    root.stored(9);
    let layout = DirConfig { layout_json: "{\"layers\": 3}", ..root.config(9) };
    refused_then_reset(&root, &layout, "KS-FMT-003");
    root.stored(9);
    let opened = open(&root.config(9)).expect("open");
    root.write_super(&Super { fingerprint: [1; 16], ..super_of(&opened) });
    drop(opened);
    refused_then_reset(&root, &root.config(9), "KS-FMT-003");
}

#[test]
fn a_newer_format_is_refused_or_reset() {
    let root = Root::new("newer");
    root.stored(9);
    let mut page = fs::read(root.file(SUPER)).expect("read")[..PAGE_BYTES].to_vec();
    page[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let crc = crate::io::digest64(crate::io::digest64(0, &page[..PAGE_BYTES - 8]), &[]);
    page[PAGE_BYTES - 8..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Super::decode(&page), Err(format::Broken::Newer(2)), "the test's own checksum");
    // One copy is enough: the other may be what the newer version has not yet overwritten.
    root.write(SUPER, 0, &page);
    refused_then_reset(&root, &root.config(9), "KS-FMT-001");
}

#[test]
fn a_broken_super_is_refused_or_reset_and_one_copy_is_enough() {
    let root = Root::new("broken");
    root.stored(9);
    root.write(SUPER, 100, &[0xFF; 8]);
    let opened = open(&root.config(9)).expect("one copy is whole");
    assert_eq!(opened.super_block.map(|found| found.sequence), Some(3));
    drop(opened.lock);
    root.write(SUPER, PAGE_BYTES as u64 + 100, &[0xFF; 8]);
    refused_then_reset(&root, &root.config(9), "KS-FMT-002");
    for damage in [&[0; 2 * PAGE_BYTES][..], &[b'x'; 2 * PAGE_BYTES][..]] {
        root.stored(9);
        root.write(SUPER, 0, damage);
        refused_then_reset(&root, &root.config(9), "KS-FMT-002");
    }
    root.stored(9);
    fs::remove_file(root.file(SUPER)).expect("remove");
    let config = root.config(9);
    assert_eq!(refusal(&config), (ErrorKind::Format, "KS-FMT-002"));
    fs::remove_file(root.file(TABLE)).expect("remove");
    assert!(open(&config).expect("nothing to lose").fresh);
}

#[test]
fn a_crash_while_it_is_made_leaves_a_new_directory() {
    let root = Root::new("made");
    let opened = open(&root.config(9)).expect("open");
    let page = super_of(&opened).encode();
    drop(opened);
    // Each sector of the very first write of SUPER reached the disk, or did not.
    for sectors in 0..=255_u32 {
        fs::write(root.file(SUPER), [0; 2 * PAGE_BYTES]).expect("write");
        for sector in (0..8).filter(|sector| sectors & (1 << sector) != 0) {
            let at = 512 * sector as usize;
            root.write(SUPER, at as u64, &page[at..at + 512]);
        }
        let opened = open(&root.config(9)).expect("open");
        assert!(opened.fresh || opened.super_block == Super::decode(&page).ok(), "{sectors:08b}");
    }
    // A file of the directory is missing, or there is more of it than will be needed.
    for name in [SUPER, TABLE, "slots.0000", "layout.json"] {
        fs::write(root.file(SUPER), []).expect("write");
        fs::remove_file(root.file(name)).expect("remove");
        assert!(open(&root.config(12)).expect("open").fresh);
        assert!(open(&root.config(3)).expect("open").fresh);
        assert!(root.bytes() <= capacity_of(3));
    }
    fs::write(root.file(SUPER), [b'x'; 2 * PAGE_BYTES]).expect("write");
    assert_eq!(refusal(&root.config(9)), (ErrorKind::Format, "KS-FMT-002"));
}

#[test]
fn what_is_no_regular_file_is_refused_and_not_followed() {
    let root = Root::new("links");
    let outside = Root::new("links-outside");
    fs::create_dir(&outside.0).expect("create");
    let victim = outside.0.join("victim");
    for name in [SUPER, TABLE, "slots.0001", "slots.0009", "layout.json", lock::LOCK] {
        root.stored(9);
        fs::write(&victim, "precious").expect("write");
        let _ = fs::remove_file(root.file(name));
        std::os::unix::fs::symlink(&victim, root.file(name)).expect("link");
        let config = root.config(9);
        assert_eq!(refusal(&config), (ErrorKind::Format, "KS-FMT-004"), "{name}");
        if name == lock::LOCK {
            fs::remove_file(root.file(name)).expect("remove");
        }
        let config = DirConfig { reset_on_mismatch: true, ..config };
        assert_eq!(open(&config).expect("reset").fresh, name != lock::LOCK);
        assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
    }
    root.stored(9);
    fs::remove_file(root.file(TABLE)).expect("remove");
    let made = std::process::Command::new("mkfifo").arg(root.file(TABLE)).status();
    if made.is_ok_and(|status| status.success()) {
        assert_eq!(refusal(&root.config(9)), (ErrorKind::Format, "KS-FMT-004"));
        fs::remove_file(root.file(TABLE)).expect("remove");
    }
    fs::create_dir(root.file(TABLE)).expect("create");
    assert_eq!(refusal(&root.config(9)), (ErrorKind::Format, "KS-FMT-004"));
}

#[test]
fn a_link_in_place_of_our_directories_is_refused() {
    let root = Root::new("folders");
    root.stored(3);
    let member = root.file("").components().collect::<PathBuf>();
    for (path, moved) in [(&member, "elsewhere"), (&root.0.join(HEX), "other")] {
        let target = root.0.join(moved);
        fs::rename(path, &target).expect("rename");
        std::os::unix::fs::symlink(&target, path).expect("link");
        assert_eq!(refusal(&root.config(3)), (ErrorKind::Ssd, "KS-SSD-001"));
        fs::remove_file(path).expect("remove");
        fs::rename(&target, path).expect("rename");
    }
    assert!(!open(&root.config(3)).expect("open").fresh);
    // The root itself is the user's to link.
    let link = root.0.with_extension("link");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&root.0, &link).expect("link");
    let opened = open(&DirConfig { root: &link, ..root.config(3) });
    fs::remove_file(&link).expect("remove");
    assert!(!opened.expect("open").fresh);
}
