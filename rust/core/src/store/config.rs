//! What a store is asked to be, checked before anything is made.
//!
//! Owns: `StoreConfig` and its limits. Never does: read files or the environment. Invariant: a
//! configuration that passes `frames` can be opened unless the machine lacks the memory.

use super::probe;
use crate::arena::{COPY_THREADS_MAX, FRAME_ALIGN_BYTES, Numa, Prefault};
use crate::error::{Error, ErrorKind};
use crate::ssd::format::{SLOTS_MAX, slots_for};
use std::path::PathBuf;
use std::time::Duration;

/// Largest block: 256 MiB.
pub const BLOCK_BYTES_MAX: u64 = 256 << 20;
/// Most frames of a store: header numbers are 32 bits, with room for holes.
pub const FRAMES_MAX: u64 = 1 << 31;

/// A few cores fill a socket's memory channels; the others have better to do.
const COPY_THREADS_DEFAULT_MAX: usize = 4;

/// Which block leaves when room is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least recently used among the blocks without children.
    #[default]
    Lru,
    /// Adaptive: recency and frequency, balanced by what it regrets (Megiddo & Modha, FAST'03).
    Arc,
}

impl PolicyKind {
    /// The names that `parse` knows.
    pub const NAMES: &'static [&'static str] = &["lru", "arc"];

    /// The policy of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Lru, Self::Arc].into_iter().find(|kind| kind.name() == name)
    }

    /// The name of this policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Arc => "arc",
        }
    }
}

/// What does the I/O of an SSD tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// The best one that works here.
    #[default]
    Auto,
    /// Threads that read and write.
    Pool,
    /// One thread and a ring of the kernel's.
    Uring,
    /// A simulated disk in memory: virtual time, seeded. Needs a deterministic store with a manual
    /// clock.
    Sim,
}

impl EngineKind {
    /// The names that `parse` knows.
    pub const NAMES: &'static [&'static str] = &["auto", "pool", "uring", "sim"];

    /// The engine of this name.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Auto, Self::Pool, Self::Uring, Self::Sim];
        all.into_iter().zip(Self::NAMES).find_map(|(kind, of)| (name == *of).then_some(kind))
    }
}

/// What an open does where another store has the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLocked {
    /// It fails.
    #[default]
    Fail,
    /// It waits so long at most, then it fails.
    Wait(Duration),
    /// The store begins in RAM, and takes the directory when it is free.
    Ram,
}

/// Where a device's share of a tier is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SsdPlace {
    /// The root: the store makes a directory of its own in it.
    pub path: PathBuf,
    /// Bytes on disk at most, tables included.
    pub capacity_bytes: u64,
}

/// Whose directories are read beside one's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Following {
    /// Nobody's.
    #[default]
    Nobody,
    /// All other members' under the same root and fingerprint, also those that come later.
    Siblings,
    /// Those of these members, or of all under these roots.
    Paths(Vec<PathBuf>),
}

/// An SSD tier.
#[derive(Clone, Debug)]
pub struct SsdConfig {
    /// The root: the store makes a directory of its own in it. Empty for a simulated disk.
    pub path: PathBuf,
    /// Bytes on disk at most, tables included.
    pub capacity_bytes: u64,
    /// Further devices of the same tier, `DEVICES_MAX` with the first one at most.
    pub others: Vec<SsdPlace>,
    /// What does the I/O.
    pub engine: EngineKind,
    /// Of a simulated disk.
    pub seed: u64,
    /// Which of several stores of one layout under the same root.
    pub member: String,
    /// Of layout, namespace and salt: what is found under another one is never read.
    pub fingerprint: [u8; 16],
    /// What a block is, in words, kept beside the blocks.
    pub layout: String,
    /// Payload written a second, on average; none is no limit.
    pub write_bytes_per_s: Option<u64>,
    /// Start afresh where the directory is of another format or layout, or broken.
    pub reset_on_mismatch: bool,
    /// What to do where another store has the directory.
    pub on_locked: OnLocked,
    /// Where room is short at open, remove other directories under the root that nobody has open,
    /// the least recently opened first, until it is enough.
    pub reclaim: bool,
    /// Whose directories of the same fingerprint count as there.
    pub follow: Following,
    /// What a followed directory holds is not written to this one.
    pub replicated: bool,
    /// Slots of one file; 0 is the default.
    pub slots_a_file: u32,
    /// So much of a chain goes to one of several devices.
    pub stretch_bytes: u64,
}

/// So much of a chain goes to one device of several, unless somebody says otherwise.
const STRETCH_BYTES: u64 = 32 << 20;
/// Most devices of a tier.
pub const DEVICES_MAX: usize = 16;

impl SsdConfig {
    /// Every device of the tier.
    pub(crate) fn places(&self) -> impl Iterator<Item = SsdPlace> {
        let first = SsdPlace { path: self.path.clone(), capacity_bytes: self.capacity_bytes };
        std::iter::once(first).chain(self.others.iter().cloned())
    }

    /// A tier of so many bytes in a directory, with the defaults.
    pub fn new(path: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self {
            path: path.into(),
            capacity_bytes,
            others: Vec::new(),
            engine: EngineKind::Auto,
            seed: 0,
            member: "0".to_owned(),
            fingerprint: [0; 16],
            layout: String::new(),
            write_bytes_per_s: None,
            reset_on_mismatch: false,
            on_locked: OnLocked::default(),
            reclaim: false,
            follow: Following::Nobody,
            replicated: false,
            slots_a_file: 0,
            stretch_bytes: STRETCH_BYTES,
        }
    }
}

impl SsdConfig {
    fn check_follow(&self) -> Result<(), Error> {
        let error = |code, message: &str, hint: &str| {
            Err(Error::new(ErrorKind::Config, code, message, hint))
        };
        if self.follow == Following::Nobody && self.replicated {
            let message = "replicated without a directory to follow.";
            return error("KS-CFG-010", message, "say whose: follow=\"siblings\" or [paths].");
        }
        if self.follow != Following::Nobody && self.engine == EngineKind::Sim {
            let message = "a simulated disk follows no directory.";
            return error("KS-CFG-011", message, "leave follow= out, or choose another engine.");
        }
        if self.follow == Following::Paths(Vec::new()) {
            let message = "no path to follow.";
            return error("KS-CFG-012", message, "name directories, or leave follow= out.");
        }
        Ok(())
    }
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes of RAM for blocks; the index comes on top and is shown in the stats.
    pub ram_bytes: u64,
    /// Largest payload of a block, 1 byte to 256 MiB; frames round it up to 4 KiB.
    pub block_bytes: u64,
    /// Which block leaves.
    pub policy: PolicyKind,
    /// For tests: no threads, no frames in reserve, all bookkeeping done when a call returns.
    pub deterministic: bool,
    /// For tests: time stands still until `Store::step` moves it.
    pub manual_clock: bool,
    /// When the RAM is faulted in.
    pub prefault: Prefault,
    /// From which memory nodes the RAM comes; none: from where it is faulted in.
    pub numa: Option<Numa>,
    /// Threads that share a large copy, the caller's included; 0: as many as there are cores, at
    /// most four.
    pub copy_threads: usize,
    /// How long a put may wait for calls in progress to give frames back, and for the cleaner.
    pub put_wait: Duration,
    /// A second tier; none: blocks are in RAM only.
    pub ssd: Option<SsdConfig>,
    /// How long a call waits for one transfer; a device that takes longer gives a miss.
    pub io_timeout: Duration,
}

impl StoreConfig {
    /// A store of so much RAM for blocks of so many bytes, with the defaults.
    pub fn new(ram_bytes: u64, block_bytes: u64) -> Self {
        Self {
            ram_bytes,
            block_bytes,
            policy: PolicyKind::default(),
            deterministic: false,
            manual_clock: false,
            prefault: Prefault::Background,
            numa: None,
            copy_threads: 0,
            put_wait: Duration::from_secs(1),
            ssd: None,
            io_timeout: Duration::from_secs(1),
        }
    }

    /// Threads that share a large copy: a deterministic store has the caller's alone.
    pub(crate) fn copy_threads(&self) -> usize {
        match self.copy_threads {
            _ if self.deterministic => 1,
            0 => probe::cores().min(COPY_THREADS_DEFAULT_MAX),
            asked => asked.min(COPY_THREADS_MAX),
        }
    }

    /// Frames and their stride in bytes.
    pub(crate) fn frames(&self) -> Result<(u32, u32), Error> {
        let error = |code, message: String, hint: &str| {
            Error::new(ErrorKind::Config, code, message, hint)
                .with("ram_bytes", self.ram_bytes)
                .with("block_bytes", self.block_bytes)
        };
        if self.block_bytes == 0 || self.block_bytes > BLOCK_BYTES_MAX {
            let message = format!(
                "blocks of {} bytes; 1 to {BLOCK_BYTES_MAX} are possible.",
                self.block_bytes
            );
            return Err(error("KS-CFG-001", message, "choose block_bytes= in that range."));
        }
        let stride = self.block_bytes.next_multiple_of(u64::from(FRAME_ALIGN_BYTES));
        let frames = self.ram_bytes / stride;
        if frames == 0 && (self.ram_bytes > 0 || self.ssd.is_none()) {
            let message = format!(
                "{} bytes of RAM hold no block of {} bytes (frames take {stride}).",
                self.ram_bytes, self.block_bytes
            );
            return Err(error("KS-CFG-002", message, "raise ram= to one block or more."));
        }
        if frames > FRAMES_MAX {
            let message = format!("{frames} frames; {FRAMES_MAX} are possible.");
            return Err(error("KS-CFG-003", message, "raise block_bytes= or lower ram=."));
        }
        Ok((frames as u32, stride as u32))
    }

    /// Whether the tier asked for can be had in this kind of store.
    pub(crate) fn check_ssd(&self) -> Result<(), Error> {
        let Some(ssd) = &self.ssd else { return Ok(()) };
        let sim = ssd.engine == EngineKind::Sim;
        if sim != (self.deterministic && self.manual_clock) && (sim || self.manual_clock) {
            let message = format!("engine {:?} with a {} clock.", ssd.engine, self.clock_name());
            let hint = "a simulated disk needs deterministic=True and clock=\"manual\", a real one \
                        clock=\"real\".";
            return Err(Error::new(ErrorKind::Config, "KS-CFG-004", message, hint));
        }
        let devices = 1 + ssd.others.len();
        if devices > DEVICES_MAX {
            let message = format!("{devices} devices; {DEVICES_MAX} are possible.");
            let hint = "join some into one volume (LVM or md striping).";
            return Err(Error::new(ErrorKind::Config, "KS-CFG-007", message, hint));
        }
        ssd.check_follow()
    }

    /// SSD slots of all devices, for frames of this stride.
    pub(crate) fn ssd_slots(&self, stride_bytes: u32) -> Result<u32, Error> {
        let places = self.ssd.iter().flat_map(SsdConfig::places);
        let slots = |place: SsdPlace| u64::from(slots_for(place.capacity_bytes, stride_bytes));
        let slots: u64 = places.map(slots).sum();
        if slots > u64::from(SLOTS_MAX) {
            let message = format!("{slots} blocks on SSD; {SLOTS_MAX} are possible.");
            let hint = "lower the capacities of ssd=, or raise block_bytes=.";
            return Err(Error::new(ErrorKind::Config, "KS-CFG-008", message, hint));
        }
        Ok(slots as u32)
    }

    fn clock_name(&self) -> &'static str {
        if self.manual_clock { "manual" } else { "real" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_rounded_to_pages_and_ram_is_never_exceeded() {
        let frames = |ram, block| StoreConfig::new(ram, block).frames().map_err(|e| e.code);
        assert_eq!(frames(3 * 8192 - 1, 5000), Ok((2, 8192)));
        assert_eq!(frames(4096, 1), Ok((1, 4096)));
        assert_eq!(frames(4095, 1), Err("KS-CFG-002"));
        assert_eq!(frames(1 << 30, 0), Err("KS-CFG-001"));
        assert_eq!(frames(1 << 30, BLOCK_BYTES_MAX + 1), Err("KS-CFG-001"));
        assert_eq!(frames(u64::MAX, 4096), Err("KS-CFG-003"));
    }

    #[test]
    fn policies_know_their_names() {
        for name in PolicyKind::NAMES {
            assert_eq!(PolicyKind::parse(name).map(PolicyKind::name), Some(*name));
        }
        assert_eq!(PolicyKind::parse("mru"), None);
    }
}
