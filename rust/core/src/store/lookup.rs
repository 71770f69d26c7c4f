//! Questions: match, match_prefix, contains; and touch, for hits served above the store.
//!
//! Owns: the answers. Never does: copy bytes. Invariant: match, match_prefix and contains write
//! nothing but counters; only touch moves anything in the order.

use super::Store;
use crate::directory::Entry;
use crate::error::Error;
use crate::key::Key;
use crate::ssd::follow::Known;
use crate::stats::{add, read};

/// Copy rate assumed until a get has been measured: a slow machine's.
const COPY_BYTES_PER_S: f64 = 4e9;
/// The same of an SSD.
const LOAD_BYTES_PER_S: f64 = 1e9;

/// What a match found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Matched {
    /// Leading blocks there: `ram + ssd + followed`.
    pub blocks: usize,
    /// Of them in RAM.
    pub ram: usize,
    /// Of them on SSD only.
    pub ssd: usize,
    /// Of them in followed directories only.
    pub followed: usize,
    /// Their payload.
    pub bytes: u64,
    /// How long a get should take, from the rate of gets so far.
    pub load_s: f64,
}

/// A block of a run, and where it was seen.
enum Seen<'a> {
    Own(&'a Entry),
    Followed(&'a Known),
}

impl Store {
    /// The leading run that is there.
    ///
    /// # Errors
    /// Closed.
    pub fn match_run(&self, keys: &[Key]) -> Result<Matched, Error> {
        self.check()?;
        let directory = &self.parts.directory;
        let (mut found, mut bytes) = (Matched::default(), [0, 0]);
        self.walk(keys, |seen| {
            let (count, len, at) = match seen {
                Seen::Own(entry) => {
                    let count = if entry.in_ram { &mut found.ram } else { &mut found.ssd };
                    (count, directory.len_of(entry).unwrap_or(0), usize::from(!entry.in_ram))
                }
                Seen::Followed(known) => (&mut found.followed, known.len, 1),
            };
            *count += 1;
            bytes[at] += u64::from(len);
        });
        found.blocks = found.ram + found.ssd + found.followed;
        self.count_looked_up(keys.len(), found.blocks);
        found.bytes = bytes[0] + bytes[1];
        found.load_s = self.load_s(bytes[0], bytes[1]);
        Ok(found)
    }

    /// Hands the leading run to `visit`, wherever its blocks are; how many there are.
    fn walk(&self, keys: &[Key], mut visit: impl FnMut(Seen<'_>)) -> usize {
        if self.is_poisoned() {
            return 0;
        }
        let (mut done, mut view) = (0, None);
        loop {
            let mut own = 0;
            let unsure = self.parts.directory.match_run(&keys[done..], |entry| {
                own += 1;
                visit(Seen::Own(&entry));
            });
            add(&self.parts.counters.spurious_misses, unsure);
            done += own;
            if !self.follows() || done == keys.len() {
                return done;
            }
            // Asked once: a call is about one moment.
            if view.is_none() {
                view = self.view();
            }
            let Some(view) = &view else { return done };
            let absent = done + self.absent(&keys[done..]);
            let more = view.leading(&keys[done..absent], |known| visit(Seen::Followed(known)));
            done += more;
            if done < absent || done == keys.len() || own + more == 0 {
                return done;
            }
        }
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
        let found = self.walk(keys, |_| ());
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
        let mut there: Vec<bool> =
            entries.iter().map(|entry| entry.is_some_and(|e| e.resident)).collect();
        if self.follows() && there.iter().any(|there| !there) {
            let missing: Vec<usize> = (0..keys.len()).filter(|at| !there[*at]).collect();
            let asked: Vec<Key> = missing.iter().map(|at| keys[*at]).collect();
            let found = self.view().map_or_else(Vec::new, |view| view.contains(&asked));
            missing.iter().zip(found).for_each(|(at, found)| there[*at] = found);
        }
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
