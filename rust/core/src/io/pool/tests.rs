//! The pool over calls that fail, fall short or hang.

use std::sync::Weak;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use super::super::outbox::{CLOSE_WAIT, OUTSTANDING_MAX};
use super::super::tests::{PAGE, PATIENCE, memory, put, region, request, run, scratch, sync};
use super::*;
use crate::arena::{Arena, ArenaConfig, MemoryId, Prefault};
use crate::io::FileId;

const P: usize = PAGE as usize;

/// Steps of a transfer in the order in which they end; then it goes on with nothing moved.
fn stepped(len: usize, steps: &[Result<usize, Errno>]) -> (Result<u32, Fault>, Vec<usize>) {
    let (mut steps, mut from) = (steps.iter(), Vec::new());
    let result = transfer(len, |moved| {
        from.push(moved);
        steps.next().copied().unwrap_or(Ok(0))
    });
    (result, from)
}

#[test]
fn a_short_step_is_resumed_where_it_is_aligned() {
    assert_eq!(stepped(4 * P, &[Ok(P), Ok(2 * P), Ok(P)]), (Ok(4 * PAGE), vec![0, P, 3 * P]));
    assert_eq!(stepped(4 * P, &[Ok(2 * P), Ok(0)]), (Ok(2 * PAGE), vec![0, 2 * P]));
    assert_eq!(stepped(4 * P, &[Ok(P + 512), Ok(P)]), (Ok(PAGE + 512), vec![0]));
    assert_eq!(stepped(4 * P, &[Ok(2 * P), Ok(100)]), (Ok(2 * PAGE + 100), vec![0, 2 * P]));
}

#[test]
fn interruptions_are_no_failures() {
    let (intr, again) = (Err(Errno::INTR), Err(Errno::AGAIN));
    let (result, from) = stepped(2 * P, &[intr, Ok(P), again, intr, Ok(P)]);
    assert_eq!((result, from), (Ok(2 * PAGE), vec![0, 0, P, P, P]));
}

#[test]
fn retries_end() {
    for errno in [Errno::INTR, Errno::AGAIN] {
        let mut calls = 0;
        let result = transfer(P, |_| {
            calls += 1;
            Err(errno)
        });
        assert_eq!((result, calls), (Err(Fault::Io(errno.raw_os_error())), RETRIES_MAX));
    }
}

#[test]
fn an_error_after_a_part_is_an_error() {
    assert_eq!(stepped(4 * P, &[Ok(P), Err(Errno::IO)]).0, Err(Fault::Io(5)));
}

#[test]
fn errors_have_their_names() {
    for (errno, fault) in [
        (Errno::NOSPC, Fault::Full),
        (Errno::DQUOT, Fault::Full),
        (Errno::ROFS, Fault::ReadOnly),
        (Errno::IO, Fault::Io(5)),
        (Errno::INVAL, Fault::Io(22)),
    ] {
        assert_eq!(stepped(P, &[Err(errno)]).0, Err(fault));
        assert_eq!(persist(|| Err(errno)), Err(fault));
    }
}

#[test]
fn a_failed_sync_is_not_tried_again() {
    for (errno, calls_expected) in [(Errno::IO, 1), (Errno::AGAIN, 1), (Errno::INTR, 3)] {
        let mut calls = 0;
        let result = persist(|| {
            calls += 1;
            if calls < 3 { Err(errno) } else { Ok(()) }
        });
        assert_eq!((result.is_ok(), calls), (errno == Errno::INTR, calls_expected), "{errno}");
    }
    let mut calls = 0;
    let result = persist(|| {
        calls += 1;
        Err(Errno::INTR)
    });
    assert_eq!((result, calls), (Err(Fault::Io(4)), RETRIES_MAX));
}

/// Writes wait for `open`; every call leaves its offset, a sync `SYNC`.
struct Gated {
    open: Mutex<bool>,
    opened: Condvar,
    begun: Mutex<mpsc::Sender<u64>>,
    ended: AtomicU32,
}

const SYNC: u64 = u64::MAX;

struct Gate(Arc<Gated>);

impl Gated {
    fn open(&self) {
        *lock(&self.open) = true;
        self.opened.notify_all();
    }

    fn pass(&self, call: u64) {
        let _ = lock(&self.begun).send(call);
        let open = lock(&self.open);
        let _open = self.opened.wait_while(open, |open| !*open).expect("a test died");
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Calls for Gate {
    fn read(&self, _: &OwnedFd, into: &mut [u8], _: u64) -> Result<usize, Errno> {
        Ok(into.len())
    }

    fn write(&self, _: &OwnedFd, from: &[u8], offset: u64) -> Result<usize, Errno> {
        self.0.pass(offset);
        Ok(from.len())
    }

    fn sync(&self, _: &OwnedFd) -> Result<(), Errno> {
        self.0.pass(SYNC);
        Ok(())
    }
}

fn gated(threads: usize, memory: Memory) -> (Pool, Arc<Gated>, mpsc::Receiver<u64>) {
    let file = scratch(false, 0).expect("a file");
    let (begun, seen) = mpsc::channel();
    let gate = Arc::new(Gated {
        open: Mutex::new(false),
        opened: Condvar::new(),
        begun: Mutex::new(begun),
        ended: AtomicU32::new(0),
    });
    let calls = Box::new(Gate(Arc::clone(&gate)));
    let pool = Pool::with_calls(Arc::default(), vec![(file.into(), false)], memory, threads, calls);
    (pool.expect("threads"), gate, seen)
}

fn write(id: u64) -> Request {
    request(id, Op::Write, id * u64::from(PAGE), region(0, 1))
}

#[test]
fn background_writes_leave_a_thread_for_what_is_urgent() {
    let (pool, gate, seen) = gated(3, memory(2));
    pool.submit(&(0..8).map(write).collect::<Vec<_>>());
    // Two of three threads have one each; the third takes none.
    let first: Vec<u64> = (0..2).filter_map(|_| seen.recv_timeout(PATIENCE).ok()).collect();
    assert_eq!(first.len(), 2);
    let urgent = Request { urgent: true, ..request(100, Op::Read, 0, region(1, 1)) };
    assert_eq!(run(&pool, &[urgent])[0].id, 100);
    assert!(seen.try_recv().is_err(), "a third write began");
    gate.open();
    let mut ended = Vec::new();
    while ended.len() < 8 {
        pool.reap(PATIENCE, &mut ended);
    }
    assert_eq!(pool.outstanding(), 0);
}

#[test]
fn what_is_urgent_goes_first_and_the_rest_in_order() {
    let (pool, gate, seen) = gated(1, memory(2));
    pool.submit(&[write(0)]);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(0)); // The one thread is busy.
    let urgent = |id| Request { urgent: true, ..write(id) };
    pool.submit(&[write(1), write(2), urgent(3), sync(4), urgent(5)]);
    gate.open();
    let order: Vec<u64> = (0..5).filter_map(|_| seen.recv_timeout(PATIENCE).ok()).collect();
    let page = u64::from(PAGE);
    assert_eq!(order, [3 * page, 5 * page, page, 2 * page, SYNC]);
}

#[test]
fn a_drop_begins_nothing_that_was_queued() {
    let (pool, gate, seen) = gated(1, memory(1));
    pool.submit(&[write(0), write(1), write(2)]);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(0));
    thread::scope(|scope| {
        scope.spawn(|| drop(pool));
        thread::sleep(Duration::from_millis(50)); // Most likely the drop waits by now.
        gate.open();
    });
    assert_eq!(gate.ended.load(Ordering::SeqCst), 1);
}

#[test]
fn a_thread_stuck_in_the_kernel_is_left_behind_with_its_memory() {
    let arena = Arena::map(ArenaConfig {
        who: MemoryId::ARENA,
        frames: 1,
        stride_bytes: PAGE,
        prefault: Prefault::Now,
        threads: 1,
    });
    let arena = Arc::new(arena.expect("map"));
    let alive: Weak<Arena> = Arc::downgrade(&arena);
    let (pool, gate, seen) = gated(2, Memory::new(vec![arena]));
    pool.submit(&[write(0)]);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(0));
    let since = Instant::now();
    drop(pool);
    let took = since.elapsed();
    assert!((CLOSE_WAIT..PATIENCE / 2).contains(&took), "{took:?}");
    assert!(alive.upgrade().is_some(), "the memory of a call in progress was unmapped");
    gate.open();
    while alive.upgrade().is_some() {
        assert!(since.elapsed() < PATIENCE, "the thread never let go");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_idle_pool_is_dropped_at_once() {
    let pool = Pool::new(Vec::new(), memory(1), 4).expect("threads");
    let shared = Arc::downgrade(&pool.shared);
    let since = Instant::now();
    drop(pool);
    assert!(since.elapsed() < CLOSE_WAIT, "{:?}", since.elapsed());
    assert_eq!(shared.strong_count(), 0);
}

#[test]
fn what_outgrows_the_queue_ends_busy() {
    let (pool, gate, seen) = gated(1, memory(1));
    let fits: Vec<Request> = (0..OUTSTANDING_MAX as u64).map(write).collect();
    pool.submit(&fits);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(0));
    pool.submit(&[write(u64::from(u32::MAX))]);
    let mut ended = Vec::new();
    pool.reap(PATIENCE, &mut ended);
    let busy = Err(Fault::Io(Errno::BUSY.raw_os_error()));
    assert_eq!(ended, [Completion { id: u64::from(u32::MAX), result: busy, digest: 0 }]);
    gate.open();
    while ended.len() <= fits.len() {
        pool.reap(PATIENCE, &mut ended);
    }
    assert!(ended[1..].iter().all(|done| done.result == Ok(PAGE)));
}

#[test]
fn an_unknown_file_is_an_error_and_harms_nobody() {
    let pool = Pool::new(Vec::new(), memory(1), 1).expect("threads");
    for id in 0..3 {
        let ended = run(&pool, &[Request { file: FileId(id), ..sync(1) }]);
        assert_eq!(ended[0].result, Err(Fault::Io(Errno::BADF.raw_os_error())));
    }
}

#[test]
fn a_file_without_the_right_is_an_error() {
    let memory = memory(1);
    put(&memory, region(0, 1), &[1; P]);
    let read_only = std::fs::File::open("/proc/self/exe").expect("our own file");
    let pool = Pool::new(vec![(read_only.into(), false)], memory, 1).expect("threads");
    let ended = run(&pool, &[write(1)]);
    assert_eq!(ended[0].result, Err(Fault::Io(Errno::BADF.raw_os_error())));
}

#[test]
fn a_forked_child_drops_its_copy_at_once() {
    let pool = Pool::new(Vec::new(), memory(1), 2).expect("threads");
    // SAFETY: the child takes no lock and allocates nothing before it leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let since = Instant::now();
        drop(pool);
        let code = i32::from(since.elapsed() >= CLOSE_WAIT);
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = -1;
    // SAFETY: waits for the child of above; `status` lives.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
}
