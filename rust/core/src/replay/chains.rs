//! The store's rule over dense block numbers: leaves only, never the request's own.
//!
//! Owns: who is resident, whose child, and who must be woken. Never does: choose. Invariants: a
//! resident block keeps the parent of its insertion; `kids` counts resident children, whether the
//! parent is resident or not; a block marked SKIPPED is woken when its last child has left, or
//! when the request that protected it is over.

use super::{Hits, key_of};
use crate::policy::{Policy, Residents, Search};
use crate::units::{NONE, Slot};
use std::cell::{Cell, RefCell};

const RESIDENT: u32 = 1;
const SKIPPED: u32 = 2;

#[derive(Default)]
struct Block {
    parent: Cell<u32>,
    kids: Cell<u32>,
    /// The request that last named it, from 1.
    named_by: Cell<u32>,
    flags: Cell<u32>,
}

impl Block {
    fn has(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }

    fn set(&self, flag: u32, on: bool) {
        let others = self.flags.get() & !flag;
        self.flags.set(if on { others | flag } else { others });
    }
}

struct Blocks {
    blocks: Vec<Block>,
    request: u32,
    /// Blocks of the running request that a search has passed.
    passed: RefCell<Vec<u32>>,
}

impl Residents for Blocks {
    fn stays(&self, slot: Slot) -> bool {
        let block = &self.blocks[slot.index()];
        let own = block.named_by.get() == self.request;
        if own && !block.has(SKIPPED) {
            self.passed.borrow_mut().push(slot.0);
        }
        let stays = own || block.kids.get() > 0;
        if stays {
            block.set(SKIPPED, true);
        }
        stays
    }
}

/// A cache under the store's rule.
pub(super) struct Chains<P> {
    policy: P,
    state: Blocks,
    capacity: usize,
    resident: usize,
    missing: Vec<(u32, u32)>,
    hits: Hits,
}

impl<P: Policy> Chains<P> {
    pub(super) fn new(policy: P, blocks: usize, ram_blocks: u32) -> Self {
        let blocks = (0..blocks).map(|_| Block::default()).collect();
        Self {
            policy,
            state: Blocks { blocks, request: 0, passed: RefCell::new(Vec::new()) },
            capacity: ram_blocks as usize,
            resident: 0,
            missing: Vec::new(),
            hits: Hits::default(),
        }
    }

    pub(super) fn hits(mut self) -> Hits {
        self.hits.steps = self.policy.steps();
        self.hits
    }

    pub(super) fn request(&mut self, chain: &[u32]) {
        self.state.request += 1;
        let present = self.look_up(chain);
        let prefix = chain.iter().take_while(|b| self.block(**b).has(RESIDENT)).count();
        self.hits.prefix += prefix as u64;
        for block in chain[..prefix].iter().rev() {
            self.policy.touch(Slot(*block), &self.state);
        }
        self.missing.truncate(self.capacity - present);
        let room = self.make_room();
        for (block, parent) in self.missing[..room].iter().rev() {
            self.resident += 1;
            self.state.blocks[*block as usize].set(RESIDENT, true);
            self.state.blocks[*block as usize].parent.set(*parent);
            if let Some(parent) = self.state.blocks.get(*parent as usize) {
                parent.kids.set(parent.kids.get() + 1);
            }
            self.policy.insert(Slot(*block), key_of(Slot(*block)), 0, &self.state);
        }
        self.wake_passed();
    }

    fn block(&self, block: u32) -> &Block {
        &self.state.blocks[block as usize]
    }

    /// Counts hits and names the request's blocks; the absent ones, each once with its parent, are
    /// left in `missing`. Returns how many different ones are resident.
    fn look_up(&mut self, chain: &[u32]) -> usize {
        let (mut present, mut parent) = (0, NONE);
        self.missing.clear();
        for number in chain {
            let block = &self.state.blocks[*number as usize];
            let first = block.named_by.replace(self.state.request) != self.state.request;
            if block.has(RESIDENT) {
                self.hits.plain += 1;
                present += usize::from(first);
            } else if first {
                self.missing.push((*number, parent));
            }
            parent = *number;
        }
        present
    }

    /// Makes room for the missing blocks, tail first, as far as possible: for how many.
    fn make_room(&mut self) -> usize {
        let mut room = 0;
        for (block, _) in self.missing.iter().rev() {
            let key = key_of(Slot(*block));
            if self.resident + room < self.capacity {
                self.policy.admit(key);
            } else {
                let found = self.policy.victim(Some(key), &self.state, &mut u32::MAX.clone());
                let Search::Victim(victim) = found else { break };
                self.policy.leave(victim, key_of(victim), Some(key));
                self.hits.evictions += 1;
                self.resident -= 1;
                let parent = self.state.blocks[victim.index()].parent.get();
                self.state.blocks[victim.index()].flags.set(0);
                lose_child(&mut self.policy, &self.state, parent);
            }
            room += 1;
        }
        // Announced from the tail, stored from the head: the same ones unless room ran out.
        for (block, _) in &self.missing[room.max(self.missing.len() - room)..] {
            self.policy.withdraw(key_of(Slot(*block)));
        }
        room
    }

    fn wake_passed(&mut self) {
        for block in self.state.passed.get_mut().drain(..) {
            let passed = &self.state.blocks[block as usize];
            if passed.has(SKIPPED) && passed.kids.get() == 0 {
                passed.set(SKIPPED, false);
                self.policy.wake(Slot(block));
            }
        }
    }
}

fn lose_child<P: Policy>(policy: &mut P, state: &Blocks, parent: u32) {
    let Some(block) = state.blocks.get(parent as usize) else { return };
    block.kids.set(block.kids.get() - 1);
    if block.kids.get() > 0 || !block.has(SKIPPED) {
        return;
    }
    if block.named_by.get() == state.request {
        state.passed.borrow_mut().push(parent);
    } else {
        block.set(SKIPPED, false);
        policy.wake(Slot(parent));
    }
}
