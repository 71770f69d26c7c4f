//! The file of hints for followers: its room and its making.
//!
//! Owns: whether a directory has `changes`, and the slot that it may cost a new one. Never does:
//! write it, or fail an open. Invariants: it is within the capacity; a directory that has no room
//! left for it keeps its slots and goes without.

use super::faults::failed;
use super::files::{Disk, Folder};
use super::{CHANGES, DirConfig, Notes};
use crate::error::Error;
use crate::ssd::changes::{CHANGES_BYTES, WHOLE_PAGES_MAX};
use crate::ssd::format::{self, PAGE_BYTES, Super};
use rustix::fs::ftruncate;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// Whether a table of so many slots is worth a hint.
fn is_worth_it(slots: u32) -> bool {
    format::table_pages(slots) > WHOLE_PAGES_MAX
}

/// The slots of a directory: those of a new one leave room for the hint; one that is there has as
/// many as fit without it, if it had more than fit with it.
pub(super) fn slots_beside(capacity_bytes: u64, stride_bytes: u32, found: Option<&Super>) -> u32 {
    let all = format::slots_for(capacity_bytes, stride_bytes);
    if !is_worth_it(all) {
        return all;
    }
    let fewer = format::slots_for(capacity_bytes - CHANGES_BYTES, stride_bytes);
    found.map_or(0, |found| found.slots.min(all)).max(fewer)
}

/// Makes the file anew beside `parts`, where it is worth its room and has it. No failure is the
/// open's.
pub(super) fn make(
    config: &DirConfig<'_>,
    at: &Folder<'_>,
    parts: &[(String, u64)],
    disk: Disk,
    notes: &mut Notes,
) -> Option<OwnedFd> {
    let table_pages = parts[1].1 / PAGE_BYTES as u64;
    let taken_bytes: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let rest_bytes = taken_bytes + format::LAYOUT_BYTES_MAX + CHANGES_BYTES;
    let wanted = table_pages > u64::from(WHOLE_PAGES_MAX) && rest_bytes <= config.capacity_bytes;
    let made = at.remove(CHANGES).and_then(|()| wanted.then(|| reserved(at, disk)).transpose());
    made.unwrap_or_else(|error| {
        let why = error.message;
        notes.fall_back(format!("{why} Followers read the whole table."));
        // An empty file has no head that anybody goes by; the next open removes it.
        let _ = at.remove(CHANGES);
        None
    })
}

fn reserved(at: &Folder<'_>, disk: Disk) -> Result<OwnedFd, Error> {
    let file = at.make(CHANGES)?;
    let reserved = match (disk.fallocate)(file.as_fd(), 0, CHANGES_BYTES) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => ftruncate(&file, CHANGES_BYTES),
        other => other,
    };
    let path = at.path.join(CHANGES);
    reserved.map(|()| file).map_err(|errno| failed("reserve room for", &path, errno))
}
