//! The store: the verbs, and the only room that knows all others.
//!
//! Owns: the life of a store, the way of a block through put, get, lease, remove and clear. Never
//! does: decide who is evicted (`policy`) or what may be read (`directory`). Invariants: no verb
//! waits while it holds pins or frames; a verb holds the keeper's lock for at most
//! `LOCK_BLOCKS_MAX` blocks at a time; once poisoned, lookups miss and puts store nothing.
//!
//! Order of recency: get, get_each, lease and touch push one touch event per linked piece, tail
//! first; put enters what it inserts tail first and touches nothing present; match, match_prefix
//! and contains leave everything as it is.

mod attach;
mod clock;
mod config;
mod driver;
mod flush;
mod follow;
mod gate;
mod gc;
mod get;
mod hint;
mod inspect;
mod keeper;
mod lease;
mod lookup;
mod open;
mod past;
pub mod probe;
mod put;
mod remove;
mod ring;
mod scrub;
mod simulated;
mod tier;
mod validate;
mod wait;

#[cfg(all(test, not(loom)))]
mod histories;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::arena::{COPY_THREADS_MAX, Numa, Prefault, Rows, RowsMut};
pub use crate::event::{Event, EventKind};
pub use config::{
    BLOCK_BYTES_MAX, DEVICES_MAX, EngineKind, FRAMES_MAX, Following, OnLocked, PolicyKind,
    SsdConfig, SsdPlace, StoreConfig,
};
pub use gc::{StoreDirectory, directories, remove_directory};
pub use inspect::{Contents, Inspected, Snapshot, SnapshotStats, Verified, inspect, verify};
pub use keeper::LOCK_BLOCKS_MAX;
pub use lease::Lease;
pub use lookup::Matched;
pub use open::{Progress, Watch};
pub use put::PutOptions;
pub use scrub::Scrubbed;
pub use simulated::SimWorld;
pub use validate::Recount;

use crate::arena::{
    Arena, ArenaConfig, ArenaOptions, MemoryId, check_ram, fork_count, prefer_huge_pages,
};
use crate::directory::{Directory, Entry, Frames, pieces};
use crate::error::{Error, ErrorKind};
use crate::policy::{self, Policy};
use crate::ssd::dir::LockGuard;
use crate::stats::{Counters, SsdStats, Stats, add, read};
use attach::Attach;
use clock::Clock;
use driver::Driver;
use follow::Follow;
use gate::Gate;
use keeper::{Apart, Budget, Keeper};
use open::{Below, Found};
use ring::{Note, Ring};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// What the keeper works on beside its own state.
pub(crate) struct Parts {
    directory: Directory,
    frames: Frames,
    ring: Ring,
    counters: Counters,
    clock: Clock,
    arena: Arc<Arena>,
    staging: Option<tier::Staging>,
    follow: Option<Arc<Follow>>,
    /// Frames kept free ahead of need.
    reserve: u32,
    /// A device is left alone: what is only there can't be had.
    away: AtomicBool,
}

/// What a close left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Blocks written to a tier that outlives the store.
    pub written: u64,
    /// Blocks that were in RAM only, and are gone.
    pub left: u64,
}

/// A store of KV-cache blocks in RAM. Any method may be called from any thread.
pub struct Store {
    parts: Parts,
    keeper: Mutex<Keeper>,
    gate: Gate,
    leases: lease::Registry,
    block_bytes: u32,
    put_wait: Duration,
    io_timeout: Duration,
    driver: Option<Arc<Driver>>,
    /// The way to the tier, while it is not at its end.
    attach: Mutex<Option<Box<Attach>>>,
    /// The ownership of the directory; falls with the store.
    locks: Mutex<Vec<LockGuard>>,
    /// What of the tier is not as it could be.
    notes: Mutex<Vec<String>>,
    /// A deterministic store with a simulated disk can be crashed and opened again on it.
    world: Option<(SimWorld, StoreConfig)>,
    deterministic: bool,
    closed: AtomicBool,
    poisoned: AtomicBool,
    /// The fork count at birth: a forked child has no frames.
    forks: u64,
}

/// A sixteenth of the frames at most, a 64th or 64 at least; small stores keep none.
fn reserve(frames: u32) -> u32 {
    if frames < 16 { 0 } else { (frames / 16).min((frames / 64).max(64)) }
}

impl Store {
    /// Opens a store. One with an SSD tier brings back what it finds there, now or, where another
    /// store has the directory and `OnLocked::Ram` is asked for, once that is free.
    ///
    /// # Errors
    /// Config: sizes that make no sense, or more RAM than the machine or its cgroup has free.
    /// Locked, Format, Ssd: another store owns the directory; it is in another format; the disk
    /// does not do what is asked.
    pub fn open(config: &StoreConfig) -> Result<Arc<Self>, Error> {
        Self::open_watched(config, &mut |_| true)
    }

    /// The same; `watch` hears how far the recovery of the SSD tier is, and ends it by false.
    ///
    /// # Errors
    /// As `open`; Ssd where `watch` said so: the directory is as it was.
    pub fn open_watched(config: &StoreConfig, watch: &mut Watch<'_>) -> Result<Arc<Self>, Error> {
        config.check_ssd()?;
        let ssd = config.ssd.as_ref().filter(|ssd| ssd.engine == EngineKind::Sim);
        let world = ssd.map(|ssd| SimWorld::new(ssd.seed));
        Self::open_on(config, world, watch)
    }

    /// Opens one on a simulated disk that may hold something.
    fn open_in(config: &StoreConfig, world: Option<SimWorld>) -> Result<Arc<Self>, Error> {
        Self::open_on(config, world, &mut |_| true)
    }

    fn open_on(
        config: &StoreConfig,
        world: Option<SimWorld>,
        watch: &mut Watch<'_>,
    ) -> Result<Arc<Self>, Error> {
        let (frames, stride_bytes) = config.frames()?;
        // Before a directory is made, or files in it.
        let staging_bytes = tier::STAGING_BYTES.max(2 * u64::from(stride_bytes));
        let beside = config.ssd.is_some() && !config.deterministic;
        let frames_bytes = u64::from(frames) * u64::from(stride_bytes);
        check_ram(frames_bytes + if beside { staging_bytes } else { 0 })?;
        let forks = fork_count();
        let block_bytes = config.block_bytes as u32;
        let found = open::find(config, stride_bytes, world.as_ref(), watch)?;
        let later = matches!(found, Some(Found::Locked(_)));
        let arena = Self::map(config, MemoryId::ARENA, frames.max(1), stride_bytes)?;
        let ssd_slots = config.ssd_slots(stride_bytes)?;
        let directory = Directory::new(frames.saturating_add(ssd_slots));
        let slots = directory.headers();
        let policy: Box<dyn Policy> = match config.policy {
            PolicyKind::Lru => Box::new(policy::Lru::new(slots)),
            PolicyKind::Arc => Box::new(policy::Arc::new(slots, frames.max(1), false)),
        };
        policy.tables().into_iter().for_each(prefer_huge_pages);
        let hints = policy::Hints::new(policy, slots, frames as usize / 2);
        let below = Below::new(config, stride_bytes)?;
        let unix_s = open::unix_s(config);
        let store = Arc::new(Self {
            parts: Parts {
                ring: Ring::new(directory.headers()),
                directory,
                frames: Frames::new(frames),
                counters: Counters::default(),
                clock: Clock::new(config.manual_clock),
                arena,
                staging: below.staging,
                follow: below.follow,
                reserve: if config.deterministic { 0 } else { reserve(frames) },
                away: AtomicBool::new(false),
            },
            keeper: Mutex::new(Keeper::new(hints, later.then(|| Apart::new(unix_s)))),
            gate: Gate::default(),
            leases: lease::Registry::default(),
            block_bytes,
            put_wait: config.put_wait,
            io_timeout: config.io_timeout,
            driver: below.driver,
            attach: Mutex::default(),
            locks: Mutex::default(),
            notes: Mutex::default(),
            world: world.clone().map(|world| (world, config.clone())),
            deterministic: config.deterministic,
            closed: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            forks,
        });
        if let (Some(bounce), Some(found)) = (below.bounce, found) {
            let attach = Attach::new(config, world, bounce, unix_s);
            match found {
                Found::Grounds(grounds) => store.attach_now(attach, grounds, watch)?,
                Found::Locked(why) => store.attach_later(attach, &why),
            }
            store.start_driver()?;
        }
        Ok(store)
    }

    fn map(
        config: &StoreConfig,
        who: MemoryId,
        frames: u32,
        stride_bytes: u32,
    ) -> Result<Arc<Arena>, Error> {
        let prefault = if config.deterministic { Prefault::Now } else { config.prefault };
        let threads = usize::from(config.deterministic);
        let arena = ArenaConfig { who, frames, stride_bytes, prefault, threads };
        // What passes the arena by is copied block by block.
        let copy_threads = if who == MemoryId::ARENA { config.copy_threads() } else { 1 };
        let options = ArenaOptions { numa: config.numa, copy_threads };
        Ok(Arc::new(Arena::map_with(arena, options)?))
    }

    fn start_driver(self: &Arc<Self>) -> Result<(), Error> {
        let Some(driver) = self.driver.as_ref().filter(|_| !self.deterministic) else {
            return Ok(());
        };
        driver.start(Arc::downgrade(self)).map_err(|error| {
            let message = format!("the thread of the SSD tier did not start: {error}.");
            let hint = "raise the limit of threads of this process or its cgroup.";
            Error::new(ErrorKind::Ssd, "KS-SSD-101", message, hint)
        })
    }

    /// Largest payload of a block.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Room for so many blocks.
    pub fn frames_total(&self) -> u32 {
        self.parts.frames.total()
    }

    /// Refuses calls after close and in forked children.
    ///
    /// # Errors
    /// Closed.
    pub fn check(&self) -> Result<(), Error> {
        let closed = |code, message: &str, hint: &str| {
            Err(Error::new(ErrorKind::Closed, code, message, hint))
        };
        if self.forks != fork_count() {
            let message = "this process is a fork of the one that opened the store.";
            return closed("KS-CLO-002", message, "open a store of its own in each process.");
        }
        if self.closed.load(Ordering::Acquire) {
            return closed("KS-CLO-001", "the store is closed.", "open a new Store.");
        }
        Ok(())
    }

    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Runs `work` under the keeper's lock. `None` where the store is or becomes poisoned.
    fn keep<R>(&self, work: impl FnOnce(&mut Keeper, &Parts, &mut Budget) -> R) -> Option<R> {
        let guard = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        self.keep_locked(guard, work)
    }

    /// The same, unless another thread holds the lock.
    fn try_keep<R>(&self, work: impl FnOnce(&mut Keeper, &Parts, &mut Budget) -> R) -> Option<R> {
        match self.keeper.try_lock() {
            Ok(guard) => self.keep_locked(guard, work),
            Err(TryLockError::Poisoned(guard)) => self.keep_locked(guard.into_inner(), work),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn keep_locked<R>(
        &self,
        mut keeper: MutexGuard<'_, Keeper>,
        work: impl FnOnce(&mut Keeper, &Parts, &mut Budget) -> R,
    ) -> Option<R> {
        if self.is_poisoned() {
            return None;
        }
        let mut budget = Budget::full();
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut keeper, &self.parts, &mut budget)));
        if done.is_ok() {
            keeper.bury(&self.parts);
        } else {
            // Half-made state must not be gone on with.
            self.poisoned.store(true, Ordering::Release);
        }
        keeper.holds += 1;
        keeper.hold_blocks_max = keeper.hold_blocks_max.max(budget.spent());
        done.ok()
    }

    /// Takes in everything told so far, in as many holds as it needs. Where others go on telling,
    /// it ends after as many as the ring and the index could keep busy.
    fn drain(&self) {
        let mut holds = 64 + self.parts.directory.headers() / (LOCK_BLOCKS_MAX / 4);
        while self.keep(|keeper, parts, budget| keeper.drain(parts, budget)) == Some(false) {
            holds -= u32::from(!self.deterministic);
            if holds == 0 {
                return;
            }
        }
    }

    /// The bookkeeping at the end of a call that told the keeper of so many blocks: its share, if
    /// nobody else is at it.
    fn tidy(&self, blocks: usize) {
        if self.deterministic {
            self.drain();
            return self.nudge();
        }
        let parts = &self.parts;
        let needed = || !parts.ring.is_empty() || parts.frames.free() < parts.reserve;
        let mut told = false;
        let mut share = blocks as u64 + u64::from(LOCK_BLOCKS_MAX);
        while share > 0 && needed() {
            told = true;
            let done = self.try_keep(|keeper, parts, budget| {
                let done = keeper.drain(parts, budget) && keeper.refill(parts, budget);
                (done, budget.spent())
            });
            match done {
                Some((false, spent)) => share = share.saturating_sub(u64::from(spent.max(1))),
                Some((true, _)) | None => break,
            }
        }
        if told {
            self.nudge();
        }
    }

    /// Tells the keeper what it must not miss, making room in the ring where it is full.
    fn tell(&self, note: Note) {
        while !self.parts.ring.push(note) {
            if self.keep(|keeper, parts, budget| keeper.drain(parts, budget)).is_none() {
                return;
            }
        }
    }

    /// Tells the keeper that a run was delivered, tail first, one event a linked piece.
    fn tell_touched(&self, run: &[Entry]) {
        let pieces: Vec<_> = pieces(run).collect();
        for piece in pieces.iter().rev() {
            let tail = run[piece.end - 1];
            let (slot, generation) = (tail.slot, tail.generation);
            let length = piece.len() as u32;
            if !self.parts.ring.push(Note::Touch { slot, generation, length }) {
                add(&self.parts.counters.touches_dropped, 1);
            }
        }
    }

    /// What happened since the last call, oldest first.
    ///
    /// # Errors
    /// Closed: after close or in a forked child.
    pub fn events(&self) -> Result<Vec<Event>, Error> {
        self.check()?;
        self.drain();
        Ok(self.keep(|keeper, _, _| keeper.log.take()).unwrap_or_default())
    }

    /// A snapshot of all counters; also after close.
    pub fn stats(&self) -> Stats {
        let forked = self.forks != fork_count();
        let closed = forked || self.closed.load(Ordering::Acquire);
        if !closed {
            self.drain();
        }
        let Parts { directory, frames, counters, .. } = &self.parts;
        let (blocks, bytes_resident, _) = counters.resident_now(directory.epoch());
        let mut stats = Stats {
            state: if closed { "closed" } else { "open" },
            numa: self.parts.arena.numa().to_owned(),
            copy_threads: self.parts.arena.copy_threads() as u64,
            copies_shared: self.parts.arena.copies_shared(),
            frames_total: u64::from(frames.total()),
            frames_free: u64::from(frames.free()),
            blocks,
            bytes_resident,
            hits: read(&counters.hits),
            misses: read(&counters.misses),
            lookup_hits: read(&counters.lookup_hits),
            lookup_misses: read(&counters.lookup_misses),
            puts: read(&counters.puts),
            put_again: read(&counters.put_again),
            put_present: read(&counters.put_present),
            put_duplicate: read(&counters.put_duplicate),
            put_short: read(&counters.put_short),
            removed: read(&counters.removed),
            touches_dropped: read(&counters.touches_dropped),
            spurious_misses: read(&counters.spurious_misses),
            index_full: read(&counters.index_full),
            bytes_in: read(&counters.bytes_in),
            bytes_out: read(&counters.bytes_out),
            prefault_bytes: self.parts.arena.prefault_bytes(),
            huge_bytes: self.parts.arena.huge_bytes(),
            index_bytes: directory.bytes() + frames.bytes(),
            fallbacks: self.parts.arena.fallbacks(),
            ..Stats::default()
        };
        // A forked child may have been born while another thread held these locks.
        if !forked {
            stats.frames_pinned = self.leases.frames();
            let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
            stats.evictions = keeper.evictions;
            stats.cleared = keeper.cleared(&self.parts);
            stats.events_dropped = keeper.log.dropped();
            stats.lock_holds = keeper.holds;
            stats.lock_blocks_max = u64::from(keeper.hold_blocks_max);
            stats.policy_steps = keeper.policy().steps();
            stats.index_bytes += keeper.policy().bytes();
            stats.blocks_ram = keeper.policy().len();
            self.add_tier(&mut stats, keeper);
        }
        if self.is_poisoned() && !closed {
            stats.state = "poisoned";
        }
        stats
    }

    /// The tier's part of the stats, where there is one.
    fn add_tier(&self, stats: &mut Stats, keeper: MutexGuard<'_, Keeper>) {
        let Some(driver) = &self.driver else { return };
        let apart = || SsdStats { state: self.apart_state(), ..SsdStats::default() };
        let ssd = keeper.tier.as_ref().map_or_else(apart, |tier| tier.snapshot());
        stats.evictions += ssd.evictions;
        stats.index_bytes += keeper.tier.as_ref().map_or(0, |tier| tier.bytes());
        let away = keeper.tier.iter().flat_map(|tier| tier.away());
        let away = away.map(|path| format!("{path}: left alone after too many faults"));
        stats.fallbacks.extend(away);
        drop(keeper);
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        stats.fallbacks.extend(notes.iter().cloned());
        let mut ssd = ssd;
        if let Some(engine) = driver.engine() {
            (ssd.engine, ssd.direct) = (engine.name(), engine.direct());
            ssd.registered_bytes = engine.registered_bytes();
        }
        if let Some(follow) = &self.parts.follow {
            follow.tell(&mut ssd, &mut stats.fallbacks);
        }
        stats.ssd = Some(ssd);
    }

    /// For tests: panics under the keeper's lock. The store is poisoned afterwards.
    #[doc(hidden)]
    pub fn fault_panic_under_lock(&self) {
        self.keep(|_, _, _| panic!("a fault injected under the keeper's lock"));
    }
}
