//! Making keys: from token ids, from an engine's hashes, and from whatever a verb is given.
//!
//! Owns: reading the arguments `tokens`, `extra`, `parent`, `hashes` and `keys`. Never does: the
//! hashing itself. Invariant: keys under another fingerprint never reach the core.

use keystow_core::key::{self, Extra, Fingerprint, KEY_BYTES, Key};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySequence, PyString};

use crate::errors::OrRaise;
use crate::keys::{Keys, Packed};
use crate::memory::{Access, Name, Piece, exports_buffer, is_tensor};
use crate::tokens::token_ids;
use crate::{FEW_KEYS, refuse};

/// Text or bytes that enter a fingerprint.
#[derive(Default)]
pub struct Namespace(pub Vec<u8>);

impl<'py> FromPyObject<'_, 'py> for Namespace {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.cast::<PyString>() {
            Ok(text) => Ok(Self(text.to_cow()?.as_bytes().to_vec())),
            Err(_) => Ok(Self(object.cast::<PyBytes>()?.as_bytes().to_vec())),
        }
    }
}

/// Whose keys these are.
#[derive(Clone, Copy)]
pub struct Identity {
    /// Hash of layout, namespace and salt.
    pub fingerprint: Fingerprint,
    /// Tokens a block, where the layout knows.
    pub block_tokens: Option<u32>,
}

impl Identity {
    /// The identity of a `Layout` under a namespace and a salt.
    pub fn of(layout: &Bound<'_, PyAny>, namespace: &[u8], salt: &[u8]) -> PyResult<Self> {
        let py = layout.py();
        let description = layout.getattr(intern!(py, "canonical")).ok();
        let description = description.and_then(|it| it.cast_into::<PyBytes>().ok());
        let description = description.ok_or_else(|| refuse::not_layout(layout))?;
        let block_tokens = layout.getattr(intern!(py, "block_tokens"))?.extract()?;
        let fingerprint = Fingerprint::new(description.as_bytes(), namespace, salt);
        Ok(Self { fingerprint, block_tokens })
    }
}

/// Keys of the full blocks of `tokens`, each chained to the one before it.
///
/// ``tokens``: a list of ints, or a one-dimensional integer array (numpy, torch on the CPU, array,
/// memoryview; every width, any stride), ids 0 to 2^32-1. ``extra``: (start, end, digest) for
/// images, LoRA and the like: half-open token positions from the start of this call and 1 to 64
/// bytes; it enters every block it overlaps. ``parent``: the ``Keys`` before (their last key
/// counts), or 16 bytes. ``layout``, ``namespace`` and ``salt`` are those of the store that gets
/// the keys.
///
/// Raises KeyFormatError for bad ids, extras or parents, LayoutError for a layout without
/// block_tokens.
#[pyfunction]
#[pyo3(signature = (tokens, *, layout, namespace="", extra=None, parent=None,
    salt=Namespace::default()))]
pub fn block_keys(
    tokens: &Bound<'_, PyAny>,
    layout: &Bound<'_, PyAny>,
    namespace: &str,
    extra: Option<&Bound<'_, PyAny>>,
    parent: Option<&Bound<'_, PyAny>>,
    salt: Namespace,
) -> PyResult<Keys> {
    let identity = Identity::of(layout, namespace.as_bytes(), &salt.0)?;
    of_tokens(tokens, extra, parent, &identity)
}

/// Fingerprint of a layout's description under a namespace and a salt: 16 bytes.
#[pyfunction]
#[pyo3(name = "_fingerprint")]
pub fn fingerprint<'py>(
    py: Python<'py>,
    description: &[u8],
    namespace: &[u8],
    salt: &[u8],
) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &Fingerprint::new(description, namespace, salt).0)
}

/// The chain of `tokens`.
pub fn of_tokens(
    tokens: &Bound<'_, PyAny>,
    extra: Option<&Bound<'_, PyAny>>,
    parent: Option<&Bound<'_, PyAny>>,
    identity: &Identity,
) -> PyResult<Keys> {
    let py = tokens.py();
    let Some(block_tokens) = identity.block_tokens else {
        return Err(refuse::no_block_tokens(py));
    };
    let parent = parent.map(|parent| parent_key(parent, &identity.fingerprint)).transpose()?;
    let parent = parent.flatten();
    let extras = extra.map_or_else(|| Ok(Vec::new()), extras)?;
    let tokens = token_ids(tokens)?;
    let size = block_tokens as usize;
    let make = || key::chain(&tokens, size, &identity.fingerprint, parent, &extras);
    let few = tokens.len() / size.max(1) <= FEW_KEYS;
    let keys = if few { make() } else { py.detach(make) }.or_raise(py)?;
    Ok(Keys::new(keys, parent, identity.fingerprint, identity.block_tokens))
}

/// Keys of an engine's own hashes: a list of bytes, or packed with a width.
pub fn of_hashes(
    hashes: &Bound<'_, PyAny>,
    width: Option<i64>,
    identity: &Identity,
) -> PyResult<Keys> {
    let py = hashes.py();
    let print = &identity.fingerprint;
    let keys = match width {
        None if exports_buffer(hashes) => {
            return Err(refuse::bad_width(py, "packed hashes without a width.".into()));
        }
        None => hash_items(hashes, "hashes", print)?,
        Some(width) if width <= 0 => {
            return Err(refuse::bad_width(py, format!("width={width} cuts nothing.")));
        }
        Some(width) => {
            let width = width as usize;
            if !exports_buffer(hashes) {
                return Err(refuse::bad_width(py, "width= goes with one packed buffer.".into()));
            }
            let piece = Piece::of(hashes, Access::Read, &Name::whole("hashes"))?;
            let bytes = piece.bytes(py).to_vec();
            if !bytes.len().is_multiple_of(width) {
                return Err(refuse::not_packed(py, bytes.len(), width));
            }
            let make = || bytes.chunks_exact(width).map(|hash| key::of_hash(hash, print)).collect();
            py.detach(make)
        }
    };
    Ok(Keys::new(keys, None, *print, identity.block_tokens))
}

/// The argument `keys` of a verb.
pub struct Asked {
    /// The keys.
    pub packed: Packed,
    /// The key before them, where the form knows it.
    pub parent: Option<Key>,
}

impl Asked {
    /// `Keys` of this fingerprint, a packed buffer of raw keys, or a list of an engine's hashes.
    #[inline]
    pub fn of(object: &Bound<'_, PyAny>, print: &Fingerprint) -> PyResult<Self> {
        if let Ok(keys) = object.cast::<Keys>() {
            let keys = keys.get();
            if keys.fingerprint != *print {
                let has = &keys.fingerprint;
                return Err(refuse::other_fingerprint(object.py(), "keys", has, print));
            }
            return Ok(Self { packed: keys.packed.clone(), parent: keys.parent_key() });
        }
        let keys = if exports_buffer(object) || is_tensor(object)? {
            raw_keys(object)?
        } else {
            hash_items(object, "keys", print)?
        };
        Ok(Self { packed: Packed::new(keys), parent: None })
    }
}

/// The argument `parent`: the last of some `Keys`, or 16 bytes. Empty `Keys` at the start of a
/// chain have neither a last key nor one before them: None.
pub fn parent_key(object: &Bound<'_, PyAny>, print: &Fingerprint) -> PyResult<Option<Key>> {
    if let Ok(keys) = object.cast::<Keys>() {
        let keys = keys.get();
        if keys.fingerprint != *print {
            let has = &keys.fingerprint;
            return Err(refuse::other_fingerprint(object.py(), "parent", has, print));
        }
        return Ok(keys.last_key());
    }
    let bytes = object.cast::<PyBytes>().ok().map(|bytes| bytes.as_bytes());
    match bytes.and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok()) {
        Some(bytes) => Ok(Some(Key(bytes))),
        None => Err(refuse::bad_parent(object)),
    }
}

fn raw_keys(object: &Bound<'_, PyAny>) -> PyResult<Vec<Key>> {
    let py = object.py();
    let piece = Piece::of(object, Access::Read, &Name::whole("keys"))?;
    let bytes = piece.bytes(py);
    match Key::slice_of(bytes) {
        Some(keys) => Ok(keys.to_vec()),
        None => Err(refuse::not_packed(py, bytes.len(), KEY_BYTES)),
    }
}

/// Each item's bytes, hashed.
fn hash_items(object: &Bound<'_, PyAny>, name: &str, print: &Fingerprint) -> PyResult<Vec<Key>> {
    let rows = match object.cast::<PySequence>() {
        Ok(rows) if !object.is_instance_of::<PyString>() => rows,
        _ => return Err(refuse::not_keys(object, name)),
    };
    let mut keys = Vec::with_capacity(rows.len()?);
    for (index, item) in rows.try_iter()?.enumerate() {
        let item = item?;
        match item.cast::<PyBytes>() {
            Ok(hash) if !hash.as_bytes().is_empty() => {
                keys.push(key::of_hash(hash.as_bytes(), print));
            }
            _ => return Err(refuse::not_keys(&item, &format!("{name}[{index}]"))),
        }
    }
    Ok(keys)
}

fn extras(object: &Bound<'_, PyAny>) -> PyResult<Vec<Extra>> {
    let mut extras = Vec::new();
    let items = object.try_iter().map_err(|cause| refuse::bad_extra(object.py(), 0, &cause))?;
    for (index, item) in items.enumerate() {
        let item = item?;
        let read = || -> PyResult<Extra> {
            let (start, end, digest): (u64, u64, Bound<'_, PyBytes>) = item.extract()?;
            Ok(Extra { start, end, digest: digest.as_bytes().to_vec() })
        };
        extras.push(read().map_err(|cause| refuse::bad_extra(item.py(), index, &cause))?);
    }
    Ok(extras)
}
