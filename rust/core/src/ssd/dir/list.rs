//! What directories a root holds, seen from outside.
//!
//! Owns: the walk over `<root>/<fingerprint>/<member>`, and what is told of each. Never does: take
//! a lock, or change or read a file. Invariants: what can't be looked at is left out, and what
//! can't be told to be free is locked; what is being removed is no store.

use super::SUPER;
use super::faults::failed;
use super::lock::{LOCK, is_locked};
use super::place::{hex, is_member, unhex};
use super::remove::member_of;
use crate::error::Error;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Entries looked at in each directory; a store has no more.
const ENTRIES_MAX: usize = 100_000;
const STAT_BLOCK_BYTES: u64 = 512;

/// A member's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Of layout, namespace and salt.
    pub(crate) fingerprint: [u8; 16],
    /// Its name.
    pub(crate) member: String,
    /// What it is called under its fingerprint: the member, or what a removal renames it to.
    pub(crate) name: String,
    /// A removal has begun and not ended: no store any more.
    pub(crate) half_removed: bool,
    /// A store has it open, in this process or in another.
    pub(crate) locked: bool,
    /// The lengths of all its files.
    pub(crate) bytes: u64,
    /// What they take on the disk.
    pub(crate) room_bytes: u64,
    /// The file system it is on.
    pub(crate) device: u64,
    /// When a store opened it last, in seconds since 1970.
    pub(crate) opened_unix_s: Option<u64>,
}

/// The stores under a root, by fingerprint and member.
pub(crate) fn list(root: &Path) -> Result<Vec<Listed>, Error> {
    let mut found = list_all(root)?;
    found.retain(|listed| !listed.half_removed);
    Ok(found)
}

/// The same, and what removals have left.
pub(crate) fn list_all(root: &Path) -> Result<Vec<Listed>, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |above: BorrowedFd<'_>, name: &str| -> Option<OwnedFd> {
        openat(above, name, flags | OFlags::NOFOLLOW, Mode::empty()).ok()
    };
    let folder =
        openat(CWD, root, flags, Mode::empty()).map_err(|errno| failed("open", root, errno))?;
    let mut found = Vec::new();
    for above in names(folder.as_fd()) {
        let Some(fingerprint) = unhex(&above) else { continue };
        let Some(middle) = open(folder.as_fd(), &above) else { continue };
        for name in names(middle.as_fd()) {
            let half_removed = member_of(&name);
            let Some(member) = half_removed.or_else(|| is_member(&name).then_some(&*name)) else {
                continue;
            };
            let (member, half_removed) = (member.to_owned(), half_removed.is_some());
            let Some(folder) = open(middle.as_fd(), &name) else { continue };
            let Ok(stat) = fstat(&folder) else { continue };
            let (bytes, room_bytes) = size_of(folder.as_fd());
            found.push(Listed {
                fingerprint,
                member,
                name,
                half_removed,
                locked: is_locked(folder.as_fd()),
                bytes,
                room_bytes,
                device: stat.st_dev,
                opened_unix_s: opened_unix_s(folder.as_fd()),
            });
        }
    }
    found.sort_by(|a, b| (a.fingerprint, &a.name).cmp(&(b.fingerprint, &b.name)));
    Ok(found)
}

/// The members under a fingerprint, by name; none where nobody has made one.
pub(crate) fn members(root: &Path, fingerprint: &[u8; 16]) -> Result<Vec<String>, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top =
        openat(CWD, root, flags, Mode::empty()).map_err(|errno| failed("open", root, errno))?;
    let middle = openat(&top, hex(fingerprint), flags | OFlags::NOFOLLOW, Mode::empty());
    let mut found = middle.map_or_else(|_| Vec::new(), |middle| names(middle.as_fd()));
    found.retain(|name| is_member(name));
    found.sort();
    Ok(found)
}

fn names(folder: BorrowedFd<'_>) -> Vec<String> {
    let entries = Dir::read_from(folder).into_iter().flatten().take(ENTRIES_MAX);
    entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned)).collect()
}

fn file(folder: BorrowedFd<'_>, name: &str) -> Option<Stat> {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(stat)
}

/// The lengths of the files, and what they take on the disk.
fn size_of(folder: BorrowedFd<'_>) -> (u64, u64) {
    let sizes = names(folder).into_iter().filter_map(|name| {
        let stat = file(folder, &name)?;
        let blocks: u64 = stat.st_blocks.try_into().ok()?;
        Some((u64::try_from(stat.st_size).ok()?, blocks.saturating_mul(STAT_BLOCK_BYTES)))
    });
    sizes.fold((0, 0), |all, one| (all.0.saturating_add(one.0), all.1.saturating_add(one.1)))
}

/// Every open sets the time of LOCK; where that is gone, SUPER was written at the last open too.
fn opened_unix_s(folder: BorrowedFd<'_>) -> Option<u64> {
    let stat = file(folder, LOCK).or_else(|| file(folder, SUPER))?;
    stat.st_mtime.try_into().ok()
}
