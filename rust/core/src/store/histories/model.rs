//! The model: for each key, which bytes a reader may see.
//!
//! Owns: the versions put under each key, and the bytes of each. Never does: touch a store.
//! Invariants: a version is one key of one put; its bytes say whose they are as far as they are
//! long enough; `now` is a part of `ever`, which a restart may bring back.

const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
/// What a row holds before a read: so many bytes at its start, and after a block's end.
pub(super) const POISON: u8 = 0xEE;
pub(super) const POISON_BYTES: usize = 64;
/// A row of it, to compare with.
static POISONED: [u8; 8 * WORDS_MAX] = [POISON; 8 * WORDS_MAX];

/// Bytes that some put brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) number: u32,
    pub(super) len: u32,
    /// Removed, but the disk was not asked to confirm it.
    condemned: bool,
    /// Its put came short of it, but a write past RAM may still bring it.
    late: bool,
}

impl Version {
    pub(super) fn new(number: u32, len: u32) -> Self {
        Self { number, len, condemned: false, late: false }
    }

    /// Whether its put had come short of it, as far as is known.
    pub(super) fn is_late(self) -> bool {
        self.late
    }
}

/// What may be read of one key.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    /// In this store.
    pub(super) now: Vec<Version>,
    /// After a restart.
    pub(super) ever: Vec<Version>,
}

impl Shelf {
    /// A put named the key. `kept`: a block was there before and did not leave meanwhile.
    /// `covered`: the put says that it is there now.
    pub(super) fn put(&mut self, version: Version, was_there: bool, kept: bool, covered: bool) {
        self.ever.push(version);
        if was_there && kept {
            return;
        }
        if !was_there {
            self.now.retain(|version| version.late);
        }
        self.now.push(Version { late: !covered, ..version });
    }

    /// Nothing is under way any more that could bring a late version.
    pub(super) fn settle(&mut self) {
        self.now.iter_mut().for_each(|version| version.late = false);
    }

    /// A read has seen this one.
    pub(super) fn saw(&mut self, seen: Version) {
        self.now.retain(|version| version.number == seen.number || version.late);
    }

    /// A remove has returned. `confirmed`: by the disk; `asked`: it was to be.
    pub(super) fn remove(&mut self, asked: bool, confirmed: bool) {
        self.now.retain(|version| version.late);
        if asked && confirmed {
            self.ever.retain(|version| self.now.iter().any(|late| late.number == version.number));
        } else if !asked {
            // What is still to come is committed after the remove.
            let late = |number| self.now.iter().any(|late| late.number == number);
            for version in self.ever.iter_mut().filter(|version| !late(version.number)) {
                version.condemned = true;
            }
        }
    }

    /// A flush was confirmed: what was condemned is gone for good.
    pub(super) fn flushed(&mut self) {
        self.ever.retain(|version| !version.condemned);
    }

    /// A clear has returned.
    pub(super) fn clear(&mut self, confirmed: bool) {
        self.now.clear();
        if confirmed {
            self.ever.clear();
        }
    }

    /// The store is another one on the same disk. `warm`: what must have come back did.
    pub(super) fn reopen(&mut self, warm: bool) {
        // A remove that the disk did not confirm is over: what came back is there again.
        self.ever.iter_mut().for_each(|version| version.condemned = false);
        if !warm {
            self.now.clone_from(&self.ever);
        }
        self.settle();
    }
}

/// The words that a block's bytes are made of, but for its seed: comparing them is then a sum and
/// a comparison a word.
static WORDS: [u64; WORDS_MAX] = {
    let (mut words, mut at) = ([0; WORDS_MAX], 0);
    while at < WORDS_MAX {
        words[at] = (at as u64).wrapping_mul(BASE);
        at += 1;
    }
    words
};
/// Of the longest block.
const WORDS_MAX: usize = 1024;

fn seed_of(key: u32, version: u32) -> u64 {
    (u64::from(key) << 32 | u64::from(version)).wrapping_mul(BASE).rotate_left(29)
}

/// Writes the bytes of a version over `out`: {version, key, then what follows from both}.
pub(super) fn fill(out: &mut [u8], key: usize, version: u32) {
    let seed = seed_of(key as u32, version);
    if out.len() < 8 {
        let len = out.len();
        out.copy_from_slice(&seed.to_le_bytes()[..len]);
        return;
    }
    let (words, rest) = out.as_chunks_mut::<8>();
    for (word, own) in words.iter_mut().zip(&WORDS) {
        *word = seed.wrapping_add(*own).to_le_bytes();
    }
    words[0] = ((key as u64) << 32 | u64::from(version)).to_le_bytes();
    let len = rest.len();
    rest.copy_from_slice(&seed.to_be_bytes()[..len]);
}

fn is_filled(bytes: &[u8], key: usize, version: u32) -> bool {
    let seed = seed_of(key as u32, version);
    if bytes.len() < 8 {
        return bytes == &seed.to_le_bytes()[..bytes.len()];
    }
    let (words, rest) = bytes.as_chunks::<8>();
    let mut right = words[0] == ((key as u64) << 32 | u64::from(version)).to_le_bytes();
    let mut differs = 0;
    for (word, own) in words.iter().zip(&WORDS).skip(1) {
        differs |= u64::from_le_bytes(*word) ^ seed.wrapping_add(*own);
    }
    right &= differs == 0;
    right && rest == &seed.to_be_bytes()[..rest.len()]
}

/// Whether a row, poisoned so far before the read, holds exactly this version: its bytes, and
/// behind them what was there before.
fn holds(row: &[u8], poisoned: usize, key: usize, version: Version) -> bool {
    let len = version.len as usize;
    let behind = &row[len..row.len().min(len.max(poisoned))];
    is_filled(&row[..len], key, version.number) && behind == &POISONED[..behind.len()]
}

/// Which of the versions a row holds that was poisoned before the read.
pub(super) fn recognize(
    row: &[u8],
    poisoned: usize,
    key: usize,
    of: &[Version],
) -> Option<Version> {
    let holds = |version| holds(row, poisoned, key, version);
    if row.len() >= 8 && row[..8] != [POISON; 8] {
        let version = u32::from_le_bytes([row[0], row[1], row[2], row[3]]);
        let named = of.iter().rev().find(|v| v.number == version && v.len >= 8);
        if let Some(named) = named.filter(|named| holds(**named)) {
            return Some(*named);
        }
    }
    of.iter().rev().find(|version| version.len < 8 && holds(**version)).copied()
}

/// What a row holds, for people.
pub(super) fn describe(row: &[u8]) -> String {
    let head = &row[..row.len().min(20)];
    if row.len() < 8 {
        return format!("{head:?}");
    }
    let (version, key) = row[..8].split_at(4);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |sum, b| sum << 8 | u64::from(*b));
    format!("version {} of key {}? {head:02x?}", number(version), number(key))
}
