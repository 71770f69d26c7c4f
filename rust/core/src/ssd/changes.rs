//! `changes`: a hint for those who follow a directory, which pages of its table were written.
//!
//! Owns: the file's bytes, entering pages, and reading what was entered since the last time. Never
//! does: matter to the owner (without it followers read the whole table), or say what a page holds.
//! Invariants: an entry is written before the head that counts it; an entry that is not whole, or
//! was overtaken, is known by its mark; whoever can't tell what changed is told to read everything.

use super::format::PAGE_BYTES;
use crate::io::digest64;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries of the ring.
pub(crate) const ENTRIES: u64 = 8192;
/// The whole file: a page for the head, then the ring.
pub(crate) const CHANGES_BYTES: u64 = PAGE_BYTES as u64 + ENTRIES * ENTRY_BYTES as u64;
/// A table of so many pages is read whole, which costs no more than the hint; no file is made.
pub(crate) const WHOLE_PAGES_MAX: u32 = 64;

const ENTRY_BYTES: usize = size_of::<Entry>();
const MAGIC: [u8; 8] = *b"KSTOWCHG";
/// Spreads a page's number over the mark, so that halves of two entries make none.
const SPREAD: u32 = 0x9E37_79B1;

const _: () = assert!(ENTRY_BYTES == 8);

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Head {
    magic: [u8; 8],
    uuid: [u8; 16],
    /// Drawn at every open: another one begins another count.
    owner: U64,
    /// Entries ever made by this owner.
    count: U64,
    crc: U64,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
struct Entry {
    page: U32,
    mark: U32,
}

/// What the entry of this number, for this page, is marked with.
fn mark(number: u64, page: u32) -> u32 {
    number as u32 ^ page.wrapping_mul(SPREAD)
}

fn crc(head: &[u8]) -> u64 {
    digest64(0, &head[..size_of::<Head>() - 8])
}

/// Where the entry of this number stands.
fn place(number: u64) -> u64 {
    PAGE_BYTES as u64 + number % ENTRIES * ENTRY_BYTES as u64
}

/// Runs of entry numbers that stand one after the other in the file.
fn runs(from: u64, to: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let turn = to.min(from.next_multiple_of(ENTRIES));
    [from..turn, turn..to].into_iter().filter(|run| !run.is_empty())
}

/// The owner's side.
#[derive(Debug)]
pub(crate) struct Changes {
    file: File,
    uuid: [u8; 16],
    owner: u64,
    count: u64,
}

impl Changes {
    /// Begins a new count in a file of `CHANGES_BYTES`.
    pub(crate) fn begin(file: File, uuid: [u8; 16]) -> io::Result<Self> {
        let changes = Self { file, uuid, owner: RandomState::new().hash_one(uuid), count: 0 };
        changes.write_head()?;
        Ok(changes)
    }

    /// Enters pages whose writes have ended.
    pub(crate) fn enter(&mut self, pages: &[u32]) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        let from = self.count;
        self.count += pages.len() as u64;
        // More than the ring holds: who follows is overtaken, and reads everything.
        if pages.len() as u64 <= ENTRIES {
            for run in runs(from, self.count) {
                let entries: Vec<Entry> = run
                    .clone()
                    .map(|number| (number, pages[(number - from) as usize]))
                    .map(|(number, page)| Entry {
                        page: page.into(),
                        mark: mark(number, page).into(),
                    })
                    .collect();
                self.file.write_all_at(entries.as_bytes(), place(run.start))?;
            }
        }
        self.write_head()
    }

    /// The hint can't be kept up: without a head nobody goes by it.
    pub(crate) fn give_up(self) -> io::Result<()> {
        self.file.set_len(0)
    }

    fn write_head(&self) -> io::Result<()> {
        let mut head = Head {
            magic: MAGIC,
            uuid: self.uuid,
            owner: self.owner.into(),
            count: self.count.into(),
            crc: 0.into(),
        };
        head.crc = crc(head.as_bytes()).into();
        self.file.write_all_at(head.as_bytes(), 0)
    }
}

/// What a follower is to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// These pages, each once, in order; none where nothing was entered.
    Pages(Vec<u32>),
    /// Everything: too much was entered, or another owner began. From here on the count holds.
    All,
    /// Everything, and the next time too: there is no head that checks.
    Unknown,
}

/// A follower's side.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    uuid: [u8; 16],
    /// The owner and its count, as far as they were read.
    seen: Option<(u64, u64)>,
}

impl Reader {
    pub(crate) fn new(file: File, uuid: [u8; 16]) -> Self {
        Self { file, uuid, seen: None }
    }

    /// What was entered since the last call.
    pub(crate) fn read(&mut self) -> Changed {
        let Some((owner, count)) = self.head() else {
            self.seen = None;
            return Changed::Unknown;
        };
        let seen = self.seen.replace((owner, count));
        let from = match seen {
            Some((same, from)) if same == owner && from <= count => from,
            _ => return Changed::All,
        };
        if count - from > ENTRIES {
            return Changed::All;
        }
        self.entries(from, count).map_or(Changed::All, Changed::Pages)
    }

    fn head(&self) -> Option<(u64, u64)> {
        let mut bytes = [0; size_of::<Head>()];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        let head = Head::ref_from_bytes(&bytes).ok()?;
        let right = head.magic == MAGIC && head.uuid == self.uuid && head.crc.get() == crc(&bytes);
        right.then(|| (head.owner.get(), head.count.get()))
    }

    fn entries(&self, from: u64, to: u64) -> Option<Vec<u32>> {
        let mut pages = Vec::with_capacity((to - from) as usize);
        for run in runs(from, to) {
            let mut bytes = vec![0; (run.end - run.start) as usize * ENTRY_BYTES];
            self.file.read_exact_at(&mut bytes, place(run.start)).ok()?;
            for (number, bytes) in run.zip(bytes.chunks_exact(ENTRY_BYTES)) {
                let entry = Entry::ref_from_bytes(bytes).ok()?;
                if entry.mark.get() != mark(number, entry.page.get()) {
                    return None;
                }
                pages.push(entry.page.get());
            }
        }
        pages.sort_unstable();
        pages.dedup();
        Some(pages)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
