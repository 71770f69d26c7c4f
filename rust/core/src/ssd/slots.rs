//! Free slots of the disk.
//!
//! Owns: which slot is free, used or quarantined. Never does: know what is in a slot. Invariants:
//! a slot is exactly one of the three; a quarantined one is never handed out again; slots are
//! handed out going forward, so that consecutive writes share a record page and seek little.

use crate::units::SsdSlot;

/// A set of numbers under a fixed bound; the next one from anywhere takes a step a level, however
/// few there are.
struct Bits {
    /// Each level has a bit for every word of the level below that is not 0; the last is one word.
    levels: Vec<Vec<u64>>,
}

impl Bits {
    /// The empty set.
    fn new(bound: u32) -> Self {
        let mut levels = Vec::new();
        let mut words = bound as usize;
        loop {
            words = words.div_ceil(64).max(1);
            levels.push(vec![0; words]);
            if words == 1 {
                return Self { levels };
            }
        }
    }

    /// All numbers under the bound.
    fn full(bound: u32) -> Self {
        let mut bits = Self::new(bound);
        let mut left = bound as usize;
        for level in &mut bits.levels {
            let words = left.div_ceil(64);
            level[..words].fill(u64::MAX);
            if !left.is_multiple_of(64) {
                level[words - 1] = (1 << (left % 64)) - 1;
            }
            left = words;
        }
        bits
    }

    fn has(&self, number: u32) -> bool {
        self.levels[0][number as usize / 64] >> (number % 64) & 1 != 0
    }

    fn insert(&mut self, number: u32) {
        let mut at = number as usize;
        for level in &mut self.levels {
            level[at / 64] |= 1 << (at % 64);
            at /= 64;
        }
    }

    fn remove(&mut self, number: u32) {
        let mut at = number as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The least number that is `from` or more.
    fn next(&self, from: u32) -> Option<u32> {
        let mut at = from as usize;
        for (height, level) in self.levels.iter().enumerate() {
            let word = level.get(at / 64)? & u64::MAX << (at % 64);
            if word != 0 {
                let mut found = at / 64 * 64 + word.trailing_zeros() as usize;
                for below in self.levels[..height].iter().rev() {
                    found = found * 64 + below[found].trailing_zeros() as usize;
                }
                return Some(found as u32);
            }
            at = at / 64 + 1;
        }
        None
    }

    fn bytes(&self) -> u64 {
        self.levels.iter().map(|level| level.len() as u64 * 8).sum()
    }
}

/// The slots of a directory.
pub(crate) struct Slots {
    free: Bits,
    quarantined: Bits,
    slots: u32,
    free_count: u32,
    quarantined_count: u32,
    /// Where to look for the next free slot.
    cursor: u32,
}

impl Slots {
    /// All free.
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            free: Bits::full(slots),
            quarantined: Bits::new(slots),
            slots,
            free_count: slots,
            quarantined_count: 0,
            cursor: 0,
        }
    }

    /// A free slot, used from now on: the next one behind the last one taken, else the first.
    pub(crate) fn take(&mut self) -> Option<SsdSlot> {
        let slot = self.free.next(self.cursor).or_else(|| self.free.next(0))?;
        self.free.remove(slot);
        self.free_count -= 1;
        self.cursor = slot + 1;
        Some(SsdSlot(slot))
    }

    /// A slot is used no more. A quarantined one stays where it is.
    pub(crate) fn give(&mut self, slot: SsdSlot) {
        debug_assert!(!self.free.has(slot.0), "{slot:?} was free already");
        if !self.quarantined.has(slot.0) && !self.free.has(slot.0) {
            self.free.insert(slot.0);
            self.free_count += 1;
        }
    }

    /// The device failed here: the slot is out of use until the directory is opened again.
    pub(crate) fn quarantine(&mut self, slot: SsdSlot) {
        if self.quarantined.has(slot.0) {
            return;
        }
        self.mark_used(slot);
        self.quarantined.insert(slot.0);
        self.quarantined_count += 1;
    }

    /// A block was found in this slot.
    pub(crate) fn mark_used(&mut self, slot: SsdSlot) {
        if self.free.has(slot.0) {
            self.free.remove(slot.0);
            self.free_count -= 1;
        }
    }

    #[cfg(test)]
    fn is_free(&self, slot: SsdSlot) -> bool {
        self.free.has(slot.0)
    }

    #[cfg(test)]
    fn is_quarantined(&self, slot: SsdSlot) -> bool {
        self.quarantined.has(slot.0)
    }

    pub(crate) fn free(&self) -> u32 {
        self.free_count
    }

    pub(crate) fn used(&self) -> u32 {
        self.slots - self.free_count - self.quarantined_count
    }

    pub(crate) fn quarantined(&self) -> u32 {
        self.quarantined_count
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.free.bytes() + self.quarantined.bytes()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
