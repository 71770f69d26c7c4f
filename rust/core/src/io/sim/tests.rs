//! The simulated engine: virtual time, determinism, each mishap, and the rules of submitters.

mod crashes;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::arena::Region;
use crate::io::tests::{PAGE, memory, noise, put, region, request, sync, take};
use crate::io::{Digest, Fault, FileId, Op, digest};

const P: u64 = PAGE as u64;
const FILE_PAGES: u32 = 64;
const FILE: FileId = FileId(0);

/// A disk with two files, an engine on it, and its memory and clock.
struct Bed {
    disk: Arc<SimDisk>,
    clock_us: Arc<AtomicU64>,
    memory: Memory,
    sim: Sim,
    next_id: AtomicU64,
}

impl Bed {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        assert_eq!(disk.add_file(u64::from(FILE_PAGES) * P), FILE);
        assert_eq!(disk.add_file(8 * P), FileId(1));
        let (clock_us, memory) = (Arc::new(AtomicU64::new(0)), memory(FILE_PAGES));
        let sim = Sim::new(&disk, Arc::clone(&clock_us), memory.clone(), seed);
        Self { disk, clock_us, memory, sim, next_id: AtomicU64::new(1) }
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn now_us(&self) -> u64 {
        self.clock_us.load(Ordering::Relaxed)
    }

    /// A write of noise from memory page `at` to the same page of the file.
    fn write_of(&self, at: u32, pages: u32, seed: u64) -> Request {
        put(&self.memory, region(at, pages), &noise(seed, pages * PAGE));
        request(self.id(), Op::Write, u64::from(at) * P, region(at, pages))
    }

    fn run(&self, asked: Request) -> Completion {
        self.sim.submit(&[asked]);
        let mut ended = Vec::new();
        self.sim.reap(Duration::from_secs(1), &mut ended);
        assert_eq!(ended.len(), 1);
        ended[0]
    }

    fn write(&self, at: u32, pages: u32, seed: u64) -> Result<u32, Fault> {
        self.run(self.write_of(at, pages, seed)).result
    }

    /// Reads page `at` of the file into the same page of memory.
    fn read(&self, at: u32, pages: u32) -> Completion {
        let whole = Some(Digest { seed: 0, len: pages * PAGE });
        let read = request(self.id(), Op::Read, u64::from(at) * P, region(at, pages));
        self.run(Request { digest: whole, ..read })
    }

    /// What the disk holds.
    fn on_disk(&self, file: FileId, at: u32, pages: u32) -> Vec<u8> {
        let mut bytes = vec![0; (pages * PAGE) as usize];
        assert_eq!(self.disk.read(file, u64::from(at) * P, &mut bytes), bytes.len());
        bytes
    }

    fn next(&self, op: Op, mishap: Mishap) {
        let next = FailNext { op: Some(op), after: 0, mishap, forever: false };
        self.disk.faults(|faults| faults.fail_next = Some(next));
    }

    fn reattach(&mut self) {
        self.sim = Sim::new(&self.disk, Arc::clone(&self.clock_us), self.memory.clone(), 99);
    }
}

/// How many sectors of `seen` are `new`, and whether the others are all zeros.
fn sectors_landed(seen: &[u8], new: &[u8]) -> (usize, bool) {
    let mut pairs = seen.chunks(512).zip(new.chunks(512));
    let mut old_or_new = true;
    let landed = pairs.by_ref().filter(|(seen, new)| {
        old_or_new &= seen == new || seen.iter().all(|&byte| byte == 0);
        seen == new
    });
    (landed.count(), old_or_new)
}

#[test]
fn time_moves_to_the_next_completion_and_no_further() {
    let bed = Bed::new(1);
    bed.disk.faults(|faults| faults.latency_us = [(100, 100), (70, 70), (500, 500)]);
    bed.sim.submit(&[bed.write_of(0, 1, 1), sync(1000)]);
    let mut ended = Vec::new();
    bed.sim.reap(Duration::from_micros(30), &mut ended);
    assert_eq!((ended.len(), bed.now_us()), (0, 30));
    bed.sim.reap(Duration::from_secs(1), &mut ended);
    assert_eq!((ended.len(), bed.now_us()), (1, 70));
    bed.sim.reap(Duration::from_micros(429), &mut ended);
    assert_eq!((ended.len(), bed.now_us()), (1, 499));
    // Its owner may move the clock too.
    bed.clock_us.fetch_add(1, Ordering::Relaxed);
    bed.sim.reap(Duration::ZERO, &mut ended);
    assert_eq!((ended.len(), bed.now_us()), (2, 500));
    bed.sim.wake();
    bed.sim.reap(Duration::from_secs(1), &mut ended);
    assert_eq!((ended.len(), bed.now_us()), (2, 500));
    bed.sim.reap(Duration::from_secs(1), &mut ended);
    assert_eq!((ended.len(), bed.now_us()), (2, 1_000_500));
}

/// All completions of a mixed run in order, the times they came at, and the disk afterwards.
fn history(seed: u64) -> (Vec<(u64, Completion)>, Vec<u8>, SimCounts) {
    let bed = Bed::new(seed);
    bed.disk.faults(|faults| {
        faults.short_ppm = 50_000;
        faults.eio_read_ppm = 50_000;
        faults.lost_write_ppm = 50_000;
        faults.torn_write_ppm = 50_000;
        faults.misdirected_write_ppm = 50_000;
        faults.duplicate_ppm = 50_000;
        faults.rot_ppm = 50_000;
        faults.eio_sync_ppm = 50_000;
    });
    let (mut rng, mut all) = (Rng::new(5), Vec::new());
    for _ in 0..40 {
        let first = rng.below(u64::from(FILE_PAGES - 16)) as u32;
        for at in first..first + 16 {
            let asked = bed.write_of(at, 1, rng.bits());
            let op = if rng.one_in(2) { Op::Read } else { Op::Write };
            bed.sim.submit(&[Request { op, ..asked }]);
        }
        bed.sim.submit(&[sync(bed.id())]);
        while bed.sim.outstanding() > 0 {
            let mut ended = Vec::new();
            bed.sim.reap(Duration::from_millis(1), &mut ended);
            all.extend(ended.into_iter().map(|done| (bed.now_us(), done)));
        }
    }
    bed.disk.crash(3, Crash::Power);
    let disk = bed.on_disk(FILE, 0, FILE_PAGES);
    (all, disk, bed.disk.counts())
}

#[test]
fn a_seed_gives_one_history_and_another_seed_another() {
    let (first, again, other) = (history(7), history(7), history(8));
    assert!(first == again, "two runs of one seed differ");
    assert!(first.0 != other.0 && first.1 != other.1);
    assert_eq!(first.0.len(), 40 * 17);
}

#[test]
fn completions_come_in_another_order_than_submissions() {
    let bed = Bed::new(2);
    let asked: Vec<Request> = (0..16).map(|at| bed.write_of(at, 1, 1)).collect();
    bed.sim.submit(&asked);
    let mut ended = Vec::new();
    while bed.sim.outstanding() > 0 {
        bed.sim.reap(Duration::from_secs(1), &mut ended);
    }
    assert!(!ended.is_sorted_by_key(|done| done.id));
}

#[test]
fn a_lost_write_is_reported_done_and_is_nowhere() {
    let bed = Bed::new(3);
    bed.next(Op::Write, Mishap::Lost);
    assert_eq!(bed.write(5, 2, 1), Ok(2 * PAGE));
    assert!(bed.on_disk(FILE, 0, FILE_PAGES).iter().all(|&byte| byte == 0));
    assert_eq!(bed.disk.counts().lost, 1);
}

#[test]
fn a_misdirected_write_is_elsewhere_whole() {
    for seed in 0..50 {
        let bed = Bed::new(seed);
        let old = noise(100, 3 * PAGE);
        bed.disk.write_raw(FILE, 6 * P, &old);
        bed.next(Op::Write, Mishap::Misdirected);
        assert_eq!(bed.write(6, 3, 1), Ok(3 * PAGE));
        let (disk, new) = (bed.on_disk(FILE, 0, FILE_PAGES), noise(1, 3 * PAGE));
        let pages = disk.chunks(P as usize);
        let at = pages.clone().position(|page| page == &new[..P as usize]).expect("somewhere");
        assert!(at != 6 && disk[at * P as usize..].starts_with(&new), "seed {seed}: page {at}");
        assert_eq!(bed.disk.counts().misdirected, 1);
    }
}

#[test]
fn a_torn_write_is_reported_done_and_lacks_a_sector() {
    let mut partly = 0;
    for seed in 0..50 {
        let bed = Bed::new(seed);
        for (at, pages) in [(0, 4), (8, 1)] {
            bed.next(Op::Write, Mishap::Torn);
            assert_eq!(bed.write(at, pages, seed), Ok(pages * PAGE));
            let seen = bed.on_disk(FILE, at, pages);
            let (landed, clean) = sectors_landed(&seen, &noise(seed, pages * PAGE));
            assert!(landed < seen.len() / 512 && clean, "seed {seed}: {landed} of {pages} pages");
            partly += usize::from(landed > 0);
        }
    }
    assert!(partly > 50, "{partly} of 100 landed in part");
}

#[test]
fn a_short_transfer_moves_what_it_says() {
    let (mut unaligned, mut aligned) = (0, 0);
    for seed in 0..50 {
        let bed = Bed::new(seed);
        bed.next(Op::Write, Mishap::Short);
        let moved = bed.write(0, 4, seed).expect("short, not failed") as usize;
        let (disk, new) = (bed.on_disk(FILE, 0, 4), noise(seed, 4 * PAGE));
        assert!(moved < new.len() && disk[..moved] == new[..moved], "seed {seed}");
        assert!(disk[moved..].iter().all(|&byte| byte == 0), "seed {seed}");

        bed.disk.write_raw(FILE, 0, &new);
        bed.next(Op::Read, Mishap::Short);
        let done = bed.read(0, 4);
        let moved = done.result.expect("short, not failed") as usize;
        let memory = take(&bed.memory, region(0, 4));
        assert!(moved < new.len() && memory[..moved] == new[..moved], "seed {seed}");
        assert!(memory[moved..].iter().all(|&byte| byte & 0xF0 == 0xD0), "seed {seed}");
        assert_eq!((done.digest, bed.disk.counts().shorts), (0, 2));
        *(if (moved as u64).is_multiple_of(P) { &mut aligned } else { &mut unaligned }) += 1;
    }
    assert!(aligned > 5 && unaligned > 5, "{aligned} and {unaligned}");
}

#[test]
fn errors_are_reported_by_kind_and_move_nothing_into_memory() {
    let bed = Bed::new(4);
    let eio = Fault::Io(5);
    for (op, fault) in [
        (Op::Read, eio),
        (Op::Write, eio),
        (Op::Write, Fault::Full),
        (Op::Write, Fault::ReadOnly),
        (Op::Sync, eio),
    ] {
        bed.next(op, Mishap::Error(fault));
        let region = region(0, u32::from(op != Op::Sync));
        let done = bed.run(request(bed.id(), op, 0, region));
        assert_eq!((done.result, done.digest), (Err(fault), 0), "{op:?}");
    }
    let SimCounts { read_errors, write_errors, sync_errors, full, .. } = bed.disk.counts();
    assert_eq!((read_errors, write_errors, full, sync_errors), (1, 2, 1, 1));
    assert!(take(&bed.memory, region(0, 1)).iter().all(|&byte| byte & 0xF0 == 0xD0));
}

#[test]
fn a_write_past_the_end_finds_no_room() {
    let bed = Bed::new(4);
    for offset in [u64::from(FILE_PAGES - 1) * P, u64::from(FILE_PAGES) * P, u64::MAX / P * P] {
        let done = bed.run(request(bed.id(), Op::Write, offset, region(0, 2)));
        assert_eq!(done.result, Err(Fault::Full), "at {offset}");
        let done = bed.run(request(bed.id(), Op::Read, offset, region(0, 2)));
        let there = (u64::from(FILE_PAGES) * P).saturating_sub(offset) as u32;
        assert_eq!(done.result, Ok(there), "at {offset}");
    }
    assert_eq!(bed.disk.file_len(FILE), u64::from(FILE_PAGES) * P);
}

#[test]
fn what_hangs_completes_when_it_is_released() {
    let bed = Bed::new(5);
    bed.disk.faults(|faults| faults.hang_all = true);
    bed.sim.submit(&[bed.write_of(0, 1, 1), sync(1000)]);
    let mut ended = Vec::new();
    bed.sim.reap(Duration::from_secs(3600), &mut ended);
    assert_eq!((ended.len(), bed.sim.outstanding(), bed.disk.counts().hangs), (0, 2, 2));
    bed.disk.faults(|faults| faults.hang_all = false);
    bed.disk.release_hangs();
    bed.sim.reap(Duration::ZERO, &mut ended);
    assert_eq!((ended.len(), bed.sim.outstanding()), (2, 0));
    assert_eq!(bed.on_disk(FILE, 0, 1), noise(1, PAGE));
}

#[test]
fn rot_flips_one_bit_of_what_is_read_for_good() {
    let bed = Bed::new(6);
    let old = noise(1, 4 * PAGE);
    bed.disk.write_raw(FILE, 0, &old);
    bed.next(Op::Read, Mishap::Rot);
    let done = bed.read(0, 4);
    let seen = take(&bed.memory, region(0, 4));
    let flipped: u32 = seen.iter().zip(&old).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!((done.result, flipped), (Ok(4 * PAGE), 1));
    assert_eq!(done.digest, digest(0, &seen)); // The digest is over what was read.
    bed.disk.crash(0, Crash::Power);
    assert_eq!(bed.on_disk(FILE, 0, 4), seen);
}

#[test]
fn a_duplicate_comes_back_over_newer_bytes() {
    let mut replayed = 0;
    for seed in 0..20 {
        let bed = Bed::new(seed);
        bed.next(Op::Write, Mishap::Duplicate);
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        assert_eq!(bed.on_disk(FILE, 0, 1), noise(1, PAGE));
        assert_eq!(bed.write(0, 1, 2), Ok(PAGE));
        replayed += bed.disk.counts().duplicates; // It may have come before the newer write.
        let newer = bed.disk.counts().duplicates == 0;
        bed.sim.reap(Duration::from_secs(1), &mut Vec::new());
        assert_eq!(bed.on_disk(FILE, 0, 1), noise(2 - u64::from(newer), PAGE), "seed {seed}");
        assert_eq!(bed.disk.counts().duplicates, 1);
    }
    assert!(replayed < 10, "{replayed} of 20 came before the newer write");
}

#[test]
fn probabilities_are_met() {
    let bed = Bed::new(7);
    bed.disk.faults(|faults| {
        faults.eio_read_ppm = PPM / 10;
        faults.rot_ppm = PPM / 5;
        faults.eio_write_ppm = PPM / 10;
        faults.enospc_ppm = PPM / 20;
        faults.torn_write_ppm = PPM / 4;
        faults.eio_sync_ppm = PPM / 2;
    });
    for _ in 0..2000 {
        let _ = (bed.write(0, 1, 1), bed.read(0, 1), bed.run(sync(bed.id())));
    }
    let counts = bed.disk.counts();
    assert_eq!((counts.reads, counts.writes, counts.syncs), (2000, 2000, 2000));
    let close = |seen: u64, expected: u64| seen.abs_diff(expected) < expected / 4 + 20;
    assert!(close(counts.read_errors, 200) && close(counts.rots, 400), "{counts:?}");
    assert!(close(counts.write_errors, 200) && close(counts.full, 100), "{counts:?}");
    assert!(close(counts.torn, 500) && close(counts.sync_errors, 1000), "{counts:?}");
    assert_eq!(counts.lost + counts.misdirected + counts.hangs + counts.shorts, 0);
}

#[test]
fn the_nth_request_fails_once_or_from_then_on() {
    for (op, forever) in [(None, false), (None, true), (Some(Op::Read), true)] {
        for after in 0..6 {
            let bed = Bed::new(8);
            let mishap = Mishap::Error(Fault::Io(5));
            let next = FailNext { op, after, mishap, forever };
            bed.disk.faults(|faults| faults.fail_next = Some(next));
            let mut counted = 0;
            for _ in 0..4 {
                for (kind, failed) in [
                    (Op::Write, bed.write(0, 1, 1).is_err()),
                    (Op::Read, bed.read(0, 1).result.is_err()),
                ] {
                    let counts = op.is_none_or(|op| op == kind);
                    let due = counts && (counted == after || forever && counted > after);
                    assert_eq!(failed, due, "{kind:?} {counted} of {next:?}");
                    counted += u32::from(counts);
                }
            }
        }
    }
}

#[test]
fn memory_of_a_read_is_garbage_until_it_completes() {
    let bed = Bed::new(9);
    bed.disk.write_raw(FILE, 0, &noise(1, PAGE));
    put(&bed.memory, region(0, 1), &[7; P as usize]);
    bed.sim.submit(&[request(1, Op::Read, 0, region(0, 1))]);
    assert!(take(&bed.memory, region(0, 1)).iter().all(|&byte| byte & 0xF0 == 0xD0));
    bed.sim.reap(Duration::from_secs(1), &mut Vec::new());
    assert_eq!(take(&bed.memory, region(0, 1)), noise(1, PAGE));
}

/// What submitting these, touching memory, and reaping panics with.
fn complaint(requests: &[Request], touch: Option<Region>, strict: bool) -> Option<String> {
    let bed = Bed::new(10);
    bed.disk.faults(|faults| faults.strict = strict);
    let act = AssertUnwindSafe(|| {
        bed.sim.submit(requests);
        if let Some(touch) = touch {
            put(&bed.memory, touch, &vec![9; touch.len as usize]);
        }
        bed.sim.reap(Duration::from_secs(1), &mut Vec::new());
        bed.sim.reap(Duration::from_secs(1), &mut Vec::new());
    });
    let panic = catch_unwind(act).err()?;
    Some(panic.downcast_ref::<String>().expect("a message").clone())
}

#[test]
fn memory_touched_before_its_completion_is_noticed() {
    for op in [Op::Read, Op::Write] {
        let asked = [request(1, op, 0, region(0, 2))];
        assert_eq!(complaint(&asked, None, true), None);
        assert_eq!(complaint(&asked, Some(region(2, 1)), true), None, "its neighbour's memory");
        let touched = complaint(&asked, Some(region(1, 1)), true);
        assert!(touched.is_some_and(|text| text.contains("was touched before")), "{op:?}");
        assert_eq!(complaint(&asked, Some(region(1, 1)), false), None, "{op:?}, lenient");
    }
}

#[test]
fn requests_that_meet_are_noticed() {
    let (read, write) = (Op::Read, Op::Write);
    let elsewhere = Request { file: FileId(1), ..request(2, write, 0, region(1, 1)) };
    for (first, second, what) in [
        (request(1, read, 0, region(0, 1)), request(1, read, P, region(1, 1)), "id of"),
        (request(1, read, 0, region(0, 1)), request(2, read, P, region(1, 1)), ""),
        (request(1, read, 0, region(0, 2)), request(2, write, 2 * P, region(1, 1)), "memory of"),
        (request(1, read, 0, region(0, 2)), request(2, read, 2 * P, region(1, 1)), "memory of"),
        (request(1, write, 0, region(0, 2)), request(2, write, 2 * P, region(1, 1)), ""),
        (request(1, write, 0, region(0, 2)), request(2, read, P, region(2, 1)), "place on disk"),
        (request(1, write, 0, region(0, 2)), request(2, write, P, region(2, 1)), "place on disk"),
        (request(1, read, 0, region(0, 2)), request(2, write, P, region(2, 1)), ""),
        (request(1, read, 0, region(0, 2)), request(2, read, P, region(2, 1)), ""),
        (request(1, write, 0, region(0, 1)), elsewhere, ""),
        (request(1, write, 0, region(0, 1)), sync(2), ""),
    ] {
        let met = complaint(&[first, second], None, true);
        let noticed = met.as_ref().map_or(what.is_empty(), |text| {
            !what.is_empty() && text.starts_with(what) && text.contains("outstanding")
        });
        assert!(noticed, "{first:?}, {second:?}: {met:?}");
        assert_eq!(complaint(&[first, second], None, false), None);
    }
}

#[test]
fn damage_is_seen_by_reads() {
    let bed = Bed::new(11);
    let pages: BTreeMap<u32, Vec<u8>> = (0..4).map(|at| (at, noise(u64::from(at), PAGE))).collect();
    pages.iter().for_each(|(&at, page)| bed.disk.write_raw(FILE, u64::from(at) * P, page));
    bed.disk.swap(FILE, 3 * P, 0, P);
    bed.disk.swap(FILE, P, P + 512, 512);
    bed.disk.zero(FILE, 2 * P + 512..2 * P + 1024);
    bed.disk.flip(FILE, 2 * P, 0x81);
    assert_eq!(bed.on_disk(FILE, 0, 1), pages[&3]);
    assert_eq!(bed.on_disk(FILE, 3, 1), pages[&0]);
    let one = bed.on_disk(FILE, 1, 1);
    assert_eq!([&one[..512], &one[512..1024]], [&pages[&1][512..1024], &pages[&1][..512]]);
    let two = bed.on_disk(FILE, 2, 1);
    assert_eq!((two[0] ^ pages[&2][0], &two[512..1024]), (0x81, &[0; 512][..]));
    assert_eq!(two[1024..], pages[&2][1024..]);
    bed.disk.crash(1, Crash::Power);
    assert_eq!(bed.on_disk(FILE, 2, 1), two, "damage is on the medium");
}

#[test]
fn files_can_be_restored_swapped_and_resized() {
    let bed = Bed::new(12);
    assert_eq!((bed.write(0, 8, 1), bed.disk.files()), (Ok(8 * PAGE), 2));
    let old = bed.disk.snapshot();
    assert_eq!(bed.write(0, 8, 2), Ok(8 * PAGE));
    bed.disk.restore(FILE, &old);
    assert_eq!(bed.on_disk(FILE, 0, 8), noise(1, 8 * PAGE));
    bed.disk.crash(1, Crash::Power);
    assert_eq!(bed.on_disk(FILE, 0, 8), noise(1, 8 * PAGE));
    bed.disk.swap_files(FILE, FileId(1));
    assert_eq!(bed.disk.file_len(FILE), 8 * P);
    assert_eq!(bed.on_disk(FileId(1), 0, 8), noise(1, 8 * PAGE));
    bed.disk.resize(FileId(1), 3 * P);
    bed.disk.resize(FileId(1), 5 * P);
    let mut whole = noise(1, 3 * PAGE);
    whole.resize(5 * P as usize, 0);
    assert_eq!(bed.on_disk(FileId(1), 0, 5), whole);
}
