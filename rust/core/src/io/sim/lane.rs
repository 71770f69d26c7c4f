//! What one engine has asked of a simulated disk, and how each request ends.
//!
//! Owns: the requests outstanding, their times, the rules their submitter must keep. Never does:
//! move a clock. Invariants: a request is in the table from its submission to its completion, hung
//! or not; bytes move at completion, so that memory touched meanwhile is noticed; equal
//! submissions at equal times end alike.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::thread;

use super::faults::{Mishap, SimCounts, SimFaults};
use super::image::{Image, SECTOR_BYTES, some_of_a_page};
use super::rng::Rng;
use super::{Crash, checked_end};
use crate::arena::{Memory, Region};
use crate::io::{
    Completion, Digest, Fault, IO_ALIGN_BYTES, Op, Request, bytes_mut_of, bytes_of, check, digest,
    digest64,
};

/// A duplicate comes back within so many times the longest latency of a write.
const REPLAY_LATENCIES: u64 = 10;

const GUARD_SEED: u64 = 0x67_7561_7264; // Not 0: unoptimized builds hash slowly with that.

/// The disk behind all engines.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) files: Vec<Image>,
    pub(super) faults: SimFaults,
    pub(super) counts: SimCounts,
}

#[derive(Debug)]
enum Entry {
    Asked { request: Request, mishap: Option<Mishap>, guard: Option<u64> },
    Replay { file: usize, offset: u64, bytes: Box<[u8]> },
}

#[derive(Debug)]
pub(super) struct Lane {
    memory: Memory,
    rng: Rng,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// When, and in which order at one time, an entry ends.
    due: BinaryHeap<Reverse<(u64, u64, u32)>>,
    hung: Vec<u32>,
    sequence: u64,
    outstanding: usize,
}

impl Lane {
    pub(super) fn new(memory: Memory, seed: u64) -> Self {
        Self {
            memory,
            rng: Rng::new(seed),
            entries: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            hung: Vec::new(),
            sequence: 0,
            outstanding: 0,
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    pub(super) fn next_due_us(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((due_us, ..))| *due_us)
    }

    pub(super) fn submit(&mut self, world: &mut World, now_us: u64, request: Request) {
        check(&self.memory, &request);
        if world.faults.strict {
            self.check_alone(&request, &mut world.counts);
        }
        world.counts.asked(request.op);
        let mishap = world.faults.draw(request.op, request.file, &mut self.rng);
        let latency_us = world.faults.latency_us(request.op, &mut self.rng);
        match request.op {
            Op::Read if world.faults.poison_reads => {
                // SAFETY: the region is the engine's from here to the completion.
                let memory = unsafe { bytes_mut_of(&self.memory, request.region) };
                memory.fill(0xD0 | (self.sequence & 0xF) as u8);
            }
            Op::Sync => world.files[request.file.0 as usize].sync_begins(),
            _ => {}
        }
        let guard = world.faults.strict.then(|| self.fingerprint(request.region));
        let place = self.place(Entry::Asked { request, mishap, guard });
        self.outstanding += 1;
        if mishap == Some(Mishap::Hang) {
            world.counts.hangs += 1;
            self.hung.push(place);
        } else {
            self.schedule(now_us + latency_us, place);
        }
    }

    /// Ends what is due.
    pub(super) fn advance(&mut self, world: &mut World, now_us: u64, into: &mut Vec<Completion>) {
        while self.next_due_us().is_some_and(|due_us| due_us <= now_us) {
            let Some(Reverse((due_us, _, place))) = self.due.pop() else { return };
            self.free.push(place);
            match self.entries[place as usize].take() {
                Some(Entry::Asked { request, mishap, guard }) => {
                    self.outstanding -= 1;
                    self.check_guard(&request, guard);
                    into.push(match request.op {
                        Op::Read => self.read(world, &request, mishap),
                        Op::Write => self.write(world, &request, mishap, due_us),
                        Op::Sync => self.sync(world, &request, mishap),
                    });
                }
                Some(Entry::Replay { file, offset, bytes }) => {
                    let image = &mut world.files[file];
                    if checked_end(offset, bytes.len() as u64) <= image.len() {
                        image.write(offset, &bytes);
                        world.counts.duplicates += 1;
                    }
                }
                None => {}
            }
        }
    }

    /// What hung completes at once.
    pub(super) fn release_hangs(&mut self) {
        for place in std::mem::take(&mut self.hung) {
            self.schedule(0, place);
        }
    }

    /// The engine has gone: its writes in flight land or not.
    pub(super) fn cut(mut self, world: &mut World, crash: Crash, rng: &mut Rng) {
        for entry in std::mem::take(&mut self.entries).into_iter().flatten() {
            let Entry::Asked { request, guard, .. } = entry else { continue };
            let image = &mut world.files[request.file.0 as usize];
            if request.op == Op::Sync {
                image.sync_vanishes();
            }
            let len = u64::from(request.region.len);
            if request.op != Op::Write || checked_end(request.offset, len) > image.len() {
                continue;
            }
            if !thread::panicking() {
                self.check_guard(&request, guard);
            }
            world.counts.cut_writes += 1;
            // SAFETY: the region is the engine's until its completion, which never came.
            let bytes = unsafe { bytes_of(&self.memory, request.region) };
            match crash {
                Crash::Kill => {
                    let pages = len / IO_ALIGN_BYTES;
                    let landed = match rng.below(3) {
                        0 => 0,
                        1 => pages,
                        _ => rng.below(pages + 1),
                    };
                    image.write(request.offset, &bytes[..(landed * IO_ALIGN_BYTES) as usize]);
                }
                Crash::Power => land_some(image, request.offset, bytes, None, rng),
            }
        }
    }

    fn place(&mut self, entry: Entry) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[place as usize] = Some(entry);
        place
    }

    fn schedule(&mut self, due_us: u64, place: u32) {
        self.sequence += 1;
        self.due.push(Reverse((due_us, self.sequence, place)));
    }

    fn fingerprint(&self, region: Region) -> u64 {
        // SAFETY: the region is the engine's from submission to completion.
        digest64(GUARD_SEED, unsafe { bytes_of(&self.memory, region) })
    }

    fn check_guard(&self, request: &Request, guard: Option<u64>) {
        let intact = guard.is_none_or(|guard| guard == self.fingerprint(request.region));
        assert!(intact, "memory of {request:?} was touched before its completion");
    }

    /// No other request outstanding shares its id, nor memory that one of the two fills, nor a
    /// place on disk that the other one writes to. A write may overtake a read of its place, whose
    /// submitter then gets any bytes.
    fn check_alone(&self, request: &Request, counts: &mut SimCounts) {
        for entry in self.entries.iter().flatten() {
            let Entry::Asked { request: other, .. } = entry else { continue };
            assert!(
                other.id != request.id,
                "id of {request:?} is that of one outstanding: {other:?}"
            );
            let ops = (request.op, other.op);
            if ops.0 == Op::Sync || ops.1 == Op::Sync {
                continue;
            }
            let (a, b) = (request.region, other.region);
            let lens = (u64::from(a.len), u64::from(b.len));
            let memory = a.who == b.who && meet(a.offset, lens.0, b.offset, lens.1);
            assert!(
                !memory || ops == (Op::Write, Op::Write),
                "memory of {request:?} is that of one outstanding: {other:?}"
            );
            let disk =
                request.file == other.file && meet(request.offset, lens.0, other.offset, lens.1);
            counts.overtaken_reads += u64::from(disk && ops == (Op::Write, Op::Read));
            assert!(
                !disk || ops.1 == Op::Read,
                "place on disk of {request:?} is that of one outstanding: {other:?}"
            );
        }
    }

    fn read(&mut self, world: &mut World, request: &Request, mishap: Option<Mishap>) -> Completion {
        let image = &mut world.files[request.file.0 as usize];
        let mut want = u64::from(request.region.len);
        match mishap {
            Some(Mishap::Error(fault)) => {
                world.counts.failed(Op::Read, fault);
                return Completion { id: request.id, result: Err(fault), digest: 0 };
            }
            Some(Mishap::Short) => {
                world.counts.shorts += 1;
                want = short_of(want, 1, &mut self.rng);
            }
            Some(Mishap::Rot) => {
                let here = image.seen(request.offset, want).len() as u64;
                if here > 0 {
                    world.counts.rots += 1;
                    let at = request.offset + self.rng.below(here);
                    let bit = 1 << self.rng.below(8);
                    image.damage(at, 1, |byte| byte[0] ^= bit);
                }
            }
            _ => {}
        }
        // SAFETY: the region is the engine's until this completion.
        let memory = unsafe { bytes_mut_of(&self.memory, request.region) };
        let seen = image.seen(request.offset, want);
        memory[..seen.len()].copy_from_slice(seen);
        let whole = seen.len() == memory.len();
        let digest = request.digest.filter(|_| whole).map_or(0, |wanted| digest_of(wanted, memory));
        Completion { id: request.id, result: Ok(seen.len() as u32), digest }
    }

    fn write(
        &mut self,
        world: &mut World,
        request: &Request,
        mishap: Option<Mishap>,
        now_us: u64,
    ) -> Completion {
        let World { files, faults, counts } = world;
        let file = request.file.0 as usize;
        let image = &mut files[file];
        // SAFETY: the region is the engine's until this completion.
        let bytes = unsafe { bytes_of(&self.memory, request.region) };
        let (offset, len) = (request.offset, bytes.len() as u64);
        let digest = request.digest.map_or(0, |wanted| digest_of(wanted, bytes));
        let mishap = match mishap {
            // Files are allocated in full; a write never grows one.
            _ if checked_end(offset, len) > image.len() => Some(Mishap::Error(Fault::Full)),
            mishap => mishap,
        };
        let mut moved = len;
        match mishap {
            Some(Mishap::Error(fault)) => {
                counts.failed(Op::Write, fault);
                if fault == Fault::Io(super::faults::EIO) && self.rng.one_in(2) {
                    land_some(image, offset, bytes, None, &mut self.rng);
                }
                return Completion { id: request.id, result: Err(fault), digest };
            }
            Some(Mishap::Short) => {
                counts.shorts += 1;
                moved = short_of(len, SECTOR_BYTES, &mut self.rng);
                image.write(offset, &bytes[..moved as usize]);
            }
            Some(Mishap::Lost) => counts.lost += 1,
            Some(Mishap::Misdirected) => match elsewhere(image, offset, len, &mut self.rng) {
                Some(place) => {
                    counts.misdirected += 1;
                    image.write(place, bytes);
                }
                None => counts.lost += 1,
            },
            Some(Mishap::Torn) => {
                counts.torn += 1;
                let missing = self.rng.below(len / SECTOR_BYTES);
                land_some(image, offset, bytes, Some(missing), &mut self.rng);
            }
            Some(Mishap::Duplicate) => {
                image.write(offset, bytes);
                let entry = Entry::Replay { file, offset, bytes: bytes.into() };
                let most_us = u64::from(faults.latency_us[Op::Write as usize].1);
                let due_us = now_us + 1 + self.rng.below(most_us * REPLAY_LATENCIES + 1);
                let place = self.place(entry);
                self.schedule(due_us, place);
            }
            Some(Mishap::Hang | Mishap::Rot) | None => image.write(offset, bytes),
        }
        Completion { id: request.id, result: Ok(moved as u32), digest }
    }

    fn sync(&mut self, world: &mut World, request: &Request, mishap: Option<Mishap>) -> Completion {
        let image = &mut world.files[request.file.0 as usize];
        let result = match mishap {
            Some(Mishap::Error(fault)) => {
                world.counts.failed(Op::Sync, fault);
                world.counts.forgotten_sectors += image.sync_fails(&mut self.rng);
                Err(fault)
            }
            _ => {
                image.sync_ends();
                Ok(0)
            }
        };
        Completion { id: request.id, result, digest: 0 }
    }
}

/// Less than `len`: whole pages half of the time, else whole units.
fn short_of(len: u64, unit: u64, rng: &mut Rng) -> u64 {
    let unit = if rng.one_in(2) { IO_ALIGN_BYTES } else { unit };
    rng.below(len / unit) * unit
}

fn digest_of(wanted: Digest, bytes: &[u8]) -> u128 {
    digest(wanted.seed, &bytes[..wanted.len as usize])
}

fn meet(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a < checked_end(b, b_len) && b < checked_end(a, a_len)
}

/// Some sectors of a write land, `missing` is none of them.
fn land_some(image: &mut Image, offset: u64, bytes: &[u8], missing: Option<u64>, rng: &mut Rng) {
    let sectors_a_page = IO_ALIGN_BYTES / SECTOR_BYTES;
    let mut landing = 0;
    for (sector, data) in (0..).zip(bytes.chunks(SECTOR_BYTES as usize)) {
        if sector % sectors_a_page == 0 {
            landing = some_of_a_page(rng);
        }
        if landing >> (sector % sectors_a_page) & 1 == 1 && missing != Some(sector) {
            image.write(offset + sector * SECTOR_BYTES, data);
        }
    }
}

/// Another place of the file that fits: half of the time whole lengths away, else any page.
fn elsewhere(image: &Image, offset: u64, len: u64, rng: &mut Rng) -> Option<u64> {
    let unit = if rng.one_in(2) { len } else { IO_ALIGN_BYTES };
    let skew = offset % unit;
    let places = (image.len() - len).checked_sub(skew)? / unit + 1;
    let here = (offset - skew) / unit;
    if places < 2 {
        return None;
    }
    let place = rng.below(places - 1);
    Some(skew + unit * (place + u64::from(place >= here)))
}
