//! What the records of a table come to: blocks in an order in which they can be entered again.
//!
//! Owns: which records count, which one of a key wins, who is whose parent, who is oldest. Never
//! does: I/O, or trust a record. Invariants: every record that is not free ends either among the
//! blocks or among the slots to blank; a block's parent stands before it; a key stands once; any
//! records at all, circles and lies included, take O(n) and no recursion; one step looks at no more
//! records than it is allowed, and the plan is the same however many that are.

mod ages;
mod chains;
mod index;

use super::format::{Record, epoch_of};
use crate::arena::{prefer_huge_pages, room_for};
use crate::key::Key;
use crate::units::{NONE, SsdSlot};
use ages::Ages;
use chains::{Chains, LOSER};
use index::{AHEAD, Index, candidate};

/// A block's parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// A block of the plan, before this one.
    Block(u32),
    /// No record of it is left.
    Missing(Key),
}

/// A block that the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: Key,
    /// `None`: the block is the first of its chain.
    pub(crate) parent: Option<Parent>,
    pub(crate) slot: SsdSlot,
    pub(crate) len: u32,
    pub(crate) generation: u64,
    pub(crate) last_use: u32,
    pub(crate) hits: u8,
    pub(crate) priority: i8,
}

/// How many records went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Blocks of the plan.
    pub(crate) live: u32,
    /// Of a cleared epoch.
    pub(crate) stale: u32,
    /// What no writer of this format writes.
    pub(crate) insane: u32,
    /// Older records of a key that has a newer one.
    pub(crate) losers: u32,
    /// Circles, each cut above its oldest block.
    pub(crate) cycles: u32,
    /// Live blocks whose parent is missing.
    pub(crate) orphans: u32,
}

/// What to do with a table.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Parents before children.
    pub(crate) blocks: Vec<Found>,
    /// Indexes of `blocks`, oldest use first; within the same minute and hits, children first.
    pub(crate) by_age: Vec<u32>,
    /// Slots whose records do not count and are to be made free.
    pub(crate) blank: Vec<SsdSlot>,
    pub(crate) counts: Counts,
    /// The highest epoch of a sane record.
    pub(crate) epoch_max: u32,
}

/// Sorts records out at once: a [`Sorter`] run to its end.
pub(crate) fn plan(
    mut records: impl Iterator<Item = (SsdSlot, Record)>,
    clear_epoch: u32,
    block_bytes: u32,
) -> Plan {
    let records_max = records.size_hint().1.unwrap_or(0);
    let mut sorter = Sorter::new(records_max, vec![(SsdSlot(0), clear_epoch)], block_bytes);
    while !sorter.step(&mut records, usize::MAX) {}
    sorter.finish()
}

/// What a sorter is doing, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Which records may count.
    Candidates,
    /// Which one of each key does.
    Winners,
    /// Who is whose parent.
    Links,
    /// Parents before children.
    Chains,
    /// The blocks, in that order.
    Blocks,
    /// Who is oldest.
    Ages,
    Done,
}

/// Sorts records out, a piece at a time.
pub(crate) struct Sorter {
    /// From which slot on which epoch was cleared, ascending.
    clear_epochs: Vec<(SsdSlot, u32)>,
    block_bytes: u32,
    records_max: usize,
    stage: Stage,
    /// Records told so far.
    told: usize,
    /// Those that may count, in the order of their slots, each with its parent as missing.
    found: Vec<Found>,
    index: Index,
    chains: Chains,
    /// Where the candidates stand among the blocks, as far as they do.
    places: Vec<u32>,
    ages: Ages,
    plan: Plan,
}

impl Sorter {
    /// For at most so many records. Those of the `clear_epoch` of their slots or before are void,
    /// as are those that no writer would have written for blocks of at most `block_bytes`.
    pub(crate) fn new(
        records_max: usize,
        clear_epochs: Vec<(SsdSlot, u32)>,
        block_bytes: u32,
    ) -> Self {
        Self {
            clear_epochs,
            block_bytes,
            records_max,
            stage: Stage::Candidates,
            told: 0,
            found: room_for(records_max),
            index: Index::default(),
            chains: Chains::default(),
            places: Vec::new(),
            ages: Ages::default(),
            plan: Plan::default(),
        }
    }

    /// Goes on: looks at no more than `most` records, candidates or blocks, once each. `records`
    /// are those behind the first `told`. True where all is done.
    pub(crate) fn step(
        &mut self,
        records: impl Iterator<Item = (SsdSlot, Record)>,
        most: usize,
    ) -> bool {
        let most = most.max(1);
        let done = match self.stage {
            Stage::Candidates => self.candidates(records, most),
            Stage::Winners => self.winners(most),
            Stage::Links => self.links(most),
            Stage::Chains => self.chains.step(&mut self.found, most),
            Stage::Blocks => self.blocks(most),
            Stage::Ages => self.ages.step(most),
            Stage::Done => true,
        };
        if done {
            self.stage = self.end_stage();
        }
        self.stage == Stage::Done
    }

    /// Makes ready for the next stage.
    fn end_stage(&mut self) -> Stage {
        let candidates = self.found.len();
        match self.stage {
            Stage::Candidates => {
                self.index = Index::new(candidates);
                self.chains = Chains::new(candidates);
                Stage::Winners
            }
            Stage::Winners => Stage::Links,
            Stage::Links => {
                self.index = Index::default();
                Stage::Chains
            }
            Stage::Chains => {
                self.plan.counts.cycles = self.chains.cycles;
                self.plan.blocks = room_for(self.chains.order.len());
                self.places = vec![0; candidates];
                prefer_huge_pages(&self.places);
                self.ages = Ages::new(self.chains.order.len());
                Stage::Blocks
            }
            Stage::Blocks => {
                self.plan.counts.live = self.plan.blocks.len() as u32;
                (self.found, self.places, self.chains) = Default::default();
                self.ages.begin();
                Stage::Ages
            }
            Stage::Ages | Stage::Done => Stage::Done,
        }
    }

    /// Records told so far: the next ones are behind them.
    pub(crate) fn told(&self) -> usize {
        self.told
    }

    /// How far it is, in records of those there may be.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let (candidates, blocks) = (self.found.len(), self.plan.blocks.len());
        let (done, of) = match self.stage {
            Stage::Candidates => (self.told, self.records_max),
            Stage::Winners => (self.chains.depths.len(), candidates),
            Stage::Links => (self.chains.links.len(), candidates),
            Stage::Chains => (self.chains.order.len(), candidates),
            Stage::Blocks => (blocks, self.chains.order.len()),
            Stage::Ages => self.ages.progress(),
            Stage::Done => (0, 1),
        };
        let all = self.records_max as u64;
        let within = all * (done as u64).min(of as u64) / (of as u64).max(1);
        ((all * self.stage as u64 + within) / Stage::Done as u64, all)
    }

    /// The plan; all is done.
    pub(crate) fn finish(self) -> Plan {
        debug_assert_eq!(self.stage, Stage::Done, "`step` has said so");
        Plan { by_age: self.ages.by_age, ..self.plan }
    }

    fn candidates(
        &mut self,
        records: impl Iterator<Item = (SsdSlot, Record)>,
        most: usize,
    ) -> bool {
        let mut seen = 0;
        for (slot, record) in records.take(most) {
            seen += 1;
            if record.is_free() {
                continue;
            }
            let epoch = epoch_of(record.generation);
            if !record.is_sane(self.block_bytes) {
                self.plan.counts.insane += 1;
                self.plan.blank.push(slot);
                continue;
            }
            self.plan.epoch_max = self.plan.epoch_max.max(epoch);
            let cleared = self.clear_epochs.iter().rfind(|(first, _)| first.0 <= slot.0);
            if cleared.is_some_and(|(_, clear_epoch)| epoch <= *clear_epoch) {
                self.plan.counts.stale += 1;
                self.plan.blank.push(slot);
                continue;
            }
            self.found.push(Found {
                key: record.key,
                parent: record.parent().map(Parent::Missing),
                slot,
                len: record.len,
                generation: record.generation,
                last_use: record.last_use,
                hits: record.hits,
                priority: record.priority,
            });
        }
        self.told += seen;
        seen < most
    }

    /// The candidate of the highest generation of each key. The depths say who lost.
    fn winners(&mut self, most: usize) -> bool {
        let found = &self.found;
        let first = self.chains.depths.len();
        let end = found.len().min(first.saturating_add(most));
        for this in first..end {
            let block = &found[this];
            if let Some(soon) = found.get(this + AHEAD) {
                self.index.fetch(&soon.key);
            }
            let (at, cell) = self.index.cell(found, &block.key);
            let mut loser = candidate(cell);
            if loser == NONE || block.generation > found[loser as usize].generation {
                self.index.cells[at] = cell & u64::MAX << 32 | (this as u64 + 1);
            } else {
                loser = this as u32;
            }
            self.chains.depths.push(chains::UNSEEN);
            if loser != NONE {
                self.chains.depths[loser as usize] = LOSER;
                self.plan.counts.losers += 1;
                self.plan.blank.push(found[loser as usize].slot);
            }
        }
        end == found.len()
    }

    /// The candidate that is each one's parent; `NONE` where there is none.
    fn links(&mut self, most: usize) -> bool {
        let parent_of = |block: &Found| match block.parent {
            Some(Parent::Missing(parent)) => Some(parent),
            _ => None,
        };
        let (found, index) = (&self.found, &self.index);
        let first = self.chains.links.len();
        let end = found.len().min(first.saturating_add(most));
        self.chains.links.extend((first..end).map(|at| {
            if let Some(soon) = found.get(at + AHEAD).and_then(parent_of) {
                index.fetch(&soon);
            }
            parent_of(&found[at]).map_or(NONE, |parent| candidate(index.cell(found, &parent).1))
        }));
        end == found.len()
    }

    /// Fills in the blocks in their order, and what their order of age is made of.
    fn blocks(&mut self, most: usize) -> bool {
        let Chains { order, links, depths, .. } = &self.chains;
        let first = self.plan.blocks.len();
        let end = order.len().min(first.saturating_add(most));
        for (place, &index) in order.iter().enumerate().take(end).skip(first) {
            self.places[index as usize] = place as u32;
            let mut block = self.found[index as usize];
            match links[index as usize] {
                NONE => self.plan.counts.orphans += u32::from(block.parent.is_some()),
                parent => block.parent = Some(Parent::Block(self.places[parent as usize])),
            }
            self.ages.push(&block, depths[index as usize], place as u32);
            self.plan.blocks.push(block);
        }
        end == order.len()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
