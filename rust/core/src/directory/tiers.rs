//! How a block moves between RAM and SSD: clean, promote, give up a copy, come back at open.
//!
//! Owns: every step that involves an SSD slot, all of it under the keeper's lock but `begin`s and
//! ends may lie far apart: a hold stands for the I/O between them. Never does: I/O, or choose.
//! Invariants: a block under I/O is held, so nothing frees its frame or its slot; a child that
//! occupies a frame is counted in its parent's `kids_ram` before it shows and until it is gone; an
//! operation that ends on a removed or cleared block shows nothing.

use super::header::Fields;
use super::state::{HIDDEN, Kind, SKIPPED, State};
use super::{Block, Commit, Directory, Enter, Entry, Home};
use crate::key::Key;
use crate::sync::Ordering;
use crate::units::{FrameId, Slot, SsdSlot};

/// A block that is written to SSD or read from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moving {
    pub(crate) key: Key,
    pub(crate) parent: Option<Key>,
    pub(crate) frame: FrameId,
    pub(crate) len: u32,
}

/// A block found in the table at open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    pub(crate) key: Key,
    pub(crate) parent: Option<(Slot, u32)>,
    pub(crate) ssd: SsdSlot,
    pub(crate) len: u32,
    /// Minutes since 2020, and hits.
    pub(crate) usage: (u32, u8),
}

impl Directory {
    /// Key, parent, frame and length of a live block, under the keeper's lock.
    pub(crate) fn moving(&self, slot: Slot) -> Moving {
        let header = self.header(slot);
        let (frame, len) = header.located();
        let parent = header.parent().map(|(p, _)| Key::from_words(self.header(p).key()));
        Moving { key: Key::from_words(header.key()), parent, frame, len }
    }

    /// Whether the block is dirty, seen by lookups and not under I/O.
    pub(crate) fn is_dirty(&self, slot: Slot) -> bool {
        let state = self.header(slot).state();
        state.kind() == Kind::Ram && !state.held() && self.is_shown(slot)
    }

    /// Whether the block is held for its write.
    pub(crate) fn is_being_cleaned(&self, slot: Slot) -> bool {
        let state = self.header(slot).state();
        state.kind() == Kind::Ram && state.held() && self.is_shown(slot)
    }

    /// Holds a dirty block for its write.
    pub(crate) fn begin_clean(&self, slot: Slot) -> Option<Moving> {
        if !self.is_dirty(slot) {
            return None;
        }
        let header = self.header(slot);
        let cleanable = |s: State| s.kind() == Kind::Ram && !s.held() && !s.has(HIDDEN);
        header.update(|s| cleanable(s).then(|| s.hold())).ok()?;
        Some(self.moving(slot))
    }

    /// Ends a write: with a slot the block is clean from here on. False where it was removed or
    /// cleared meanwhile, and nothing was shown.
    pub(crate) fn end_clean(&self, slot: Slot, ssd: Option<SsdSlot>) -> bool {
        let header = self.header(slot);
        // Before the word says so; under the hold nobody else writes it.
        header.place_on_ssd(ssd);
        let stale = header.epoch() != self.epoch() as u16;
        let shown = |s: State| ssd.is_some() && !s.has(HIDDEN) && !stale;
        let (before, wakes) = header.unhold(|s| if shown(s) { s.with_kind(Kind::Both) } else { s });
        if wakes {
            self.wake(slot);
        }
        let cleaned = shown(before);
        if !cleaned {
            header.place_on_ssd(None);
        }
        cleaned
    }

    /// Holds a block that is only on SSD for its read into `frame`.
    pub(crate) fn begin_load(&self, entry: &Entry, frame: FrameId) -> Option<(SsdSlot, u32)> {
        let header = self.header(entry.slot);
        let parent = header.parent().filter(|_| self.is_live(entry.slot, entry.generation));
        // Counted before it shows.
        if let Some((parent, _)) = parent {
            self.header(parent).add_kids(1, 0);
        }
        let loadable = |s: State| {
            let mine = s.generation() == entry.generation && !s.has(HIDDEN);
            mine && s.kind() == Kind::Ssd && !s.held()
        };
        let begun = header.update(|s| loadable(s).then(|| s.hold().with_kind(Kind::Loading)));
        if begun.is_err() {
            if let Some((parent, _)) = parent {
                self.lose_child(parent, -1, 0);
            }
            return None;
        }
        let (_, len) = header.located();
        header.locate(Some(frame), len);
        Some((header.ssd_slot().expect("a block on SSD has a slot"), len))
    }

    /// Ends a read. `good`: the block is in RAM too from here on, unless it was removed or cleared
    /// meanwhile. Else the frame is free again, and a block that was bad has become a hole whose
    /// slot is given up.
    pub(crate) fn end_load(&self, slot: Slot, good: bool) -> Loaded {
        let header = self.header(slot);
        let stale = header.epoch() != self.epoch() as u16;
        let hidden = header.state().has(HIDDEN);
        if good && !hidden && !stale {
            // A remove may hide it in the last moment: then it is a hidden block in both.
            let (_, wakes) = header.unhold(|s| s.with_kind(Kind::Both));
            if wakes {
                self.wake(slot);
            }
            return Loaded::Shown;
        }
        let frame = header.located().0;
        let ssd = header.ssd_slot();
        header.place_on_ssd(None);
        let (before, wakes) = header.unhold(|s| s.with_kind(Kind::Hole).with(SKIPPED));
        if !before.has(HIDDEN) {
            self.holes.fetch_add(1, Ordering::Relaxed);
        }
        if wakes {
            self.wake(slot);
        }
        if let Some((parent, _)) = header.parent() {
            self.lose_child(parent, -1, 0);
        }
        let ssd = ssd.expect("a block on SSD has a slot");
        Loaded::Hole { frame, ssd, hidden: before.has(HIDDEN) }
    }

    /// A read that was not made after all: the block is on SSD only, as before. Its frame is free.
    pub(crate) fn cancel_load(&self, slot: Slot) -> FrameId {
        let header = self.header(slot);
        let frame = header.located().0;
        let (_, wakes) = header.unhold(|s| s.with_kind(Kind::Ssd));
        if wakes {
            self.wake(slot);
        }
        if let Some((parent, _)) = header.parent() {
            self.lose_child(parent, -1, 0);
        }
        frame
    }

    /// The block gives up its SSD copy, which is removed, cleared or bad: BOTH is dirty again, SSD
    /// becomes a hole. Not while it is read or written.
    pub(crate) fn give_up_ssd(&self, slot: Slot) -> Option<SsdSlot> {
        let header = self.header(slot);
        let before = header.update(|s| match s.kind() {
            Kind::Both if !s.held() => Some(s.with_kind(Kind::Ram)),
            Kind::Ssd if !s.held() => Some(s.with_kind(Kind::Hole).with(SKIPPED)),
            _ => None,
        });
        let before = before.ok()?;
        if before.kind() == Kind::Ssd && !before.has(HIDDEN) {
            self.holes.fetch_add(1, Ordering::Relaxed);
        }
        let ssd = header.ssd_slot();
        header.place_on_ssd(None);
        ssd
    }

    /// The SSD slot of a live block that has one, under the keeper's lock.
    pub(crate) fn ssd_slot_of(&self, slot: Slot) -> Option<SsdSlot> {
        let header = self.header(slot);
        header.state().kind().has_ssd_slot().then(|| header.ssd_slot()).flatten()
    }

    /// Whether the block occupies a frame, under the keeper's lock.
    pub(crate) fn is_in_ram(&self, slot: Slot) -> bool {
        self.header(slot).state().kind().is_in_ram()
    }

    /// The generation of a live header, under the keeper's lock.
    pub(crate) fn generation_of(&self, slot: Slot) -> u32 {
        self.header(slot).state().generation()
    }

    /// Whether something that was on SSD hangs on this block: its record would be found after a
    /// restart only with its own.
    pub(crate) fn has_child_elsewhere(&self, slot: Slot) -> bool {
        let (ram, any) = self.header(slot).kids();
        any > ram
    }

    /// Notes the time of an insert for the records on disk, in minutes since 2020.
    pub(crate) fn note_insert(&self, slot: Slot, minutes: u32) {
        self.header(slot).set_usage(minutes, 0);
    }

    /// Notes a use for the records on disk: minutes since 2020, one hit more.
    pub(crate) fn note_use(&self, slot: Slot, minutes: u32) {
        let (_, hits) = self.header(slot).usage();
        self.header(slot).set_usage(minutes, hits.saturating_add(1));
    }

    /// Minutes since 2020 and hits since the insert.
    pub(crate) fn usage(&self, slot: Slot) -> (u32, u8) {
        self.header(slot).usage()
    }

    /// Blocks that are only in RAM, without a lock: exact for a store at rest.
    pub(crate) fn count_dirty(&self) -> u64 {
        let dirty =
            |slot: &Slot| self.header(*slot).state().kind() == Kind::Ram && self.is_shown(*slot);
        (0..self.used_headers()).map(Slot).filter(dirty).count() as u64
    }

    /// Enters a block that was found on SSD, counted with its parent, or gives its hole these bytes
    /// back. `None`: its key has a newer copy, or there is no header.
    pub(crate) fn restore(&self, block: &Restored) -> Option<Entry> {
        let fields = Fields {
            key: block.key.words(),
            parent: block.parent,
            frame: None,
            ssd: Some(block.ssd),
            len: block.len,
            epoch: self.epoch() as u16,
        };
        let entry = match self.enter(&fields, Kind::Ssd, 0) {
            Enter::Done(entry) => {
                if let Some((parent, _)) = block.parent {
                    self.header(parent).add_kids(0, 1);
                }
                entry
            }
            Enter::There(hole) if !hole.resident => self.restore_hole(hole, block)?,
            Enter::There(_) | Enter::Full => return None,
        };
        self.header(entry.slot).set_usage(block.usage.0, block.usage.1);
        Some(entry)
    }

    /// In a store in use: children of the block came before it.
    fn restore_hole(&self, hole: Entry, block: &Restored) -> Option<Entry> {
        let Restored { key, parent, ssd, len, .. } = *block;
        let epoch = self.epoch();
        let refill = Block { key, parent, home: Home::Ssd(ssd), len, epoch, pins: 1 };
        let Commit::Stored { entry, .. } = self.refill(hole, &refill) else { return None };
        self.drop_event_pins(entry.slot);
        Some(entry)
    }
}

/// How a read ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loaded {
    /// In RAM and on SSD, seen by lookups (or hidden in the last moment).
    Shown,
    /// No bytes any more: this frame and this slot are free.
    Hole { frame: FrameId, ssd: SsdSlot, hidden: bool },
}
