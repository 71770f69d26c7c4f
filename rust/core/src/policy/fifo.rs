//! First in, first out, among the blocks that can leave; in replay only, as a yardstick.

use super::order::Order;
use super::{Fingerprint, Policy, Residents, Search};
use crate::units::Slot;

/// One list, in the order of arrival.
pub(crate) struct Fifo {
    order: Order<1>,
}

impl Fifo {
    pub(crate) fn new(slots: u32) -> Self {
        Self { order: Order::new(slots) }
    }
}

impl Policy for Fifo {
    fn insert(&mut self, slot: Slot, _key: Fingerprint, _class: u8, who: &dyn Residents) {
        self.order.push(0, slot);
        self.order.advance(who);
    }

    fn touch(&mut self, _slot: Slot, _who: &dyn Residents) {}

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

    fn validate(&self) -> Vec<Slot> {
        self.order.validate(0)
    }
}
