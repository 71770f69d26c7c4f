//! `Store`: the verbs, each a conversion in, one call with the interpreter released, and a
//! conversion out.
//!
//! Owns: the Python class that `keystow.Store` derives from. Never does: decisions, or parsing of
//! sizes and options (`keystow.store` does). Invariant: arguments are checked in full before the
//! core is called, so a call that raises for them changes nothing.

use std::sync::Arc;
use std::time::Duration;

use keystow_core::error::Error;
use keystow_core::key::Key;
use keystow_core::store as core;
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors::{OrRaise, no_pickle};
use crate::handle::Handle;
use crate::inspect::{self, Scrubbed};
use crate::keys::Keys;
use crate::lease::{Lease, Pinned};
use crate::make_keys::{self, Asked, Identity, Namespace};
use crate::matched::Match;
use crate::memory::{Access, Batch};
use crate::ssd::{self, Device};
use crate::stats::{Closed, Event, Stats};
use crate::{FEW_KEYS, options, show};

/// What the end of a ``with`` block waits for the disk: as long as a close without arguments.
const CLOSE_S: f64 = 20.0;

/// Blocks of KV cache in RAM and on SSD, found by chained keys. ``keystow.Store`` parses the
/// options.
#[pyclass(frozen, subclass, weakref, module = "keystow._core")]
pub struct Store {
    handle: Arc<Handle>,
    layout: Py<PyAny>,
    namespace: String,
    policy: String,
    ram_bytes: u64,
}

impl Store {
    /// Calls the core on checked keys, with the interpreter released unless they are few.
    #[inline]
    fn look<T: Send>(
        &self,
        keys: &Bound<'_, PyAny>,
        call: impl FnOnce(&core::Store, &[Key]) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let py = keys.py();
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let store = self.handle.open(py)?;
        if asked.packed.len() <= FEW_KEYS && !store.follows() {
            call(&store, &asked.packed).or_raise(py)
        } else {
            py.detach(|| call(&store, &asked.packed)).or_raise(py)
        }
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (*, layout, block_bytes, ram_bytes, policy, namespace, salt, deterministic,
        manual_clock, prefault_now, numa, copy_threads, put_wait_s, io_timeout_s, ssd,
        progress=None, said=None))]
    #[expect(clippy::too_many_arguments, reason = "one a named option of the Python facade")]
    fn new(
        py: Python<'_>,
        layout: &Bound<'_, PyAny>,
        block_bytes: u64,
        ram_bytes: u64,
        policy: String,
        namespace: String,
        salt: Namespace,
        deterministic: bool,
        manual_clock: bool,
        prefault_now: bool,
        numa: Option<String>,
        copy_threads: usize,
        put_wait_s: f64,
        io_timeout_s: f64,
        ssd: Option<Device>,
        progress: Option<&Bound<'_, PyAny>>,
        said: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let identity = Identity::of(layout, namespace.as_bytes(), &salt.0)?;
        let ssd = ssd.map(|ssd| ssd.config(layout, &identity)).transpose()?;
        let config = core::StoreConfig {
            ram_bytes,
            block_bytes,
            policy: options::policy(py, &policy)?,
            deterministic,
            manual_clock,
            prefault: if prefault_now { core::Prefault::Now } else { core::Prefault::Background },
            numa: numa.map(|numa| options::numa(py, &numa)).transpose()?,
            copy_threads,
            put_wait: options::wait(py, "put_wait_s", Some(put_wait_s))?,
            io_timeout: options::wait(py, "io_timeout_s", Some(io_timeout_s))?,
            ssd,
        };
        let store = ssd::open(py, &config, progress, said)?;
        let handle = Arc::new(Handle::new(store, identity));
        Ok(Self { handle, layout: layout.clone().unbind(), namespace, policy, ram_bytes })
    }

    /// Stores blocks under their keys; returns the number of leading blocks now stored.
    ///
    /// ``keys``: ``Keys`` of this store, a packed buffer of 16-byte keys, or a list of an engine's
    /// hashes. ``blocks``: one C-contiguous array with a leading axis of ``len(keys)`` (bytes-like,
    /// numpy, torch on the CPU; any shape and dtype), or a sequence of that many; a row is at most
    /// ``block_bytes`` long. Blocks already present are not copied again. It stops early only where
    /// everything is held by leases, and never raises for load.
    ///
    /// ``parent``: the key before the first one (``Keys`` or 16 bytes; a slice of ``Keys`` knows
    /// it). ``chained=False``: every block is a root. ``priority``: -1, 0 or 1. ``timeout_s``:
    /// seconds to wait for room, None for the store's ``put_wait_s``.
    ///
    /// Raises LayoutError, KeyFormatError or ConfigError for bad arguments, before anything
    /// changes, and StoreClosedError.
    #[pyo3(signature = (keys, blocks, *, parent=None, chained=true, priority=0, pool=None,
        timeout_s=None))]
    #[expect(clippy::too_many_arguments, reason = "one a named option of the verb")]
    fn put(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        blocks: &Bound<'_, PyAny>,
        parent: Option<&Bound<'_, PyAny>>,
        chained: bool,
        priority: i64,
        pool: Option<&Bound<'_, PyAny>>,
        timeout_s: Option<f64>,
    ) -> PyResult<usize> {
        let print = &self.handle.identity.fingerprint;
        let asked = Asked::of(keys, print)?;
        let parent = match parent {
            Some(parent) => make_keys::parent_key(parent, print)?,
            None => asked.parent,
        };
        options::none_yet("pool", pool)?;
        options::priority(py, priority)?;
        let wait = options::seconds(py, "timeout_s", timeout_s)?;
        let batch = Batch::of(blocks, asked.packed.len(), Access::Read, "blocks")?;
        let store = self.handle.open(py)?;
        let rows = batch.rows();
        let options = core::PutOptions { parent, chained, wait };
        py.detach(|| store.put(&asked.packed, &rows, &options)).or_raise(py)
    }

    /// Copies the leading blocks the store has into ``out``; returns their number.
    ///
    /// ``out``: writable, C-contiguous, a leading axis of ``len(keys)`` or a sequence of that many
    /// (bytearray, memoryview, numpy, torch on the CPU); a row is at least as long as its block,
    /// the rest of the row is left alone. Rows from the returned number on may have been written.
    /// Fewer blocks than matched is normal, wrong bytes are not.
    ///
    /// Raises LayoutError, KeyFormatError or ConfigError for bad arguments, and StoreClosedError.
    #[pyo3(signature = (keys, out, *, timeout_s=None))]
    fn get(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        timeout_s: Option<f64>,
    ) -> PyResult<usize> {
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let timeout = options::seconds(py, "timeout_s", timeout_s)?;
        let batch = Batch::of(out, asked.packed.len(), Access::Write, "out")?;
        let store = self.handle.open(py)?;
        let mut rows = batch.rows_mut();
        py.detach(|| store.get_within(&asked.packed, &mut rows, timeout)).or_raise(py)
    }

    /// Copies every block the store has into its row of ``out``; says for each whether it did.
    ///
    /// For independent blocks: a missing one does not end the run. Arguments and errors as ``get``.
    fn get_each(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<bool>> {
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let batch = Batch::of(out, asked.packed.len(), Access::Write, "out")?;
        let store = self.handle.open(py)?;
        let mut rows = batch.rows_mut();
        py.detach(|| store.get_each(&asked.packed, &mut rows)).or_raise(py)
    }

    /// How many leading blocks the store has, and where: a ``Match``.
    ///
    /// It neither moves nor touches anything; ``pin=True`` keeps the blocks, in RAM or on SSD,
    /// until the match is released (it is a context manager); it counts this store's own blocks
    /// alone. ``require`` is for stores with several pools: None only.
    #[pyo3(name = "match", signature = (keys, pin=false, require=None))]
    fn match_(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        pin: bool,
        require: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Match> {
        options::none_yet("require", require)?;
        let packed = Asked::of(keys, &self.handle.identity.fingerprint)?.packed;
        let store = self.handle.open(py)?;
        let call = || -> Result<_, Error> {
            if !pin {
                return Ok((store.match_run(&packed)?, None));
            }
            let (lease, found) = store.match_pinned(&packed)?;
            Ok((found, Some(Pinned::new(lease))))
        };
        let few = packed.len() <= FEW_KEYS && !pin && !store.follows();
        let (found, pinned) = if few { call() } else { py.detach(call) }.or_raise(py)?;
        Ok(Match::new(Arc::clone(&self.handle), packed, found, pinned))
    }

    /// Number of leading blocks the store has. Neither moves nor touches anything.
    fn match_prefix(&self, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.look(keys, |store, keys| store.match_prefix(keys))
    }

    /// For each key whether the store has its block. Neither moves nor touches anything.
    fn contains(&self, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        self.look(keys, |store, keys| store.contains(keys))
    }

    /// Pins the leading blocks in RAM for reading without a copy: a ``Lease``. Those on SSD are
    /// read first, as far as there is room.
    ///
    /// Raises CapacityError if there are fewer than ``min_blocks``; then nothing stays pinned.
    #[pyo3(signature = (keys, min_blocks=0))]
    fn lease(&self, keys: &Bound<'_, PyAny>, min_blocks: i64) -> PyResult<Lease> {
        let py = keys.py();
        let min_blocks = options::count(py, "min_blocks", min_blocks)?;
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let store = self.handle.open(py)?;
        let lease = py.detach(|| store.lease(&asked.packed, min_blocks)).or_raise(py)?;
        Ok(Lease::new(Pinned::new(lease)))
    }

    /// Marks leading blocks as just used, for hits served elsewhere; returns their number.
    fn touch(&self, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let (py, store) = (keys.py(), self.handle.open(keys.py())?);
        py.detach(|| store.touch(&asked.packed)).or_raise(py)
    }

    /// Hint: these blocks will not be asked for again. Returns how many are first in line to leave.
    ///
    /// ``certain=True`` is a command for callers that know: from the last block that is there up to
    /// the first one with another child, tail first. They are found as before until they leave, and
    /// a hit takes them back. ``certain=False`` is a guess for policies that learn; lru and arc
    /// take no notice of it.
    #[pyo3(signature = (keys, certain=true))]
    fn retire(&self, keys: &Bound<'_, PyAny>, certain: bool) -> PyResult<usize> {
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let (py, store) = (keys.py(), self.handle.open(keys.py())?);
        if !certain {
            return Ok(0);
        }
        py.detach(|| store.retire(&asked.packed)).or_raise(py)
    }

    /// Hint: keep the leading blocks for ``seconds``, as long as anything else can leave.
    ///
    /// At most half the frames are retained; beyond that the soonest deadline yields. 0 ends it.
    /// Never a reason to refuse room to others. Returns how many blocks are retained.
    fn retain(&self, keys: &Bound<'_, PyAny>, seconds: f64) -> PyResult<usize> {
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let (py, store) = (keys.py(), self.handle.open(keys.py())?);
        let time = options::seconds(py, "seconds", Some(seconds))?.unwrap_or_default();
        py.detach(|| store.retain(&asked.packed, time)).or_raise(py)
    }

    /// Removes the blocks of these keys, wherever they stand; returns how many there were.
    ///
    /// Once it has returned, a get finds only bytes put after it. Leased blocks stay readable to
    /// their leases. ``durable``: also from the disk before it returns, older copies of the same
    /// keys included; else with the next flush or within a second.
    ///
    /// Raises SsdError where the disk does not confirm: the blocks are gone from this store, but a
    /// restart may bring them back.
    #[pyo3(signature = (keys, durable=true))]
    fn remove(&self, keys: &Bound<'_, PyAny>, durable: bool) -> PyResult<usize> {
        let asked = Asked::of(keys, &self.handle.identity.fingerprint)?;
        let (py, store) = (keys.py(), self.handle.open(keys.py())?);
        py.detach(|| store.remove(&asked.packed, durable)).or_raise(py)
    }

    /// Forgets everything: once it has returned, a get finds only bytes of puts begun after it,
    /// also after a restart. Use it when the weights change.
    ///
    /// Raises SsdError where the disk does not confirm, as ``remove``.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.handle.open(py)?;
        py.detach(|| store.clear()).or_raise(py)
    }

    /// Writes what is only in RAM to SSD, as far as there is room, and brings it to stable storage.
    ///
    /// Returns how many blocks are still in RAM only: 0 is a promise that a restart finds all of
    /// them. ``timeout_s``: None for no limit. Without ``ssd=`` nothing is written.
    #[pyo3(signature = (timeout_s=None))]
    fn flush(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<u64> {
        let time = options::wait(py, "timeout_s", timeout_s)?;
        let store = self.handle.open(py)?;
        ssd::flush(py, &store, time)
    }

    /// Closes the store: ``Closed(written, left)``; leaving a ``with`` block does it too.
    ///
    /// Its memory goes with the last lease and the last call in progress. ``timeout_s``: seconds
    /// for writing to SSD, None for no limit. Later calls raise StoreClosedError; ``stats()`` goes
    /// on telling. A store that is only forgotten gives its directory back without writing more.
    #[pyo3(signature = (timeout_s=20.0))]
    fn close(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Closed> {
        let time = options::wait(py, "timeout_s", timeout_s)?;
        Ok(self.handle.close(py, time).into())
    }

    /// Counters: ``Stats``. Works after close too.
    fn stats(&self, py: Python<'_>) -> Stats {
        self.handle.stats(py)
    }

    /// Changes since the last call, oldest first: a list of ``Event``. Bounded: what nobody
    /// fetches is dropped and counted in ``stats().events_dropped``. What was on SSD when the store
    /// was opened comes first.
    fn events(&self, py: Python<'_>) -> PyResult<Vec<Event>> {
        let store = self.handle.open(py)?;
        py.detach(|| Event::take(&store)).or_raise(py)
    }

    /// Keys of the full blocks of ``tokens`` under this store's layout, namespace and salt.
    ///
    /// As ``keystow.block_keys``. Raises LayoutError if the layout has no block_tokens.
    #[pyo3(signature = (tokens, extra=None, parent=None))]
    fn keys(
        &self,
        tokens: &Bound<'_, PyAny>,
        extra: Option<&Bound<'_, PyAny>>,
        parent: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Keys> {
        make_keys::of_tokens(tokens, extra, parent, &self.handle.identity)
    }

    /// Keys of an engine's own block hashes, as ``Keys.of``.
    #[pyo3(signature = (hashes, width=None))]
    fn keys_of(&self, hashes: &Bound<'_, PyAny>, width: Option<i64>) -> PyResult<Keys> {
        make_keys::of_hashes(hashes, width, &self.handle.identity)
    }

    /// Reads every block that is on SSD and compares its tag: ``Scrubbed``.
    ///
    /// At most ``bytes_per_s``, for at most ``timeout_s`` seconds (None: to the end). A bad copy is
    /// given up: the block is written again if it is in RAM too, else a miss from now on.
    ///
    /// Raises StoreClosedError; ConfigError for bad arguments.
    #[pyo3(signature = (bytes_per_s=None, timeout_s=None))]
    fn verify(
        &self,
        py: Python<'_>,
        bytes_per_s: Option<u64>,
        timeout_s: Option<f64>,
    ) -> PyResult<Scrubbed> {
        let store = self.handle.open(py)?;
        inspect::scrub(py, &store, bytes_per_s, timeout_s)
    }

    /// Recounts everything and compares; for tests. Raises AssertionError with what is wrong.
    fn _validate<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.handle.open(py)?;
        match py.detach(|| store.validate()) {
            Ok(recount) => show::recount(py, &recount),
            Err(wrong) => Err(PyAssertionError::new_err(wrong.join("; "))),
        }
    }

    /// Moves a manual clock by so many microseconds; for tests.
    fn _step(&self, py: Python<'_>, us: u64) -> PyResult<()> {
        let store = self.handle.open(py)?;
        py.detach(|| store.step(us));
        Ok(())
    }

    /// Ends a store on a simulated disk as a crash would and opens another on what is left of the
    /// disk; ``power`` also loses what was not confirmed. For tests.
    #[pyo3(signature = (seed, power=false))]
    fn _crash(&self, py: Python<'_>, seed: u64, power: bool) -> PyResult<()> {
        self.handle.crash(py, seed, power)
    }

    /// Panics under the core's lock; for tests.
    fn _panic(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.handle.open(py)?;
        py.detach(|| store.fault_panic_under_lock());
        Ok(())
    }

    /// The layout whose blocks it keeps.
    #[getter]
    fn layout(&self, py: Python<'_>) -> Py<PyAny> {
        self.layout.clone_ref(py)
    }

    /// The namespace its keys are made under.
    #[getter]
    fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Largest block, in bytes.
    #[getter]
    fn block_bytes(&self) -> u64 {
        self.handle.block_bytes
    }

    /// Identity of layout, namespace and salt: 16 bytes.
    #[getter]
    fn fingerprint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.handle.identity.fingerprint.0)
    }

    /// Whether it has been closed.
    #[getter]
    fn closed(&self) -> bool {
        self.handle.closed()
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        slf.get().handle.open(py)?;
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.handle.close(py, Duration::from_secs_f64(CLOSE_S));
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(no_pickle("Store"))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        show::store(&self.handle.stats(py), self.ram_bytes, &self.policy)
    }
}
