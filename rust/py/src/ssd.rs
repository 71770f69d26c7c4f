//! `Ssd`: the options of an SSD tier, from the Python facade's object to the core's configuration;
//! the calls that may take long because of one, and can be interrupted.
//!
//! Owns: the names of the object's attributes. Never does: checking what the facade or the core
//! check.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keystow_core::store::{self as core, Following, OnLocked, Progress, SsdConfig, SsdPlace};
use pyo3::intern;
use pyo3::prelude::*;

use crate::errors::OrRaise;
use crate::make_keys::Identity;
use crate::options;

/// What the core needs of a `keystow.Ssd`.
#[derive(FromPyObject)]
pub struct Device {
    path: PathBuf,
    #[pyo3(attribute("capacity"))]
    capacity_bytes: u64,
    /// Path and capacity of further devices.
    others: Vec<(PathBuf, u64)>,
    engine: String,
    seed: u64,
    member: String,
    on_mismatch: String,
    on_locked: String,
    lock_wait_s: f64,
    reclaim: String,
    follows_siblings: bool,
    followed_paths: Vec<PathBuf>,
    replicated: bool,
    budget_bytes_per_s: Option<u64>,
}

impl Device {
    /// The core's configuration of a tier for blocks of this layout and identity.
    pub fn config(self, layout: &Bound<'_, PyAny>, identity: &Identity) -> PyResult<SsdConfig> {
        let py = layout.py();
        Ok(SsdConfig {
            engine: options::engine(py, &self.engine)?,
            seed: self.seed,
            member: self.member,
            fingerprint: identity.fingerprint.0,
            layout: layout.call_method0(intern!(py, "describe"))?.extract()?,
            write_bytes_per_s: self.budget_bytes_per_s,
            reset_on_mismatch: self.on_mismatch == "reset",
            on_locked: match &*self.on_locked {
                "ram" => OnLocked::Ram,
                _ if self.lock_wait_s > 0.0 => {
                    OnLocked::Wait(options::wait(py, "on_locked", Some(self.lock_wait_s))?)
                }
                _ => OnLocked::Fail,
            },
            reclaim: self.reclaim == "unlocked",
            others: self
                .others
                .into_iter()
                .map(|(path, capacity_bytes)| SsdPlace { path, capacity_bytes })
                .collect(),
            follow: match self.followed_paths {
                _ if self.follows_siblings => Following::Siblings,
                paths if paths.is_empty() => Following::Nobody,
                paths => Following::Paths(paths),
            },
            replicated: self.replicated,
            ..SsdConfig::new(self.path, self.capacity_bytes)
        })
    }
}

/// Signals are looked for so often.
const SIGNALS: Duration = Duration::from_millis(100);
/// A long open tells how far it is so often.
const TOLD: Duration = Duration::from_secs(2);

/// Opens a store; what a signal raises meanwhile ends it, and is raised. `progress` hears of a long
/// recovery: what is counted, how many are done, how many there are; `said` hears sentences for the
/// log as they come.
pub fn open(
    py: Python<'_>,
    config: &core::StoreConfig,
    progress: Option<&Bound<'_, PyAny>>,
    said: Option<&Bound<'_, PyAny>>,
) -> PyResult<Arc<core::Store>> {
    let unbind = |call: Option<&Bound<'_, PyAny>>| call.map(|call| call.clone().unbind());
    let (progress, said) = (unbind(progress), unbind(said));
    let mut raised = None;
    let (mut looked, mut told) = (Instant::now(), Instant::now());
    let mut watch = |now: Progress| {
        if looked.elapsed() < SIGNALS && !matches!(now, Progress::Said(_)) {
            return true;
        }
        let heard = Python::attach(|py| {
            py.check_signals()?;
            match (now, &progress, &said) {
                (Progress::Said(sentence), _, Some(said)) => {
                    said.call1(py, (sentence,))?;
                }
                (Progress::Recovers { what, done, all }, Some(progress), _)
                    if told.elapsed() >= TOLD =>
                {
                    told = Instant::now();
                    progress.call1(py, (what, done, all))?;
                }
                _ => {}
            }
            PyResult::Ok(())
        });
        looked = Instant::now();
        raised = raised.take().or(heard.err());
        raised.is_none()
    };
    let opened = py.detach(|| core::Store::open_watched(config, &mut watch));
    raised.map_or_else(|| opened.or_raise(py), Err)
}

/// Flushes; what a signal raises meanwhile ends it, and is raised. The pieces between two looks
/// become longer, so that also the slowest disk confirms one.
pub fn flush(py: Python<'_>, store: &core::Store, time: Duration) -> PyResult<u64> {
    let (begun, mut left, mut piece) = (Instant::now(), time, SIGNALS);
    loop {
        piece = piece.min(left);
        let (dirty, ended) = py.detach(|| store.flush_some(piece)).or_raise(py)?;
        py.check_signals()?;
        // By the pieces too: a manual clock's seconds are not ours.
        left = (left - piece).min(time.saturating_sub(begun.elapsed()));
        if ended || left.is_zero() {
            return Ok(dirty);
        }
        piece *= 2;
    }
}
