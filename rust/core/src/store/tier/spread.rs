//! Which device a block is to go to.
//!
//! Owns: how far each block's chain is in its stretch, and whose turn the next stretch is. Never
//! does: know whether a device can take it. Invariants: a chain stays with one device for a stretch
//! of so many blocks, so that a long one uses all of them and a lost device leaves holes that
//! refill; stretches go to the devices in the ratio of their slots, evenly mixed.

use crate::units::Slot;

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// Of a tier with several devices; one has nothing to spread over.
pub(super) struct Spread {
    /// Blocks of a stretch.
    blocks: u32,
    /// Slots of each device, and how far each is behind its share.
    weights: Vec<i64>,
    credits: Vec<i64>,
    /// {device 8, blocks of the stretch so far 24}, for each header.
    at: Vec<u32>,
}

impl Spread {
    pub(super) fn new(weights: &[u32], stretch_blocks: u64, headers: u32) -> Self {
        let headers = if weights.len() > 1 { headers as usize } else { 0 };
        let at = vec![0; headers];
        let blocks = stretch_blocks.clamp(1, COUNT_MASK.into()) as u32;
        let weights: Vec<i64> = weights.iter().map(|slots| i64::from(*slots)).collect();
        Self { blocks, credits: vec![0; weights.len()], weights, at }
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.at.len() * size_of::<u32>()) as u64
    }

    /// A block was stored under this parent.
    pub(super) fn note(&mut self, slot: Slot, parent: Option<Slot>) {
        if !self.at.is_empty() {
            self.at[slot.index()] = self.next(parent);
        }
    }

    /// A block was found on a device.
    pub(super) fn found(&mut self, slot: Slot, parent: Option<Slot>, device: usize) {
        if self.at.is_empty() {
            return;
        }
        let first = (device as u32) << COUNT_BITS;
        let above = parent.map(|parent| self.at[parent.index()]);
        let above = above.filter(|at| at >> COUNT_BITS == device as u32);
        let count = above.map_or(0, |at| (at & COUNT_MASK).min(self.blocks - 1));
        self.at[slot.index()] = first | (count + 1);
    }

    /// Where a block is to go.
    pub(super) fn device(&self, slot: Slot) -> usize {
        self.at.get(slot.index()).map_or(0, |at| (at >> COUNT_BITS) as usize)
    }

    /// Where a block under this parent is to go that has no header yet.
    pub(super) fn device_under(&mut self, parent: Option<Slot>) -> usize {
        if self.at.is_empty() { 0 } else { (self.next(parent) >> COUNT_BITS) as usize }
    }

    fn next(&mut self, parent: Option<Slot>) -> u32 {
        let above = parent.map(|parent| self.at[parent.index()]);
        match above.filter(|at| (1..self.blocks).contains(&(at & COUNT_MASK))) {
            Some(at) => at + 1,
            None => (self.turn() as u32) << COUNT_BITS | 1,
        }
    }

    /// Whose turn it is: the one furthest behind its share (smooth weighted round robin).
    fn turn(&mut self) -> usize {
        let all: i64 = self.weights.iter().sum();
        for (credit, weight) in self.credits.iter_mut().zip(&self.weights) {
            *credit += weight;
        }
        let most =
            self.credits.iter().enumerate().max_by_key(|(at, credit)| (**credit, -(*at as i64)));
        let turn = most.map_or(0, |(at, _)| at);
        self.credits[turn] -= all;
        turn
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// How many of so many blocks of one chain go to each device, and how often it changes.
    fn chain(spread: &mut Spread, blocks: u32) -> (Vec<u32>, u32) {
        let mut of_each = vec![0; spread.weights.len()];
        let (mut changes, mut last) = (0, None);
        for block in 0..blocks {
            spread.note(Slot(block), block.checked_sub(1).map(Slot));
            let device = spread.device(Slot(block));
            of_each[device] += 1;
            changes += u32::from(last.is_some_and(|last| last != device));
            last = Some(device);
        }
        (of_each, changes)
    }

    #[test]
    fn a_chain_changes_the_device_after_a_stretch() {
        let mut spread = Spread::new(&[100, 100], 32, 1000);
        assert_eq!(chain(&mut spread, 320), (vec![160, 160], 9));
    }

    #[test]
    fn larger_devices_get_more_evenly_mixed() {
        let mut spread = Spread::new(&[100, 300, 200], 8, 1000);
        let (of_each, changes) = chain(&mut spread, 480);
        assert_eq!(of_each, [80, 240, 160]);
        assert!(changes >= 45, "{changes} changes of 59");
    }

    #[test]
    fn a_found_block_goes_on_where_it_is() {
        let mut spread = Spread::new(&[1, 1], 2, 10);
        spread.found(Slot(0), None, 1);
        spread.note(Slot(1), Some(Slot(0)));
        assert_eq!(spread.device(Slot(1)), 1, "a stretch has two");
        spread.found(Slot(2), Some(Slot(1)), 1);
        spread.found(Slot(3), Some(Slot(1)), 0);
        spread.note(Slot(4), Some(Slot(3)));
        assert_eq!(spread.device(Slot(4)), 0);
    }

    #[test]
    fn one_device_has_everything_and_costs_nothing() {
        let mut spread = Spread::new(&[7], 8192, 1000);
        spread.note(Slot(5), None);
        assert_eq!((spread.device(Slot(5)), spread.device_under(None), spread.bytes()), (0, 0, 0));
    }
}
