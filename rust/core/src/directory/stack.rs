//! A lock-free stack of numbers: free headers, free frames, woken headers.
//!
//! Owns: the head word {tag 32, number + 1 32} and the order of link and head. Never does: keep
//! the links; whoever has the numbers lends one `AtomicU32` for each. Invariant: a number is on at
//! most one stack at a time, and its link belongs to that stack.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::units::NONE;

/// A Treiber stack; the tag, changed by every step, makes a pop that slept fail.
#[derive(Default)]
pub(crate) struct Stack {
    head: AtomicU64,
}

fn pack(tag: u32, number: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(number.wrapping_add(1))
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, (word as u32).wrapping_sub(1))
}

impl Stack {
    pub(crate) fn push<'a>(&self, number: u32, link: impl Fn(u32) -> &'a AtomicU32) {
        let mut word = self.head.load(Ordering::Relaxed);
        loop {
            let (tag, top) = unpack(word);
            link(number).store(top, Ordering::Relaxed);
            let new = pack(tag.wrapping_add(1), number);
            // Release: who pops the number sees its link and all that its last owner wrote.
            match self.head.compare_exchange_weak(word, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    pub(crate) fn pop<'a>(&self, link: impl Fn(u32) -> &'a AtomicU32) -> Option<u32> {
        // Acquire: pairs with the push, so the link read below is the one stored there.
        let mut word = self.head.load(Ordering::Acquire);
        loop {
            let (tag, top) = unpack(word);
            if top == NONE {
                return None;
            }
            let next = link(top).load(Ordering::Relaxed);
            let new = pack(tag.wrapping_add(1), next);
            match self.head.compare_exchange_weak(word, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(top),
                Err(now) => word = now,
            }
        }
    }

    /// Takes everything at once: the first number, the rest through the links.
    pub(crate) fn take_all(&self) -> Option<u32> {
        let mut word = self.head.load(Ordering::Relaxed);
        loop {
            let (tag, top) = unpack(word);
            if top == NONE {
                return None;
            }
            let new = pack(tag.wrapping_add(1), NONE);
            match self.head.compare_exchange_weak(word, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(top),
                Err(now) => word = now,
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        unpack(self.head.load(Ordering::Relaxed)).1 == NONE
    }
}
