//! Tests of free slots: against plain sets, and that a nearly full disk costs no search.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[test]
fn slots_are_handed_out_forward() {
    let mut slots = Slots::new(200);
    let taken: Vec<u32> = (0..200).map_while(|_| slots.take()).map(|slot| slot.0).collect();
    assert_eq!(taken, (0..200).collect::<Vec<_>>());
    assert_eq!(slots.take(), None);
    slots.give(SsdSlot(150));
    slots.give(SsdSlot(3));
    assert_eq!(slots.take(), Some(SsdSlot(3)));
    slots.give(SsdSlot(2));
    // Onward first, and only then from the beginning.
    assert_eq!(slots.take(), Some(SsdSlot(150)));
    assert_eq!(slots.take(), Some(SsdSlot(2)));
    assert_eq!((slots.free(), slots.used(), slots.quarantined()), (0, 200, 0));
}

#[test]
fn quarantine_is_for_good() {
    let mut slots = Slots::new(3);
    let first = slots.take().expect("free");
    slots.quarantine(first);
    slots.quarantine(first);
    slots.quarantine(SsdSlot(2));
    assert_eq!((slots.free(), slots.used(), slots.quarantined()), (1, 0, 2));
    slots.give(first);
    assert_eq!((slots.free(), slots.used(), slots.quarantined()), (1, 0, 2));
    assert_eq!(slots.take(), Some(SsdSlot(1)));
    assert_eq!(slots.take(), None);
    assert!(slots.is_quarantined(first) && !slots.is_free(first));
}

/// Word by word this would take minutes.
#[test]
fn one_free_slot_of_ten_million_is_found_at_once() {
    let mut bits = Bits::new(10_000_000);
    for at in 0..200_000_u32 {
        let slot = at.wrapping_mul(2_654_435_761) % 10_000_000;
        bits.insert(slot);
        assert_eq!(bits.next(0), Some(slot));
        assert_eq!(bits.next(slot + 1), None);
        bits.remove(slot);
    }
    assert_eq!(bits.next(0), None);
}

#[derive(Clone, Debug)]
enum Step {
    Take,
    /// The n-th used slot comes back.
    Give(usize),
    Quarantine(u32),
    MarkUsed(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Take),
        4 => any::<usize>().prop_map(Step::Give),
        1 => any::<u32>().prop_map(Step::Quarantine),
        1 => any::<u32>().prop_map(Step::MarkUsed),
    ]
}

proptest! {
    #[test]
    fn a_slot_is_free_used_or_quarantined(
        bound in prop_oneof![1..=3_u32, 60..70_u32, 4090..4100_u32],
        prefix in 0..5000_u32,
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut slots = Slots::new(bound);
        let mut free: BTreeSet<u32> = (0..bound).collect();
        let (mut used, mut bad) = (BTreeSet::new(), BTreeSet::new());
        let mut cursor = 0;
        for slot in 0..prefix.min(bound) {
            slots.mark_used(SsdSlot(slot));
            free.remove(&slot);
            used.insert(slot);
        }
        for step in steps {
            match step {
                Step::Take => {
                    let next = free.range(cursor..).next().or_else(|| free.first()).copied();
                    prop_assert_eq!(slots.take(), next.map(SsdSlot));
                    if let Some(slot) = next {
                        free.remove(&slot);
                        used.insert(slot);
                        cursor = slot + 1;
                    }
                }
                Step::Give(which) => {
                    if let Some(&slot) = used.iter().nth(which % used.len().max(1)) {
                        used.remove(&slot);
                        free.insert(slot);
                        slots.give(SsdSlot(slot));
                    }
                }
                Step::Quarantine(slot) => {
                    let slot = slot % bound;
                    slots.quarantine(SsdSlot(slot));
                    free.remove(&slot);
                    used.remove(&slot);
                    bad.insert(slot);
                }
                Step::MarkUsed(slot) => {
                    let slot = slot % bound;
                    slots.mark_used(SsdSlot(slot));
                    if free.remove(&slot) {
                        used.insert(slot);
                    }
                }
            }
            let counts = (slots.free() as usize, slots.used() as usize);
            prop_assert_eq!(counts, (free.len(), used.len()));
            prop_assert_eq!(slots.quarantined() as usize, bad.len());
        }
        for slot in 0..bound {
            prop_assert_eq!(slots.is_free(SsdSlot(slot)), free.contains(&slot));
            prop_assert_eq!(slots.is_quarantined(SsdSlot(slot)), bad.contains(&slot));
        }
    }

    #[test]
    fn the_next_of_a_set(
        bound in 1..300_000_u32,
        members in proptest::collection::vec(any::<u32>(), 0..20),
        from: u32,
    ) {
        let set: BTreeSet<u32> = members.iter().map(|member| member % bound).collect();
        let mut bits = Bits::new(bound);
        let mut rest = Bits::full(bound);
        for &member in &set {
            bits.insert(member);
            rest.remove(member);
        }
        for from in [0, from % (bound + 1), bound, u32::MAX] {
            prop_assert_eq!(bits.next(from), set.range(from..).next().copied());
            let gap = (from..bound).find(|number| !set.contains(number));
            prop_assert_eq!(rest.next(from), gap);
        }
    }
}
