//! Blocks come back from SSD into frames.
//!
//! Owns: both ends of such a read. Never does: wait for one, or take a frame. Invariants: one read
//! of a block is out at a time (LOADING); a block shows in RAM only after all its bytes came and
//! gave the tag of its record; one whose bytes are wrong or can't be read becomes a hole.

use super::jobs::Job;
use super::{Geometry, InRam, Tier, With};
use crate::directory::{Entry, Loaded};
use crate::event::EventKind;
use crate::io::{Completion, Fault, Op, Request};
use crate::policy::Policy;
use crate::ssd::format::tag_bytes;
use crate::store::tier::faults::Trust;
use crate::units::{FrameId, Slot, SsdSlot};

impl Tier {
    /// Begins the read of a block that is only on SSD into a frame. False where it is not begun;
    /// the frame is the caller's again.
    pub(in crate::store) fn load(
        &mut self,
        with: &mut With<'_>,
        entry: &Entry,
        frame: FrameId,
    ) -> bool {
        let directory = &with.parts.directory;
        let device = directory.ssd_slot_of(entry.slot).map_or(0, |ssd| self.devices.of(ssd));
        let trust = self.devices[device].breaker.trust(with.now_us);
        if trust == Trust::Nothing {
            self.stats.reads_refused += 1;
            return false;
        }
        let Some((ssd, len)) = directory.begin_load(entry, frame) else { return false };
        let rounded = Geometry::rounded(len);
        with.parts.arena.expect_read(frame, rounded);
        let job = Job::Load { slot: entry.slot };
        let id = self.begin(device, job, rounded, with.now_us, trust == Trust::Probe);
        let record = *self.devices.record(ssd);
        let region = with.parts.arena.frame(frame, rounded);
        let digest = self.digest(ssd, record.key, len, record.generation);
        let request = self.request(id, Op::Read, ssd, region, digest);
        self.queue_read(device, request, with.now_us);
        true
    }

    pub(super) fn queue_read(&mut self, device: usize, request: Request, now_us: u64) {
        self.devices[device].waiting_reads.push_back(request);
        self.start_reads(now_us);
    }

    /// Hands waiting reads over while there is room in flight.
    pub(super) fn start_reads(&mut self, now_us: u64) {
        for device in self.devices.iter_mut() {
            while let Some(request) = device.waiting_reads.front() {
                if !device.reading.has_room(request.region.len) {
                    break;
                }
                device.reading.add(request.region.len);
                self.jobs.start(request.id, now_us);
                self.outbox.extend(device.waiting_reads.pop_front());
            }
        }
    }

    /// Reads of a device not handed over yet are not made: their blocks stay where they are.
    pub(super) fn cancel_waiting_reads(&mut self, with: &mut With<'_>, device: usize) {
        while let Some(request) = self.devices[device].waiting_reads.pop_front() {
            let Some(begun) = self.jobs.take(request.id) else { continue };
            match begun.job {
                Job::Load { slot } => {
                    let frame = with.parts.directory.cancel_load(slot);
                    with.parts.arena.settle_read(frame, 0);
                    with.parts.frames.give(frame);
                }
                Job::Peek(peek) => self.drop_peek(with, &peek),
                _ => unreachable!("only blocks are read"),
            }
            self.stats.reads_refused += 1;
        }
    }

    pub(super) fn end_load(
        &mut self,
        with: &mut With<'_>,
        slot: Slot,
        completion: &Completion,
        whole: bool,
    ) {
        let directory = &with.parts.directory;
        let ssd = directory.ssd_slot_of(slot).expect("a block being read names its slot");
        let record = self.devices.record(ssd);
        let good = whole && record.tag == tag_bytes(completion.digest);
        let moving = directory.moving(slot);
        let blanked = record.is_free();
        with.parts.arena.settle_read(moving.frame, if good { moving.len } else { 0 });
        match directory.end_load(slot, good) {
            Loaded::Shown => {
                let who = InRam { directory, tier: Some(self) };
                with.policy.insert(slot, moving.key.words(), 0, &who);
                with.log.add(EventKind::Stored, Some(moving.key), "ram");
                self.stats.promotions += 1;
                self.stats.reads += 1;
                self.stats.read_bytes += u64::from(moving.len);
            }
            Loaded::Hole { frame, ssd, hidden } => {
                with.parts.frames.give(frame);
                self.devices.forget(slot);
                self.release(ssd, matches!(completion.result, Err(Fault::Io(_))), with.now_us);
                self.stats.bad_tags += u64::from(whole && !good && !blanked);
                if !hidden {
                    self.lost(with, slot);
                }
            }
        }
    }

    /// A block whose only copy turned out bad has become a hole.
    pub(super) fn lost(&mut self, with: &mut With<'_>, slot: Slot) {
        let directory = &with.parts.directory;
        let (key, len, epoch) = directory.describe(slot);
        with.parts.counters.resident(u32::from(epoch), -1, -i64::from(len));
        if epoch == directory.epoch() as u16 {
            self.stats.lost += 1;
            with.log.add(EventKind::Removed, Some(key), "ssd");
        } else {
            *with.cleared += 1;
        }
    }

    /// The SSD copy of a block is bad, found by a read past the arena.
    pub(super) fn bad_copy(&mut self, with: &mut With<'_>, slot: Slot, ssd: SsdSlot, io: bool) {
        let directory = &with.parts.directory;
        if directory.ssd_slot_of(slot) != Some(ssd) {
            return;
        }
        let in_ram = directory.is_in_ram(slot);
        let shown = directory.is_shown(slot);
        self.give_up(with, slot, io);
        let gone = directory.ssd_slot_of(slot).is_none();
        if in_ram {
            self.redo.push_back((slot, directory.generation_of(slot)));
            if shown && gone {
                let key = directory.describe(slot).0;
                with.log.add(EventKind::Removed, Some(key), "ssd");
            }
        } else if shown && gone {
            self.lost(with, slot);
            directory.settle(slot);
        }
    }
}
