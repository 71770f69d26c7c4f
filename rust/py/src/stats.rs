//! `Stats`, `Event` and `Closed`: what the store tells, as plain frozen values.
//!
//! Owns: the Python classes and their order of fields. Never does: counting.

use keystow_core::error::Error;
use keystow_core::store::{self as core, EventKind};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyTuple};

/// Declares `Stats` once: fields, conversion, names.
macro_rules! stats {
    ($($(#[doc = $doc:literal])* $field:ident),+ $(,)?) => {
        /// Counters of a store at one moment; all counts since it was opened.
        ///
        /// They reconcile: ``hits + misses`` = blocks asked of get, get_each and lease; ``puts +
        /// put_present + put_duplicate + put_short`` = blocks asked of put; ``blocks`` = ``puts +
        /// put_again - evictions - removed - cleared``.
        #[pyclass(frozen, eq, module = "keystow._core")]
        #[derive(Clone, Default, PartialEq, Eq)]
        pub struct Stats {
            /// ``open``, ``closed`` or ``poisoned`` (after an internal fault: lookups miss).
            #[pyo3(get)]
            pub(crate) state: &'static str,
            $($(#[doc = $doc])* #[pyo3(get)] pub(crate) $field: u64,)+
            fallbacks: Vec<String>,
        }

        impl Stats {
            /// The counters of a store now.
            pub fn of(store: &core::Store) -> Self {
                let stats = store.stats();
                Self { state: stats.state, $($field: stats.$field,)+ fallbacks: stats.fallbacks }
            }

            fn numbers(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field)),+]
            }
        }
    };
}

stats! {
    /// Frames of the arena: room for one block each.
    frames_total,
    /// Frames without a block.
    frames_free,
    /// Frames that leases and pinned matches keep.
    frames_pinned,
    /// Blocks that can be found.
    blocks,
    /// Bytes of those blocks, as put.
    bytes_resident,
    /// Blocks delivered by get, get_each and lease.
    hits,
    /// Blocks asked of get, get_each and lease and not delivered.
    misses,
    /// Blocks found by match, match_prefix and contains.
    lookup_hits,
    /// Blocks asked of match, match_prefix and contains and not found.
    lookup_misses,
    /// Blocks stored by put.
    puts,
    /// Blocks of puts that were there already.
    put_present,
    /// Blocks of puts that another call stored meanwhile.
    put_duplicate,
    /// Blocks of puts that found no room.
    put_short,
    /// Blocks stored and gone again before their put ended: stored once more, or cleared.
    put_again,
    /// Blocks evicted to make room.
    evictions,
    /// Blocks removed by name.
    removed,
    /// Blocks that clear took away.
    cleared,
    /// Touches lost to a full ring: recency is a little staler.
    touches_dropped,
    /// Events lost because nobody fetched them.
    events_dropped,
    /// Misses during which the index changed: the block may have been there.
    spurious_misses,
    /// Inserts refused by a full part of the index.
    index_full,
    /// Bytes copied in by put.
    bytes_in,
    /// Bytes copied out by get and get_each.
    bytes_out,
    /// Bytes of the arena faulted in so far.
    prefault_bytes,
    /// Bytes of the arena backed by huge pages.
    huge_bytes,
    /// Bytes of the index, outside ``ram=``.
    index_bytes,
    /// Times the one lock was held.
    lock_holds,
    /// Most blocks handled in one hold.
    lock_blocks_max,
    /// Steps of the eviction policy.
    policy_steps,
}

#[pymethods]
impl Stats {
    /// What the store had to do without (huge pages, ...), one sentence each.
    #[getter]
    fn fallbacks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.fallbacks)
    }

    /// All fields by name.
    fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        all.set_item("state", self.state)?;
        for (name, number) in self.numbers() {
            all.set_item(name, number)?;
        }
        all.set_item("fallbacks", self.fallbacks(py)?)?;
        Ok(all)
    }

    fn __repr__(&self) -> String {
        let mut text = format!("Stats(state='{}'", self.state);
        for (name, number) in self.numbers() {
            text += &format!(", {name}={number}");
        }
        text + &format!(", fallbacks={:?})", self.fallbacks)
    }
}

/// One change of what the store holds; unpacks as (sequence, kind, key, tier).
#[pyclass(frozen, eq, hash, module = "keystow._core")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// Rises by one an event; a gap means that events were dropped.
    #[pyo3(get)]
    sequence: u64,
    /// ``stored``, ``removed`` (evicted or removed by name) or ``cleared``.
    #[pyo3(get)]
    kind: &'static str,
    key: Option<[u8; 16]>,
    /// Where: ``ram``.
    #[pyo3(get)]
    tier: &'static str,
}

impl Event {
    /// What happened in a store since the last call.
    pub fn take(store: &core::Store) -> Result<Vec<Self>, Error> {
        let events = store.events()?.into_iter().map(|event| Self {
            sequence: event.sequence,
            kind: match event.kind {
                EventKind::Stored => "stored",
                EventKind::Removed => "removed",
                EventKind::Cleared => "cleared",
            },
            key: event.key.map(|key| key.0),
            tier: event.tier,
        });
        Ok(events.collect())
    }
}

#[pymethods]
impl Event {
    /// The block's key: 16 bytes; None for ``cleared``.
    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.key.map(|key| PyBytes::new(py, &key))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        (self.sequence, self.kind, self.key(py), self.tier).into_pyobject(py)?.try_iter()
    }

    fn __repr__(&self) -> String {
        let key = match self.key {
            Some(key) => format!("{:032x}", u128::from_be_bytes(key)),
            None => "None".into(),
        };
        format!("Event({}, {}, {key}, {})", self.sequence, self.kind, self.tier)
    }
}

/// What close did; unpacks as (written, left).
#[pyclass(frozen, eq, hash, module = "keystow._core")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Closed {
    /// Blocks written to a tier that outlives the store.
    #[pyo3(get)]
    written: u64,
    /// Blocks that were in RAM only, and are gone.
    #[pyo3(get)]
    left: u64,
}

impl From<core::Closed> for Closed {
    fn from(closed: core::Closed) -> Self {
        Self { written: closed.written, left: closed.left }
    }
}

#[pymethods]
impl Closed {
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        (self.written, self.left).into_pyobject(py)?.try_iter()
    }

    fn __repr__(&self) -> String {
        format!("Closed(written={}, left={})", self.written, self.left)
    }
}
