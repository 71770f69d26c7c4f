//! One face for std and loom: every other room takes its atomics, locks and fences from here.
//!
//! Owns: re-exports. Never does: any logic. Invariant: with `--cfg loom` nothing in the directory
//! or the copy team touches an atomic that loom does not see.

#[cfg(not(loom))]
pub(crate) use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
};

#[cfg(loom)]
pub(crate) use loom::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
};
