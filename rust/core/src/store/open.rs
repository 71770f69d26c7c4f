//! Opening an SSD tier: files or a simulated disk, SUPER, memory, an engine.
//!
//! Owns: the parts that a tier is made of. Never does: read the table (`attach`) or a block, or
//! wait.

use super::driver::Driver;
use super::follow::Follow;
use super::simulated::{SimWorld, simulated};
use super::tier::{self, DevicePlace, FEW_PAGES, Geometry, PAGES_MAX, Tier};
use super::wait::open_directory;
use super::{EngineKind, OnLocked, SsdConfig, SsdPlace, Store, StoreConfig};
use crate::arena::{Arena, ArenaConfig, Memory, MemoryId, Prefault};
use crate::directory::Frames;
use crate::error::{Error, ErrorKind};
use crate::io::{self, Engine, Many, NoEngine, Outbox, Sim, SimDisk, Wanted};
use crate::ssd::admit::{Admission, AdmitConfig};
use crate::ssd::dir::{self, DirConfig, LockGuard};
use crate::ssd::format::{EPOCH_MAX, PAGE_BYTES, Super};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Threads of the pool engine: as many transfers are under way at once.
const POOL_THREADS: usize = 5;
/// When a simulated world begins, whenever it is run: 2020.
const SIMULATED_UNIX_S: u64 = 1_577_836_800;

/// How far an open of an SSD tier is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// One sentence for the log.
    Said(String),
    /// It waits for another store to give the directory up.
    Waits {
        /// So long already.
        waited: Duration,
        /// So long at most.
        most: Duration,
    },
    /// It recovers what is there.
    Recovers {
        /// "pages" of the table that are read, "records" that are sorted out, "blocks" that are
        /// entered.
        what: &'static str,
        /// So many are done.
        done: u64,
        /// So many there are.
        all: u64,
    },
}

/// Hears of the progress of an open, some thousand blocks or part of a second at a time; false ends
/// it.
pub type Watch<'a> = dyn FnMut(Progress) -> bool + 'a;

/// The code of an open that its caller has ended.
const INTERRUPTED: &str = "KS-SSD-107";

pub(super) fn go_on(watch: &mut Watch<'_>, progress: Progress) -> Result<(), Error> {
    let at = match &progress {
        Progress::Said(_) => String::new(),
        Progress::Waits { waited, most } => {
            format!(" after {:.1} of {:.1} s", waited.as_secs_f64(), most.as_secs_f64())
        }
        Progress::Recovers { what, done, all } => format!(" after {done} of {all} {what}"),
    };
    if watch(progress) {
        return Ok(());
    }
    let message = format!("the open was interrupted{at}.");
    let hint = "open the store again: the directory is as it was.";
    Err(Error::new(ErrorKind::Ssd, INTERRUPTED, message, hint))
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

pub(super) fn poisoned() -> Error {
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
    /// The hint for followers, where there is one.
    pub(super) changes: Option<OwnedFd>,
    pub(super) superblock: Super,
    /// The table holds nothing yet.
    pub(super) fresh: bool,
    pub(super) notes: Vec<String>,
    pub(super) direct: bool,
    pub(super) path: String,
    /// What the engine calls its first file: behind all of the devices before it.
    pub(super) first_file: u32,
}

/// Where all devices of a tier are to be; at least one.
pub(super) struct Grounds {
    pub(super) devices: Vec<Ground>,
    pub(super) notes: Vec<String>,
}

/// Finds or makes the files of a tier. Of several devices, one that fails is left out.
pub(super) fn survey(
    config: &SsdConfig,
    block_bytes: u32,
    stride_bytes: u32,
    world: Option<&SimWorld>,
    watch: &mut Watch<'_>,
) -> Result<Grounds, Error> {
    let mut grounds = Grounds { devices: Vec::new(), notes: Vec::new() };
    let (mut first_failed, mut next_file) = (None, 0);
    for (device, place) in (0..).zip(config.places()) {
        let found = match world {
            Some(world) => {
                let which = (device, place.capacity_bytes);
                simulated(config, which, block_bytes, stride_bytes, world)
            }
            None => survey_one(config, &place, device, block_bytes, stride_bytes, watch),
        };
        match found {
            Ok(mut ground) => {
                if let Files::Real(files) = &ground.files {
                    ground.first_file = next_file;
                    next_file += files.len() as u32;
                }
                grounds.devices.push(ground);
            }
            Err(error) if error.kind == ErrorKind::Ssd && error.code != INTERRUPTED => {
                let path = place.path.display();
                grounds.notes.push(format!("{path}: left out: {} {}", error.message, error.hint));
                first_failed.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match first_failed {
        Some(error) if grounds.devices.is_empty() => Err(error),
        _ => Ok(grounds),
    }
}

/// Finds or makes the files of one device.
fn survey_one(
    config: &SsdConfig,
    place: &SsdPlace,
    device: u32,
    block_bytes: u32,
    stride_bytes: u32,
    watch: &mut Watch<'_>,
) -> Result<Ground, Error> {
    let directory = DirConfig {
        root: &place.path,
        fingerprint: config.fingerprint,
        member: &config.member,
        layout_json: &config.layout,
        capacity_bytes: place.capacity_bytes,
        stride_bytes,
        reset_on_mismatch: config.reset_on_mismatch,
        reclaim: config.reclaim,
        read_only: false,
        slots_a_file: config.slots_a_file,
        direct: true,
    };
    let opened = open_directory(&directory, config.on_locked, watch)?;
    let fresh = opened.fresh;
    let superblock = opened.super_block.unwrap_or_else(|| {
        let slots = (opened.slots, opened.slots_a_file);
        new_super(config, device, block_bytes, stride_bytes, slots, opened.layout_hash)
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
        changes: opened.changes,
        superblock,
        fresh,
        notes,
        direct: opened.direct,
        path: opened.path.display().to_string(),
        first_file: 0,
    })
}

pub(super) fn new_super(
    config: &SsdConfig,
    device: u32,
    block_bytes: u32,
    stride_bytes: u32,
    (slots, slots_a_file): (u32, u32),
    layout_hash: [u8; 32],
) -> Super {
    let mut uuid = [0; 16];
    // Who writes into another's directory, or finds an old one's bytes, must not share it.
    let random = std::collections::hash_map::RandomState::new();
    for (at, part) in uuid.chunks_mut(8).enumerate() {
        let word = std::hash::BuildHasher::hash_one(&random, (at, config.seed, device));
        part.copy_from_slice(&word.to_le_bytes());
    }
    if config.engine == EngineKind::Sim {
        uuid = [0x5A; 16];
        uuid[..8].copy_from_slice(&config.seed.to_le_bytes());
        uuid[8] = uuid[8].wrapping_add(device as u8);
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
        boots: Vec::new(),
    }
}

/// The engine over the files of all devices: of several, one for each.
pub(super) fn engine(
    grounds: &mut Grounds,
    memory: &Memory,
    clock: Option<Arc<AtomicU64>>,
    config: &SsdConfig,
) -> Result<Box<dyn Engine>, Error> {
    if let Files::Sim(disk) = &grounds.devices[0].files {
        let clock = clock.expect("`check_ssd` has refused it");
        return Ok(Box::new(Sim::new(disk, clock, memory.clone(), config.seed)));
    }
    let outbox = Arc::<Outbox>::default();
    let mut engines = Vec::new();
    for ground in &mut grounds.devices {
        engines.push((ground.first_file, engine_of(ground, &outbox, memory.clone(), config)?));
    }
    Ok(Many::over(engines, outbox))
}

/// The engine over one device's files; why it is not the best one goes into the notes.
fn engine_of(
    ground: &mut Ground,
    outbox: &Arc<Outbox>,
    memory: Memory,
    config: &SsdConfig,
) -> Result<Box<dyn Engine>, Error> {
    let files = match std::mem::replace(&mut ground.files, Files::Real(Vec::new())) {
        Files::Real(files) => files,
        Files::Sim(_) => unreachable!("a store's devices are all of one kind"),
    };
    let wanted = match config.engine {
        EngineKind::Pool => Wanted::Pool,
        EngineKind::Uring => Wanted::Uring,
        EngineKind::Auto | EngineKind::Sim => Wanted::Best,
    };
    let scratch = || dir::scratch(Path::new(&ground.path), ground.direct);
    match io::choose(wanted, outbox, files, memory, POOL_THREADS, scratch) {
        Ok((engine, why)) => {
            ground.notes.extend(why.map(|why| format!("{}: {why}: threads instead", ground.path)));
            Ok(engine)
        }
        Err(NoEngine::Uring(why)) => {
            let message = format!("{}: {why}.", ground.path);
            let hint = "use engine=\"auto\", which falls back to threads, or allow io_uring here \
                        (kernel.io_uring_disabled, the container's seccomp profile).";
            let error = Error::new(ErrorKind::Ssd, "KS-SSD-108", message, hint);
            Err(error.with("errno", why.errno).with("step", why.step))
        }
        Err(NoEngine::Pool(error)) => {
            let message = format!("the threads of the pool engine did not start: {error}.");
            let hint = "raise the limit of threads of this process or its cgroup.";
            Err(Error::new(ErrorKind::Ssd, "KS-SSD-101", message, hint))
        }
    }
}

/// Memory for table pages on their way.
fn bounce(deterministic: bool, devices: u32) -> Result<Arc<Arena>, Error> {
    let config = ArenaConfig {
        who: MemoryId::PAGES,
        frames: devices * if deterministic { FEW_PAGES } else { PAGES_MAX },
        stride_bytes: PAGE_BYTES as u32,
        prefault: Prefault::Now,
        threads: 1,
    };
    Ok(Arc::new(Arena::map(config)?))
}

/// Where the tier is to be, or why another store has it and this one begins without.
pub(super) enum Found {
    Grounds(Grounds),
    Locked(Error),
}

/// Looks for the files of a tier at open.
pub(super) fn find(
    config: &StoreConfig,
    stride_bytes: u32,
    world: Option<&SimWorld>,
    watch: &mut Watch<'_>,
) -> Result<Option<Found>, Error> {
    let Some(ssd) = &config.ssd else { return Ok(None) };
    match survey(ssd, config.block_bytes as u32, stride_bytes, world, watch) {
        Ok(grounds) => Ok(Some(Found::Grounds(grounds))),
        Err(error) if error.kind == ErrorKind::Locked && ssd.on_locked == OnLocked::Ram => {
            Ok(Some(Found::Locked(error)))
        }
        Err(error) => Err(error),
    }
}

/// What a store has for its tier from its birth on, whoever has the directory.
#[derive(Default)]
pub(super) struct Below {
    pub(super) staging: Option<tier::Staging>,
    pub(super) driver: Option<Arc<Driver>>,
    /// Memory for table pages on their way.
    pub(super) bounce: Option<Arc<Arena>>,
    pub(super) follow: Option<Arc<Follow>>,
}

impl Below {
    pub(super) fn new(config: &StoreConfig, stride_bytes: u32) -> Result<Self, Error> {
        let Some(ssd) = &config.ssd else { return Ok(Self::default()) };
        let staged = (tier::STAGING_BYTES / u64::from(stride_bytes)).max(2) as u32;
        let staged = if config.deterministic { staged.min(4) } else { staged };
        let arena = Store::map(config, MemoryId::STAGING, staged, stride_bytes)?;
        Ok(Self {
            staging: Some(tier::Staging { arena, frames: Frames::new(staged) }),
            driver: Some(Arc::default()),
            bounce: Some(bounce(config.deterministic, ssd.places().count() as u32)?),
            follow: Follow::open(config, stride_bytes),
        })
    }
}

/// A number for this open.
pub(super) fn boot(world: Option<&SimWorld>) -> u64 {
    let random = || {
        let random = std::collections::hash_map::RandomState::new();
        std::hash::BuildHasher::hash_one(&random, std::process::id())
    };
    world.map_or_else(random, SimWorld::next_boot).max(1)
}

/// Seconds since 1970, as a store that opens now has it.
pub(super) fn unix_s(config: &StoreConfig) -> u64 {
    if config.manual_clock {
        return SIMULATED_UNIX_S;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What is of this open alone.
#[derive(Clone, Copy)]
pub(super) struct Opening {
    /// Seconds since 1970 when the store's clock stood at 0, and what it says now.
    pub(super) opened_unix_s: u64,
    pub(super) now_us: u64,
    /// Drawn for it.
    pub(super) boot: u64,
}

/// A tier that knows its files but not yet what is in them.
pub(super) fn tier(
    config: &StoreConfig,
    ssd: &SsdConfig,
    grounds: &Grounds,
    bounce: &Arc<Arena>,
    frames: u32,
    headers: u32,
    Opening { opened_unix_s, now_us, boot }: Opening,
) -> Box<Tier> {
    let supers = || grounds.devices.iter().map(|ground| &ground.superblock);
    let stride_bytes = grounds.devices[0].superblock.stride_bytes;
    let geometry = Geometry {
        fingerprint: ssd.fingerprint,
        boot,
        stride_bytes,
        stretch_blocks: ssd.stretch_bytes / u64::from(stride_bytes),
        block_bytes: supers().map(|superblock| superblock.block_bytes).max().unwrap_or(0),
        io_timeout_us: u64::try_from(config.io_timeout.as_micros()).unwrap_or(u64::MAX),
        opened_unix_s,
    };
    let slots: u64 = supers().map(|superblock| u64::from(superblock.slots)).sum();
    let places = u64::from(frames) + slots;
    let admit = AdmitConfig {
        write_bytes_per_s: ssd.write_bytes_per_s,
        block_bytes: config.block_bytes,
        places,
    };
    let admission = Admission::new(&admit, now_us);
    let devices = grounds.devices.iter().map(|ground| {
        let superblock = ground.superblock.clone();
        let (uuid, slots_a_file) = (superblock.uuid, superblock.slots_a_file);
        let path = ground.path.clone();
        let place = DevicePlace { path, uuid, slots_a_file, first_file: ground.first_file };
        (place, superblock)
    });
    Box::new(Tier::new(geometry, devices.collect(), headers, admission, Arc::clone(bounce)))
}
