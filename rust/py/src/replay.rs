//! `Trace` and `replay`: requests of Python objects, and the core's policies run over them.
//!
//! Owns: ids as numbers, and the stops of a run for signals and progress. Never does: open files
//! or count hits. Invariants: a request with one bad id adds nothing; a replay runs over the trace
//! as it was when it began, whatever is added meanwhile.

use std::sync::{Arc, Mutex, PoisonError};

use keystow_core::key::{Fingerprint, KEY_BYTES, of_hash};
use keystow_core::replay as core;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyByteArray, PyBytes, PyString};

use crate::refuse;

/// Requests between two looks at signals and progress.
const REQUESTS_A_LOOK: usize = 5_000;
/// Text and bytes of the same content are different ids, as they are different to Python.
const BYTES: Fingerprint = Fingerprint([1; KEY_BYTES]);
const TEXT: Fingerprint = Fingerprint([2; KEY_BYTES]);

/// Requests in memory, each a chain of block ids. ``keystow.Trace`` reads files.
#[pyclass(frozen, module = "keystow._core")]
pub struct Trace {
    trace: Mutex<Arc<core::Trace>>,
}

impl Trace {
    fn now(&self, py: Python<'_>) -> Arc<core::Trace> {
        let trace = self.trace.lock_py_attached(py);
        Arc::clone(&trace.unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut core::Trace)) {
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut trace));
    }
}

#[pymethods]
impl Trace {
    #[new]
    fn new() -> Self {
        Self { trace: Mutex::default() }
    }

    /// Adds one request: a sequence of ids, each an int of at most 128 bits, bytes or text.
    fn push(&self, ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = ids.py();
        let request = || self.now(py).len();
        let items = match ids.try_iter() {
            Ok(items) if !is_one_id(ids) => items,
            _ => return Err(refuse::not_a_request(ids, request())),
        };
        let mut numbers = Vec::new();
        for (index, item) in items.enumerate() {
            let item = item?;
            let number = number_of(&item);
            numbers.push(number.ok_or_else(|| refuse::not_an_id(&item, request(), index))?);
        }
        py.detach(|| self.change(|trace| trace.push(numbers)));
        Ok(())
    }

    /// Adds the requests of a piece of a JSONL file, cut anywhere.
    fn feed(&self, py: Python<'_>, piece: &[u8]) {
        py.detach(|| self.change(|trace| trace.feed(piece)));
    }

    /// Ends a file; the next piece begins with line 1 of another.
    fn finish(&self, py: Python<'_>) {
        py.detach(|| self.change(core::Trace::finish));
    }

    /// Number of requests.
    #[getter]
    fn requests(&self, py: Python<'_>) -> usize {
        self.now(py).len()
    }

    /// Block references of all requests.
    #[getter]
    fn refs(&self, py: Python<'_>) -> usize {
        self.now(py).refs()
    }

    /// Different blocks.
    #[getter]
    fn unique(&self, py: Python<'_>) -> usize {
        self.now(py).unique()
    }

    /// Lines that were no request.
    #[getter]
    fn malformed(&self, py: Python<'_>) -> u64 {
        self.now(py).malformed().0
    }

    /// The first malformed lines: (number in its file, what is wrong).
    #[getter]
    fn malformed_lines(&self, py: Python<'_>) -> Vec<(u64, String)> {
        let trace = self.now(py);
        trace.malformed().1.iter().map(|line| (line.line, line.why.clone())).collect()
    }
}

/// Runs a trace through a cache: (plain hits, prefix hits, evictions, steps of searches).
///
/// ``progress`` is called now and then with the number of requests served; what it raises ends the
/// replay.
#[pyfunction]
#[pyo3(signature = (trace, policy, ram_blocks, chains, progress=None))]
pub fn replay(
    py: Python<'_>,
    trace: &Bound<'_, Trace>,
    policy: &str,
    ram_blocks: u32,
    chains: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64, u64, u64)> {
    let known = core::ReplayPolicy::NAMES;
    let policy = core::ReplayPolicy::parse(policy)
        .ok_or_else(|| refuse::bad_choice(py, "policy", policy, known))?;
    let trace = trace.get().now(py);
    let look = |served: usize| -> PyResult<()> {
        Python::attach(|py| {
            py.check_signals()?;
            progress.as_ref().map_or(Ok(()), |progress| progress.call1(py, (served,)).map(drop))
        })
    };
    let mut stopped = Ok(());
    let hits = py.detach(|| {
        core::replay(&trace, policy, ram_blocks, chains, |served| {
            if served > 0 && served.is_multiple_of(REQUESTS_A_LOOK) {
                stopped = look(served);
            }
            stopped.is_ok()
        })
    });
    stopped.map(|()| (hits.plain, hits.prefix, hits.evictions, hits.steps))
}

fn is_one_id(ids: &Bound<'_, PyAny>) -> bool {
    ids.is_instance_of::<PyString>()
        || ids.is_instance_of::<PyBytes>()
        || ids.is_instance_of::<PyByteArray>()
}

/// The number of an id; none where it is no id.
fn number_of(id: &Bound<'_, PyAny>) -> Option<i128> {
    if let Ok(bytes) = id.cast::<PyBytes>() {
        return Some(hashed(bytes.as_bytes(), &BYTES));
    }
    if let Ok(text) = id.cast::<PyString>() {
        return text.to_cow().ok().map(|text| hashed(text.as_bytes(), &TEXT));
    }
    let small = id.extract::<i64>().map(i128::from);
    small.or_else(|_| id.extract::<i128>()).ok()
}

/// 128 bits of a hash: as good as different from every other id's.
fn hashed(id: &[u8], kind: &Fingerprint) -> i128 {
    i128::from_le_bytes(of_hash(id, kind).0)
}
