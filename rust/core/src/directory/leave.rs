//! How a block leaves: the leaf rule, child counts, release of what was removed.
//!
//! Owns: every step that lowers something, all of it under the keeper's lock (`&mut Keeper` is the
//! caller's proof). Never does: choose. Invariants: a RAM copy leaves only without pin, hold and
//! children; a header is freed only when no child names it and it is not QUEUED; the order is
//! FREE word, bin entry, then header and frame to their next owners.

use super::state::{HIDDEN, Kind, QUEUED, SKIPPED, State};
use super::{Directory, Removed};
use crate::key::Key;
use crate::sync::Ordering;
use crate::units::{FrameId, NONE, Slot};

/// A block that has left: what the keeper reports and reuses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    pub(crate) key: Key,
    pub(crate) frame: Option<FrameId>,
    pub(crate) len: u32,
    pub(crate) epoch: u16,
}

/// What became of a hidden block or a hole that something had kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Settled {
    /// Gone; a hidden block's frame is free.
    Released(Option<FrameId>),
    /// Still kept by a pin, a hold or a child, which will wake it.
    Kept,
    /// Neither hidden nor a hole: the policy's business.
    Block,
}

impl Directory {
    /// Whether a block can't leave RAM now. If so it is flagged SKIPPED from the very word that
    /// showed why, so that the last pin, hold or child to go wakes it.
    pub(crate) fn stays(&self, slot: Slot) -> bool {
        let header = self.header(slot);
        let has_kids = header.kids().1 > 0;
        let kept = |s: State| has_kids || !s.idle() || s.kind() != Kind::Ram || s.has(HIDDEN);
        let flagged = header.update(|s| (kept(s) && !s.has(SKIPPED)).then(|| s.with(SKIPPED)));
        flagged.map_or_else(kept, |_| true)
    }

    /// Takes a block out of RAM, unless a pin came first: FREE word, parent's counts. Its entry
    /// and header follow with `bury`, under the same hold of the lock; until then a lookup finds
    /// a header of no life.
    pub(crate) fn evict(&self, slot: Slot) -> Option<Gone> {
        let header = self.header(slot);
        let leaf = header.kids().1 == 0;
        let goes = |s: State| leaf && s.idle() && s.kind() == Kind::Ram && !s.has(HIDDEN);
        header.update(|s| goes(s).then(|| s.freed())).ok()?;
        self.bins.prefetch(self.bins.place(header.key()));
        Some(self.leave_parent(slot, Kind::Ram))
    }

    /// Asks for a header that will be read soon.
    pub(crate) fn fetch_header(&self, slot: Slot) {
        super::prefetch(self.header(slot));
    }

    /// After the FREE word: what the block was, and its parent's counts.
    fn leave_parent(&self, slot: Slot, was: Kind) -> Gone {
        let header = self.header(slot);
        let (frame, len) = header.located();
        let ram = i32::from(was == Kind::Ram);
        if let Some((parent, generation)) = header.parent() {
            debug_assert_eq!(self.header(parent).state().generation(), generation);
            self.lose_child(parent, -ram, -1);
        }
        let (key, epoch) = (Key::from_words(header.key()), header.epoch());
        Gone { key, frame: (ram == 1).then_some(frame), len, epoch }
    }

    /// Then the entry out of the bin, and the header to its next owner.
    pub(crate) fn bury(&self, slot: Slot) {
        let place = self.bins.place(self.header(slot).key());
        let mut writer = self.bins.write();
        self.bins.remove(&mut writer, place, slot);
        drop(writer);
        self.give_header(slot);
    }

    fn lose_child(&self, parent: Slot, ram: i32, any: i32) {
        let header = self.header(parent);
        header.add_kids(ram, any);
        if header.kids().0 > 0 {
            return;
        }
        // Pinned or held: its last unpin wakes it.
        let wake = |s: State| s.has(SKIPPED) && s.idle();
        if header.update(|s| wake(s).then(|| s.with(QUEUED))).is_ok() {
            self.wake(parent);
        }
    }

    /// For an insert event: counts the block with its parent. `refilled`: it was counted as a
    /// child before it had bytes. The event's pins stand for the counts until now.
    pub(crate) fn count_child(&self, slot: Slot, refilled: bool) {
        if let Some((parent, generation)) = self.header(slot).parent() {
            let header = self.header(parent);
            assert_eq!(header.state().generation(), generation, "a pinned parent was freed");
            header.add_kids(1, i32::from(!refilled));
        }
    }

    /// Drops what an insert event carried: the block's own pin and its parent's.
    pub(crate) fn drop_event_pins(&self, slot: Slot) {
        let parent = self.header(slot).parent();
        self.unpin(slot);
        if let Some((parent, _)) = parent {
            self.unpin(parent);
        }
    }

    /// Under the keeper's lock or from `remove`: HIDDEN, seen by no lookup, waits for release.
    pub(super) fn hide(&self, slot: Slot, generation: u32) -> Option<Removed> {
        let header = self.header(slot);
        let visible =
            |s: State| s.generation() == generation && s.kind() == Kind::Ram && !s.has(HIDDEN);
        // Read first: once hidden, the keeper may release the header at any time.
        let (epoch, (_, len)) = (header.epoch(), header.located());
        header.update(|s| visible(s).then(|| s.with(HIDDEN | SKIPPED))).ok()?;
        Some(Removed { slot, generation, len, epoch })
    }

    /// For the sweep: hides a live block of an epoch that was cleared.
    pub(crate) fn hide_stale(&self, slot: Slot) -> Option<Removed> {
        let header = self.header(slot);
        let state = header.state();
        if state.kind() == Kind::Free || state.has(HIDDEN) || header.epoch() == self.epoch() as u16
        {
            return None;
        }
        let mut writer = self.bins.write();
        self.bins.remove(&mut writer, self.bins.place(header.key()), slot);
        drop(writer);
        self.hide(slot, state.generation())
    }

    /// Whether this is still the block an event was about.
    pub(crate) fn is_live(&self, slot: Slot, generation: u32) -> bool {
        let state = self.header(slot).state();
        state.generation() == generation && state.kind() != Kind::Free
    }

    /// Whether the block may be shown: neither removed nor cleared.
    pub(crate) fn is_shown(&self, slot: Slot) -> bool {
        let header = self.header(slot);
        !header.state().has(HIDDEN) && header.epoch() == self.epoch() as u16
    }

    /// Headers that name this one as their parent, under the keeper's lock.
    pub(crate) fn children(&self, slot: Slot) -> u32 {
        self.header(slot).kids().1
    }

    /// The next older block of a linked piece.
    pub(crate) fn parent_of(&self, slot: Slot) -> Option<(Slot, u32)> {
        self.header(slot).parent()
    }

    /// Key, length and epoch of a live block, under the keeper's lock.
    pub(crate) fn describe(&self, slot: Slot) -> (Key, u32, u16) {
        let header = self.header(slot);
        (Key::from_words(header.key()), header.located().1, header.epoch())
    }

    /// Takes the whole wake stack: its top, or nothing.
    pub(crate) fn take_woken(&self) -> Option<Slot> {
        self.woken.take_all().map(Slot)
    }

    pub(crate) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// Takes one header off the taken list: the next one, and whether this one waits for its
    /// release (`settle`), being hidden or a hole.
    pub(crate) fn wake_up(&self, slot: Slot) -> (Option<Slot>, bool) {
        let header = self.header(slot);
        let next = header.link.load(Ordering::Relaxed);
        // Once QUEUED is off, the link may be used again.
        let before = header.update(|s| Some(s.without(QUEUED | SKIPPED)));
        let Ok(before) = before else { unreachable!("the step refuses nothing") };
        let waits = before.kind() != Kind::Ram || before.has(HIDDEN);
        ((next != NONE).then_some(Slot(next)), waits)
    }

    /// Releases a hidden block or a hole if nothing keeps it, else leaves it SKIPPED.
    pub(crate) fn settle(&self, slot: Slot) -> Settled {
        let header = self.header(slot);
        let (kids_ram, kids_any) = header.kids();
        let released = |s: State| s.idle() && kids_any == 0;
        let emptied = |s: State| s.idle() && kids_ram == 0 && s.kind() == Kind::Ram;
        let before = header.update(|s| {
            let waiting = s.has(HIDDEN) || s.kind() == Kind::Hole;
            waiting.then(|| {
                if released(s) {
                    s.freed()
                } else if emptied(s) {
                    s.with_kind(Kind::Hole).with(SKIPPED)
                } else {
                    s.with(SKIPPED)
                }
            })
        });
        let Ok(before) = before else { return Settled::Block };
        if released(before) {
            if before.kind() == Kind::Hole && !before.has(HIDDEN) {
                self.holes.fetch_sub(1, Ordering::Relaxed);
            }
            let gone = self.leave_parent(slot, before.kind());
            self.bury(slot);
            return Settled::Released(gone.frame);
        }
        if emptied(before) {
            let (frame, _) = header.located();
            if let Some((parent, _)) = header.parent() {
                self.lose_child(parent, -1, 0);
            }
            return Settled::Released(Some(frame));
        }
        Settled::Kept
    }
}
