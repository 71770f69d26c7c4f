//! How a block leaves: the leaf rule, child counts, release of what was removed.
//!
//! Owns: every step that lowers something, all of it under the keeper's lock (`&mut Keeper` is the
//! caller's proof). Never does: choose. Invariants: a RAM copy leaves only without pin, hold and
//! children in RAM, a dirty one without any children; a header is freed only when no child names it
//! and it is not QUEUED; the order is FREE word, bin entry, then header and frame to their next
//! owners.

use super::state::{AWAITED, HIDDEN, Kind, QUEUED, SKIPPED, SKIPPED_ON_SSD, State};
use super::{Directory, Removed};
use crate::key::Key;
use crate::sync::Ordering;
use crate::units::{FrameId, NONE, Slot, SsdSlot};

/// Which dirty blocks may leave RAM: their bytes are nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dirty {
    /// None: they wait for the cleaner.
    Stay,
    /// Those without children.
    Leaves,
    /// Those without children in RAM too; they leave a hole.
    Holes,
}

/// How a block left RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left {
    /// Out of the store.
    Gone(Gone),
    /// Still on SSD.
    Demoted(Gone),
    /// Its bytes are gone, its header stays for its children.
    Hole(Gone),
}

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
    /// showed why, so that the last pin, hold or child to go wakes it. A dirty block that waits for
    /// the cleaner is woken by it.
    pub(crate) fn stays(&self, slot: Slot, dirty: Dirty) -> bool {
        let header = self.header(slot);
        let leaves = self.leaves_ram(slot, dirty);
        let flagged = header.update(|s| (!leaves(s) && !s.has(SKIPPED)).then(|| s.with(SKIPPED)));
        flagged.map_or_else(|s| !leaves(s), |_| true)
    }

    /// The leaf rule of RAM as a test of the state word.
    fn leaves_ram(&self, slot: Slot, dirty: Dirty) -> impl Fn(State) -> bool + use<> {
        let (kids_ram, kids_any) = self.header(slot).kids();
        move |s| {
            let unused = s.idle() && !s.has(HIDDEN) && kids_ram == 0;
            unused
                && match s.kind() {
                    Kind::Both => true,
                    Kind::Ram => match dirty {
                        Dirty::Stay => false,
                        Dirty::Leaves => kids_any == 0,
                        Dirty::Holes => true,
                    },
                    _ => false,
                }
        }
    }

    /// Takes a block out of RAM, unless a pin came first. One that is gone from the store keeps its
    /// entry and header until `bury`, under the same hold of the lock; until then a lookup finds a
    /// header of no life.
    pub(crate) fn evict(&self, slot: Slot, dirty: Dirty) -> Option<Left> {
        let header = self.header(slot);
        let leaves = self.leaves_ram(slot, dirty);
        let leaf = header.kids().1 == 0;
        let before = header.update(|s| {
            leaves(s).then(|| match s.kind() {
                Kind::Both => s.with_kind(Kind::Ssd),
                _ if leaf => s.freed(),
                _ => s.with_kind(Kind::Hole).with(SKIPPED),
            })
        });
        let before = before.ok()?;
        if before.kind() == Kind::Both {
            return Some(Left::Demoted(self.leave_parent(slot, 1, 0)));
        }
        if !leaf {
            self.holes.fetch_add(1, Ordering::Relaxed);
            return Some(Left::Hole(self.leave_parent(slot, 1, 0)));
        }
        self.bins.prefetch(self.bins.place(header.key()));
        Some(Left::Gone(self.leave_parent(slot, 1, 1)))
    }

    /// Whether an SSD copy can't leave now: it is in RAM too, or a pin, hold or child keeps it. If
    /// so it is flagged, as in `stays`.
    pub(crate) fn stays_on_ssd(&self, slot: Slot) -> bool {
        let header = self.header(slot);
        let has_kids = header.kids().1 > 0;
        let kept = |s: State| has_kids || !s.idle() || s.kind() != Kind::Ssd || s.has(HIDDEN);
        let flagged =
            header.update(|s| (kept(s) && !s.has(SKIPPED_ON_SSD)).then(|| s.with(SKIPPED_ON_SSD)));
        flagged.map_or_else(kept, |_| true)
    }

    /// Takes a block that is only on SSD out of the store, as `evict`; its SSD slot is free.
    pub(crate) fn evict_from_ssd(&self, slot: Slot) -> Option<(Gone, SsdSlot)> {
        let header = self.header(slot);
        let leaf = header.kids().1 == 0;
        let goes = |s: State| leaf && s.idle() && s.kind() == Kind::Ssd && !s.has(HIDDEN);
        header.update(|s| goes(s).then(|| s.freed())).ok()?;
        let ssd = header.ssd_slot().expect("a block on SSD has a slot");
        Some((self.leave_parent(slot, 0, 1), ssd))
    }

    /// Asks for the bin of a key that will be entered soon.
    pub(crate) fn fetch_bin(&self, key: crate::key::Key) {
        self.bins.prefetch(self.bins.place(key.words()));
    }

    /// Asks for a header that will be read soon.
    pub(crate) fn fetch_header(&self, slot: Slot) {
        super::prefetch(self.header(slot));
    }

    /// After the word has changed: what the block was; its parent has so many children less.
    fn leave_parent(&self, slot: Slot, ram: i32, any: i32) -> Gone {
        let header = self.header(slot);
        let (frame, len) = header.located();
        if let Some((parent, generation)) = header.parent() {
            debug_assert_eq!(self.header(parent).state().generation(), generation);
            self.lose_child(parent, -ram, -any);
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

    pub(super) fn lose_child(&self, parent: Slot, ram: i32, any: i32) {
        let header = self.header(parent);
        header.add_kids(ram, any);
        if header.kids().0 > 0 {
            return;
        }
        // Pinned or held: its last unpin wakes it.
        let wake = |s: State| s.has(AWAITED) && s.idle();
        if header.update(|s| wake(s).then(|| s.with(QUEUED))).is_ok() {
            self.wake(parent);
        }
    }

    /// For an insert event: counts the block with its parent. `refilled`: it was counted as a
    /// child before it had bytes. The event's pins stand for the counts until now.
    pub(crate) fn count_child(&self, slot: Slot, refilled: bool, in_ram: bool) {
        if let Some((parent, generation)) = self.header(slot).parent() {
            let header = self.header(parent);
            assert_eq!(header.state().generation(), generation, "a pinned parent was freed");
            header.add_kids(i32::from(in_ram), i32::from(!refilled));
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
            |s: State| s.generation() == generation && s.kind().is_there() && !s.has(HIDDEN);
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
        let before = header.update(|s| Some(s.without(QUEUED | AWAITED)));
        let Ok(before) = before else { unreachable!("the step refuses nothing") };
        let waits = !before.kind().is_there() || before.has(HIDDEN);
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
            let gone = self.leave_parent(slot, i32::from(before.kind() == Kind::Ram), 1);
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
