//! What the records of a table come to: blocks in an order in which they can be entered again.
//!
//! Owns: which records count, which one of a key wins, who is whose parent, who is oldest. Never
//! does: I/O, or trust a record. Invariants: every record that is not free ends either among the
//! blocks or among the slots to blank; a block's parent stands before it; a key stands once; any
//! records at all, circles and lies included, take O(n log n) and no recursion.

use super::format::{Record, epoch_of};
use crate::key::Key;
use crate::units::{NONE, SsdSlot};
use std::hash::{BuildHasher, RandomState};

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

/// Sorts records out. Those of `clear_epoch` or before are void, as are those that no writer would
/// have written for blocks of at most `block_bytes`.
pub(crate) fn plan(
    records: impl Iterator<Item = (SsdSlot, Record)>,
    clear_epoch: u32,
    block_bytes: u32,
) -> Plan {
    let mut plan = Plan::default();
    let mut found = candidates(records, clear_epoch, block_bytes, &mut plan);
    let (index, mut depths) = winners(&found, &mut plan);
    let mut links = links(&found, &index);
    drop(index);
    let order = heads_first(&mut found, &mut links, &mut depths, &mut plan.counts);
    enter(&found, &links, &order, &depths, &mut plan);
    plan
}

/// Those that may count, in the order of their slots, each with its parent as missing.
fn candidates(
    records: impl Iterator<Item = (SsdSlot, Record)>,
    clear_epoch: u32,
    block_bytes: u32,
    plan: &mut Plan,
) -> Vec<Found> {
    let mut found = Vec::with_capacity(records.size_hint().1.unwrap_or(0));
    for (slot, record) in records {
        if record.is_free() {
            continue;
        }
        let epoch = epoch_of(record.generation);
        if !record.is_sane(block_bytes) {
            plan.counts.insane += 1;
            plan.blank.push(slot);
            continue;
        }
        plan.epoch_max = plan.epoch_max.max(epoch);
        if epoch <= clear_epoch {
            plan.counts.stale += 1;
            plan.blank.push(slot);
            continue;
        }
        found.push(Found {
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
    found
}

/// So far ahead a cell is asked for before its key is looked for.
const AHEAD: usize = 16;

/// Candidates by key: open addressing, at most half full.
struct Index {
    /// {hash 32, candidate + 1 32}; 0 is empty.
    cells: Vec<u64>,
    /// Drawn anew each time, so that no set of keys collides in every plan; no plan depends on it.
    secret: [u64; 2],
}

impl Index {
    fn new(candidates: usize) -> Self {
        let draw = |_| RandomState::new().hash_one(0);
        let cells = vec![0_u64; (2 * candidates).next_power_of_two()];
        crate::arena::prefer_huge_pages(zerocopy::IntoBytes::as_bytes(cells.as_slice()));
        Self { cells, secret: std::array::from_fn(draw) }
    }

    fn hash(&self, key: &Key) -> u64 {
        let [low, high] = key.words();
        let product = u128::from(low ^ self.secret[0]) * u128::from(high ^ self.secret[1]);
        (product >> 64) as u64 ^ product as u64
    }

    /// Loads the cell of a key that will be looked for soon.
    fn fetch(&self, key: &Key) {
        std::hint::black_box(self.cells[self.hash(key) as usize & (self.cells.len() - 1)]);
    }

    /// The cell of a key and what is in it; else the empty cell for it, and what to put there.
    fn cell(&self, found: &[Found], key: &Key) -> (usize, u64) {
        let hash = self.hash(key);
        let mut at = hash as usize & (self.cells.len() - 1);
        loop {
            let cell = self.cells[at];
            if cell == 0 {
                return (at, hash & u64::MAX << 32);
            }
            if (cell ^ hash) >> 32 == 0 && found[candidate(cell) as usize].key == *key {
                return (at, cell);
            }
            at = (at + 1) & (self.cells.len() - 1);
        }
    }
}

/// Whom a cell names; `NONE` if nobody.
fn candidate(cell: u64) -> u32 {
    (cell as u32).wrapping_sub(1)
}

/// The candidate of the highest generation of each key. The depths say who won: `UNSEEN` yet, or a
/// `LOSER`.
fn winners(found: &[Found], plan: &mut Plan) -> (Index, Vec<u32>) {
    let mut index = Index::new(found.len());
    let mut depths = vec![UNSEEN; found.len()];
    for (this, block) in found.iter().enumerate() {
        if let Some(soon) = found.get(this + AHEAD) {
            index.fetch(&soon.key);
        }
        let (at, cell) = index.cell(found, &block.key);
        let mut loser = candidate(cell);
        if loser == NONE || block.generation > found[loser as usize].generation {
            index.cells[at] = cell & u64::MAX << 32 | (this as u64 + 1);
        } else {
            loser = this as u32;
        }
        if loser != NONE {
            depths[loser as usize] = LOSER;
            plan.counts.losers += 1;
            plan.blank.push(found[loser as usize].slot);
        }
    }
    (index, depths)
}

/// The candidate that is each one's parent; `NONE` where there is none.
fn links(found: &[Found], index: &Index) -> Vec<u32> {
    let parent_of = |block: &Found| match block.parent {
        Some(Parent::Missing(parent)) => Some(parent),
        _ => None,
    };
    let link = |(at, block)| {
        if let Some(soon) = found.get(at + AHEAD).and_then(parent_of) {
            index.fetch(&soon);
        }
        parent_of(block).map_or(NONE, |parent| candidate(index.cell(found, &parent).1))
    };
    found.iter().enumerate().map(link).collect()
}

const UNSEEN: u32 = u32::MAX;
const ON_PATH: u32 = u32::MAX - 1;
const LOSER: u32 = u32::MAX - 2;
const _: () = assert!(super::format::SLOTS_MAX < LOSER);

/// The winners, each behind its parent and else in the order of the slots, which is mostly that of
/// the chains. Fills in each one's distance from the first block of its piece. A circle of parents
/// (keys that were removed and put again in another order) is cut above its oldest block: what was
/// written before its parent can't have been born under it.
fn heads_first(
    found: &mut [Found],
    links: &mut [u32],
    depths: &mut [u32],
    counts: &mut Counts,
) -> Vec<u32> {
    let mut order = Vec::with_capacity(links.len());
    let mut path: Vec<u32> = Vec::new();
    for start in 0..links.len() as u32 {
        let mut at = if depths[start as usize] == LOSER { NONE } else { start };
        let mut depth = 0;
        while at != NONE {
            match depths[at as usize] {
                UNSEEN => {
                    depths[at as usize] = ON_PATH;
                    path.push(at);
                    at = links[at as usize];
                }
                ON_PATH => {
                    cut(found, links, &path, at);
                    counts.cycles += 1;
                    // The path is walked once more; it leads into no other circle.
                    path.drain(..).for_each(|node| depths[node as usize] = UNSEEN);
                    at = start;
                }
                above => {
                    depth = above + 1;
                    break;
                }
            }
        }
        while let Some(node) = path.pop() {
            depths[node as usize] = depth;
            depth += 1;
            order.push(node);
        }
    }
    order
}

/// Makes the oldest block of the circle that `path` ends in, from `at` on, the first of its chain.
fn cut(found: &mut [Found], links: &mut [u32], path: &[u32], at: u32) {
    let circle = path.iter().rev().scan(false, |over, node| {
        let in_it = !*over;
        *over = *node == at;
        in_it.then_some(*node)
    });
    if let Some(oldest) = circle.min_by_key(|node| found[*node as usize].generation) {
        links[oldest as usize] = NONE;
        found[oldest as usize].parent = None;
    }
}

/// Fills in the blocks in this order, and their order of age.
fn enter(found: &[Found], links: &[u32], order: &[u32], depths: &[u32], plan: &mut Plan) {
    let mut places = vec![NONE; found.len()];
    let mut ages: Vec<u128> = Vec::with_capacity(order.len());
    plan.blocks.reserve_exact(order.len());
    for (place, &index) in order.iter().enumerate() {
        places[index as usize] = place as u32;
        let mut block = found[index as usize];
        match links[index as usize] {
            NONE => plan.counts.orphans += u32::from(block.parent.is_some()),
            parent => block.parent = Some(Parent::Block(places[parent as usize])),
        }
        let age = u128::from(block.last_use) << 8 | u128::from(block.hits);
        ages.push(age << 64 | u128::from(!depths[index as usize]) << 32 | place as u128);
        plan.blocks.push(block);
    }
    plan.counts.live = plan.blocks.len() as u32;
    ages.sort_unstable();
    plan.by_age = ages.into_iter().map(|age| age as u32).collect();
}

#[cfg(all(test, not(loom)))]
mod tests;
