//! Put: match, pin, take frames, copy without a lock, commit.
//!
//! Owns: the way of a batch into RAM. Never does: hold pins or frames while it waits. Invariants: a
//! block is visible only after its commit, with all its bytes; between commit and its insert event
//! it is pinned by its birth; the batch's own blocks are pinned while room is made for the rest;
//! what is stored is always a leading run.

use super::gate::Inside;
use super::keeper::Room;
use super::past::PastRam;
use super::ring::Note;
use super::tier::Tier;
use super::{Parts, Rows, Store};
use crate::directory::{Block, Commit, Entry, Home};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::stats::add;
use crate::units::{FrameId, Slot};
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a put that comes short waits for the calls in progress to end where none of them holds
/// a frame: once for those that were there, once for those that came meanwhile.
const WAITS_FOR_PINS: u32 = 2;

/// A put that waits for the cleaner goes on once so many blocks can leave: each attempt looks the
/// batch up anew.
const CLEAN_AT_ONCE: usize = 4;

/// How to put.
#[derive(Clone, Debug)]
pub struct PutOptions {
    /// The key before the first one, where it is known: the batch is a piece of a longer chain.
    pub parent: Option<Key>,
    /// Each block is the child of the one before it; else every block is a root.
    pub chained: bool,
    /// How long to wait for calls in progress to give frames back; the store's default if none.
    pub wait: Option<Duration>,
}

impl Default for PutOptions {
    fn default() -> Self {
        Self { parent: None, chained: true, wait: None }
    }
}

/// One attempt at a batch.
struct Round<'a> {
    store: &'a Store,
    keys: &'a [Key],
    options: &'a PutOptions,
    epoch: u32,
    /// What is there, block by block; entries of this batch are added as they are stored.
    entries: Vec<Option<Entry>>,
    /// Slots pinned to keep the batch's own present blocks while room is made.
    pins: Vec<Slot>,
    /// Insert events, head first.
    notes: Vec<Note>,
    stored: u64,
    duplicates: u64,
    bytes: u64,
    /// It came short although something could leave once it is written to SSD.
    dirty: bool,
    inside: Inside<'a>,
}

impl Store {
    /// Stores the longest leading run it can: blocks present are not copied again. Returns how
    /// many leading blocks are stored now; never fails for load.
    ///
    /// # Errors
    /// Closed; Layout where the rows don't fit the keys or the blocks. Nothing has changed then.
    pub fn put(
        &self,
        keys: &[Key],
        blocks: &Rows<'_>,
        options: &PutOptions,
    ) -> Result<usize, Error> {
        self.check()?;
        self.check_rows(keys, blocks)?;
        let counters = &self.parts.counters;
        let wait = options.wait.unwrap_or(self.put_wait);
        let (deadline, deadline_us) = (Instant::now() + wait, self.deadline_us(wait));
        let epoch = self.parts.directory.epoch();
        let (mut leading, mut stored, mut duplicates) = (0, 0, 0);
        let (mut patience, mut dropping) = (WAITS_FOR_PINS + 1, false);
        self.disown_away(keys);
        while !self.is_poisoned() {
            let mut round = Round::new(self, keys, options, epoch);
            leading = round.run(blocks);
            stored += round.stored;
            duplicates += round.duplicates;
            let dirty = round.dirty;
            drop(round);
            if dropping {
                self.with_tier(|tier, with| tier.end_drops(with));
            }
            self.tidy(keys.len());
            if leading == keys.len() || epoch != self.parts.directory.epoch() {
                break;
            }
            if dirty && !dropping {
                dropping = !self.wait_for_clean(deadline_us, keys.len() - leading);
                if dropping {
                    let missing = (keys.len() - leading) as u64;
                    self.with_tier(|tier, with| tier.allow_drops(with, missing));
                }
                continue;
            }
            if self.driver.is_some() {
                let past = PastRam { keys, blocks, options, epoch, wait };
                let (reached, past) = self.put_past(&past, leading);
                (leading, stored) = (reached, stored + past);
            }
            // A chain longer than RAM has what it can have.
            if leading >= self.frames_total() as usize {
                break;
            }
            // Short: calls in progress may hold what is missing. While others hold frames it is
            // worth waiting for; else it can only be their passing pins, or a lease, which is not
            // waited for.
            patience = patience.saturating_sub(u32::from(self.gate.frames_held() == 0));
            if self.deterministic || patience == 0 || !self.gate.wait_for_all(deadline) {
                break;
            }
        }
        if epoch != self.parts.directory.epoch() {
            leading = 0;
        }
        // Beyond the leading run: stored twice while it waited, or gone with a clear.
        let again = (stored + duplicates).saturating_sub(leading as u64).min(stored);
        let (stored, duplicates) = (stored - again, duplicates.min(leading as u64));
        add(&counters.puts, stored);
        add(&counters.put_again, again);
        add(&counters.put_duplicate, duplicates);
        add(&counters.put_present, (leading as u64).saturating_sub(stored + duplicates));
        add(&counters.put_short, (keys.len() - leading) as u64);
        Ok(leading)
    }

    /// Stores a block read elsewhere where that takes no wait and no dirty block's place; it
    /// counts as put.
    pub(super) fn put_at_once(&self, key: Key, parent: Option<Key>, bytes: &[u8]) {
        let options = PutOptions { parent, ..PutOptions::default() };
        let keys = [key];
        let mut round = Round::new(self, &keys, &options, self.parts.directory.epoch());
        let leading = round.run(&Rows::list(&[bytes])) as u64;
        let (stored, duplicates) = (round.stored, round.duplicates);
        drop(round);
        self.tidy(1);
        let counters = &self.parts.counters;
        add(&counters.puts, stored);
        add(&counters.put_duplicate, duplicates);
        add(&counters.put_present, leading.saturating_sub(stored + duplicates));
        add(&counters.put_short, 1 - leading);
    }

    /// Waits, holding nothing, until something more can leave RAM: for as many blocks as are
    /// wanted or `CLEAN_AT_ONCE`, as long as some are under way. False where nothing will, or not
    /// in time.
    pub(super) fn wait_for_clean(&self, deadline_us: u64, wanted: usize) -> bool {
        let wanted = wanted.min(CLEAN_AT_ONCE) as u64;
        let before = self.with_tier(|tier, _| {
            tier.waiting_puts += 1;
            tier.stuck = false;
            tier.progress()
        });
        self.nudge();
        let mut progress = 0;
        self.wait_for_tier(deadline_us, || {
            // A block under I/O, a read included, may be able to leave at its end.
            let look = |tier: &Tier| (tier.progress(), tier.is_moving(), tier.stuck);
            let Some((now, moving, stuck)) = self.with_tier(|tier, _| look(tier)) else {
                return true;
            };
            progress = now - before.unwrap_or(now);
            let free = self.parts.frames.free() as u64;
            progress + free >= wanted || (!moving && (stuck || progress > 0))
        });
        self.with_tier(|tier, _| tier.waiting_puts -= 1);
        progress > 0 || self.parts.frames.free() > 0
    }

    /// Blocks whose only copies are on devices that are left alone come to RAM again.
    fn disown_away(&self, keys: &[Key]) {
        let (mut left, mut held) = (keys, Vec::new());
        while self.parts.away.load(Ordering::Relaxed) && !left.is_empty() {
            let more = self.with_tier_within(|tier, with, budget| {
                while let Some((key, rest)) = left.split_first() {
                    if !budget.spend() {
                        return;
                    }
                    held.extend(tier.disown_away(with, *key).then_some(*key));
                    left = rest;
                }
            });
            if more.is_none() {
                return;
            }
        }
        let removed = held.iter().filter(|key| self.hide(**key)).count();
        self.with_tier(|tier, _| tier.stats.given_up += removed as u64);
        self.tidy(removed);
    }

    fn check_rows(&self, keys: &[Key], blocks: &Rows<'_>) -> Result<(), Error> {
        if blocks.len() != keys.len() {
            let message = format!("{} keys and {} blocks.", keys.len(), blocks.len());
            let hint = "pass one row for each key.";
            return Err(Error::new(ErrorKind::Layout, "KS-LAY-001", message, hint)
                .with("keys", keys.len())
                .with("blocks", blocks.len()));
        }
        let longest = blocks.largest_row();
        if longest > self.block_bytes as usize {
            let message = format!(
                "a block of {longest} bytes in a store of {}-byte blocks.",
                self.block_bytes
            );
            let hint = "pass rows of at most block_bytes, or open the store with larger blocks.";
            return Err(Error::new(ErrorKind::Layout, "KS-LAY-002", message, hint)
                .with("row_bytes", longest)
                .with("block_bytes", self.block_bytes));
        }
        Ok(())
    }

    /// Frames for the last of `incoming` first, until there is no more room. In deterministic mode
    /// the policy hears of each block with its frame, as if they came one by one; else it learns
    /// of them with their insert events, for others make room meanwhile.
    /// True beside them: more would be free once the cleaner has written something.
    fn reserve_frames(&self, incoming: &[Key]) -> (Vec<FrameId>, bool) {
        let mut frames = Vec::with_capacity(incoming.len());
        if !self.deterministic {
            self.parts.frames.take(incoming.len(), &mut frames);
        }
        let mut dirty = false;
        while frames.len() < incoming.len() {
            let more = self.keep(|keeper, parts, budget| {
                while let Some(left) = incoming.len().checked_sub(frames.len() + 1) {
                    let key = self.deterministic.then(|| incoming[left].words());
                    match keeper.make_room(parts, key, false, budget) {
                        Room::Frame(frame) => frames.push(frame),
                        Room::Nothing => return false,
                        Room::Dirty => {
                            dirty = true;
                            return false;
                        }
                        Room::Again => return true,
                    }
                }
                false
            });
            if more != Some(true) {
                break;
            }
        }
        (frames, dirty)
    }

    /// What was announced and not stored is taken back.
    fn withdraw(&self, keys: Vec<Key>) {
        if self.deterministic && !keys.is_empty() {
            self.keep(|keeper, _, _| keys.iter().for_each(|key| keeper.withdraw(key.words())));
        }
    }
}

/// A hasher for keys of one batch: one multiplication, nothing that an attacker of the index could
/// use beyond a slow put of his own.
#[derive(Clone, Copy, Default)]
struct Fold(u64);

type Folded = BuildHasherDefault<Fold>;

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl<'a> Round<'a> {
    fn new(store: &'a Store, keys: &'a [Key], options: &'a PutOptions, epoch: u32) -> Self {
        Self {
            store,
            keys,
            options,
            epoch,
            entries: Vec::with_capacity(keys.len()),
            pins: Vec::new(),
            notes: Vec::new(),
            stored: 0,
            duplicates: 0,
            bytes: 0,
            dirty: false,
            inside: store.gate.enter(),
        }
    }

    /// How many leading blocks are stored at the end.
    fn run(&mut self, blocks: &Rows<'_>) -> usize {
        self.find_and_pin();
        if self.entries.iter().all(Option::is_some) {
            return self.keys.len();
        }
        // No more than fit beside what is there: a longer chain's tail takes nobody's place.
        let (missing, present) = self.missing();
        let room = (self.store.frames_total() as usize).saturating_sub(present);
        let incoming: Vec<Key> = missing.iter().take(room).map(|i| self.keys[*i]).collect();
        let (frames, dirty) = self.store.reserve_frames(&incoming);
        self.dirty = dirty;
        self.inside.hold(frames.len());
        self.store.parts.arena.write_many(&frames, blocks, &missing);
        let stored = self.commit_all(&missing, &frames, blocks);
        let announced = incoming.len() - frames.len()..;
        let dropped = announced.zip(&incoming[incoming.len() - frames.len()..]);
        let dropped = dropped.filter(|(at, _)| stored.get(*at) != Some(&true));
        self.store.withdraw(dropped.map(|(_, key)| *key).collect());
        // The leading run: up to the first missing block that has no frame, or no place.
        missing.get(stored.len()).map_or(self.keys.len(), |first_short| *first_short)
    }

    /// Positions of the absent blocks, each key once, and how many different ones hold a frame.
    fn missing(&self) -> (Vec<usize>, usize) {
        let mut seen = HashSet::with_capacity_and_hasher(self.keys.len(), Folded::default());
        let first = |i: &usize| seen.insert(self.keys[*i].words());
        let (missing, present): (Vec<usize>, Vec<usize>) =
            (0..self.keys.len()).filter(first).partition(|i| self.entries[*i].is_none());
        let in_ram = |i: &&usize| self.entries[**i].is_some_and(|entry| entry.in_ram);
        (missing, present.iter().filter(in_ram).count())
    }

    /// Commits the missing blocks that have frames, head first, until one finds no place. For each
    /// before that, whether this call stored it.
    fn commit_all(
        &mut self,
        missing: &[usize],
        frames: &[FrameId],
        blocks: &Rows<'_>,
    ) -> Vec<bool> {
        let mut stored = Vec::with_capacity(frames.len());
        let mut parent_is_pinned = false;
        for (at, (i, frame)) in missing.iter().zip(frames).enumerate() {
            let goes_on = self.options.chained && at + 1 < frames.len() && missing[at + 1] == i + 1;
            let len = blocks.row_bytes(*i) as u32;
            let before = self.stored;
            match self.commit(*i, *frame, len, goes_on, parent_is_pinned) {
                Some(pinned) => parent_is_pinned = pinned,
                None => {
                    frames[at..].iter().for_each(|frame| self.store.parts.frames.give(*frame));
                    break;
                }
            }
            stored.push(self.stored > before);
        }
        stored
    }

    /// Looks the batch up, and pins the last block of every linked piece that is there; one that
    /// has gone by then is missing.
    fn find_and_pin(&mut self) {
        let directory = &self.store.parts.directory;
        // The block that the batch hangs on must not make room for it.
        if let Some(parent) = self.options.parent.filter(|_| self.options.chained)
            && let Some(parent) = directory.find_one(parent)
            && directory.pin(parent.slot, parent.generation)
        {
            self.pins.push(parent.slot);
        }
        let unsure = directory.find(self.keys, &mut self.entries);
        add(&self.store.parts.counters.spurious_misses, unsure);
        let mut after: Option<Entry> = None;
        for entry in self.entries.iter_mut().rev() {
            *entry = entry.filter(|e| e.resident);
            if let Some(here) = *entry {
                let kept = after.is_some_and(|child| here.is_parent_of(&child));
                if kept {
                    // Its pinned descendant keeps it.
                } else if directory.pin(here.slot, here.generation) {
                    self.pins.push(here.slot);
                } else {
                    *entry = None;
                }
            }
            after = *entry;
        }
    }

    /// Commits block `i`; `Some(whether it is born with a pin for the next one)`, `None` where the
    /// batch ends here.
    fn commit(
        &mut self,
        i: usize,
        frame: FrameId,
        len: u32,
        goes_on: bool,
        parent_is_pinned: bool,
    ) -> Option<bool> {
        let store = self.store;
        let directory = &store.parts.directory;
        let parent = self.parent_of(i, parent_is_pinned);
        let pins = 1 + u32::from(goes_on);
        let key = self.keys[i];
        let home = Home::Frame(frame);
        let block = Block { key, parent, home, len, epoch: self.epoch, pins };
        let committed = directory.commit(&block);
        // The event of a new block carries the parent's pin; nothing else needs it.
        let carried = matches!(committed, Commit::Stored { refilled: false, .. });
        if let (Some((slot, _)), false) = (parent, carried) {
            directory.unpin(slot);
        }
        match committed {
            Commit::Stored { entry, refilled } => {
                let (slot, generation) = (entry.slot, entry.generation);
                self.notes.push(Note::Insert { slot, generation, refilled });
                self.entries[i] = Some(entry);
                self.stored += 1;
                self.bytes += u64::from(len);
                Some(goes_on)
            }
            Commit::Present(entry) => {
                store.parts.frames.give(frame);
                self.entries[i] = Some(entry);
                self.duplicates += 1;
                Some(false)
            }
            Commit::Full | Commit::Stale => {
                add(&store.parts.counters.index_full, u64::from(matches!(committed, Commit::Full)));
                None
            }
        }
    }

    /// The parent of block `i`, with the pin that its insert event will drop. None: a root.
    fn parent_of(&self, i: usize, is_pinned: bool) -> Option<(Slot, u32)> {
        let directory = &self.store.parts.directory;
        if !self.options.chained {
            return None;
        }
        let before = i.checked_sub(1);
        let entry = before.and_then(|before| self.entries[before]);
        if let Some(entry) = entry
            && (is_pinned || directory.pin(entry.slot, entry.generation))
        {
            return Some((entry.slot, entry.generation));
        }
        let key = before.map_or(self.options.parent, |before| Some(self.keys[before]));
        let key = key.filter(|key| *key != self.keys[i])?;
        // In RAM, a hole already, or a new hole that the head may fill later.
        let there = directory.find_one(key);
        let there = there.filter(|e| directory.pin(e.slot, e.generation));
        let parent = there.or_else(|| directory.hole(key, self.epoch))?;
        Some((parent.slot, parent.generation))
    }
}

impl Drop for Round<'_> {
    /// Tells the keeper, tail first, after the last commit; then the batch's own pins fall.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.store.poisoned.store(true, std::sync::atomic::Ordering::Release);
        }
        let Parts { counters, directory, .. } = &self.store.parts;
        add(&counters.bytes_in, self.bytes);
        counters.resident(self.epoch, self.stored as i64, self.bytes as i64);
        for note in self.notes.drain(..).rev() {
            self.store.tell(note);
        }
        for slot in self.pins.drain(..) {
            directory.unpin(slot);
        }
    }
}
