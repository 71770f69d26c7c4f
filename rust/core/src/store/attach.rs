//! How a store comes to its SSD tier: before its open returns, or while it is in use, once another
//! store has given the directory back.
//!
//! Owns: the way from a directory to a tier under the keeper's lock, a piece at a time, and who has
//! come how far on it. Never does: read or sort under the lock, or hold it for more than a piece.
//! Invariants: nobody but who drives this knows the tier until it is under the lock; what goes
//! wrong before the open returns fails it, what goes wrong later leaves the store in RAM, and says
//! why.

mod pages;

use super::open::{self, Grounds, Opening, Progress, Watch};
use super::simulated::SimWorld;
use super::tier::{Recovery, Round, Staging, Tier};
use super::{Store, StoreConfig};
use crate::arena::{Arena, Memory};
use crate::error::{Error, ErrorKind};
use crate::ssd::changes::Changes;
use crate::ssd::recover::Sorter;
use pages::Pages;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A directory that another store has is asked for so often.
const LOCK_RETRY_US: u64 = 100_000;
/// Once it is free, an open that fails is tried so often: its files may be on their way out.
const OPEN_TRIES_MAX: u32 = 10;
/// What an open waits for SUPER, beside the timeout of its transfers.
const OPEN_TRANSFERS: u32 = 8;
/// And at least so long: a busy disk takes a tenth of a second for one sync.
const OPEN_WAIT_MIN: Duration = Duration::from_secs(2);
/// An open looks around at least this often.
const LOOK: Duration = Duration::from_millis(10);

/// Where a store is with its tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has it, or has none.
    Settled,
    /// Another store has the directory.
    Waiting,
    /// The directory is its own; what is in it is being found out.
    Taking,
    /// The tier is there, and its blocks are coming in.
    Entering,
    /// It will not have it.
    Off,
}

/// A phase that one thread sets and all see.
#[derive(Default)]
pub(super) struct PhaseCell(AtomicU32);

impl PhaseCell {
    pub(super) fn get(&self) -> Phase {
        use Phase::{Entering, Off, Settled, Taking, Waiting};
        [Settled, Waiting, Taking, Entering, Off][self.0.load(Ordering::Acquire) as usize]
    }

    fn set(&self, phase: Phase) {
        self.0.store(phase as u32, Ordering::Release);
    }
}

/// What comes next.
pub(super) enum Next {
    /// Nothing before so long.
    Later(Duration),
    /// More of this, and nothing else: the tier is not there yet.
    Alone,
    /// More of this, beside what the tier has to do.
    Beside,
    /// Only what the tier has to do.
    Over,
}

enum State {
    Waiting { next_us: u64, tries: u32 },
    Reading(Box<Tier>, Pages),
    Sorting(Box<Tier>, Box<Sorter>),
    Entering(Box<Recovery>),
    Over,
}

/// A store on its way to its tier.
pub(super) struct Attach {
    config: StoreConfig,
    world: Option<SimWorld>,
    bounce: Arc<Arena>,
    /// Seconds since 1970 when the store's clock stood at 0.
    opened_unix_s: u64,
    begun: Instant,
    state: State,
}

impl Attach {
    pub(super) fn new(
        config: &StoreConfig,
        world: Option<SimWorld>,
        bounce: Arc<Arena>,
        opened_unix_s: u64,
    ) -> Self {
        let (config, begun) = (config.clone(), Instant::now());
        Self { config, world, bounce, opened_unix_s, begun, state: State::Over }
    }

    fn progress(&self) -> Option<Progress> {
        let (what, (done, all)) = match &self.state {
            State::Reading(_, pages) => ("pages", pages.progress()),
            State::Sorting(_, sorter) => ("records", sorter.progress()),
            State::Entering(recovery) => ("blocks", recovery.progress()),
            State::Waiting { .. } | State::Over => return None,
        };
        Some(Progress::Recovers { what, done, all })
    }
}

impl Store {
    pub(super) fn phase(&self) -> Phase {
        self.driver.as_ref().map_or(Phase::Settled, |driver| driver.phase.get())
    }

    fn set_phase(&self, phase: Phase) {
        if let Some(driver) = &self.driver {
            driver.phase.set(phase);
            driver.note_step();
        }
    }

    /// Whether the tier is still to come, or still coming in.
    pub(super) fn is_apart(&self) -> bool {
        !matches!(self.phase(), Phase::Settled | Phase::Off)
    }

    /// Waits for a tier that is being taken. False where there is none now: another store has the
    /// directory, or it could not be opened.
    pub(super) fn wait_until_taken(&self, deadline_us: u64) -> bool {
        self.wait_for_tier(deadline_us, || self.phase() != Phase::Taking);
        matches!(self.phase(), Phase::Settled | Phase::Entering)
    }

    /// What the stats say where the tier is not there.
    pub(super) fn apart_state(&self) -> &'static str {
        match self.phase() {
            Phase::Waiting => "waiting",
            Phase::Taking | Phase::Entering => "recovering",
            Phase::Settled | Phase::Off => "off",
        }
    }

    /// Takes the tier before any other call. SUPER has the new epoch on stable storage when this
    /// returns.
    pub(super) fn attach_now(
        &self,
        mut attach: Attach,
        grounds: Grounds,
        watch: &mut Watch<'_>,
    ) -> Result<(), Error> {
        attach.state = self.take_over(&mut attach, grounds)?;
        let mut round = 0;
        while let Some(now) = attach.progress() {
            open::go_on(watch, now)?;
            self.attach_piece(&mut attach, LOOK)?;
            if let State::Entering(recovery) = &attach.state {
                round = recovery.round();
            }
        }
        self.nudge();
        let wait = self.io_timeout.saturating_mul(OPEN_TRANSFERS).max(OPEN_WAIT_MIN);
        let deadline_us = self.deadline_us(wait);
        let mut ends = Vec::new();
        self.drive(deadline_us, || {
            ends.clear();
            self.with_tier(|tier, _| ends.extend(tier.super_rounds(round)));
            !ends.contains(&Round::Pending)
        });
        // Nothing goes to a device before it has confirmed: the others do without it.
        if ends.contains(&Round::Confirmed) {
            let paths = self.with_tier(|tier, _| tier.paths()).unwrap_or_default();
            let silent = paths.into_iter().zip(ends).filter(|(_, end)| *end != Round::Confirmed);
            let why = "it did not confirm SUPER; nothing is written there until it does";
            let notes = silent.map(|(path, _)| format!("{path}: {why}"));
            self.notes.lock().unwrap_or_else(PoisonError::into_inner).extend(notes);
            return Ok(());
        }
        let message = format!("the disk did not confirm SUPER within {} s.", wait.as_secs_f64());
        let hint = "look at the disk (dmesg), or open the store without ssd=.";
        Err(Error::new(ErrorKind::Ssd, "KS-SSD-103", message, hint))
    }

    /// Takes the tier later: whoever drives asks for the directory from now on.
    pub(super) fn attach_later(&self, mut attach: Attach, why: &Error) {
        self.say(vec![format!("{} Until it is free, blocks are in RAM only.", why.message)]);
        let next_us = self.parts.clock.now_us() + LOCK_RETRY_US;
        attach.state = State::Waiting { next_us, tries: 0 };
        *self.attach.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(attach));
        self.set_phase(Phase::Waiting);
    }

    /// Goes on with taking the tier where that is not over, by one piece: `wait` at most.
    pub(super) fn attach_some(&self, wait: Duration) -> Next {
        if !self.is_apart() {
            return Next::Over;
        }
        let mut there = self.attach.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(attach) = there.as_mut() else { return Next::Over };
        match catch_unwind(AssertUnwindSafe(|| self.attach_piece(attach, wait))) {
            Ok(Ok(Next::Over)) => self.set_phase(Phase::Settled),
            Ok(Ok(next)) => return next,
            Ok(Err(error)) => self.stay_in_ram(&error),
            // As under the lock: half-made state must not be gone on with.
            Err(_) => self.poisoned.store(true, Ordering::Release),
        }
        *there = None;
        Next::Over
    }

    fn stay_in_ram(&self, error: &Error) {
        self.say(vec![format!("the SSD tier is off: {} {}", error.message, error.hint)]);
        self.keep(|keeper, _, _| keeper.stay_apart());
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.set_phase(Phase::Off);
    }

    fn say(&self, notes: Vec<String>) {
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    }

    /// One piece of the way. Where it fails, the way ends.
    fn attach_piece(&self, attach: &mut Attach, wait: Duration) -> Result<Next, Error> {
        let (state, next) = match std::mem::replace(&mut attach.state, State::Over) {
            State::Waiting { next_us, tries } => self.ask(attach, next_us, tries)?,
            State::Reading(mut tier, mut pages) => {
                let Some(engine) = self.driver.as_ref().and_then(|driver| driver.engine()) else {
                    return Ok(Next::Over);
                };
                let now_us = || self.parts.clock.now_us();
                if pages.step(&mut tier, engine, &attach.bounce, now_us, wait) {
                    let sorter = Box::new(tier.begin_sorting());
                    (State::Sorting(tier, sorter), Next::Alone)
                } else {
                    (State::Reading(tier, pages), Next::Alone)
                }
            }
            State::Sorting(tier, mut sorter) => {
                if tier.sort_some(&mut sorter) {
                    (self.install(tier, *sorter)?, Next::Beside)
                } else {
                    (State::Sorting(tier, sorter), Next::Alone)
                }
            }
            State::Entering(mut recovery) => {
                let took_us = attach.begun.elapsed().as_micros() as u64;
                let more = self.keep(|keeper, parts, budget| {
                    let more = keeper.recover_some(parts, &mut recovery, budget);
                    if !more {
                        keeper.end_recovery(parts, took_us);
                    }
                    more
                });
                if more.ok_or_else(open::poisoned)? {
                    (State::Entering(recovery), Next::Beside)
                } else {
                    (State::Over, Next::Over)
                }
            }
            State::Over => (State::Over, Next::Over),
        };
        attach.state = state;
        Ok(next)
    }

    /// Asks for the directory, if it is time.
    fn ask(&self, attach: &mut Attach, next_us: u64, tries: u32) -> Result<(State, Next), Error> {
        let now_us = self.parts.clock.now_us();
        if now_us < next_us {
            let wait = Duration::from_micros(next_us - now_us);
            return Ok((State::Waiting { next_us, tries }, Next::Later(wait)));
        }
        let Some(ssd) = &attach.config.ssd else { return Ok((State::Over, Next::Over)) };
        let (world, stride_bytes) = (attach.world.as_ref(), self.parts.arena.stride_bytes());
        let error = match open::survey(ssd, self.block_bytes, stride_bytes, world, &mut |_| true) {
            Ok(grounds) => {
                attach.begun = Instant::now();
                self.set_phase(Phase::Taking);
                return Ok((self.take_over(attach, grounds)?, Next::Alone));
            }
            Err(error) => error,
        };
        let tries = match error.kind {
            ErrorKind::Locked => 0,
            _ if tries < OPEN_TRIES_MAX => tries + 1,
            _ => return Err(error),
        };
        let next_us = now_us + LOCK_RETRY_US;
        Ok((State::Waiting { next_us, tries }, Next::Later(Duration::from_micros(LOCK_RETRY_US))))
    }

    /// The directories are this store's: their files get an engine, and a tier that knows nothing
    /// yet.
    fn take_over(&self, attach: &mut Attach, mut grounds: Grounds) -> Result<State, Error> {
        let (parts, config) = (&self.parts, &attach.config);
        let (Some(ssd), Some(driver), Some(staging)) = (&config.ssd, &self.driver, &parts.staging)
        else {
            return Ok(State::Over);
        };
        let Staging { arena: staging, .. } = staging;
        let now_us = parts.clock.now_us();
        let (frames, bounce) = (parts.frames.total(), &attach.bounce);
        let boot = open::boot(attach.world.as_ref());
        let opening = Opening { opened_unix_s: attach.opened_unix_s, now_us, boot };
        let headers = parts.directory.headers();
        let mut tier = open::tier(config, ssd, &grounds, bounce, frames, headers, opening);
        let memories = [&parts.arena, staging, &attach.bounce].map(Arc::clone);
        let memory = Memory::new(memories.to_vec());
        driver.set_engine(open::engine(&mut grounds, &memory, parts.clock.word(), ssd)?);
        let behind = tier.leave_behind();
        let (mut notes, mut locks, mut fresh) = (grounds.notes, Vec::new(), Vec::new());
        let mut changes = Vec::new();
        for (ground, behind) in grounds.devices.into_iter().zip(behind) {
            notes.extend(ground.notes);
            if !ground.direct {
                notes.push(format!("{}: buffered I/O, through the page cache", ground.path));
            }
            if behind {
                notes.push(format!(
                    "{}: it was not there at the last open or clear of the other devices; what \
                     it holds is not used: blocks removed meanwhile may be among it",
                    ground.path
                ));
            }
            let begun =
                ground.changes.map(|file| Changes::begin(file.into(), ground.superblock.uuid));
            changes.push(begun.transpose().unwrap_or_else(|error| {
                notes.push(format!("{}: no `changes` ({error})", ground.path));
                None
            }));
            locks.extend(ground.lock);
            fresh.push(ground.fresh || behind);
        }
        driver.set_changes(changes);
        *self.locks.lock().unwrap_or_else(PoisonError::into_inner) = locks;
        self.say(notes);
        if fresh.iter().all(|fresh| *fresh) {
            let sorter = Box::new(tier.begin_sorting());
            return Ok(State::Sorting(tier, sorter));
        }
        let pages = Pages::new(&tier, &fresh, &attach.bounce, now_us, self.io_timeout_us());
        Ok(State::Reading(tier, pages))
    }

    /// Everything is sorted out: the tier comes under the lock.
    fn install(&self, tier: Box<Tier>, sorter: Sorter) -> Result<State, Error> {
        let plan = sorter.finish();
        let installed = self.keep(|keeper, _, _| keeper.install(tier, plan));
        let recovery = installed.ok_or_else(open::poisoned)?.map_err(open::no_epochs_left)?;
        if self.is_apart() {
            self.set_phase(Phase::Entering);
        }
        Ok(State::Entering(Box::new(recovery)))
    }

    /// Drives the tier in this thread until `done`: no other thread does yet.
    fn drive(&self, deadline_us: u64, mut done: impl FnMut() -> bool) {
        while !done() {
            let left_us = deadline_us.saturating_sub(self.parts.clock.now_us());
            if left_us == 0 || self.is_poisoned() {
                return;
            }
            self.turn(Duration::from_micros(left_us.min(LOOK.as_micros() as u64)));
        }
    }
}
