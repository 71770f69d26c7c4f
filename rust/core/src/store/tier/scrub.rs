//! What the online scrub asks of the tier: which slots have a block, and a read of one.
//!
//! Owns: the choice of the next slot. Never does: wait, or judge a payload: `stage` does.
//! Invariants: at most `SCAN_MAX` records are looked at in one hold; a block is read under the pin
//! that is handed out with the read.

use super::{Ticket, Tier, With};
use crate::directory::Entry;
use crate::units::{FrameId, SsdSlot};

/// Records looked at in one hold: tens of microseconds.
const SCAN_MAX: u32 = 2048;

/// A read for the scrub.
pub(in crate::store) enum Begun {
    /// It is on its way; the block is pinned.
    Read { entry: Entry, len: u32, ticket: Ticket },
    /// The device is left alone.
    Refused,
    /// There is no block any more that lookups see.
    Gone,
}

impl Tier {
    /// The next slot from `from` on that has a record, or where to go on looking, or neither: the
    /// end.
    pub(in crate::store) fn next_on_ssd(&self, from: u32) -> Option<(SsdSlot, bool)> {
        let slots = self.devices.slots();
        let until = from.saturating_add(SCAN_MAX).min(slots);
        let used = (from..until).find(|slot| !self.devices.record(SsdSlot(*slot)).is_free());
        match used {
            Some(slot) => Some((SsdSlot(slot), true)),
            None => (until < slots).then_some((SsdSlot(until), false)),
        }
    }

    /// Whose record a slot has.
    #[cfg(all(test, not(loom)))]
    pub(in crate::store) fn key_of(&self, ssd: SsdSlot) -> crate::key::Key {
        self.devices.record(ssd).key
    }

    /// Pins the block in a slot and begins its read into a staging frame, which is the caller's
    /// again unless the read is on its way.
    pub(in crate::store) fn verify(
        &mut self,
        with: &mut With<'_>,
        ssd: SsdSlot,
        frame: FrameId,
    ) -> Begun {
        let directory = &with.parts.directory;
        let record = *self.devices.record(ssd);
        let found = (!record.is_free()).then(|| directory.find_one(record.key)).flatten();
        let here = |it: &Entry| directory.ssd_slot_of(it.slot) == Some(ssd);
        let pinned = |it: &Entry| directory.pin(it.slot, it.generation);
        let Some(entry) = found.filter(here).filter(pinned) else { return Begun::Gone };
        match self.peek(with, &entry, frame) {
            Some(ticket) => Begun::Read { entry, len: record.len, ticket },
            None => {
                directory.unpin(entry.slot);
                Begun::Refused
            }
        }
    }

    /// After a read of a block, still pinned, that did not end well: `Some(true)` where its copy
    /// turned out bad, `Some(false)` where it could not be read, `None` where it was removed.
    pub(in crate::store) fn was_bad(
        &self,
        with: &With<'_>,
        ssd: SsdSlot,
        entry: &Entry,
    ) -> Option<bool> {
        let directory = &with.parts.directory;
        let given_up = directory.ssd_slot_of(entry.slot) != Some(ssd);
        directory.is_shown(entry.slot).then(|| given_up || self.devices.record(ssd).is_free())
    }
}
