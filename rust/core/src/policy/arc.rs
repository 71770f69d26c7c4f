//! ARC, the adaptive replacement cache (Megiddo & Modha, FAST'03, figure 4), over blocks some of
//! which can't leave.
//!
//! T1 holds blocks seen once lately, T2 those seen again; B1 and B2 are the ghosts of what left
//! them, and p the size aimed at for T1, moved by ghost hits only. What differs from the paper: the
//! victim is the oldest block *that can leave* of the list that REPLACE names, else of the other;
//! its ghost stays on the side it was on. With everything free to leave it is the paper's ARC.
//!
//! Invariants, with c frames: |T1| + |T2| <= c, |T1| + |B1| <= c, all four <= 2c, 0 <= p <= c. A
//! block that has its room but is not inserted yet counts as being on its list (`coming`), so that
//! a batch whose victims are all chosen first ends as if its blocks had come one by one.

use super::ghost::{Ghosts, same};
use super::order::Order;
use super::{Fingerprint, Policy, Residents, Search};
use crate::units::Slot;
use std::collections::VecDeque;

/// T1 and B1; T2 and B2.
const ONCE: usize = 0;
const AGAIN: usize = 1;

/// The policy.
pub(crate) struct Arc {
    order: Order<2>,
    ghosts: Ghosts,
    /// Blocks whose case has run: where they will be inserted, in the order of their cases.
    coming: VecDeque<(Fingerprint, usize)>,
    coming_to: [u64; 2],
    capacity: u64,
    aim: f64,
    /// The case of the last victim found, for the `leave` that follows at once.
    found_for: Option<(Fingerprint, Case)>,
}

/// What the arrival of a block will change, computed without changing it.
#[derive(Clone, Copy)]
struct Case {
    aim: f64,
    into: usize,
    was_ghost: bool,
    /// The ghost list whose oldest is forgotten.
    forget: Option<usize>,
    /// REPLACE takes from T1 where its size equals the aim.
    tie_to_once: bool,
    /// The victim leaves without a ghost: T1 fills the whole cache.
    without_ghost: bool,
}

impl Arc {
    /// A policy over `slots` slots of which at most `capacity` are in RAM at a time.
    /// `dense`: fingerprints are small numbers, not keys.
    pub(crate) fn new(slots: u32, capacity: u32, dense: bool) -> Self {
        Self {
            order: Order::new(slots),
            ghosts: Ghosts::new(if dense { slots } else { capacity } as usize, dense),
            coming: VecDeque::new(),
            coming_to: [0; 2],
            capacity: u64::from(capacity),
            aim: 0.0,
            found_for: None,
        }
    }

    fn size(&self, list: usize) -> u64 {
        self.order.len(list) + self.coming_to[list]
    }

    /// Cases II to IV of the paper; a block in RAM is case I, a touch.
    #[inline]
    fn case(&self, key: Fingerprint) -> Case {
        let (t1, t2) = (self.size(ONCE), self.size(AGAIN));
        let (b1, b2) = (self.ghosts.len(ONCE), self.ghosts.len(AGAIN));
        let capacity = self.capacity;
        let case = self.no_case();
        let ghost = Case { into: AGAIN, was_ghost: true, ..case };
        match self.ghosts.list_of(key) {
            Some(ONCE) => {
                let step = (b2 as f64 / b1 as f64).max(1.0);
                Case { aim: (self.aim + step).min(capacity as f64), ..ghost }
            }
            Some(_) => {
                let step = (b1 as f64 / b2 as f64).max(1.0);
                Case { aim: (self.aim - step).max(0.0), tie_to_once: true, ..ghost }
            }
            None if t1 + b1 >= capacity => {
                let without_ghost = b1 == 0;
                Case { forget: Some(ONCE), without_ghost, ..case }
            }
            None if t1 + t2 + b1 + b2 >= 2 * capacity => Case { forget: Some(AGAIN), ..case },
            None => case,
        }
    }

    fn no_case(&self) -> Case {
        Case {
            aim: self.aim,
            into: ONCE,
            was_ghost: false,
            forget: None,
            tie_to_once: false,
            without_ghost: false,
        }
    }

    /// The arrival is certain: p, ghosts, and the place that waits for the block.
    fn apply(&mut self, case: &Case, key: Fingerprint) {
        self.aim = case.aim;
        if case.was_ghost {
            self.ghosts.remove(key);
        }
        if let Some(list) = case.forget {
            self.ghosts.drop_oldest(list);
        }
        self.coming.push_back((key, case.into));
        self.coming_to[case.into] += 1;
    }

    #[inline]
    fn arrive(&mut self, key: Fingerprint) -> Option<usize> {
        // Blocks are inserted in the order of their cases, but for those that were not stored.
        let (_, list) = match self.coming.front() {
            Some((first, _)) if same(*first, key) => self.coming.pop_front()?,
            _ => {
                let at = self.coming.iter().position(|(coming, _)| *coming == key)?;
                self.coming.remove(at)?
            }
        };
        self.coming_to[list] -= 1;
        Some(list)
    }
}

impl Policy for Arc {
    fn insert(&mut self, slot: Slot, key: Fingerprint, _class: u8, who: &dyn Residents) {
        self.found_for = None;
        let list = self.arrive(key).or_else(|| {
            self.admit(key);
            self.arrive(key)
        });
        self.order.push(list.unwrap_or(ONCE), slot);
        self.order.advance(who);
    }

    fn touch(&mut self, slot: Slot, who: &dyn Residents) {
        if self.contains(slot) {
            self.found_for = None;
            self.order.remove(slot);
            self.order.push(AGAIN, slot);
            self.order.advance(who);
        }
    }

    fn wake(&mut self, slot: Slot) {
        self.order.wake(slot);
    }

    fn victim(
        &mut self,
        incoming: Option<Fingerprint>,
        who: &dyn Residents,
        budget: &mut u32,
    ) -> Search {
        let case = incoming.map_or_else(|| self.no_case(), |key| self.case(key));
        let t1 = self.size(ONCE) as f64;
        let once = t1 >= 1.0 && (t1 > case.aim || (case.tie_to_once && t1 == case.aim));
        let named = if once || case.without_ghost { ONCE } else { AGAIN };
        self.found_for = incoming.map(|key| (key, case));
        match self.order.oldest(named, who, budget) {
            Search::Nothing => self.order.oldest(1 - named, who, budget),
            found => found,
        }
    }

    fn leave(&mut self, slot: Slot, key: Fingerprint, incoming: Option<Fingerprint>) {
        // Nothing has changed since the search; where something has, the case is computed anew.
        let found_for = self.found_for.take().filter(|(key, _)| Some(*key) == incoming);
        let case = match (incoming, found_for) {
            (Some(_), Some((_, case))) => case,
            (Some(key), None) => self.case(key),
            (None, _) => self.no_case(),
        };
        if let Some(incoming) = incoming {
            self.apply(&case, incoming);
        }
        let Some(list) = self.order.list_of(slot) else { return };
        self.order.remove(slot);
        if !case.without_ghost {
            self.ghosts.push(list, key);
        }
    }

    fn admit(&mut self, key: Fingerprint) {
        self.found_for = None;
        let case = self.case(key);
        self.apply(&case, key);
    }

    fn withdraw(&mut self, key: Fingerprint) {
        self.found_for = None;
        self.arrive(key);
    }

    fn upcoming(&mut self, within: u64) -> Option<Slot> {
        [ONCE, AGAIN].into_iter().find_map(|list| self.order.upcoming(list, within))
    }

    fn name_again(&mut self) {
        self.order.name_again();
    }

    fn rewind(&mut self) {
        self.found_for = None;
        self.order.rewind();
    }

    fn forget(&mut self, slot: Slot) {
        self.found_for = None;
        self.order.remove(slot);
    }

    fn contains(&self, slot: Slot) -> bool {
        self.order.list_of(slot).is_some()
    }

    fn len(&self) -> u64 {
        self.order.len(ONCE) + self.order.len(AGAIN)
    }

    fn steps(&self) -> u64 {
        self.order.steps()
    }

    fn bytes(&self) -> u64 {
        self.order.bytes() + self.ghosts.bytes()
    }

    fn tables(&self) -> Vec<&[u8]> {
        vec![self.order.table(), self.ghosts.table()]
    }

    fn validate(&self) -> Vec<Slot> {
        let mut slots = self.order.validate(ONCE);
        slots.extend(self.order.validate(AGAIN));
        let (t1, t2) = (self.size(ONCE), self.size(AGAIN));
        let (b1, b2) = (self.ghosts.len(ONCE), self.ghosts.len(AGAIN));
        let c = self.capacity;
        assert!(t1 + t2 <= c, "|T1| + |T2| = {} of {c}", t1 + t2);
        assert!(t1 + b1 <= c, "|T1| + |B1| = {} of {c}", t1 + b1);
        assert!(t1 + t2 + b1 + b2 <= 2 * c, "all four lists: {} of {}", t1 + t2 + b1 + b2, 2 * c);
        assert!((0.0..=c as f64).contains(&self.aim), "p = {} of {c}", self.aim);
        for list in [ONCE, AGAIN] {
            assert_eq!(self.ghosts.validate(list).len() as u64, self.ghosts.len(list));
        }
        slots
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
