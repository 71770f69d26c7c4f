//! Which part of a file lies in the page cache: what direct I/O leaves behind where it is none.
//!
//! Owns: one system call. Never does: change the cache. Invariant: a kernel that does not know the
//! call (before 6.5) gives no answer, not a wrong one.

use std::os::fd::{AsRawFd, BorrowedFd};

/// The same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`; zero length: to the end.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `struct cachestat`.
#[repr(C)]
#[derive(Default)]
struct Found {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of a file that are cached, if the kernel tells.
pub(crate) fn cached_pages(file: BorrowedFd<'_>) -> Option<u64> {
    let (mut range, mut found) = (Range { offset: 0, len: 0 }, Found::default());
    // SAFETY: the kernel reads a range and writes a cachestat, both of its own layout and alive.
    let said = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw mut range, &raw mut found, 0_u32)
    };
    (said == 0).then_some(found.cached)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_just_written_is_cached() {
        let name = format!("keystow-cached-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut file = std::fs::File::create(&path).expect("create");
        std::fs::remove_file(&path).expect("remove");
        assert!(matches!(cached_pages(file.as_fd()), None | Some(0)));
        file.write_all(&[1; 3 * 4096]).expect("write");
        assert!(matches!(cached_pages(file.as_fd()), None | Some(3)));
    }
}
