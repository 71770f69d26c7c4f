//! The simulated engine: a disk in memory, virtual time, every mishap from a seed.
//!
//! Owns: files as two images (what reads see, what a power cut leaves), the requests in flight,
//! the drawing of latencies and mishaps. Never does: touch a real file or a real clock, or start
//! a thread. Invariants: equal seeds and submissions give equal completions; memory of a request
//! is read or written at its completion, and checked not to have changed before; what a completed
//! sync covered survives a power cut.

mod disk;
mod faults;
mod image;
mod lane;
mod rng;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{Completion, Engine, Request};
use crate::arena::Memory;
use disk::State;
use lane::{Lane, World};

pub(crate) use disk::SimDisk;
#[cfg(all(test, not(loom)))]
pub(crate) use disk::Snapshot;
#[cfg(all(test, not(loom)))]
pub(crate) use faults::{FailNext, Mishap, PPM, SimCounts, SimFaults};
pub(crate) use rng::Rng;

/// How everything stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The processes are killed: what has completed stays; of each write in flight all, nothing,
    /// or the first pages.
    Kill,
    /// The power goes: of everything not synced, in flight or completed, any sectors survive.
    Power,
}

/// An engine on a simulated disk. Its clock, in microseconds, moves in `reap` and wherever its
/// owner moves it.
#[derive(Debug)]
pub(crate) struct Sim {
    disk: Arc<SimDisk>,
    clock_us: Arc<AtomicU64>,
    generation: u64,
    lane: usize,
    woken: AtomicBool,
}

impl Sim {
    /// Attaches to a disk, beside other engines that live on it (other processes).
    pub(crate) fn new(
        disk: &Arc<SimDisk>,
        clock_us: Arc<AtomicU64>,
        memory: Memory,
        seed: u64,
    ) -> Self {
        let (generation, lane) = disk.attach(memory, seed);
        Self { disk: Arc::clone(disk), clock_us, generation, lane, woken: AtomicBool::new(false) }
    }

    /// Requests not completed, those that hang included.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn outstanding(&self) -> usize {
        self.mine(&mut self.disk.lock()).map_or(0, |(lane, _)| lane.outstanding())
    }

    /// This engine's requests; none where the disk has crashed since it attached.
    fn mine<'a>(&self, state: &'a mut State) -> Option<(&'a mut Lane, &'a mut World)> {
        if state.generation != self.generation {
            return None;
        }
        Some((state.lanes[self.lane].as_mut()?, &mut state.world))
    }
}

impl Engine for Sim {
    fn submit(&self, requests: &[Request]) {
        let mut state = self.disk.lock();
        let Some((lane, world)) = self.mine(&mut state) else { return };
        let now_us = self.clock_us.load(Ordering::Relaxed);
        requests.iter().for_each(|request| lane.submit(world, now_us, *request));
    }

    fn reap(&self, wait: Duration, into: &mut Vec<Completion>) {
        let mut state = self.disk.lock();
        let left = state.world.faults.reaps_left.checked_sub(1);
        state.world.faults.reaps_left = left.expect("fewer calls of reap to the end of it all");
        let before = into.len();
        let mut now_us = self.clock_us.load(Ordering::Relaxed);
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let until_us = now_us.saturating_add(wait_us);
        loop {
            let mut next_us = until_us;
            if let Some((lane, world)) = self.mine(&mut state) {
                lane.advance(world, now_us, into);
                next_us = lane.next_due_us().map_or(until_us, |due_us| due_us.min(until_us));
            }
            let woken = self.woken.swap(false, Ordering::Relaxed);
            if woken || into.len() > before || now_us >= until_us {
                return;
            }
            self.clock_us.fetch_max(next_us, Ordering::Relaxed);
            now_us = self.clock_us.load(Ordering::Relaxed);
        }
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Relaxed);
    }

    fn name(&self) -> &'static str {
        "sim"
    }

    fn direct(&self) -> bool {
        true
    }
}

impl Drop for Sim {
    /// As a kill of this engine's process alone.
    fn drop(&mut self) {
        let state = &mut *self.disk.lock();
        if state.generation == self.generation
            && let Some(lane) = state.lanes[self.lane].take()
        {
            let mut rng = Rng::new(self.clock_us.load(Ordering::Relaxed));
            lane.cut(&mut state.world, Crash::Kill, &mut rng);
        }
    }
}

/// Where a piece ends; a piece that ends nowhere is past every file.
fn checked_end(offset: u64, bytes: u64) -> u64 {
    offset.saturating_add(bytes)
}

#[cfg(all(test, not(loom)))]
mod tests;
