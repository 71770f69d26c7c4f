//! Removing whole directories: what may go, in which order, and what a crash half way leaves.

use super::*;
use crate::ssd::dir::remove::{Step, member_of, remove_by_steps};
use std::time::{Duration, SystemTime};

const SECOND: &str = "second";

fn stop() -> Error {
    Error::new(ErrorKind::Ssd, "KS-TEST", "stopped", "none")
}

/// A directory of 7 slots as member 0, and another member beside it.
fn two(name: &str) -> Root {
    let root = Root::new(name);
    root.stored(7);
    drop(open(&DirConfig { member: SECOND, ..root.config(3) }).expect("open"));
    root
}

fn removed(root: &Root, name: &str) -> Result<(), Error> {
    remove(&root.0, FINGERPRINT, name)
}

/// Member and whether it is half removed.
fn all(root: &Root) -> Vec<(String, bool)> {
    let found = list_all(&root.0).expect("list");
    found.into_iter().map(|it| (it.member, it.half_removed)).collect()
}

/// A removal that ends as by a kill, before its step number `steps`; true if it came to its end.
fn cut_short(root: &Root, steps: usize) -> bool {
    let mut left = steps;
    let mut step = |_: &str| {
        left = left.checked_sub(1).ok_or_else(stop)?;
        Ok(())
    };
    let step: &mut Step<'_> = &mut step;
    match remove_by_steps(&root.0, FINGERPRINT, "0", step) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.code, "KS-TEST", "{error}");
            false
        }
    }
}

#[test]
fn the_name_goes_first_then_the_table_then_super_then_the_lock() {
    let root = two("order");
    let inode = fs::metadata(root.file("")).expect("stat").ino();
    let mut steps = Vec::new();
    let done = remove_by_steps(&root.0, FINGERPRINT, "0", &mut |step| {
        steps.push(step.to_owned());
        assert_eq!(root.file("").exists(), steps.len() == 1, "{steps:?}");
        let locked = list_all(&root.0).expect("list").iter().any(|it| it.locked);
        assert_eq!(
            locked,
            steps.iter().filter(|step| *step == lock::LOCK).count() == 0 || {
                // LOCK is there until the step after it.
                step == lock::LOCK
            }
        );
        Ok(())
    });
    done.expect("removed");
    let gone = format!("0~{inode:x}");
    assert_eq!(steps[..2], [gone.clone(), TABLE.to_owned()]);
    let mut slots = steps[2..5].to_vec();
    slots.sort();
    assert_eq!(slots, ["slots.0000", "slots.0001", "slots.0002"]);
    let rest = [CHANGES, "layout.json", "layout.json.new", SUPER, lock::LOCK, &gone, HEX];
    assert_eq!(steps[5..], rest);
    assert_eq!(all(&root), [(SECOND.to_owned(), false)]);
    removed(&root, SECOND).expect("removed");
    assert!(root.0.exists() && root.tree().len() == 1, "{:?}", root.tree());
}

#[test]
fn a_removal_that_is_cut_short_is_known_and_ended_by_the_next() {
    for steps in 0.. {
        let root = two("cut");
        let before = root.tree();
        if cut_short(&root, steps) {
            assert_eq!(steps, 12, "every step was cut once");
            return;
        }
        let listed = all(&root);
        match steps {
            0 => assert_eq!(root.tree(), before, "nothing is lost before the first step"),
            1..=10 => assert_eq!(listed, [("0".to_owned(), true), (SECOND.to_owned(), false)]),
            _ => assert_eq!(listed, [(SECOND.to_owned(), false)]),
        }
        for it in list_all(&root.0).expect("list") {
            assert!(!it.locked, "a dead owner holds nothing");
            assert!(list(&root.0).expect("list").iter().all(|it| !it.half_removed));
            if it.member == "0" {
                removed(&root, &it.name).expect("removed");
            }
        }
        assert_eq!(all(&root), [(SECOND.to_owned(), false)], "{steps}");
        let only = root.0.join(HEX);
        let left: Vec<_> = fs::read_dir(only).expect("read").map(|e| e.expect("one")).collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

#[test]
fn an_open_of_what_is_half_removed_begins_anew_beside_it() {
    for steps in 1..=10 {
        let root = two("anew");
        assert!(!cut_short(&root, steps));
        let opened = open(&root.config(7)).expect("open");
        assert!(opened.fresh && opened.super_block.is_none(), "{steps}");
        assert_eq!(opened.warnings, Vec::<String>::new());
        root.write_super(&super_of(&opened));
        drop(opened);
        let [(_, true), ..] = all(&root)[1..] else { panic!("{:?}", all(&root)) };
        let rest = list_all(&root.0).expect("list").swap_remove(1);
        removed(&root, &rest.name).expect("removed");
        let again = open(&root.config(7)).expect("open");
        assert!(!again.fresh, "the new one is left alone");
    }
}

/// As after a power cut on a file system that forgot the new name, or by hand.
#[test]
fn the_rest_of_a_removal_under_its_old_name_opens_empty() {
    for steps in 1..=10 {
        let root = two("renamed-back");
        assert!(!cut_short(&root, steps));
        let gone = list_all(&root.0).expect("list").swap_remove(0).name;
        fs::rename(root.0.join(HEX).join(gone), root.file("")).expect("rename");
        let opened = open(&root.config(7)).expect("open");
        let table = fs::read(root.file(TABLE)).expect("read");
        // The table is whole before its step.
        let kept = steps == 1;
        assert_eq!(table.iter().any(|byte| *byte != 0), kept, "{steps}");
        assert_eq!(opened.fresh, steps >= 9, "SUPER is there until its step");
    }
}

#[test]
fn what_is_not_a_stores_stays_whole() {
    let root = Root::new("stays");
    let refused = |code| {
        let before = root.tree();
        let error = removed(&root, "0").expect_err("refused");
        assert_eq!(error.code, code, "{error}");
        assert_eq!(may_be_removed(&root.0, FINGERPRINT, "0").expect_err("refused").code, code);
        assert!(error.message.contains(&*root.0.to_string_lossy()) && !error.hint.is_empty());
        assert_eq!(root.tree(), before);
    };
    root.stored(7);
    for foreign in ["notes.txt", "slots.00001", "slots.10000", "SUPER.old", "~", "0~1"] {
        fs::write(root.file(foreign), "mine").expect("write");
        refused("KS-SSD-004");
        fs::remove_file(root.file(foreign)).expect("remove");
    }
    fs::create_dir(root.file("folder")).expect("create");
    refused("KS-SSD-004");
    fs::remove_dir(root.file("folder")).expect("remove");
    fs::create_dir(root.file("slots.0007")).expect("create");
    refused("KS-FMT-004");
    fs::remove_dir(root.file("slots.0007")).expect("remove");
    // Neither LOCK nor anything else is made in what is refused.
    fs::remove_file(root.file(lock::LOCK)).expect("remove");
    root.write_super(&Super { fingerprint: [1; 16], ..super_of(&opened_by_look(&root)) });
    refused("KS-FMT-003");
    root.write(SUPER, 0, &[b'x'; 2 * PAGE_BYTES]);
    refused("KS-FMT-002");
    fs::write(root.file(SUPER), []).expect("write");
    refused("KS-SSD-005");
    fs::remove_file(root.file(SUPER)).expect("remove");
    refused("KS-SSD-005");
    fs::remove_dir_all(root.file("")).expect("remove");
    let target = root.0.join("target");
    fs::create_dir(&target).expect("create");
    std::os::unix::fs::symlink(&target, root.0.join(HEX).join("0")).expect("link");
    refused("KS-SSD-001");
}

fn opened_by_look(root: &Root) -> Opened {
    open(&DirConfig { read_only: true, ..root.config(7) }).expect("look")
}

#[test]
fn a_store_that_was_never_written_may_go() {
    let root = Root::new("blank");
    drop(open(&root.config(7)).expect("open"));
    removed(&root, "0").expect("removed");
    assert_eq!(root.tree().len(), 1, "{:?}", root.tree());
    let error = removed(&root, "0").expect_err("gone");
    assert_eq!((error.kind, error.code), (ErrorKind::Config, "KS-CFG-301"));
}

#[test]
fn what_somebody_has_open_stays() {
    let root = Root::new("held");
    root.stored(7);
    let opened = open(&root.config(7)).expect("open");
    let before = root.tree();
    let error = removed(&root, "0").expect_err("held");
    assert_eq!((error.kind, error.code), (ErrorKind::Locked, HELD));
    assert_eq!(root.tree(), before);
    drop(opened);
    removed(&root, "0").expect("free");
}

#[test]
fn a_foreign_file_that_comes_late_is_kept() {
    let root = two("late");
    let mut path = PathBuf::new();
    let error = remove_by_steps(&root.0, FINGERPRINT, "0", &mut |step| {
        if step == SUPER {
            let found = list_all(&root.0).expect("list");
            path = root.0.join(HEX).join(&found[0].name).join("notes.txt");
            fs::write(&path, "mine").expect("write");
        }
        Ok(())
    })
    .expect_err("it holds something");
    assert_eq!(error.code, "KS-SSD-004");
    assert_eq!(fs::read_to_string(&path).expect("read"), "mine");
    let name = list_all(&root.0).expect("list").swap_remove(0).name;
    assert_eq!(removed(&root, &name).expect_err("still").code, "KS-SSD-004");
    fs::remove_file(&path).expect("remove");
    removed(&root, &name).expect("removed");
}

#[test]
fn only_names_that_a_store_or_a_removal_gives() {
    assert_eq!(member_of("rank-3.of_8~1a2b"), Some("rank-3.of_8"));
    for name in ["0", "0~", "~1", "0~01", "0~1A", "0~x", "0~+1", "a/b~1", "..~1", "0~1~2", "0 ~1"] {
        assert_eq!(member_of(name), None, "{name}");
    }
    let root = two("names");
    let before = root.tree();
    for name in ["", ".", "..", "a/b", "../target", "0~", "absent", "0~1"] {
        assert_eq!(removed(&root, name).expect_err("refused").code, "KS-CFG-301", "{name:?}");
    }
    assert_eq!(root.tree(), before);
}

#[test]
fn what_belongs_to_another_user_stays() {
    let root = Root::new("theirs");
    root.stored(3);
    for path in [root.0.join(HEX).join("0"), root.0.join(HEX), root.file(TABLE)] {
        if let Err(error) = std::os::unix::fs::chown(&path, Some(12_345), None) {
            return eprintln!("skipped: only root can give files away: {error}");
        }
        let before = root.tree();
        assert_eq!(removed(&root, "0").expect_err("refused").code, "KS-SSD-003");
        assert_eq!(root.tree(), before);
        std::os::unix::fs::chown(&path, Some(0), None).expect("chown");
    }
}

#[test]
fn an_open_during_removals_is_refused_or_whole() {
    let root = Root::new("race");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let ended = || stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut removals = 0;
            while !ended() {
                for it in list_all(&root.0).into_iter().flatten() {
                    match removed(&root, &it.name) {
                        Ok(()) => removals += 1,
                        // Held, or of an opener that is not yet as far as SUPER.
                        Err(error) if [HELD, "KS-SSD-005", "KS-CFG-301"].contains(&error.code) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            assert!(removals > 0);
        });
        for _ in 0..400 {
            match open(&root.config(3)) {
                Ok(opened) => {
                    assert!(root.file(SUPER).exists() && root.file("slots.0000").exists());
                    drop(opened);
                }
                Err(error) => assert_eq!(error.code, HELD, "{error}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn every_open_by_an_owner_is_the_last_open() {
    let root = Root::new("opened");
    root.stored(3);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let age = || {
        let lock = fs::OpenOptions::new().write(true).open(root.file(lock::LOCK)).expect("open");
        lock.set_modified(long_ago).expect("a time");
    };
    let opened_s = || list(&root.0).expect("list")[0].opened_unix_s.expect("a time");
    age();
    assert_eq!(opened_s(), 1_000_000);
    drop(opened_by_look(&root));
    drop(open(&DirConfig { layout_json: "{}", ..root.config(3) }).expect_err("another layout"));
    let error = open(&DirConfig { capacity_bytes: 1 << 60, ..root.config(3) });
    drop(error.expect_err("no room"));
    assert_eq!(opened_s(), 1_000_000, "neither a look nor a refusal is an open");
    let opened = open(&root.config(3)).expect("open");
    assert!(opened_s() > 1_000_000_000);
    age();
    open(&root.config(3)).expect_err("held");
    assert_eq!(opened_s(), 1_000_000, "who is refused has not opened it");
    drop(opened);
    fs::remove_file(root.file(lock::LOCK)).expect("remove");
    assert!(opened_s() > 1_000_000_000, "SUPER stands in for LOCK");
}
