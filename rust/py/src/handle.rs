//! The core store behind a Python object, until it is closed.
//!
//! Owns: the one strong reference that `close` takes away, and what is still told afterwards.
//! Never does: anything with blocks. Invariants: the lock is held for a pointer's copy only, never
//! while detached or waiting; after `close` the memory goes with the last call or lease.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use keystow_core::error::{Error, ErrorKind};
use keystow_core::store as core;
use pyo3::prelude::*;

use crate::errors::{OrRaise, exception};
use crate::make_keys::Identity;
use crate::stats::Stats;

/// A store that may have been closed.
pub struct Handle {
    store: RwLock<Option<Arc<core::Store>>>,
    /// Taken when the store was closed.
    last: Mutex<Option<Stats>>,
    /// Whose keys it takes.
    pub identity: Identity,
    /// Largest block, in bytes.
    pub block_bytes: u64,
}

impl Handle {
    /// A handle on an open store.
    pub fn new(store: Arc<core::Store>, identity: Identity) -> Self {
        let block_bytes = u64::from(store.block_bytes());
        Self { store: RwLock::new(Some(store)), last: Mutex::new(None), identity, block_bytes }
    }

    /// The store, or StoreClosedError: after close, and in a forked child.
    #[inline]
    pub fn open(&self, py: Python<'_>) -> PyResult<Arc<core::Store>> {
        let store = self.current().ok_or_else(|| {
            let message = "this store is closed.";
            let hint = "open a new Store; leases taken before stay readable.";
            exception(py, &Error::new(ErrorKind::Closed, "KS-CLO-001", message, hint))
        })?;
        store.check().or_raise(py)?;
        Ok(store)
    }

    /// Whether `close` has been called.
    pub fn closed(&self) -> bool {
        self.current().is_none()
    }

    /// Counters: live, or as they were when the store was closed.
    pub fn stats(&self, py: Python<'_>) -> Stats {
        if let Some(store) = self.current() {
            return py.detach(move || Stats::of(&store));
        }
        self.last().clone().unwrap_or_default()
    }

    /// Replaces the store by one on what a crash leaves of its disk.
    pub fn crash(&self, py: Python<'_>, seed: u64, power: bool) -> PyResult<()> {
        let store = self.open(py)?;
        let after = py.detach(|| store.crash(seed, power)).or_raise(py)?;
        let before = self.store.write().unwrap_or_else(PoisonError::into_inner).replace(after);
        py.detach(move || drop((store, before)));
        Ok(())
    }

    /// Closes the store once; later calls have nothing left to write.
    pub fn close(&self, py: Python<'_>, timeout: Duration) -> core::Closed {
        let taken = self.store.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(store) = taken else {
            return core::Closed::default();
        };
        let (closed, stats) = py.detach(move || (store.close(timeout), Stats::of(&store)));
        *self.last() = Some(stats);
        closed
    }

    fn current(&self) -> Option<Arc<core::Store>> {
        // A panic can't happen while the lock is held, so a poisoned one is still right.
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn last(&self) -> MutexGuard<'_, Option<Stats>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(store) = self.store.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            drop_detached(Forgotten(store));
        }
    }
}

/// A store that nobody closed: its directory is free for the next one when this is gone, though
/// the store's own thread may hold it a moment longer. What is only in RAM is lost.
struct Forgotten(Arc<core::Store>);

impl Drop for Forgotten {
    fn drop(&mut self) {
        self.0.close(Duration::ZERO);
    }
}

/// Drops what may be the last hold on an arena, with the interpreter lock released: unmapping many
/// GiB takes a while.
pub fn drop_detached<T: Send>(value: T) {
    let mut value = Some(value);
    // Without an interpreter (it is going down) the value is dropped after this call.
    let _ = Python::try_attach(|py| {
        let value = value.take();
        py.detach(move || drop(value));
    });
}
