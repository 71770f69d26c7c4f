//! Ghosts: fingerprints of blocks that have left, in two orders.
//!
//! Owns: a hash table and two lists over one pool of nodes. Never does: decide when one is
//! forgotten. Invariants: a fingerprint is on at most one list; the pool never shrinks and is at
//! most as large as the most ghosts there ever were at once.

use super::Fingerprint;
use crate::units::NONE;
use zerocopy::IntoBytes;

/// Equality word by word: a comparison of 16 bytes at once waits for two stores of 8 each.
#[inline]
pub(super) fn same(a: Fingerprint, b: Fingerprint) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) == 0
}

#[derive(Clone, Copy)]
struct Node {
    key: Fingerprint,
    older: u32,
    younger: u32,
    /// The next node of the same bucket; of the free list where the node is free.
    chain: u32,
    list: u32,
}

#[derive(Clone, Copy)]
struct List {
    oldest: u32,
    youngest: u32,
    len: u64,
}

/// Two lists of ghosts, oldest first.
pub(super) struct Ghosts {
    nodes: Vec<Node>,
    free: u32,
    /// First node of each bucket, plus one, so that the table starts as untouched zero pages.
    buckets: Vec<u32>,
    lists: [List; 2],
    dense: bool,
}

impl Ghosts {
    /// Room for about `most` ghosts; more would only make the buckets longer. `dense`:
    /// fingerprints are small numbers (replay), of which neighbours come together.
    pub(super) fn new(most: usize, dense: bool) -> Self {
        let list = List { oldest: NONE, youngest: NONE, len: 0 };
        let buckets = vec![0; most.max(1).next_power_of_two()];
        Self { nodes: Vec::new(), free: NONE, buckets, lists: [list; 2], dense }
    }

    pub(super) fn len(&self, list: usize) -> u64 {
        self.lists[list].len
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.nodes.capacity() * size_of::<Node>() + self.buckets.len() * 4) as u64
    }

    pub(super) fn table(&self) -> &[u8] {
        self.buckets.as_bytes()
    }

    #[inline]
    fn bucket(&self, key: Fingerprint) -> usize {
        // Keys may be anything a caller chose: one multiplication spreads them.
        let mixed = (key[0] ^ key[1].rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let bucket = if self.dense { key[0] } else { mixed >> 32 };
        bucket as usize & (self.buckets.len() - 1)
    }

    #[inline]
    fn find(&self, key: Fingerprint) -> Option<u32> {
        let mut at = self.buckets[self.bucket(key)].wrapping_sub(1);
        while at != NONE {
            let node = &self.nodes[at as usize];
            if same(node.key, key) {
                return Some(at);
            }
            at = node.chain;
        }
        None
    }

    /// The list a ghost is on.
    #[inline]
    pub(super) fn list_of(&self, key: Fingerprint) -> Option<usize> {
        self.find(key).map(|at| self.nodes[at as usize].list as usize)
    }

    /// Enters a ghost, which is on no list, at the young end.
    pub(super) fn push(&mut self, list: usize, key: Fingerprint) {
        debug_assert_eq!(self.list_of(key), None);
        let bucket = self.bucket(key);
        let chain = self.buckets[bucket].wrapping_sub(1);
        let older = self.lists[list].youngest;
        let node = Node { key, older, younger: NONE, chain, list: list as u32 };
        let at = match self.free {
            NONE => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
            at => {
                self.free = self.nodes[at as usize].chain;
                self.nodes[at as usize] = node;
                at
            }
        };
        self.buckets[bucket] = at + 1;
        match older {
            NONE => self.lists[list].oldest = at,
            older => self.nodes[older as usize].younger = at,
        }
        self.lists[list].youngest = at;
        self.lists[list].len += 1;
    }

    /// Forgets a ghost; whether it was there.
    pub(super) fn remove(&mut self, key: Fingerprint) -> bool {
        let Some(at) = self.find(key) else { return false };
        self.take_out(at);
        true
    }

    /// Forgets the oldest ghost of a list; whether there was one.
    pub(super) fn drop_oldest(&mut self, list: usize) -> bool {
        let at = self.lists[list].oldest;
        if at != NONE {
            self.take_out(at);
        }
        at != NONE
    }

    fn take_out(&mut self, at: u32) {
        let node = self.nodes[at as usize];
        let bucket = self.bucket(node.key);
        let mut before = self.buckets[bucket].wrapping_sub(1);
        if before == at {
            self.buckets[bucket] = node.chain.wrapping_add(1);
        } else {
            while self.nodes[before as usize].chain != at {
                before = self.nodes[before as usize].chain;
            }
            self.nodes[before as usize].chain = node.chain;
        }
        let list = node.list as usize;
        match node.older {
            NONE => self.lists[list].oldest = node.younger,
            older => self.nodes[older as usize].younger = node.younger,
        }
        match node.younger {
            NONE => self.lists[list].youngest = node.older,
            younger => self.nodes[younger as usize].older = node.older,
        }
        self.lists[list].len -= 1;
        self.nodes[at as usize].chain = self.free;
        self.free = at;
    }

    /// Walks a list, oldest first; panics where links, counts or the table disagree.
    pub(super) fn validate(&self, list: usize) -> Vec<Fingerprint> {
        let (mut keys, mut older, mut at) = (Vec::new(), NONE, self.lists[list].oldest);
        while at != NONE {
            let node = &self.nodes[at as usize];
            assert_eq!(node.older, older, "ghost {at} has another neighbour");
            assert_eq!(node.list as usize, list, "ghost {at} is marked for another list");
            assert_eq!(self.find(node.key), Some(at), "ghost {at} is not in the table");
            keys.push(node.key);
            (older, at) = (at, node.younger);
        }
        assert_eq!(self.lists[list].youngest, older, "the young end");
        assert_eq!(self.lists[list].len, keys.len() as u64, "the length");
        keys
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn two_lists_equal_two_queues_over_a_random_history() {
        let (mut ghosts, mut queues) = (Ghosts::new(32, false), [VecDeque::new(), VecDeque::new()]);
        let mut random = 3_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (key, list) = ([random >> 58, 0], (random >> 40) as usize % 2);
            match random >> 33 & 3 {
                0 => {
                    let there = queues[list].pop_front().is_some();
                    assert_eq!(ghosts.drop_oldest(list), there);
                }
                _ if ghosts.list_of(key).is_some() => {
                    let on = queues.iter().position(|q| q.contains(&key));
                    assert_eq!(ghosts.list_of(key), on);
                    assert!(ghosts.remove(key));
                    queues.iter_mut().for_each(|q| q.retain(|k| *k != key));
                }
                _ => {
                    assert!(!ghosts.remove(key));
                    ghosts.push(list, key);
                    queues[list].push_back(key);
                }
            }
            for list in [0, 1] {
                assert_eq!(ghosts.len(list), queues[list].len() as u64);
            }
        }
        assert_eq!([0, 1].map(|list| VecDeque::from(ghosts.validate(list))), queues);
        assert!(ghosts.nodes.len() <= 64, "the pool is used again");
    }
}
