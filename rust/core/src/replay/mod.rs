//! Replay: a trace through the same policies as the store's, without bytes.
//!
//! Owns: two rules of a cache. `chains = true` is the store's, as its deterministic mode has it: a
//! request is looked up, what is resident is touched, what is absent is inserted, both tail first;
//! a victim has no resident child and is none of the request's own. `chains = false` is the
//! textbook: every block is accessed once, tail first, and anything may leave. Never does: know
//! keys, frames or threads. Invariant: at most `ram_blocks` blocks are resident.

mod chains;
mod trace;

pub use trace::{Malformed, Trace};

use crate::policy::{Arc, Lru, Policy, Residents, Search};
use crate::units::Slot;

/// A policy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayPolicy {
    /// Least recently used.
    Lru,
    /// Adaptive replacement cache.
    Arc,
    /// First in, first out.
    Fifo,
}

impl ReplayPolicy {
    /// The names that `parse` knows.
    pub const NAMES: &'static [&'static str] = &["lru", "arc", "fifo"];

    /// The policy of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "lru" => Some(Self::Lru),
            "arc" => Some(Self::Arc),
            "fifo" => Some(Self::Fifo),
            _ => None,
        }
    }
}

/// What a replay counted, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Blocks resident when their request came.
    pub plain: u64,
    /// Of them those with every block before them in the request resident.
    pub prefix: u64,
    /// Blocks that left.
    pub evictions: u64,
    /// Blocks looked at by searches for victims.
    pub steps: u64,
}

/// Runs a whole trace through a cache of `ram_blocks` blocks. `going_on` hears of each request
/// and ends the replay by saying no.
pub fn replay(
    trace: &Trace,
    policy: ReplayPolicy,
    ram_blocks: u32,
    chains: bool,
    going_on: impl FnMut(usize) -> bool,
) -> Hits {
    let slots = trace.unique() as u32;
    // Where every block fits, more room changes nothing; policies set tables aside for theirs.
    let ram_blocks = ram_blocks.min(slots.max(1));
    match policy {
        ReplayPolicy::Lru => run(trace, Lru::new(slots), ram_blocks, chains, going_on),
        ReplayPolicy::Arc => {
            run(trace, Arc::new(slots, ram_blocks, true), ram_blocks, chains, going_on)
        }
        ReplayPolicy::Fifo => run(trace, Lru::fifo(slots), ram_blocks, chains, going_on),
    }
}

fn run<P: Policy>(
    trace: &Trace,
    policy: P,
    ram_blocks: u32,
    chains: bool,
    mut going_on: impl FnMut(usize) -> bool,
) -> Hits {
    let mut textbook = Textbook { policy, capacity: u64::from(ram_blocks), hits: Hits::default() };
    if !chains {
        for (number, request) in trace.requests().enumerate() {
            if !going_on(number) {
                break;
            }
            textbook.request(request);
        }
        textbook.hits.steps = textbook.policy.steps();
        return textbook.hits;
    }
    let mut cache = chains::Chains::new(textbook.policy, trace.unique(), ram_blocks);
    for (number, request) in trace.requests().enumerate() {
        if !going_on(number) {
            break;
        }
        cache.request(request);
    }
    cache.hits()
}

/// Everything may leave.
struct Free;

impl Residents for Free {
    fn stays(&self, _slot: Slot) -> bool {
        false
    }
}

struct Textbook<P> {
    policy: P,
    capacity: u64,
    hits: Hits,
}

impl<P: Policy> Textbook<P> {
    fn request(&mut self, blocks: &[u32]) {
        let resident = |block: &&u32| self.policy.contains(Slot(**block));
        self.hits.plain += blocks.iter().filter(resident).count() as u64;
        self.hits.prefix += blocks.iter().take_while(resident).count() as u64;
        for block in blocks.iter().rev() {
            let slot = Slot(*block);
            if self.policy.contains(slot) {
                self.policy.touch(slot, &Free);
            } else {
                self.insert(slot);
            }
        }
    }

    fn insert(&mut self, slot: Slot) {
        let key = key_of(slot);
        if self.policy.len() == self.capacity {
            let found = self.policy.victim(Some(key), &Free, &mut u32::MAX.clone());
            let Search::Victim(victim) = found else { return };
            self.policy.leave(victim, key_of(victim), Some(key));
            self.hits.evictions += 1;
        }
        self.policy.insert(slot, key, 0, &Free);
    }
}

/// A block's number stands for its key.
fn key_of(slot: Slot) -> [u64; 2] {
    [u64::from(slot.0), 0]
}

#[cfg(all(test, not(loom)))]
mod tests;
