//! What stores a root holds, seen from outside.
//!
//! Owns: the walk over `<root>/<fingerprint>/<member>`. Never does: take a lock, or change or read
//! a file. Invariant: what can't be looked at is left out, and what can't be told to be free is
//! locked.

use super::faults::failed;
use super::lock::is_locked;
use super::place::{is_member, unhex};
use crate::error::Error;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Entries looked at in each directory; a store has no more.
const ENTRIES_MAX: usize = 100_000;

/// A member's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Of layout, namespace and salt.
    pub(crate) fingerprint: [u8; 16],
    /// Its name.
    pub(crate) member: String,
    /// A store has it open, in this process or in another.
    pub(crate) locked: bool,
    /// The lengths of all its files.
    pub(crate) bytes: u64,
}

/// The stores under a root, by fingerprint and member.
pub(crate) fn list(root: &Path) -> Result<Vec<Listed>, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |above: BorrowedFd<'_>, name: &str| -> Option<OwnedFd> {
        openat(above, name, flags | OFlags::NOFOLLOW, Mode::empty()).ok()
    };
    let folder =
        openat(CWD, root, flags, Mode::empty()).map_err(|errno| failed("open", root, errno))?;
    let mut found = Vec::new();
    for name in names(folder.as_fd()) {
        let Some(fingerprint) = unhex(&name) else { continue };
        let Some(middle) = open(folder.as_fd(), &name) else { continue };
        for member in names(middle.as_fd()).into_iter().filter(|name| is_member(name)) {
            let Some(folder) = open(middle.as_fd(), &member) else { continue };
            let locked = is_locked(folder.as_fd());
            found.push(Listed { fingerprint, member, locked, bytes: bytes_in(folder.as_fd()) });
        }
    }
    found.sort_by(|a, b| (a.fingerprint, &a.member).cmp(&(b.fingerprint, &b.member)));
    Ok(found)
}

fn names(folder: BorrowedFd<'_>) -> Vec<String> {
    let entries = Dir::read_from(folder).into_iter().flatten().take(ENTRIES_MAX);
    entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned)).collect()
}

fn bytes_in(folder: BorrowedFd<'_>) -> u64 {
    let length = |name: &String| -> Option<u64> {
        let stat = statat(folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        is_file.then(|| stat.st_size.try_into().ok())?
    };
    names(folder).iter().filter_map(length).sum()
}
