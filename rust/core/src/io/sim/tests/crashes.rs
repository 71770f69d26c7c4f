//! What kills and power cuts leave, and what syncs promise.

use super::*;

/// For each sector of the file: the values that a power cut may leave.
struct Allowed(Vec<Vec<u8>>);

impl Allowed {
    fn written(&mut self, first: u64, sectors: u64, value: u8) {
        for sector in first..first + sectors {
            self.0[sector as usize].push(value);
        }
    }
}

/// A write of `value` in every byte, in flight from its own memory page.
fn stamp(bed: &Bed, at: u32, value: u8) -> Request {
    put(&bed.memory, region(at, 1), &[value; P as usize]);
    request(bed.id(), Op::Write, u64::from(at) * P, region(at, 1))
}

/// Runs writes and syncs with crashes in between and checks every sector after each power cut.
/// Returns how many sectors came out old and new where both were allowed.
fn history(seed: u64) -> (u64, u64) {
    let mut bed = Bed::new(seed);
    let mut rng = Rng::new(seed ^ 0xABCD);
    let mut allowed = Allowed(vec![vec![0]; FILE_PAGES as usize * 8]);
    let (mut old, mut new, mut value) = (0, 0, 0_u8);
    for _ in 0..12 {
        // What each sync in flight will promise: how many values of each sector it leaves behind.
        let mut syncs: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut writes: BTreeMap<u64, (u32, u8)> = BTreeMap::new();
        for _ in 0..rng.below(60) {
            let at = rng.below(10) as u32;
            if rng.one_in(6) {
                let id = bed.id();
                bed.sim.submit(&[sync(id)]);
                let written = allowed.0.iter().map(|values| values.len() - 1);
                syncs.insert(id, written.collect());
            } else if !writes.values().any(|&(other, _)| other == at) {
                value = value % 250 + 1;
                let asked = stamp(&bed, at, value);
                bed.sim.submit(&[asked]);
                writes.insert(asked.id, (at, value));
            }
            let mut ended = Vec::new();
            bed.sim.reap(Duration::from_micros(rng.below(100)), &mut ended);
            for done in ended {
                assert!(done.result.is_ok());
                if let Some((at, value)) = writes.remove(&done.id) {
                    allowed.written(u64::from(at) * 8, 8, value);
                } else if let Some(written) = syncs.remove(&done.id) {
                    for (sector, values) in allowed.0.iter_mut().enumerate() {
                        values.drain(..written[sector]);
                    }
                    // The others in flight count from here.
                    for other in syncs.values_mut() {
                        for (count, gone) in other.iter_mut().zip(&written) {
                            *count = count.saturating_sub(*gone);
                        }
                    }
                }
            }
        }
        writes.values().for_each(|&(at, value)| allowed.written(u64::from(at) * 8, 8, value));
        bed.disk.crash(rng.bits(), Crash::Power);
        let disk = bed.on_disk(FILE, 0, FILE_PAGES);
        for (sector, (seen, values)) in disk.chunks(512).zip(&mut allowed.0).enumerate() {
            assert!(seen.iter().all(|&byte| byte == seen[0]), "seed {seed}: half of {sector}");
            assert!(values.contains(&seen[0]), "seed {seed}: {} in {sector}: {values:?}", seen[0]);
            if values.len() > 1 {
                *(if *values.last().expect("one") == seen[0] { &mut new } else { &mut old }) += 1;
            }
            *values = vec![seen[0]];
        }
        assert!((0..u64::from(FILE_PAGES) * 8).all(|n| !bed.disk.at_risk(FILE, n * 512)));
        bed.reattach();
    }
    (old, new)
}

#[test]
fn after_a_power_cut_each_sector_is_one_that_was_written_since_its_sync() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..30 {
        let (some_old, some_new) = history(seed);
        old += some_old;
        new += some_new;
    }
    assert!(old > 1000 && new > 1000, "{old} old, {new} new: nothing was at stake");
}

#[test]
fn a_power_cut_tears_pages_and_leaves_pages() {
    let (mut whole, mut none, mut torn) = (0, 0, 0);
    for seed in 0..100 {
        let bed = Bed::new(seed);
        let completed = seed % 2 == 0;
        let asked = bed.write_of(0, 1, 1);
        bed.sim.submit(&[asked]);
        if completed {
            bed.sim.reap(Duration::from_secs(1), &mut Vec::new());
        }
        bed.disk.crash(seed, Crash::Power);
        let (landed, clean) = sectors_landed(&bed.on_disk(FILE, 0, 1), &noise(1, PAGE));
        assert!(clean, "seed {seed}");
        *(match landed {
            0 => &mut none,
            8 => &mut whole,
            _ => &mut torn,
        }) += 1;
        assert_eq!(bed.disk.counts().cut_writes, u64::from(!completed));
    }
    assert!(whole > 5 && none > 5 && torn > 5, "{whole} whole, {none} none, {torn} torn");
}

#[test]
fn a_kill_keeps_what_completed_and_the_first_pages_of_what_did_not() {
    let (mut whole, mut none, mut prefix) = (0, 0, 0);
    for seed in 0..100 {
        let bed = Bed::new(seed);
        assert_eq!(bed.write(20, 4, 5), Ok(4 * PAGE));
        bed.sim.submit(&[bed.write_of(0, 8, 1)]);
        bed.disk.crash(seed, Crash::Kill);
        assert_eq!(bed.on_disk(FILE, 20, 4), noise(5, 4 * PAGE), "seed {seed}");
        let (landed, clean) = sectors_landed(&bed.on_disk(FILE, 0, 8), &noise(1, 8 * PAGE));
        let first = noise(1, 8 * PAGE)[..landed * 512].to_vec();
        assert!(clean && bed.on_disk(FILE, 0, 8).starts_with(&first), "seed {seed}");
        assert_eq!(landed % 8, 0, "seed {seed}: a page was torn");
        *(match landed {
            0 => &mut none,
            64 => &mut whole,
            _ => &mut prefix,
        }) += 1;
    }
    assert!(whole > 5 && none > 5 && prefix > 5, "{whole} whole, {none} none, {prefix} prefix");
}

#[test]
fn what_a_kill_leaves_is_still_not_synced() {
    let mut lost = 0;
    for seed in 0..20 {
        let bed = Bed::new(seed);
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        bed.disk.crash(seed, Crash::Kill);
        bed.disk.crash(seed, Crash::Power);
        lost += usize::from(bed.on_disk(FILE, 0, 1) != noise(1, PAGE));
    }
    assert!(lost > 5, "{lost} of 20");
}

#[test]
fn a_sync_promises_what_completed_before_it_whatever_is_written_meanwhile() {
    let mut newer = 0;
    for seed in 0..50 {
        let bed = Bed::new(seed);
        bed.disk.faults(|faults| faults.latency_us = [(1, 1), (10, 10), (100, 100)]);
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        bed.sim.submit(&[sync(1000), bed.write_of(0, 1, 2)]);
        let mut ended = Vec::new();
        bed.sim.reap(Duration::from_secs(1), &mut ended);
        assert!(ended[0].id != 1000 && bed.on_disk(FILE, 0, 1) == noise(2, PAGE));
        bed.sim.reap(Duration::from_secs(1), &mut ended);
        assert_eq!((ended.len(), ended[1].id), (2, 1000));
        bed.disk.crash(seed, Crash::Power);
        let (disk, before, after) = (bed.on_disk(FILE, 0, 1), noise(1, PAGE), noise(2, PAGE));
        for sector in 0..8 {
            let of = |page: &[u8]| page[sector * 512..][..512].to_vec();
            assert!(of(&disk) == of(&before) || of(&disk) == of(&after), "seed {seed}");
            newer += u64::from(of(&disk) == of(&after));
        }
    }
    assert!((50..350).contains(&newer), "{newer} of 400 sectors");
}

#[test]
fn a_sync_is_about_its_own_file() {
    let mut lost = 0;
    for seed in 0..20 {
        let bed = Bed::new(seed);
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        assert!(bed.disk.at_risk(FILE, 0));
        bed.run(Request { file: FileId(1), ..sync(1000) });
        assert!(bed.disk.at_risk(FILE, 0));
        bed.disk.crash(seed, Crash::Power);
        lost += usize::from(bed.on_disk(FILE, 0, 1) != noise(1, PAGE));
    }
    assert!(lost > 5, "{lost} of 20");
}

#[test]
fn after_a_failed_sync_a_second_one_saves_nothing_but_a_second_write_does() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..30 {
        for again in [false, true] {
            let bed = Bed::new(seed);
            assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
            bed.next(Op::Sync, Mishap::Error(Fault::Io(5)));
            assert_eq!(bed.run(sync(1000)).result, Err(Fault::Io(5)));
            assert_eq!(bed.on_disk(FILE, 0, 1), noise(1, PAGE), "reads see it as before");
            if again {
                assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
            }
            assert_eq!(bed.run(sync(1001)).result, Ok(0));
            bed.disk.crash(seed, Crash::Power);
            let intact = bed.on_disk(FILE, 0, 1) == noise(1, PAGE);
            *(if intact { &mut kept } else { &mut lost }) += 1;
            assert!(intact || !again, "seed {seed}: written again, synced, lost");
            assert!(intact || bed.disk.counts().forgotten_sectors > 0);
        }
    }
    assert!(lost > 20 && kept >= 30, "{lost} lost, {kept} kept");
}

#[test]
fn a_failed_sync_breaks_no_promise_of_another() {
    for seed in 0..30 {
        let bed = Bed::new(seed);
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        bed.next(Op::Sync, Mishap::Error(Fault::Io(5)));
        bed.sim.submit(&[sync(1000), sync(1001)]);
        let mut ended = Vec::new();
        while ended.len() < 2 {
            bed.sim.reap(Duration::from_secs(1), &mut ended);
        }
        if ended[0].id == 1000 {
            bed.disk.crash(seed, Crash::Power);
            assert_eq!(bed.on_disk(FILE, 0, 1), noise(1, PAGE), "seed {seed}");
        }
    }
}

#[test]
fn an_engine_from_before_a_crash_does_nothing() {
    for crash in [Crash::Kill, Crash::Power] {
        let mut bed = Bed::new(1);
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        bed.run(sync(1000));
        bed.sim.submit(&[sync(1001)]);
        bed.disk.crash(1, crash);
        let mut ended = Vec::new();
        bed.sim.submit(&[bed.write_of(0, 1, 2)]);
        bed.sim.reap(Duration::from_secs(1), &mut ended);
        bed.disk.release_hangs();
        bed.sim.reap(Duration::ZERO, &mut ended);
        assert_eq!((ended.len(), bed.sim.outstanding()), (0, 0));
        assert_eq!(bed.on_disk(FILE, 0, 1), noise(1, PAGE));
        let before = bed.disk.counts();
        // A new one takes its lane; the old one's drop does not touch it.
        let old = Sim::new(&bed.disk, Arc::clone(&bed.clock_us), bed.memory.clone(), 5);
        bed.disk.crash(2, crash);
        bed.reattach();
        bed.sim.submit(&[bed.write_of(3, 1, 3)]);
        drop(old);
        assert_eq!((bed.sim.outstanding(), bed.disk.counts().writes), (1, before.writes + 1));
        assert_eq!(bed.read(0, 1).result, Ok(PAGE));
    }
}

#[test]
fn a_drop_is_the_end_of_one_engine_alone() {
    let (mut landed, mut gone) = (0, 0);
    for seed in 0..40 {
        let mut bed = Bed::new(seed);
        let other_clock = Arc::new(AtomicU64::new(seed));
        let other_memory = memory(4);
        let other = Sim::new(&bed.disk, other_clock, other_memory.clone(), seed + 1);
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        bed.sim.submit(&[sync(1000)]);
        put(&other_memory, region(0, 1), &noise(2, PAGE));
        other.submit(&[request(1, Op::Write, 9 * P, region(0, 1)), sync(2)]);
        drop(other);
        *(if bed.on_disk(FILE, 9, 1) == noise(2, PAGE) { &mut landed } else { &mut gone }) += 1;
        let mut ended = Vec::new();
        bed.sim.reap(Duration::from_secs(1), &mut ended);
        assert_eq!(ended.len(), 1);
        assert!(!bed.disk.at_risk(FILE, 0), "the other's end took a sync with it");
        bed.reattach();
    }
    assert!(landed > 5 && gone > 5, "{landed} landed, {gone} did not");
}

#[test]
fn a_sync_of_an_engine_that_went_counts_no_more() {
    let mut forgotten = 0;
    for seed in 0..10 {
        let bed = Bed::new(seed);
        let other = Sim::new(&bed.disk, Arc::clone(&bed.clock_us), memory(1), seed);
        other.submit(&[sync(1)]);
        drop(other);
        // A failed sync spares what another one may have promised: there is none.
        assert_eq!(bed.write(0, 1, 1), Ok(PAGE));
        bed.next(Op::Sync, Mishap::Error(Fault::Io(5)));
        assert_eq!(bed.run(sync(1000)).result, Err(Fault::Io(5)));
        forgotten += bed.disk.counts().forgotten_sectors;
    }
    assert!(forgotten > 20, "{forgotten} of 80 sectors");
}

#[test]
fn a_power_cut_chooses_between_all_that_was_written() {
    let mut seen = [0, 0, 0];
    for seed in 0..50 {
        let bed = Bed::new(seed);
        bed.run(stamp(&bed, 0, 1));
        bed.sim.submit(&[stamp(&bed, 0, 2)]);
        bed.disk.crash(seed, Crash::Power);
        bed.on_disk(FILE, 0, 1).chunks(512).for_each(|sector| seen[sector[0] as usize] += 1);
    }
    assert!(seen.iter().all(|&sectors| sectors > 40), "of zeros, the first, the second: {seen:?}");
}
