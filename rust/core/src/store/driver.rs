//! The thin shell around the tier's state machine: an engine, one thread, and who waits for it.
//!
//! Owns: the thread that takes completions to `step` and requests to the engine, and the waiting of
//! callers. Never does: decide. Invariants: requests leave for the engine outside the keeper's
//! lock; in deterministic mode there is no thread: who waits drives; a wait has a deadline.

use super::Store;
use super::attach::{Next, Phase, PhaseCell};
use crate::io::{Completion, Engine, Request};
use crate::ssd::changes::Changes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// The driver looks around at least this often, in microseconds.
const TICK_US: u64 = 50_000;

/// What waits and wakes around one engine.
#[derive(Default)]
pub(super) struct Driver {
    /// There once the tier's files are.
    engine: OnceLock<Box<dyn Engine>>,
    pub(super) phase: PhaseCell,
    /// Where followers hear of table pages that were written, for each device; none where there
    /// are none.
    changes: Mutex<Vec<Option<Changes>>>,
    /// Callers that wait for the tier; a step that finds none wakes nobody.
    waiting: AtomicU64,
    steps: Mutex<u64>,
    stepped: Condvar,
    stopped: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Driver {
    pub(super) fn engine(&self) -> Option<&dyn Engine> {
        self.engine.get().map(AsRef::as_ref)
    }

    /// The files are there: this one moves their bytes. Once in a driver's life.
    pub(super) fn set_engine(&self, engine: Box<dyn Engine>) {
        let first = self.engine.set(engine).is_ok();
        debug_assert!(first, "a tier is taken once");
    }

    /// Hands requests over, if there are any.
    pub(super) fn submit(&self, requests: &[Request]) {
        if let Some(engine) = self.engine().filter(|_| !requests.is_empty()) {
            engine.submit(requests);
        }
    }

    /// From now on it is told which pages were written.
    pub(super) fn set_changes(&self, changes: Vec<Option<Changes>>) {
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner) = changes;
    }

    /// Tells followers of pages; before what was to come after their writes is submitted. Where
    /// that can't be done they are told so, and nobody is troubled any more.
    fn tell_followers(&self, changed: &[(usize, Vec<u32>)]) {
        if changed.is_empty() {
            return;
        }
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        for (device, pages) in changed {
            let Some(of_device) = changes.get_mut(*device) else { continue };
            if of_device.as_mut().is_some_and(|changes| changes.enter(pages).is_err()) {
                // A head that stands still is noticed too, only later.
                let _ = of_device.take().map(Changes::give_up);
            }
        }
    }

    pub(super) fn note_step(&self) {
        // SeqCst, as in `wait`: either the waiter sees what this step did, or this sees it wait.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            *self.steps.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            self.stepped.notify_all();
        }
    }

    /// Ends the thread. What is out stays with the engine.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(engine) = self.engine() {
            engine.wake();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            thread.thread().unpark();
            // A panic in it has poisoned the store, which says so.
            drop(thread.join());
        }
    }

    /// Starts the thread of a store that is not deterministic.
    pub(super) fn start(self: &Arc<Self>, store: Weak<Store>) -> std::io::Result<()> {
        let driver = Arc::clone(self);
        let work = move || driver.run(&store);
        let thread = std::thread::Builder::new().name("keystow-tier".to_owned()).spawn(work)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn run(&self, store: &Weak<Store>) {
        let (mut reaped, mut wait) = (Vec::new(), Duration::ZERO);
        while !self.stopped.load(Ordering::Acquire) {
            // What is read while the tier is taken is reaped there.
            match (self.phase.get(), self.engine()) {
                (Phase::Settled | Phase::Entering, Some(engine)) => engine.reap(wait, &mut reaped),
                (Phase::Off, _) => return,
                _ => std::thread::park_timeout(wait),
            }
            let Some(store) = store.upgrade() else { return };
            if store.is_poisoned() {
                return;
            }
            wait = store.go_on(&mut reaped);
        }
    }
}

impl Store {
    /// Takes completions through the state machine, as many holds as it needs, and what it wants
    /// to the engine. How long nothing will be to do, but for completions.
    pub(super) fn pump(&self, reaped: &mut Vec<Completion>) -> Duration {
        let Some(driver) = &self.driver else { return Duration::MAX };
        let mut completions: VecDeque<Completion> = reaped.drain(..).collect();
        let mut requests = Vec::new();
        let wait = loop {
            let done = self.keep(|keeper, parts, budget| {
                let drained = self.deterministic || keeper.drain(parts, budget);
                let done = keeper.step(parts, &mut completions, &mut requests, budget);
                let done = done && drained && keeper.refill(parts, budget);
                let now_us = parts.clock.now_us();
                let tier = keeper.tier.as_mut();
                let (next_us, changed) = tier.map_or((u64::MAX, Vec::new()), |tier| {
                    (tier.next_at(now_us), tier.take_changed())
                });
                let wait_us = next_us.saturating_sub(now_us).min(TICK_US);
                (done, Duration::from_micros(wait_us), changed)
            });
            if let Some((_, _, changed)) = &done {
                driver.tell_followers(changed);
            }
            driver.submit(&requests);
            requests.clear();
            match done {
                Some((false, ..)) => {}
                Some((true, wait, _)) => break wait,
                None => break Duration::from_micros(TICK_US),
            }
        };
        driver.note_step();
        wait
    }

    /// Goes on with taking the tier where that is not over, and with what the tier has to do. How
    /// long nothing will be to do, but for completions.
    fn go_on(&self, reaped: &mut Vec<Completion>) -> Duration {
        match self.attach_some(Duration::from_micros(TICK_US)) {
            Next::Later(wait) => wait,
            Next::Alone => Duration::ZERO,
            Next::Beside => {
                self.pump(reaped);
                Duration::ZERO
            }
            Next::Over => self.pump(reaped),
        }
    }

    /// One turn in the caller's thread: for deterministic stores, and before the thread runs.
    /// How long nothing will be to do after it, but for completions.
    pub(super) fn turn(&self, wait: Duration) -> Duration {
        let Some(driver) = &self.driver else { return Duration::MAX };
        let mut reaped = Vec::new();
        match driver.engine() {
            Some(engine) if driver.phase.get() != Phase::Taking => engine.reap(wait, &mut reaped),
            Some(_) => {}
            None => self.parts.clock.pass(wait),
        }
        self.go_on(&mut reaped)
    }

    /// The bookkeeping's part of the tier at the end of a call: starts what can be started.
    pub(super) fn nudge(&self) {
        if self.driver.is_none() {
            return;
        }
        if self.deterministic {
            self.turn(Duration::ZERO);
        } else {
            self.pump(&mut Vec::new());
        }
    }

    /// Waits until `done` or the deadline on the store's clock; whether it was the former. The
    /// caller holds no lock, pin or frame but what it can keep for so long.
    pub(super) fn wait_for_tier(&self, deadline_us: u64, mut done: impl FnMut() -> bool) -> bool {
        let Some(driver) = &self.driver else { return done() };
        if self.deterministic {
            loop {
                if done() {
                    return true;
                }
                let left_us = deadline_us.saturating_sub(self.parts.clock.now_us());
                if left_us == 0 || self.is_poisoned() {
                    return false;
                }
                self.turn(Duration::from_micros(left_us.min(TICK_US)));
            }
        }
        driver.waiting.fetch_add(1, Ordering::SeqCst);
        let mut steps = driver.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let end = loop {
            let seen = *steps;
            drop(steps);
            if done() {
                break true;
            }
            let left_us = deadline_us.saturating_sub(self.parts.clock.now_us());
            if left_us == 0 || self.is_poisoned() {
                break false;
            }
            steps = driver.steps.lock().unwrap_or_else(PoisonError::into_inner);
            if *steps == seen {
                let left = Duration::from_micros(left_us.min(TICK_US));
                let woken = driver.stepped.wait_timeout(steps, left);
                steps = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        driver.waiting.fetch_sub(1, Ordering::SeqCst);
        end
    }
}
