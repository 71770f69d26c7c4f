//! Who leaves next.
//!
//! Owns: the order of blocks and, where a policy has them, ghosts. Never does: see bytes, headers
//! or pins; it learns through `Residents` whether a block can leave. Invariants: a policy holds
//! exactly the slots inserted and not yet left or forgotten; a victim is exact (the one that a scan
//! of the whole order would find first); nothing changes until a victim has really left.

mod arc;
mod ghost;
mod hints;
mod lru;
mod order;

pub(crate) use arc::Arc;
pub(crate) use hints::Hints;
pub(crate) use lru::Lru;

use crate::units::Slot;

/// 128 bits that name a block across its residencies: what a ghost keeps.
pub(crate) type Fingerprint = [u64; 2];

/// What a policy may ask about a block.
pub(crate) trait Residents {
    /// Whether the block can't leave now. If so it is marked, and `Policy::wake` is called once
    /// its last pin, hold or child has gone.
    fn stays(&self, slot: Slot) -> bool;

    /// The same for a block that its user has given up: it may leave although its bytes are
    /// nowhere else.
    fn stays_retired(&self, slot: Slot) -> bool {
        self.stays(slot)
    }

    /// This one will probably be asked about next: its memory may be fetched ahead.
    fn soon(&self, _slot: Slot) {}
}

/// How the search for a victim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// This one should leave; `leave` confirms that it did.
    Victim(Slot),
    /// Nothing can leave.
    Nothing,
    /// The budget is used up; the search goes on where it stopped.
    Again,
}

/// An eviction policy. One thread at a time calls it, under the keeper's lock.
pub(crate) trait Policy: Send {
    /// A block has come; the caller guarantees it is not here. Moves the young end, and now and
    /// then looks at some blocks at the old one. `class` is for policies that learn.
    fn insert(&mut self, slot: Slot, key: Fingerprint, class: u8, who: &dyn Residents);

    /// A block was delivered to a caller. Unknown slots are ignored: a touch may come before the
    /// insert event of its block, or after its end.
    fn touch(&mut self, slot: Slot, who: &dyn Residents);

    /// A block for which `stays` was true may be able to leave again.
    fn wake(&mut self, slot: Slot);

    /// The block to leave for `incoming` (none: a frame is wanted ahead). Pure but for the
    /// position of the search: asked again without a `leave`, the answer is the same or, where
    /// that block can't leave any more, the next. Each block looked at costs one of `budget`.
    fn victim(
        &mut self,
        incoming: Option<Fingerprint>,
        who: &dyn Residents,
        budget: &mut u32,
    ) -> Search;

    /// The victim found for `incoming` has left: ghosts and adaptive state change now.
    fn leave(&mut self, slot: Slot, key: Fingerprint, incoming: Option<Fingerprint>);

    /// A frame that was free is taken for this block: its arrival counts from here on, without a
    /// victim. Not needed before `insert`, but for several arrivals decided before any insert.
    fn admit(&mut self, _key: Fingerprint) {}

    /// A block that was admitted, or for which a victim left, was not stored after all.
    fn withdraw(&mut self, _key: Fingerprint) {}

    /// The next block, oldest first, among the `within` oldest of its list that this has not named
    /// since it was inserted or touched: a victim to come.
    fn upcoming(&mut self, within: u64) -> Option<Slot>;

    /// `upcoming` begins again with the oldest.
    fn name_again(&mut self);

    /// Which blocks stay has changed for many at once, without wakes: all are looked at again.
    fn rewind(&mut self);

    /// A block was removed by name: no ghost. Unknown slots are ignored.
    fn forget(&mut self, slot: Slot);

    /// Whether the slot is in the order.
    fn contains(&self, slot: Slot) -> bool;

    /// Blocks in the order.
    fn len(&self) -> u64;

    /// Blocks looked at by all searches so far.
    fn steps(&self) -> u64;

    /// Bytes of the policy's own memory.
    fn bytes(&self) -> u64;

    /// Large tables, still untouched when the policy is new: their owner may ask for huge pages.
    fn tables(&self) -> Vec<&[u8]>;

    /// Walks every list; panics where a link, stamp or count is wrong. The slots, oldest first.
    fn validate(&self) -> Vec<Slot>;
}
