//! What a directory's file system can do, found by doing it as an open store would.
//!
//! Owns: one small file, unnamed where the file system can (O_TMPFILE), else unlinked as soon as it
//! is made. Never does: touch anything that was there before. Invariant: nothing is left behind,
//! however the probe ends.

use super::files::{Folder, bypass, direct_align, fallocate, is_tmpfs};
use super::scratch::nameless;
use super::{Notes, place::DIR_FLAGS};
use crate::arena::{Arena, ArenaConfig, Memory, MemoryId, Prefault, Region, Rows, RowsMut};
use crate::io::{Completion, Engine, Fault, FileId, Op, Pool, Request, cached_pages};
use crate::units::FrameId;
use rustix::fs::{CWD, IFlags, Mode, fstat, ioctl_getflags, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Moved each way: several pages, and as little as no disk minds.
const PROBE_BYTES: u32 = 64 << 10;
/// How long one transfer may take.
const PATIENCE: Duration = Duration::from_secs(10);
const STAT_BLOCK_BYTES: u64 = 512;

/// A call that failed: what it was to do, and its errno.
pub type Failed = (&'static str, i32);

/// What was found in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirProbe {
    /// The file system has unnamed files.
    pub unnamed: bool,
    /// Why room can't be reserved, as errno.
    pub fallocate_errno: Option<i32>,
    /// Bytes that the file had once its room was reserved, and bytes that were asked for.
    pub reserved_bytes: (u64, u64),
    /// It is memory (tmpfs).
    pub in_memory: bool,
    /// Of memory and offsets, as the file system says; none where it does not.
    pub align: Option<(u32, u32)>,
    /// O_DIRECT was taken.
    pub direct: bool,
    /// Pages of the file in the page cache after it was written and read; none if unknown.
    pub cached_pages: Option<u64>,
    /// New files are not copied on write (btrfs: then direct I/O is direct).
    pub in_place: bool,
    /// The first transfer that failed; "compare" where other bytes came back than were written.
    pub failed: Option<Failed>,
    /// What an open store would say it has to do without.
    pub fallbacks: Vec<String>,
}

/// Makes a file in a directory, reserves its room, writes it, reads it back and compares.
///
/// # Errors
/// No file can be made: at which step, and why.
pub fn probe_directory(path: &Path) -> Result<DirProbe, Failed> {
    let step = |name| move |errno: Errno| (name, errno.raw_os_error());
    let folder = openat(CWD, path, DIR_FLAGS, Mode::empty()).map_err(step("open"))?;
    let (file, unnamed) = nameless(&folder).map_err(step("create"))?;
    let len = u64::from(PROBE_BYTES);
    let fallocate_errno = fallocate(file.as_fd(), 0, len).err().map(Errno::raw_os_error);
    let blocks = fstat(&file).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0));
    let mut notes = Notes::default();
    let at = Folder { folder: folder.as_fd(), path, read_only: false };
    let in_memory = is_tmpfs(&at, &mut notes);
    let align = direct_align(&file);
    let direct = bypass(&file, &at, &mut notes);
    let in_place = ioctl_getflags(&file).is_ok_and(|flags| flags.contains(IFlags::NOCOW));
    let other = file.try_clone();
    let failed = round_trip(file, direct).err();
    Ok(DirProbe {
        unnamed,
        fallocate_errno,
        reserved_bytes: (blocks * STAT_BLOCK_BYTES, len),
        in_memory,
        align,
        direct,
        cached_pages: other.ok().and_then(|other| cached_pages(other.as_fd())),
        in_place,
        failed,
        fallbacks: notes.fallbacks,
    })
}

/// Writes a pattern, syncs, reads it into other memory and compares.
fn round_trip(file: OwnedFd, direct: bool) -> Result<(), Failed> {
    let no_memory = |_| ("map", Errno::NOMEM.raw_os_error());
    let arena = Arena::map(ArenaConfig {
        who: MemoryId::ARENA,
        frames: 2,
        stride_bytes: PROBE_BYTES,
        prefault: Prefault::Now,
        threads: 1,
    });
    let arena = Arc::new(arena.map_err(no_memory)?);
    let [from, to] = [0, 1].map(|frame| arena.frame(FrameId(frame), PROBE_BYTES));
    let pattern: Vec<u8> = (0..PROBE_BYTES).map(|at| (at * 31 + at / 251) as u8 | 1).collect();
    arena.write(from, &Rows::list(&[&pattern]), 0);
    let memory = Memory::new(vec![Arc::clone(&arena)]);
    let threads = |error: std::io::Error| {
        ("start a thread", error.raw_os_error().unwrap_or(Errno::AGAIN.raw_os_error()))
    };
    let pool = Pool::new(vec![(file, direct)], memory, 1).map_err(threads)?;
    transfer(&pool, "write", Op::Write, from)?;
    transfer(&pool, "sync", Op::Sync, Region { len: 0, ..from })?;
    transfer(&pool, "read", Op::Read, to)?;
    let mut back = vec![0; PROBE_BYTES as usize];
    arena.read(to, &RowsMut::packed(&mut back, PROBE_BYTES as usize), 0);
    if back == pattern { Ok(()) } else { Err(("compare", 0)) }
}

fn transfer(pool: &Pool, step: &'static str, op: Op, region: Region) -> Result<(), Failed> {
    let file = FileId(0);
    pool.submit(&[Request { id: 0, op, file, offset: 0, region, digest: None, urgent: true }]);
    let mut done: Vec<Completion> = Vec::new();
    pool.reap(PATIENCE, &mut done);
    match done.first().map(|completion| completion.result) {
        Some(Ok(moved)) if moved == region.len => Ok(()),
        Some(Ok(_)) => Err((step, Errno::IO.raw_os_error())),
        Some(Err(Fault::Io(errno))) => Err((step, errno)),
        Some(Err(Fault::Full)) => Err((step, Errno::NOSPC.raw_os_error())),
        Some(Err(Fault::ReadOnly)) => Err((step, Errno::ROFS.raw_os_error())),
        None => Err((step, Errno::TIMEDOUT.raw_os_error())),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_probe_moves_its_bytes_and_leaves_nothing() {
        let path = std::env::temp_dir().join(format!("keystow-probe-{}", std::process::id()));
        fs::create_dir(&path).expect("create");
        let found = probe_directory(&path).expect("a file can be made in a new directory");
        assert_eq!(found.failed, None);
        let (has, asked) = found.reserved_bytes;
        assert!(found.fallocate_errno.is_some() || has >= asked, "{found:?}");
        assert_eq!(fs::read_dir(&path).expect("list").count(), 0);
        fs::remove_dir(&path).expect("remove");
        assert_eq!(probe_directory(&path), Err(("open", Errno::NOENT.raw_os_error())));
        fs::write(&path, b"a file").expect("write");
        assert_eq!(probe_directory(&path), Err(("open", Errno::NOTDIR.raw_os_error())));
        fs::remove_file(&path).expect("remove");
    }
}
