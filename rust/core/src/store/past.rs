//! The ways of a block past a hit in RAM: loads from SSD into frames, and both directions past the
//! arena where there is no frame.
//!
//! Owns: what a call does while its blocks are not in RAM. Never does: decide what is loaded or
//! written next (`tier`). Invariants: frames for loads are taken without waiting; a call waits for
//! a transfer with pins but with no frame of its own; staging frames come back whoever loses
//! interest; a transfer past its deadline is a miss.

use super::keeper::Room;
use super::tier::{Staged, Staging, Ticket, Tier, With};
use super::{LOCK_BLOCKS_MAX, PutOptions, Rows, Store};
use crate::arena::Arena;
use crate::directory::{Entry, Located, pieces};
use crate::key::Key;
use crate::stats::add;
use crate::units::{FrameId, Slot, SsdSlot};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How far a call goes for a block that is not in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nowhere.
    Ram,
    /// Into a frame, if one can be had.
    Frame,
    /// Else past the arena.
    Past,
}

/// The same, and until when on the store's clock.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) reach: Reach,
    pub(super) until_us: u64,
}

impl Way {
    /// With no deadline but that of each transfer.
    pub(super) fn to(reach: Reach) -> Self {
        Self { reach, until_us: u64::MAX }
    }
}

/// A block's bytes, readable during the visit.
pub(super) struct Bytes<'a> {
    pub(super) arena: &'a Arena,
    pub(super) frame: FrameId,
    pub(super) len: u32,
    /// Readable while the caller's pins last, not only during the visit.
    pub(super) kept: bool,
}

/// A put whose rest goes past RAM.
#[derive(Clone, Copy)]
pub(super) struct PastRam<'a> {
    pub(super) keys: &'a [Key],
    pub(super) blocks: &'a Rows<'a>,
    pub(super) options: &'a PutOptions,
    pub(super) epoch: u32,
    /// For each block.
    pub(super) wait: Duration,
}

/// What a put past RAM has under way for one block.
enum Step {
    /// It is there, and pinned.
    Pinned(Slot),
    /// Its key is being written for an earlier block of the batch, or stands in a followed
    /// directory that spares this one the write.
    Elsewhere,
    Writing(Ticket),
}

type Out = VecDeque<(usize, Step)>;

/// Reads past the arena, some blocks ahead of their use.
#[derive(Default)]
pub(super) struct Ahead(VecDeque<(usize, FrameId, u32, Ticket)>);

impl Store {
    fn staging(&self) -> Option<&Staging> {
        self.parts.staging.as_ref()
    }

    /// Begins the reads of those pinned blocks that are only on SSD, as many as frames can be had
    /// for without waiting or losing a dirty block. True where more could be had once dirty blocks
    /// are written.
    pub(super) fn start_loads(&self, entries: &[Entry]) -> bool {
        let on_ssd =
            |entry: &&Entry| matches!(self.parts.directory.located(entry), Located::Ssd(_));
        let wanted: Vec<Entry> = entries.iter().filter(on_ssd).copied().collect();
        if wanted.is_empty() || self.driver.is_none() {
            return false;
        }
        let (frames, dirty) = self.frames_for_loads(wanted.len());
        let pairs: Vec<(Entry, FrameId)> = wanted.into_iter().zip(frames).collect();
        for pairs in pairs.chunks(LOCK_BLOCKS_MAX as usize) {
            let load = |tier: &mut Tier, with: &mut With<'_>| {
                for (entry, frame) in pairs {
                    if !tier.load(with, entry, *frame) {
                        with.parts.frames.give(*frame);
                    }
                }
            };
            let one = pairs.len() == 1;
            let begun = if one { self.with_tier_at_once(load) } else { self.with_tier(load) };
            if begun.is_none() {
                pairs.iter().for_each(|(_, frame)| self.parts.frames.give(*frame));
            }
        }
        dirty
    }

    fn frames_for_loads(&self, wanted: usize) -> (Vec<FrameId>, bool) {
        let mut dirty = false;
        let mut frames = Vec::with_capacity(wanted);
        self.parts.frames.take(wanted, &mut frames);
        while frames.len() < wanted {
            let more = self.keep(|keeper, parts, budget| {
                loop {
                    match keeper.make_room(parts, None, false, budget) {
                        Room::Frame(frame) => frames.push(frame),
                        Room::Again => return true,
                        Room::Nothing => return false,
                        Room::Dirty => {
                            dirty = true;
                            return false;
                        }
                    }
                    if frames.len() == wanted {
                        return false;
                    }
                }
            });
            if more != Some(true) {
                break;
            }
        }
        (frames, dirty)
    }

    /// Hands the bytes of block `at` to `visit`, waiting for them where they are on their way. The
    /// caller's pins keep its header; where they don't keep it in RAM, `own` takes a pin of its
    /// own, which falls after the visit unless the caller is to keep what was reached. `None`: the
    /// bytes can't be had; else what `visit` said.
    pub(super) fn reach(
        &self,
        entries: &[Entry],
        at: usize,
        way: Way,
        ahead: &mut Ahead,
        own: Option<&mut Vec<Slot>>,
        visit: &mut impl FnMut(Bytes<'_>) -> bool,
    ) -> Option<bool> {
        let Some(pins) = own else {
            return self.reach_pinned(entries, at, way, ahead, true, visit);
        };
        let (directory, entry) = (&self.parts.directory, &entries[at]);
        if !directory.pin(entry.slot, entry.generation) {
            return None;
        }
        let kept = way.reach != Reach::Past;
        let said = self.reach_pinned(entries, at, way, ahead, kept, visit);
        if kept {
            pins.push(entry.slot);
        } else {
            directory.unpin(entry.slot);
        }
        said
    }

    /// The same for a block whose pin keeps it in RAM once it is there; `kept`: the pin outlasts
    /// the visit.
    fn reach_pinned(
        &self,
        entries: &[Entry],
        at: usize,
        Way { reach, until_us }: Way,
        ahead: &mut Ahead,
        kept: bool,
        visit: &mut impl FnMut(Bytes<'_>) -> bool,
    ) -> Option<bool> {
        let (directory, entry) = (&self.parts.directory, &entries[at]);
        let deadline_us = self.deadline_us(self.io_timeout).min(until_us);
        loop {
            match directory.located(entry) {
                Located::Ram(frame, len) => {
                    let arena = &self.parts.arena;
                    return Some(visit(Bytes { arena, frame, len, kept }));
                }
                Located::Loading if reach != Reach::Ram => {
                    if self.is_away(entry) {
                        return None;
                    }
                    let arrived = || directory.located(entry) != Located::Loading;
                    if !self.wait_for_tier(deadline_us, arrived) {
                        return None;
                    }
                }
                Located::Ssd(_) if reach == Reach::Past => {
                    return self.read_past(entries, at, ahead, deadline_us, visit);
                }
                _ => return None,
            }
        }
    }

    /// Whether nobody knows when a block comes: its device is left alone.
    fn is_away(&self, entry: &Entry) -> bool {
        self.parts.away.load(Ordering::Relaxed)
            && self.with_tier(|tier, with| tier.is_away(with, entry.slot)) == Some(true)
    }

    fn read_past(
        &self,
        entries: &[Entry],
        at: usize,
        ahead: &mut Ahead,
        deadline_us: u64,
        visit: &mut impl FnMut(Bytes<'_>) -> bool,
    ) -> Option<bool> {
        let staging = self.staging()?;
        while ahead.0.front().is_some_and(|(of, ..)| *of < at) {
            self.drop_first(ahead);
        }
        self.read_ahead(entries, at, ahead, staging);
        if ahead.0.front().is_none_or(|(of, ..)| *of != at) {
            // Others have the staging frames; what we have is for later blocks.
            while !ahead.0.is_empty() {
                self.drop_first(ahead);
            }
            let free = || staging.frames.free() > 0;
            if !self.wait_for_tier(deadline_us, free) {
                return None;
            }
            self.read_ahead(entries, at, ahead, staging);
        }
        let (of, frame, len, ticket) = ahead.0.pop_front()?;
        debug_assert_eq!(of, at);
        let mut end = None;
        self.wait_for_tier(deadline_us, || {
            end = ticket.ended();
            end.is_some()
        });
        if end.is_none() && ticket.abandon() {
            return None;
        }
        let good = ticket.ended() == Some(true);
        let said = good.then(|| visit(Bytes { arena: &staging.arena, frame, len, kept: false }));
        self.give_staging(staging, frame);
        said
    }

    /// Begins reads of the blocks from `at` on while staging frames are free.
    fn read_ahead(&self, entries: &[Entry], at: usize, ahead: &mut Ahead, staging: &Staging) {
        let mut next = ahead.0.back().map_or(at, |(of, ..)| of + 1);
        while let Some(entry) = entries.get(next) {
            let Located::Ssd(len) = self.parts.directory.located(entry) else { return };
            let Some(frame) = staging.frames.take_one() else { return };
            match self.with_tier(|tier, with| tier.peek(with, entry, frame)).flatten() {
                Some(ticket) => ahead.0.push_back((next, frame, len, ticket)),
                None => return self.give_staging(staging, frame),
            }
            next += 1;
        }
    }

    fn drop_first(&self, ahead: &mut Ahead) {
        let (Some((_, frame, _, ticket)), Some(staging)) = (ahead.0.pop_front(), self.staging())
        else {
            return;
        };
        if !ticket.abandon() {
            self.give_staging(staging, frame);
        }
    }

    /// Drops what was read ahead and is not wanted.
    pub(super) fn drop_ahead(&self, mut ahead: Ahead) {
        while !ahead.0.is_empty() {
            self.drop_first(&mut ahead);
        }
    }

    fn give_staging(&self, staging: &Staging, frame: FrameId) {
        staging.frames.give(frame);
    }

    /// Puts the blocks from `from` on straight to SSD, past a RAM that has no room for them.
    /// Returns the leading run that is there now, and how many of it this call stored. What is
    /// there of the batch is pinned meanwhile: it does not make room for the rest.
    pub(super) fn put_past(&self, put: &PastRam<'_>, from: usize) -> (usize, u64) {
        let mut pins = Vec::new();
        let (mut done, mut stored) = (self.pin_leading(&put.keys[..from], &mut pins), 0);
        if done == from {
            self.pin_present(&put.keys[from..], &mut pins);
            let mut out = VecDeque::new();
            let mut next = from;
            while next < put.keys.len() || !out.is_empty() {
                next = self.stage_ahead(put, next, &mut out);
                let deadline_us = self.deadline_us(put.wait.min(self.io_timeout));
                let Some((at, step)) = out.pop_front() else {
                    let free = || self.staging().is_some_and(|s| s.frames.free() > 0);
                    if next < put.keys.len() && self.wait_for_tier(deadline_us, free) {
                        continue;
                    }
                    break;
                };
                match step {
                    Step::Pinned(slot) => pins.push(slot),
                    Step::Elsewhere => {}
                    Step::Writing(ticket) => {
                        if !self.wait_for_ticket(&ticket, deadline_us) {
                            break;
                        }
                        pins.push(ticket.pinned());
                        stored += u64::from(ticket.stored());
                    }
                }
                done = at + 1;
            }
            for (_, step) in out.drain(..) {
                stored += self.drop_step(step, &mut pins);
            }
        }
        pins.into_iter().for_each(|slot| self.parts.directory.unpin(slot));
        (done, stored)
    }

    /// Pins the leading run that is there; its length.
    fn pin_leading(&self, keys: &[Key], pins: &mut Vec<Slot>) -> usize {
        let run = self.look_up(keys);
        let mut kept = 0;
        for piece in pieces(&run) {
            let tail = run[piece.end - 1];
            if !self.parts.directory.pin(tail.slot, tail.generation) {
                break;
            }
            pins.push(tail.slot);
            kept = piece.end;
        }
        kept
    }

    /// Pins the blocks of the batch that are there already, wherever in it they stand.
    fn pin_present(&self, keys: &[Key], pins: &mut Vec<Slot>) {
        let directory = &self.parts.directory;
        let mut entries = Vec::new();
        add(&self.parts.counters.spurious_misses, directory.find(keys, &mut entries));
        let there = entries.into_iter().flatten().filter(|entry| entry.resident);
        let pinned = there.filter(|entry| directory.pin(entry.slot, entry.generation));
        pins.extend(pinned.map(|entry| entry.slot));
    }

    /// Begins the writes of the blocks from `next` on while staging frames are free; the first
    /// block not begun. Where there is no slot for one, the rest of the batch is given up.
    fn stage_ahead(&self, put: &PastRam<'_>, mut next: usize, out: &mut Out) -> usize {
        let directory = &self.parts.directory;
        while let (Some(key), Some(staging)) = (put.keys.get(next), self.staging()) {
            let twice = |(at, step): &(usize, Step)| {
                matches!(step, Step::Writing(_)) && put.keys[*at] == *key
            };
            let there = directory.find_one(*key).filter(|entry| entry.resident);
            if let Some(entry) = there.filter(|e| directory.pin(e.slot, e.generation)) {
                out.push_back((next, Step::Pinned(entry.slot)));
            } else if out.iter().any(twice) || self.is_replica(key) {
                out.push_back((next, Step::Elsewhere));
            } else {
                let Some(frame) = staging.frames.take_one() else { return next };
                let parent =
                    next.checked_sub(1).map_or(put.options.parent, |at| Some(put.keys[at]));
                let parent = parent.filter(|_| put.options.chained);
                let len = put.blocks.row_bytes(next) as u32;
                staging.arena.write(staging.arena.frame(frame, len), put.blocks, next);
                let Some(ticket) = self.stage(Staged::new(*key, parent, frame, len, put.epoch))
                else {
                    staging.frames.give(frame);
                    return put.keys.len();
                };
                add(&self.parts.counters.bytes_in, u64::from(len));
                out.push_back((next, Step::Writing(ticket)));
            }
            next += 1;
        }
        next
    }

    /// Whether a followed directory has the block, so that it is not written here.
    fn is_replica(&self, key: &Key) -> bool {
        let follow = self.parts.follow.as_ref().filter(|follow| follow.is_replicated());
        let replica = follow.is_some_and(|follow| follow.holds(key));
        if replica {
            self.with_tier(|tier, _| tier.stats.replica_skips += 1);
        }
        replica
    }

    /// Gives up a block; 1 where it was stored already.
    fn drop_step(&self, step: Step, pins: &mut Vec<Slot>) -> u64 {
        match step {
            Step::Pinned(slot) => pins.push(slot),
            Step::Writing(ticket) if !ticket.abandon() && ticket.ended() == Some(true) => {
                pins.push(ticket.pinned());
                return u64::from(ticket.stored());
            }
            Step::Writing(_) | Step::Elsewhere => {}
        }
        0
    }

    fn stage(&self, staged: Staged) -> Option<Ticket> {
        let ticket = staged.ticket.clone();
        let staged = Box::new(staged);
        let begun = self.with_tier_within(|tier, with, budget| tier.stage(with, staged, budget));
        (begun == Some(true)).then_some(ticket)
    }

    fn wait_for_ticket(&self, ticket: &Ticket, deadline_us: u64) -> bool {
        let mut end = None;
        self.wait_for_tier(deadline_us, || {
            end = ticket.ended();
            end.is_some()
        });
        if end.is_none() && !ticket.abandon() {
            end = ticket.ended();
        }
        end == Some(true)
    }
}

impl Staged {
    fn new(key: Key, parent: Option<Key>, frame: FrameId, len: u32, epoch: u32) -> Self {
        let (ticket, ssd, generation) = (Ticket::default(), SsdSlot(crate::units::NONE), 0);
        Self { ticket, key, parent, frame, len, epoch, ssd, generation }
    }
}
