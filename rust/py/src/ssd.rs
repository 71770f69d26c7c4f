//! `Ssd`: the options of an SSD tier, from the Python facade's object to the core's configuration.
//!
//! Owns: the names of the object's attributes. Never does: checking what the facade or the core
//! check.

use std::path::PathBuf;

use keystow_core::store::SsdConfig;
use pyo3::intern;
use pyo3::prelude::*;

use crate::make_keys::Identity;
use crate::options;

/// What the core needs of a `keystow.Ssd`.
#[derive(FromPyObject)]
pub struct Device {
    path: PathBuf,
    #[pyo3(attribute("capacity"))]
    capacity_bytes: u64,
    engine: String,
    seed: u64,
    member: String,
    on_mismatch: String,
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
            ..SsdConfig::new(self.path, self.capacity_bytes)
        })
    }
}
