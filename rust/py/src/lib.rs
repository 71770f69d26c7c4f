//! `keystow._core`: the core as Python classes. Conversions only, no decisions.
//!
//! Owns: the shapes of Python arguments and results. Never does: parsing of options (the Python
//! facade), anything about blocks (the core), or importing torch or numpy.
//!
//! Invariants: every class is frozen; what an address points to is held by whoever can reach it;
//! no call waits, copies, or looks up more than `FEW_KEYS` keys while attached to the interpreter.
//!
//! One file a thing: `keys` and `make_keys`, `tokens`, `memory` (blocks and outs), `store` with its
//! `handle` and `ssd`, `matched`, `lease`, `stats`; `inspect` and `gc`; `probe`; `replay`;
//! `options`, `refuse` and `errors` for what goes wrong.

mod errors;
mod gc;
mod handle;
mod inspect;
mod keys;
mod lease;
mod make_keys;
mod matched;
mod memory;
mod options;
mod probe;
mod refuse;
mod replay;
mod show;
mod ssd;
mod stats;
mod store;
mod tokens;

/// Keys that a lookup may take while attached: about as long as letting go and coming back.
const FEW_KEYS: usize = 8;

/// The compiled part of keystow; use it through ``import keystow``.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use crate::gc::{directories, remove_directory};
    #[pymodule_export]
    use crate::inspect::{ReadOnlyStore, Scrubbed, inspect, open_readonly, verify};
    #[pymodule_export]
    use crate::keys::{Keys, keys_from_parts};
    #[pymodule_export]
    use crate::lease::Lease;
    #[pymodule_export]
    use crate::make_keys::{block_keys, fingerprint};
    #[pymodule_export]
    use crate::matched::Match;
    #[pymodule_export]
    use crate::probe::{
        cgroup_limits, cores, cpu_features, io_uring_refusal, probe_directory, probe_numa,
        probe_pages, ram_limit,
    };
    #[pymodule_export]
    use crate::replay::{Trace, replay};
    #[pymodule_export]
    use crate::stats::{Closed, Event, Stats};
    #[pymodule_export]
    use crate::store::Store;

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name Python gives it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Whether the compiler optimised: figures of a build without are worthless.
    #[pymodule_export]
    const OPTIMISED: bool = !cfg!(debug_assertions);

    /// Most threads at one copy.
    #[pymodule_export]
    const COPY_THREADS_MAX: usize = keystow_core::store::COPY_THREADS_MAX;

    /// Names of the I/O engines of an SSD tier.
    #[pymodule_export]
    const ENGINES: &[&str] = keystow_core::store::EngineKind::NAMES;

    /// Names of the eviction policies.
    #[pymodule_export]
    const POLICIES: &[&str] = keystow_core::store::PolicyKind::NAMES;

    /// Names of the policies of memory nodes.
    #[pymodule_export]
    const NUMA: &[&str] = keystow_core::store::Numa::NAMES;

    /// Names of the policies that a replay knows.
    #[pymodule_export]
    const REPLAY_POLICIES: &[&str] = keystow_core::replay::ReplayPolicy::NAMES;
}
