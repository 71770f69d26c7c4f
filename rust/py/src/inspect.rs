//! Directories on disk, seen from outside: `ReadOnlyStore`, and the figures of inspect and verify.
//!
//! Owns: these classes and dicts. Never does: opening for writing, or counting. Invariants: a call
//! that reads the disk is made detached; one that may last hears of signals.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use keystow_core::error::{Error, ErrorKind};
use keystow_core::key::{Fingerprint, Key};
use keystow_core::store::{self as core, Contents, Inspected, SnapshotStats};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::errors::{OrRaise, exception, no_pickle};
use crate::keys::Keys;
use crate::make_keys::{self, Asked, Identity};
use crate::memory::{Access, Batch};
use crate::{FEW_KEYS, options, show};

/// A scrub hears of signals this often.
const SLICE: Duration = Duration::from_millis(100);

/// A frozen view of a store's directory, made by ``keystow.open_readonly``; a context manager.
///
/// It takes no lock and changes nothing on disk, and its owner may go on meanwhile: what that has
/// overwritten since is a miss, what it removed or cleared since may still be found. Every block is
/// verified when it is read; the bytes are right or it is a miss.
#[pyclass(frozen, weakref, module = "keystow._core")]
pub struct ReadOnlyStore {
    /// None once closed, and then the last counters.
    view: RwLock<Result<Arc<core::Snapshot>, SnapshotStats>>,
    layout: Option<Py<PyAny>>,
    identity: Identity,
    block_bytes: u32,
    path: PathBuf,
    warnings: Vec<String>,
}

impl ReadOnlyStore {
    fn state(&self) -> Result<Arc<core::Snapshot>, SnapshotStats> {
        // A panic can't happen while the lock is held, so a poisoned one is still right.
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open(&self, py: Python<'_>) -> PyResult<Arc<core::Snapshot>> {
        self.state().map_err(|_| {
            let message = "this view is closed.";
            let hint = "open it again with keystow.open_readonly.";
            exception(py, &Error::new(ErrorKind::Closed, "KS-CLO-001", message, hint))
        })
    }

    fn stats_now(&self) -> (bool, SnapshotStats) {
        self.state().map_or_else(|last| (false, last), |view| (true, view.stats()))
    }

    fn look<T: Send>(
        &self,
        keys: &Bound<'_, PyAny>,
        call: impl FnOnce(&core::Snapshot, &[Key]) -> T + Send,
    ) -> PyResult<T> {
        let py = keys.py();
        let asked = Asked::of(keys, &self.identity.fingerprint)?;
        let view = self.open(py)?;
        if asked.packed.len() <= FEW_KEYS {
            Ok(call(&view, &asked.packed))
        } else {
            Ok(py.detach(|| call(&view, &asked.packed)))
        }
    }
}

#[pymethods]
impl ReadOnlyStore {
    /// Number of leading blocks that are in the view.
    #[pyo3(name = "match")]
    fn match_(&self, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.look(keys, core::Snapshot::match_run)
    }

    /// The same as ``match``.
    fn match_prefix(&self, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.look(keys, core::Snapshot::match_run)
    }

    /// For each key whether its block is in the view.
    fn contains(&self, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        self.look(keys, core::Snapshot::contains)
    }

    /// Copies the leading blocks into ``out``; returns their number. As ``Store.get``.
    fn get(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<usize> {
        let asked = Asked::of(keys, &self.identity.fingerprint)?;
        let batch = Batch::of(out, asked.packed.len(), Access::Write, "out")?;
        let view = self.open(py)?;
        let mut rows = batch.rows_mut();
        py.detach(|| view.get(&asked.packed, &mut rows)).or_raise(py)
    }

    /// Copies every block into its row of ``out``; says for each whether it did. As
    /// ``Store.get_each``.
    fn get_each(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<bool>> {
        let asked = Asked::of(keys, &self.identity.fingerprint)?;
        let batch = Batch::of(out, asked.packed.len(), Access::Write, "out")?;
        let view = self.open(py)?;
        let mut rows = batch.rows_mut();
        py.detach(|| view.get_each(&asked.packed, &mut rows)).or_raise(py)
    }

    /// Keys of the full blocks of ``tokens``, as ``Store.keys``; the directory knows its namespace
    /// and salt by their fingerprint.
    #[pyo3(signature = (tokens, extra=None, parent=None))]
    fn keys(
        &self,
        tokens: &Bound<'_, PyAny>,
        extra: Option<&Bound<'_, PyAny>>,
        parent: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Keys> {
        make_keys::of_tokens(tokens, extra, parent, &self.identity)
    }

    /// Keys of an engine's own block hashes, as ``Store.keys_of``.
    #[pyo3(signature = (hashes, width=None))]
    fn keys_of(&self, hashes: &Bound<'_, PyAny>, width: Option<i64>) -> PyResult<Keys> {
        make_keys::of_hashes(hashes, width, &self.identity)
    }

    /// Counters by name: ``blocks`` and ``bytes`` in the view, ``hits``, ``misses`` and of these
    /// ``bad`` (replaced since, rotten or unreadable), ``lookup_hits``, ``lookup_misses``,
    /// ``bytes_out``, ``pages_unreadable``. Works after close too.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (open, stats) = self.stats_now();
        let named = PyDict::new(py);
        named.set_item("state", if open { "open" } else { "closed" })?;
        for (name, value) in [
            ("blocks", stats.blocks),
            ("bytes", stats.bytes),
            ("hits", stats.hits),
            ("misses", stats.misses),
            ("bad", stats.bad),
            ("lookup_hits", stats.lookup_hits),
            ("lookup_misses", stats.lookup_misses),
            ("bytes_out", stats.bytes_out),
            ("pages_unreadable", stats.pages_unreadable),
        ] {
            named.set_item(name, value)?;
        }
        Ok(named)
    }

    /// Closes the files; later calls raise StoreClosedError, but for ``stats``.
    fn close(&self) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(open) = &*view {
            *view = Err(open.stats());
        }
    }

    /// The layout whose blocks it holds; None where its description is missing or not understood.
    #[getter]
    fn layout(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.layout.as_ref().map(|layout| layout.clone_ref(py))
    }

    /// Largest block, in bytes.
    #[getter]
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Identity of layout, namespace and salt: 16 bytes.
    #[getter]
    fn fingerprint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.identity.fingerprint.0)
    }

    /// The directory: ``<root>/<fingerprint>/<member>``.
    #[getter]
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// What its owner should look at, one sentence each.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// Whether it has been closed.
    #[getter]
    fn closed(&self) -> bool {
        self.state().is_err()
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        slf.get().open(py)?;
        Ok(slf)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.close();
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(no_pickle("ReadOnlyStore"))
    }

    fn __repr__(&self) -> String {
        let (open, stats) = self.stats_now();
        let state = if open { "open" } else { "closed" };
        let blocks = show::grouped(stats.blocks);
        format!("ReadOnlyStore({blocks} blocks, {}, {state})", self.path.display())
    }
}

/// Opens a frozen view; ``read_layout`` makes a layout, or None, of its description.
#[pyfunction]
#[pyo3(name = "_open_readonly")]
pub fn open_readonly(
    py: Python<'_>,
    path: PathBuf,
    read_layout: &Bound<'_, PyAny>,
) -> PyResult<ReadOnlyStore> {
    let view = py.detach(|| core::Snapshot::open(&path)).or_raise(py)?;
    let layout = view.layout().map(|text| read_layout.call1((text,))).transpose()?;
    let layout = layout.filter(|layout| !layout.is_none());
    let tokens = layout.as_ref().map(|layout| layout.getattr("block_tokens")?.extract());
    let block_tokens = tokens.transpose()?.flatten();
    let fingerprint = Fingerprint(view.fingerprint());
    Ok(ReadOnlyStore {
        layout: layout.map(Bound::unbind),
        identity: Identity { fingerprint, block_tokens },
        block_bytes: view.block_bytes(),
        path: view.path().to_owned(),
        warnings: view.warnings().to_vec(),
        view: RwLock::new(Ok(Arc::new(view))),
    })
}

/// What a root or a member's directory holds, one dict a member; for ``keystow inspect``.
#[pyfunction]
#[pyo3(name = "_inspect")]
pub fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyList>> {
    let found = py.detach(|| core::inspect(&path)).or_raise(py)?;
    let all = PyList::empty(py);
    for member in &found {
        all.append(described(py, member)?)?;
    }
    Ok(all)
}

fn described<'py>(py: Python<'py>, member: &Inspected) -> PyResult<Bound<'py, PyDict>> {
    let named = PyDict::new(py);
    named.set_item("path", member.path.display().to_string())?;
    named.set_item("fingerprint", &member.fingerprint)?;
    named.set_item("member", &member.member)?;
    named.set_item("locked", member.locked)?;
    named.set_item("bytes", member.bytes)?;
    named.set_item("error", member.contents.as_ref().err().map(|e| refusal(py, e)).transpose()?)?;
    let contents = member.contents.as_ref().ok();
    named.set_item("contents", contents.map(|it| contents_of(py, it)).transpose()?)?;
    Ok(named)
}

/// What an error says, as a dict.
pub fn refusal<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyDict>> {
    let named = PyDict::new(py);
    named.set_item("code", error.code)?;
    named.set_item("message", &error.message)?;
    named.set_item("hint", &error.hint)?;
    Ok(named)
}

fn contents_of<'py>(py: Python<'py>, contents: &Contents) -> PyResult<Bound<'py, PyDict>> {
    let named = PyDict::new(py);
    named.set_item("format_version", contents.format_version)?;
    named.set_item("layout", &contents.layout)?;
    named.set_item("block_bytes", contents.block_bytes)?;
    named.set_item("stride_bytes", contents.stride_bytes)?;
    named.set_item("slots", contents.slots)?;
    named.set_item("slots_used", contents.slots_used)?;
    named.set_item("live", contents.live)?;
    named.set_item("live_bytes", contents.live_bytes)?;
    named.set_item("chains", contents.chains)?;
    named.set_item("orphans", contents.orphans)?;
    named.set_item("stale", contents.stale)?;
    named.set_item("insane", contents.insane)?;
    named.set_item("losers", contents.losers)?;
    named.set_item("cycles", contents.cycles)?;
    named.set_item("epoch", contents.epoch)?;
    named.set_item("clear_epoch", contents.clear_epoch)?;
    named.set_item("clean", contents.clean)?;
    named.set_item("pages", contents.pages)?;
    named.set_item("pages_unreadable", contents.pages_unreadable)?;
    named.set_item("oldest_use_unix_s", contents.oldest_use_unix_s)?;
    named.set_item("newest_use_unix_s", contents.newest_use_unix_s)?;
    named.set_item("warnings", &contents.warnings)?;
    Ok(named)
}

/// Reads every block of the stores that a path names; for ``keystow verify``. ``progress`` is told
/// blocks done and in all.
#[pyfunction]
#[pyo3(name = "_verify", signature = (path, bytes_per_s=None, progress=None))]
pub fn verify<'py>(
    py: Python<'py>,
    path: PathBuf,
    bytes_per_s: Option<u64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    check_rate(py, bytes_per_s)?;
    let mut raised = None;
    let mut hear = |done: u64, all: u64| {
        let heard = Python::attach(|py| {
            py.check_signals()?;
            progress.as_ref().map(|progress| progress.call1(py, (done, all))).transpose()
        });
        // What was raised ends the verification and is raised again below.
        raised = raised.take().or(heard.err());
        raised.is_none()
    };
    let found = py.detach(|| core::verify(&path, bytes_per_s, &mut hear));
    if let Some(raised) = raised {
        return Err(raised);
    }
    let found = found.or_raise(py)?;
    let failed = PyList::empty(py);
    for (path, error) in &found.failed {
        let named = refusal(py, error)?;
        named.set_item("path", path.display().to_string())?;
        failed.append(named)?;
    }
    let named = PyDict::new(py);
    named.set_item("blocks", found.blocks)?;
    named.set_item("bytes", found.bytes)?;
    named.set_item("good", found.good)?;
    named.set_item("bad", found.bad)?;
    named.set_item("unreadable", found.unreadable)?;
    named.set_item("changed", found.changed)?;
    named.set_item("pages_unreadable", found.pages_unreadable)?;
    named.set_item("failed", failed)?;
    named.set_item("sound", found.is_sound())?;
    named.set_item("seconds", found.seconds)?;
    Ok(named)
}

fn check_rate(py: Python<'_>, bytes_per_s: Option<u64>) -> PyResult<()> {
    if bytes_per_s != Some(0) {
        return Ok(());
    }
    let message = "bytes_per_s=0 reads nothing.";
    let hint = "give bytes a second from 1 on, or leave it out for no limit.";
    Err(exception(py, &Error::new(ErrorKind::Config, "KS-CFG-155", message, hint)))
}

/// What ``Store.verify`` found.
#[pyclass(frozen, eq, module = "keystow._core")]
#[derive(PartialEq)]
pub struct Scrubbed {
    /// Copies on SSD read and found right.
    #[pyo3(get)]
    blocks: u64,
    /// Their payload.
    #[pyo3(get)]
    bytes: u64,
    /// Copies that were bad, and have been given up: written again from RAM, or misses from now on.
    #[pyo3(get)]
    bad: u64,
    /// Copies that could not be read now, the device being slow or left alone.
    #[pyo3(get)]
    skipped: u64,
    /// All of the SSD tier has been seen.
    #[pyo3(get)]
    done: bool,
}

#[pymethods]
impl Scrubbed {
    fn __repr__(&self) -> String {
        let Self { blocks, bytes, bad, skipped, done } = self;
        let done = if *done { "True" } else { "False" };
        format!(
            "Scrubbed(blocks={blocks}, bytes={bytes}, bad={bad}, skipped={skipped}, done={done})"
        )
    }
}

/// The scrub of an open store, which a signal ends.
pub fn scrub(
    py: Python<'_>,
    store: &core::Store,
    bytes_per_s: Option<u64>,
    timeout_s: Option<f64>,
) -> PyResult<Scrubbed> {
    check_rate(py, bytes_per_s)?;
    let (time, begun) = (options::wait(py, "timeout_s", timeout_s)?, Instant::now());
    let mut found = core::Scrubbed::default();
    loop {
        let left = time.saturating_sub(begun.elapsed()).min(SLICE);
        let more = py.detach(|| store.verify_more(&mut found, bytes_per_s, left)).or_raise(py)?;
        py.check_signals()?;
        if !more || begun.elapsed() >= time {
            let core::Scrubbed { blocks, bytes, bad, skipped, done, .. } = found;
            return Ok(Scrubbed { blocks, bytes, bad, skipped, done });
        }
    }
}
