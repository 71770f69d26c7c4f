//! Gets the arena's pages from the kernel ahead of use, by several threads.
//!
//! Owns: the prefault threads and their progress. Never does: changing a byte; the arena is in use
//! meanwhile. Invariants: no thread outlives the value (drop cancels and joins, at most one step
//! later); progress only grows; huge pages are measured before `ended` turns true.

use std::mem;
use std::sync::Arc;
// Not `crate::sync`: real threads over real memory, nothing that loom could run.
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::mm::{self, Advice};

use super::Prefault;
use super::fork::fork_count;
use super::mapping::{HUGE_PAGE_BYTES, Mapping};

/// Faulted in by one call. Fresh memory of a virtual machine comes at about 0.4 GB/s, and a mapping
/// call of another thread waits for the one under way, as does a drop: some 10 ms.
const STEP_BYTES: u64 = 4 << 20;
const PAGE_BYTES: u64 = 4096;
const THREADS_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct Prefaulter {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
    forks_at_birth: u64,
}

/// The steps, shared by the threads and the arena.
#[derive(Debug)]
struct Work {
    mapping: Arc<Mapping>,
    next: AtomicU64,
    done: AtomicU64,
    active: AtomicUsize,
    cancelled: AtomicBool,
    ended: AtomicBool,
    huge: AtomicU64,
    fallbacks: Mutex<Vec<String>>,
}

impl Prefaulter {
    /// Starts the threads (0: one a core, at most four); with `Now` it also waits for them.
    pub(super) fn start(mapping: &Arc<Mapping>, when: Prefault, threads: usize) -> Self {
        let cores = || thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let steps = usize::try_from(mapping.bytes().div_ceil(STEP_BYTES)).unwrap_or(usize::MAX);
        let wanted = if threads == 0 { cores() } else { threads }.min(steps);
        let work = Arc::new(Work {
            mapping: Arc::clone(mapping),
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            active: AtomicUsize::new(wanted),
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            huge: AtomicU64::new(0),
            fallbacks: Mutex::new(mapping.refused().to_vec()),
        });
        let mut started = Self { work, threads: Vec::new(), forks_at_birth: fork_count() };
        // A small arena is sooner faulted in than a thread is started.
        let inline = mapping.bytes() <= HUGE_PAGE_BYTES;
        for _ in 0..wanted {
            started.start_one(inline);
        }
        if when == Prefault::Now {
            started.join();
        }
        started
    }

    fn start_one(&mut self, inline: bool) {
        if inline {
            return self.work.run();
        }
        let work = Arc::clone(&self.work);
        let named = thread::Builder::new().name("keystow-prefault".to_owned());
        match named.spawn(move || work.run()) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                self.work.fall_back(format!("a prefault thread could not start: {error}"));
                self.work.run();
            }
        }
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            debug_assert!(joined.is_ok(), "a prefault thread panicked");
        }
    }

    pub(super) fn done_bytes(&self) -> u64 {
        self.work.done.load(Ordering::Relaxed)
    }

    pub(super) fn ended(&self) -> bool {
        self.work.ended.load(Ordering::Acquire)
    }

    pub(super) fn huge_bytes(&self) -> u64 {
        if self.ended() {
            self.work.huge.load(Ordering::Relaxed)
        } else {
            self.work.mapping.huge_bytes_now()
        }
    }

    pub(super) fn fallbacks(&self) -> Vec<String> {
        self.work.fallbacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Prefaulter {
    fn drop(&mut self) {
        if fork_count() != self.forks_at_birth {
            // The threads live in the parent only: here a join would wait for ever.
            return mem::forget(mem::take(&mut self.threads));
        }
        self.work.cancelled.store(true, Ordering::Relaxed);
        self.join();
    }
}

impl Work {
    /// Takes steps until none is left; the last thread out measures and ends the work.
    fn run(&self) {
        let bytes = self.mapping.bytes();
        while !self.cancelled.load(Ordering::Relaxed) {
            let from = self.next.fetch_add(STEP_BYTES, Ordering::Relaxed);
            if from >= bytes {
                break;
            }
            let len = STEP_BYTES.min(bytes - from);
            if !self.fault_in(from, len) {
                self.cancelled.store(true, Ordering::Relaxed);
                break;
            }
            self.done.fetch_add(len, Ordering::Relaxed);
        }
        if self.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.measure();
            self.ended.store(true, Ordering::Release);
        }
    }

    /// Whether it is worth going on.
    fn fault_in(&self, from: u64, len: u64) -> bool {
        let start = self.mapping.at(from, len as u32); // A step fits in u32.
        // SAFETY: the range lies in the mapping; populating changes no byte of it.
        match unsafe { mm::madvise(start.cast(), len as usize, Advice::LinuxPopulateWrite) } {
            Ok(()) => true,
            Err(Errno::INVAL) => {
                self.fall_back("MADV_POPULATE_WRITE is unknown: pages are touched".to_owned());
                self.touch(from, len);
                true
            }
            Err(errno) => {
                self.fall_back(format!("prefaulting stopped at {from} bytes: {errno}"));
                false
            }
        }
    }

    /// For kernels before 5.14: writes one byte of each page without changing it.
    fn touch(&self, from: u64, len: u64) {
        for offset in (from..from + len).step_by(PAGE_BYTES as usize) {
            let byte = self.mapping.at(offset, 1);
            // SAFETY: the byte lies in the mapping. A put may write it at this moment: `or 0` is
            // one indivisible instruction, so neither side can lose the other's bits.
            unsafe { AtomicU8::from_ptr(byte) }.fetch_or(0, Ordering::Relaxed);
        }
    }

    fn measure(&self) {
        let possible = self.mapping.huge_bytes_possible();
        if self.cancelled.load(Ordering::Relaxed) || possible == 0 {
            return;
        }
        let huge = self.mapping.huge_bytes_now();
        self.huge.store(huge, Ordering::Relaxed);
        if huge < possible / 10 * 9 {
            let path = "/sys/kernel/mm/transparent_hugepage/enabled";
            let setting = std::fs::read_to_string(path).unwrap_or_else(|_| "absent".to_owned());
            self.fall_back(format!(
                "huge pages: {} of {} MiB are huge (transparent_hugepage: {}); copies and I/O \
                 cost more CPU",
                huge >> 20,
                possible >> 20,
                setting.trim()
            ));
        }
    }

    /// Says each sentence once.
    fn fall_back(&self, sentence: String) {
        let mut said = self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains(&sentence) {
            said.push(sentence);
        }
    }
}
