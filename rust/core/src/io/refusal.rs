//! Whether io_uring can be had here, found by asking the kernel for a ring.
//!
//! Owns: the question and its answer. Never does: keep a ring. Invariant: the errno is the one that
//! the kernel, or a filter before it, gave.

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

/// The same number on every architecture.
const SYS_IO_URING_SETUP: libc::c_long = 425;
const ENTRIES: u32 = 2;
/// `struct io_uring_params` is 120 bytes; the kernel reads and writes no more.
const PARAMS_WORDS: usize = 16;

/// Why io_uring does not work here, as errno and the step that failed; None: it works.
/// `directory`: where transfers are to be tried.
pub fn io_uring_refusal(directory: Option<&Path>) -> Option<(i32, &'static str)> {
    let _ = directory;
    let mut params = [0_u64; PARAMS_WORDS];
    let at: *mut c_void = params.as_mut_ptr().cast();
    // SAFETY: `at` is 128 zeroed bytes, more than the call reads or writes.
    let ring = unsafe { libc::syscall(SYS_IO_URING_SETUP, ENTRIES, at) };
    if ring < 0 {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
        return Some((errno.raw_os_error(), "io_uring_setup"));
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(ring as i32) });
    None
}
