//! What is where, and who may touch it: the hashed index of blocks.
//!
//! Owns: headers, bins, free frames, pins, child counts, the clear epoch and the wake stack. Never
//! does: touch block bytes, choose victims, wait. Invariants: a header is visible from `commit` to
//! its eviction, removal or the next clear; what is pinned, or has a child, keeps its header; a RAM
//! copy leaves only without pin, hold and children (`leave.rs`). Lookups are wait-free, pins
//! lock-free; `commit` and `remove` share one short lock in `bins`.

mod bins;
mod frames;
mod header;
mod leave;
mod recount;
mod run;
mod slab;
mod stack;
mod state;
mod tiers;

#[cfg(all(test, loom))]
mod loom_protocols;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, loom))]
mod loom_tiers;
#[cfg(all(test, not(loom)))]
mod model_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use frames::Frames;
pub(crate) use leave::{Dirty, Gone, Left, Settled};
pub(crate) use run::pieces;
pub(crate) use tiers::{Loaded, Moving, Restored};

use crate::key::Key;
use crate::sync::{AtomicI64, AtomicU32, Ordering};
use crate::units::{FrameId, NONE, Slot, SsdSlot};
use bins::{Bins, Candidate, Place, Search};
use header::{Fields, Header};
use slab::Slab;
use stack::Stack;
use state::{HIDDEN, Kind, State};
use std::hash::{BuildHasher, Hasher};

/// Keys between one step of a lookup and the next: enough to hide a cache miss behind the others.
const AHEAD: usize = 16;

/// What a lookup found: a header in one generation, and its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) slot: Slot,
    pub(crate) generation: u32,
    pub(crate) parent: u32,
    pub(crate) parent_generation: u32,
    /// Bytes are in some tier; else a hole.
    pub(crate) resident: bool,
    /// Bytes were in RAM when this was read; the place is read again under pins.
    pub(crate) in_ram: bool,
}

impl Entry {
    /// Whether `self` is the parent of `child`: then a pin on the child protects both.
    pub(crate) fn is_parent_of(&self, child: &Entry) -> bool {
        child.parent == self.slot.0 && child.parent_generation == self.generation
    }
}

/// Where the bytes of a pinned block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// Here, so many bytes.
    Ram(FrameId, u32),
    /// On SSD, so many bytes.
    Ssd(u32),
    /// On their way from SSD to RAM, for somebody.
    Loading,
    /// Nowhere any more: removed, cleared, or lost by a device.
    Gone,
}

/// The place a new block's bytes are in, which belongs to the caller until `Stored`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Home {
    Frame(FrameId),
    Ssd(SsdSlot),
}

impl Home {
    fn kind(self) -> Kind {
        match self {
            Self::Frame(_) => Kind::Ram,
            Self::Ssd(_) => Kind::Ssd,
        }
    }

    fn frame(self) -> Option<FrameId> {
        if let Self::Frame(frame) = self { Some(frame) } else { None }
    }

    fn ssd(self) -> Option<SsdSlot> {
        if let Self::Ssd(slot) = self { Some(slot) } else { None }
    }
}

/// A block to be entered.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) key: Key,
    /// Pinned by the caller; the pin goes over to the insert event.
    pub(crate) parent: Option<(Slot, u32)>,
    pub(crate) home: Home,
    pub(crate) len: u32,
    /// The epoch in which the put began.
    pub(crate) epoch: u32,
    /// Pins at birth: the block's own event, and the next block's where the batch goes on.
    pub(crate) pins: u32,
}

/// How a commit ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Commit {
    /// Visible now. `refilled`: a hole got its bytes back and keeps the parent of its birth,
    /// pinned by this commit; the caller's parent pin is not used.
    Stored { entry: Entry, refilled: bool },
    /// Somebody else's copy is there, or on its way into a hole.
    Present(Entry),
    /// No header, entry or pin to be had.
    Full,
    /// A clear came after the put began.
    Stale,
}

/// The index.
pub(crate) struct Directory {
    headers: Slab<Header>,
    bins: Bins,
    free: Stack,
    fresh: AtomicU32,
    woken: Stack,
    epoch: AtomicU32,
    holes: AtomicI64,
    holes_max: i64,
}

/// Asks for a cache line ahead of its use.
#[inline]
pub(crate) fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of a valid reference has no effect but on the cache.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}

impl Directory {
    /// An index over so many frames and SSD slots: headers for them, for holes (1/8) and for
    /// blocks on their way in or out.
    pub(crate) fn new(blocks: u32) -> Self {
        let spare = blocks / 8 + 1024;
        let headers = blocks as usize + spare as usize;
        // Different in every store: nobody can choose keys that fall into one bin.
        let random = std::collections::hash_map::RandomState::new();
        let seeds = [random.build_hasher().finish(), random.hash_one(1_u8)];
        Self::with_headers(headers, i64::from(blocks / 8).max(1), seeds)
    }

    fn with_headers(headers: usize, holes_max: i64, seeds: [u64; 2]) -> Self {
        Self {
            headers: Slab::new(headers),
            bins: Bins::new(headers, seeds),
            free: Stack::default(),
            fresh: AtomicU32::new(0),
            woken: Stack::default(),
            epoch: AtomicU32::new(1),
            holes: AtomicI64::new(0),
            holes_max,
        }
    }

    pub(crate) fn headers(&self) -> u32 {
        self.headers.len() as u32
    }

    /// Headers that were ever in use: the first so many.
    pub(crate) fn used_headers(&self) -> u32 {
        self.fresh.load(Ordering::Acquire).min(self.headers())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.headers.bytes() + self.bins.bytes()
    }

    pub(crate) fn holes(&self) -> u64 {
        self.holes.load(Ordering::Relaxed).max(0) as u64
    }

    /// The number of clears so far, and one; the disk's epoch is another count.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Under the keeper's lock: nothing committed so far is seen any more.
    pub(crate) fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn header(&self, slot: Slot) -> &Header {
        &self.headers[slot.index()]
    }

    /// The checked read, and the conditions under which a lookup may see the header.
    #[inline]
    fn visible(&self, candidate: Candidate, key: [u64; 2], epoch: u16) -> Option<Entry> {
        let seen = self.header(candidate.slot).checked(key)?;
        let generation = seen.state.generation();
        let shown = !seen.state.has(HIDDEN) && seen.epoch == epoch;
        (shown && generation as u8 == candidate.hint).then(|| Entry {
            slot: candidate.slot,
            generation,
            parent: seen.parent,
            parent_generation: seen.parent_generation,
            resident: seen.state.kind().is_there(),
            in_ram: seen.state.kind().is_in_ram(),
        })
    }

    /// Looks keys up in order until `each` is done. Three steps a key, `AHEAD` keys apart, so that
    /// cache misses overlap at every moment: ask for the bin; find the entry in it and ask for the
    /// header; read the header. A guess that no longer holds is searched for again.
    #[inline]
    fn find_each(&self, keys: &[Key], mut each: impl FnMut(Search<Entry>) -> bool) {
        let epoch = self.epoch() as u16;
        let mut ring = [(Place::default(), None); 2 * AHEAD];
        for step in 0..keys.len() + 2 * AHEAD {
            let now = step % (2 * AHEAD);
            if let Some(key) = step.checked_sub(2 * AHEAD).map(|at| &keys[at]) {
                let (place, guess) = ring[now];
                let words = key.words();
                let found = match guess.and_then(|c| self.visible(c, words, epoch)) {
                    Some(entry) => Search::Found(entry),
                    None => self.bins.search(place, |c| self.visible(c, words, epoch)),
                };
                if !each(found) {
                    return;
                }
            }
            if (AHEAD..keys.len() + AHEAD).contains(&step) {
                let (place, guess) = &mut ring[(step - AHEAD) % (2 * AHEAD)];
                *guess = self.bins.guess(*place);
                if let Some(candidate) = guess {
                    prefetch(self.header(candidate.slot));
                }
            }
            if let Some(key) = keys.get(step) {
                ring[now] = (self.bins.place(key.words()), None);
                self.bins.prefetch(ring[now].0);
            }
        }
    }

    /// Looks up one key, in the certain case.
    pub(crate) fn find_one(&self, key: Key) -> Option<Entry> {
        let (words, epoch) = (key.words(), self.epoch() as u16);
        let place = self.bins.place(words);
        match self.bins.search(place, |c| self.visible(c, words, epoch)) {
            Search::Found(entry) => Some(entry),
            _ => None,
        }
    }

    /// Looks up every key; returns how many misses were spurious.
    pub(crate) fn find(&self, keys: &[Key], into: &mut Vec<Option<Entry>>) -> u64 {
        let mut unsure = 0;
        into.reserve(keys.len());
        self.find_each(keys, |found| {
            unsure += u64::from(found == Search::Unsure);
            into.push(if let Search::Found(entry) = found { Some(entry) } else { None });
            true
        });
        unsure
    }

    /// The leading resident run, entry by entry until `each` is done; how many misses (0 or 1)
    /// were spurious.
    #[inline]
    pub(crate) fn match_run(&self, keys: &[Key], mut each: impl FnMut(Entry)) -> u64 {
        let mut unsure = 0;
        self.find_each(keys, |found| match found {
            Search::Found(entry) if entry.resident => {
                each(entry);
                true
            }
            found => {
                unsure += u64::from(found == Search::Unsure);
                false
            }
        });
        unsure
    }

    /// Length of a block that was found, if it is still that block.
    pub(crate) fn len_of(&self, entry: &Entry) -> Option<u32> {
        self.header(entry.slot).len_in(entry.generation)
    }

    /// Under a pin: where the bytes are.
    pub(crate) fn located(&self, entry: &Entry) -> Located {
        let header = self.header(entry.slot);
        let state = header.state();
        if state.generation() != entry.generation || state.has(HIDDEN) {
            return Located::Gone;
        }
        let (frame, len) = header.located();
        match state.kind() {
            Kind::Ram | Kind::Both => Located::Ram(frame, len),
            Kind::Ssd => Located::Ssd(len),
            Kind::Loading => Located::Loading,
            Kind::Free | Kind::Hole => Located::Gone,
        }
    }

    /// Pins a visible block; false where it has gone, was removed, or the count is full.
    pub(crate) fn pin(&self, slot: Slot, generation: u32) -> bool {
        self.header(slot).pin(generation, false).is_ok()
    }

    /// Drops one pin; the last one of a skipped block wakes it.
    pub(crate) fn unpin(&self, slot: Slot) {
        if self.header(slot).unpin() {
            self.wake(slot);
        }
    }

    fn wake(&self, slot: Slot) {
        self.woken.push(slot.0, |n| &self.headers[n as usize].link);
    }

    fn take_header(&self) -> Option<Slot> {
        let slot = self.free.pop(|n| &self.headers[n as usize].link).or_else(|| {
            let unused = self.fresh.load(Ordering::Relaxed) < self.headers();
            let slot = unused.then(|| self.fresh.fetch_add(1, Ordering::Relaxed))?;
            (slot < self.headers()).then_some(slot)
        });
        slot.map(Slot)
    }

    fn give_header(&self, slot: Slot) {
        self.free.push(slot.0, |n| &self.headers[n as usize].link);
    }

    /// Takes back a header that never became visible.
    fn discard(&self, slot: Slot) {
        let freed = self.header(slot).update(|s| Some(s.freed()));
        debug_assert!(freed.is_ok());
        self.give_header(slot);
    }

    /// Enters a block, refills its hole, or says who was there first.
    pub(crate) fn commit(&self, block: &Block) -> Commit {
        if block.epoch != self.epoch() {
            return Commit::Stale;
        }
        let fields = Fields {
            key: block.key.words(),
            parent: block.parent,
            frame: block.home.frame(),
            ssd: block.home.ssd(),
            len: block.len,
            epoch: block.epoch as u16,
        };
        match self.enter(&fields, block.home.kind(), block.pins) {
            Enter::Done(entry) => Commit::Stored { entry, refilled: false },
            Enter::There(entry) if entry.resident => Commit::Present(entry),
            Enter::There(hole) => self.refill(hole, block),
            Enter::Full => Commit::Full,
        }
    }

    /// The header that stands for an absent parent, pinned once for its child's event. A hole is a
    /// root and stays one. `None`: no more holes allowed, or no header.
    pub(crate) fn hole(&self, key: Key, epoch: u32) -> Option<Entry> {
        if self.holes.fetch_add(1, Ordering::Relaxed) < self.holes_max {
            let (key, epoch) = (key.words(), epoch as u16);
            let fields = Fields { key, parent: None, frame: None, ssd: None, len: 0, epoch };
            match self.enter(&fields, Kind::Hole, 1) {
                Enter::Done(entry) => return Some(entry),
                Enter::There(entry) => {
                    self.holes.fetch_sub(1, Ordering::Relaxed);
                    return self.pin(entry.slot, entry.generation).then_some(entry);
                }
                Enter::Full => {}
            }
        }
        self.holes.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Publishes a new header and enters it, unless its key is there.
    fn enter(&self, fields: &Fields, kind: Kind, pins: u32) -> Enter {
        let Some(slot) = self.take_header() else { return Enter::Full };
        let generation = self.header(slot).publish(fields, kind, pins);
        let place = self.bins.place(fields.key);
        let mut writer = self.bins.write();
        let there = loop {
            let found = self.bins.find_locked(&mut writer, place, |candidate| {
                let seen = self.header(candidate.slot).checked(fields.key)?;
                (!seen.state.has(HIDDEN)).then_some((candidate, seen.epoch))
            });
            match found {
                // An entry of an epoch that was cleared: unlinked here, its block swept later.
                Some((stale, epoch)) if epoch != self.epoch() as u16 => {
                    self.bins.remove(&mut writer, place, stale.slot);
                }
                Some((there, epoch)) => break self.visible(there, fields.key, epoch),
                None => break None,
            }
        };
        if there.is_none() && self.bins.insert(&mut writer, place, slot, generation) {
            drop(writer);
            let (parent, parent_generation) = fields.parent.unwrap_or((Slot(NONE), 0));
            let (resident, in_ram) = (kind.is_there(), kind.is_in_ram());
            let parent = parent.0;
            let entry = Entry { slot, generation, parent, parent_generation, resident, in_ram };
            return Enter::Done(entry);
        }
        drop(writer);
        self.discard(slot);
        there.map_or(Enter::Full, Enter::There)
    }

    /// Gives a hole its bytes back, in place: pin its own parent, take the hold, write, show.
    fn refill(&self, hole: Entry, block: &Block) -> Commit {
        let parent = (hole.parent != NONE).then_some(Slot(hole.parent));
        if let Some(parent) = parent
            && self.header(parent).pin(hole.parent_generation, true).is_err()
        {
            return Commit::Full;
        }
        let header = self.header(hole.slot);
        let claim = header.update(|s| {
            let mine = s.generation() == hole.generation && s.kind() == Kind::Hole;
            (mine && !s.held() && !s.has(HIDDEN))
                .then(|| s.pinned(block.pins))
                .flatten()
                .map(State::hold)
        });
        if let Err(other) = claim {
            if let Some(parent) = parent {
                self.unpin(parent);
            }
            let there = other.generation() == hole.generation;
            return if there { Commit::Present(hole) } else { Commit::Full };
        }
        header.locate(block.home.frame(), block.len);
        header.place_on_ssd(block.home.ssd());
        let kind = block.home.kind();
        let shown = header.update(|s| Some(s.unhold().with_kind(kind).without(state::AWAITED)));
        debug_assert!(shown.is_ok());
        self.holes.fetch_sub(1, Ordering::Relaxed);
        let entry = Entry { resident: true, in_ram: kind.is_in_ram(), ..hole };
        Commit::Stored { entry, refilled: true }
    }

    /// Hides the block of a key: out of the bin, then HIDDEN. The keeper releases it by event.
    pub(crate) fn remove(&self, key: Key) -> Option<Removed> {
        let words = key.words();
        let place = self.bins.place(words);
        let epoch = self.epoch() as u16;
        let mut writer = self.bins.write();
        let entry = self.bins.find_locked(&mut writer, place, |c| self.visible(c, words, epoch))?;
        if !entry.resident {
            return None;
        }
        self.bins.remove(&mut writer, place, entry.slot);
        drop(writer);
        self.hide(entry.slot, entry.generation)
    }
}

/// A block hidden by `remove`, and its length in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed {
    pub(crate) slot: Slot,
    pub(crate) generation: u32,
    pub(crate) len: u32,
    pub(crate) epoch: u16,
}

enum Enter {
    Done(Entry),
    There(Entry),
    Full,
}
