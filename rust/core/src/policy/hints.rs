//! What callers know: blocks that will not be asked for again, and blocks that will, for a while.
//!
//! Owns: a line of retired blocks before the policy and a set of retained ones behind it. Never
//! does: change the policy's own order; every block here is in it too. Invariants: victims come
//! from the line, oldest first; then from the policy, which passes over retained blocks; then from
//! the retained, the soonest deadline first. So a hint is never a reason to refuse room. At most
//! `retained_max` blocks are retained; one more lets the soonest deadline go. A block is on the
//! line or retained, never both.

use super::order::Order;
use super::{Fingerprint, Policy, Residents, Search};
use crate::units::Slot;
use std::collections::{BTreeMap, HashMap};

/// A retained block's place: its deadline, then the order of the calls.
type Deadline = (u64, u64);

/// A policy with hints.
pub(crate) struct Hints {
    policy: Box<dyn Policy>,
    slots: u32,
    /// Made when the first block is retired.
    retired: Option<Order<1>>,
    deadlines: HashMap<u32, Deadline>,
    retained: BTreeMap<Deadline, u32>,
    retained_max: usize,
    calls: u64,
    /// Where a search among the retained stopped: those before it can't leave.
    resume: Option<Deadline>,
}

/// Retained blocks stay as far as the policy is concerned.
struct Kept<'a> {
    who: &'a dyn Residents,
    deadlines: &'a HashMap<u32, Deadline>,
}

impl Residents for Kept<'_> {
    fn stays(&self, slot: Slot) -> bool {
        self.who.stays(slot) || (!self.deadlines.is_empty() && self.deadlines.contains_key(&slot.0))
    }

    fn soon(&self, slot: Slot) {
        self.who.soon(slot);
    }
}

/// Retired blocks may leave although their bytes are nowhere else.
struct GivenUp<'a>(&'a dyn Residents);

impl Residents for GivenUp<'_> {
    fn stays(&self, slot: Slot) -> bool {
        self.0.stays_retired(slot)
    }
}

impl Hints {
    pub(crate) fn new(policy: Box<dyn Policy>, slots: u32, retained_max: usize) -> Self {
        Self {
            policy,
            slots,
            retired: None,
            deadlines: HashMap::new(),
            retained: BTreeMap::new(),
            retained_max,
            calls: 0,
            resume: None,
        }
    }

    /// Puts a block at the end of the line of those to leave first.
    pub(crate) fn retire(&mut self, slot: Slot) {
        if !self.contains(slot) {
            return;
        }
        self.release(slot);
        let retired = self.retired.get_or_insert_with(|| Order::new(self.slots));
        retired.remove(slot);
        retired.push(0, slot);
    }

    /// Whether the block is kept until a deadline.
    pub(crate) fn is_retained(&self, slot: Slot) -> bool {
        !self.retained.is_empty() && self.deadlines.contains_key(&slot.0)
    }

    /// Whether the block is on the line of those to leave first.
    pub(crate) fn is_retired(&self, slot: Slot) -> bool {
        self.retired.as_ref().is_some_and(|retired| retired.list_of(slot).is_some())
    }

    /// Takes a block out of the line, for it was used after all; whether it stood there.
    pub(crate) fn take_back(&mut self, slot: Slot) -> bool {
        let stood = self.is_retired(slot);
        if let Some(retired) = self.retired.as_mut().filter(|_| stood) {
            retired.remove(slot);
        }
        stood
    }

    /// Keeps a block until its deadline as long as anything else can leave; false where others
    /// with later deadlines fill the room for retained blocks.
    pub(crate) fn retain(&mut self, slot: Slot, deadline_us: u64) -> bool {
        if !self.contains(slot) || self.retained_max == 0 {
            return false;
        }
        self.take_back(slot);
        self.release(slot);
        self.calls += 1;
        let deadline = (deadline_us, self.calls);
        self.deadlines.insert(slot.0, deadline);
        self.retained.insert(deadline, slot.0);
        self.resume = None;
        if self.retained.len() > self.retained_max
            && let Some((_, soonest)) = self.retained.first_key_value()
        {
            self.release(Slot(*soonest));
        }
        self.deadlines.contains_key(&slot.0)
    }

    /// Ends the retention of a block, if it has one.
    pub(crate) fn release(&mut self, slot: Slot) {
        if self.let_go(slot) {
            self.policy.wake(slot);
        }
    }

    /// Ends what is past its deadline; each costs one of `budget`. The time is asked for only
    /// where something is retained.
    pub(crate) fn expire(&mut self, now_us: impl FnOnce() -> u64, budget: &mut u32) {
        if self.retained.is_empty() {
            return;
        }
        let now_us = now_us();
        while let Some(((deadline_us, _), slot)) = self.retained.first_key_value() {
            if *deadline_us > now_us || *budget == 0 {
                return;
            }
            *budget -= 1;
            self.release(Slot(*slot));
        }
    }

    fn let_go(&mut self, slot: Slot) -> bool {
        if self.retained.is_empty() {
            return false;
        }
        let Some(deadline) = self.deadlines.remove(&slot.0) else { return false };
        self.retained.remove(&deadline);
        true
    }

    /// Drops all hints of a block that is leaving.
    fn drop_hints(&mut self, slot: Slot) {
        self.take_back(slot);
        self.let_go(slot);
    }

    /// The retained block of the soonest deadline that can leave.
    fn soonest(&mut self, who: &dyn Residents, budget: &mut u32) -> Search {
        let from = self.resume.take().unwrap_or_default();
        for (deadline, slot) in self.retained.range(from..) {
            if *budget == 0 {
                self.resume = Some(*deadline);
                return Search::Again;
            }
            *budget -= 1;
            if !who.stays(Slot(*slot)) {
                return Search::Victim(Slot(*slot));
            }
        }
        Search::Nothing
    }
}

impl Policy for Hints {
    fn insert(&mut self, slot: Slot, key: Fingerprint, class: u8, who: &dyn Residents) {
        let who = Kept { who, deadlines: &self.deadlines };
        self.policy.insert(slot, key, class, &who);
    }

    fn touch(&mut self, slot: Slot, who: &dyn Residents) {
        self.take_back(slot);
        let who = Kept { who, deadlines: &self.deadlines };
        self.policy.touch(slot, &who);
    }

    fn wake(&mut self, slot: Slot) {
        self.policy.wake(slot);
        if let Some(retired) = &mut self.retired {
            retired.wake(slot);
        }
        if !self.deadlines.is_empty() && self.deadlines.contains_key(&slot.0) {
            self.resume = None;
        }
    }

    fn victim(
        &mut self,
        incoming: Option<Fingerprint>,
        who: &dyn Residents,
        budget: &mut u32,
    ) -> Search {
        let given_up = GivenUp(who);
        let first = self.retired.as_mut().map(|retired| retired.oldest(0, &given_up, budget));
        if let Some(found @ (Search::Victim(_) | Search::Again)) = first {
            return found;
        }
        let kept = Kept { who, deadlines: &self.deadlines };
        match self.policy.victim(incoming, &kept, budget) {
            Search::Nothing => self.soonest(who, budget),
            found => found,
        }
    }

    fn leave(&mut self, slot: Slot, key: Fingerprint, incoming: Option<Fingerprint>) {
        self.drop_hints(slot);
        self.policy.leave(slot, key, incoming);
    }

    fn admit(&mut self, key: Fingerprint) {
        self.policy.admit(key);
    }

    fn withdraw(&mut self, key: Fingerprint) {
        self.policy.withdraw(key);
    }

    fn upcoming(&mut self, within: u64) -> Option<Slot> {
        self.policy.upcoming(within)
    }

    fn name_again(&mut self) {
        self.policy.name_again();
    }

    fn rewind(&mut self) {
        if let Some(retired) = &mut self.retired {
            retired.rewind();
        }
        self.policy.rewind();
        self.resume = None;
    }

    fn forget(&mut self, slot: Slot) {
        self.drop_hints(slot);
        self.policy.forget(slot);
    }

    fn contains(&self, slot: Slot) -> bool {
        self.policy.contains(slot)
    }

    fn len(&self) -> u64 {
        self.policy.len()
    }

    fn steps(&self) -> u64 {
        self.policy.steps() + self.retired.as_ref().map_or(0, Order::steps)
    }

    fn bytes(&self) -> u64 {
        self.policy.bytes() + self.retired.as_ref().map_or(0, Order::bytes)
    }

    fn tables(&self) -> Vec<&[u8]> {
        self.policy.tables()
    }

    fn validate(&self) -> Vec<Slot> {
        let slots = self.policy.validate();
        for slot in self.retired.iter().flat_map(|retired| retired.validate(0)) {
            assert!(self.contains(slot), "slot {} is retired and not here", slot.0);
            assert!(!self.deadlines.contains_key(&slot.0), "slot {} has two hints", slot.0);
        }
        assert_eq!(self.retained.len(), self.deadlines.len(), "retained blocks");
        assert!(self.retained.len() <= self.retained_max, "retained blocks");
        for (deadline, slot) in &self.retained {
            assert_eq!(self.deadlines.get(slot), Some(deadline), "the deadline of slot {slot}");
            assert!(self.contains(Slot(*slot)), "slot {slot} is retained and not here");
        }
        slots
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Lru;
    use super::*;

    struct Except(Vec<u32>);

    impl Residents for Except {
        fn stays(&self, slot: Slot) -> bool {
            self.0.contains(&slot.0)
        }
    }

    fn six() -> Hints {
        let mut hints = Hints::new(Box::new(Lru::new(8)), 8, 3);
        (0..6).for_each(|n| hints.insert(Slot(n), [0; 2], 0, &Except(vec![])));
        hints
    }

    fn leave_all(hints: &mut Hints, stay: &[u32]) -> Vec<u32> {
        let mut left = Vec::new();
        let who = Except(stay.to_vec());
        while let Search::Victim(slot) = hints.victim(None, &who, &mut u32::MAX.clone()) {
            hints.leave(slot, [0; 2], None);
            hints.validate();
            left.push(slot.0);
        }
        left
    }

    #[test]
    fn retired_blocks_leave_first_and_retained_ones_last() {
        let mut hints = six();
        hints.retire(Slot(5));
        hints.retire(Slot(4));
        assert!(hints.retain(Slot(0), 20) && hints.retain(Slot(1), 10));
        assert_eq!(leave_all(&mut hints, &[]), [5, 4, 2, 3, 1, 0]);
    }

    #[test]
    fn a_touch_takes_a_retired_block_back() {
        let mut hints = six();
        hints.retire(Slot(5));
        hints.touch(Slot(5), &Except(vec![]));
        assert_eq!(leave_all(&mut hints, &[]), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_retained_block_goes_its_old_way_after_its_deadline() {
        let mut hints = six();
        assert!(hints.retain(Slot(0), 10) && hints.retain(Slot(1), 20));
        assert_eq!(hints.victim(None, &Except(vec![]), &mut 9), Search::Victim(Slot(2)));
        hints.expire(|| 10, &mut 9);
        assert_eq!(leave_all(&mut hints, &[]), [0, 2, 3, 4, 5, 1]);
    }

    #[test]
    fn the_soonest_deadline_yields_when_too_many_are_retained() {
        let mut hints = six();
        for (slot, deadline) in [(3, 30), (4, 40), (5, 50)] {
            assert!(hints.retain(Slot(slot), deadline));
        }
        assert!(!hints.retain(Slot(0), 10), "sooner than all others");
        assert!(hints.retain(Slot(1), 60), "later: 3 yields");
        assert_eq!(leave_all(&mut hints, &[]), [0, 2, 3, 4, 5, 1]);
    }

    #[test]
    fn pinned_blocks_stay_whatever_the_hint() {
        let mut hints = six();
        hints.retire(Slot(0));
        assert!(hints.retain(Slot(1), 10));
        assert_eq!(leave_all(&mut hints, &[0, 1]), [2, 3, 4, 5]);
        hints.wake(Slot(0));
        hints.wake(Slot(1));
        assert_eq!(leave_all(&mut hints, &[]), [0, 1]);
    }

    #[test]
    fn a_search_among_the_retained_goes_on_where_it_stopped() {
        let mut hints = six();
        for slot in 0..3 {
            assert!(hints.retain(Slot(slot), 10 + u64::from(slot)));
        }
        let others = Except(vec![0, 1, 3, 4, 5]);
        let mut holds = 0;
        let found = loop {
            match hints.victim(None, &others, &mut 1) {
                Search::Again => holds += 1,
                found => break found,
            }
        };
        assert_eq!(found, Search::Victim(Slot(2)));
        assert!(holds < 12, "{holds}");
    }
}
