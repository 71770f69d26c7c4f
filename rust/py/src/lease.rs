//! `Lease`: blocks pinned in RAM, and read-only views of them.
//!
//! Owns: one shared core lease, held by the object until `release` and by every view until its
//! last memoryview is gone. Never does: copying. Invariant: an address handed out stays pinned as
//! long as Python can reach it, whatever else is released, removed or closed.

use std::ffi::c_int;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use keystow_core::error::{Error, ErrorKind};
use keystow_core::store as core;
use pyo3::exceptions::PyIndexError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyMemoryView};

use crate::errors::{exception, no_pickle};
use crate::handle::drop_detached;

/// Pins that go with their last holder, outside the interpreter lock.
pub struct Pinned {
    lease: Option<core::Lease>,
    /// The process whose memory it is.
    process: u32,
}

impl Pinned {
    /// Pins to be shared.
    pub fn new(lease: core::Lease) -> Arc<Self> {
        Arc::new(Self { lease: Some(lease), process: process::id() })
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.lease.as_ref().map_or(0, core::Lease::len)
    }

    fn block(&self, index: usize) -> Option<(*const u8, usize)> {
        self.lease.as_ref()?.block(index)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            drop_detached(lease);
        }
    }
}

/// The leading blocks of a chain, pinned in RAM: a zero-copy, read-only look at them.
///
/// ``with store.lease(keys) as lease:`` or ``lease.release()``. ``lease[i]`` is a read-only
/// memoryview of block i's bytes, as long as they were put (``len(lease)`` blocks; negative
/// indices and iteration work). A view stays valid, and its blocks pinned, until it is gone, also
/// after ``release()`` and after ``store.close()``. torch ignores that a view is read-only:
/// writing through it corrupts the cache.
#[pyclass(frozen, weakref, module = "keystow._core")]
pub struct Lease {
    pinned: Mutex<Option<Arc<Pinned>>>,
    blocks: usize,
    bytes: u64,
}

impl Lease {
    /// A lease on shared pins.
    pub fn new(pinned: Arc<Pinned>) -> Self {
        let blocks = pinned.len();
        let bytes = pinned.lease.as_ref().map_or(0, core::Lease::bytes);
        Self { pinned: Mutex::new(Some(pinned)), blocks, bytes }
    }

    fn current(&self, py: Python<'_>) -> PyResult<Arc<Pinned>> {
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(pinned) = pinned else {
            let message = "this lease is released.";
            let hint = "take views inside the with block, or a new lease: store.lease(keys).";
            return Err(exception(py, &Error::new(ErrorKind::Closed, "KS-CLO-003", message, hint)));
        };
        if pinned.process != process::id() {
            let message = "a forked child has no copy of the blocks.";
            let hint = "open a Store in the child, or start it with the spawn method.";
            return Err(exception(py, &Error::new(ErrorKind::Closed, "KS-CLO-002", message, hint)));
        }
        Ok(pinned)
    }
}

#[pymethods]
impl Lease {
    /// Number of leading blocks it holds; also after release.
    #[getter]
    fn blocks(&self) -> usize {
        self.blocks
    }

    /// Their bytes together.
    #[getter]
    fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the pins back, except those of views still alive. More calls do nothing.
    fn release(&self) {
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(pinned);
    }

    fn __len__(&self) -> usize {
        self.blocks
    }

    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        index: isize,
    ) -> PyResult<Bound<'py, PyMemoryView>> {
        let pinned = self.current(py)?;
        let at = if index < 0 { index.wrapping_add_unsigned(self.blocks) } else { index };
        let block = usize::try_from(at).ok().filter(|at| *at < self.blocks);
        let Some(block) = block else {
            return Err(PyIndexError::new_err(format!("block {index} of {}", self.blocks)));
        };
        let view = Bound::new(py, BlockView { pinned, block })?;
        PyMemoryView::from(view.as_any())
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyIterator>> {
        // SAFETY: we are attached, and the call returns a new reference or sets an error.
        let iterator = unsafe {
            let iterator = ffi::PySeqIter_New(slf.as_ptr());
            Bound::from_owned_ptr_or_err(slf.py(), iterator)?
        };
        Ok(iterator.cast_into()?)
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        slf.get().current(py)?;
        Ok(slf)
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
        Err(no_pickle("Lease"))
    }

    fn __repr__(&self) -> String {
        let held = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let state = if held { "held" } else { "released" };
        format!("Lease({} blocks, {} bytes, {state})", self.blocks, self.bytes)
    }
}

/// One block of a lease, behind a memoryview.
#[pyclass(frozen, module = "keystow._core", name = "_BlockView")]
pub struct BlockView {
    pinned: Arc<Pinned>,
    block: usize,
}

#[pymethods]
impl BlockView {
    /// # Safety
    /// Called by the interpreter with a Py_buffer to fill in.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let Some((at, bytes)) = this.pinned.block(this.block) else {
            return Err(PyIndexError::new_err("block outside its lease"));
        };
        let at = at.cast_mut().cast();
        // SAFETY: the view holds a reference to this object, which holds the pins: the block's
        // bytes stay and never change as long as it does; it is filled in as read-only.
        let done =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), at, bytes as isize, 1, flags) };
        if done == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
