//! Questions: match, match_prefix, contains; and touch, for hits served above the store.
//!
//! Owns: the answers. Never does: copy bytes. Invariant: match, match_prefix and contains write
//! nothing but counters; only touch moves anything in the order.

use super::Store;
use crate::error::Error;
use crate::key::Key;
use crate::stats::{add, read};

/// Copy rate assumed until a get has been measured: a slow machine's.
const COPY_BYTES_PER_S: f64 = 4e9;

/// What a match found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Matched {
    /// Leading blocks there: `ram + ssd`.
    pub blocks: usize,
    /// Of them in RAM.
    pub ram: usize,
    /// Of them on SSD only.
    pub ssd: usize,
    /// Their payload.
    pub bytes: u64,
    /// How long a get should take, from the rate of gets so far.
    pub load_s: f64,
}

impl Store {
    /// The leading run that is there.
    ///
    /// # Errors
    /// Closed.
    pub fn match_run(&self, keys: &[Key]) -> Result<Matched, Error> {
        self.check()?;
        let run = self.look_up(keys);
        let directory = &self.parts.directory;
        let bytes = run.iter().filter_map(|entry| directory.len_of(entry)).map(u64::from).sum();
        self.count_looked_up(keys.len(), run.len());
        let load_s = self.load_s(bytes);
        Ok(Matched { blocks: run.len(), ram: run.len(), ssd: 0, bytes, load_s })
    }

    /// How long a get of so many bytes should take, from the rate of gets so far.
    pub fn load_s(&self, bytes: u64) -> f64 {
        let counters = &self.parts.counters;
        let (copied, ns) = (read(&counters.bytes_out), read(&counters.copy_out_ns));
        let rate = if ns > 0 { copied as f64 * 1e9 / ns as f64 } else { COPY_BYTES_PER_S };
        bytes as f64 / rate.max(1.0)
    }

    /// The length of the leading run that is there.
    ///
    /// # Errors
    /// Closed.
    pub fn match_prefix(&self, keys: &[Key]) -> Result<usize, Error> {
        self.check()?;
        let mut found = 0;
        if !self.is_poisoned() {
            let unsure = self.parts.directory.match_run(keys, |_| found += 1);
            add(&self.parts.counters.spurious_misses, unsure);
        }
        self.count_looked_up(keys.len(), found);
        Ok(found)
    }

    /// For each key whether its block is there.
    ///
    /// # Errors
    /// Closed.
    pub fn contains(&self, keys: &[Key]) -> Result<Vec<bool>, Error> {
        self.check()?;
        let mut entries = Vec::new();
        if !self.is_poisoned() {
            let unsure = self.parts.directory.find(keys, &mut entries);
            add(&self.parts.counters.spurious_misses, unsure);
        }
        entries.resize(keys.len(), None);
        let there: Vec<bool> =
            entries.iter().map(|entry| entry.is_some_and(|e| e.resident)).collect();
        self.count_looked_up(keys.len(), there.iter().filter(|there| **there).count());
        Ok(there)
    }

    /// Marks the leading run that is there as just used; returns its length.
    ///
    /// # Errors
    /// Closed.
    pub fn touch(&self, keys: &[Key]) -> Result<usize, Error> {
        self.check()?;
        let run = self.look_up(keys);
        self.tell_touched(&run);
        self.tidy(run.len());
        Ok(run.len())
    }

    pub(super) fn count_looked_up(&self, asked: usize, found: usize) {
        add(&self.parts.counters.lookup_hits, found as u64);
        add(&self.parts.counters.lookup_misses, (asked - found) as u64);
    }
}
