//! What is wrong with a directory, in sentences.
//!
//! Owns: the codes KS-LCK, KS-SSD-0xx, KS-FMT-0xx and KS-CFG-3xx and their wording. Never does:
//! look at a file. Invariant: every message names the path, and every hint is something that its
//! reader can do.

use crate::error::{Error, ErrorKind};
use rustix::io::Errno;
use std::fmt::Display;
use std::path::Path;

/// The code of a directory that somebody has.
pub(crate) const HELD: &str = "KS-LCK-001";

/// A system call that failed, and what it was to do ("create", "open").
#[cold]
pub(super) fn failed(doing: &str, path: &Path, errno: Errno) -> Error {
    let hint = match errno {
        Errno::ACCESS | Errno::PERM => {
            "let this process's user write there, or name another directory in ssd=."
        }
        Errno::ROFS => "mount the file system writable, or name another directory in ssd=.",
        Errno::NOSPC | Errno::DQUOT => "free some space there, or ask for a smaller capacity.",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files (ulimit -n).",
        Errno::FBIG => "raise the limit of file lengths (ulimit -f), or use another file system.",
        Errno::NOLCK | Errno::OPNOTSUPP => {
            "use a directory on a local disk: its file system lacks what the store needs."
        }
        Errno::LOOP | Errno::NOTDIR => "remove what stands there in place of a directory.",
        Errno::IO => "check the disk (dmesg), or name another directory in ssd=.",
        _ => "check the path and the disk, or name another directory in ssd=.",
    };
    let why = std::io::Error::from(errno);
    let message = format!("cannot {doing} {}: {why}.", path.display());
    Error::new(ErrorKind::Ssd, "KS-SSD-001", message, hint)
        .with("path", path.display())
        .with("errno", errno.raw_os_error())
}

/// The disk has less room than the files take.
#[cold]
pub(super) fn no_room(path: &Path, needed_bytes: u64, free_bytes: u64) -> Error {
    let message = format!(
        "{} needs {needed_bytes} more bytes, and its file system has {free_bytes} free.",
        path.display()
    );
    let hint = "ask for a smaller capacity in ssd=, or free some space there: keystow gc lists \
                what other stores take.";
    Error::new(ErrorKind::Ssd, "KS-SSD-002", message, hint)
        .with("path", path.display())
        .with("needed_bytes", needed_bytes)
        .with("free_bytes", free_bytes)
}

/// A directory or file of another user.
#[cold]
pub(super) fn not_ours(path: &Path, owner: u32, us: u32) -> Error {
    let message = format!("{} belongs to user {owner}, this process is user {us}.", path.display());
    let hint = "run as that user, or name another directory in ssd=.";
    Error::new(ErrorKind::Ssd, "KS-SSD-003", message, hint)
        .with("path", path.display())
        .with("owner", owner)
        .with("user", us)
}

/// What was asked to be removed holds something that no store made.
#[cold]
pub(super) fn holds_others(path: &Path, count: usize, shown: &str) -> Error {
    let message =
        format!("{}: {count} files there are not a store's ({shown}); it stays.", path.display());
    let hint = "move them away, or remove the directory yourself.";
    Error::new(ErrorKind::Ssd, "KS-SSD-004", message, hint)
        .with("path", path.display())
        .with("files", count)
}

/// What was asked to be removed is no store's directory.
#[cold]
pub(super) fn no_stores(path: &Path) -> Error {
    let message = format!("{} has no SUPER: it is no store's, and stays.", path.display());
    let hint = "remove it yourself if nobody needs it.";
    Error::new(ErrorKind::Ssd, "KS-SSD-005", message, hint).with("path", path.display())
}

/// Somebody else has the directory open: another process, or this one.
#[cold]
pub(super) fn locked(path: &Path, owner: Option<i32>, here: bool) -> Error {
    let who = match (here, owner) {
        (true, _) => format!("a store of this process (pid {})", std::process::id()),
        (false, Some(pid)) => format!("process {pid}"),
        (false, None) => "another process".to_owned(),
    };
    let message = format!("{} is held by {who}.", path.display());
    let hint = "close that store first, or give this one its own member=.";
    let error = Error::new(ErrorKind::Locked, HELD, message, hint).with("path", path.display());
    match owner {
        Some(pid) if !here => error.with("pid", pid),
        _ => error,
    }
}

/// The list of this process's locks can't be had.
#[cold]
pub(super) fn list_of_locks_stuck(path: &Path) -> Error {
    let message = format!(
        "cannot tell whether this process holds {}: its list of open stores stays locked.",
        path.display()
    );
    let hint = "open stores before forking, or in a process started afresh (spawn, not fork).";
    Error::new(ErrorKind::Locked, "KS-LCK-002", message, hint).with("path", path.display())
}

/// The directory was written by a later version.
#[cold]
pub(super) fn newer(path: &Path, version: u32, ours: u32) -> Error {
    let message =
        format!("{} has format {version}, this version reads up to {ours}.", path.display());
    let hint = "use a newer keystow, another directory, or on_mismatch=\"reset\" to start afresh.";
    Error::new(ErrorKind::Format, "KS-FMT-001", message, hint)
        .with("path", path.display())
        .with("version", version)
}

/// SUPER says nothing that can be used, and there is something it should say.
#[cold]
pub(super) fn broken(path: &Path, why: impl Display) -> Error {
    let message = format!("{}: {why}; what is stored there cannot be read.", path.display());
    let hint = "restore it, remove the directory, or open with on_mismatch=\"reset\".";
    Error::new(ErrorKind::Format, "KS-FMT-002", message, hint).with("path", path.display())
}

/// The directory holds blocks of another shape.
#[cold]
pub(super) fn other_layout(
    path: &Path,
    what: &'static str,
    there: impl Display,
    asked: impl Display,
) -> Error {
    let message = format!("{}: {what} is {there} there, {asked} was asked for.", path.display());
    let hint = "open with the layout that made it, or with on_mismatch=\"reset\" to start afresh.";
    Error::new(ErrorKind::Format, "KS-FMT-003", message, hint)
        .with("path", path.display())
        .with("there", there)
        .with("asked", asked)
}

/// Something that is no regular file has the name of one of ours.
#[cold]
pub(super) fn not_a_file(path: &Path) -> Error {
    let message = format!("{} is not a regular file.", path.display());
    let hint = "remove it; on_mismatch=\"reset\" does so too, unless it is a directory.";
    Error::new(ErrorKind::Format, "KS-FMT-004", message, hint).with("path", path.display())
}

/// Opened to read, and there is no store.
#[cold]
pub(super) fn nothing_there(path: &Path, missing: &str) -> Error {
    let message = format!("{} holds no store: {missing}.", path.display());
    let hint = "check the path and the layout, or let the store's owner open it first.";
    Error::new(ErrorKind::Config, "KS-CFG-301", message, hint).with("path", path.display())
}

/// Another directory has the name by now.
#[cold]
pub(crate) fn replaced(path: &Path) -> Error {
    nothing_there(path, "it was replaced while it was opened")
}

/// The root is there and is no directory.
#[cold]
pub(super) fn root_is_no_directory(root: &Path) -> Error {
    let what = if root.is_file() { "is a file" } else { "is not a directory" };
    let message = format!("ssd={} {what}; it must be a directory.", root.display());
    let hint = "name a directory; it is made if the one above it exists.";
    Error::new(ErrorKind::Config, "KS-CFG-302", message, hint).with("path", root.display())
}

/// Neither the root nor the directory above it is there.
#[cold]
pub(super) fn no_parent(root: &Path) -> Error {
    let message =
        format!("ssd={} cannot be made: the directory above it does not exist.", root.display());
    let hint = "make that directory, or mount the disk that should be there.";
    Error::new(ErrorKind::Config, "KS-CFG-303", message, hint).with("path", root.display())
}

/// A member's name that is no safe name of a directory.
#[cold]
pub(super) fn bad_member(member: &str, most: usize) -> Error {
    let shown: String = member.chars().take(most).collect();
    let message = format!("member={shown:?} ({} bytes) is not a member's name.", member.len());
    let hint = format!("use 1 to {most} of A-Z a-z 0-9 . _ - and neither \".\" nor \"..\".");
    Error::new(ErrorKind::Config, "KS-CFG-304", message, hint).with("bytes", member.len())
}

/// Not even one block fits.
#[cold]
pub(super) fn too_small(capacity_bytes: u64, least_bytes: u64) -> Error {
    let message = format!(
        "an SSD capacity of {capacity_bytes} bytes holds no block; {least_bytes} is the least."
    );
    let hint = format!("ask for at least {least_bytes} bytes in ssd=.");
    Error::new(ErrorKind::Config, "KS-CFG-305", message, hint)
        .with("capacity_bytes", capacity_bytes)
        .with("least_bytes", least_bytes)
}

/// More slots files than may be open.
#[cold]
pub(super) fn too_many_files(capacity_bytes: u64, files: u64, most: u32) -> Error {
    let message = format!(
        "an SSD capacity of {capacity_bytes} bytes takes {files} files; {most} is the most."
    );
    let hint = "ask for less, or split it over several directories.";
    Error::new(ErrorKind::Config, "KS-CFG-306", message, hint)
        .with("capacity_bytes", capacity_bytes)
        .with("files", files)
}

/// The layout's description is longer than the room set aside for it.
#[cold]
pub(super) fn layout_too_long(len: usize, most: u64) -> Error {
    let message = format!("the layout's description has {len} bytes; {most} is the most.");
    let hint = "shorten the name of the layout.";
    Error::new(ErrorKind::Config, "KS-CFG-307", message, hint).with("bytes", len)
}
