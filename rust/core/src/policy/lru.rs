//! Least recently used, exact, among the blocks that can leave.
//!
//! `Lru::fifo` is the same order without touches: first in, first out, in replay a yardstick.
//! With touches and inserts tail first (see `store`) a head outlives its tail, so that prefix hits
//! equal plain hits.

use super::order::Order;
use super::{Fingerprint, Policy, Residents, Search};
use crate::units::Slot;

/// One list, youngest last.
pub(crate) struct Lru {
    order: Order<1>,
    touches: bool,
}

impl Lru {
    pub(crate) fn new(slots: u32) -> Self {
        Self { order: Order::new(slots), touches: true }
    }

    /// The order of arrival.
    pub(crate) fn fifo(slots: u32) -> Self {
        Self { touches: false, ..Self::new(slots) }
    }
}

impl Policy for Lru {
    fn insert(&mut self, slot: Slot, _key: Fingerprint, _class: u8, who: &dyn Residents) {
        self.order.push(0, slot);
        self.order.advance(who);
    }

    fn touch(&mut self, slot: Slot, who: &dyn Residents) {
        if self.touches && self.contains(slot) {
            self.order.remove(slot);
            self.order.push(0, slot);
            self.order.advance(who);
        }
    }

    fn wake(&mut self, slot: Slot) {
        self.order.wake(slot);
    }

    fn victim(
        &mut self,
        _incoming: Option<Fingerprint>,
        who: &dyn Residents,
        budget: &mut u32,
    ) -> Search {
        self.order.oldest(0, who, budget)
    }

    fn leave(&mut self, slot: Slot, _key: Fingerprint, _incoming: Option<Fingerprint>) {
        self.order.remove(slot);
    }

    fn upcoming(&mut self, within: u64) -> Option<Slot> {
        self.order.upcoming(0, within)
    }

    fn name_again(&mut self) {
        self.order.name_again();
    }

    fn rewind(&mut self) {
        self.order.rewind();
    }

    fn forget(&mut self, slot: Slot) {
        self.order.remove(slot);
    }

    fn contains(&self, slot: Slot) -> bool {
        self.order.list_of(slot).is_some()
    }

    fn len(&self) -> u64 {
        self.order.len(0)
    }

    fn steps(&self) -> u64 {
        self.order.steps()
    }

    fn bytes(&self) -> u64 {
        self.order.bytes()
    }

    fn tables(&self) -> Vec<&[u8]> {
        vec![self.order.table()]
    }

    fn validate(&self) -> Vec<Slot> {
        self.order.validate(0)
    }
}
