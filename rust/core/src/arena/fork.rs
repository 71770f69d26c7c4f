//! How often this process image has been forked, seen from inside.
//!
//! Owns: one process-wide counter and its `pthread_atfork` handler. Never does: anything else in
//! the child; the handler is one atomic add. Invariant: a value taken in a process differs from
//! every value read in a child forked later.

use std::sync::Once;
// Not `crate::sync`: a process-wide static, which loom's atomics can't be.
use std::sync::atomic::{AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);
static REGISTER: Once = Once::new();

extern "C" fn count_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The number of forks between the first process that asked and this one.
///
/// Whoever must not be used in a child keeps the value of its birth and compares. (A bare `clone`
/// system call without `fork` is not seen.)
#[inline]
pub fn fork_count() -> u64 {
    if !REGISTER.is_completed() {
        register();
    }
    FORKS.load(Ordering::Relaxed)
}

#[cold]
fn register() {
    REGISTER.call_once(|| {
        // SAFETY: the handler is a plain function of this library, which is never unloaded, and
        // does nothing but an atomic add, which is allowed in a forked child.
        let failed = unsafe { libc::pthread_atfork(None, None, Some(count_in_child)) };
        // ENOMEM is its only error; going on would leave children that use unmapped frames.
        assert!(failed == 0, "pthread_atfork: {}", std::io::Error::from_raw_os_error(failed));
    });
}
