//! One face for std and loom: every other room takes its atomics, locks and fences from here.
//!
//! Owns: re-exports. Never does: any logic. Invariant: with `--cfg loom` nothing in the directory
//! touches an atomic that loom does not see.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence},
};
