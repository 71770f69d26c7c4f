//! The recount of the index: children, pins, frames and bins, header by header.
//!
//! Owns: nothing. Never does: change anything. Under the keeper's lock, with no call in progress.

use super::Directory;
use super::state::{HIDDEN, Kind};
use crate::units::Slot;
use std::collections::HashMap;

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    /// Blocks that a lookup can find.
    pub(crate) blocks: u64,
    /// Of them with bytes in a frame.
    pub(crate) in_ram: u64,
    /// Of them dirty: in a frame and nowhere else.
    pub(crate) dirty: u64,
    /// Headers that name an SSD slot, each another one.
    pub(crate) ssd_slots: u64,
    /// Headers with a frame, hidden ones included.
    pub(crate) frames: u64,
    pub(crate) holes: u64,
    pub(crate) hidden: u64,
    pub(crate) pins: u64,
    /// Blocks in RAM without a pin at or below them.
    pub(crate) evictable: u64,
    /// The other blocks in RAM.
    pub(crate) protected: u64,
}

impl Directory {
    /// Counts everything again; also what does not agree.
    pub(crate) fn recount(&self) -> (Counted, Vec<String>) {
        let (mut count, mut wrong) = (Counted::default(), Vec::new());
        let live = |slot: &Slot| self.header(*slot).state().kind() != Kind::Free;
        let slots: Vec<Slot> = (0..self.used_headers()).map(Slot).filter(live).collect();
        let mut kids = vec![(0_u32, 0_u32); self.used_headers() as usize];
        let mut protected = vec![false; self.used_headers() as usize];
        let mut on_ssd = HashMap::new();
        for slot in &slots {
            let header = self.header(*slot);
            let state = header.state();
            let in_ram = state.kind().has_frame();
            if state.kind().has_ssd_slot() {
                count.ssd_slots += 1;
                if let Some(other) = on_ssd.insert(header.ssd_slot(), *slot) {
                    wrong.push(format!("slots {} and {} share an SSD slot", other.0, slot.0));
                }
            }
            if let Some((parent, generation)) = header.parent() {
                let counts = &mut kids[parent.index()];
                *counts = (counts.0 + u32::from(in_ram), counts.1 + 1);
                if self.header(parent).state().generation() != generation {
                    wrong.push(format!("slot {}: its parent {} was freed", slot.0, parent.0));
                }
            }
            let mut up = (state.pins() > 0 || state.held()).then_some(*slot);
            while let Some(at) = up.filter(|at| !protected[at.index()]) {
                protected[at.index()] = true;
                up = self.header(at).parent().map(|(parent, _)| parent);
            }
            count.pins += u64::from(state.pins());
            count.frames += u64::from(in_ram);
            count.hidden += u64::from(state.has(HIDDEN));
            count.holes += u64::from(state.kind() == Kind::Hole && !state.has(HIDDEN));
        }
        for slot in &slots {
            let header = self.header(*slot);
            let should = kids[slot.index()];
            if header.kids() != should {
                let is = header.kids();
                wrong.push(format!("slot {}: children {is:?}, should be {should:?}", slot.0));
            }
            let state = header.state();
            let shown = !state.has(HIDDEN);
            count.blocks += u64::from(state.kind().is_there() && shown);
            if state.kind().has_frame() && shown {
                let kept = protected[slot.index()];
                count.in_ram += 1;
                count.dirty += u64::from(state.kind() == Kind::Ram);
                count.protected += u64::from(kept);
                count.evictable += u64::from(!kept);
            }
        }
        self.recount_bins(&slots, &mut wrong);
        if count.holes != self.holes() {
            wrong.push(format!("holes: {}, should be {}", self.holes(), count.holes));
        }
        (count, wrong)
    }

    fn recount_bins(&self, live: &[Slot], wrong: &mut Vec<String>) {
        let mut entered = vec![0_u32; self.used_headers() as usize];
        self.bins.each(|slot| entered[slot.index()] += 1);
        for slot in live {
            let hidden = self.header(*slot).state().has(HIDDEN);
            let stale = self.header(*slot).epoch() != self.epoch() as u16;
            let entries = std::mem::take(&mut entered[slot.index()]);
            // A cleared hole keeps its entry until it goes, or until an insert meets it.
            if entries != u32::from(!hidden) && !(stale && entries == 0) {
                wrong.push(format!("slot {}: {entries} entries, hidden {hidden}", slot.0));
            }
        }
        for (slot, _) in entered.iter().enumerate().filter(|(_, entries)| **entries > 0) {
            wrong.push(format!("an entry for slot {slot}, which is free"));
        }
    }
}
