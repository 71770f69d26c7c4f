//! Past the arena: blocks without a frame, read for one call or written by one.
//!
//! Owns: both ends of such transfers, and the word by which a caller learns of the end. Never does:
//! wait. Invariants: a staging frame belongs to the request until its completion and then, if the
//! caller still waits for a read, to the caller; a staged write shows its block only when all its
//! bytes are on SSD.

use super::clean::Written;
use super::jobs::Job;
use super::{End, Geometry, OnSsd, Tier, With};
use crate::arena::Arena;
use crate::directory::{Block, Commit, Entry, Frames, Home};
use crate::event::EventKind;
use crate::io::{Completion, Fault, Op};
use crate::key::Key;
use crate::policy::Policy;
use crate::ssd::format::tag_bytes;
use crate::stats::add;
use crate::store::keeper::Budget;
use crate::store::tier::faults::Trust;
use crate::units::{FrameId, Slot, SsdSlot};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Memory for blocks that pass by the arena; at least two blocks of it.
pub(in crate::store) const STAGING_BYTES: u64 = 16 << 20;

/// That memory.
pub(in crate::store) struct Staging {
    pub(in crate::store) arena: Arc<Arena>,
    pub(in crate::store) frames: Frames,
}

const PENDING: u32 = 0;
const GOOD: u32 = 1;
const BAD: u32 = 2;
const ABANDONED: u32 = 3;
/// Good, but somebody else stored the block first.
const THERE: u32 = 4;

/// How a caller learns of the end of its transfer.
#[derive(Clone, Default)]
pub(in crate::store) struct Ticket(Arc<(AtomicU32, AtomicU32)>);

impl Ticket {
    /// False where nobody waits any more.
    fn end(&self, end: u32) -> bool {
        // Release: the bytes in the staging frame, and the slot, come before the word.
        self.0.0.compare_exchange(PENDING, end, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends well, with a block pinned for the caller.
    fn end_pinned(&self, slot: Slot, stored: bool) -> bool {
        self.0.1.store(slot.0, Ordering::Relaxed);
        self.end(if stored { GOOD } else { THERE })
    }

    /// The end, once it is there: whether it was a good one.
    pub(in crate::store) fn ended(&self) -> Option<bool> {
        match self.0.0.load(Ordering::Acquire) {
            PENDING => None,
            end => Some(end == GOOD || end == THERE),
        }
    }

    /// Whether it ended well with a block that was stored for it.
    pub(in crate::store) fn stored(&self) -> bool {
        self.0.0.load(Ordering::Acquire) == GOOD
    }

    /// After a good end of a write: the block, pinned for the caller.
    pub(in crate::store) fn pinned(&self) -> Slot {
        Slot(self.0.1.load(Ordering::Relaxed))
    }

    /// Nobody waits any more; false where the end came first.
    pub(in crate::store) fn abandon(&self) -> bool {
        let word = &self.0.0;
        let swap = word.compare_exchange(PENDING, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
        swap.is_ok()
    }
}

/// A block that is read into a staging frame.
pub(in crate::store) struct Peek {
    pub(in crate::store) ticket: Ticket,
    slot: Slot,
    ssd: SsdSlot,
    frame: FrameId,
    tag: [u8; 16],
}

/// A block that is written from a staging frame.
pub(in crate::store) struct Staged {
    pub(in crate::store) ticket: Ticket,
    pub(in crate::store) key: Key,
    pub(in crate::store) parent: Option<Key>,
    pub(in crate::store) frame: FrameId,
    pub(in crate::store) len: u32,
    pub(in crate::store) epoch: u32,
    /// Where it goes; the tier's own affair.
    pub(in crate::store) ssd: SsdSlot,
    pub(in crate::store) generation: u64,
}

fn staging<'a>(with: &With<'a>) -> &'a Staging {
    with.parts.staging.as_ref().expect("a store with an SSD tier has staging frames")
}

impl Tier {
    /// Begins the read of a pinned block that has an SSD copy into a staging frame; `None` where
    /// there is no such copy, or the device is left alone: the frame is the caller's again.
    pub(in crate::store) fn peek(
        &mut self,
        with: &mut With<'_>,
        entry: &Entry,
        frame: FrameId,
    ) -> Option<Ticket> {
        let directory = &with.parts.directory;
        let live = directory.is_live(entry.slot, entry.generation);
        let ssd = directory.ssd_slot_of(entry.slot).filter(|_| live)?;
        let device = self.devices.of(ssd);
        let trust = self.devices[device].breaker.trust(with.now_us);
        if trust == Trust::Nothing {
            return None;
        }
        let record = *self.devices.record(ssd);
        if record.is_free() {
            return None;
        }
        let ticket = Ticket::default();
        let peek = Peek { ticket: ticket.clone(), slot: entry.slot, ssd, frame, tag: record.tag };
        let rounded = Geometry::rounded(record.len);
        let staging = staging(with);
        staging.arena.expect_read(frame, rounded);
        let job = Job::Peek(peek);
        let id = self.begin(device, job, rounded, with.now_us, trust == Trust::Probe);
        let region = staging.arena.frame(frame, rounded);
        let digest = self.digest(ssd, record.key, record.len, record.generation);
        let request = self.request(id, Op::Read, ssd, region, digest);
        self.queue_read(device, request, with.now_us);
        Some(ticket)
    }

    pub(super) fn end_peek(
        &mut self,
        with: &mut With<'_>,
        peek: &Peek,
        completion: &Completion,
        whole: bool,
    ) {
        let good = whole && peek.tag == tag_bytes(completion.digest);
        let current = self.devices.record(peek.ssd).tag == peek.tag;
        if good {
            self.stats.reads += 1;
            self.stats.read_bytes += u64::from(completion.result.unwrap_or(0));
        } else if current {
            // The block is pinned, so the slot is still its own.
            self.stats.bad_tags += u64::from(whole);
            let io = matches!(completion.result, Err(Fault::Io(_)));
            if whole || io {
                self.bad_copy(with, peek.slot, peek.ssd, io);
            }
        }
        if !peek.ticket.end(if good && current { GOOD } else { BAD }) {
            self.give_staging(with, peek.frame);
        }
    }

    pub(super) fn drop_peek(&mut self, with: &mut With<'_>, peek: &Peek) {
        if !peek.ticket.end(BAD) {
            self.give_staging(with, peek.frame);
        }
    }

    fn give_staging(&self, with: &With<'_>, frame: FrameId) {
        staging(with).frames.give(frame);
    }

    /// Begins the write of a block from its staging frame. False where there is no slot for it, or
    /// nothing is to be written now; the frame is the caller's again.
    pub(in crate::store) fn stage(
        &mut self,
        with: &mut With<'_>,
        mut staged: Box<Staged>,
        budget: &mut Budget,
    ) -> bool {
        if self.end > End::NotYet || self.recovering || !self.any_ready(with.now_us, true) {
            return false;
        }
        let parent = staged.parent.and_then(|parent| with.parts.directory.find_one(parent));
        let wanted = self.spread.device_under(parent.map(|entry| entry.slot), &self.devices);
        let Some((ssd, probe)) = self.take_slot(with, wanted, true, budget) else {
            self.stats.no_slot += 1;
            return false;
        };
        staged.ssd = ssd;
        staged.generation = self.next_generation();
        let len = Geometry::rounded(staged.len);
        let region = staging(with).arena.frame(staged.frame, len);
        let digest = self.digest(ssd, staged.key, staged.len, staged.generation);
        let device = self.devices.of(ssd);
        let id = self.begin(device, Job::Stage(staged), len, with.now_us, probe);
        let request = self.request(id, Op::Write, ssd, region, digest);
        self.outbox.push(request);
        self.devices[device].writing.add(len);
        true
    }

    pub(super) fn end_stage(
        &mut self,
        with: &mut With<'_>,
        staged: Box<Staged>,
        completion: &Completion,
        whole: bool,
    ) {
        let directory = &with.parts.directory;
        let whole = whole && self.end < End::NoMoreRecords;
        let mut pinned = whole.then(|| self.enter(with, &staged, completion.digest)).flatten();
        let stored = pinned.is_some();
        if !stored {
            let quarantine = matches!(completion.result, Err(Fault::Io(_)));
            self.release(staged.ssd, quarantine, with.now_us);
            self.stats.writes_lost += 1;
            let there = directory.find_one(staged.key).filter(|entry| entry.resident);
            let there = there.filter(|entry| directory.pin(entry.slot, entry.generation));
            pinned = there.map(|entry| entry.slot);
        }
        self.give_staging(with, staged.frame);
        let waited_for = match pinned {
            Some(slot) => staged.ticket.end_pinned(slot, stored),
            None => staged.ticket.end(BAD),
        };
        if let (Some(slot), false) = (pinned, waited_for) {
            // Its put has ended without it.
            add(&with.parts.counters.put_again, u64::from(stored));
            directory.unpin(slot);
        }
    }

    /// Enters a staged block whose bytes are on SSD, with a pin for the caller; `None` where its
    /// key is there already, or it was cleared.
    fn enter(&mut self, with: &mut With<'_>, staged: &Staged, digest: u128) -> Option<Slot> {
        let directory = &with.parts.directory;
        let parent = staged.parent.filter(|key| *key != staged.key).and_then(|key| {
            let there = directory.find_one(key);
            let there = there.filter(|e| directory.pin(e.slot, e.generation));
            there.or_else(|| directory.hole(key, staged.epoch))
        });
        let block = Block {
            key: staged.key,
            parent: parent.map(|entry| (entry.slot, entry.generation)),
            home: Home::Ssd(staged.ssd),
            len: staged.len,
            epoch: staged.epoch,
            pins: 2,
        };
        let committed = directory.commit(&block);
        let carried = matches!(committed, Commit::Stored { refilled: false, .. });
        if let (Some(parent), false) = (parent, carried) {
            directory.unpin(parent.slot);
        }
        let Commit::Stored { entry, refilled } = committed else { return None };
        with.parts.counters.resident(staged.epoch, 1, i64::from(staged.len));
        directory.count_child(entry.slot, refilled, false);
        if let Some((parent, of)) = directory.parent_of(entry.slot)
            && with.policy.take_back(parent)
        {
            self.wanted_again(parent, of);
        }
        let parent = directory.moving(entry.slot).parent;
        let written = Written { key: staged.key, parent, len: staged.len };
        let minutes = self.geometry.minutes(with.now_us);
        let record = self.record(&written, digest, staged.generation, (minutes, 0));
        self.devices.set(staged.ssd, record, with.now_us);
        let above = directory.parent_of(entry.slot).map(|(parent, _)| parent);
        self.spread.found(entry.slot, above, self.devices.of(staged.ssd));
        self.devices.order_of(staged.ssd).insert(
            entry.slot,
            staged.key.words(),
            0,
            &OnSsd(directory),
        );
        directory.drop_event_pins(entry.slot);
        with.log.add(EventKind::Stored, Some(staged.key), "ssd");
        self.stats.writes += 1;
        self.stats.staged += 1;
        self.stats.write_bytes += u64::from(staged.len);
        Some(entry.slot)
    }
}
