//! Opening an SSD tier: files or a simulated disk, SUPER, the table, and what comes back of it.
//!
//! Owns: the way from a configuration to a tier that is ready. Never does: read a block. Invariant:
//! SUPER with the new epoch is on stable storage before the first block is written.

use super::simulated::{SimWorld, simulated};
use super::tier::{FEW_PAGES, Geometry, PAGES_MAX, Round, TABLE_FILE, Tier};
use super::{EngineKind, SsdConfig, Store, StoreConfig};
use crate::arena::{Arena, ArenaConfig, ArenaOptions, Memory, MemoryId, Prefault, Region, RowsMut};
use crate::error::{Error, ErrorKind};
use crate::io::{Completion, Engine, Op, Pool, Request, Sim, SimDisk};
use crate::ssd::admit::{Admission, AdmitConfig};
use crate::ssd::dir::{self, DirConfig, LockGuard};
use crate::ssd::format::{EPOCH_MAX, PAGE_BYTES, Super};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// Threads of the pool engine: as many transfers are under way at once.
const POOL_THREADS: usize = 5;
/// Reads of the table under way at once at open; they share the memory for table pages.
const READ_LANES: u32 = 4;
const _: () = assert!(PAGES_MAX.is_multiple_of(READ_LANES) && FEW_PAGES.is_multiple_of(READ_LANES));
/// What an open waits for SUPER, beside the timeout of its transfers.
const OPEN_TRANSFERS: u32 = 8;

/// Recovered blocks that are entered in one hold of the keeper's lock.
const RECOVERED_A_HOLD: usize = 4096;

/// How far the recovery of an SSD tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// "pages" of the table that are read, then "blocks" that are entered.
    pub what: &'static str,
    /// So many are done.
    pub done: u64,
    /// So many there are.
    pub all: u64,
}

/// Hears of the progress of an open, some thousand blocks at a time; false ends it.
pub type Watch<'a> = dyn FnMut(Progress) -> bool + 'a;

fn go_on(watch: &mut Watch<'_>, progress: Progress) -> Result<(), Error> {
    if watch(progress) {
        return Ok(());
    }
    let Progress { what, done, all } = progress;
    let message = format!("the open was interrupted after {done} of {all} {what}.");
    let hint = "open the store again: the directory is as it was.";
    Err(Error::new(ErrorKind::Ssd, "KS-SSD-107", message, hint))
}

/// An error where the format has no epoch left: one more begins with every open and every clear.
pub(super) fn no_epochs_left(epoch: u32) -> Error {
    let message = format!(
        "the directory would begin epoch {epoch}; the format has {EPOCH_MAX}, one for each open \
         and each clear."
    );
    let hint = "delete the directory and let the store make a new one; nothing has changed.";
    Error::new(ErrorKind::Format, "KS-FMT-005", message, hint).with("epoch", epoch)
}

fn poisoned() -> Error {
    let hint = "report it with the message of the panic.";
    let message = "the table could not be taken in.";
    Error::new(ErrorKind::Ssd, "KS-SSD-102", message, hint)
}

/// Files that hold a tier.
pub(super) enum Files {
    Real(Vec<(OwnedFd, bool)>),
    Sim(Arc<SimDisk>),
}

/// What was found where the tier is to be.
pub(super) struct Ground {
    pub(super) files: Files,
    pub(super) lock: Option<LockGuard>,
    pub(super) superblock: Super,
    /// The table holds nothing yet.
    pub(super) fresh: bool,
    pub(super) notes: Vec<String>,
    pub(super) direct: bool,
    pub(super) path: String,
}

/// Finds or makes the files of a tier.
pub(super) fn survey(
    config: &SsdConfig,
    block_bytes: u32,
    stride_bytes: u32,
    world: Option<&SimWorld>,
) -> Result<Ground, Error> {
    if let Some(world) = world {
        return simulated(config, block_bytes, stride_bytes, world);
    }
    let opened = dir::open(&DirConfig {
        root: &config.path,
        fingerprint: config.fingerprint,
        member: &config.member,
        layout_json: &config.layout,
        capacity_bytes: config.capacity_bytes,
        stride_bytes,
        reset_on_mismatch: config.reset_on_mismatch,
        read_only: false,
        slots_a_file: config.slots_a_file,
        direct: true,
    })?;
    let fresh = opened.fresh;
    let superblock = opened.super_block.unwrap_or_else(|| {
        let slots = (opened.slots, opened.slots_a_file);
        new_super(config, block_bytes, stride_bytes, slots, opened.layout_hash)
    });
    let superblock = Super {
        slots: opened.slots,
        slots_a_file: opened.slots_a_file,
        block_bytes: block_bytes.max(superblock.block_bytes.min(stride_bytes)),
        ..superblock
    };
    let notes = opened.fallbacks.into_iter().chain(opened.warnings).collect();
    Ok(Ground {
        files: Files::Real(opened.files),
        lock: opened.lock,
        superblock,
        fresh,
        notes,
        direct: opened.direct,
        path: opened.path.display().to_string(),
    })
}

pub(super) fn new_super(
    config: &SsdConfig,
    block_bytes: u32,
    stride_bytes: u32,
    (slots, slots_a_file): (u32, u32),
    layout_hash: [u8; 32],
) -> Super {
    let mut uuid = [0; 16];
    // Who writes into another's directory, or finds an old one's bytes, must not share it.
    let random = std::collections::hash_map::RandomState::new();
    for (at, part) in uuid.chunks_mut(8).enumerate() {
        let word = std::hash::BuildHasher::hash_one(&random, (at, config.seed));
        part.copy_from_slice(&word.to_le_bytes());
    }
    if config.engine == EngineKind::Sim {
        uuid = [0x5A; 16];
        uuid[..8].copy_from_slice(&config.seed.to_le_bytes());
    }
    Super {
        uuid,
        sequence: 0,
        epoch: 0,
        clear_epoch: 0,
        fingerprint: config.fingerprint,
        layout_hash,
        block_bytes,
        stride_bytes,
        slots,
        slots_a_file,
        key_check: [0; 16],
        clean: false,
        distrusted: false,
    }
}

/// The engine over the files.
pub(super) fn engine(
    files: Files,
    memory: Memory,
    clock: Option<Arc<AtomicU64>>,
    seed: u64,
) -> Result<Box<dyn Engine>, Error> {
    match (files, clock) {
        (Files::Sim(disk), Some(clock)) => Ok(Box::new(Sim::new(&disk, clock, memory, seed))),
        (Files::Sim(_), None) => unreachable!("`check_ssd` has refused it"),
        (Files::Real(files), _) => {
            let pool = Pool::new(files, memory, POOL_THREADS).map_err(|error| {
                let message = format!("the threads of the pool engine did not start: {error}.");
                let hint = "raise the limit of threads of this process or its cgroup.";
                Error::new(ErrorKind::Ssd, "KS-SSD-101", message, hint)
            })?;
            Ok(Box::new(pool))
        }
    }
}

/// Memory for table pages on their way.
pub(super) fn bounce(deterministic: bool) -> Result<Arc<Arena>, Error> {
    let config = ArenaConfig {
        who: MemoryId::PAGES,
        frames: if deterministic { FEW_PAGES } else { PAGES_MAX },
        stride_bytes: PAGE_BYTES as u32,
        prefault: Prefault::Now,
        threads: 1,
    };
    Ok(Arc::new(Arena::map(config)?))
}

/// A tier that knows its files but not yet what is in them.
pub(super) fn tier(
    config: &StoreConfig,
    ssd: &SsdConfig,
    ground: &Ground,
    bounce: &Arc<Arena>,
    places: u64,
    headers: u32,
) -> Box<Tier> {
    let superblock = ground.superblock.clone();
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let geometry = Geometry {
        uuid: superblock.uuid,
        fingerprint: ssd.fingerprint,
        stride_bytes: superblock.stride_bytes,
        slots_a_file: superblock.slots_a_file,
        block_bytes: superblock.block_bytes,
        io_timeout_us: u64::try_from(config.io_timeout.as_micros()).unwrap_or(u64::MAX),
        // A simulated world begins in 2020, whenever it is run.
        opened_unix_s: if config.manual_clock {
            1_577_836_800
        } else {
            unix.map_or(0, |since| since.as_secs())
        },
    };
    let admit = AdmitConfig {
        write_bytes_per_s: ssd.write_bytes_per_s,
        block_bytes: config.block_bytes,
        places,
    };
    let admission = Admission::new(&admit, 0);
    Box::new(Tier::new(geometry, superblock, headers, admission, Arc::clone(bounce)))
}

impl Store {
    /// Maps one of the store's memories.
    pub(super) fn map(
        config: &StoreConfig,
        who: MemoryId,
        frames: u32,
        stride_bytes: u32,
    ) -> Result<Arc<Arena>, Error> {
        let prefault = if config.deterministic { Prefault::Now } else { config.prefault };
        let threads = usize::from(config.deterministic);
        let arena = ArenaConfig { who, frames, stride_bytes, prefault, threads };
        let options = ArenaOptions { numa: config.numa, copy_threads: config.copy_threads() };
        Ok(Arc::new(Arena::map_with(arena, options)?))
    }

    /// Reads the table and enters its blocks, a piece at a time; SUPER has the new epoch on stable
    /// storage when this returns. Before any other call.
    pub(super) fn recover(
        &self,
        fresh: bool,
        bounce: &Arena,
        watch: &mut Watch<'_>,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        if !fresh {
            self.read_table(bounce, watch)?;
        }
        let recovery = self.with_tier(|tier, with| tier.begin_recovery(with));
        let mut recovery = match recovery {
            Some(Ok(recovery)) => recovery,
            Some(Err(epoch)) => return Err(no_epochs_left(epoch)),
            None => return Err(poisoned()),
        };
        while !self
            .with_tier(|tier, with| tier.enter_some(with, &mut recovery, RECOVERED_A_HOLD))
            .ok_or_else(poisoned)?
        {
            let (done, all) = recovery.progress();
            go_on(watch, Progress { what: "blocks", done, all })?;
        }
        let took_us = begun.elapsed().as_micros() as u64;
        self.with_tier(|tier, _| tier.stats.recovery_us = took_us);
        self.nudge();
        let wait = self.io_timeout.saturating_mul(OPEN_TRANSFERS);
        let deadline_us = self.deadline_us(wait);
        let mut end = Round::Pending;
        let round = recovery.round();
        self.drive(deadline_us, || {
            end = self.with_tier(|tier, _| tier.super_round(round)).unwrap_or(Round::Failed);
            end != Round::Pending
        });
        if end == Round::Confirmed {
            return Ok(());
        }
        let message = format!("the disk did not confirm SUPER within {} s.", wait.as_secs_f64());
        let hint = "look at the disk (dmesg), or open the store without ssd=.";
        Err(Error::new(ErrorKind::Ssd, "KS-SSD-103", message, hint))
    }

    /// Drives the tier in this thread until `done`: no other thread does yet.
    fn drive(&self, deadline_us: u64, mut done: impl FnMut() -> bool) {
        while !done() {
            let left_us = deadline_us.saturating_sub(self.parts.clock.now_us());
            if left_us == 0 || self.is_poisoned() {
                return;
            }
            self.turn(Duration::from_micros(left_us.min(10_000)));
        }
    }

    /// Reads the table's pages, several reads at a time. A page that can't be read is written
    /// anew: its blocks are lost.
    fn read_table(&self, bounce: &Arena, watch: &mut Watch<'_>) -> Result<(), Error> {
        let Some(driver) = &self.driver else { return Ok(()) };
        let pages = self.with_tier(|tier, _| tier.pages()).unwrap_or(0);
        let (lanes, lane_pages) = (READ_LANES, bounce.frames() / READ_LANES);
        let mut next = 0;
        let mut out = vec![None; lanes as usize];
        let mut buffer = vec![0; lane_pages as usize * PAGE_BYTES];
        let mut reaped: Vec<Completion> = Vec::new();
        let deadline_us = |store: &Self| store.deadline_us(store.io_timeout);
        let mut give_up_us = deadline_us(self);
        loop {
            for (lane, out) in out.iter_mut().enumerate().filter(|(_, out)| out.is_none()) {
                if next < pages {
                    let count = lane_pages.min(pages - next);
                    driver.engine.submit(&[read_of(lane as u32, lane_pages, next, count)]);
                    *out = Some((next, count));
                    next += count;
                }
            }
            if out.iter().all(Option::is_none) {
                return Ok(());
            }
            go_on(watch, Progress { what: "pages", done: next.into(), all: pages.into() })?;
            driver.engine.reap(Duration::from_millis(10), &mut reaped);
            for completion in reaped.drain(..) {
                let lane = completion.id as usize;
                let Some((first, count)) = out.get_mut(lane).and_then(Option::take) else {
                    continue;
                };
                give_up_us = deadline_us(self);
                let region = read_of(lane as u32, lane_pages, first, count).region;
                let whole = completion.result == Ok(region.len);
                if whole {
                    let rows =
                        RowsMut::packed(&mut buffer[..region.len as usize], region.len as usize);
                    bounce.read(region, &rows, 0);
                }
                self.take_in(first, count, whole.then_some(&buffer));
            }
            if self.parts.clock.now_us() >= give_up_us {
                // What hangs keeps its memory: the bounce frames it reads into are not used again.
                for (lane, lost) in out.iter().enumerate() {
                    let Some((first, count)) = *lost else { continue };
                    let from = lane as u32 * lane_pages;
                    self.with_tier(|tier, _| tier.lose_bounce(from..from + lane_pages));
                    self.take_in(first, count, None);
                }
                (next..pages).for_each(|page| self.take_in(page, 1, None));
                return Ok(());
            }
        }
    }

    fn take_in(&self, first: u32, count: u32, bytes: Option<&Vec<u8>>) {
        self.with_tier(|tier, with| {
            for page in 0..count {
                match bytes {
                    Some(bytes) => {
                        let at = page as usize * PAGE_BYTES;
                        tier.load_page(first + page, &bytes[at..at + PAGE_BYTES], with.now_us);
                    }
                    None => tier.miss_page(first + page, with.now_us),
                }
            }
        });
    }
}

/// The read of some table pages into a lane of the bounce memory.
fn read_of(lane: u32, lane_pages: u32, first: u32, count: u32) -> Request {
    let bytes = lane_pages * PAGE_BYTES as u32;
    Request {
        id: u64::from(lane),
        op: Op::Read,
        file: TABLE_FILE,
        offset: u64::from(first) * PAGE_BYTES as u64,
        region: Region {
            who: MemoryId::PAGES,
            offset: u64::from(lane * bytes),
            len: count * PAGE_BYTES as u32,
        },
        digest: None,
        urgent: true,
    }
}
