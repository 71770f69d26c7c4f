//! The directories under a root: which there are, and the removal of one that nobody has open.
//!
//! Owns: how they are told of. Never does: choose, or remove more than it was asked for.
//! Invariants: those of `ssd::dir`: what is locked, or holds anything but a store's files, stays.

use super::inspect::{not_a_directory, not_there};
use crate::error::Error;
use crate::ssd::dir;
use std::path::{Path, PathBuf};

/// A directory of a store, or what a removal left of one.
#[derive(Clone, Debug)]
pub struct StoreDirectory {
    /// Of layout, namespace and salt, in 32 hex digits.
    pub fingerprint: String,
    /// Which of several stores of one layout.
    pub member: String,
    /// What it is called under its fingerprint: the member, unless it is half removed.
    pub name: String,
    /// `<root>/<fingerprint>/<name>`.
    pub path: PathBuf,
    /// A removal has begun and not ended: no store any more.
    pub half_removed: bool,
    /// A store has it open, or it is being removed.
    pub locked: bool,
    /// Lengths of all its files.
    pub bytes: u64,
    /// When a store opened it last, in seconds since 1970.
    pub opened_unix_s: Option<u64>,
    /// Why it can't be removed, if it were not locked.
    pub stays: Option<Error>,
}

/// The directories of stores under a root, by fingerprint and name.
///
/// # Errors
/// Config: there is no such directory. Ssd: it can't be read.
pub fn directories(root: &Path) -> Result<Vec<StoreDirectory>, Error> {
    let whole = std::fs::canonicalize(root).map_err(|error| not_there(root, &error))?;
    if !whole.is_dir() {
        return Err(not_a_directory(root));
    }
    let told = |it: dir::Listed| {
        let fingerprint = dir::hex(&it.fingerprint);
        StoreDirectory {
            path: whole.join(&fingerprint).join(&it.name),
            stays: dir::may_be_removed(&whole, it.fingerprint, &it.name).err(),
            fingerprint,
            member: it.member,
            name: it.name,
            half_removed: it.half_removed,
            locked: it.locked,
            bytes: it.bytes,
            opened_unix_s: it.opened_unix_s,
        }
    };
    Ok(dir::list_all(&whole)?.into_iter().map(told).collect())
}

/// Removes one of them, under its own lock; `fingerprint` and `name` as `directories` tells them.
///
/// # Errors
/// Locked: somebody has it open. Format, Ssd: it is not a store's, holds something else too, or is
/// another user's; nothing has changed. Ssd: the disk did not do what was asked; what is left is
/// `half_removed`, and the next call finishes it. Config: there is no such directory.
pub fn remove_directory(root: &Path, fingerprint: &str, name: &str) -> Result<(), Error> {
    match dir::unhex(fingerprint) {
        Some(of) => dir::remove(root, of, name),
        None => Err(not_a_directory(&root.join(fingerprint))),
    }
}
