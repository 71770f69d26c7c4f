//! Reading every block of a directory and comparing its tag.
//!
//! Owns: the order, the pace, and what counts as bad. Never does: repair, or call bad what an owner
//! was about to change. Invariants: one payload in memory at a time; at most `SUSPECTS_MAX` blocks
//! wait for their second look; a block counts once, under one heading.

use super::look::{Look, Payload};
use super::{Member, members, no_store};
use crate::error::Error;
use crate::ssd::format::Record;
use crate::ssd::reads::Buffer;
use crate::ssd::recover::plan;
use crate::ssd::table::FLUSH_US;
use crate::units::SsdSlot;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Blocks that wait for their second look.
const SUSPECTS_MAX: usize = 1024;
/// An owner has written the record page of a slot that it uses anew after so long, unless the disk
/// hangs.
const SETTLED: Duration = Duration::from_micros(2 * FLUSH_US);
/// How often a caller hears of progress, and may stop it.
const PROGRESS: Duration = Duration::from_millis(50);

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Blocks looked at: `good`, `bad`, `unreadable` and `changed` together.
    pub blocks: u64,
    /// Payload read.
    pub bytes: u64,
    /// Blocks whose bytes are those of their records.
    pub good: u64,
    /// Blocks whose bytes are others: to a store they are misses. After a crash that is normal for
    /// a few blocks that were being replaced.
    pub bad: u64,
    /// Blocks that could not be read.
    pub unreadable: u64,
    /// Blocks that their owner replaced or removed meanwhile.
    pub changed: u64,
    /// Pages of the table that could not be read, or do not check: blocks are missing.
    pub pages_unreadable: u64,
    /// Directories that could not be opened, and why.
    pub failed: Vec<(PathBuf, Error)>,
    /// The caller stopped it.
    pub stopped: bool,
    /// How long it took.
    pub seconds: f64,
}

impl Verified {
    /// Whether everything there is was read and found right.
    pub fn is_sound(&self) -> bool {
        let wrong = self.bad + self.unreadable + self.pages_unreadable;
        wrong == 0 && self.failed.is_empty() && !self.stopped
    }
}

/// Reads every live block of the stores that a path names and compares its tag: read-only, without
/// a lock, also while the owner runs. At most `bytes_per_s`. `progress` hears of blocks done and in
/// all, and stops it by false.
///
/// # Errors
/// Config: there is no such directory, or no store in it. Ssd: it can't be read. A member that
/// can't be opened is in `failed`.
pub fn verify(
    path: &Path,
    bytes_per_s: Option<u64>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Verified, Error> {
    let begun = Instant::now();
    let found = members(path)?;
    if found.is_empty() {
        return Err(no_store(path));
    }
    let pace = Pace { bytes_per_s, due: begun, heard: begun, total: 0, progress };
    let mut run = Run { buffer: Buffer::default(), done: Verified::default(), pace };
    let mut parts = Vec::with_capacity(found.len());
    for member in found {
        match Look::open(&member, true) {
            Ok(look) => parts.push(run.survey(member, look)),
            Err(error) => run.done.failed.push((member.path(), error)),
        }
    }
    for part in &parts {
        if !run.verify(part) {
            run.done.stopped = true;
            break;
        }
    }
    run.done.seconds = begun.elapsed().as_secs_f64();
    let total = if run.done.stopped { run.pace.total } else { run.done.blocks };
    (run.pace.progress)(run.done.blocks, total);
    Ok(run.done)
}

/// How fast it may go, and who listens.
struct Pace<'a> {
    bytes_per_s: Option<u64>,
    /// No read begins before.
    due: Instant,
    heard: Instant,
    /// Blocks in all, as far as is known.
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
}

impl Pace<'_> {
    /// Tells how far it is, now and then; false: stop.
    fn hear(&mut self, blocks: u64) -> bool {
        if self.heard.elapsed() < PROGRESS {
            return true;
        }
        self.heard = Instant::now();
        (self.progress)(blocks, self.total.max(blocks))
    }

    /// Waits until a time; false: stop.
    fn wait_until(&mut self, until: Instant, blocks: u64) -> bool {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(PROGRESS));
            if !self.hear(blocks) {
                return false;
            }
        }
    }

    /// Takes the time that reading so many bytes should take.
    fn spend(&mut self, bytes: u32) {
        if let Some(rate) = self.bytes_per_s {
            let time = Duration::from_secs_f64(f64::from(bytes) / rate.max(1) as f64);
            self.due = self.due.max(Instant::now()) + time;
        }
    }
}

/// A member to be verified.
struct Part {
    member: Member,
    look: Look,
    /// One bit a slot: an open would find its block.
    live: Vec<u64>,
}

impl Part {
    fn is_live(&self, slot: SsdSlot) -> bool {
        self.live[slot.index() / 64] >> (slot.index() % 64) & 1 == 1
    }
}

struct Suspect {
    slot: SsdSlot,
    record: Record,
    seen: Instant,
}

struct Run<'a> {
    buffer: Buffer,
    done: Verified,
    pace: Pace<'a>,
}

impl Run<'_> {
    /// Which of a member's records are to be verified.
    fn survey(&mut self, member: Member, look: Look) -> Part {
        let mut records = look.records(&mut self.buffer);
        let plan = plan(records.by_ref(), look.found.clear_epoch, look.found.block_bytes);
        self.done.pages_unreadable += u64::from(records.unreadable);
        self.pace.total += plan.blocks.len() as u64;
        let mut live = vec![0; (look.slots as usize).div_ceil(64)];
        for block in &plan.blocks {
            live[block.slot.index() / 64] |= 1 << (block.slot.index() % 64);
        }
        Part { member, look, live }
    }

    /// False: the caller stopped it.
    fn verify(&mut self, part: &Part) -> bool {
        let look = &part.look;
        let clear_epoch = look.clear_epoch_now(&mut self.buffer);
        let (mut table, mut suspects) = (Buffer::default(), Vec::new());
        // What came since the survey, in slots that had a live block, is verified like that.
        let live = |it: &(SsdSlot, Record)| part.is_live(it.0) && look.counts(&it.1, clear_epoch);
        for (slot, record) in look.records(&mut table).filter(live) {
            if !self.pace.wait_until(self.pace.due, self.done.blocks)
                || !self.pace.hear(self.done.blocks)
            {
                return false;
            }
            self.pace.spend(record.len);
            self.done.bytes += u64::from(record.len);
            if look.payload(slot, &record, &mut self.buffer) == Payload::Good {
                self.done.good += 1;
                self.done.blocks += 1;
                continue;
            }
            suspects.push(Suspect { slot, record, seen: Instant::now() });
            if suspects.len() == SUSPECTS_MAX && !self.judge(part, &mut suspects) {
                return false;
            }
        }
        self.judge(part, &mut suspects)
    }

    /// Looks at what did not check once more, when a running owner has had the time to write why.
    fn judge(&mut self, part: &Part, suspects: &mut Vec<Suspect>) -> bool {
        let Some(last) = suspects.last() else { return true };
        if part.member.is_locked_now() {
            let until = last.seen + SETTLED;
            if !self.pace.wait_until(until, self.done.blocks) {
                return false;
            }
        }
        let look = &part.look;
        let clear_epoch = look.clear_epoch_now(&mut self.buffer);
        for Suspect { slot, record, .. } in suspects.drain(..) {
            let now = look.record_now(slot, &mut self.buffer);
            let same = now.is_some_and(|now| {
                (now.key, now.generation, now.tag) == (record.key, record.generation, record.tag)
            });
            // A page that can't be read any more says nothing against its record.
            let changed = (now.is_some() && !same) || !look.counts(&record, clear_epoch);
            let count = match look.payload(slot, &record, &mut self.buffer) {
                Payload::Good => &mut self.done.good,
                _ if changed => &mut self.done.changed,
                Payload::Bad => &mut self.done.bad,
                Payload::Unreadable => &mut self.done.unreadable,
            };
            *count += 1;
            self.done.blocks += 1;
        }
        true
    }
}
