//! `Match`: how much of a chain the store has.
//!
//! Owns: the answer, the keys it is about, and the pins if asked for. Never does: looking again.
//! Invariant: the numbers are those of the moment it was made; only pins keep them true.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keystow_core::store as core;
use pyo3::prelude::*;

use crate::errors::{OrRaise, no_pickle};
use crate::handle::Handle;
use crate::keys::Packed;
use crate::lease::{Lease, Pinned};
use crate::memory::{Access, Batch};

/// Leading blocks of a chain that the store has: ``int(match)``, ``len(match)`` or ``.blocks``.
///
/// True if there is at least one. Made by ``store.match``; with ``pin=True`` the blocks stay where
/// they are until ``release()`` or the end of a ``with`` block, without it they may leave at any
/// time (a later get then returns fewer).
#[pyclass(frozen, weakref, module = "keystow._core")]
pub struct Match {
    handle: Arc<Handle>,
    keys: Packed,
    found: core::Matched,
    pinned: Mutex<Option<Arc<Pinned>>>,
}

impl Match {
    /// The answer about `keys`, with the pins of its blocks where they were asked for.
    pub fn new(
        handle: Arc<Handle>,
        keys: Packed,
        found: core::Matched,
        pinned: Option<Arc<Pinned>>,
    ) -> Self {
        Self { handle, keys, found, pinned: Mutex::new(pinned) }
    }

    fn pinned(&self) -> MutexGuard<'_, Option<Arc<Pinned>>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease_of(&self, py: Python<'_>) -> PyResult<Arc<Pinned>> {
        let whole = |pinned: &Arc<Pinned>| pinned.len() == self.found.blocks;
        if let Some(pinned) = self.pinned().clone().filter(whole) {
            return Ok(pinned);
        }
        let store = self.handle.open(py)?;
        let keys = self.keys.part(0..self.found.blocks);
        py.detach(|| store.lease(&keys, 0)).map(Pinned::new).or_raise(py)
    }
}

#[pymethods]
impl Match {
    /// Number of leading blocks found, in any tier.
    #[getter]
    fn blocks(&self) -> usize {
        self.found.blocks
    }

    /// How many of them are in RAM.
    #[getter]
    fn ram(&self) -> usize {
        self.found.ram
    }

    /// How many are only on SSD.
    #[getter]
    fn ssd(&self) -> usize {
        self.found.ssd
    }

    /// How many are only in directories that the store follows.
    #[getter]
    fn followed(&self) -> usize {
        self.found.followed
    }

    /// Bytes of the blocks found.
    #[getter]
    fn bytes(&self) -> u64 {
        self.found.bytes
    }

    /// Seconds that getting them should take, estimated.
    #[getter]
    fn load_s(&self) -> f64 {
        self.found.load_s
    }

    /// Copies the blocks found into ``out``: one row a matched block, or one a key asked for.
    ///
    /// Returns the number of leading blocks copied; without pins it may be fewer than ``blocks``.
    /// Forms and errors as in ``Store.get``.
    fn get(&self, py: Python<'_>, out: &Bound<'_, PyAny>) -> PyResult<usize> {
        let blocks = self.found.blocks;
        let exact = out.len().is_ok_and(|length| length == blocks);
        let rows = if exact { blocks } else { self.keys.len() };
        let mut batch = Batch::of(out, rows, Access::Write, "out")?;
        batch.truncate(blocks);
        let store = self.handle.open(py)?;
        let (keys, mut rows) = (self.keys.part(0..blocks), batch.rows_mut());
        py.detach(|| store.get(&keys, &mut rows)).or_raise(py)
    }

    /// A lease on the blocks found: of this match's own pins where all of them are in RAM, or taken
    /// now, which brings those on SSD to RAM.
    fn lease(&self, py: Python<'_>) -> PyResult<Lease> {
        Ok(Lease::new(self.lease_of(py)?))
    }

    /// Gives the pins back, if it has any; leases made from them keep theirs.
    fn release(&self) {
        let pinned = self.pinned().take();
        drop(pinned);
    }

    fn __int__(&self) -> usize {
        self.found.blocks
    }

    fn __index__(&self) -> usize {
        self.found.blocks
    }

    fn __len__(&self) -> usize {
        self.found.blocks
    }

    fn __bool__(&self) -> bool {
        self.found.blocks > 0
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.release();
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(no_pickle("Match"))
    }

    fn __repr__(&self) -> String {
        let core::Matched { blocks, ram, ssd, followed, load_s, .. } = &self.found;
        let followed = if *followed > 0 { format!(", {followed} followed") } else { String::new() };
        let pinned = if self.pinned().is_some() { ", pinned" } else { "" };
        let (keys, load_ms) = (self.keys.len(), load_s * 1e3);
        format!(
            "Match({blocks} of {keys} blocks: {ram} ram, {ssd} ssd{followed}, load {load_ms:.1} \
             ms{pinned})"
        )
    }
}
