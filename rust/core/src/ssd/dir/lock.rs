//! One owner a directory: LOCK.
//!
//! Owns: the record lock on LOCK, and the list of those that this process holds. Never does: wait
//! for another owner. Invariants: a process has LOCK open at most once, because closing any
//! descriptor of it drops the process's lock; so the list is asked, by device and inode, before
//! LOCK is opened, and stays locked until it is entered or closed again. A record lock belongs to
//! the process, not to the descriptor: a forked child inherits the descriptor and not the lock, so
//! it neither keeps the directory locked nor counts as its owner.

#[cfg(all(test, not(loom)))]
mod tests;

use super::faults::{failed, list_of_locks_stuck, locked};
use super::files::{FILE_MODE, check_file};
use crate::arena::fork_count;
use crate::error::Error;
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, fcntl_lock,
    fstat, ftruncate, futimens, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
// Not `crate::sync`: a process-wide static, which loom's locks can't be.
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

pub(super) const LOCK: &str = "LOCK";
/// How often LOCK may be replaced under our hands before we give up.
const REPLACED_MAX: u32 = 8;
/// How often, a millisecond apart, the list is tried: a child forked while another thread had it
/// would find it locked for ever.
const LIST_TRIES_MAX: u32 = 2_000;

/// A file, whatever its name: device and inode.
type FileKey = (u64, u64);

/// What this process has locked: the file, and the fork count of the process that entered it. An
/// entry with another count was inherited: it is the parent's lock, not ours.
static HELD: Mutex<BTreeMap<FileKey, u64>> = Mutex::new(BTreeMap::new());

type Held = MutexGuard<'static, BTreeMap<FileKey, u64>>;

fn list() -> Option<Held> {
    enter(&HELD, LIST_TRIES_MAX)
}

fn enter<T>(list: &Mutex<T>, tries: u32) -> Option<MutexGuard<'_, T>> {
    for _ in 0..tries {
        match list.try_lock() {
            Ok(held) => return Some(held),
            // Each change of the list is one call: it is whole whoever panicked.
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    None
}

fn key_of(stat: &Stat) -> FileKey {
    (stat.st_dev, stat.st_ino)
}

fn is_ours(held: &BTreeMap<FileKey, u64>, key: FileKey) -> bool {
    held.get(&key) == Some(&fork_count())
}

/// The ownership of a directory; ends when dropped.
#[derive(Debug)]
pub(crate) struct LockGuard {
    /// None only while it is dropped.
    descriptor: Option<OwnedFd>,
    key: FileKey,
    forks: u64,
    /// LOCK was not there before.
    made: bool,
}

impl LockGuard {
    /// Takes the directory `folder`, whose path is `path`, or says who has it.
    pub(super) fn take(folder: BorrowedFd<'_>, path: &Path) -> Result<Self, Error> {
        let file = path.join(LOCK);
        let Some(mut held) = list() else { return Err(list_of_locks_stuck(&file)) };
        for _ in 0..REPLACED_MAX {
            let Some((descriptor, made)) = open(folder, &file, &held)? else { continue };
            let key = key_of(&fstat(&descriptor).map_err(|errno| failed("stat", &file, errno))?);
            if is_ours(&held, key) {
                // It took this name just now. Closing it would drop the lock of its owner here.
                std::mem::forget(descriptor);
                return Err(locked(&file, None, true));
            }
            match fcntl_lock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    return Err(locked(&file, owner(&descriptor), false));
                }
                Err(errno) => {
                    unmake(folder, made);
                    return Err(failed("lock", &file, errno));
                }
            }
            // Whoever comes next goes by the name: a lock on a file without it is none.
            if is_named(folder, key).map_err(|errno| failed("stat", &file, errno))? {
                // A file that got this name by accident counts against nobody's capacity.
                if fstat(&descriptor).is_ok_and(|stat| stat.st_size != 0) {
                    ftruncate(&descriptor, 0).map_err(|errno| failed("cut", &file, errno))?;
                }
                let forks = fork_count();
                held.insert(key, forks);
                return Ok(Self { descriptor: Some(descriptor), key, forks, made });
            }
        }
        Err(failed("lock", &file, Errno::NOENT))
    }

    /// Makes now the time of LOCK: the directory was opened.
    pub(super) fn touch(&self) -> Result<(), Errno> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ };
        let times = Timestamps { last_access: now, last_modification: now };
        self.descriptor.as_ref().map_or(Ok(()), |descriptor| futimens(descriptor, &times))
    }

    /// Removes LOCK if this guard made it: for an open that failed, before the guard is dropped.
    /// Who waits for it meanwhile sees that the name is gone.
    pub(super) fn unmake(&self, folder: BorrowedFd<'_>) {
        unmake(folder, self.made);
    }
}

fn unmake(folder: BorrowedFd<'_>, made: bool) {
    if made {
        // Left behind it costs nothing: an empty file, locked by nobody.
        let _ = unlinkat(folder, LOCK, AtFlags::empty());
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let descriptor = self.descriptor.take();
        // Without the list the lock still goes; only an entry stays, which refuses opens here.
        let Some(mut held) = list() else { return };
        if self.forks == fork_count() {
            held.remove(&self.key);
        } else if is_ours(&held, self.key) {
            // A child that has since taken the lock itself: closing the inherited descriptor
            // would drop it. One descriptor stays open until the child ends.
            std::mem::forget(descriptor);
            return;
        }
        // Closed before the list is free, so that nobody opens LOCK in between.
        drop(descriptor);
        drop(held);
    }
}

/// Opens LOCK, made or found; None if it came or went meanwhile. True if it was made.
fn open(
    folder: BorrowedFd<'_>,
    file: &Path,
    held: &BTreeMap<FileKey, u64>,
) -> Result<Option<(OwnedFd, bool)>, Error> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, LOCK, flags | OFlags::CREATE | OFlags::EXCL, FILE_MODE) {
        Ok(descriptor) => return Ok(Some((descriptor, true))),
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed("create", file, errno)),
    }
    match statat(folder, LOCK, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_ours(held, key_of(&stat)) => return Err(locked(file, None, true)),
        Ok(stat) => check_file(&stat, file, false)?,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("stat", file, errno)),
    }
    match openat(folder, LOCK, flags, Mode::empty()) {
        Ok(descriptor) => Ok(Some((descriptor, false))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("open", file, errno)),
    }
}

/// Whether LOCK is still the name of this file.
fn is_named(folder: BorrowedFd<'_>, key: FileKey) -> Result<bool, Errno> {
    match statat(folder, LOCK, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(key_of(&stat) == key),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The process that holds the lock, if the kernel still knows one.
fn owner(descriptor: &OwnedFd) -> Option<i32> {
    let lock = fcntl_getlk(descriptor, &Flock::from(FlockType::WriteLock)).ok()??;
    lock.pid.map(|pid| pid.as_raw_nonzero().get())
}

/// Whether anybody holds the directory `folder`; where it can't be told, somebody does.
pub(super) fn is_locked(folder: BorrowedFd<'_>) -> bool {
    let Some(held) = list() else { return true };
    let ours = |stat: &Stat| is_ours(&held, key_of(stat));
    match statat(folder, LOCK, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if ours(&stat) || check_file(&stat, Path::new(LOCK), true).is_err() => {
            return true;
        }
        Ok(_) => {}
        Err(errno) => return errno != Errno::NOENT,
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(descriptor) = openat(folder, LOCK, flags, Mode::empty()) else { return true };
    if fstat(&descriptor).is_ok_and(|stat| ours(&stat)) {
        // It took this name just now: see `LockGuard::take`.
        std::mem::forget(descriptor);
        return true;
    }
    // Closed before the list is free, so that no lock taken here can be dropped by it.
    fcntl_getlk(&descriptor, &Flock::from(FlockType::WriteLock)).map_or(true, |lock| lock.is_some())
}
