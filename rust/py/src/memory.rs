//! Callers' memory as rows: `blocks` and `out`.
//!
//! Owns: the buffers and tensors of one call, held until it ends. Never does: copying, or knowing
//! what a block is. Invariants: an address leaves this room only with what keeps it alive; every
//! piece is on the CPU, C-contiguous, and writable where it will be written.
//!
//! Two doors: the buffer protocol (bytes, bytearray, memoryview, mmap, array, numpy), and tensors
//! by their methods (`data_ptr`, `is_contiguous`, `device`), so torch is never imported from here.
//! Another thread that resizes a tensor, or writes what a put reads, races with the call, as with
//! any library that lets go of the interpreter lock.

use keystow_core::store::{Rows, RowsMut};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PySequence, PyString, PyTuple, PyType};

use crate::refuse;

/// What a call will do with memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read it.
    Read,
    /// Write it.
    Write,
}

/// One contiguous piece of a caller's memory.
pub struct Piece {
    at: *mut u8,
    bytes: usize,
    /// Number of axes.
    dims: usize,
    /// Length of the first axis, 0 without axes.
    leading: usize,
    _hold: Hold,
}

/// What keeps a piece alive.
enum Hold {
    /// An exported buffer: its owner can't resize it meanwhile.
    Buffer { _export: PyUntypedBuffer },
    /// A tensor.
    Object { _owner: Py<PyAny> },
}

impl Piece {
    /// The memory of one array-like; `name` says in errors which argument it is.
    pub fn of(object: &Bound<'_, PyAny>, access: Access, name: &Name<'_>) -> PyResult<Self> {
        if exports_buffer(object) {
            return Self::of_buffer(object, access, name);
        }
        if is_tensor(object)? {
            return Self::of_tensor(object, access, name);
        }
        Err(refuse::not_memory(object, name))
    }

    fn of_buffer(object: &Bound<'_, PyAny>, access: Access, name: &Name<'_>) -> PyResult<Self> {
        let buffer = export(object).map_err(|cause| refuse::unreadable(object, name, cause))?;
        if !buffer.is_c_contiguous() {
            return Err(refuse::not_contiguous(object, name));
        }
        if access == Access::Write && buffer.readonly() {
            return Err(refuse::read_only(object, name));
        }
        let shape = buffer.shape();
        Ok(Self {
            at: buffer.buf_ptr().cast(),
            bytes: buffer.len_bytes(),
            dims: shape.len(),
            leading: shape.first().copied().unwrap_or(0),
            _hold: Hold::Buffer { _export: buffer },
        })
    }

    fn of_tensor(object: &Bound<'_, PyAny>, access: Access, name: &Name<'_>) -> PyResult<Self> {
        let py = object.py();
        check_device(object, name)?;
        let contiguous = object
            .call_method0(intern!(py, "is_contiguous"))
            .and_then(|answer| answer.is_truthy())
            .map_err(|cause| refuse::unreadable(object, name, cause))?;
        if !contiguous {
            return Err(refuse::not_contiguous(object, name));
        }
        if lazy_view(object)? {
            return Err(refuse::lazy_view(object, name));
        }
        if access == Access::Write && flag(object, intern!(py, "requires_grad"))? {
            return Err(refuse::needs_grad(object, name));
        }
        let (at, bytes) = address(object, name)?;
        let shape = object.getattr(intern!(py, "shape"))?;
        let shape = shape.cast::<PyTuple>()?;
        let leading = if shape.is_empty() { 0 } else { shape.get_item(0)?.extract()? };
        Ok(Self {
            at: at as *mut u8,
            bytes,
            dims: shape.len(),
            leading,
            _hold: Hold::Object { _owner: object.clone().unbind() },
        })
    }

    /// The bytes, to be copied at once: they hold still only while we stay attached.
    pub fn bytes<'a>(&'a self, _py: Python<'a>) -> &'a [u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: the hold keeps `bytes` bytes readable at `at`, and we are attached: Python code
        // that would change them waits.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }
}

/// Rows of a caller's memory, with what keeps them alive.
pub struct Batch {
    pieces: Vec<Piece>,
    /// Row length and count where one piece holds all rows; else one row a piece.
    packed: Option<(usize, usize)>,
}

impl Batch {
    /// `count` rows from an array with a leading axis of `count`, one flat piece of `count` equal
    /// parts, or a sequence of `count` array-likes.
    pub fn of(
        object: &Bound<'_, PyAny>,
        count: usize,
        access: Access,
        name: &'static str,
    ) -> PyResult<Self> {
        if exports_buffer(object) || is_tensor(object)? {
            let piece = Piece::of(object, access, &Name::whole(name))?;
            let fits = match piece.dims {
                0 => false,
                1 if count == 0 => piece.bytes == 0,
                1 => piece.bytes.is_multiple_of(count),
                _ => piece.leading == count,
            };
            if !fits {
                return Err(refuse::wrong_count(object, name, count));
            }
            let row_bytes = piece.bytes.checked_div(count).unwrap_or(0);
            return Ok(Self { pieces: vec![piece], packed: Some((row_bytes, count)) });
        }
        let rows = match object.cast::<PySequence>() {
            Ok(rows) if !object.is_instance_of::<PyString>() => rows,
            _ => return Err(refuse::not_memory(object, &Name::whole(name))),
        };
        if rows.len()? != count {
            return Err(refuse::wrong_count(object, name, count));
        }
        let mut pieces = Vec::with_capacity(count);
        for (index, row) in rows.try_iter()?.enumerate() {
            pieces.push(Piece::of(&row?, access, &Name { argument: name, index: Some(index) })?);
        }
        if pieces.len() != count {
            return Err(refuse::wrong_count(object, name, count));
        }
        Ok(Self { pieces, packed: None })
    }

    /// The first `count` rows of an `out` made for more.
    pub fn truncate(&mut self, count: usize) {
        match &mut self.packed {
            Some((_, rows)) => *rows = count.min(*rows),
            None => self.pieces.truncate(count),
        }
    }

    /// The rows to read from.
    pub fn rows(&self) -> Rows<'_> {
        if let Some((row_bytes, count)) = self.packed {
            // SAFETY: the piece holds count rows of row_bytes, alive as long as `self`; who writes
            // them meanwhile is the caller's race (module text).
            return unsafe { Rows::from_raw_packed(self.pieces[0].at, row_bytes, count) };
        }
        let rows = self.pieces.iter().map(|piece| (piece.at.cast_const(), piece.bytes)).collect();
        // SAFETY: as above, piece by piece.
        unsafe { Rows::from_raw_list(rows) }
    }

    /// The rows to write to; only for a batch made with `Access::Write`.
    pub fn rows_mut(&self) -> RowsMut<'_> {
        if let Some((row_bytes, count)) = self.packed {
            // SAFETY: the piece holds count writable rows of row_bytes, alive as long as `self`;
            // who uses them meanwhile is the caller's race (module text).
            return unsafe { RowsMut::from_raw_packed(self.pieces[0].at, row_bytes, count) };
        }
        let rows = self.pieces.iter().map(|piece| (piece.at, piece.bytes)).collect();
        // SAFETY: as above, piece by piece.
        unsafe { RowsMut::from_raw_list(rows) }
    }
}

/// An argument in an error message: `blocks`, or `blocks[3]`.
pub struct Name<'a> {
    argument: &'a str,
    index: Option<usize>,
}

impl<'a> Name<'a> {
    /// The whole argument.
    pub fn whole(argument: &'a str) -> Self {
        Self { argument, index: None }
    }
}

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}[{index}]", self.argument),
            None => f.write_str(self.argument),
        }
    }
}

/// Whether an object has the buffer protocol.
pub fn exports_buffer(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object, and we are attached.
    unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) == 1 }
}

/// The buffer of an object; one whose exporter leaves out the strides (ctypes) goes through a
/// memoryview, which fills them in.
pub fn export(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    PyUntypedBuffer::get(object).or_else(|error| {
        if error.is_instance_of::<PyBufferError>(object.py()) {
            PyUntypedBuffer::get(PyMemoryView::from(object)?.as_any())
        } else {
            Err(error)
        }
    })
}

/// Whether an object looks like a tensor. A class is no tensor, though it has the methods.
pub fn is_tensor(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let has_address = object.hasattr(intern!(object.py(), "data_ptr"))?;
    Ok(has_address && !object.is_instance_of::<PyType>())
}

/// Refuses a tensor that is not in the memory of this process.
pub fn check_device(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyResult<()> {
    let py = object.py();
    // torch answers this in a tenth of the time that its device takes to tell its type.
    if flag(object, intern!(py, "is_cpu"))? {
        return Ok(());
    }
    let kind = object.getattr(intern!(py, "device")).and_then(|it| it.getattr(intern!(py, "type")));
    if kind.and_then(|kind| kind.eq(intern!(py, "cpu"))).unwrap_or(false) {
        return Ok(());
    }
    Err(refuse::not_on_cpu(object, name))
}

/// Address and length of a tensor's memory.
pub fn address(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyResult<(usize, usize)> {
    let py = object.py();
    let found = || -> PyResult<(usize, usize)> {
        let at = object.call_method0(intern!(py, "data_ptr"))?.extract()?;
        Ok((at, object.getattr(intern!(py, "nbytes"))?.extract()?))
    };
    let (at, bytes) = found().map_err(|cause| refuse::unreadable(object, name, cause))?;
    // Fake and functional tensors have a shape and no memory.
    if at == 0 && bytes > 0 { Err(refuse::no_address(object, name)) } else { Ok((at, bytes)) }
}

/// Whether a tensor's values differ from its bytes by a conjugation or sign not yet carried out.
fn lazy_view(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    for method in [intern!(py, "is_conj"), intern!(py, "is_neg")] {
        if let Some(method) = object.getattr_opt(method)?
            && method.call0()?.is_truthy()?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn flag(object: &Bound<'_, PyAny>, name: &Bound<'_, PyString>) -> PyResult<bool> {
    object.getattr_opt(name)?.map_or(Ok(false), |value| value.is_truthy())
}
