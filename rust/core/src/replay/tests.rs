//! Replay against a naive model of the store's rule, and the numbers of two small histories.

use super::*;
use std::collections::HashMap;

/// The rule in its plainest form: the order as a list, a scan for each victim. LRU, or FIFO where
/// touches are ignored.
struct Naive {
    capacity: usize,
    touches: bool,
    order: Vec<u32>,
    parent: HashMap<u32, Option<u32>>,
    hits: Hits,
}

impl Naive {
    fn request(&mut self, chain: &[u32]) {
        let resident = |block: &&u32| self.order.contains(block);
        self.hits.plain += chain.iter().filter(resident).count() as u64;
        let prefix = chain.iter().take_while(resident).count();
        self.hits.prefix += prefix as u64;
        for block in chain[..prefix].iter().rev().filter(|_| self.touches) {
            self.order.retain(|other| other != block);
            self.order.push(*block);
        }
        let own = &chain[..chain.len().min(self.capacity)];
        for i in (prefix..own.len()).rev() {
            if self.order.contains(&own[i]) {
                continue;
            }
            if self.order.len() == self.capacity {
                let leaf = |b: &&u32| {
                    let kid = self.order.iter().any(|k| self.parent[k] == Some(**b));
                    !kid && !own.contains(b)
                };
                let victim = *self.order.iter().find(leaf).expect("a full cache has a leaf");
                self.order.retain(|other| *other != victim);
                self.hits.evictions += 1;
            }
            self.order.push(own[i]);
            self.parent.insert(own[i], i.checked_sub(1).map(|before| own[before]));
        }
    }
}

/// Chains that share heads: each block's id fixes its parent.
fn trace(seed: u64, requests: usize) -> Trace {
    let (mut random, mut trace) = (seed, Trace::default());
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    for _ in 0..requests {
        let (mut chain, mut node) = (Vec::new(), 0_i128);
        for _ in 0..next(9) {
            node = node * 3 + 1 + i128::from(next(3));
            chain.push(node);
        }
        trace.push(chain);
    }
    trace
}

#[test]
fn lru_and_fifo_equal_the_naive_scan() {
    for seed in 0..40 {
        let trace = trace(seed, 300);
        for capacity in [1, 2, 3, 7, 20, 60] {
            for (policy, touches) in [(ReplayPolicy::Lru, true), (ReplayPolicy::Fifo, false)] {
                let order = Vec::new();
                let (parent, hits) = (HashMap::new(), Hits::default());
                let mut naive = Naive { capacity, touches, order, parent, hits };
                trace.requests().for_each(|chain| naive.request(chain));
                let found = replay(&trace, policy, capacity as u32, true, |_| true);
                naive.hits.steps = found.steps;
                assert_eq!(found, naive.hits, "{policy:?}, {capacity} blocks, seed {seed}");
                assert_eq!(found.plain, found.prefix, "no block without its head");
            }
        }
    }
}

#[test]
fn lru_has_the_same_hits_under_both_rules() {
    for seed in 0..20 {
        let trace = trace(seed, 300);
        for capacity in [1, 5, 30, 200] {
            let [chains, textbook] = [true, false].map(|chains| {
                let hits = replay(&trace, ReplayPolicy::Lru, capacity, chains, |_| true);
                (hits.plain, hits.prefix)
            });
            if capacity > 8 {
                assert_eq!(chains, textbook, "{capacity} blocks, seed {seed}");
            }
            assert_eq!(chains.0, chains.1);
        }
    }
}

#[test]
fn a_repeat_within_a_request_counts_as_present_and_cycles_do_no_harm() {
    let mut trace = Trace::default();
    trace.push([1, 2, 1, 2]);
    trace.push([2, 1]);
    trace.push([]);
    trace.push([3, 1]);
    for policy in [ReplayPolicy::Lru, ReplayPolicy::Arc, ReplayPolicy::Fifo] {
        let hits = replay(&trace, policy, 2, true, |_| true);
        assert_eq!((hits.plain, hits.prefix), (3, 2), "{policy:?}");
        let hits = replay(&trace, policy, 3, true, |_| true);
        assert_eq!((hits.plain, hits.prefix), (3, 2), "{policy:?}");
    }
}

#[test]
fn a_replay_ends_where_it_is_told_to() {
    let trace = trace(1, 100);
    let whole = replay(&trace, ReplayPolicy::Lru, 50, true, |_| true);
    let half = replay(&trace, ReplayPolicy::Lru, 50, true, |number| number < 50);
    assert!(half.plain < whole.plain);
}
