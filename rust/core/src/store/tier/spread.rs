//! Which device a block is to go to.
//!
//! Owns: how far each block's chain is in its stretch, and whose turn the next stretch is. Never
//! does: know whether a device can take it. Invariants: a chain stays with one device for a stretch
//! of so many blocks, so that a long one uses all of them and a lost device leaves holes that
//! refill; stretches go to the emptier devices first, and where they are filled alike, in the ratio
//! of their slots, evenly mixed.

use crate::units::Slot;

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// Devices that differ in less than this part of their slots are filled alike.
const ROOM_STEPS: i64 = 16;

/// How many slots each device has free.
pub(super) trait Room {
    fn free(&self, device: usize) -> u32;
}

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
    pub(super) fn note(&mut self, slot: Slot, parent: Option<Slot>, devices: &impl Room) {
        if !self.at.is_empty() {
            self.at[slot.index()] = self.next(parent, devices);
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
    pub(super) fn device_under(&mut self, parent: Option<Slot>, devices: &impl Room) -> usize {
        if self.at.is_empty() { 0 } else { (self.next(parent, devices) >> COUNT_BITS) as usize }
    }

    fn next(&mut self, parent: Option<Slot>, devices: &impl Room) -> u32 {
        let above = parent.map(|parent| self.at[parent.index()]);
        match above.filter(|at| (1..self.blocks).contains(&(at & COUNT_MASK))) {
            Some(at) => at + 1,
            None => (self.turn(devices) as u32) << COUNT_BITS | 1,
        }
    }

    /// Whose turn it is: of the emptiest, the one furthest behind its share (smooth weighted round
    /// robin).
    fn turn(&mut self, devices: &impl Room) -> usize {
        let all: i64 = self.weights.iter().sum();
        let room = |at: usize| {
            (i64::from(devices.free(at)) * ROOM_STEPS).div_euclid(self.weights[at].max(1))
        };
        for (credit, weight) in self.credits.iter_mut().zip(&self.weights) {
            *credit += weight;
        }
        let most = self
            .credits
            .iter()
            .enumerate()
            .max_by_key(|(at, credit)| (room(*at), **credit, -(*at as i64)));
        let turn = most.map_or(0, |(at, _)| at);
        self.credits[turn] -= all;
        turn
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Free(Vec<u32>);

    impl Room for Free {
        fn free(&self, device: usize) -> u32 {
            self.0[device]
        }
    }

    /// How many of so many blocks of one chain go to each device, and how often it changes.
    fn chain(spread: &mut Spread, blocks: u32, free: Vec<u32>) -> (Vec<u32>, u32) {
        let free = Free(free);
        let mut of_each = vec![0; spread.weights.len()];
        let (mut changes, mut last) = (0, None);
        for block in 0..blocks {
            spread.note(Slot(block), block.checked_sub(1).map(Slot), &free);
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
        assert_eq!(chain(&mut spread, 320, vec![0, 0]), (vec![160, 160], 9));
        assert_eq!(chain(&mut spread, 320, vec![99, 97]), (vec![160, 160], 9), "filled alike");
    }

    #[test]
    fn the_emptier_device_comes_first() {
        let mut spread = Spread::new(&[100, 200], 32, 1000);
        assert_eq!(chain(&mut spread, 320, vec![60, 60]), (vec![320, 0], 0));
        assert_eq!(chain(&mut spread, 320, vec![10, 90]), (vec![0, 320], 0));
    }

    #[test]
    fn larger_devices_get_more_evenly_mixed() {
        let mut spread = Spread::new(&[100, 300, 200], 8, 1000);
        let (of_each, changes) = chain(&mut spread, 480, vec![0, 0, 0]);
        assert_eq!(of_each, [80, 240, 160]);
        assert!(changes >= 45, "{changes} changes of 59");
    }

    #[test]
    fn a_found_block_goes_on_where_it_is() {
        let (mut spread, free) = (Spread::new(&[1, 1], 2, 10), Free(vec![0, 0]));
        spread.found(Slot(0), None, 1);
        spread.note(Slot(1), Some(Slot(0)), &free);
        assert_eq!(spread.device(Slot(1)), 1, "a stretch has two");
        spread.found(Slot(2), Some(Slot(1)), 1);
        spread.found(Slot(3), Some(Slot(1)), 0);
        spread.note(Slot(4), Some(Slot(3)), &free);
        assert_eq!(spread.device(Slot(4)), 0);
    }

    #[test]
    fn one_device_has_everything_and_costs_nothing() {
        let (mut spread, free) = (Spread::new(&[7], 8192, 1000), Free(vec![0]));
        spread.note(Slot(5), None, &free);
        let under = spread.device_under(None, &free);
        assert_eq!((spread.device(Slot(5)), under, spread.bytes()), (0, 0, 0));
    }
}
