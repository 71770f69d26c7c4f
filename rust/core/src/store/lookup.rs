//! Questions: match, match_prefix, contains; and touch, for hits served above the store.
//!
//! Owns: the answers. Never does: copy bytes. Invariant: match, match_prefix and contains write
//! nothing but counters; only touch moves anything in the order.

use super::Store;
use crate::directory::Entry;
use crate::error::Error;
use crate::key::Key;
use crate::stats::{add, read};

/// Copy rate assumed until a get has been measured: a slow machine's.
const COPY_BYTES_PER_S: f64 = 4e9;
/// The same of an SSD.
const LOAD_BYTES_PER_S: f64 = 1e9;

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
        let bytes_of = |entry: &Entry| u64::from(directory.len_of(entry).unwrap_or(0));
        let ram = run.iter().filter(|entry| entry.in_ram);
        let (ram, ram_bytes) = (ram.clone().count(), ram.map(bytes_of).sum());
        let ssd = run.len() - ram;
        let ssd_bytes: u64 = run.iter().filter(|entry| !entry.in_ram).map(bytes_of).sum();
        self.count_looked_up(keys.len(), run.len());
        let load_s = self.load_s(ram_bytes, ssd_bytes);
        Ok(Matched { blocks: run.len(), ram, ssd, bytes: ram_bytes + ssd_bytes, load_s })
    }

    /// How long a get of so many bytes should take, from the rates of gets so far.
    pub(super) fn load_s(&self, ram_bytes: u64, ssd_bytes: u64) -> f64 {
        let counters = &self.parts.counters;
        let rate = |bytes, ns, guess: f64| {
            let (bytes, ns) = (read(bytes), read(ns));
            if ns > 0 { (bytes as f64 * 1e9 / ns as f64).max(1.0) } else { guess }
        };
        let ram = rate(&counters.copied_bytes, &counters.copy_out_ns, COPY_BYTES_PER_S);
        let ssd = rate(&counters.loaded_bytes, &counters.load_out_ns, LOAD_BYTES_PER_S);
        ram_bytes as f64 / ram + ssd_bytes as f64 / ssd
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
