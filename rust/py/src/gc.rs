//! The directories under a root, and the removal of one: for ``keystow gc``.
//!
//! Owns: the dicts. Never does: choose what goes. Invariant: both calls are made detached.

use std::path::PathBuf;

use keystow_core::store as core;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::OrRaise;
use crate::inspect::refusal;

/// What stores' directories a root holds, one dict each.
#[pyfunction]
#[pyo3(name = "_directories")]
pub fn directories(py: Python<'_>, root: PathBuf) -> PyResult<Bound<'_, PyList>> {
    let found = py.detach(|| core::directories(&root)).or_raise(py)?;
    let all = PyList::empty(py);
    for directory in &found {
        let named = PyDict::new(py);
        named.set_item("path", directory.path.display().to_string())?;
        named.set_item("fingerprint", &directory.fingerprint)?;
        named.set_item("member", &directory.member)?;
        named.set_item("name", &directory.name)?;
        named.set_item("half_removed", directory.half_removed)?;
        named.set_item("locked", directory.locked)?;
        named.set_item("bytes", directory.bytes)?;
        named.set_item("last_opened_unix_s", directory.opened_unix_s)?;
        let stays = directory.stays.as_ref().map(|error| refusal(py, error)).transpose()?;
        named.set_item("error", stays)?;
        all.append(named)?;
    }
    Ok(all)
}

/// Removes one of them, by its fingerprint and name.
#[pyfunction]
#[pyo3(name = "_remove_directory")]
pub fn remove_directory(
    py: Python<'_>,
    root: PathBuf,
    fingerprint: &str,
    name: &str,
) -> PyResult<()> {
    py.detach(|| core::remove_directory(&root, fingerprint, name)).or_raise(py)
}
