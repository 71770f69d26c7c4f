//! Tests of ownership: stores of this process, of children, of the dead.

use super::*;
use crate::ssd::dir::tests::Root;
use crate::ssd::dir::{
    DirConfig, Opened, list as list_root, list_all, open as open_directory, remove,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const ROOT_OF_CHILD: &str = "KEYSTOW_TEST_DIR_ROOT";
const WITH_HEIR: &str = "KEYSTOW_TEST_DIR_HEIR";

/// Another process with the directory open, or refused; killed with the value.
struct Other {
    process: Child,
    lines: BufReader<ChildStdout>,
    /// "held", or "refused" with kind, code and message.
    said: String,
}

impl Other {
    fn new(root: &Root, how: impl FnOnce(&mut Command)) -> std::io::Result<Self> {
        let name = format!("{}::child", module_path!().split_once("::").expect("in a crate").1);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", &name, "--nocapture", "--test-threads=1"]);
        command.env(ROOT_OF_CHILD, &root.0).stdin(Stdio::piped()).stdout(Stdio::piped());
        how(&mut command);
        let mut process = command.spawn()?;
        let lines = BufReader::new(process.stdout.take().expect("piped"));
        let mut other = Self { process, lines, said: String::new() };
        other.said = other.line("=> ");
        Ok(other)
    }

    fn opening(root: &Root) -> Self {
        Self::new(root, |_| {}).expect("a child")
    }

    /// The rest of the next line that begins so.
    fn line(&mut self, begin: &str) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).expect("read") > 0 {
            if let Some(said) = line.strip_prefix(begin) {
                return said.trim_end().to_owned();
            }
            line.clear();
        }
        panic!("the child ended without {begin:?}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // SIGKILL: no guard is dropped in it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the other process runs. In a run of the tests themselves it does nothing.
#[test]
fn child() {
    let Some(root) = std::env::var_os(ROOT_OF_CHILD) else { return };
    let root = std::mem::ManuallyDrop::new(Root(root.into()));
    let opened = open_directory(&root.config(3));
    match &opened {
        Ok(_) => println!("\n=> held"),
        Err(error) => println!("\n=> refused {:?} {error}", error.kind),
    }
    if std::env::var_os(WITH_HEIR).is_some() {
        let lock = opened.as_ref().expect("open").lock.as_ref().expect("locked");
        let descriptor = lock.descriptor.as_ref().expect("open").try_clone().expect("dup");
        let mut command = Command::new("sleep");
        let heir = command.arg("60").stdin(descriptor).stdout(Stdio::null()).spawn();
        println!("\nheir {}", heir.expect("sleep").id());
        // It has another descriptor of LOCK, and to close that would drop our lock.
        std::mem::forget(command);
    }
    std::io::stdout().flush().expect("flush");
    // Until the parent is gone or kills us.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn refused(root: &Root) -> String {
    let error = open_directory(&root.config(3)).expect_err("refused");
    assert_eq!((error.kind, error.code), (crate::error::ErrorKind::Locked, "KS-LCK-001"));
    assert!(error.message.contains(&*root.file(LOCK).to_string_lossy()), "{error}");
    error.message
}

#[test]
fn a_second_store_of_this_process_is_refused_until_the_first_is_gone() {
    let root = Root::new("second");
    let first = open_directory(&root.config(3)).expect("open");
    assert!(refused(&root).contains(&std::process::id().to_string()));
    let elsewhere = DirConfig { member: "1", ..root.config(3) };
    drop(open_directory(&elsewhere).expect("another member is another directory"));
    drop(first);
    drop(open_directory(&root.config(3)).expect("open again"));
}

#[test]
fn a_store_of_another_process_is_named_and_its_death_frees_the_directory() {
    let root = Root::new("process");
    let other = Other::opening(&root);
    assert_eq!(other.said, "held");
    let pid = other.process.id();
    assert!(refused(&root).contains(&format!("process {pid}")), "{}", refused(&root));
    assert!(list_root(&root.0).expect("list")[0].locked);
    drop(other);
    assert!(!list_root(&root.0).expect("list")[0].locked);
    let opened = open_directory(&root.config(3)).expect("open after kill -9");
    assert!(Other::opening(&root).said.contains(&format!("process {}", std::process::id())));
    drop(opened);
    assert_eq!(Other::opening(&root).said, "held");
}

#[test]
fn a_descriptor_inherited_by_a_living_child_holds_nothing() {
    let root = Root::new("heir");
    let mut other = Other::new(&root, |command| {
        command.env(WITH_HEIR, "1");
    })
    .expect("a child");
    let heir = other.line("heir ");
    let inherited = std::fs::read_link(format!("/proc/{heir}/fd/0"));
    assert_eq!(inherited.ok(), Some(root.file(LOCK)), "the heir has LOCK open");
    assert!(Other::opening(&root).said.starts_with("refused Locked"), "its owner lives");
    drop(other);
    let opened = open_directory(&root.config(3)).map(|_| ());
    let alive = std::fs::read_link(format!("/proc/{heir}/fd/0")).is_ok();
    let killed = Command::new("kill").arg(&heir).status();
    assert!(alive && killed.is_ok_and(|status| status.success()), "the heir outlived its parent");
    opened.expect("the owner is dead");
}

#[test]
fn neither_refusals_nor_looks_drop_the_lock() {
    let root = Root::new("kept");
    let _opened = open_directory(&root.config(3)).expect("open");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    refused(&root);
                    assert!(list_root(&root.0).expect("list")[0].locked);
                    let look = DirConfig { read_only: true, ..root.config(3) };
                    open_directory(&look).expect_err("nothing stored yet");
                }
            });
        }
    });
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("procfs");
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    assert_eq!(links.filter(|link| *link == root.file(LOCK)).count(), 1, "opened once");
    let other = Other::opening(&root);
    let said = &other.said;
    assert!(said.starts_with("refused Locked") && said.contains("KS-LCK-001"), "{said}");
}

#[test]
fn of_many_threads_one_has_it() {
    let root = Root::new("threads");
    let owners = AtomicU32::new(0);
    let opens = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let Ok(_opened) = open_directory(&root.config(3)) else { continue };
                    assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                    std::thread::yield_now();
                    opens.fetch_add(1, Ordering::SeqCst);
                    owners.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert!(opens.into_inner() > 0);
}

/// A file with the guard that a child of its owner would have inherited, of another fork count.
fn inherited(opened: &Opened) -> LockGuard {
    let lock = opened.lock.as_ref().expect("locked");
    let descriptor = lock.descriptor.as_ref().expect("open").try_clone().expect("dup");
    LockGuard {
        descriptor: Some(descriptor),
        key: lock.key,
        forks: lock.forks.wrapping_sub(1),
        made: false,
    }
}

#[test]
fn an_inherited_guard_that_is_dropped_leaves_the_childs_own_lock() {
    let root = Root::new("inherited");
    let opened = open_directory(&root.config(3)).expect("open");
    drop(inherited(&opened));
    refused(&root);
    assert!(Other::opening(&root).said.starts_with("refused Locked"), "the lock is still there");
}

#[test]
fn an_inherited_entry_is_not_this_process() {
    let root = Root::new("entry");
    drop(open_directory(&root.config(3)).expect("open"));
    let stat = std::fs::metadata(root.file(LOCK)).expect("stat");
    let key = (stat.dev(), stat.ino());
    list().expect("the list").insert(key, fork_count().wrapping_sub(1));
    let opened = open_directory(&root.config(3)).expect("the parent's entry is not ours");
    refused(&root);
    drop(opened);
    assert!(!list().expect("the list").contains_key(&key));
}

#[test]
fn a_lock_on_a_file_that_lost_its_name_is_none() {
    let root = Root::new("renamed");
    let first = open_directory(&root.config(3)).expect("open");
    std::fs::rename(root.file(LOCK), root.file("moved")).expect("rename");
    // A new LOCK is a new file: nobody has it. What the old owner has is of no use to it.
    let second = open_directory(&root.config(3)).expect("open");
    refused(&root);
    let folder = std::fs::File::open(root.file("")).expect("open");
    let named = |opened: &Opened| {
        is_named(folder.as_fd(), opened.lock.as_ref().expect("locked").key).expect("stat")
    };
    assert!(!named(&first) && named(&second));
    std::fs::remove_file(root.file(LOCK)).expect("remove");
    assert!(!named(&second));
    drop((first, second));
    drop(open_directory(&root.config(3)).expect("open"));
}

/// Runs `work` in a thread that has the directory open and waits for the list of locks, while
/// `meanwhile` does to the directory what another process may.
fn overtaken<T: Send>(
    root: &Root,
    work: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce(&Path),
) -> T {
    let member = root.file("").components().collect::<PathBuf>();
    let entered = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").expect("procfs");
        let mut links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.any(|link| link == member)
    };
    let held = list().expect("the list");
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        while !entered() {
            std::thread::sleep(Duration::from_millis(1));
        }
        meanwhile(&member);
        drop(held);
        thread.join().expect("no panic")
    })
}

#[test]
fn who_enters_a_directory_that_is_then_removed_makes_a_new_one() {
    for half in [true, false] {
        let root = Root::new("overtaken-open");
        drop(open_directory(&root.config(3)).expect("open"));
        let gone = root.file("").with_file_name("0~1");
        let config = root.config(3);
        let opened = overtaken(
            &root,
            || open_directory(&config),
            |member| {
                std::fs::rename(member, &gone).expect("rename");
                if !half {
                    std::fs::remove_dir_all(member.parent().expect("a root")).expect("remove");
                }
            },
        );
        let opened = opened.expect("a new directory");
        assert!(opened.fresh && root.file("SUPER").exists());
        refused(&root);
        assert_eq!(gone.exists(), half);
        // The lock that was taken in it by mistake is free again.
        assert!(
            !half
                || !list_all(&root.0)
                    .expect("list")
                    .iter()
                    .any(|it| { it.half_removed && it.locked })
        );
    }
}

#[test]
fn who_is_about_to_remove_a_directory_leaves_the_next_one_of_its_name() {
    let root = Root::new("overtaken-removal");
    drop(open_directory(&root.config(3)).expect("open"));
    let moved = root.0.join("moved");
    let before = root.tree();
    let removed = overtaken(
        &root,
        || remove(&root.0, [0xA7; 16], "0"),
        |member| {
            std::fs::rename(member, &moved).expect("rename");
            std::fs::create_dir(member).expect("create");
            for entry in std::fs::read_dir(&moved).expect("read") {
                let file = entry.expect("a file");
                std::fs::copy(file.path(), member.join(file.file_name())).expect("copy");
            }
        },
    );
    assert_eq!(removed.expect_err("another directory").code, "KS-CFG-301");
    for path in before.keys() {
        assert!(path.exists(), "{}", path.display());
    }
    assert!(moved.join("SUPER").exists() && moved.join("slots.0000").exists());
}

#[test]
fn a_list_that_stays_locked_is_not_waited_for_for_ever() {
    let list = Mutex::new(());
    let inherited = list.lock().expect("free");
    assert!(enter(&list, 3).is_none());
    drop(inherited);
    assert!(enter(&list, 3).is_some());
}

#[test]
fn a_directory_that_this_user_may_not_write_is_refused() {
    let root = Root::new("unwritable");
    std::fs::create_dir(&root.0).expect("create");
    std::fs::set_permissions(&root.0, std::fs::Permissions::from_mode(0o555)).expect("chmod");
    let said = if rustix::process::geteuid().is_root() {
        // Root may write anywhere: somebody else has to try.
        let nobody = |command: &mut Command| {
            command.uid(65_534).gid(65_534);
        };
        match Other::new(&root, nobody) {
            Ok(other) => other.said.clone(),
            Err(error) => return eprintln!("skipped: no child of another user: {error}"),
        }
    } else {
        open_directory(&root.config(3)).expect_err("refused").to_string()
    };
    assert!(said.contains("KS-SSD-001") && said.contains("Permission denied"), "{said}");
    assert_eq!(root.tree().len(), 1, "nothing was made");
}
