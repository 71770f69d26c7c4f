//! What goes wrong on a simulated disk, how often, and how often it did.
//!
//! Owns: the probabilities, the drawing of at most one mishap a request, the counts. Never does:
//! carry a mishap out. Invariant: what is drawn depends on the settings, the stream of chance and
//! the order of submissions alone.

use super::rng::Rng;
use crate::io::{Fault, FileId, Op};

/// Denominator of every probability here.
pub(crate) const PPM: u32 = 1_000_000;
/// EIO.
pub(crate) const EIO: i32 = 5;

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// It fails; of a write some sectors may have landed.
    Error(Fault),
    /// It moves less than it was asked to, and says so.
    Short,
    /// It completes when `SimDisk::release_hangs` is called.
    Hang,
    /// A write is reported done and lands nowhere.
    Lost,
    /// A write is reported done and lands elsewhere in its file.
    Misdirected,
    /// A write is reported done and only some of its sectors landed.
    Torn,
    /// A bit in the range of a read has flipped on the medium.
    Rot,
    /// A write lands, and lands again later.
    Duplicate,
}

/// The n-th request of a kind from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailNext {
    /// Which requests count; `None` means all.
    pub(crate) op: Option<Op>,
    /// How many of them pass first.
    pub(crate) after: u32,
    pub(crate) mishap: Mishap,
    /// Whether all of them go wrong from then on, or one.
    pub(crate) forever: bool,
}

/// Settings of a simulated disk: probabilities in parts per million of requests of the kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SimFaults {
    pub(crate) short_ppm: u32,
    pub(crate) eio_read_ppm: u32,
    pub(crate) eio_write_ppm: u32,
    pub(crate) eio_sync_ppm: u32,
    pub(crate) enospc_ppm: u32,
    pub(crate) hang_ppm: u32,
    pub(crate) lost_write_ppm: u32,
    pub(crate) misdirected_write_ppm: u32,
    pub(crate) torn_write_ppm: u32,
    pub(crate) rot_ppm: u32,
    pub(crate) duplicate_ppm: u32,
    /// Every request submitted hangs.
    pub(crate) hang_all: bool,
    /// Requests for these files fail, or hang.
    pub(crate) lost_files: Option<(std::ops::Range<u32>, Mishap)>,
    pub(crate) fail_next: Option<FailNext>,
    /// Shortest and longest time of a read, a write, a sync.
    pub(crate) latency_us: [(u32, u32); 3],
    /// So many calls of `reap` are answered; then they panic: whoever asks goes round in circles.
    pub(crate) reaps_left: u64,
    /// Memory of a read is filled with garbage at submission.
    pub(crate) poison_reads: bool,
    /// A submitter that breaks the rules panics: memory changed under a request, memory of two
    /// requests that overlap while one of them fills it, a place on disk asked for while a write to
    /// it is out, an id used twice.
    pub(crate) strict: bool,
}

impl Default for SimFaults {
    fn default() -> Self {
        Self {
            short_ppm: 0,
            eio_read_ppm: 0,
            eio_write_ppm: 0,
            eio_sync_ppm: 0,
            enospc_ppm: 0,
            hang_ppm: 0,
            lost_write_ppm: 0,
            misdirected_write_ppm: 0,
            torn_write_ppm: 0,
            rot_ppm: 0,
            duplicate_ppm: 0,
            hang_all: false,
            lost_files: None,
            fail_next: None,
            latency_us: [(60, 300), (20, 200), (500, 3000)],
            reaps_left: u64::MAX,
            poison_reads: true,
            strict: true,
        }
    }
}

impl SimFaults {
    /// What happens to the next request of this kind.
    pub(super) fn draw(&mut self, op: Op, file: FileId, rng: &mut Rng) -> Option<Mishap> {
        if let Some(mishap) = self.due(op) {
            return Some(mishap);
        }
        if let Some((files, mishap)) = &self.lost_files
            && files.contains(&file.0)
        {
            return Some(*mishap);
        }
        if self.hang_all {
            return Some(Mishap::Hang);
        }
        let eio = Mishap::Error(Fault::Io(EIO));
        let odds: &[(u32, Mishap)] = match op {
            Op::Read => &[
                (self.eio_read_ppm, eio),
                (self.short_ppm, Mishap::Short),
                (self.hang_ppm, Mishap::Hang),
                (self.rot_ppm, Mishap::Rot),
            ],
            Op::Write => &[
                (self.eio_write_ppm, eio),
                (self.enospc_ppm, Mishap::Error(Fault::Full)),
                (self.short_ppm, Mishap::Short),
                (self.hang_ppm, Mishap::Hang),
                (self.lost_write_ppm, Mishap::Lost),
                (self.misdirected_write_ppm, Mishap::Misdirected),
                (self.torn_write_ppm, Mishap::Torn),
                (self.duplicate_ppm, Mishap::Duplicate),
            ],
            Op::Sync => &[(self.eio_sync_ppm, eio), (self.hang_ppm, Mishap::Hang)],
        };
        let mut left = rng.below(u64::from(PPM));
        for &(ppm, mishap) in odds {
            if left < u64::from(ppm) {
                return Some(mishap);
            }
            left -= u64::from(ppm);
        }
        None
    }

    /// Counts `fail_next` down.
    fn due(&mut self, op: Op) -> Option<Mishap> {
        let next = self.fail_next.as_mut()?;
        if next.op.is_some_and(|only| only != op) {
            return None;
        }
        if next.after > 0 {
            next.after -= 1;
            return None;
        }
        let FailNext { mishap, forever, .. } = *next;
        if !forever {
            self.fail_next = None;
        }
        // What a request of this kind can't suffer is an error.
        Some(match (op, mishap) {
            (_, Mishap::Error(_) | Mishap::Hang)
            | (Op::Read, Mishap::Short | Mishap::Rot)
            | (
                Op::Write,
                Mishap::Short
                | Mishap::Lost
                | Mishap::Misdirected
                | Mishap::Torn
                | Mishap::Duplicate,
            ) => mishap,
            _ => Mishap::Error(Fault::Io(EIO)),
        })
    }

    /// How long a request of this kind takes.
    #[inline]
    pub(super) fn latency_us(&self, op: Op, rng: &mut Rng) -> u64 {
        let (least, most) = self.latency_us[op as usize];
        u64::from(least) + rng.below(u64::from(most.saturating_sub(least)) + 1)
    }
}

/// What was asked of a disk, and what went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SimCounts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
    /// Reads that failed.
    pub(crate) read_errors: u64,
    /// Writes that failed for another reason than room.
    pub(crate) write_errors: u64,
    pub(crate) sync_errors: u64,
    /// Writes that failed for want of room.
    pub(crate) full: u64,
    pub(crate) shorts: u64,
    pub(crate) hangs: u64,
    pub(crate) lost: u64,
    pub(crate) misdirected: u64,
    pub(crate) torn: u64,
    pub(crate) rots: u64,
    /// Writes that landed a second time.
    pub(crate) duplicates: u64,
    /// Sectors that a failed sync marked clean without writing them.
    pub(crate) forgotten_sectors: u64,
    /// Reads whose place was written again before they ended.
    pub(crate) overtaken_reads: u64,
    /// Writes in flight at a crash.
    pub(crate) cut_writes: u64,
    /// Unsynced sectors that a power cut took back.
    pub(crate) dropped_sectors: u64,
    pub(crate) crashes: u64,
}

impl SimCounts {
    /// A request was taken.
    #[inline]
    pub(super) fn asked(&mut self, op: Op) {
        match op {
            Op::Read => self.reads += 1,
            Op::Write => self.writes += 1,
            Op::Sync => self.syncs += 1,
        }
    }

    /// A request failed.
    pub(super) fn failed(&mut self, op: Op, fault: Fault) {
        match (op, fault) {
            (Op::Read, _) => self.read_errors += 1,
            (Op::Write, Fault::Full) => self.full += 1,
            (Op::Write, _) => self.write_errors += 1,
            (Op::Sync, _) => self.sync_errors += 1,
        }
    }
}
