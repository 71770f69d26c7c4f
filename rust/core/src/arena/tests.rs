//! The arena as a whole: round trips, bounds, prefaulting, forks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::*;

const MIB: u32 = 1 << 20;

fn arena(frames: u32, stride_bytes: u32) -> Arena {
    Arena::map(ArenaConfig {
        who: MemoryId::ARENA,
        frames,
        stride_bytes,
        prefault: Prefault::Now,
        threads: 0,
    })
    .expect("map")
}

/// Copies one row in and the whole frame out.
fn round_trip(arena: &Arena, frame: u32, payload: &[u8]) -> Vec<u8> {
    let frame = FrameId(frame);
    let to = arena.frame(frame, payload.len() as u32);
    arena.write(to, &Rows::list(&[payload]), 0);
    let mut whole = vec![0xEE; arena.stride_bytes() as usize];
    let all = arena.frame(frame, arena.stride_bytes());
    arena.read(all, &RowsMut::packed(&mut whole, arena.stride_bytes() as usize), 0);
    whole
}

#[test]
fn a_written_frame_is_the_payload_and_zeros() {
    let stride = 2 * MIB;
    let arena = arena(3, stride);
    let bytes: Vec<u8> = (0..stride).map(|i| (i * 7 + i / 256) as u8 | 1).collect();
    let around = [65_536, 262_144, stride as usize];
    let lens = around.iter().flat_map(|&n| [n - 65, n - 1, n]).chain([0, 1, 63, 64, 4095, 4096]);
    for len in lens {
        for skip in [0, 1, 31] {
            let payload = &bytes[skip.min(len)..len];
            round_trip(&arena, 1, &bytes); // What must not shine through.
            let whole = round_trip(&arena, 1, payload);
            assert!(whole[..payload.len()] == *payload, "payload of {len} from {skip}");
            assert!(whole[payload.len()..].iter().all(|&b| b == 0), "tail of {len} from {skip}");
        }
    }
    for neighbour in [0, 2] {
        let at = arena.pointer(arena.frame(FrameId(neighbour), stride));
        // SAFETY: a frame of the arena, which only this test uses.
        let frame = unsafe { std::slice::from_raw_parts(at, stride as usize) };
        assert!(frame.iter().all(|&b| b == 0), "frame {neighbour} was touched");
    }
}

#[test]
fn a_read_leaves_the_rest_of_a_row_alone() {
    let arena = arena(2, 4096);
    round_trip(&arena, 1, &[5; 100]);
    let mut row = [9_u8; 300];
    arena.read(arena.frame(FrameId(1), 100), &RowsMut::packed(&mut row, 300), 0);
    assert!(row[..100].iter().all(|&b| b == 5) && row[100..].iter().all(|&b| b == 9));
}

#[test]
#[should_panic(expected = "a row of 99 bytes for a block of 100")]
fn a_read_into_a_short_row_panics() {
    let arena = arena(1, 4096);
    arena.read(arena.frame(FrameId(0), 100), &RowsMut::packed(&mut [0; 99], 99), 0);
}

#[test]
#[should_panic(expected = "a row of 101 bytes for 100 in the frame")]
fn a_row_longer_than_its_region_panics() {
    let arena = arena(1, 4096);
    arena.write(arena.frame(FrameId(0), 100), &Rows::packed(&[0; 101], 101), 0);
}

#[test]
#[should_panic(expected = "frame 3 of 3")]
fn a_frame_outside_panics() {
    arena(3, 4096).frame(FrameId(3), 1);
}

#[test]
#[should_panic(expected = "1 bytes at 12288 of an arena of 12288")]
fn a_region_outside_panics() {
    arena(3, 4096).pointer(Region { who: MemoryId::ARENA, offset: 3 * 4096, len: 1 });
}

#[test]
#[should_panic(expected = "memory 1 is not the arena")]
fn foreign_memory_is_not_here() {
    arena(3, 4096).pointer(Region { who: MemoryId(1), offset: 0, len: 1 });
}

#[test]
fn absurd_sizes_and_too_much_are_config_errors() {
    let map = |frames, stride_bytes| {
        let prefault = Prefault::Background;
        Arena::map(ArenaConfig { who: MemoryId::ARENA, frames, stride_bytes, prefault, threads: 0 })
            .map(|arena| arena.frames())
            .map_err(|error| (error.kind, error.code))
    };
    for (frames, stride) in [(0, 4096), (1, 0), (1, 4095), (NONE, 4096)] {
        assert_eq!(map(frames, stride), Err((ErrorKind::Config, "KS-CFG-101")));
    }
    assert_eq!(map(NONE - 1, 1 << 30), Err((ErrorKind::Config, "KS-CFG-102")));
}

#[test]
fn the_limit_is_named_in_the_message() {
    let limit = RamLimit { bytes: 3 << 30, source: "memory.max of cgroup /pod".to_owned() };
    assert!(check_limit(3 << 30, &limit).is_ok());
    let error = check_limit((3 << 30) + 1, &limit).expect_err("one byte more");
    assert!(error.message.contains("memory.max of cgroup /pod"), "{error}");
}

#[test]
fn prefault_now_counts_every_byte() {
    for (frames, stride) in [(1, 4096), (33, MIB), (9, 4096 * 3)] {
        let arena = arena(frames, stride);
        assert!(arena.prefault_done());
        assert_eq!(arena.prefault_bytes(), u64::from(frames) * u64::from(stride));
        assert_eq!(arena.mapped_bytes(), arena.prefault_bytes());
        assert!(arena.huge_bytes() <= arena.mapped_bytes());
    }
}

#[test]
fn huge_pages_are_counted_or_their_lack_is_said() {
    let arena = arena(32, MIB);
    let all_huge = arena.huge_bytes() == arena.mapped_bytes();
    let said = arena.fallbacks().iter().any(|sentence| sentence.contains("huge"));
    assert!(all_huge || said || arena.huge_bytes() >= arena.mapped_bytes() / 10 * 9);
}

#[test]
fn background_prefault_ends_and_changes_no_byte() {
    let prefault = Prefault::Background;
    let config =
        ArenaConfig { who: MemoryId::ARENA, frames: 128, stride_bytes: MIB, prefault, threads: 2 };
    let arena = Arena::map(config).expect("map");
    let payload = vec![0xA5; MIB as usize];
    for frame in (0..128).rev() {
        let whole = round_trip(&arena, frame, &payload);
        assert!(whole == payload, "frame {frame}");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !arena.prefault_done() {
        assert!(Instant::now() < deadline, "{} bytes so far", arena.prefault_bytes());
        std::thread::yield_now();
    }
    assert_eq!(arena.prefault_bytes(), arena.mapped_bytes());
}

#[test]
fn a_drop_during_prefault_waits_for_its_threads_only() {
    for _ in 0..8 {
        let prefault = Prefault::Background;
        let config = ArenaConfig {
            who: MemoryId::ARENA,
            frames: 512,
            stride_bytes: MIB,
            prefault,
            threads: 4,
        };
        drop(Arena::map(config).expect("map"));
    }
}

/// Runs `check` in a forked child; it must not allocate much or take locks of the test harness.
fn in_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `check` and leaves by _exit: no destructor, no test harness.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        // A panic that went on would end the child as if all were well.
        let fine = catch_unwind(AssertUnwindSafe(check)).unwrap_or(false);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn a_child_knows_that_it_is_one() {
    let birth = fork_count();
    assert!(in_child(|| fork_count() == birth + 1));
    assert_eq!(fork_count(), birth);
    assert!(in_child(|| fork_count() != birth && in_child(|| fork_count() == birth + 2)));
}

#[test]
fn a_drop_in_a_child_unmaps_nothing() {
    // Large enough that threads are still at work when the fork comes.
    let prefault = Prefault::Background;
    let config =
        ArenaConfig { who: MemoryId::ARENA, frames: 256, stride_bytes: MIB, prefault, threads: 2 };
    let arena = Arena::map(config).expect("map");
    let address = arena.pointer(arena.frame(FrameId(7), 0)) as usize;
    assert!(in_child(|| {
        // The kernel left no arena here; something else takes its place.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: NOREPLACE fails where anything is mapped.
        let page = unsafe { libc::mmap(address as *mut _, 4096, access, flags, -1, 0) };
        if page as usize != address {
            return false;
        }
        let page = page.cast::<u8>();
        // SAFETY: mapped in the line above.
        unsafe { page.write(42) };
        drop(arena);
        // SAFETY: still mapped unless the drop did what it must not.
        unsafe { page.read() == 42 }
    }));
}

#[test]
fn a_drop_in_a_child_waits_for_no_thread_of_the_copy_team() {
    let config = ArenaConfig {
        who: MemoryId::ARENA,
        frames: 1,
        stride_bytes: 4096,
        prefault: Prefault::Now,
        threads: 1,
    };
    let options = ArenaOptions { copy_threads: 3, ..ArenaOptions::default() };
    let arena = Arena::map_with(config, options).expect("map");
    arena.team.get_ready();
    assert!(in_child(|| {
        // SAFETY: ends a child that waits for ever.
        unsafe { libc::alarm(10) };
        drop(arena);
        true
    }));
}
