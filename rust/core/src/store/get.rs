//! Get: match, pin each linked piece, read the places again under the pins, copy, unpin.
//!
//! Owns: delivery of runs, for get and lease alike. Never does: copy a byte without a pin above
//! it. Invariants: at most `GET_PINS_MAX` pins at a time for a get; what was delivered is a leading
//! run; a run that changed under way is looked up again `TRIES` times and then shortened.

use super::{RowsMut, Store};
use crate::directory::{Entry, pieces};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::stats::add;
use crate::units::{FrameId, Slot};
use std::time::Instant;

/// Pins of one get at a time: a run of one chain needs one, pieces of many are taken in rounds.
pub(super) const GET_PINS_MAX: usize = 16;
const TRIES: u32 = 3;

impl Store {
    /// Copies the leading resident blocks to the rows of `out`; returns how many. The rest of a
    /// row behind its block is not touched; rows from the returned number on may have been written.
    ///
    /// # Errors
    /// Closed; Layout where there is not one row for each key, or a row is shorter than its block.
    pub fn get(&self, keys: &[Key], out: &mut RowsMut<'_>) -> Result<usize, Error> {
        self.check()?;
        check_count(keys, out)?;
        let run = self.look_up(keys);
        for (i, entry) in run.iter().enumerate() {
            check_row(out.row_bytes(i), self.parts.directory.len_of(entry).unwrap_or(0))?;
        }
        let (begun, mut bytes) = (Instant::now(), 0);
        let read = |i: usize, frame, len: u32| {
            if out.row_bytes(i) < len as usize {
                return false;
            }
            self.arena.read(self.arena.frame(frame, len), out, i);
            bytes += u64::from(len);
            true
        };
        let run = self.deliver(keys, run, GET_PINS_MAX, read, |pins| {
            for slot in pins.drain(..) {
                self.parts.directory.unpin(slot);
            }
        });
        self.count_delivered(keys.len(), &run, bytes);
        add(&self.parts.counters.copy_out_ns, begun.elapsed().as_nanos() as u64);
        Ok(run.len())
    }

    /// Copies each block that is there to its row, whatever came before it.
    ///
    /// # Errors
    /// As `get`.
    pub fn get_each(&self, keys: &[Key], out: &mut RowsMut<'_>) -> Result<Vec<bool>, Error> {
        self.check()?;
        check_count(keys, out)?;
        let directory = &self.parts.directory;
        let mut entries = Vec::new();
        if !self.is_poisoned() {
            add(&self.parts.counters.spurious_misses, directory.find(keys, &mut entries));
        }
        entries.resize(keys.len(), None);
        for (i, entry) in entries.iter().enumerate() {
            if let Some(entry) = entry.filter(|e| e.resident) {
                check_row(out.row_bytes(i), directory.len_of(&entry).unwrap_or(0))?;
            }
        }
        let inside = self.gate.enter();
        let (begun, mut bytes, mut touched) = (Instant::now(), 0, Vec::new());
        let mut done = vec![false; keys.len()];
        for (i, entry) in entries.into_iter().enumerate() {
            let Some(entry) = entry.filter(|e| directory.pin(e.slot, e.generation)) else {
                continue;
            };
            if let Some((frame, len)) = directory.located(&entry)
                && len as usize <= out.row_bytes(i)
            {
                self.arena.read(self.arena.frame(frame, len), out, i);
                bytes += u64::from(len);
                touched.push(entry);
                done[i] = true;
            }
            directory.unpin(entry.slot);
        }
        drop(inside);
        self.count_delivered(keys.len(), &touched, bytes);
        add(&self.parts.counters.copy_out_ns, begun.elapsed().as_nanos() as u64);
        Ok(done)
    }

    /// The leading resident run, or nothing once poisoned.
    pub(super) fn look_up(&self, keys: &[Key]) -> Vec<Entry> {
        let mut run = Vec::new();
        if !self.is_poisoned() {
            let unsure = self.parts.directory.match_run(keys, |entry| run.push(entry));
            add(&self.parts.counters.spurious_misses, unsure);
        }
        run
    }

    /// Counts what was delivered, touches it and does this call's share of bookkeeping.
    pub(super) fn count_delivered(&self, asked: usize, run: &[Entry], bytes: u64) {
        let counters = &self.parts.counters;
        add(&counters.hits, run.len() as u64);
        add(&counters.misses, (asked - run.len()) as u64);
        add(&counters.bytes_out, bytes);
        if !self.is_poisoned() {
            self.tell_touched(run);
        }
        self.tidy(run.len());
    }

    /// Walks a run under pins, `pins_max` linked pieces at a time, and hands the pins over after
    /// each. `visit` gets each block's number and place and may end the run. Returns what was
    /// visited.
    pub(super) fn deliver(
        &self,
        keys: &[Key],
        mut run: Vec<Entry>,
        pins_max: usize,
        mut visit: impl FnMut(usize, FrameId, u32) -> bool,
        mut hand_over: impl FnMut(&mut Vec<Slot>),
    ) -> Vec<Entry> {
        let directory = &self.parts.directory;
        let _inside = self.gate.enter();
        // The deepest block stays pinned throughout: it keeps most of the run for later rounds.
        let deepest = run.last().copied().filter(|e| directory.pin(e.slot, e.generation));
        let (mut done, mut tries, mut pins) = (0, 0, Vec::new());
        while done < run.len() {
            let round = pieces(&run[done..]).take(pins_max).last().map_or(0, |piece| piece.end);
            let round = &run[done..done + round];
            for piece in pieces(round) {
                let tail = round[piece.end - 1];
                if !directory.pin(tail.slot, tail.generation) {
                    break;
                }
                pins.push(tail.slot);
            }
            let kept = pieces(round).take(pins.len()).last().map_or(0, |piece| piece.end);
            let places = round[..kept].iter().map_while(|entry| directory.located(entry));
            let mut visited = 0;
            for (frame, len) in places {
                if !visit(done + visited, frame, len) {
                    break;
                }
                visited += 1;
            }
            let whole = visited == round.len();
            done += visited;
            hand_over(&mut pins);
            if !whole {
                run.truncate(done);
                tries += 1;
                if tries < TRIES {
                    directory.match_run(&keys[done..], |entry| run.push(entry));
                }
            }
        }
        if let Some(deepest) = deepest {
            directory.unpin(deepest.slot);
        }
        run
    }
}

fn check_count(keys: &[Key], out: &RowsMut<'_>) -> Result<(), Error> {
    if out.len() == keys.len() {
        return Ok(());
    }
    let message = format!("{} keys and {} rows.", keys.len(), out.len());
    Err(Error::new(ErrorKind::Layout, "KS-LAY-001", message, "pass one row for each key.")
        .with("keys", keys.len())
        .with("rows", out.len()))
}

fn check_row(row_bytes: usize, len: u32) -> Result<(), Error> {
    if row_bytes >= len as usize {
        return Ok(());
    }
    let message = format!("a row of {row_bytes} bytes for a block of {len}.");
    let hint = "pass rows of block_bytes, or as long as the blocks that were put.";
    Err(Error::new(ErrorKind::Layout, "KS-LAY-003", message, hint)
        .with("row_bytes", row_bytes)
        .with("block_bytes", len))
}
