//! What this machine gives, for `keystow.doctor`: the core's probes as tuples and dicts.
//!
//! Owns: the names in the dicts. Never does: judge. Invariant: a probe that waits for the disk or
//! the kernel runs detached.

use std::path::PathBuf;

use keystow_core::store::probe as core;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::OrRaise;

/// Why io_uring does not work here: (errno, step that failed); None if it works.
///
/// ``directory``: where transfers are tried, None for nowhere.
#[pyfunction]
#[pyo3(signature = (directory=None))]
pub fn io_uring_refusal(py: Python<'_>, directory: Option<PathBuf>) -> Option<(i32, &'static str)> {
    py.detach(|| core::io_uring_refusal(directory.as_deref()))
}

/// What a directory's file system can do, by a small file that is gone again; (step, errno) where
/// none can be made.
#[pyfunction(name = "_probe_directory")]
pub fn probe_directory(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let found = match py.detach(|| core::probe_directory(&path)) {
        Ok(found) => found,
        Err(failed) => return Ok(failed.into_pyobject(py)?.into_any()),
    };
    let named = PyDict::new(py);
    named.set_item("unnamed", found.unnamed)?;
    named.set_item("fallocate_errno", found.fallocate_errno)?;
    named.set_item("reserved_bytes", found.reserved_bytes)?;
    named.set_item("in_memory", found.in_memory)?;
    named.set_item("align", found.align)?;
    named.set_item("direct", found.direct)?;
    named.set_item("cached_pages", found.cached_pages)?;
    named.set_item("in_place", found.in_place)?;
    named.set_item("failed", found.failed)?;
    named.set_item("fallbacks", found.fallbacks)?;
    Ok(named.into_any())
}

/// A small arena: (bytes mapped, of them in huge pages, what the kernel refused).
#[pyfunction(name = "_probe_pages")]
pub fn probe_pages(py: Python<'_>) -> PyResult<(u64, u64, Vec<String>)> {
    let pages = py.detach(core::probe_pages).or_raise(py)?;
    Ok((pages.mapped_bytes, pages.huge_bytes, pages.fallbacks))
}

/// Memory from all nodes in turn: (what is in force, what the kernel said).
#[pyfunction(name = "_probe_numa")]
pub fn probe_numa(py: Python<'_>) -> PyResult<(String, Vec<String>)> {
    py.detach(core::probe_numa).or_raise(py)
}

/// RAM that can be had now: (bytes, what sets the limit).
#[pyfunction(name = "_ram_limit")]
pub fn ram_limit() -> (u64, String) {
    let core::RamLimit { bytes, source } = core::ram_limit();
    (bytes, source)
}

/// Cgroups: (version of the memory controller, (bytes left, limit), (thousandths of a core,
/// limit)); None for what has no limit.
#[pyfunction(name = "_cgroup_limits")]
#[expect(clippy::type_complexity, reason = "a tuple for one caller of ours")]
pub fn cgroup_limits() -> (&'static str, Option<(u64, String)>, Option<(u64, String)>) {
    let core::CgroupLimits { version, ram, cpu } = core::cgroup_limits();
    let ram = ram.map(|ram| (ram.bytes, ram.source));
    (version, ram, cpu.map(|cpu| (cpu.millicores, cpu.source)))
}

/// Cores that this process may use: of its affinity, and of what its cgroups leave.
#[pyfunction(name = "_cores")]
pub fn cores() -> usize {
    core::cores()
}

/// The architecture, then those of its instructions that make copies, keys and tags faster.
#[pyfunction(name = "_cpu_features")]
pub fn cpu_features() -> Vec<&'static str> {
    core::cpu_features()
}
