//! Memory: one huge-page mapping cut into frames, and the copies in and out of it.
//!
//! Owns: the mapping, its prefaulting, the check against the machine's limits, the fork counter,
//! the views of callers' memory (`Rows`, `RowsMut`). Never does: deciding which frame is whose;
//! it knows no keys and keeps no list of free frames.
//!
//! Invariants:
//! - A `Region` is checked against the mapping before any byte is touched; outside it is a panic.
//! - *Who may touch a frame when* is the pin protocol of the directory, not of this room. `write`
//!   is for the owner of a frame that nobody can find yet; `read` and `pointer` are for callers
//!   that hold a pin on the block in it. Under that rule a frame has many readers or one writer.
//! - A written frame holds the payload and then zeros up to its stride, never older bytes: what
//!   lies beyond `zero_from` is still zero, so only the part before it is zeroed again.
//! - The mapping outlives every pointer into it: whoever hands one out keeps the `Arena` alive.
//! - A forked child has no copy of the frames (MADV_DONTFORK): it must not come here, and dropping
//!   its copy of the `Arena` leaves its address space alone. See [`fork_count`].

mod copy;
mod fork;
mod limits;
#[cfg(all(test, loom))]
mod loom_tests;
mod many;
mod mapping;
mod numa;
mod pace;
mod prefault;
mod rows;
mod team;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, ErrorKind};
use crate::units::{FrameId, NONE};

pub use fork::fork_count;
pub use limits::{CgroupLimits, CpuLimit, RamLimit, cgroup_limits, ram_limit};
pub(crate) use mapping::{prefer_huge_pages, prefetch, room_for};
pub use numa::Numa;
pub use rows::{Rows, RowsMut};
pub use team::COPY_THREADS_MAX;

use mapping::Mapping;
use pace::Pace;
use prefault::Prefaulter;
use team::Team;

/// Frames start at multiples of this many bytes, as direct I/O will need them.
pub const FRAME_ALIGN_BYTES: u32 = 4096;

/// Smaller arenas are not checked against the machine's limits: reading those costs more than such
/// an arena takes.
const CHECKED_BYTES_MIN: u64 = 4 << 20;

/// Which memory a region lies in: 0 is the arena itself, others are attached by callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryId(pub u16);

impl MemoryId {
    /// The arena itself.
    pub const ARENA: Self = Self(0);
    /// Blocks on their way past the arena.
    pub const STAGING: Self = Self(1);
    /// Pages of the SSD tier's tables, as they go to disk.
    pub const PAGES: Self = Self(2);
}

/// A piece of known memory: what copies and I/O engines are given instead of pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// The memory it lies in.
    pub who: MemoryId,
    /// Bytes from the start of that memory.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

/// When the pages of the arena are given to us by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefault {
    /// By threads after `Arena::map` has returned; the arena is usable meanwhile.
    Background,
    /// Before `Arena::map` returns.
    Now,
}

/// What to map.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Which memory it will be.
    pub who: MemoryId,
    /// Number of frames, at least one.
    pub frames: u32,
    /// Bytes from one frame to the next, a multiple of 4,096.
    pub stride_bytes: u32,
    /// When to fault it in.
    pub prefault: Prefault,
    /// Threads that fault it in; 0 means one a core, at most four.
    pub threads: usize,
}

/// What an arena may have beside its pages; by default nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArenaOptions {
    /// From which memory nodes the pages come; none: from where they are faulted in.
    pub numa: Option<Numa>,
    /// Threads that share a large copy, the caller's included; 0 and 1: the caller alone.
    pub copy_threads: usize,
}

/// The memory of a store: `frames` pieces of `stride_bytes`, in one mapping.
#[derive(Debug)]
pub struct Arena {
    prefaulter: Prefaulter,
    mapping: Arc<Mapping>,
    who: MemoryId,
    frames: u32,
    stride_bytes: u32,
    numa: String,
    team: Team,
    writes: Pace,
    reads: Pace,
    /// For each frame: bytes from here on are zero.
    zero_from: Box<[AtomicU32]>,
}

impl Arena {
    /// Maps the arena and starts (or finishes) faulting it in.
    ///
    /// # Errors
    /// Config: absurd sizes (KS-CFG-101), more than the machine or the cgroup has free
    /// (KS-CFG-102), or the kernel refuses the mapping (KS-CFG-103).
    pub fn map(config: ArenaConfig) -> Result<Self, Error> {
        Self::map_with(config, ArenaOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As `map`; an option that can't be had is a fallback, not an error.
    pub fn map_with(config: ArenaConfig, options: ArenaOptions) -> Result<Self, Error> {
        let ArenaConfig { who, frames, stride_bytes, prefault, threads } = config;
        if frames == 0
            || frames == NONE
            || stride_bytes == 0
            || !stride_bytes.is_multiple_of(FRAME_ALIGN_BYTES)
        {
            return Err(Error::new(
                ErrorKind::Config,
                "KS-CFG-101",
                format!("{frames} frames of {stride_bytes} bytes can't be an arena."),
                "Give room for one block at least, frames in multiples of 4,096 bytes.",
            )
            .with("frames", frames)
            .with("stride_bytes", stride_bytes));
        }
        let bytes = u64::from(frames) * u64::from(stride_bytes);
        check_ram(bytes)?;
        let mut mapping = Mapping::new(bytes)?;
        let numa = options.numa.map_or_else(String::new, |numa| numa::apply(&mut mapping, numa));
        let mapping = Arc::new(mapping);
        let prefaulter = Prefaulter::start(&mapping, prefault, threads);
        let zero_from = (0..frames).map(|_| AtomicU32::new(0)).collect();
        let team = Team::new(options.copy_threads);
        let (writes, reads) = (Pace::default(), Pace::default());
        Ok(Self {
            prefaulter,
            mapping,
            who,
            frames,
            stride_bytes,
            numa,
            team,
            writes,
            reads,
            zero_from,
        })
    }

    /// Number of frames.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Bytes from one frame to the next.
    pub fn stride_bytes(&self) -> u32 {
        self.stride_bytes
    }

    /// Bytes of all frames together.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapping.bytes()
    }

    /// The first `len` bytes of a frame.
    #[inline]
    pub fn frame(&self, frame: FrameId, len: u32) -> Region {
        assert!(frame.0 < self.frames, "frame {} of {}", frame.0, self.frames);
        assert!(len <= self.stride_bytes, "{len} bytes in a frame of {}", self.stride_bytes);
        let offset = u64::from(frame.0) * u64::from(self.stride_bytes);
        Region { who: self.who, offset, len }
    }

    /// Copies a row into the frame that starts at `to` and zeroes the rest of that frame.
    ///
    /// For the owner of a frame that no lookup can find. The stores are visible to whoever
    /// acquires what the caller releases afterwards (the commit).
    #[inline]
    pub(crate) fn write(&self, to: Region, rows: &Rows<'_>, row: usize) {
        let (source, len) = rows.row(row);
        let stride = u64::from(self.stride_bytes);
        assert!(len <= to.len as usize, "a row of {len} bytes for {} in the frame", to.len);
        assert!(to.offset.is_multiple_of(stride), "not a frame's start");
        // The frame's owner alone reads and writes its entry.
        let zero_from = &self.zero_from[(to.offset / stride) as usize];
        let dirty = zero_from.swap(len as u32, Ordering::Relaxed) as usize;
        let frame = self.checked(Region { len: self.stride_bytes, ..to });
        // SAFETY: `frame` has `stride >= len, dirty` bytes in the mapping (checked above), which
        // nobody else reads or writes (contract). The row is readable by the contract of `Rows`
        // and no part of this frame: at most a pinned block in another one.
        unsafe { copy::into_frame(source, frame, len, dirty) };
    }

    /// Copies a region to the start of a row, whose rest stays untouched.
    ///
    /// For holders of a pin on the block in the region.
    #[inline]
    pub(crate) fn read(&self, from: Region, rows: &RowsMut<'_>, row: usize) {
        let (target, row_bytes) = rows.row(row);
        let len = from.len as usize;
        assert!(row_bytes >= len, "a row of {row_bytes} bytes for a block of {len}");
        let source = self.checked(from);
        let streaming = rows.len().saturating_mul(len) >= copy::STREAM_CALL_BYTES;
        // SAFETY: `source` has `len` bytes inside the mapping that nobody writes while pinned
        // (contract); the row is writable for `row_bytes >= len` bytes by the contract of
        // `RowsMut` and lies outside the arena, whose memory is only ever lent read-only.
        unsafe { copy::out_of_frame(source, target, len, streaming) };
    }

    /// A frame is about to be filled by a device, up to so many bytes: what it will hold there is
    /// not known to be zero. For the frame's owner, before the read is submitted.
    pub(crate) fn expect_read(&self, frame: FrameId, bytes: u32) {
        self.zero_from[frame.index()].fetch_max(bytes, Ordering::Relaxed);
    }

    /// A device has filled a frame with a block of `len` bytes: zeroes what lies behind it. For the
    /// frame's owner, after the read has completed, well or not (then `len` is 0).
    pub(crate) fn settle_read(&self, frame: FrameId, len: u32) {
        let dirty = self.zero_from[frame.index()].swap(len, Ordering::Relaxed);
        if dirty > len {
            let at = self.checked(self.frame(frame, dirty));
            // SAFETY: the first `dirty` bytes of the frame lie in the mapping, and its owner alone
            // touches them.
            unsafe { std::ptr::write_bytes(at.add(len as usize), 0, (dirty - len) as usize) };
        }
    }

    /// Address of a region, for views without a copy. Valid while the arena lives; its bytes hold
    /// still while the block in it is pinned.
    #[inline]
    pub fn pointer(&self, at: Region) -> *const u8 {
        self.checked(at).cast_const()
    }

    /// Bytes faulted in so far, up to `mapped_bytes`.
    pub fn prefault_bytes(&self) -> u64 {
        self.prefaulter.done_bytes()
    }

    /// Whether prefaulting has ended, well or not (then see `fallbacks`).
    pub fn prefault_done(&self) -> bool {
        self.prefaulter.ended()
    }

    /// Bytes that lie in huge pages: as it was when prefaulting ended, or as it is before that.
    pub fn huge_bytes(&self) -> u64 {
        self.prefaulter.huge_bytes()
    }

    /// The policy of memory nodes that is in force, such as `interleave:0-1`; empty: none.
    pub fn numa(&self) -> &str {
        &self.numa
    }

    /// What the kernel refused, one sentence each.
    pub fn fallbacks(&self) -> Vec<String> {
        let mut said = self.prefaulter.fallbacks();
        said.extend(self.team.fallback().cloned());
        said
    }

    #[inline]
    fn checked(&self, at: Region) -> *mut u8 {
        assert!(at.who == self.who, "memory {} is not the arena {}", at.who.0, self.who.0);
        self.mapping.at(at.offset, at.len)
    }
}

/// All memory of a store that I/O may read and write, by `MemoryId`.
#[derive(Clone, Debug)]
pub struct Memory(Arc<[Arc<Arena>]>);

impl Memory {
    /// The memories of a store, in the order of their ids.
    pub fn new(arenas: Vec<Arc<Arena>>) -> Self {
        assert!(arenas.iter().enumerate().all(|(id, arena)| arena.who.0 as usize == id));
        Self(arenas.into())
    }

    /// Address of a region, checked against its memory. Who reads or writes through it must be
    /// the region's owner: an I/O engine is, from submission to completion.
    pub(crate) fn at(&self, region: Region) -> *mut u8 {
        self.0[region.who.0 as usize].checked(region)
    }

    /// All memory, cut into pieces of at most so many bytes, none across two memories.
    pub(crate) fn pieces(&self, most: u32) -> Vec<Region> {
        let of = |arena: &Arc<Arena>| {
            let (who, bytes) = (arena.who, arena.mapped_bytes());
            (0..bytes).step_by(most as usize).map(move |offset| Region {
                who,
                offset,
                len: (bytes - offset).min(most.into()) as u32,
            })
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Whether all pages of a memory are there.
    pub(crate) fn is_ready(&self, who: MemoryId) -> bool {
        let arena = &self.0[who.0 as usize];
        arena.prefault_done() && arena.prefault_bytes() == arena.mapped_bytes()
    }
}

/// Whether the machine and the cgroups have so much RAM left; refused before anything is mapped.
///
/// # Errors
/// Config: they have less (KS-CFG-102).
pub(crate) fn check_ram(bytes: u64) -> Result<(), Error> {
    if bytes < CHECKED_BYTES_MIN { Ok(()) } else { check_limit(bytes, &ram_limit()) }
}

fn check_limit(bytes: u64, limit: &RamLimit) -> Result<(), Error> {
    if bytes <= limit.bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        "KS-CFG-102",
        format!(
            "{:.2} GiB of RAM asked, {:.2} GiB are free ({}).",
            gib(bytes),
            gib(limit.bytes),
            limit.source
        ),
        "lower ram=, raise that limit, or end what takes the memory.",
    )
    .with("ram_bytes", bytes)
    .with("limit_bytes", limit.bytes)
    .with("limit_source", &limit.source))
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests;
