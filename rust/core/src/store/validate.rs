//! The recount: every number the store keeps, counted again from scratch.
//!
//! Owns: the comparison. Never does: repair. Meant for a store at rest: calls in progress hold
//! frames and pins that nobody else can name.

use super::Store;
use crate::stats::read;

/// What the recount found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recount {
    /// Blocks that a lookup can find.
    pub blocks: u64,
    /// Frames without a block.
    pub frames_free: u64,
    /// Frames that leases keep.
    pub frames_pinned: u64,
    /// Blocks that could leave, one after the other, if all room were needed.
    pub evictable: u64,
    /// Blocks in RAM, hidden ones not counted: `evictable` and those at or above a pin.
    pub resident: u64,
    /// Headers kept for their children only.
    pub holes: u64,
    /// Removed or cleared blocks that a lease or child still keeps.
    pub hidden: u64,
    /// Pins in all headers.
    pub pins: u64,
}

impl Store {
    /// Recounts pins, children, frames, bins and the policy's order.
    ///
    /// # Errors
    /// The list of what does not agree.
    pub fn validate(&self) -> Result<Recount, Vec<String>> {
        self.drain();
        let found = self.keep(|keeper, parts, _| {
            let (count, mut wrong) = parts.directory.recount();
            let mut expect = |what: &str, is: u64, should: u64| {
                if is != should {
                    wrong.push(format!("{what}: {is}, should be {should}"));
                }
            };
            let free = u64::from(parts.frames.free());
            expect("frames in use and free", count.frames + free, u64::from(parts.frames.total()));
            expect("pins", count.pins, self.leases.pins());
            let loading = keeper.tier.as_ref().map_or(0, |tier| tier.loading(&parts.directory));
            let (blocks, _, stale) = parts.counters.resident_now(parts.directory.epoch());
            expect("blocks counted", blocks, count.blocks);
            expect("cleared blocks not swept", stale, 0);
            expect("blocks in the policy", keeper.policy().len(), count.in_ram - loading);
            for slot in keeper.policy().validate() {
                if !parts.directory.is_shown(slot) {
                    wrong.push(format!("slot {} is in the policy but not shown", slot.0));
                }
                if !parts.directory.is_in_ram(slot) {
                    wrong.push(format!("slot {} is in the policy but not in RAM", slot.0));
                }
            }
            if let Some(tier) = &keeper.tier {
                tier.validate(&parts.directory, &mut wrong);
            }
            let gone = keeper.evictions + keeper.cleared(parts) + read(&parts.counters.removed);
            let ssd = keeper.tier.as_ref().map(|tier| tier.snapshot()).unwrap_or_default();
            let gone = gone + ssd.evictions + ssd.lost + ssd.given_up;
            let mut expect = |what: &str, is: u64, should: u64| {
                if is != should {
                    wrong.push(format!("{what}: {is}, should be {should}"));
                }
            };
            let stored = read(&parts.counters.puts) + read(&parts.counters.put_again);
            let stored = stored + ssd.recovered;
            let leaving = keeper.tier.as_ref().map_or(0, |tier| tier.leaving());
            expect("SSD slots in headers", count.ssd_slots, ssd.blocks + leaving);
            expect("blocks stored and not gone", stored.wrapping_sub(gone), blocks);
            expect("evictable and protected", count.evictable + count.protected, count.in_ram);
            let recount = Recount {
                blocks: count.blocks,
                frames_free: free,
                frames_pinned: self.leases.frames(),
                evictable: count.evictable,
                resident: count.in_ram,
                holes: count.holes,
                hidden: count.hidden,
                pins: count.pins,
            };
            if wrong.is_empty() { Ok(recount) } else { Err(wrong) }
        });
        found.unwrap_or_else(|| Err(vec!["the store is poisoned".to_owned()]))
    }
}
