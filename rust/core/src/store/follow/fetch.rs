//! Blocks of followed directories on their way to a caller, and home.
//!
//! Owns: what a call delivers from elsewhere: read, verified, confirmed, handed out, put. Never
//! does: deliver what is not confirmed, or wait past a transfer's time. Invariants: a block is
//! handed out at most once a call; a directory that does not answer in time rests.

use super::reads::{Done, Job};
use super::{Found, REST_US, View};
use crate::arena::RowsMut;
use crate::error::Error;
use crate::key::Key;
use crate::ssd::follow::Payload;
use crate::ssd::reads::Buffer;
use crate::stats::add;
use crate::store::Store;
use crate::store::get::check_row;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Reads of one call that are under way, or wait for those before them.
const AHEAD_MAX: usize = 8;
/// Blocks of one run.
const RUN_MAX: usize = 512;

impl Store {
    /// Whether it follows other directories.
    pub fn follows(&self) -> bool {
        self.parts.follow.is_some()
    }

    /// What can be asked of followed directories now.
    pub(in crate::store) fn view(&self) -> Option<View> {
        let follow = self.parts.follow.as_ref().filter(|_| !self.is_poisoned())?;
        Some(follow.view())
    }

    /// How many of the first keys this store has no block of; it looks at so many at most.
    pub(in crate::store) fn absent(&self, keys: &[Key]) -> usize {
        let mut entries = Vec::new();
        let keys = &keys[..keys.len().min(RUN_MAX)];
        add(&self.parts.counters.spurious_misses, self.parts.directory.find(keys, &mut entries));
        let there = entries.iter().position(|entry| entry.is_some_and(|entry| entry.resident));
        there.unwrap_or(keys.len())
    }

    /// The followed run that begins with these keys, up to what this store has itself.
    fn followed_run(&self, keys: &[Key]) -> Vec<(usize, Found)> {
        let Some(view) = self.view() else { return Vec::new() };
        view.leading_found(&keys[..self.absent(keys)]).into_iter().enumerate().collect()
    }

    /// Refuses rows that are too short for the followed run that begins at `from`.
    pub(in crate::store) fn check_followed_rows(
        &self,
        keys: &[Key],
        from: usize,
        out: &RowsMut<'_>,
    ) -> Result<(), Error> {
        if out.smallest_row() >= self.block_bytes as usize {
            return Ok(());
        }
        let Some(view) = self.view() else { return Ok(()) };
        let mut lengths = Vec::new();
        let keys = &keys[from..];
        view.leading(&keys[..self.absent(keys)], |known| lengths.push(known.len));
        for (row, len) in (from..).zip(lengths) {
            check_row(out.row_bytes(row), len)?;
        }
        Ok(())
    }

    /// Copies the followed run that begins at `from` to its rows; how many blocks.
    pub(in crate::store) fn get_followed(
        &self,
        keys: &[Key],
        from: usize,
        out: &mut RowsMut<'_>,
        until_us: u64,
    ) -> usize {
        let run = self.followed_run(&keys[from..]);
        self.fetch(&run, until_us, true, |at, bytes| {
            let fits = out.row_bytes(from + at) >= bytes.len();
            if fits {
                out.fill(from + at, bytes);
            }
            fits
        })
    }

    /// Copies those of the missing blocks that followed directories have to their rows.
    pub(in crate::store) fn get_each_followed(
        &self,
        keys: &[Key],
        done: &mut [bool],
        out: &mut RowsMut<'_>,
    ) -> usize {
        if done.iter().all(|done| *done) {
            return 0;
        }
        let Some(view) = self.view() else { return 0 };
        let missing: Vec<usize> = (0..keys.len()).filter(|at| !done[*at]).collect();
        let asked: Vec<Key> = missing.iter().map(|at| keys[*at]).collect();
        let found = view.each_found(&asked);
        let found: Vec<(usize, Found)> =
            found.into_iter().map(|(at, found)| (missing[at], found)).collect();
        self.fetch(&found, u64::MAX, false, |at, bytes| {
            let fits = out.row_bytes(at) >= bytes.len();
            if fits {
                out.fill(at, bytes);
                done[at] = true;
            }
            fits
        })
    }

    /// Puts what is missing of the leading run, and is in followed directories, into this store,
    /// as far as there is room at once.
    pub(in crate::store) fn bring_home(&self, keys: &[Key]) {
        if !self.follows() {
            return;
        }
        let keys = &keys[..keys.len().min(self.frames_total() as usize)];
        let mut done = self.look_up(keys).len();
        while done < keys.len() {
            let run = self.followed_run(&keys[done..]);
            self.fetch(&run, u64::MAX, true, |_, _| true);
            let more = self.look_up(&keys[done..]).len();
            if more == 0 {
                return;
            }
            done += more;
        }
    }

    /// Hands the bytes of blocks to `take`, in order, and puts them into this store; how many were
    /// taken. `leading`: the first that can't be had is the end.
    fn fetch(
        &self,
        wanted: &[(usize, Found)],
        until_us: u64,
        leading: bool,
        mut take: impl FnMut(usize, &[u8]) -> bool,
    ) -> usize {
        let Some(follow) = &self.parts.follow else { return 0 };
        let mut flight = Flight::new(self, wanted);
        let (mut taken, mut bytes, mut spare) = (0, 0, Buffer::default());
        for (at, (number, found)) in wanted.iter().enumerate() {
            let left_us = until_us.saturating_sub(self.parts.clock.now_us());
            let wait = self.io_timeout.min(Duration::from_micros(left_us));
            let Some(mut done) = flight.block(at, Instant::now() + wait) else {
                if wait == self.io_timeout {
                    let rests_until_us = follow.now_us() + REST_US;
                    found.member.rests_until_us.store(rests_until_us, Ordering::Release);
                }
                break;
            };
            let Found { member, slot, known } = found;
            let now_us = || follow.now_us();
            let good = done.payload == Payload::Good
                && member.followed.confirm(*slot, known.generation, &now_us, &mut spare);
            follow.counts.bad.fetch_add(u64::from(!good), Ordering::Relaxed);
            let block = done.buffer.get(known.len as usize);
            if good && take(*number, block) {
                self.put_at_once(known.key, known.parent(), block);
                taken += 1;
                bytes += u64::from(known.len);
            } else if leading {
                break;
            }
        }
        add(&self.parts.counters.bytes_out, bytes);
        follow.counts.hits.fetch_add(taken, Ordering::Relaxed);
        follow.counts.hit_bytes.fetch_add(bytes, Ordering::Relaxed);
        taken as usize
    }
}

/// The reads of one call.
struct Flight<'a> {
    store: &'a Store,
    wanted: &'a [(usize, Found)],
    replies: Receiver<Done>,
    reply: std::sync::mpsc::Sender<Done>,
    next: usize,
    out: usize,
    early: BTreeMap<usize, Done>,
}

impl<'a> Flight<'a> {
    fn new(store: &'a Store, wanted: &'a [(usize, Found)]) -> Self {
        let (reply, replies) = channel();
        Self { store, wanted, replies, reply, next: 0, out: 0, early: BTreeMap::new() }
    }

    /// The end of the read of block `at`, where it comes in time; others are read meanwhile.
    fn block(&mut self, at: usize, deadline: Instant) -> Option<Done> {
        loop {
            self.read_ahead(at, deadline)?;
            if let Some(done) = self.early.remove(&at) {
                return Some(done);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let done = self.replies.recv_timeout(left).ok()?;
            self.out -= 1;
            self.early.insert(done.at, done);
        }
    }

    /// Begins reads while there are buffers; waits for one only where this call has none.
    fn read_ahead(&mut self, at: usize, deadline: Instant) -> Option<()> {
        let reads = &self.store.parts.follow.as_ref()?.reads;
        while self.next < self.wanted.len() && self.next < at + AHEAD_MAX {
            let alone = self.out == 0 && self.early.is_empty();
            let Some(buffer) = reads.buffer(alone.then_some(deadline)) else {
                return if alone { None } else { Some(()) };
            };
            let (_, found) = &self.wanted[self.next];
            let job = Job {
                at: self.next,
                member: std::sync::Arc::clone(&found.member),
                slot: found.slot,
                known: found.known,
                buffer,
                reply: self.reply.clone(),
            };
            if !reads.submit(job) {
                return None;
            }
            self.next += 1;
            self.out += 1;
        }
        Some(())
    }
}
