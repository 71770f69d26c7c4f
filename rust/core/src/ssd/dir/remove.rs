//! The removal of a whole directory that nobody has open.
//!
//! Owns: which directories may be removed, the name that one has meanwhile, the order. Never does:
//! choose one. Invariants:
//! - It is removed under its own lock, held from before the first change until nothing is left.
//! - One that holds anything but a store's files stays as it is.
//! - First it gets a name that no member can have. From then on an open makes a new directory, and
//!   what a crash leaves is known by that name: whoever removes next finishes it.
//! - The table goes first, SUPER after all the others and then LOCK: also under its old name, where
//!   somebody gave it back, the rest would open as an empty store.

use super::faults::{failed, holds_others, no_stores, not_ours, nothing_there};
use super::files::{Folder, sync_folder};
use super::lock::{LOCK, LockGuard};
use super::place::{DIR_FLAGS, hex, is_member, is_named};
use super::state::{Survey, ours, survey, understand};
use super::{DirConfig, Notes, SUPER};
use crate::error::Error;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Between a member's name and the number of its inode; no member's name has it.
const REMOVED: char = '~';
/// How often a late opener may put its LOCK into a directory that is about to go.
const LATE_LOCKS_MAX: u32 = 8;

/// Hears what is done next; an error ends the removal there, as a crash would.
pub(super) type Step<'a> = dyn FnMut(&str) -> Result<(), Error> + 'a;

/// The member of a directory whose removal has begun, by the directory's name.
pub(super) fn member_of(name: &str) -> Option<&str> {
    let (member, inode) = name.rsplit_once(REMOVED)?;
    let number = u64::from_str_radix(inode, 16).ok()?;
    (is_member(member) && removed_name(member, number) == name).then_some(member)
}

/// The name of a directory while it is removed: unlike that of any other under its fingerprint.
fn removed_name(member: &str, inode: u64) -> String {
    format!("{member}{REMOVED}{inode:x}")
}

/// A directory that may be removed, not locked.
struct Condemned<'a> {
    root: &'a Path,
    fingerprint: [u8; 16],
    /// Of the root, of the fingerprint, and its own.
    folders: [OwnedFd; 3],
    name: String,
    path: PathBuf,
}

/// Whether a directory could be removed if nobody had it open; `name` as in `Listed`.
pub(crate) fn may_be_removed(root: &Path, fingerprint: [u8; 16], name: &str) -> Result<(), Error> {
    Condemned::find(root, fingerprint, name)?.judge()
}

/// Removes a directory, or what an earlier removal left of one; `name` as in `Listed`.
pub(crate) fn remove(root: &Path, fingerprint: [u8; 16], name: &str) -> Result<(), Error> {
    remove_by_steps(root, fingerprint, name, &mut |_| Ok(()))
}

pub(super) fn remove_by_steps(
    root: &Path,
    fingerprint: [u8; 16],
    name: &str,
    step: &mut Step<'_>,
) -> Result<(), Error> {
    let mut condemned = Condemned::find(root, fingerprint, name)?;
    // Asked before LOCK is made in it, and again under the lock.
    condemned.judge()?;
    let lock = LockGuard::take(condemned.folder(), &condemned.path)?;
    let ready = condemned.stays_named().and_then(|()| condemned.judge());
    if let Err(error) = ready {
        lock.unmake(condemned.folder());
        return Err(error);
    }
    condemned.disown(step)?;
    condemned.empty(step)
    // Here the lock falls.
}

impl<'a> Condemned<'a> {
    fn find(root: &'a Path, fingerprint: [u8; 16], name: &str) -> Result<Self, Error> {
        let above = hex(&fingerprint);
        let path = root.join(&above).join(name);
        if !is_member(name) && member_of(name).is_none() {
            return Err(nothing_there(&path, "no store has such a name"));
        }
        let open = |folder: BorrowedFd<'_>, name: &str| match openat(
            folder,
            name,
            DIR_FLAGS | OFlags::NOFOLLOW,
            Mode::empty(),
        ) {
            Ok(folder) => Ok(folder),
            Err(Errno::NOENT) => Err(nothing_there(&path, "there is no such directory")),
            Err(errno) => Err(failed("open", &path, errno)),
        };
        let top = openat(CWD, root, DIR_FLAGS, Mode::empty())
            .map_err(|errno| failed("open", root, errno))?;
        let middle = open(top.as_fd(), &above)?;
        let folder = open(middle.as_fd(), name)?;
        for folder in [&middle, &folder] {
            let stat = fstat(folder).map_err(|errno| failed("stat", &path, errno))?;
            let us = geteuid().as_raw();
            if stat.st_uid != us {
                return Err(not_ours(&path, stat.st_uid, us));
            }
        }
        let name = name.to_owned();
        Ok(Self { root, fingerprint, folders: [top, middle, folder], name, path })
    }

    fn folder(&self) -> BorrowedFd<'_> {
        self.folders[2].as_fd()
    }

    fn at(&self) -> Folder<'_> {
        Folder { folder: self.folder(), path: &self.path, read_only: false }
    }

    /// Whether it is a store's, and holds nothing else.
    fn judge(&self) -> Result<(), Error> {
        let at = self.at();
        refuse_others(&at, &survey(&at)?)?;
        if member_of(&self.name).is_some() {
            // It was judged before it got that name.
            return Ok(());
        }
        if at.length(SUPER)?.unwrap_or(0) == 0 {
            return Err(no_stores(&self.path));
        }
        let of_this_place = DirConfig::to_look(self.root, self.fingerprint, &self.name);
        understand(&of_this_place, &at, &mut Notes::default()).map(|_| ())
    }

    /// Refuses where another directory, or none, has the name by now.
    fn stays_named(&self) -> Result<(), Error> {
        let middle = self.folders[1].as_fd();
        if is_named(middle, &self.name, self.folder(), &self.path)? {
            return Ok(());
        }
        Err(nothing_there(&self.path, "it was removed meanwhile"))
    }

    /// Takes its name away, on stable storage before the first file goes.
    fn disown(&mut self, step: &mut Step<'_>) -> Result<(), Error> {
        if member_of(&self.name).is_none() {
            let stat = fstat(self.folder()).map_err(|errno| failed("stat", &self.path, errno))?;
            let gone = removed_name(&self.name, stat.st_ino);
            step(&gone)?;
            let middle = self.folders[1].as_fd();
            renameat(middle, &*self.name, middle, &*gone)
                .map_err(|errno| failed("rename", &self.path, errno))?;
            self.path = self.path.with_file_name(&gone);
            self.name = gone;
        }
        sync_folder(self.folders[1].as_fd(), &self.path)
    }

    fn empty(&self, step: &mut Step<'_>) -> Result<(), Error> {
        let [top, middle, _] = &self.folders;
        let at = self.at();
        for name in ours(&at)? {
            step(&name)?;
            at.remove(&name)?;
        }
        for _ in 0..LATE_LOCKS_MAX {
            step(LOCK)?;
            at.remove(LOCK)?;
            step(&self.name)?;
            match unlinkat(middle, &*self.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {
                    sync_folder(middle.as_fd(), &self.path)?;
                    let above = hex(&self.fingerprint);
                    step(&above)?;
                    // Where other members are, or a store is about to make one, it stays.
                    let _ = unlinkat(top, above, AtFlags::REMOVEDIR);
                    return sync_folder(top.as_fd(), &self.path);
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => refuse_others(&at, &survey(&at)?)?,
                Err(errno) => return Err(failed("remove", &self.path, errno)),
            }
        }
        Err(failed("remove", &self.path, Errno::NOTEMPTY))
    }
}

fn refuse_others(at: &Folder<'_>, survey: &Survey) -> Result<(), Error> {
    match survey.foreign() {
        Some((count, shown)) => Err(holds_others(at.path, count, &shown)),
        None => Ok(()),
    }
}
