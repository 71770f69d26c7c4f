//! `Keys`: an immutable packed array of 16-byte keys that knows whose they are.
//!
//! Owns: the Python class, its slices and its buffer. Never does: lookups. Invariants: the keys of
//! an object never change; a slice shares their memory and remembers the key before it.

use std::ffi::c_int;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, Range};
use std::sync::Arc;

use keystow_core::key::{Fingerprint, KEY_BYTES, Key};
use pyo3::exceptions::PyIndexError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator, PySlice, PyType};

use crate::make_keys::{self, Namespace};
use crate::refuse;

/// A run of keys in shared memory.
#[derive(Clone)]
pub struct Packed {
    all: Arc<Vec<Key>>,
    range: Range<usize>,
}

impl Packed {
    /// All of `keys`.
    pub fn new(keys: Vec<Key>) -> Self {
        Self { range: 0..keys.len(), all: Arc::new(keys) }
    }

    /// Part of these keys, by positions within them; shares their memory.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.range.len());
        let start = self.range.start;
        Self { all: Arc::clone(&self.all), range: start + range.start..start + range.end }
    }

    /// The key before the first, if this is a later part of a chain.
    fn before(&self) -> Option<Key> {
        self.range.start.checked_sub(1).map(|index| self.all[index])
    }
}

impl Deref for Packed {
    type Target = [Key];

    #[inline]
    fn deref(&self) -> &[Key] {
        &self.all[self.range.clone()]
    }
}

/// Keys of consecutive blocks: n x 16 bytes, immutable.
///
/// Made by ``store.keys(tokens)``, ``store.keys_of(hashes)``, ``block_keys`` and ``Keys.of``.
/// ``len``, indexing (``bytes`` of 16), iteration, ``==``, ``hash`` and pickle work as for a tuple
/// of bytes; ``keys[a:b]`` shares the memory and remembers the key before it, which is the default
/// parent of ``put(keys[a:b], ...)``. The buffer protocol shows the packed bytes, read-only.
#[pyclass(frozen, module = "keystow._core")]
pub struct Keys {
    pub(crate) packed: Packed,
    /// The key before the first of `packed.all`.
    origin: Option<Key>,
    pub(crate) fingerprint: Fingerprint,
    block_tokens: Option<u32>,
}

impl Keys {
    pub(crate) fn new(
        keys: Vec<Key>,
        origin: Option<Key>,
        fingerprint: Fingerprint,
        block_tokens: Option<u32>,
    ) -> Self {
        Self { packed: Packed::new(keys), origin, fingerprint, block_tokens }
    }

    /// The key before the first of these.
    pub(crate) fn parent_key(&self) -> Option<Key> {
        self.packed.before().or(self.origin)
    }

    /// The key that a continuation of these has as its parent.
    pub(crate) fn last_key(&self) -> Option<Key> {
        self.packed.last().copied().or_else(|| self.parent_key())
    }
}

#[pymethods]
impl Keys {
    /// Keys from an engine's own block hashes; each is hashed with the fingerprint.
    ///
    /// ``hashes``: a list of bytes of any length, or one packed buffer whose pieces are ``width``
    /// bytes each. ``layout``, ``namespace`` and ``salt`` are those of the store that gets them.
    ///
    /// Raises KeyFormatError for anything else.
    #[classmethod]
    #[pyo3(signature = (hashes, *, layout, namespace="", width=None, salt=Namespace::default()))]
    fn of(
        _class: &Bound<'_, PyType>,
        hashes: &Bound<'_, PyAny>,
        layout: &Bound<'_, PyAny>,
        namespace: &str,
        width: Option<i64>,
        salt: Namespace,
    ) -> PyResult<Self> {
        let identity = make_keys::Identity::of(layout, namespace.as_bytes(), &salt.0)?;
        make_keys::of_hashes(hashes, width, &identity)
    }

    /// Number of tokens these keys stand for: ``block_tokens * len(keys)``.
    ///
    /// Raises LayoutError where the layout does not say how many tokens a block holds.
    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<u64> {
        match self.block_tokens {
            Some(tokens) => Ok(u64::from(tokens) * self.packed.len() as u64),
            None => Err(refuse::no_block_tokens(py)),
        }
    }

    /// Identity of layout, namespace and salt: 16 bytes.
    #[getter]
    fn fingerprint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.fingerprint.0)
    }

    /// The key before the first one: 16 bytes, or None for the start of a chain.
    #[getter]
    fn parent<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.parent_key().map(|key| PyBytes::new(py, &key.0))
    }

    fn __len__(&self) -> usize {
        self.packed.len()
    }

    fn __getitem__<'py>(&self, at: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = at.py();
        let length = self.packed.len();
        if let Ok(slice) = at.cast::<PySlice>() {
            let found = slice.indices(length as isize)?;
            if found.step != 1 {
                return Err(refuse::slice_step(py, found.step));
            }
            let start = found.start as usize;
            let part = Self {
                packed: self.packed.part(start..start + found.slicelength),
                origin: self.origin,
                fingerprint: self.fingerprint,
                block_tokens: self.block_tokens,
            };
            return Ok(Bound::new(py, part)?.into_any());
        }
        let index: isize = at.extract()?;
        let index = if index < 0 { index.wrapping_add_unsigned(length) } else { index };
        match usize::try_from(index).ok().and_then(|index| self.packed.get(index)) {
            Some(key) => Ok(PyBytes::new(py, &key.0).into_any()),
            None => Err(PyIndexError::new_err(format!("index outside {length} keys"))),
        }
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyIterator>> {
        // SAFETY: we are attached, and the call returns a new reference or sets an error.
        let iterator = unsafe {
            let iterator = ffi::PySeqIter_New(slf.as_ptr());
            Bound::from_owned_ptr_or_err(slf.py(), iterator)?
        };
        Ok(iterator.cast_into()?)
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| {
            let other = other.get();
            self.fingerprint == other.fingerprint && *self.packed == *other.packed
        })
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.fingerprint.hash(&mut hasher);
        self.packed.hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        let length = self.packed.len();
        let tokens = match self.block_tokens {
            Some(tokens) => format!(" = {} tokens", u64::from(tokens) * length as u64),
            None => String::new(),
        };
        match &*self.packed {
            [] => "Keys(0)".into(),
            [one] => format!("Keys(1{tokens}, {})", short(one)),
            [first, .., last] => {
                format!("Keys({length}{tokens}, {}..{})", short(first), short(last))
            }
        }
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Parts<'py>)> {
        let restore = py.import("keystow._core")?.getattr("_keys_from_parts")?;
        let packed = PyBytes::new(py, Key::bytes_of(&self.packed));
        Ok((restore, (packed, self.fingerprint(py), self.parent(py), self.block_tokens)))
    }

    fn __copy__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __deepcopy__(slf: Py<Self>, _memo: &Bound<'_, PyDict>) -> Py<Self> {
        slf
    }

    /// # Safety
    /// Called by the interpreter with a Py_buffer to fill in.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let bytes = Key::bytes_of(&slf.get().packed);
        let at = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the view holds a reference to this object, whose keys live and never change as
        // long as it does; it is filled in as read-only.
        let done = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), at, bytes.len() as isize, 1, flags)
        };
        if done == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// What pickle keeps: packed keys, fingerprint, parent, tokens a block.
type Parts<'py> =
    (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>, Option<u32>);

/// The other half of pickling `Keys`.
#[pyfunction]
#[pyo3(name = "_keys_from_parts")]
pub fn keys_from_parts(
    py: Python<'_>,
    packed: &[u8],
    fingerprint: [u8; 16],
    parent: Option<[u8; 16]>,
    block_tokens: Option<u32>,
) -> PyResult<Keys> {
    match Key::slice_of(packed) {
        Some(keys) => {
            Ok(Keys::new(keys.to_vec(), parent.map(Key), Fingerprint(fingerprint), block_tokens))
        }
        None => Err(refuse::not_packed(py, packed.len(), KEY_BYTES)),
    }
}

fn short(key: &Key) -> String {
    key.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
