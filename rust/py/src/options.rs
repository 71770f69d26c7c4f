//! Plain options of verbs: seconds, priority, names of policies and engines, and those that only
//! later versions take.
//!
//! Owns: their ranges. Never does: defaults.

use std::time::Duration;

use keystow_core::store::{EngineKind, Numa, PolicyKind};
use pyo3::prelude::*;

use crate::refuse;

/// More than thirty years: whoever asks for that means no limit, and gets one that a clock can add.
const SECONDS_MAX: f64 = 1e9;

/// A time to wait.
pub fn seconds(py: Python<'_>, name: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    match value {
        Some(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => {
            Ok(Some(Duration::from_secs_f64(seconds)))
        }
        Some(seconds) => Err(refuse::bad_seconds(py, name, seconds)),
        None => Ok(None),
    }
}

/// A time to wait, None for one without an end.
pub fn wait(py: Python<'_>, name: &str, value: Option<f64>) -> PyResult<Duration> {
    let no_end = Duration::from_secs_f64(SECONDS_MAX);
    Ok(seconds(py, name, value)?.unwrap_or(no_end))
}

/// A number of things.
pub fn count(py: Python<'_>, name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| refuse::bad_count(py, name, value))
}

/// -1, 0 or 1.
pub fn priority(py: Python<'_>, value: i64) -> PyResult<()> {
    if (-1..=1).contains(&value) { Ok(()) } else { Err(refuse::bad_priority(py, value)) }
}

/// An option that takes None until its feature is there.
pub fn none_yet(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    value.map_or(Ok(()), |value| Err(refuse::not_built(value.py(), name)))
}

/// An I/O engine by name.
pub fn engine(py: Python<'_>, name: &str) -> PyResult<EngineKind> {
    EngineKind::parse(name).ok_or_else(|| refuse::bad_choice(py, "engine", name, EngineKind::NAMES))
}

/// A policy by name.
pub fn policy(py: Python<'_>, name: &str) -> PyResult<PolicyKind> {
    PolicyKind::parse(name).ok_or_else(|| refuse::bad_choice(py, "policy", name, PolicyKind::NAMES))
}

/// A policy of memory nodes by name.
pub fn numa(py: Python<'_>, name: &str) -> PyResult<Numa> {
    Numa::parse(name).ok_or_else(|| refuse::bad_choice(py, "numa", name, Numa::NAMES))
}
