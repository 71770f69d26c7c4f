//! The files of a member's directory: their lengths, their room on the disk, how they are opened.
//!
//! Owns: making, growing and cutting files, and taking back what a failed open did. Never does:
//! read or write a block, a record or SUPER; make room (it asks `reclaim`). Invariants: a file is a
//! regular file of ours, reached without links; it is exactly as long as it should be once `fit`
//! returns, and its room is reserved where the file system can; if `keep` is not reached, files
//! made are gone again and files grown are as short as before.

use super::Notes;
use super::faults::{failed, no_room, not_a_file, not_ours};
use super::place::{Place, may_use};
use super::reclaim::Reclaim;
use crate::error::Error;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FsWord, Mode, OFlags, Stat, StatxFlags, fcntl_getfl,
    fcntl_setfl, fstat, fstatfs, fstatvfs, fsync, ftruncate, openat, renameat, statat, statx,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// What our transfers are aligned to; a device that wants more is read through the page cache.
const DIRECT_ALIGN_BYTES_MAX: u32 = 4096;
/// Room is reserved in steps, so that a signal costs one step at most.
const RESERVE_STEP_BYTES: u64 = 1 << 30;
/// Signals that may come during one step.
const INTERRUPTS_MAX: u32 = 100;
const TMPFS_MAGIC: FsWord = 0x0102_1994;
const STAT_BLOCK_BYTES: u64 = 512;

/// Reserves the room of `len` bytes from `offset` on, and makes the file that long.
pub(super) type Fallocate = fn(BorrowedFd<'_>, u64, u64) -> rustix::io::Result<()>;

/// Where room comes from.
#[derive(Clone, Copy)]
pub(super) struct Disk {
    pub(super) fallocate: Fallocate,
    /// Bytes that the file system of a descriptor has free, if it says.
    pub(super) free_bytes: fn(BorrowedFd<'_>) -> Option<u64>,
}

impl Disk {
    /// The kernel's own.
    pub(super) const REAL: Self = Self { fallocate, free_bytes };
}

/// The kernel's own.
pub(super) fn fallocate(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len)
}

/// A regular file of ours, or why not.
pub(super) fn check_file(stat: &Stat, path: &Path, read_only: bool) -> Result<(), Error> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_a_file(path));
    }
    let (owner, us) = (stat.st_uid, geteuid().as_raw());
    if may_use(owner, us, read_only) { Ok(()) } else { Err(not_ours(path, owner, us)) }
}

/// The directory's entries to stable storage, where the file system knows how.
pub(super) fn sync_folder(folder: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    match fsync(folder) {
        Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::ROFS) => Ok(()),
        Err(errno) => Err(failed("sync the directory of", path, errno)),
    }
}

/// A directory and its path, for messages.
#[derive(Clone, Copy)]
pub(super) struct Folder<'a> {
    pub(super) folder: BorrowedFd<'a>,
    pub(super) path: &'a Path,
    pub(super) read_only: bool,
}

impl<'a> Folder<'a> {
    pub(super) fn of(place: &'a Place, read_only: bool) -> Self {
        Self { folder: place.folder.as_fd(), path: &place.path, read_only }
    }

    /// The length of a file of ours; None if there is none.
    pub(super) fn length(&self, name: &str) -> Result<Option<u64>, Error> {
        match statat(self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                check_file(&stat, &self.path.join(name), self.read_only)?;
                Ok(Some(stat.st_size.try_into().unwrap_or(0)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed("stat", &self.path.join(name), errno)),
        }
    }

    /// Opens a file of ours as it is; None if there is none.
    pub(super) fn open(&self, name: &str, read_only: bool) -> Result<Option<OwnedFd>, Error> {
        // Asked first: to open a FIFO or a device may already do something.
        if self.length(name)?.is_none() {
            return Ok(None);
        }
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(self.folder, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed("open", &self.path.join(name), errno)),
        }
    }

    /// The first `most` bytes of a file; None if there is none.
    pub(super) fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(name, true)? else { return Ok(None) };
        let mut bytes = Vec::new();
        File::from(file)
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|error| self.io_failed("read", name, &error))?;
        Ok(Some(bytes))
    }

    /// Removes a name, whatever has it; a directory stays and is an error.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        match unlinkat(self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("remove", &self.path.join(name), errno)),
        }
    }

    /// Puts a whole file in place of another, or neither.
    pub(super) fn replace(&self, name: &str, through: &str, bytes: &[u8]) -> Result<(), Error> {
        self.remove(through)?;
        let written = self.make(through).and_then(|file| {
            let mut file = File::from(file);
            file.write_all(bytes)
                .and_then(|()| file.sync_all())
                .map_err(|error| self.io_failed("write", through, &error))?;
            renameat(self.folder, through, self.folder, name)
                .map_err(|errno| failed("rename", &self.path.join(through), errno))
        });
        if written.is_err() {
            // The failure is what is reported; a half-written file is removed by the next open.
            let _ = self.remove(through);
        }
        written
    }

    pub(super) fn make(&self, name: &str) -> Result<OwnedFd, Error> {
        let how = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(self.folder, name, OFlags::RDWR | how, FILE_MODE)
            .map_err(|errno| failed("create", &self.path.join(name), errno))
    }

    pub(super) fn io_failed(&self, doing: &str, name: &str, error: &std::io::Error) -> Error {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        failed(doing, &self.path.join(name), errno)
    }
}

/// What was done to a file, so that it can be undone.
enum Done {
    Made(String),
    Grown(String, u64),
}

/// The files of a directory while they are brought to their lengths.
pub(super) struct Files<'a, 'c> {
    at: Folder<'a>,
    disk: Disk,
    reclaim: &'a mut Reclaim<'c>,
    done: Vec<Done>,
}

impl<'a, 'c> Files<'a, 'c> {
    pub(super) fn new(at: Folder<'a>, disk: Disk, reclaim: &'a mut Reclaim<'c>) -> Self {
        Self { at, disk, reclaim, done: Vec::new() }
    }

    /// Cuts what is longer than it should be.
    pub(super) fn cut(&self, parts: &[(String, u64)]) -> Result<(), Error> {
        for (name, want) in parts {
            if self.at.length(name)?.is_some_and(|has| has > *want)
                && let Some(file) = self.at.open(name, false)?
            {
                ftruncate(&file, *want)
                    .map_err(|errno| failed("cut", &self.at.path.join(name), errno))?;
            }
        }
        Ok(())
    }

    /// Whether the disk has the room that is still missing, or can be given it. Answers before
    /// anything is reserved, so that a capacity far beyond the disk does not fill it first.
    pub(super) fn check_room(&mut self, parts: &[(String, u64)]) -> Result<(), Error> {
        let mut needed_bytes = 0_u64;
        for (name, want) in parts {
            let has = self.at.length(name)?.unwrap_or(0);
            needed_bytes = needed_bytes.saturating_add(want.saturating_sub(has));
        }
        while let Some(free) = (self.disk.free_bytes)(self.at.folder)
            && free < needed_bytes
        {
            if !self.reclaim.make_room(self.at.folder, needed_bytes - free) {
                return Err(no_room(self.at.path, needed_bytes, free));
            }
        }
        Ok(())
    }

    /// Opens a file, made or grown to `want` bytes; what is new in it reads as zeros.
    pub(super) fn fit(
        &mut self,
        name: &str,
        want: u64,
        notes: &mut Notes,
    ) -> Result<OwnedFd, Error> {
        let path = self.at.path.join(name);
        let Some(file) = self.at.open(name, false)? else {
            let file = self.at.make(name)?;
            self.done.push(Done::Made(name.to_owned()));
            self.reserve(file.as_fd(), &path, 0, want, notes)?;
            return Ok(file);
        };
        let stat = fstat(&file).map_err(|errno| failed("stat", &path, errno))?;
        let has: u64 = stat.st_size.try_into().unwrap_or(0);
        let blocks: u64 = stat.st_blocks.try_into().unwrap_or(0);
        if has < want {
            self.done.push(Done::Grown(name.to_owned(), has));
            self.reserve(file.as_fd(), &path, has, want, notes)?;
        } else if blocks.saturating_mul(STAT_BLOCK_BYTES) < want {
            // Holes, or compression. What is there is used as it is, room for all of it or not.
            if (self.disk.fallocate)(file.as_fd(), 0, want).is_err() {
                notes.fall_back(format!(
                    "not all of {} has its room reserved: a full disk shows when it is written.",
                    self.at.path.display()
                ));
            }
        }
        Ok(file)
    }

    /// A file that was made otherwise goes with the rest if the open fails.
    pub(super) fn made(&mut self, name: &str) {
        self.done.push(Done::Made(name.to_owned()));
    }

    /// All is as it should be: nothing is undone any more.
    pub(super) fn keep(mut self) -> Result<(), Error> {
        sync_folder(self.at.folder, self.at.path)?;
        self.done.clear();
        Ok(())
    }

    /// Reserves the bytes of a file from `has` to `want`.
    fn reserve(
        &mut self,
        file: BorrowedFd<'_>,
        path: &Path,
        has: u64,
        want: u64,
        notes: &mut Notes,
    ) -> Result<(), Error> {
        let mut at = has;
        while at < want {
            let step = RESERVE_STEP_BYTES.min(want - at);
            match self.reserve_step(file, at, step) {
                Ok(()) => at += step,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    notes.fall_back(format!(
                        "the file system of {} cannot reserve room (fallocate): a full disk shows \
                         when it is written.",
                        self.at.path.display()
                    ));
                    return ftruncate(file, want).map_err(|errno| failed("extend", path, errno));
                }
                // A quota, or room that is set aside: the disk said that it had enough.
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    if !self.reclaim.make_room(self.at.folder, 0) {
                        let free = (self.disk.free_bytes)(file).unwrap_or(0);
                        return Err(no_room(path, want - at, free));
                    }
                }
                Err(errno) => return Err(failed("reserve room for", path, errno)),
            }
        }
        Ok(())
    }

    fn reserve_step(&self, file: BorrowedFd<'_>, at: u64, step: u64) -> rustix::io::Result<()> {
        for _ in 0..INTERRUPTS_MAX {
            match (self.disk.fallocate)(file, at, step) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::INTR)
    }
}

impl Drop for Files<'_, '_> {
    fn drop(&mut self) {
        // Where undoing fails too, the open's own failure is what is reported.
        for done in self.done.drain(..).rev() {
            match done {
                Done::Made(name) => {
                    let _ = self.at.remove(&name);
                }
                Done::Grown(name, had) => {
                    if let Ok(Some(file)) = self.at.open(&name, false) {
                        let _ = ftruncate(file, had);
                    }
                }
            }
        }
    }
}

/// Bytes that the file system has free, if it says.
pub(super) fn free_bytes(file: BorrowedFd<'_>) -> Option<u64> {
    let room = fstatvfs(file).ok().filter(|room| room.f_blocks > 0)?;
    Some(room.f_bfree.saturating_mul(room.f_frsize))
}

/// Whether the directory is in memory; said, because it then outlives no restart.
pub(super) fn is_tmpfs(at: &Folder<'_>, notes: &mut Notes) -> bool {
    let is = fstatfs(at.folder).is_ok_and(|system| system.f_type == TMPFS_MAGIC);
    if is {
        notes.fall_back(format!("{}: tmpfs is memory, not a disk.", at.path.display()));
    }
    is
}

/// What direct transfers of a file must be aligned to, memory and offsets, if it says.
pub(super) fn direct_align(file: &OwnedFd) -> Option<(u32, u32)> {
    let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let align = (told.stx_dio_mem_align, told.stx_dio_offset_align);
    (told.stx_mask & StatxFlags::DIOALIGN.bits() != 0).then_some(align)
}

/// Makes transfers of a file bypass the page cache; false, and said, where they can't.
pub(super) fn bypass(file: &OwnedFd, at: &Folder<'_>, notes: &mut Notes) -> bool {
    let why = match direct_align(file) {
        Some(align) if !fits(align) => {
            format!(
                "O_DIRECT needs memory and offsets aligned to {} and {} bytes",
                align.0, align.1
            )
        }
        _ => {
            let set = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT));
            match set {
                Ok(()) => return true,
                Err(errno) => format!("no O_DIRECT ({})", std::io::Error::from(errno)),
            }
        }
    };
    notes.fall_back(format!("{}: {why}: I/O goes through the page cache.", at.path.display()));
    false
}

/// Whether our transfers meet an alignment of (memory, offsets); zeros mean that none will do.
fn fits((memory, offset): (u32, u32)) -> bool {
    let fits = |align: u32| (1..=DIRECT_ALIGN_BYTES_MAX).contains(&align);
    fits(memory) && fits(offset)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::fits;

    #[test]
    fn direct_io_only_where_a_page_is_aligned_enough() {
        assert!(fits((512, 512)) && fits((4, 4096)));
        assert!(!fits((0, 0)) && !fits((512, 8192)) && !fits((8192, 512)));
    }
}
