//! Which situations histories came into: a run that never came into one has not tested it.
//!
//! Owns: the list, and how each is recognized from what was before and after an operation. Never
//! does: bring one about.

use super::history::History;
use crate::io::SimCounts;
use crate::stats::SsdStats;
use crate::store::tier::Outstanding;
use std::fmt;

macro_rules! situations {
    ($($name:ident = $text:literal,)*) => {
        /// A situation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Situation { $($name,)* }

        const ALL: &[(Situation, &str)] = &[$((Situation::$name, $text),)*];
    };
}

situations! {
    CrashBeforeRecord = "crash between a block's payload and its record",
    TornPage = "crash between sectors of one table page",
    CrashInSync = "crash during a remove's fdatasync",
    CrashInSuper = "crash between the copies of SUPER during a clear",
    CrashInWrite = "crash while blocks are being written",
    CrashInRead = "crash while blocks are being read",
    CrashAtOpen = "power cut while a store opens",
    DiedAgain = "crash within 100 ms of an open",
    BadTag = "bad tag in mid-chain",
    LoadWhileFull = "promotion while all SSD slots are taken",
    RoomUnderWrites = "a put makes room while blocks are being written",
    Loser = "two records of one key at open",
    Circle = "records in a circle at open",
    Orphan = "a HOLE at open for a missing parent",
    HoleRefilled = "HOLE refilled",
    HungAtClose = "hung read at close",
    HalfOpen = "breaker half-open",
    TrustedAgain = "breaker closed again",
    PutWaits = "put waiting for the cleaner",
    ChainOverRam = "chain longer than RAM put",
    GetOverRam = "chain longer than RAM got",
    NoFrames = "blocks got without a frame",
    ShortOfLeases = "put short because of leases",
    DroppedWaited = "a dirty block dropped after its put had waited",
    DroppedOff = "a dirty block dropped because the device is off",
    Refused = "a chain refused for want of write budget",
    Retired = "a retired block left unwritten",
    EvictedFromSsd = "a block evicted from SSD",
    RemovedInFlight = "remove while blocks are being written or read",
    ClearedInFlight = "clear while blocks are being written",
    LateWriteEnds = "a write past its deadline ends",
    LateReads = "a read nobody waits for any more",
    Overtaken = "an SSD slot written again under a late read",
    SyncFailed = "a failed fdatasync",
    Unconfirmed = "a remove or clear that the disk did not confirm",
    Quarantined = "a slot quarantined",
    DiskFull = "no room on the disk",
    ShortTransfer = "a transfer cut short",
    Lost = "a lost write",
    Misdirected = "a misdirected write",
    Torn = "a torn write confirmed",
    Duplicated = "a write that landed twice",
    Rot = "bit rot under a read",
    BadPage = "a table page unreadable at open",
    Reset = "SUPER broken, started afresh",
    LeaseOutlives = "a lease that outlives its store",
    Grown = "capacity grown at reopen",
    Shrunk = "capacity shrunk at reopen",
    ClosedDirty = "close with blocks left unwritten",
    WarmAfterKill = "blocks that had to be warm after a kill, and were",
    CameBack = "an unconfirmed remove undone by a crash",
    DeviceLost = "a device of several lost",
    DeviceReplaced = "a device of several replaced by an empty one",
    DeviceLeftOut = "devices left out for the life of a store",
    StagedLate = "a block stored after its put came short of it",
}

/// How often each occurred.
#[derive(Clone)]
pub(super) struct Situations([u64; ALL.len()]);

impl Default for Situations {
    fn default() -> Self {
        Self([0; ALL.len()])
    }
}

impl Situations {
    pub(super) fn note(&mut self, which: Situation, occurs: bool) {
        self.0[which as usize] += u64::from(occurs);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
    }

    /// Those that never occurred.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        ALL.iter()
            .filter(|(which, _)| self.0[*which as usize] == 0)
            .map(|(_, text)| *text)
            .collect()
    }
}

impl fmt::Display for Situations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (which, text) in ALL {
            writeln!(f, "{:>10}  {text}", self.0[*which as usize])?;
        }
        Ok(())
    }
}

/// What an operation was, for what it brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Put,
    Get,
    Remove,
    Clear,
    Other,
}

/// A store and its disk at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Sight {
    ssd: SsdStats,
    out: Outstanding,
    counts: SimCounts,
    holes: u64,
    now_us: u64,
}

impl Sight {
    /// A read is out that nobody waits for.
    pub(super) fn hangs(&self) -> bool {
        self.out.late_reads > 0
    }

    pub(super) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Neither a page nor SUPER is being written.
    pub(super) fn is_settled(&self) -> bool {
        self.out.pages + self.out.supers == 0
    }

    /// Memory for pages that is used but not by a request.
    pub(super) fn pages_lost(&self) -> u32 {
        self.out.bounce_used.saturating_sub(self.out.pages + self.out.super_writes)
    }

    /// A device has not confirmed its SUPER: nothing goes there.
    pub(super) fn lacks_a_device(&self) -> bool {
        self.out.supers_pending > 0
    }

    /// No SSD slot is free.
    pub(super) fn is_full(&self) -> bool {
        self.out.slots_free == 0
    }
}

impl History {
    pub(super) fn sight(&self) -> Sight {
        let seen = self.store.with_tier(|tier, _| (tier.snapshot(), tier.outstanding()));
        let (ssd, out) = seen.unwrap_or_default();
        Sight {
            ssd,
            out,
            counts: self.disk(crate::io::SimDisk::counts),
            holes: self.store.parts.directory.holes(),
            now_us: self.now_us(),
        }
    }

    /// After an operation in one store: what it came into.
    pub(super) fn note_operation(&mut self, what: What, before: &Sight) {
        use Situation as S;
        let after = self.sight();
        let (was, is) = (&before.ssd, &after.ssd);
        let found = &mut self.situations;
        let (put, get) = (what == What::Put, what == What::Get);
        let in_flight = before.out.writes + before.out.reads > 0;
        found.note(S::LoadWhileFull, after.out.reads > 0 && after.out.slots_free == 0);
        let room = is.demotions + is.evictions > was.demotions + was.evictions;
        found.note(S::RoomUnderWrites, put && before.out.writes > 0 && room);
        found.note(S::HoleRefilled, put && after.holes < before.holes);
        found.note(S::PutWaits, put && after.now_us > before.now_us && is.writes > was.writes);
        found.note(S::NoFrames, get && is.reads - was.reads > is.promotions - was.promotions);
        found.note(S::HalfOpen, is.probes > was.probes);
        found.note(S::TrustedAgain, is.breaker_closed > was.breaker_closed);
        found.note(S::DroppedWaited, is.dropped_waited > was.dropped_waited);
        found.note(S::DroppedOff, is.dropped_off > was.dropped_off);
        found.note(S::Refused, is.refused > was.refused);
        found.note(S::Retired, is.dropped_retired > was.dropped_retired);
        found.note(S::EvictedFromSsd, is.evictions > was.evictions);
        found.note(S::RemovedInFlight, what == What::Remove && in_flight);
        found.note(S::ClearedInFlight, what == What::Clear && before.out.writes > 0);
        found.note(S::LateReads, after.out.late_reads > before.out.late_reads);
        found.note(S::LateWriteEnds, is.late > 0 && before.out.writes > after.out.writes);
        found.note(S::Quarantined, is.quarantined > was.quarantined);
        found.note(S::DiskFull, is.disk_full > was.disk_full);
        found.note(S::ShortTransfer, is.short_transfers > was.short_transfers);
        self.note_disk(&before.counts, &after.counts);
    }

    /// What the disk did meanwhile.
    fn note_disk(&mut self, was: &SimCounts, is: &SimCounts) {
        use Situation as S;
        let found = &mut self.situations;
        found.note(S::Overtaken, is.overtaken_reads > was.overtaken_reads);
        found.note(S::SyncFailed, is.sync_errors > was.sync_errors);
        found.note(S::Lost, is.lost > was.lost);
        found.note(S::Misdirected, is.misdirected > was.misdirected);
        found.note(S::Torn, is.torn > was.torn);
        found.note(S::Duplicated, is.duplicates > was.duplicates);
        found.note(S::Rot, is.rots > was.rots);
    }

    /// A store is about to end without a word.
    pub(super) fn note_crash(&mut self, what: What, power: bool) {
        use Situation as S;
        let at = self.sight();
        let young =
            |since: &Option<u64>| since.is_some_and(|us| us > 0 && us + 500_000 > at.now_us);
        let unrecorded = at.out.dirty_pages > 0 && self.on_ssd.iter().any(young);
        let found = &mut self.situations;
        found.note(S::CrashBeforeRecord, unrecorded);
        found.note(S::CrashInSync, what == What::Remove && at.out.table_syncs > 0);
        found.note(S::CrashInSuper, what == What::Clear && at.out.half_a_super);
        found.note(S::CrashInWrite, at.out.writes > 0);
        found.note(S::CrashInRead, at.out.reads > 0);
        found.note(S::DiedAgain, at.now_us < 100_000);
        self.page_cut = power && at.out.pages + at.out.dirty_pages > 0;
    }

    /// A store was opened on what another one left.
    pub(super) fn note_open(&mut self, warm: usize, came_back: bool) {
        use Situation as S;
        let stats = self.store.with_tier(|tier, _| (tier.stats.clone(), tier.sorted_out()));
        let (ssd, sorted) = stats.unwrap_or_default();
        let holes = self.store.parts.directory.holes();
        let torn = self.page_cut && !self.harmed && ssd.pages_bad > 0;
        let found = &mut self.situations;
        found.note(S::TornPage, torn);
        found.note(S::BadPage, ssd.pages_bad > 0);
        found.note(S::Loser, sorted.losers > 0);
        found.note(S::Circle, sorted.cycles > 0);
        found.note(S::Orphan, holes > 0);
        found.note(S::WarmAfterKill, warm > 0);
        found.note(S::CameBack, came_back);
    }
}
