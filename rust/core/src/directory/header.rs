//! A header: 64 bytes that say what a block is, where it is and who may touch it.
//!
//! Owns: the layout, the checked read and the compare-and-swap steps on the state word. Never does:
//! follow a link to another header. Invariants: a header is never moved or freed as memory;
//! `key`, `parent` and the epoch are constant within a generation; `frame`, `ssd_slot` and
//! `len` change only under the hold, under the keeper's lock where nobody can pin or hold, or while
//! nobody can know the generation.

use crate::directory::slab::Zeroed;
use crate::directory::state::{AWAITED, HIDDEN, Kind, QUEUED, State};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::units::{FrameId, NONE, Slot, SsdSlot};

const HITS_SHIFT: u32 = 16;
const HITS_MAX: u32 = 63;

/// The fields in their fixed places. Most of `meta` waits for the policies that use it.
#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
pub(crate) struct Header {
    key: [AtomicU64; 2],
    state: AtomicU64,
    parent: AtomicU32,
    parent_generation: AtomicU32,
    frame: AtomicU32,
    ssd_slot: AtomicU32,
    kids_ram: AtomicU32,
    kids_any: AtomicU32,
    len: AtomicU32,
    last_use: AtomicU32,
    /// {pool 4, class 4, priority 2, hits 6, epoch 16}; constant within a generation but for hits.
    meta: AtomicU32,
    /// On the free stack or, with QUEUED, on the wake stack.
    pub(crate) link: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Header>() == 64);

// SAFETY: integers behind atomics only.
unsafe impl Zeroed for Header {}
// SAFETY: an integer behind an atomic.
unsafe impl Zeroed for AtomicU32 {}

/// What a new generation of a header stands for.
#[derive(Clone, Copy)]
pub(crate) struct Fields {
    pub(crate) key: [u64; 2],
    pub(crate) parent: Option<(Slot, u32)>,
    pub(crate) frame: Option<FrameId>,
    pub(crate) ssd: Option<SsdSlot>,
    pub(crate) len: u32,
    pub(crate) epoch: u16,
}

/// What a checked read found: a live header and what is constant within its generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) state: State,
    pub(crate) parent: u32,
    pub(crate) parent_generation: u32,
    pub(crate) epoch: u16,
}

impl Header {
    /// Acquire: what the owner of this word wrote before it is visible.
    pub(crate) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// The generation-checked read: wait-free, no retry. `None` where the header is free, of
    /// another key, or changed hands meanwhile.
    #[inline]
    pub(crate) fn checked(&self, key: [u64; 2]) -> Option<Seen> {
        let before = self.state();
        let mine = self.key[0].load(Ordering::Relaxed) == key[0]
            && self.key[1].load(Ordering::Relaxed) == key[1];
        let parent = self.parent.load(Ordering::Relaxed);
        let parent_generation = self.parent_generation.load(Ordering::Relaxed);
        let epoch = self.meta.load(Ordering::Relaxed) as u16;
        // Pairs with the fence in `publish`: a field of the next owner seen above makes the load
        // below see at least the FREE word that came before it, which has another generation.
        fence(Ordering::Acquire);
        let after = State(self.state.load(Ordering::Relaxed));
        let same = before.generation() == after.generation();
        (mine && same && before.kind() != Kind::Free && after.kind() != Kind::Free)
            .then_some(Seen { state: after, parent, parent_generation, epoch })
    }

    /// Gives a free header, which this thread popped, its next life. Nobody can know the
    /// generation before this returns.
    pub(crate) fn publish(&self, fields: &Fields, kind: Kind, pins: u32) -> u32 {
        // Release: the fields below come after the FREE word in every reader's eyes.
        fence(Ordering::Release);
        self.write_fields(fields);
        let generation = State(self.state.load(Ordering::Relaxed)).generation();
        self.state.store(State::live(generation, kind, pins).0, Ordering::Release);
        generation
    }

    pub(super) fn write_fields(&self, fields: &Fields) {
        let (parent, generation) = fields.parent.unwrap_or((Slot(NONE), 0));
        self.key[0].store(fields.key[0], Ordering::Relaxed);
        self.key[1].store(fields.key[1], Ordering::Relaxed);
        self.parent.store(parent.0, Ordering::Relaxed);
        self.parent_generation.store(generation, Ordering::Relaxed);
        self.frame.store(fields.frame.map_or(NONE, |f| f.0), Ordering::Relaxed);
        self.ssd_slot.store(fields.ssd.map_or(NONE, |s| s.0), Ordering::Relaxed);
        self.kids_ram.store(0, Ordering::Relaxed);
        self.kids_any.store(0, Ordering::Relaxed);
        self.len.store(fields.len, Ordering::Relaxed);
        self.last_use.store(0, Ordering::Relaxed);
        self.meta.store(u32::from(fields.epoch), Ordering::Relaxed);
    }

    /// Swaps the state word for what `next` makes of it; `Err` with the word it refused.
    pub(crate) fn update(&self, next: impl Fn(State) -> Option<State>) -> Result<State, State> {
        let mut word = self.state.load(Ordering::Acquire);
        loop {
            let Some(new) = next(State(word)) else { return Err(State(word)) };
            // Acquire: the fields of the generation; Release: all this thread read or wrote of
            // the block happens before whoever takes it next.
            let swap =
                self.state.compare_exchange_weak(word, new.0, Ordering::AcqRel, Ordering::Acquire);
            match swap {
                Ok(_) => return Ok(State(word)),
                Err(now) => word = now,
            }
        }
    }

    /// One pin more on this generation. `hidden`: a removed block will do (as a parent's pin).
    pub(crate) fn pin(&self, generation: u32, hidden: bool) -> Result<State, State> {
        self.update(|s| {
            let live = s.generation() == generation && s.kind() != Kind::Free;
            (live && (hidden || !s.has(HIDDEN))).then(|| s.pinned(1)).flatten()
        })
    }

    /// One pin less; true where the header is now QUEUED and this thread must put it on the wake
    /// stack.
    pub(crate) fn unpin(&self) -> bool {
        let before = self.update(|s| {
            let last = s.pins() == 1 && s.has(AWAITED);
            Some(if last { s.unpinned().with(QUEUED) } else { s.unpinned() })
        });
        let Ok(before) = before else { unreachable!("the step refuses nothing") };
        before.pins() == 1 && before.has(AWAITED) && !before.has(QUEUED)
    }

    /// Gives the hold back, and `next` is done to the word. The word before, and as for `unpin`.
    pub(crate) fn unhold(&self, next: impl Fn(State) -> State) -> (State, bool) {
        let last = |s: State| s.pins() == 0 && s.has(AWAITED);
        let before = self.update(|s| {
            let after = next(s.unhold());
            Some(if last(after) { after.with(QUEUED) } else { after })
        });
        let Ok(before) = before else { unreachable!("the step refuses nothing") };
        (before, last(next(before.unhold())) && !before.has(QUEUED))
    }

    /// The red twin of `unpin`: the same step without Release.
    #[cfg(all(test, loom))]
    pub(super) fn unpin_relaxed(&self) {
        let word = self.state.load(Ordering::Relaxed);
        self.state.store(State(word).unpinned().0, Ordering::Relaxed);
    }

    pub(crate) fn key(&self) -> [u64; 2] {
        [self.key[0].load(Ordering::Relaxed), self.key[1].load(Ordering::Relaxed)]
    }

    pub(crate) fn parent(&self) -> Option<(Slot, u32)> {
        let slot = self.parent.load(Ordering::Relaxed);
        (slot != NONE).then(|| (Slot(slot), self.parent_generation.load(Ordering::Relaxed)))
    }

    pub(crate) fn epoch(&self) -> u16 {
        self.meta.load(Ordering::Relaxed) as u16
    }

    /// Where the bytes are; stable under a pin, a pinned descendant or the keeper's lock.
    pub(crate) fn located(&self) -> (FrameId, u32) {
        (FrameId(self.frame.load(Ordering::Relaxed)), self.len.load(Ordering::Relaxed))
    }

    /// Length of the block of this generation, without a pin; none where the header changed hands.
    pub(crate) fn len_in(&self, generation: u32) -> Option<u32> {
        let len = self.len.load(Ordering::Relaxed);
        // As in `checked`: a length of the next owner makes its FREE word visible below.
        fence(Ordering::Acquire);
        let now = State(self.state.load(Ordering::Relaxed));
        (now.generation() == generation).then_some(len)
    }

    /// Only the holder of the hold, or the keeper where nobody can pin or hold.
    pub(crate) fn locate(&self, frame: Option<FrameId>, len: u32) {
        self.frame.store(frame.map_or(NONE, |f| f.0), Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
    }

    /// The block's place on SSD, where its kind has one; stable as `located` is.
    pub(crate) fn ssd_slot(&self) -> Option<SsdSlot> {
        let slot = self.ssd_slot.load(Ordering::Relaxed);
        (slot != NONE).then_some(SsdSlot(slot))
    }

    /// Who may: as for `locate`.
    pub(crate) fn place_on_ssd(&self, slot: Option<SsdSlot>) {
        self.ssd_slot.store(slot.map_or(NONE, |s| s.0), Ordering::Relaxed);
    }

    /// Minutes since 2020 and hits since the insert (at most 63), as the keeper last noted them.
    pub(crate) fn usage(&self) -> (u32, u8) {
        let hits = self.meta.load(Ordering::Relaxed) >> HITS_SHIFT & HITS_MAX;
        (self.last_use.load(Ordering::Relaxed), hits as u8)
    }

    /// Under the keeper's lock only.
    pub(crate) fn set_usage(&self, minutes: u32, hits: u8) {
        let hits = u32::from(hits).min(HITS_MAX);
        let others = self.meta.load(Ordering::Relaxed) & !(HITS_MAX << HITS_SHIFT);
        self.meta.store(others | hits << HITS_SHIFT, Ordering::Relaxed);
        self.last_use.store(minutes, Ordering::Relaxed);
    }

    /// {in RAM, any}: written under the keeper's lock only.
    pub(crate) fn kids(&self) -> (u32, u32) {
        (self.kids_ram.load(Ordering::Relaxed), self.kids_any.load(Ordering::Relaxed))
    }

    /// Under the keeper's lock only.
    pub(crate) fn add_kids(&self, ram: i32, any: i32) {
        let (kids_ram, kids_any) = self.kids();
        let ram = kids_ram.checked_add_signed(ram).expect("a RAM child was counted before");
        let any = kids_any.checked_add_signed(any).expect("a child was counted before");
        self.kids_ram.store(ram, Ordering::Relaxed);
        self.kids_any.store(any, Ordering::Relaxed);
    }
}
