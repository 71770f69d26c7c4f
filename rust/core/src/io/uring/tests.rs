//! The arithmetic of pieces, and what a ring owes beyond what all engines do.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::fs::FallocateFlags;

use super::super::outbox::{CLOSE_WAIT, OUTSTANDING_MAX};
use super::super::tests::{
    PAGE, PATIENCE, memory, noise, put, region, request, run, scratch, sync, take,
};
use super::super::{Digest, Fault, Op, digest};
use super::transfer::{Back, End, PIECE_BYTES_MAX, Piece, Transfer};
use super::*;
use crate::arena::Region;

const EINTR: i32 = -4;
const EIO: i32 = -5;
const EAGAIN: i32 = -11;
const EOPNOTSUPP: i32 = -95;

/// A read of so many bytes, in pieces.
fn long(len: u32) -> Transfer {
    Transfer::new(request(1, Op::Read, 0, Region { len, ..region(0, 0) }), 0)
}

/// Cuts all pieces at once, then gives each back with the next of the answers; how it ended, and
/// what was asked of the kernel for each answer.
fn answered(mut transfer: Transfer, answers: &[i32]) -> (Option<End>, Vec<(u32, u32)>) {
    let mut out: VecDeque<Piece> = std::iter::from_fn(|| transfer.next(0)).collect();
    let mut asked = Vec::new();
    for said in answers {
        assert_eq!(transfer.end(), None, "it ended with pieces out");
        let mut piece = out.pop_front().expect("a piece for each answer");
        asked.push(piece.rest());
        if transfer.back(&mut piece, *said) == Back::Again {
            out.push_front(piece);
        }
    }
    assert!(out.is_empty(), "{out:?} not answered");
    (transfer.end(), asked)
}

fn ok(bytes: u32) -> Option<End> {
    Some(End::Result(Ok(bytes)))
}

#[test]
fn a_long_request_is_cut_and_ends_once() {
    let most = PIECE_BYTES_MAX;
    let (end, asked) = answered(long(2 * most + PAGE), &[most as i32, most as i32, PAGE as i32]);
    assert_eq!(
        (end, asked),
        (ok(2 * most + PAGE), vec![(0, most), (most, most), (2 * most, PAGE)])
    );
    let (end, asked) = answered(long(most), &[most as i32]);
    assert_eq!((end, asked), (ok(most), vec![(0, most)]));
}

#[test]
fn a_short_piece_is_resumed_where_it_is_aligned() {
    let page = PAGE as i32;
    let (end, asked) = answered(long(4 * PAGE), &[page, 2 * page, page]);
    assert_eq!(
        (end, asked),
        (ok(4 * PAGE), vec![(0, 4 * PAGE), (PAGE, 3 * PAGE), (3 * PAGE, PAGE)])
    );
    assert_eq!(answered(long(4 * PAGE), &[2 * page, 0]).0, ok(2 * PAGE));
    assert_eq!(answered(long(4 * PAGE), &[page + 512]).0, ok(PAGE + 512));
    assert_eq!(answered(long(4 * PAGE), &[0]).0, ok(0));
}

#[test]
fn what_was_moved_is_whole_from_the_start() {
    // The first piece falls short: what came behind it does not count.
    let most = PIECE_BYTES_MAX as i32;
    assert_eq!(answered(long(2 * PIECE_BYTES_MAX), &[512, most]).0, ok(512));
    assert_eq!(answered(long(2 * PIECE_BYTES_MAX), &[512, 1024]).0, ok(512));
    assert_eq!(answered(long(2 * PIECE_BYTES_MAX), &[most, 512]).0, ok(PIECE_BYTES_MAX + 512));
}

#[test]
fn interruptions_are_no_failures_and_end() {
    let (end, asked) = answered(long(PAGE), &[EINTR, EINTR, PAGE as i32]);
    assert_eq!((end, asked.len()), (ok(PAGE), 3));
    let many = [EINTR; super::super::pool::RETRIES_MAX as usize];
    assert_eq!(answered(long(PAGE), &many).0, Some(End::Result(Err(Fault::Io(4)))));
}

#[test]
fn what_a_ring_can_not_do_goes_elsewhere_whole() {
    for errno in [EAGAIN, EOPNOTSUPP] {
        let answers = [PIECE_BYTES_MAX as i32, errno];
        assert_eq!(answered(long(2 * PIECE_BYTES_MAX), &answers).0, Some(End::Elsewhere));
    }
    let of_sync = |said| answered(Transfer::new(sync(1), 0), &[said]).0;
    assert_eq!(of_sync(0), ok(0));
    assert_eq!(of_sync(EOPNOTSUPP), Some(End::Elsewhere));
    assert_eq!(of_sync(EAGAIN), Some(End::Result(Err(Fault::Io(11)))));
    assert_eq!(of_sync(EIO), Some(End::Result(Err(Fault::Io(5)))));
}

#[test]
fn the_first_failure_is_told_and_no_piece_is_cut_after_it() {
    let answers = [EIO, -28];
    assert_eq!(
        answered(long(2 * PIECE_BYTES_MAX), &answers).0,
        Some(End::Result(Err(Fault::Io(5))))
    );
    for said in [EIO, EOPNOTSUPP, 512] {
        let mut transfer = long(3 * PIECE_BYTES_MAX);
        let mut first = transfer.next(0).expect("a piece");
        assert_eq!(transfer.back(&mut first, said), Back::Over);
        assert_eq!(transfer.next(0), None, "after {said}");
        assert!(transfer.end().is_some());
    }
}

/// A ring over a new file of so many bytes; none where the machine has no rings.
fn ring_over(len: u64, memory: &Memory) -> Option<Uring> {
    let file = scratch(true, len).or_else(|| scratch(false, len)).expect("a file");
    let ring = Uring::new(vec![(file.into(), true)], memory.clone());
    ring.inspect_err(|error| println!("no ring here: {error}")).ok()
}

#[test]
fn more_than_a_piece_moves_whole_with_its_digest() {
    let pages = 3 * PIECE_BYTES_MAX / PAGE + 5;
    let memory = memory(2 * pages);
    let Some(ring) = ring_over(u64::from(pages * PAGE), &memory) else { return };
    let bytes = noise(5, pages * PAGE);
    put(&memory, region(0, pages), &bytes);
    let wanted = Digest { seed: 3, len: pages * PAGE - 100 };
    let expected = digest(3, &bytes[..wanted.len as usize]);
    for (id, op, at) in [(1, Op::Write, region(0, pages)), (2, Op::Read, region(pages, pages))] {
        let asked = request(id, op, 0, at);
        let done = run(&ring, &[Request { digest: Some(wanted), ..asked }]);
        let right = Completion { id, result: Ok(pages * PAGE), digest: expected };
        assert_eq!(done, [right]);
    }
    assert!(take(&memory, region(pages, pages)) == bytes);
}

#[test]
fn a_long_read_over_the_end_of_a_file_is_short() {
    // More pieces than are in flight at once: it ends before the last of them is cut.
    let pages = 4 * PIECE_BYTES_MAX / PAGE;
    let memory = memory(pages);
    let Some(ring) = ring_over(u64::from(3 * PAGE), &memory) else { return };
    for urgent in [true, false] {
        let read = Request { urgent, ..request(1, Op::Read, 0, region(0, pages)) };
        let short = Completion { id: 1, result: Ok(3 * PAGE), digest: 0 };
        assert_eq!(run(&ring, &[read]), [short]);
        // It goes on with what comes behind.
        let next = Request { id: 2, region: region(0, 1), ..read };
        assert_eq!(run(&ring, &[read, next]).len(), 2);
    }
}

#[test]
fn memory_is_registered_where_the_limit_allows() {
    let memory = memory(16);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    run(&ring, &[request(1, Op::Write, 0, region(0, 16))]);
    run(&ring, &[request(2, Op::Read, 0, region(0, 16))]);
    let registered = ring.shared.registered_bytes.load(Ordering::Relaxed);
    assert_eq!(registered, u64::from(16 * PAGE), "64 KiB fit in every limit but 0");
}

#[test]
fn a_file_of_no_such_number_is_refused() {
    let memory = memory(1);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    let mut asked = request(9, Op::Read, 0, region(0, 1));
    asked.file.0 = 7;
    let done = run(&ring, &[asked]);
    assert_eq!(done[0].result, Err(Fault::Io(Errno::BADF.raw_os_error())));
}

#[test]
fn what_outgrows_the_inbox_ends_busy() {
    let memory = memory(1);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    let all: Vec<Request> = (0..=OUTSTANDING_MAX as u64).map(sync).collect();
    let done = run(&ring, &all);
    let busy = Err(Fault::Io(Errno::BUSY.raw_os_error()));
    assert_eq!(done.iter().filter(|done| done.result == busy).count(), 1);
    assert_eq!(ring.outstanding(), 0);
}

#[test]
fn what_the_pool_takes_over_completes_in_the_same_place() {
    let memory = memory(2);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    put(&memory, region(0, 1), &noise(1, PAGE));
    assert!(ring.shared.outbox.admit());
    ring.shared.elsewhere(request(1, Op::Write, 0, region(0, 1)));
    let mut done = Vec::new();
    ring.reap(PATIENCE, &mut done);
    assert_eq!(done, [Completion { id: 1, result: Ok(PAGE), digest: 0 }]);
    assert_eq!(run(&ring, &[request(2, Op::Read, 0, region(1, 1))])[0].result, Ok(PAGE));
    assert_eq!(take(&memory, region(1, 1)), noise(1, PAGE));
}

#[test]
fn a_lost_ring_hands_all_that_comes_to_the_pool() {
    let memory = memory(2);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    assert_eq!(ring.shared.lose(Errno::PERM), []);
    put(&memory, region(0, 1), &noise(2, PAGE));
    assert_eq!(run(&ring, &[request(1, Op::Write, 0, region(0, 1)), sync(2)]).len(), 2);
    assert!(ring.shared.stand_in.get().is_some_and(Option::is_some), "the ring did it");
}

#[test]
fn an_idle_ring_is_dropped_at_once_with_its_memory() {
    let memory = memory(1);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    run(&ring, &[sync(1)]);
    let shared = Arc::downgrade(&ring.shared);
    let since = Instant::now();
    drop(ring);
    assert!(since.elapsed() < CLOSE_WAIT, "{:?}", since.elapsed());
    assert_eq!(shared.strong_count(), 0);
}

#[test]
fn a_drop_waits_for_what_is_in_flight() {
    let pages = 4 * PIECE_BYTES_MAX / PAGE;
    let memory = memory(pages);
    for round in 0..4 {
        let file = scratch(false, 0).expect("a file");
        let copy = file.try_clone().expect("dup");
        rustix::fs::fallocate(&copy, FallocateFlags::empty(), 0, (pages * PAGE).into())
            .expect("room");
        let Ok(ring) = Uring::new(vec![(file.into(), false)], memory.clone()) else { return };
        put(&memory, region(0, pages), &noise(round, pages * PAGE));
        let all = (0..8).map(|id| request(id, Op::Read, 0, region(0, pages)));
        ring.submit(&all.collect::<Vec<_>>());
        let shared = Arc::downgrade(&ring.shared);
        drop(ring);
        assert_eq!(shared.strong_count(), 0, "the ring's thread was left behind");
        // The memory is ours again: nobody writes it any more.
        let bytes = noise(round + 100, pages * PAGE);
        put(&memory, region(0, pages), &bytes);
        assert!(take(&memory, region(0, pages)) == bytes);
    }
}

#[test]
fn an_idle_ring_does_not_spin() {
    let memory = memory(1);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    run(&ring, &[sync(1)]);
    thread::sleep(Duration::from_millis(20));
    let turns = ring.shared.turns.load(Ordering::Relaxed);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(ring.shared.turns.load(Ordering::Relaxed), turns, "it turned with nothing to do");
}

#[test]
fn a_caller_carries_out_its_own_read() {
    let memory = memory(4);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    let bytes = noise(3, 2 * PAGE);
    put(&memory, region(0, 2), &bytes);
    run(&ring, &[request(1, Op::Write, 0, region(0, 2))]);
    let turns = ring.shared.turns.load(Ordering::Relaxed);
    let wanted = Some(Digest { seed: 5, len: PAGE + 9 });
    for round in 0..50 {
        let read = Request { digest: wanted, ..request(2, Op::Read, 0, region(2, 2)) };
        let done = ring.carry_out(&read).expect("done at once");
        let expected = digest(5, &bytes[..(PAGE + 9) as usize]);
        assert_eq!(done, Completion { id: 2, result: Ok(2 * PAGE), digest: expected }, "{round}");
        assert!(take(&memory, region(2, 2)) == bytes);
        put(&memory, region(2, 2), &noise(9, 2 * PAGE));
    }
    assert!(ring.shared.turns.load(Ordering::Relaxed) <= turns + 1, "the ring's thread was woken");
    assert_eq!(ring.outstanding(), 0);
    // Over the end, as every engine has it.
    let past = request(3, Op::Read, (1 << 16) - u64::from(PAGE), region(2, 2));
    let short = Completion { id: 3, result: Ok(PAGE), digest: 0 };
    assert_eq!(ring.carry_out(&past), Some(short));
}

#[test]
fn what_is_not_for_a_caller_goes_the_ordinary_way() {
    let pages = PIECE_BYTES_MAX / PAGE + 1;
    let memory = memory(pages);
    let Some(ring) = ring_over(u64::from(pages * PAGE), &memory) else { return };
    let long = request(1, Op::Read, 0, region(0, pages));
    let write = request(2, Op::Write, 0, region(0, 1));
    let mut nowhere = request(3, Op::Read, 0, region(0, 1));
    nowhere.file.0 = 9;
    for (asked, result) in [
        (long, Ok(pages * PAGE)),
        (write, Ok(PAGE)),
        (nowhere, Err(Fault::Io(Errno::BADF.raw_os_error()))),
    ] {
        assert_eq!(ring.carry_out(&asked), None);
        let mut done = Vec::new();
        ring.reap(PATIENCE, &mut done);
        assert_eq!(done, [Completion { id: asked.id, result, digest: 0 }]);
    }
    assert_eq!(ring.outstanding(), 0);
}

#[test]
fn callers_at_once_share_one_ring_and_the_rest_go_the_ordinary_way() {
    const CALLERS: u32 = 4;
    const READS: u64 = 200;
    let memory = memory(CALLERS);
    let Some(ring) = ring_over(1 << 16, &memory) else { return };
    put(&memory, region(0, 1), &noise(1, PAGE));
    run(&ring, &[request(1, Op::Write, 0, region(0, 1))]);
    let queued = AtomicU64::new(0);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (ring, queued) = (&ring, &queued);
            scope.spawn(move || {
                for turn in 0..READS {
                    let id = 100 + u64::from(caller) * READS + turn;
                    // Each region is read into by one request at a time.
                    let read = request(id, Op::Read, 0, region(caller, 1));
                    match ring.carry_out(&read) {
                        Some(done) => assert_eq!((done.id, done.result), (id, Ok(PAGE))),
                        None => {
                            queued.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                    }
                }
            });
        }
    });
    let mut done = Vec::new();
    while (done.len() as u64) < queued.load(Ordering::Relaxed) {
        ring.reap(PATIENCE, &mut done);
    }
    assert!(done.iter().all(|done| done.result == Ok(PAGE)));
    assert_eq!(ring.outstanding(), 0);
}

#[test]
fn a_late_read_completes_with_the_others() {
    let memory = memory(1);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let Ok(ring) = Uring::new(vec![(reader, false)], memory.clone()) else { return };
    // Nothing is in the pipe yet: the caller gives up waiting.
    let late = request(7, Op::Read, 0, region(0, 1));
    assert_eq!(ring.carry_out(&late), None);
    assert_eq!(ring.outstanding(), 1);
    let mut done = Vec::new();
    ring.reap(Duration::ZERO, &mut done);
    assert_eq!(done, []);
    // Meanwhile others find the lane taken.
    rustix::io::write(&writer, &noise(4, PAGE)).expect("room in the pipe");
    let since = Instant::now();
    while done.is_empty() {
        ring.reap(Duration::from_millis(5), &mut done);
        assert!(since.elapsed() < PATIENCE);
    }
    assert_eq!(done, [Completion { id: 7, result: Ok(PAGE), digest: 0 }]);
    assert!(take(&memory, region(0, 1)) == noise(4, PAGE));
    assert_eq!(ring.outstanding(), 0);
}

#[test]
fn a_read_that_never_ends_keeps_its_memory_past_the_engine() {
    let memory = memory(1);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let Ok(ring) = Uring::new(vec![(reader, false)], memory.clone()) else { return };
    assert_eq!(ring.carry_out(&request(7, Op::Read, 0, region(0, 1))), None);
    let shared = Arc::downgrade(&ring.shared);
    drop(ring);
    assert!(shared.upgrade().is_some(), "the memory of a read under way was given back");
    drop(writer);
}
