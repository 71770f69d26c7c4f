//! What a store tells about itself.
//!
//! Owns: `Stats`, a snapshot that reconciles, and the counters behind it that calls write without
//! a lock. Never does: measure. Invariants, once the store is at rest: `puts + put_present +
//! put_duplicate + put_short` = blocks asked of put; `hits + misses` = blocks asked of get,
//! get_each and lease; `blocks` = `puts + put_again + recovered - evictions -
//! removed - cleared - lost`.

use crate::sync::{AtomicI64, AtomicU64, Ordering};

/// A snapshot. Counts are in blocks unless the name says bytes.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// "open", "closed" or "poisoned".
    pub state: &'static str,
    /// The policy of memory nodes in force, such as "interleave:0-1"; empty: none.
    pub numa: String,
    /// Threads that share a large copy, the caller's included.
    pub copy_threads: u64,
    /// Large copies that they shared.
    pub copies_shared: u64,
    /// Frames in the arena: room for one block each.
    pub frames_total: u64,
    /// Frames that hold no block.
    pub frames_free: u64,
    /// Frames that leases keep.
    pub frames_pinned: u64,
    /// Blocks that a lookup can find.
    pub blocks: u64,
    /// Their payload.
    pub bytes_resident: u64,
    /// Blocks delivered by get, get_each and lease.
    pub hits: u64,
    /// Blocks asked of get, get_each and lease and not delivered.
    pub misses: u64,
    /// Blocks found by match, match_prefix and contains.
    pub lookup_hits: u64,
    /// Blocks asked of match, match_prefix and contains and not found.
    pub lookup_misses: u64,
    /// Blocks stored, each once a put.
    pub puts: u64,
    /// Blocks that were stored and gone again before their put ended: stored once more, or cleared.
    pub put_again: u64,
    /// Blocks of puts that were there before.
    pub put_present: u64,
    /// Blocks of puts that another call stored meanwhile.
    pub put_duplicate: u64,
    /// Blocks of puts not stored: no frame could be had.
    pub put_short: u64,
    /// Blocks that left to make room.
    pub evictions: u64,
    /// Blocks removed by name.
    pub removed: u64,
    /// Blocks gone with a clear.
    pub cleared: u64,
    /// Touches not counted because the ring was full.
    pub touches_dropped: u64,
    /// Entries of the event log dropped unread.
    pub events_dropped: u64,
    /// Misses during which the index changed: the block may have been there.
    pub spurious_misses: u64,
    /// Blocks not stored because a bin of the index was full.
    pub index_full: u64,
    /// Payload copied in.
    pub bytes_in: u64,
    /// Payload copied out.
    pub bytes_out: u64,
    /// Bytes of the arena faulted in ahead of use.
    pub prefault_bytes: u64,
    /// Bytes of the arena in huge pages.
    pub huge_bytes: u64,
    /// Memory of the index and the policy, outside the RAM asked for.
    pub index_bytes: u64,
    /// Times the keeper's lock was held.
    pub lock_holds: u64,
    /// Most blocks worked on in one hold: at most `LOCK_BLOCKS_MAX`.
    pub lock_blocks_max: u64,
    /// Blocks the policy looked at to find victims.
    pub policy_steps: u64,
    /// What does not work as well as it could here, in words.
    pub fallbacks: Vec<String>,
    /// Blocks in RAM that a lookup can find.
    pub blocks_ram: u64,
    /// The SSD tier, where there is one.
    pub ssd: Option<SsdStats>,
}

/// The SSD tier's own counters. In blocks unless the name says bytes, requests or pages.
#[derive(Clone, Debug, Default)]
pub struct SsdStats {
    /// "ok"; "degraded": one of several devices is left alone; "off": too many faults, or the
    /// directory could not be opened, RAM goes on alone; "probing": about to be trusted again;
    /// "waiting": another store has the directory;
    /// "recovering": what it holds is being taken in.
    pub state: &'static str,
    /// "sim" or "pool".
    pub engine: &'static str,
    /// Whether transfers bypass the page cache.
    pub direct: bool,
    /// Memory registered with the kernel for transfers, once for each device.
    pub registered_bytes: u64,
    /// Devices of the tier.
    pub devices: u64,
    /// Of them left alone after too many faults.
    pub devices_away: u64,
    /// Room for so many blocks.
    pub slots_total: u64,
    /// Of it free.
    pub slots_free: u64,
    /// Slots not used again after a fault.
    pub quarantined: u64,
    /// Blocks on SSD, those included that are in RAM too.
    pub blocks: u64,
    /// Blocks written, and their payload.
    pub writes: u64,
    /// Payload written.
    pub write_bytes: u64,
    /// Writes that came to nothing: failed, or the block was removed or cleared meanwhile.
    pub writes_lost: u64,
    /// Blocks read and verified, and their payload.
    pub reads: u64,
    /// Payload read.
    pub read_bytes: u64,
    /// Reads not begun because the device is left alone.
    pub reads_refused: u64,
    /// Blocks that came back to RAM.
    pub promotions: u64,
    /// Blocks that left RAM and stayed on SSD.
    pub demotions: u64,
    /// Blocks that left the SSD, and so the store, to make room.
    pub evictions: u64,
    /// Blocks put straight to SSD, past a full RAM.
    pub staged: u64,
    /// Chains written within the write budget, or without one.
    pub admitted_under: u64,
    /// Chains written beyond it: hit, retained, refused before, or with a child on SSD.
    pub admitted_over: u64,
    /// Chains not written for want of write budget.
    pub refused: u64,
    /// Blocks not written for want of a slot, each time it was tried.
    pub no_slot: u64,
    /// Dirty blocks that left unwritten: given up by their user,
    pub dropped_retired: u64,
    /// refused by admission, or had by a followed directory,
    pub dropped_refused: u64,
    /// because a put had waited long enough,
    pub dropped_waited: u64,
    /// because the device is left alone.
    pub dropped_off: u64,
    /// Blocks not written because a followed directory has them.
    pub replica_skips: u64,
    /// Directories that are followed.
    pub followed_members: u64,
    /// Blocks delivered from them, verified; part of the store's hits.
    pub followed_hits: u64,
    /// Their payload.
    pub followed_hit_bytes: u64,
    /// Blocks of them not delivered: their bytes were not those of the record, or it had gone.
    pub followed_bad: u64,
    /// Table pages read in them.
    pub followed_pages: u64,
    /// Times that a whole table was read again, or for the first time, where its owner tells of
    /// changes.
    pub followed_scans: u64,
    /// Memory of what is known of them.
    pub followed_index_bytes: u64,
    /// Blocks whose only copy could not be read or was wrong.
    pub lost: u64,
    /// Blocks whose only copy was on a device that is left alone, given up to be stored again.
    pub given_up: u64,
    /// Copies whose bytes did not give their tag.
    pub bad_tags: u64,
    /// Requests that failed.
    pub io_errors: u64,
    /// Requests that found no room.
    pub disk_full: u64,
    /// Requests that moved less than asked.
    pub short_transfers: u64,
    /// Requests past their deadline.
    pub late: u64,
    /// Times the device was left alone after too many faults.
    pub breaker_opened: u64,
    /// Requests that were to decide whether it is trusted again.
    pub probes: u64,
    /// Times it was.
    pub breaker_closed: u64,
    /// At close the disk did not confirm what was written: a restart may find less, or what was
    /// removed without `durable`.
    pub unclean: bool,
    /// Table pages written.
    pub page_writes: u64,
    /// Table pages that were unreadable at open.
    pub pages_bad: u64,
    /// Table pages that differ from the disk.
    pub table_pages_dirty: u64,
    /// Requests that are out.
    pub requests_in_flight: u64,
    /// Blocks in the directory that count: as many are to come back.
    pub recovery_all: u64,
    /// Blocks that came back, and their payload.
    pub recovered: u64,
    /// Their payload.
    pub recovered_bytes: u64,
    /// Of them blocks whose parent was not found.
    pub recovered_orphans: u64,
    /// How long that took, in microseconds.
    pub recovery_us: u64,
}

/// Epochs told apart in the counts of resident blocks: a clear waits for the sweep of the one that
/// used its cell before.
pub(crate) const EPOCH_CELLS: u32 = 64;

/// Counters that calls raise without a lock.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) lookup_hits: AtomicU64,
    pub(crate) lookup_misses: AtomicU64,
    pub(crate) puts: AtomicU64,
    pub(crate) put_again: AtomicU64,
    pub(crate) put_present: AtomicU64,
    pub(crate) put_duplicate: AtomicU64,
    pub(crate) put_short: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) touches_dropped: AtomicU64,
    pub(crate) spurious_misses: AtomicU64,
    pub(crate) index_full: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Gets from RAM alone, bytes and nanoseconds: the rate behind `Matched::load_s`.
    pub(crate) copied_bytes: AtomicU64,
    pub(crate) copy_out_ns: AtomicU64,
    /// The same for gets that read from SSD.
    pub(crate) loaded_bytes: AtomicU64,
    pub(crate) load_out_ns: AtomicU64,
    resident: Resident,
}

/// {blocks, bytes} by epoch: what a clear leaves behind drops out of the sum at once.
struct Resident(Vec<[AtomicI64; 2]>);

impl Default for Resident {
    fn default() -> Self {
        Self((0..EPOCH_CELLS).map(|_| [AtomicI64::new(0), AtomicI64::new(0)]).collect())
    }
}

/// Raises a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Reads a counter.
pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    /// Blocks of this epoch came (positive) or left.
    pub(crate) fn resident(&self, epoch: u32, blocks: i64, bytes: i64) {
        let cell = &self.resident.0[(epoch % EPOCH_CELLS) as usize];
        cell[0].fetch_add(blocks, Ordering::Relaxed);
        cell[1].fetch_add(bytes, Ordering::Relaxed);
    }

    /// {blocks, bytes} of this epoch, and the blocks of all earlier ones not swept yet.
    pub(crate) fn resident_now(&self, epoch: u32) -> (u64, u64, u64) {
        let read = |cell: &AtomicI64| cell.load(Ordering::Relaxed).max(0) as u64;
        let now = &self.resident.0[(epoch % EPOCH_CELLS) as usize];
        let all: u64 = self.resident.0.iter().map(|cell| read(&cell[0])).sum();
        let blocks = read(&now[0]);
        (blocks, read(&now[1]), all.saturating_sub(blocks))
    }
}
