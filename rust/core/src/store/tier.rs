//! The SSD tier as a state machine: `step(now, completions) -> requests`.
//!
//! Owns: the table's image, the SSD slots, the order in which blocks leave the SSD, every request
//! from its start to its completion, the breaker. Never does: I/O, waiting, reading a clock; it has
//! no thread and no file, and runs under the keeper's lock, a budget at a time. Invariants: a slot
//! is written by one request at a time and named by one header; a record stands in the image only
//! for a block whose bytes were written whole under its generation; nothing of a request's memory
//! is used again before its completion, however late it comes.
//!
//! `devices` has what is one device's alone, `spread` which of them a block is to go to;
//! `clean` writes dirty blocks, `load` reads blocks back, `stage` passes blocks by the arena,
//! `settle` brings table and SUPER to disk, `faults` decides when to leave a device alone,
//! `recover` fills the tier.

#[cfg(all(test, not(loom)))]
mod apart_tests;
mod clean;
mod devices;
#[cfg(all(test, not(loom)))]
mod devices_tests;
mod faults;
mod jobs;
mod load;
#[cfg(all(test, not(loom)))]
mod open_tests;
mod parts;
mod recover;
#[cfg(all(test, not(loom)))]
mod regressions;
mod room;
mod scrub;
mod settle;
#[cfg(all(test, not(loom)))]
mod sight;
mod spread;
mod stage;
#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(all(test, not(loom)))]
mod thread_tests;

pub(super) use parts::InRam;
pub(super) use recover::{RECOVERED_A_HOLD, Recovery, Removed};
pub(super) use scrub::Begun;
pub(super) use settle::Round;
#[cfg(all(test, not(loom)))]
pub(super) use sight::Outstanding;
pub(super) use stage::{STAGING_BYTES, Staged, Staging, Ticket};

use super::Parts;
use super::keeper::Budget;
use crate::arena::{Arena, Region};
use crate::directory::{Directory, Dirty};
use crate::event::EventLog;
use crate::io::{Completion, Digest, FileId, IO_ALIGN_BYTES, Op, Request};
use crate::key::Key;
use crate::policy::{Hints, Policy};
use crate::ssd::admit::Admission;
use crate::ssd::format::{self, Super};
use crate::stats::SsdStats;
use crate::units::{Slot, SsdSlot};
use clean::Done;
use devices::{Device, Devices};
use jobs::{Job, Jobs};
use parts::{Bits, OnSsd};
use spread::Spread;
use std::collections::VecDeque;
use std::sync::Arc;

/// The files of a device, in the order in which the engine got them.
pub(super) const SUPER_FILE: FileId = FileId(0);
pub(super) const TABLE_FILE: FileId = FileId(1);
/// `slots.0000`, and the others after it.
pub(super) const SLOTS_FILE: u32 = 2;

/// Table pages of a device in flight, and the memory they are sealed in: enough to read a table
/// fast at open.
pub(super) const PAGES_MAX: u32 = 256;
/// The same of a deterministic store, which is opened often and holds little.
pub(super) const FEW_PAGES: u32 = 8;
/// The device counts as idle after so long without a request; then older dirty blocks are cleaned.
const IDLE_US: u64 = 20_000;

/// What is fixed while the store is open.
#[derive(Clone)]
pub(super) struct Geometry {
    pub(super) fingerprint: [u8; 16],
    /// Drawn for this open.
    pub(super) boot: u64,
    pub(super) stride_bytes: u32,
    pub(super) block_bytes: u32,
    /// Blocks of a chain that go to one device of several.
    pub(super) stretch_blocks: u64,
    /// Requests older than this are late: their waiters have gone.
    pub(super) io_timeout_us: u64,
    /// Seconds since 1970 when the store's clock stood at 0.
    pub(super) opened_unix_s: u64,
}

/// Where a device's files and slots are.
#[derive(Clone)]
pub(super) struct DevicePlace {
    /// For people.
    pub(super) path: String,
    pub(super) uuid: [u8; 16],
    pub(super) slots_a_file: u32,
    /// What the engine calls its first file.
    pub(super) first_file: u32,
}

impl Geometry {
    /// Minutes since 2020 at a time of the store's clock.
    fn minutes(&self, now_us: u64) -> u32 {
        format::minutes_since_2020(self.opened_unix_s + now_us / 1_000_000)
    }

    fn rounded(len: u32) -> u32 {
        len.max(1).next_multiple_of(IO_ALIGN_BYTES as u32)
    }
}

/// How a tier comes to its end: each step allows less than the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    NotYet,
    /// No write of a block begins.
    NoNewBlocks,
    /// A write that ends now is lost: the table is confirmed without it.
    NoMoreRecords,
    /// Nothing begins.
    Nothing,
}

/// What else the keeper has, lent to the tier for one step.
pub(super) struct With<'a> {
    pub(super) parts: &'a Parts,
    pub(super) policy: &'a mut Hints,
    pub(super) log: &'a mut EventLog,
    /// Blocks that left by a clear.
    pub(super) cleared: &'a mut u64,
    pub(super) now_us: u64,
}

/// The tier.
pub(super) struct Tier {
    geometry: Geometry,
    devices: Devices,
    spread: Spread,
    admission: Admission,
    /// Dirty blocks that admission refused: they may leave RAM as they are.
    refused: Bits,
    /// Dirty blocks behind the front of `upcoming`: to be looked at again.
    redo: VecDeque<(Slot, u32)>,
    /// Dirty ancestors to be written before their descendant, which is the first; popped from the
    /// end.
    plan: Vec<(Slot, u32)>,
    /// Blocks on disk whose records wait for their parents'.
    written: VecDeque<Done>,
    jobs: Jobs,
    outbox: Vec<Request>,
    bounce: Arc<Arena>,
    counter: u64,
    /// Puts that wait for a clean block to leave.
    pub(super) waiting_puts: u32,
    /// Somebody waits until everything dirty is written.
    pub(super) flushing: u32,
    /// How far its end has come.
    pub(super) end: End,
    /// Nothing can be written now although something is dirty.
    pub(super) stuck: bool,
    /// What the disk holds is not all taken in yet: nothing new goes there, and dirty blocks leave
    /// RAM as in a store without a tier.
    recovering: bool,
    /// How far dirty blocks may leave RAM unwritten.
    dirty: Dirty,
    drops_allowed: u64,
    last_request_us: u64,
    pub(super) stats: SsdStats,
    #[cfg(all(test, not(loom)))]
    sorted_out: crate::ssd::recover::Counts,
    #[cfg(all(test, not(loom)))]
    recovered_a_hold_max: u64,
}

impl Tier {
    /// A tier over devices that hold what each one's SUPER says. Nothing is known yet of their
    /// blocks. Each has an equal share of the memory for pages.
    pub(super) fn new(
        geometry: Geometry,
        places: Vec<(DevicePlace, Super)>,
        headers: u32,
        admission: Admission,
        bounce: Arc<Arena>,
    ) -> Self {
        let share = bounce.frames() / places.len() as u32;
        let weights: Vec<u32> = places.iter().map(|(_, superblock)| superblock.slots).collect();
        let (mut first_slot, mut devices) = (0, Vec::new());
        for (at, (place, superblock)) in (0..).zip(places) {
            let (slots, frames) = (superblock.slots, at * share..(at + 1) * share);
            devices.push(Device::new(place, superblock, first_slot, headers, frames));
            first_slot += slots;
        }
        Self {
            devices: Devices::new(devices),
            spread: Spread::new(&weights, geometry.stretch_blocks, headers),
            admission,
            refused: Bits::new(headers),
            redo: VecDeque::new(),
            plan: Vec::new(),
            written: VecDeque::new(),
            jobs: Jobs::default(),
            outbox: Vec::new(),
            bounce,
            counter: 0,
            waiting_puts: 0,
            flushing: 0,
            end: End::NotYet,
            stuck: false,
            recovering: true,
            dirty: Dirty::Leaves,
            drops_allowed: 0,
            last_request_us: 0,
            stats: SsdStats::default(),
            #[cfg(all(test, not(loom)))]
            sorted_out: crate::ssd::recover::Counts::default(),
            #[cfg(all(test, not(loom)))]
            recovered_a_hold_max: 0,
            geometry,
        }
    }

    /// Takes completions in and starts what can be started. False where the budget ended first:
    /// there is more to do at once. What is to be submitted is appended to `requests`.
    pub(super) fn step(
        &mut self,
        with: &mut With<'_>,
        completions: &mut VecDeque<Completion>,
        requests: &mut Vec<Request>,
        budget: &mut Budget,
    ) -> bool {
        let mut all = true;
        while !completions.is_empty() {
            if !budget.spend() {
                all = false;
                break;
            }
            if let Some(completion) = completions.pop_front() {
                self.complete(with, completion);
            }
        }
        self.watch(with);
        self.enter_written(with);
        self.start_settling(with.now_us);
        self.start_reads(with.now_us);
        all &= self.start_cleaning(with, budget);
        self.hand_over(requests);
        all
    }

    /// What was started since the last time.
    pub(super) fn hand_over(&mut self, requests: &mut Vec<Request>) {
        requests.append(&mut self.outbox);
    }

    fn complete(&mut self, with: &mut With<'_>, completion: Completion) {
        let Some(begun) = self.jobs.take(completion.id) else { return };
        self.last_request_us = with.now_us;
        self.devices[begun.device].completed_us = with.now_us;
        let whole = completion.result == Ok(begun.len);
        self.judge(with, &begun, &completion);
        match begun.job {
            Job::Clean { .. } | Job::Stage(_) => {
                self.devices[begun.device].writing.remove(begun.len)
            }
            Job::Load { .. } | Job::Peek(_) => self.devices[begun.device].reading.remove(begun.len),
            Job::Page { .. } | Job::Super | Job::SyncSuper | Job::SyncTable | Job::SyncSlots => {}
        }
        match begun.job {
            Job::Clean { slot, ssd, generation } => {
                let digest = completion.digest;
                let result = completion.result.map(|_| whole);
                let since_us = with.now_us;
                let done = Done { slot, ssd, generation, digest, result, since_us };
                self.end_clean(with, done);
            }
            Job::Load { slot } => self.end_load(with, slot, &completion, whole),
            Job::Stage(staged) => self.end_stage(with, staged, &completion, whole),
            Job::Peek(peek) => self.end_peek(with, &peek, &completion, whole),
            Job::Page { page, frame } => {
                let device = &mut self.devices[begun.device];
                device.bounce_free.push(frame);
                device.table.done(page, whole, with.now_us);
                device.syncing.wrote_page(page, whole);
                self.stats.page_writes += u64::from(whole);
            }
            Job::Super => self.end_super(begun.device, with.now_us, begun.frame, whole),
            Job::SyncSuper => {
                self.end_super_sync(begun.device, with.now_us, completion.result.is_ok());
            }
            Job::SyncTable | Job::SyncSlots => {
                self.end_sync(begun.device, with.now_us, completion.result.is_ok());
            }
        }
    }

    fn digest(&self, ssd: SsdSlot, key: Key, len: u32, generation: u64) -> Digest {
        let (uuid, fingerprint) = (self.devices.uuid(ssd), &self.geometry.fingerprint);
        Digest { seed: format::tag_seed(uuid, fingerprint, &key, len, generation), len }
    }

    fn request(&self, id: u64, op: Op, ssd: SsdSlot, region: Region, digest: Digest) -> Request {
        let (file, offset) = self.devices.location(ssd, self.geometry.stride_bytes);
        let urgent = op == Op::Read;
        Request { id, op, file, offset, region, digest: Some(digest), urgent }
    }

    fn next_generation(&mut self) -> u64 {
        self.counter += 1;
        format::generation(self.epoch(), self.counter)
    }

    /// The epoch: one for all devices.
    fn epoch(&self) -> u32 {
        self.devices[0].superblock.epoch()
    }

    /// For the keeper: a block was removed or cleared. What is on SSD of it goes at once.
    pub(super) fn forget(&mut self, with: &mut With<'_>, slot: Slot) {
        self.refused.set(slot, false);
        self.devices.forget(slot);
        self.give_up(with, slot, false);
    }

    /// For the keeper: a block left RAM and is only on SSD now.
    pub(super) fn demoted(&mut self, slot: Slot) {
        self.stats.demotions += 1;
        self.devices.wake(slot);
    }

    /// Whether blocks are being written, or wait for their record.
    pub(super) fn is_writing(&self) -> bool {
        self.devices.writing() > 0 || !self.written.is_empty()
    }

    /// Whether blocks are held for their writes or reads.
    pub(super) fn is_moving(&self) -> bool {
        self.devices.writing() > 0 || self.devices.reading() > 0
    }

    /// Changes whenever a block may be able to leave RAM that was not before.
    pub(super) fn progress(&self) -> u64 {
        let SsdStats { writes, writes_lost, promotions, lost, refused, replica_skips, .. } =
            self.stats;
        let given_up = lost + refused + replica_skips + self.stats.breaker_opened;
        writes + writes_lost + promotions + given_up
    }

    /// For the keeper: a block came to RAM, dirty.
    pub(super) fn inserted(&mut self, with: &With<'_>, slot: Slot) {
        let directory = &with.parts.directory;
        directory.note_insert(slot, self.geometry.minutes(with.now_us));
        let parent = directory.parent_of(slot).map(|(parent, _)| parent);
        self.spread.note(slot, parent, &self.devices);
        self.refused.set(slot, false);
        self.stuck = false;
    }

    /// For the keeper: a block was delivered.
    pub(super) fn touch(&mut self, with: &mut With<'_>, slot: Slot) {
        let directory = &with.parts.directory;
        self.refused.set(slot, false);
        directory.note_use(slot, self.geometry.minutes(with.now_us));
        if let Some(ssd) = directory.ssd_slot_of(slot) {
            self.devices.order_of(ssd).touch(slot, &OnSsd(directory));
            let (last_use, hits) = directory.usage(slot);
            self.devices.touch_meta(ssd, last_use, hits);
        }
    }

    /// Whether the block is on SSD.
    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.devices.contains(slot)
    }

    /// For the keeper: a skipped block may be able to leave again.
    pub(super) fn wake(&mut self, slot: Slot) {
        self.devices.wake(slot);
    }

    /// For the keeper: a block whose retirement was taken back is to be written after all.
    pub(super) fn wanted_again(&mut self, slot: Slot, generation: u32) {
        self.redo.push_back((slot, generation));
        self.stuck = false;
    }

    /// Memory of image, slots, order and bits.
    pub(super) fn bytes(&self) -> u64 {
        let of_one = |it: &Device| it.table.bytes() + it.slots.bytes() + it.order.bytes();
        let devices: u64 = self.devices.iter().map(of_one).sum();
        devices + self.refused.bytes() + self.spread.bytes()
    }

    /// Whether requests are out, or about to be.
    pub(super) fn busy(&self) -> bool {
        let waiting = self.devices.iter().any(|device| !device.waiting_reads.is_empty());
        !self.jobs.is_empty() || waiting || !self.outbox.is_empty()
    }

    /// When something will have to be done without a completion, at the latest.
    pub(super) fn next_at(&mut self, now_us: u64) -> u64 {
        let due = self.devices.iter_mut().filter_map(|device| device.table.next_due_at()).min();
        let due = due.unwrap_or(u64::MAX);
        let idle = if self.stuck { u64::MAX } else { now_us + IDLE_US };
        due.min(idle).max(now_us + 1_000)
    }

    /// A consistent copy of the counters.
    pub(super) fn snapshot(&self) -> SsdStats {
        let admitted = self.admission.counts();
        SsdStats {
            admitted_under: admitted.written_under,
            admitted_over: admitted.written_over,
            devices: self.devices.len() as u64,
            devices_away: self.away().count() as u64,
            slots_total: u64::from(self.devices.slots()),
            slots_free: u64::from(self.devices.slots_free()),
            quarantined: self.devices.iter().map(|it| u64::from(it.slots.quarantined())).sum(),
            blocks: self.devices.blocks(),
            table_pages_dirty: self
                .devices
                .iter()
                .map(|it| u64::from(it.table.dirty_pages()))
                .sum(),
            requests_in_flight: self.jobs.len() as u64,
            state: if self.recovering { "recovering" } else { self.state() },
            ..self.stats.clone()
        }
    }

    /// For the recount: blocks on their way into a frame that lookups can see.
    pub(super) fn loading(&self, directory: &Directory) -> u64 {
        self.jobs.loading().filter(|slot| directory.is_shown(*slot)).count() as u64
    }

    /// A copy found bad while it is being read has no record any more; the rest follows.
    pub(super) fn is_loading(&self, slot: Slot) -> bool {
        self.jobs.loading().any(|loading| loading == slot)
    }

    /// For the recount: removed blocks whose slot follows with the end of their read.
    pub(super) fn leaving(&self) -> u64 {
        self.jobs.loading().filter(|slot| !self.devices.contains(*slot)).count() as u64
    }

    /// For the recount: the slots of the order, and whether its numbers agree.
    pub(super) fn validate(&self, directory: &Directory, wrong: &mut Vec<String>) {
        for (at, device) in self.devices.iter().enumerate() {
            for slot in device.order.validate() {
                let ssd = directory.ssd_slot_of(slot);
                let Some(ssd) = ssd.filter(|ssd| self.devices.of(*ssd) == at) else {
                    let slot = slot.0;
                    wrong.push(format!("slot {slot} is in the SSD order without an SSD slot"));
                    continue;
                };
                let record = self.devices.record(ssd);
                if record.key != directory.describe(slot).0
                    && !(record.is_free() && self.is_loading(slot))
                {
                    wrong.push(format!("slot {}: its record is another block's", slot.0));
                }
            }
        }
        let used: u64 = self.devices.iter().map(|it| u64::from(it.slots.used())).sum();
        let blocks = self.devices.blocks();
        let out = used - blocks;
        let writing = self.jobs.writing() + self.written.len() as u64;
        if out < writing || out > writing + self.jobs.loading().count() as u64 {
            wrong.push(format!(
                "SSD slots used {used}, in the order {blocks}, being written {writing}"
            ));
        }
    }
}
