//! A frozen view of a directory: the records as they were, the payloads as they are.
//!
//! Owns: the records by key, the reads, the counters. Never does: change a file, take a lock, or
//! cache a payload. Invariants: a payload is handed out only if it gives the tag of its record, so
//! that what an owner overwrote since is a miss; blocks that it removed since, and did not
//! overwrite, are still found: the view is frozen. What was cleared or durably removed before
//! `open` was called is not in it.

use super::look::{Look, Payload};
use super::{members, no_store, too_many};
use crate::arena::RowsMut;
use crate::error::Error;
use crate::key::Key;
use crate::ssd::format::{Record, epoch_of};
use crate::ssd::reads::Buffer;
use crate::store::get::{check_count, check_row};
use crate::units::SsdSlot;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is kept of a record.
#[derive(Clone, Copy, Debug)]
struct Kept {
    tag: [u8; 16],
    generation: u64,
    slot: SsdSlot,
    len: u32,
}

/// The counters of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStats {
    /// Blocks in it.
    pub blocks: u64,
    /// Their payload.
    pub bytes: u64,
    /// Blocks delivered by `get` and `get_each`.
    pub hits: u64,
    /// Blocks asked of them and not delivered.
    pub misses: u64,
    /// Those of them that were there, but replaced since, unreadable or rotten.
    pub bad: u64,
    /// Blocks found by `match_run` and `contains`.
    pub lookup_hits: u64,
    /// Blocks asked of them and not found.
    pub lookup_misses: u64,
    /// Payload delivered.
    pub bytes_out: u64,
    /// Pages of the table that could not be read, or do not check.
    pub pages_unreadable: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    bad: AtomicU64,
    lookup_hits: AtomicU64,
    lookup_misses: AtomicU64,
    bytes_out: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A frozen view of a directory. Any method may be called from any thread.
#[derive(Debug)]
pub struct Snapshot {
    look: Look,
    records: HashMap<Key, Kept>,
    bytes: u64,
    pages_unreadable: u32,
    counters: Counters,
}

impl Snapshot {
    /// Opens a member's directory, or that of a root which has only one.
    ///
    /// # Errors
    /// Config: there is no such directory, no store in it, or several. Format, Ssd: it can't be
    /// read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let found = members(path)?;
        let [member] = &found[..] else {
            let none = found.is_empty();
            return Err(if none { no_store(path) } else { too_many(path, &found) });
        };
        // Through the page cache: readers of one host share it.
        let look = Look::open(member, false)?;
        let mut buffer = Buffer::default();
        let mut kept: HashMap<Key, Kept> = HashMap::new();
        let mut records = look.records(&mut buffer);
        let at_open = look.found.clear_epoch;
        for (slot, record) in records.by_ref().filter(|(_, it)| look.counts(it, at_open)) {
            let Record { tag, generation, len, .. } = record;
            let new = Kept { tag, generation, slot, len };
            let there = kept.entry(record.key).or_insert(new);
            if there.generation < generation {
                *there = new;
            }
        }
        let pages_unreadable = records.unreadable;
        // A clear may have come since SUPER was read.
        let clear_epoch = look.clear_epoch_now(&mut buffer);
        if clear_epoch > at_open {
            kept.retain(|_, it| epoch_of(it.generation) > clear_epoch);
        }
        let bytes = kept.values().map(|it| u64::from(it.len)).sum();
        let counters = Counters::default();
        Ok(Self { look, records: kept, bytes, pages_unreadable, counters })
    }

    /// The length of the leading run that was there.
    pub fn match_run(&self, keys: &[Key]) -> usize {
        let found = keys.iter().take_while(|key| self.records.contains_key(key)).count();
        self.count_looked_up(keys.len(), found);
        found
    }

    /// For each key whether its block was there.
    pub fn contains(&self, keys: &[Key]) -> Vec<bool> {
        let there: Vec<bool> = keys.iter().map(|key| self.records.contains_key(key)).collect();
        self.count_looked_up(keys.len(), there.iter().filter(|there| **there).count());
        there
    }

    fn count_looked_up(&self, asked: usize, found: usize) {
        add(&self.counters.lookup_hits, found as u64);
        add(&self.counters.lookup_misses, (asked - found) as u64);
    }

    /// Copies the leading blocks that are there to the rows of `out`; returns how many. The rest
    /// of a row behind its block, and rows from the returned number on, are not touched.
    ///
    /// # Errors
    /// Layout where there is not one row for each key, or a row is shorter than its block.
    pub fn get(&self, keys: &[Key], out: &mut RowsMut<'_>) -> Result<usize, Error> {
        check_count(keys, out)?;
        let run: Vec<Kept> = keys.iter().map_while(|key| self.records.get(key).copied()).collect();
        for (row, kept) in run.iter().enumerate() {
            check_row(out.row_bytes(row), kept.len)?;
        }
        let (mut buffer, mut done, mut bytes) = (Buffer::default(), 0, 0);
        while done < run.len() && self.deliver(keys[done], run[done], out, done, &mut buffer) {
            bytes += u64::from(run[done].len);
            done += 1;
        }
        self.count_delivered(keys.len(), done, bytes);
        Ok(done)
    }

    /// Copies each block that is there to its row, whatever came before it.
    ///
    /// # Errors
    /// As `get`.
    pub fn get_each(&self, keys: &[Key], out: &mut RowsMut<'_>) -> Result<Vec<bool>, Error> {
        check_count(keys, out)?;
        let found: Vec<Option<Kept>> =
            keys.iter().map(|key| self.records.get(key).copied()).collect();
        for (row, kept) in found.iter().enumerate() {
            check_row(out.row_bytes(row), kept.map_or(0, |kept| kept.len))?;
        }
        let (mut buffer, mut bytes) = (Buffer::default(), 0);
        let mut done = vec![false; keys.len()];
        for (row, kept) in found.into_iter().enumerate() {
            if let Some(kept) = kept {
                done[row] = self.deliver(keys[row], kept, out, row, &mut buffer);
                bytes += if done[row] { u64::from(kept.len) } else { 0 };
            }
        }
        self.count_delivered(keys.len(), done.iter().filter(|done| **done).count(), bytes);
        Ok(done)
    }

    fn deliver(
        &self,
        key: Key,
        kept: Kept,
        out: &mut RowsMut<'_>,
        row: usize,
        buffer: &mut Buffer,
    ) -> bool {
        let Kept { tag, generation, slot, len } = kept;
        let record = Record { key, tag, generation, len, ..Record::FREE };
        let good = self.look.payload(slot, &record, buffer) == Payload::Good;
        if good {
            out.fill(row, buffer.get(len as usize));
        }
        add(&self.counters.bad, u64::from(!good));
        good
    }

    fn count_delivered(&self, asked: usize, done: usize, bytes: u64) {
        add(&self.counters.hits, done as u64);
        add(&self.counters.misses, (asked - done) as u64);
        add(&self.counters.bytes_out, bytes);
    }

    /// The counters so far.
    pub fn stats(&self) -> SnapshotStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SnapshotStats {
            blocks: self.records.len() as u64,
            bytes: self.bytes,
            hits: read(&self.counters.hits),
            misses: read(&self.counters.misses),
            bad: read(&self.counters.bad),
            lookup_hits: read(&self.counters.lookup_hits),
            lookup_misses: read(&self.counters.lookup_misses),
            bytes_out: read(&self.counters.bytes_out),
            pages_unreadable: u64::from(self.pages_unreadable),
        }
    }

    /// Of layout, namespace and salt.
    pub fn fingerprint(&self) -> [u8; 16] {
        self.look.found.fingerprint
    }

    /// The layout's description, if it is there and the one that SUPER means.
    pub fn layout(&self) -> Option<&str> {
        self.look.layout.as_deref()
    }

    /// Largest payload of a block.
    pub fn block_bytes(&self) -> u32 {
        self.look.found.block_bytes
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.look.path
    }

    /// What its owner should look at, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.look.warnings
    }
}
