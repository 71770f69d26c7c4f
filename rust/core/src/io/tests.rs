//! What both engines owe their callers, and the digests against the reference implementation.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::uring::Uring;
use super::*;
use crate::arena::{Arena, ArenaConfig, MemoryId, Prefault};

pub(super) const PAGE: u32 = 4096;
/// Longer than anything here takes, short enough to end a hanging test.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Memory of `pages` pages.
pub(super) fn memory(pages: u32) -> Memory {
    let arena = Arena::map(ArenaConfig {
        who: MemoryId::ARENA,
        frames: pages,
        stride_bytes: PAGE,
        prefault: Prefault::Now,
        threads: 1,
    });
    Memory::new(vec![Arc::new(arena.expect("map"))])
}

/// `pages` pages of memory from page `first` on.
pub(super) fn region(first: u32, pages: u32) -> Region {
    Region { who: MemoryId::ARENA, offset: u64::from(first * PAGE), len: pages * PAGE }
}

pub(super) fn request(id: u64, op: Op, offset: u64, region: Region) -> Request {
    Request { id, op, file: FileId(0), offset, region, digest: None, urgent: false }
}

pub(super) fn sync(id: u64) -> Request {
    request(id, Op::Sync, 0, region(0, 0))
}

pub(super) fn put(memory: &Memory, at: Region, bytes: &[u8]) {
    // SAFETY: tests hand a region to an engine only after this, and take it back before.
    unsafe { bytes_mut_of(memory, at) }.copy_from_slice(bytes);
}

pub(super) fn take(memory: &Memory, at: Region) -> Vec<u8> {
    // SAFETY: as above.
    unsafe { bytes_of(memory, at) }.to_vec()
}

/// Bytes that differ from seed to seed and sector to sector.
pub(super) fn noise(seed: u64, len: u32) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len / 8).flat_map(|_| rng.bits().to_le_bytes()).collect()
}

/// Submits and waits for all of it.
pub(super) fn run(engine: &dyn Engine, requests: &[Request]) -> Vec<Completion> {
    engine.submit(requests);
    let mut ended = Vec::new();
    let since = Instant::now();
    while ended.len() < requests.len() {
        engine.reap(Duration::from_millis(100), &mut ended);
        assert!(since.elapsed() < PATIENCE, "{} of {} ended", ended.len(), requests.len());
    }
    ended
}

/// A new file without a name. None where the file system refuses direct I/O.
pub(super) fn scratch(direct: bool, len: u64) -> Option<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("ks-io-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path: PathBuf = std::env::temp_dir().join(name);
    let flags = if direct { OFlags::DIRECT.bits() } else { 0 };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.custom_flags(flags.cast_signed()).open(&path);
    let _ = std::fs::remove_file(&path);
    let file = file.map_err(|error| assert!(direct, "{path:?}: {error}")).ok()?;
    file.set_len(len).expect("resize");
    Some(file)
}

/// Runs `check` on each engine, over a file of `len` bytes and `pages` pages of memory.
fn on_each_engine(len: u64, pages: u32, check: impl Fn(&dyn Engine, &Memory)) {
    let memory = memory(pages);
    let disk = SimDisk::new(1);
    disk.add_file(len);
    check(&Sim::new(&disk, Arc::new(AtomicU64::new(0)), memory.clone(), 1), &memory);
    for (direct, threads) in [(false, 1), (false, 4), (true, 4)] {
        if let Some(file) = scratch(direct, len) {
            let files: Vec<(OwnedFd, bool)> = vec![(file.into(), direct)];
            let pool = Pool::new(files, memory.clone(), threads).expect("threads");
            assert_eq!((pool.direct(), pool.threads()), (direct, threads));
            check(&pool, &memory);
            assert_eq!(pool.outstanding(), 0);
        }
    }
    for direct in [false, true] {
        let Some(file) = scratch(direct, len) else { continue };
        match Uring::new(vec![(file.into(), direct)], memory.clone()) {
            Ok(ring) => {
                assert_eq!(ring.direct(), direct);
                check(&ring, &memory);
                assert_eq!(ring.outstanding(), 0);
            }
            Err(error) => println!("no ring here: {error}"),
        }
    }
}

#[test]
fn what_was_written_is_read_back_with_its_digest() {
    on_each_engine(1 << 20, 64, |engine, memory| {
        let bytes = noise(3, 16 * PAGE);
        put(memory, region(0, 16), &bytes);
        // A payload that ends inside its last page.
        let wanted = Some(Digest { seed: 9, len: 15 * PAGE + 77 });
        let expected = digest(9, &bytes[..(15 * PAGE + 77) as usize]);
        let write = Request {
            digest: wanted,
            ..request(1, Op::Write, 32 * u64::from(PAGE), region(0, 16))
        };
        let whole = Ok(16 * PAGE);
        assert_eq!(
            run(engine, &[write]),
            [Completion { id: 1, result: whole, digest: expected }],
            "{}",
            engine.name()
        );
        let read = Request { id: 2, op: Op::Read, region: region(40, 16), ..write };
        assert_eq!(
            run(engine, &[read]),
            [Completion { id: 2, result: whole, digest: expected }],
            "{}",
            engine.name()
        );
        assert_eq!(take(memory, region(40, 16)), bytes, "{}", engine.name());
    });
}

#[test]
fn a_request_without_a_digest_has_none() {
    on_each_engine(1 << 16, 2, |engine, memory| {
        put(memory, region(0, 1), &noise(1, PAGE));
        let ended = run(engine, &[request(1, Op::Write, 0, region(0, 1))]);
        assert_eq!(ended, [Completion { id: 1, result: Ok(PAGE), digest: 0 }]);
    });
}

#[test]
fn many_requests_end_once_each_and_move_their_own_bytes() {
    const MANY: u32 = 300;
    on_each_engine(u64::from(MANY * PAGE), MANY, |engine, memory| {
        let place = |n: u32| u64::from((n * 7 + 3) % MANY * PAGE);
        let digest_of_all = Some(Digest { seed: 0, len: PAGE });
        let all = |op, first_id: u64| -> Vec<Request> {
            (0..MANY)
                .map(|n| Request {
                    digest: digest_of_all,
                    urgent: n % 3 == 0,
                    ..request(first_id + u64::from(n), op, place(n), region(n, 1))
                })
                .collect()
        };
        for n in 0..MANY {
            put(memory, region(n, 1), &noise(u64::from(n), PAGE));
        }
        let written = run(engine, &all(Op::Write, 1000));
        for n in 0..MANY {
            put(memory, region(n, 1), &[0; PAGE as usize]);
        }
        let read = run(engine, &all(Op::Read, 5000));
        for (ended, first_id) in [(written, 1000), (read, 5000)] {
            let ids: BTreeSet<u64> = ended.iter().map(|done| done.id).collect();
            assert_eq!(ids, (first_id..first_id + u64::from(MANY)).collect(), "{}", engine.name());
            for done in ended {
                let bytes = noise(done.id - first_id, PAGE);
                assert_eq!((done.result, done.digest), (Ok(PAGE), digest(0, &bytes)));
            }
        }
        for n in 0..MANY {
            assert_eq!(take(memory, region(n, 1)), noise(u64::from(n), PAGE), "page {n}");
        }
    });
}

#[test]
fn a_read_over_the_end_is_short_and_past_it_is_empty() {
    let len = u64::from(3 * PAGE + 512);
    on_each_engine(len, 8, |engine, memory| {
        put(memory, region(0, 3), &noise(5, 3 * PAGE));
        run(engine, &[request(1, Op::Write, 0, region(0, 3))]);
        let wanted = Some(Digest { seed: 0, len: PAGE });
        let over =
            Request { digest: wanted, ..request(2, Op::Read, u64::from(2 * PAGE), region(4, 4)) };
        let ended = run(engine, &[over]);
        assert_eq!(ended, [Completion { id: 2, result: Ok(PAGE + 512), digest: 0 }]);
        assert_eq!(take(memory, region(4, 1)), noise(5, 3 * PAGE)[(2 * PAGE) as usize..]);
        let past = request(3, Op::Read, u64::from(9 * PAGE), region(4, 4));
        assert_eq!(run(engine, &[past]), [Completion { id: 3, result: Ok(0), digest: 0 }]);
    });
}

#[test]
fn a_sync_ends_with_nothing_moved() {
    on_each_engine(1 << 16, 1, |engine, _| {
        assert_eq!(run(engine, &[sync(4)]), [Completion { id: 4, result: Ok(0), digest: 0 }]);
    });
}

#[test]
fn a_wake_ends_the_next_reap() {
    on_each_engine(1 << 16, 1, |engine, _| {
        let since = Instant::now();
        engine.wake();
        engine.reap(PATIENCE, &mut Vec::new());
        assert!(since.elapsed() < PATIENCE / 2, "{}", engine.name());
        // Once: the one after it waits its time.
        let since = Instant::now();
        engine.reap(Duration::from_millis(30), &mut Vec::new());
        assert!(engine.name() == "sim" || since.elapsed() >= Duration::from_millis(30));
    });
}

#[test]
fn a_wake_ends_a_reap_that_waits() {
    let pool = Pool::new(Vec::new(), memory(1), 1).expect("threads");
    let since = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| pool.reap(PATIENCE, &mut Vec::new()));
        thread::sleep(Duration::from_millis(50)); // Most likely it waits by now.
        pool.wake();
    });
    assert!(since.elapsed() < PATIENCE / 2);
}

#[test]
fn a_reap_without_a_wait_takes_what_is_there() {
    on_each_engine(1 << 16, 1, |engine, _| {
        let mut ended = Vec::new();
        engine.reap(Duration::ZERO, &mut ended);
        assert_eq!(ended, []);
    });
}

#[test]
fn what_is_reaped_is_appended() {
    on_each_engine(1 << 16, 1, |engine, _| {
        let mut ended = run(engine, &[sync(1)]);
        engine.submit(&[sync(2)]);
        engine.reap(PATIENCE, &mut ended);
        assert_eq!(ended.iter().map(|done| done.id).collect::<Vec<_>>(), [1, 2]);
    });
}

#[test]
fn a_request_off_the_grid_panics_in_its_submitter() {
    let whole = request(1, Op::Read, 0, region(0, 1));
    let bad = [
        Request { offset: 512, ..whole },
        Request { region: Region { offset: 512, ..region(0, 1) }, ..whole },
        Request { region: Region { len: 512, ..region(0, 1) }, ..whole },
        Request { region: region(0, 0), ..whole },
        Request { region: region(1, 2), ..whole },
        Request { op: Op::Sync, ..whole },
        Request { digest: Some(Digest { seed: 0, len: PAGE + 1 }), ..whole },
    ];
    for bad in bad {
        on_each_engine(1 << 16, 2, |engine, _| {
            let submit = std::panic::AssertUnwindSafe(|| engine.submit(&[bad]));
            assert!(std::panic::catch_unwind(submit).is_err(), "{} took {bad:?}", engine.name());
            // It took nothing of it, and goes on.
            assert_eq!(run(engine, &[sync(7)]).len(), 1);
        });
    }
}

/// Of libxxhash 0.8.4: `XXH3_128bits_withSeed` and `XXH3_64bits_withSeed` over the first bytes of
/// `(i * 131 + i / 256 * 7) % 256`.
#[test]
fn digests_are_those_of_the_reference_implementation() {
    let bytes: Vec<u8> = (0..1 << 20).map(|i: usize| (i * 131 + i / 256 * 7) as u8).collect();
    for (seed, len, wide, narrow) in VECTORS {
        assert_eq!(digest(seed, &bytes[..len]), wide, "{len} bytes, seed {seed:#x}");
        assert_eq!(digest64(seed, &bytes[..len]), narrow, "{len} bytes, seed {seed:#x}");
    }
}

#[rustfmt::skip]
const VECTORS: [(u64, usize, u128, u64); 14] = [
    (0x0, 0, 0x99aa_06d3_0147_98d8_6001_c324_468d_497f, 0x2d06_8005_38d3_94c2),
    (0x123456789abcdef, 0, 0xa4cb_05db_bf09_907a_aaa2_87af_24a9_bb3a, 0xcc1c_a35a_1b08_9c5c),
    (0x0, 1, 0xa6cd_5e93_9200_0f6a_c44b_dff4_074e_ecdb, 0xc44b_dff4_074e_ecdb),
    (0x123456789abcdef, 1, 0xcfed_a148_0838_2ad3_d5dd_6891_1c7f_195d, 0xd5dd_6891_1c7f_195d),
    (0x0, 16, 0x2481_8130_5d3c_1039_adeb_b1d9_d080_b69c, 0x0a0e_c5ae_8679_cb7f),
    (0x123456789abcdef, 16, 0x580a_0a9e_a45c_07e5_1c79_6abc_5267_9c6c, 0x2eb9_82af_b571_6ba9),
    (0x0, 200, 0xa3ff_89d7_545b_e9c8_05ca_adce_51eb_cee6, 0x4f7b_a561_b80f_eff6),
    (0x123456789abcdef, 200, 0xdeb4_2cca_52fc_f928_1d6c_3f0c_fd4e_b627, 0x6569_5c85_60d5_b6a5),
    (0x0, 241, 0xd894_c74b_1b3e_a28f_44db_d318_0a66_4e27, 0x44db_d318_0a66_4e27),
    (0x123456789abcdef, 241, 0xff82_d23f_0766_010c_461d_e164_de79_9bf3, 0x461d_e164_de79_9bf3),
    (0x0, 4096, 0xf3bd_a294_89a4_7849_9f54_4112_e3e9_1bb5, 0x9f54_4112_e3e9_1bb5),
    (0x123456789abcdef, 4096, 0xd93a_ef7c_f90f_8b0b_d8b6_3886_53d1_7795, 0xd8b6_3886_53d1_7795),
    (0x0, 1048576, 0x68ad_6d7d_5d33_d270_ce85_9577_fab1_aeba, 0xce85_9577_fab1_aeba),
    (0x123456789abcdef, 1048576, 0xfe83_3fce_5424_f9c7_878d_2300_1261_90c9, 0x878d_2300_1261_90c9),
];
