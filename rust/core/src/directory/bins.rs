//! From a key to its header: bins of one cache line, one overflow unit each, no rehash.
//!
//! Owns: entries {tag 24, generation hint 8, slot + 1 32}, the control word {version 19, valid 21,
//! link 24} of each bin, and the pool of units. Never does: read a header; who compares keys
//! passes a closure. Invariants: an entry counts iff its valid bit is set in the home word; bits
//! 0-6 are the home line, 7-20 the unit; every change of a valid bit changes the version. Readers
//! never wait. Writers share one short lock.

use crate::directory::slab::{Slab, Zeroed};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, fence};
use crate::units::Slot;

const HOME_ENTRIES: usize = 7;
const UNIT_ENTRIES: usize = 14;
const ENTRIES: usize = HOME_ENTRIES + UNIT_ENTRIES;
const CONTROL: usize = 7;
/// Headers a bin on average, times two: 3.5 fills half of a home line.
const HEADERS_IN_TWO_BINS: usize = 7;
const UNITS_MIN: usize = 64;
const UNITS_MAX: usize = (1 << 24) - 2;
const VALID: u64 = (1 << ENTRIES) - 1;
const UNIT_VALID: u64 = VALID & !((1 << HOME_ENTRIES) - 1);
const LINK_BITS: u32 = 24;
const VERSION_SHIFT: u32 = 45;

#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct Line([AtomicU64; 8]);

#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct Unit([[AtomicU64; 8]; 2]);

// SAFETY: integers behind atomics only.
unsafe impl Zeroed for Line {}
// SAFETY: integers behind atomics only.
unsafe impl Zeroed for Unit {}

/// Where a key belongs: its bin and the tag of its entry.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    bin: u32,
    tag: u32,
}

/// A decoded entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) slot: Slot,
    /// The low 8 bits of the header's generation when the entry was made.
    pub(crate) hint: u8,
}

/// What a search of one bin ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search<T> {
    /// An entry the closure accepted.
    Found(T),
    /// No such entry, and the bin did not change meanwhile.
    Absent,
    /// No such entry seen, but the bin changed: it may have been there.
    Unsure,
}

#[derive(Clone, Copy)]
struct Control(u64);

impl Control {
    fn valid(self) -> u64 {
        (self.0 >> LINK_BITS) & VALID
    }

    fn unit(self) -> Option<usize> {
        ((self.0 & ((1 << LINK_BITS) - 1)) as usize).checked_sub(1)
    }

    fn next(self, valid: u64, unit: Option<usize>) -> Self {
        let version = (self.0 >> VERSION_SHIFT).wrapping_add(1) << VERSION_SHIFT;
        Self(version | valid << LINK_BITS | unit.map_or(0, |u| u as u64 + 1))
    }
}

/// Free units; held by the one writer.
pub(crate) struct Writer {
    free: Vec<u32>,
    fresh: usize,
}

/// The table.
pub(crate) struct Bins {
    lines: Slab<Line>,
    units: Slab<Unit>,
    writer: Mutex<Writer>,
    seeds: [u64; 2],
}

fn entry(tag: u32, generation: u32, slot: Slot) -> u64 {
    u64::from(tag) << 40 | u64::from(generation as u8) << 32 | u64::from(slot.0 + 1)
}

/// The 128-bit product folded: one multiplication that lets every key bit reach every result bit.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

impl Bins {
    /// A table for so many headers; `seeds` place keys differently in every store.
    pub(crate) fn new(headers: usize, seeds: [u64; 2]) -> Self {
        let bins = (headers * 2).div_ceil(HEADERS_IN_TWO_BINS).max(1);
        let units = (bins / 8).clamp(UNITS_MIN, UNITS_MAX);
        Self {
            lines: Slab::new(bins),
            units: Slab::new(if cfg!(loom) { 1 } else { units }),
            writer: Mutex::new(Writer { free: Vec::new(), fresh: 0 }),
            seeds,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lines.bytes() + self.units.bytes()
    }

    #[inline]
    pub(crate) fn place(&self, key: [u64; 2]) -> Place {
        let mixed = fold(key[0] ^ self.seeds[0], key[1] ^ self.seeds[1]);
        let mixed = fold(mixed ^ key[1], 0x9E37_79B9_7F4A_7C15);
        // The bin from the high bits, the tag from the low ones.
        let bin = ((u128::from(mixed) * self.lines.len() as u128) >> 64) as u32;
        Place { bin, tag: mixed as u32 & 0xFF_FFFF }
    }

    #[inline]
    pub(crate) fn prefetch(&self, place: Place) {
        super::prefetch(&self.lines[place.bin as usize]);
    }

    fn control(&self, place: Place, order: Ordering) -> Control {
        Control(self.lines[place.bin as usize].0[CONTROL].load(order))
    }

    fn word(&self, place: Place, control: Control, bit: usize) -> Option<&AtomicU64> {
        if bit < HOME_ENTRIES {
            return Some(&self.lines[place.bin as usize].0[bit]);
        }
        let unit = &self.units[control.unit()?];
        let at = bit - HOME_ENTRIES;
        Some(&unit.0[at / 8][at % 8])
    }

    /// Entries of this tag whose valid bit is set, in order, until `accept` takes one.
    #[inline]
    fn scan<T>(
        &self,
        place: Place,
        control: Control,
        mut accept: impl FnMut(Candidate, usize) -> Option<T>,
    ) -> Option<T> {
        let mut valid = control.valid();
        while valid != 0 {
            let bit = valid.trailing_zeros() as usize;
            valid &= valid - 1;
            let word = self.word(place, control, bit)?.load(Ordering::Relaxed);
            if word >> 40 == u64::from(place.tag) && word as u32 != 0 {
                let slot = Slot(word as u32 - 1);
                let found = accept(Candidate { slot, hint: (word >> 32) as u8 }, bit);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// The first entry of this tag: nearly always the right one, to be prefetched and tried first.
    #[inline]
    pub(crate) fn guess(&self, place: Place) -> Option<Candidate> {
        let control = self.control(place, Ordering::Acquire);
        self.scan(place, control, |candidate, _| Some(candidate))
    }

    /// Wait-free search; `accept` compares the key in the header.
    #[inline]
    pub(crate) fn search<T>(
        &self,
        place: Place,
        mut accept: impl FnMut(Candidate) -> Option<T>,
    ) -> Search<T> {
        // Acquire: an entry whose bit is seen was written before it.
        let before = self.control(place, Ordering::Acquire);
        if let Some(found) = self.scan(place, before, |candidate, _| accept(candidate)) {
            return Search::Found(found);
        }
        // Acquire fence: an entry seen cleared or reused above makes the change of the control
        // word, which came first, visible below.
        fence(Ordering::Acquire);
        let after = self.control(place, Ordering::Relaxed);
        if after.0 == before.0 { Search::Absent } else { Search::Unsure }
    }

    /// The one writer's lock: short, never held across a copy or a wait.
    pub(crate) fn write(&self) -> MutexGuard<'_, Writer> {
        match self.writer.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// Under the writer's lock: the first entry of this tag that `accept` takes.
    pub(crate) fn find_locked<T>(
        &self,
        _writer: &mut Writer,
        place: Place,
        mut accept: impl FnMut(Candidate) -> Option<T>,
    ) -> Option<T> {
        let control = self.control(place, Ordering::Relaxed);
        self.scan(place, control, |candidate, _| accept(candidate))
    }

    /// Under the writer's lock: enters a header whose key is not there. False: unit full or none.
    pub(crate) fn insert(
        &self,
        writer: &mut Writer,
        place: Place,
        slot: Slot,
        generation: u32,
    ) -> bool {
        let control = self.control(place, Ordering::Relaxed);
        let mut unit = control.unit();
        let bit = (!control.valid()).trailing_zeros() as usize;
        if bit >= ENTRIES {
            return false;
        }
        if bit >= HOME_ENTRIES && unit.is_none() {
            unit = writer.take_unit(self.units.len());
            if unit.is_none() {
                return false;
            }
        }
        let next = control.next(control.valid() | 1 << bit, unit);
        let Some(word) = self.word(place, next, bit) else { return false };
        // Release: a reader that followed an old link into a unit used again, and meets this entry,
        // sees that its control word has changed.
        word.store(entry(place.tag, generation, slot), Ordering::Release);
        // Release: whoever sees the bit sees the entry, and the header published before it.
        self.lines[place.bin as usize].0[CONTROL].store(next.0, Ordering::Release);
        true
    }

    /// Under the writer's lock: takes exactly this header's entry out; false where it is not in.
    pub(crate) fn remove(&self, writer: &mut Writer, place: Place, slot: Slot) -> bool {
        let control = self.control(place, Ordering::Relaxed);
        let bit =
            self.scan(place, control, |candidate, bit| (candidate.slot == slot).then_some(bit));
        let Some(bit) = bit else { return false };
        let valid = control.valid() & !(1 << bit);
        let unit = control.unit().filter(|_| valid & UNIT_VALID != 0);
        let next = control.next(valid, unit);
        self.lines[place.bin as usize].0[CONTROL].store(next.0, Ordering::Relaxed);
        if let Some(word) = self.word(place, control, bit) {
            // Release: a reader that meets the 0 also sees the control word stored above.
            word.store(0, Ordering::Release);
        }
        if let (Some(gone), None) = (control.unit(), unit) {
            writer.free.push(gone as u32);
        }
        true
    }

    /// Every valid entry, for the recount.
    pub(crate) fn each(&self, mut visit: impl FnMut(Slot)) {
        for bin in 0..self.lines.len() {
            let place = Place { bin: bin as u32, tag: 0 };
            let control = self.control(place, Ordering::Acquire);
            let mut valid = control.valid();
            while valid != 0 {
                let bit = valid.trailing_zeros() as usize;
                valid &= valid - 1;
                let word = self.word(place, control, bit).map_or(0, |w| w.load(Ordering::Relaxed));
                visit(Slot((word as u32).wrapping_sub(1)));
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
impl Bins {
    pub(crate) fn same_bin(&self, a: Place, b: Place) -> bool {
        a.bin == b.bin
    }

    pub(crate) fn units_in_use(&self) -> usize {
        let writer = self.write();
        writer.fresh - writer.free.len()
    }
}

impl Writer {
    fn take_unit(&mut self, units: usize) -> Option<usize> {
        if let Some(unit) = self.free.pop() {
            return Some(unit as usize);
        }
        (self.fresh < units).then(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }
}
