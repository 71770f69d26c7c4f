//! `Stats`, `Event` and `Closed`: what the store tells, as plain frozen values.
//!
//! Owns: the Python classes and their order of fields. Never does: counting.

use keystow_core::error::Error;
use keystow_core::store::{self as core, EventKind};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyTuple};

/// Declares `Stats` once: fields of the store, then fields of its SSD tier with the core's names.
macro_rules! stats {
    (
        store { $($(#[doc = $doc:literal])* $field:ident,)+ }
        ssd { $($(#[doc = $ssd_doc:literal])* $ssd_field:ident: $of_core:ident,)+ }
    ) => {
        /// Counters of a store at one moment; all counts since it was opened.
        ///
        /// They reconcile: ``hits + misses`` = blocks asked of get, get_each and lease; ``puts +
        /// put_present + put_duplicate + put_short`` = blocks asked of put; ``blocks`` = ``puts +
        /// put_again + recovered - evictions - removed - cleared - ssd_lost - ssd_given_up`` =
        /// ``blocks_ram`` + those on SSD only. Without ``ssd=`` the fields of the tier are 0, False
        /// or "".
        #[pyclass(frozen, eq, module = "keystow._core")]
        #[derive(Clone, Default, PartialEq)]
        pub struct Stats {
            /// ``open``, ``closed`` or ``poisoned`` (after an internal fault: lookups miss).
            #[pyo3(get)]
            pub(crate) state: &'static str,
            /// The policy of memory nodes in force and its nodes, such as ``interleave:0-1``; empty
            /// without ``numa=``, and where it was refused (see ``fallbacks``).
            #[pyo3(get)]
            numa: String,
            $($(#[doc = $doc])* #[pyo3(get)] pub(crate) $field: u64,)+
            /// ``ok``; ``degraded``: one of several devices is left alone; ``off`` after too many
            /// faults, or where the directory could not be opened (RAM goes on alone);
            /// ``probing``: about to be trusted again; ``waiting``: another
            /// store has the directory; ``recovering``: its blocks are coming in; empty without
            /// ``ssd=``.
            #[pyo3(get)]
            pub(crate) ssd_state: &'static str,
            /// What does the I/O: ``pool`` or ``sim``.
            #[pyo3(get)]
            ssd_engine: &'static str,
            /// Whether transfers bypass the page cache (O_DIRECT).
            #[pyo3(get)]
            ssd_direct: bool,
            /// The disk did not confirm, at close, that everything was written.
            #[pyo3(get)]
            ssd_unclean: bool,
            $($(#[doc = $ssd_doc])* #[pyo3(get)] pub(crate) $ssd_field: u64,)+
            /// Seconds that it took to find the recovered blocks.
            #[pyo3(get)]
            recovery_s: f64,
            fallbacks: Vec<String>,
        }

        impl Stats {
            /// The counters of a store now.
            pub fn of(store: &core::Store) -> Self {
                let stats = store.stats();
                let ssd = stats.ssd.unwrap_or_default();
                Self {
                    state: stats.state,
                    numa: stats.numa,
                    $($field: stats.$field,)+
                    ssd_state: ssd.state,
                    ssd_engine: ssd.engine,
                    ssd_direct: ssd.direct,
                    ssd_unclean: ssd.unclean,
                    $($ssd_field: ssd.$of_core,)+
                    recovery_s: ssd.recovery_us as f64 / 1e6,
                    fallbacks: stats.fallbacks,
                }
            }

            /// All fields by name, in order.
            fn fields<'py>(
                &self,
                py: Python<'py>,
            ) -> PyResult<Vec<(&'static str, Bound<'py, PyAny>)>> {
                let fallbacks = PyTuple::new(py, &self.fallbacks)?;
                Ok(vec![
                    ("state", self.state.into_bound_py_any(py)?),
                    ("numa", (&self.numa).into_bound_py_any(py)?),
                    $((stringify!($field), self.$field.into_bound_py_any(py)?),)+
                    ("ssd_state", self.ssd_state.into_bound_py_any(py)?),
                    ("ssd_engine", self.ssd_engine.into_bound_py_any(py)?),
                    ("ssd_direct", self.ssd_direct.into_bound_py_any(py)?),
                    ("ssd_unclean", self.ssd_unclean.into_bound_py_any(py)?),
                    $((stringify!($ssd_field), self.$ssd_field.into_bound_py_any(py)?),)+
                    ("recovery_s", self.recovery_s.into_bound_py_any(py)?),
                    ("fallbacks", fallbacks.into_any()),
                ])
            }
        }
    };
}

stats! {
    store {
        /// Frames of the arena: room for one block each.
        frames_total,
        /// Frames without a block.
        frames_free,
        /// Frames that leases and pinned matches keep.
        frames_pinned,
        /// Blocks that can be found, in any tier.
        blocks,
        /// Blocks that can be found in RAM.
        blocks_ram,
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
        /// Blocks evicted from the store to make room.
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
        /// Threads that share a large put or get, the caller's own included.
        copy_threads,
        /// Large puts and gets that they shared.
        copies_shared,
    }
    ssd {
        /// Bytes of memory registered with the kernel for transfers, once for each device; 0
        /// where the limit of locked memory forbids it (``ulimit -l``), and without io_uring.
        ssd_registered_bytes: registered_bytes,
        /// Devices of the tier.
        ssd_devices: devices,
        /// Of them left alone after too many faults; which, is in ``fallbacks``.
        ssd_devices_away: devices_away,
        /// Room for so many blocks.
        ssd_slots_total: slots_total,
        /// Room without a block.
        ssd_slots_free: slots_free,
        /// Slots not used again after a fault.
        ssd_quarantined: quarantined,
        /// Blocks on SSD, those included that are in RAM too.
        ssd_blocks: blocks,
        /// Blocks written.
        ssd_writes: writes,
        /// Bytes of them.
        ssd_write_bytes: write_bytes,
        /// Writes that came to nothing: failed, or removed or cleared meanwhile.
        ssd_writes_lost: writes_lost,
        /// Blocks read and verified.
        ssd_reads: reads,
        /// Bytes of them.
        ssd_read_bytes: read_bytes,
        /// Reads not begun because the device is left alone.
        ssd_reads_refused: reads_refused,
        /// Blocks that came back to RAM.
        ssd_promotions: promotions,
        /// Blocks that left RAM and stayed on SSD.
        ssd_demotions: demotions,
        /// Blocks that left SSD, and so the store, to make room; part of ``evictions``.
        ssd_evictions: evictions,
        /// Blocks put straight to SSD, past a full RAM.
        ssd_staged: staged,
        /// Chains written within the write budget, or without one.
        ssd_admitted_under: admitted_under,
        /// Chains written beyond the budget: hit, retained, refused before, or with a child on SSD.
        ssd_admitted_over: admitted_over,
        /// Chains not written for want of write budget.
        ssd_refused: refused,
        /// Blocks not written for want of room, each time it was tried.
        ssd_no_slot: no_slot,
        /// Blocks that left RAM unwritten: their user had retired them.
        ssd_dropped_retired: dropped_retired,
        /// Blocks that left RAM unwritten: over the write budget, or in a followed directory.
        ssd_dropped_refused: dropped_refused,
        /// Blocks that left RAM unwritten: a put had waited long enough.
        ssd_dropped_waited: dropped_waited,
        /// Blocks that left RAM unwritten: the device is left alone.
        ssd_dropped_off: dropped_off,
        /// Blocks not written because a followed directory has them (``replicated=True``).
        ssd_replica_skips: replica_skips,
        /// Directories that are followed.
        followed_members: followed_members,
        /// Blocks delivered from them, verified; part of ``hits``.
        followed_hits: followed_hits,
        /// Bytes of them.
        followed_hit_bytes: followed_hit_bytes,
        /// Blocks of them not delivered: their bytes were not those that were written, or gone.
        followed_bad: followed_bad,
        /// Table pages read in them.
        followed_pages: followed_pages,
        /// Times that a whole table was read, where its owner tells of changes.
        followed_scans: followed_scans,
        /// Bytes of what is known of them, outside ``ram=``.
        followed_index_bytes: followed_index_bytes,
        /// Blocks whose only copy could not be read or was wrong.
        ssd_lost: lost,
        /// Blocks given up whose only copy was on a device that is left alone, when they were put
        /// again.
        ssd_given_up: given_up,
        /// Copies whose bytes were not those that were written.
        ssd_bad_tags: bad_tags,
        /// Requests that failed.
        ssd_io_errors: io_errors,
        /// Requests that found the disk full.
        ssd_disk_full: disk_full,
        /// Requests that moved less than asked.
        ssd_short_transfers: short_transfers,
        /// Requests that took longer than ``io_timeout_s``.
        ssd_late: late,
        /// Times that the device was left alone after too many faults.
        ssd_breaker_opened: breaker_opened,
        /// Requests that were to tell whether it can be trusted again.
        ssd_probes: probes,
        /// Times that it was.
        ssd_breaker_closed: breaker_closed,
        /// Table pages written.
        ssd_page_writes: page_writes,
        /// Table pages that were unreadable at open.
        ssd_pages_bad: pages_bad,
        /// Table pages that differ from the disk.
        ssd_table_pages_dirty: table_pages_dirty,
        /// Requests that are out.
        ssd_requests_in_flight: requests_in_flight,
        /// Blocks in the directory that count: ``recovered`` of them have come back.
        recovery_all: recovery_all,
        /// Blocks found on SSD when the store was opened.
        recovered: recovered,
        /// Bytes of them.
        recovered_bytes: recovered_bytes,
        /// Of them blocks whose parent was not found.
        recovered_orphans: recovered_orphans,
    }
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
        for (name, value) in self.fields(py)? {
            all.set_item(name, value)?;
        }
        Ok(all)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut parts = Vec::new();
        for (name, value) in self.fields(py)? {
            parts.push(format!("{name}={}", value.repr()?));
        }
        Ok(format!("Stats({})", parts.join(", ")))
    }
}

/// One change of what the store holds; unpacks as (sequence, kind, key, tier).
#[pyclass(frozen, eq, hash, module = "keystow._core")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// Rises by one an event; a gap means that events were dropped.
    #[pyo3(get)]
    sequence: u64,
    /// ``stored``, ``removed`` (evicted or removed by name, from this tier) or ``cleared``.
    #[pyo3(get)]
    kind: &'static str,
    key: Option<[u8; 16]>,
    /// Where: ``ram`` or ``ssd``; empty for ``cleared``, which is everywhere.
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
