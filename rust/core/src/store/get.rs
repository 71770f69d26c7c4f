//! Get: match, pin each linked piece, read the places again under the pins, copy, unpin. Blocks on
//! SSD are read into frames first, or past the arena where there is none (`past`).
//!
//! Owns: delivery of runs, for get and lease alike. Never does: copy a byte without a pin above
//! it. Invariants: at most `GET_PINS_MAX` pins at a time for a get; what was delivered is a leading
//! run; a run that changed under way is looked up again `TRIES` times and then shortened.

use super::past::{Ahead, Bytes, Reach, Way};
use super::{RowsMut, Store};
use crate::arena::{Arena, Region};
use crate::directory::{Entry, Located, pieces};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::stats::add;
use crate::units::Slot;
use std::cell::RefCell;
use std::time::{Duration, Instant};

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
        self.get_within(keys, out, None)
    }

    /// The same; after `timeout` what has come by then.
    ///
    /// # Errors
    /// As `get`.
    pub fn get_within(
        &self,
        keys: &[Key],
        out: &mut RowsMut<'_>,
        timeout: Option<Duration>,
    ) -> Result<usize, Error> {
        let until_us = timeout.map_or(u64::MAX, |timeout| self.deadline_us(timeout));
        self.check()?;
        check_count(keys, out)?;
        let run = self.look_up(keys);
        for (i, entry) in run.iter().enumerate() {
            check_row(out.row_bytes(i), self.parts.directory.len_of(entry).unwrap_or(0))?;
        }
        if self.follows() && run.len() < keys.len() {
            self.check_followed_rows(keys, run.len(), out)?;
        }
        let mut done = self.get_own(keys, 0, run, out, until_us);
        // Runs of one's own and of followed directories by turns.
        while self.follows() && done < keys.len() {
            let fetched = self.get_followed(keys, done, out, until_us);
            add(&self.parts.counters.hits, fetched as u64);
            done += fetched;
            if fetched == 0 {
                break;
            }
            let run = self.look_up(&keys[done..]);
            done += self.get_own(keys, done, run, out, until_us);
        }
        add(&self.parts.counters.misses, (keys.len() - done) as u64);
        Ok(done)
    }

    /// Copies the run of one's own that begins at `from` to its rows; how many blocks.
    fn get_own(
        &self,
        keys: &[Key],
        from: usize,
        run: Vec<Entry>,
        out: &mut RowsMut<'_>,
        until_us: u64,
    ) -> usize {
        let (all_in_ram, reach) = (run.iter().all(|entry| entry.in_ram), Reach::Past);
        let (begun, mut bytes) = (Instant::now(), 0);
        // Where some are still on their way, the others are copied meanwhile.
        let lens = run.iter().filter_map(|entry| self.parts.directory.len_of(entry));
        let expected = all_in_ram.then(|| lens.map(|len| len as usize).sum());
        let copies = Copies::new(&self.parts.arena, out, run.len(), expected);
        let read = |i: usize, block: Bytes<'_>| {
            let copied = copies.take(&block, from + i);
            bytes += copied.unwrap_or(0);
            copied.is_some()
        };
        let way = Way { reach, until_us };
        let (run, _) = self.deliver(&keys[from..], run, GET_PINS_MAX, way, read, |pins| {
            copies.make();
            for slot in pins.drain(..) {
                self.parts.directory.unpin(slot);
            }
        });
        self.count_delivered(run.len(), &run, bytes);
        self.count_rate(all_in_ram, bytes, begun);
        run.len()
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
        let (inside, mut hung) = (self.gate.enter(), Vec::new());
        let (begun, mut bytes, mut touched) = (Instant::now(), 0, Vec::new());
        let mut done = vec![false; keys.len()];
        let found = entries.iter().enumerate().filter_map(|(i, entry)| Some((i, (*entry)?)));
        let found: Vec<(usize, Entry)> = found.filter(|(_, entry)| entry.resident).collect();
        let all_in_ram = found.iter().all(|(_, entry)| entry.in_ram);
        for round in found.chunks(GET_PINS_MAX) {
            let pinned = round.iter().filter(|(_, e)| directory.pin(e.slot, e.generation));
            let (rows, round): (Vec<usize>, Vec<Entry>) = pinned.copied().unzip();
            self.start_loads(&round);
            let lens = round.iter().filter_map(|entry| directory.len_of(entry));
            let expected = all_in_ram.then(|| lens.map(|len| len as usize).sum());
            let copies = Copies::new(&self.parts.arena, out, round.len(), expected);
            let mut ahead = Ahead::default();
            for (at, entry) in round.iter().enumerate() {
                let row = rows[at];
                let mut read = |block: Bytes<'_>| {
                    let copied = copies.take(&block, row);
                    bytes += copied.unwrap_or(0);
                    copied.is_some()
                };
                let from_us = self.parts.clock.now_us();
                // Of a device that hangs, what is not here by now is not waited for as well.
                let hangs = !hung.is_empty() && hung.contains(&self.device_of(entry));
                let until_us = if hangs { from_us } else { u64::MAX };
                let way = Way { reach: Reach::Past, until_us };
                let said = self.reach(&round, at, way, &mut ahead, None, &mut read);
                done[row] = said == Some(true);
                let now_us = self.parts.clock.now_us();
                if said.is_none() && now_us.saturating_sub(from_us) >= self.io_timeout_us() {
                    hung.push(self.device_of(entry));
                }
                touched.extend(done[row].then_some(*entry));
            }
            self.drop_ahead(ahead);
            copies.make();
            round.iter().for_each(|entry| directory.unpin(entry.slot));
        }
        drop(inside);
        let fetched = self.get_each_followed(keys, &mut done, out);
        add(&self.parts.counters.hits, fetched as u64);
        self.count_delivered(keys.len() - fetched, &touched, bytes);
        self.count_rate(all_in_ram, bytes, begun);
        Ok(done)
    }

    /// Which device has the block, if any.
    fn device_of(&self, entry: &Entry) -> Option<usize> {
        self.with_tier(|tier, with| tier.device_of(with, entry.slot)).flatten()
    }

    fn count_rate(&self, all_in_ram: bool, bytes: u64, begun: Instant) {
        let counters = &self.parts.counters;
        let ns = begun.elapsed().as_nanos() as u64;
        let (of_bytes, of_ns) = if all_in_ram {
            (&counters.copied_bytes, &counters.copy_out_ns)
        } else {
            (&counters.loaded_bytes, &counters.load_out_ns)
        };
        add(of_bytes, bytes);
        add(of_ns, ns);
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
    /// visited, and whether more frames for loads could be had once dirty blocks are written.
    pub(super) fn deliver(
        &self,
        keys: &[Key],
        mut run: Vec<Entry>,
        pins_max: usize,
        way: Way,
        mut visit: impl FnMut(usize, Bytes<'_>) -> bool,
        mut hand_over: impl FnMut(&mut Vec<Slot>),
    ) -> (Vec<Entry>, bool) {
        let directory = &self.parts.directory;
        let _inside = self.gate.enter();
        // The deepest block stays pinned throughout: it keeps most of the run for later rounds.
        let deepest = run.last().copied().filter(|e| directory.pin(e.slot, e.generation));
        let (mut done, mut tries, mut pins) = (0, 0, Vec::new());
        let mut short = false;
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
            let kept = &round[..kept];
            if way.reach != Reach::Ram && kept.iter().any(|entry| !entry.in_ram) {
                short |= self.start_loads(kept);
            }
            let safe = self.kept_in_ram(kept);
            let (mut visited, mut ahead) = (0, Ahead::default());
            while visited < kept.len() {
                let mut visit = |block: Bytes<'_>| visit(done + visited, block);
                let own = if safe[visited] { None } else { Some(&mut pins) };
                if self.reach(kept, visited, way, &mut ahead, own, &mut visit) != Some(true) {
                    break;
                }
                visited += 1;
            }
            self.drop_ahead(ahead);
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
        (run, short)
    }
}

impl Store {
    /// For each block of a run whose pieces' last blocks are pinned, whether the pins keep it in
    /// RAM: from a pinned block in RAM upwards, as far as all are in RAM, each is kept by its
    /// child. Looked at from the last one up, so that what keeps a block was seen before it.
    pub(super) fn kept_in_ram(&self, run: &[Entry]) -> Vec<bool> {
        let mut safe = vec![true; run.len()];
        // Without a second tier a block that was in RAM leaves it only with its header.
        if self.driver.is_some() {
            for piece in pieces(run) {
                let mut kept = true;
                for at in piece.rev() {
                    let place = self.parts.directory.located(&run[at]);
                    kept = kept && matches!(place, Located::Ram(..));
                    safe[at] = kept;
                }
            }
        }
        safe
    }
}

/// The copies of one round: made as the blocks come, or together at its end where that is faster.
struct Copies<'a> {
    arena: &'a Arena,
    out: &'a RowsMut<'a>,
    together: Option<RefCell<Vec<(Region, usize)>>>,
}

impl<'a> Copies<'a> {
    /// `expected`: bytes of all blocks, where all of them are in RAM.
    fn new(arena: &'a Arena, out: &'a RowsMut<'a>, blocks: usize, expected: Option<usize>) -> Self {
        let together = expected.filter(|bytes| arena.shares(*bytes));
        let together = together.map(|_| RefCell::new(Vec::with_capacity(blocks)));
        Self { arena, out, together }
    }

    /// Copies a block to the start of its row, now or with `make`; its length, or `None` where the
    /// row is too short.
    fn take(&self, block: &Bytes<'_>, row: usize) -> Option<u64> {
        if self.out.row_bytes(row) < block.len as usize {
            return None;
        }
        let region = block.arena.frame(block.frame, block.len);
        match &self.together {
            Some(list) if block.kept => list.borrow_mut().push((region, row)),
            _ => block.arena.read(region, self.out, row),
        }
        Some(u64::from(block.len))
    }

    /// Makes the copies that were left for the end; before the pins of their blocks fall.
    fn make(&self) {
        if let Some(list) = &self.together {
            self.arena.read_many(&list.borrow(), self.out);
            list.borrow_mut().clear();
        }
    }
}

pub(super) fn check_count(keys: &[Key], out: &RowsMut<'_>) -> Result<(), Error> {
    if out.len() == keys.len() {
        return Ok(());
    }
    let message = format!("{} keys and {} rows.", keys.len(), out.len());
    Err(Error::new(ErrorKind::Layout, "KS-LAY-001", message, "pass one row for each key.")
        .with("keys", keys.len())
        .with("rows", out.len()))
}

pub(super) fn check_row(row_bytes: usize, len: u32) -> Result<(), Error> {
    if row_bytes >= len as usize {
        return Ok(());
    }
    let message = format!("a row of {row_bytes} bytes for a block of {len}.");
    let hint = "pass rows of block_bytes, or as long as the blocks that were put.";
    Err(Error::new(ErrorKind::Layout, "KS-LAY-003", message, hint)
        .with("row_bytes", row_bytes)
        .with("block_bytes", len))
}
