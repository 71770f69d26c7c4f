//! Stretches: which pins protect a whole run.
//!
//! Owns: cutting a run into linked pieces of one tier. Never does: pin. Invariant: in a piece each
//! block is the (parent, generation) of the next, and all are in RAM or none, so a pin on its last
//! block, through the child counts, keeps every one of them where it is; the block before a break
//! is the last of a piece of its own.

use super::Entry;
use std::ops::Range;

/// The linked pieces of a run, head first.
pub(crate) fn pieces(run: &[Entry]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == run.len() {
            return None;
        }
        let linked = run[start..]
            .windows(2)
            .take_while(|pair| pair[0].is_parent_of(&pair[1]) && pair[0].in_ram == pair[1].in_ram);
        let piece = start..start + linked.count() + 1;
        start = piece.end;
        Some(piece)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::units::{NONE, Slot};

    fn entry(slot: u32, parent: u32) -> Entry {
        let (slot, generation) = (Slot(slot), 1);
        Entry { slot, generation, parent, parent_generation: 1, resident: true, in_ram: true }
    }

    #[test]
    fn a_run_is_cut_where_the_link_breaks() {
        let run = [entry(0, NONE), entry(1, 0), entry(2, 1), entry(9, NONE), entry(4, 9)];
        assert_eq!(pieces(&run).collect::<Vec<_>>(), [0..3, 3..5]);
        assert_eq!(pieces(&[]).count(), 0);
    }

    #[test]
    fn a_parent_of_another_generation_is_no_parent() {
        let mut run = [entry(0, NONE), entry(1, 0)];
        run[0].generation = 2;
        assert_eq!(pieces(&run).collect::<Vec<_>>(), [0..1, 1..2]);
    }

    #[test]
    fn a_run_is_cut_where_the_tier_changes() {
        let mut run = [entry(0, NONE), entry(1, 0), entry(2, 1)];
        run[1].in_ram = false;
        assert_eq!(pieces(&run).collect::<Vec<_>>(), [0..1, 1..2, 2..3]);
    }
}
