//! Another store's directory, read while its owner goes on.
//!
//! Owns: the open files, what was read of the table, and when. Never does: take a lock or open
//! LOCK, write, have a thread or a clock, or wait for an owner. Invariants: one value is one state
//! of the directory's SUPER (a clear, another owner, other files are another value, and this one is
//! gone); a page that does not check is read again; a payload's tag is compared in memory of our
//! own, after the read; what `confirm` has said yes to stood in the table less than `FRESH_US` ago.

mod index;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use index::{Index, Known, walk};

use crate::error::Error;
use crate::io::{IO_ALIGN_BYTES, digest};
use crate::ssd::changes::{Changed, Reader, WHOLE_PAGES_MAX};
use crate::ssd::dir::{self, DirConfig};
use crate::ssd::format::{
    self, PAGE_BYTES, RECORDS_A_PAGE, SUPER_BYTES, Super, tag_bytes, tag_seed,
};
use crate::ssd::reads::{Buffer, read_all};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

/// What was seen so long ago still counts. An owner writes a page within 500 ms: what it removed is
/// served for less than a second more.
pub(crate) const FRESH_US: u64 = 400_000;
/// A count of changes that stands still for so long may be that of an owner that died before it
/// could enter its last page.
const STALE_US: u64 = 10_000_000;
/// Table pages of one read, and gaps that are read along.
const STEP_PAGES: u32 = 256;
const GAP_PAGES: u32 = 16;
/// Pages of a scan that nothing urges, in one look.
const SLOW_PAGES: u32 = 1024;
/// A SUPER that does not check may be about to be written: it is read so often.
const TRIES: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_millis(1);

const SUPER_AT: usize = 0;
const TABLE_AT: usize = 1;
const SLOTS_AT: usize = 2;

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Everything is known.
    Whole,
    /// Parts of the table are still to be read.
    More,
    /// It can't be told now.
    Unsure,
    /// It is another directory by now, or none.
    Gone,
}

/// What a payload turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Its bytes are those of its record.
    Good,
    /// They are others.
    Bad,
    /// They could not be read.
    Unreadable,
}

/// Device and inode of the directory and of its SUPER, by name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity([(u64, u64); 2]);

impl Identity {
    fn of(path: &Path) -> std::io::Result<Self> {
        let of = |path: &Path| path.symlink_metadata().map(|stat| (stat.dev(), stat.ino()));
        Ok(Self([of(path)?, of(&path.join("SUPER"))?]))
    }
}

/// What one looker at a time knows.
struct Watch {
    changes: Option<Reader>,
    /// Pages to be read now: told of, torn, or unreadable.
    again: BTreeSet<u32>,
    /// The next page of a scan that is under way, and whether everything waits for it.
    scan: Option<u32>,
    urgent: bool,
    /// When the owner last told of anything, or all was read because it had not for long.
    told_us: u64,
    buffer: Buffer,
}

/// Counts of all looks at a directory.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// Table pages read.
    pub(crate) pages: AtomicU64,
    /// Times that a scan of the whole table was begun.
    pub(crate) scans: AtomicU64,
}

/// A followed directory.
pub(crate) struct Followed {
    pub(crate) path: PathBuf,
    found: Super,
    identity: Identity,
    files: Vec<File>,
    index: RwLock<Index>,
    watch: Mutex<Watch>,
    /// When SUPER was seen to be the same, last.
    checked_us: AtomicU64,
    gone: AtomicBool,
    pub(crate) looks: Looks,
}

impl Followed {
    /// Opens a member's directory; nothing of its table is known yet.
    pub(crate) fn open(root: &Path, fingerprint: [u8; 16], member: &str) -> Result<Self, Error> {
        let path = root.join(dir::hex(&fingerprint)).join(member);
        let before = Identity::of(&path).ok();
        let look = DirConfig::to_look(root, fingerprint, member);
        let opened = dir::open(&DirConfig { direct: true, ..look })?;
        let found = opened.super_block.expect("a look has a SUPER or fails");
        let files: Vec<File> = opened.files.into_iter().map(|(file, _)| File::from(file)).collect();
        let identity = before.filter(|before| Identity::of(&path).ok() == Some(*before));
        let identity = identity.ok_or_else(|| dir::replaced(&path))?;
        // No more than the table has pages for, whatever SUPER says.
        let table_bytes = files[TABLE_AT].metadata().map_or(0, |stat| stat.len());
        let pages = table_bytes / PAGE_BYTES as u64;
        let slots = u64::from(opened.slots).min(pages * RECORDS_A_PAGE as u64) as u32;
        let watch = Watch {
            changes: opened.changes.map(|file| Reader::new(file.into(), found.uuid)),
            again: BTreeSet::new(),
            scan: None,
            urgent: false,
            told_us: 0,
            buffer: Buffer::default(),
        };
        Ok(Self {
            path,
            found,
            identity,
            files,
            index: RwLock::new(Index::new(slots)),
            watch: Mutex::new(watch),
            checked_us: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            looks: Looks::default(),
        })
    }

    /// What is known now.
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the directory is still the one that was opened, as far as was seen.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether its SUPER was looked at a short while ago, and was the same.
    pub(crate) fn is_fresh(&self, now_us: u64) -> bool {
        let checked_us = self.checked_us.load(Ordering::Acquire);
        !self.is_gone() && checked_us > 0 && now_us.saturating_sub(checked_us) <= FRESH_US
    }

    /// Whether it is the same directory by its name, which costs no read.
    pub(crate) fn is_named(&self) -> bool {
        let named = Identity::of(&self.path).is_ok_and(|now| now == self.identity);
        if !named {
            self.gone.store(true, Ordering::Release);
        }
        named
    }

    /// Whether it is the same directory and nothing was cleared in it.
    fn check(&self, now_us: u64, buffer: &mut Buffer) -> bool {
        if self.is_gone() || !self.is_named() {
            return false;
        }
        for tries_left in (0..TRIES).rev() {
            let bytes = buffer.get(SUPER_BYTES as usize);
            let len = read_all(&self.files[SUPER_AT], 0, bytes).unwrap_or(0);
            let copies = bytes[..len].split_at_checked(PAGE_BYTES);
            if let Some(Ok(now)) = copies.map(|(first, second)| format::newest(first, second)) {
                let same = self.is_same(&now);
                if same {
                    self.checked_us.fetch_max(now_us.max(1), Ordering::AcqRel);
                } else {
                    self.gone.store(true, Ordering::Release);
                }
                return same;
            }
            if tries_left > 0 {
                std::thread::sleep(TRY_AGAIN);
            }
        }
        false
    }

    fn is_same(&self, now: &Super) -> bool {
        let before = &self.found;
        // Each open and each clear begins an epoch.
        (now.uuid, now.epoch, now.clear_epoch) == (before.uuid, before.epoch, before.clear_epoch)
            && (now.slots, now.slots_a_file) == (before.slots, before.slots_a_file)
            && (now.stride_bytes, now.block_bytes) == (before.stride_bytes, before.block_bytes)
    }

    /// Looks for what has changed, and reads more of what is not known yet: one step of a scan at
    /// most. One look at a time; others wait for it.
    pub(crate) fn look(&self, now_us: &dyn Fn() -> u64) -> Looked {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = &mut *watch;
        let begun_us = now_us();
        if !self.check(begun_us, &mut watch.buffer) {
            return if self.is_gone() { Looked::Gone } else { Looked::Unsure };
        }
        let pages = self.index().pages();
        if pages <= WHOLE_PAGES_MAX {
            self.read_pages(0..pages, now_us, watch);
            return if watch.again.is_empty() { Looked::Whole } else { Looked::More };
        }
        self.hear(begun_us, now_us, watch);
        self.read_again(now_us, watch);
        self.index_mut().as_of_us = begun_us;
        self.scan(now_us, watch);
        if watch.scan.is_none() && watch.again.is_empty() { Looked::Whole } else { Looked::More }
    }

    /// Whether a scan is under way that everything waits for.
    pub(crate) fn is_urgent(&self) -> bool {
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.urgent && watch.scan.is_some()
    }

    fn index_mut(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the owner tells.
    fn hear(&self, begun_us: u64, now_us: &dyn Fn() -> u64, watch: &mut Watch) {
        match watch.changes.as_mut().map_or(Changed::Unknown, Reader::read) {
            Changed::Pages(pages) => {
                let quiet = pages.is_empty() && begun_us.saturating_sub(watch.told_us) >= STALE_US;
                watch.again.extend(pages.iter().filter(|page| **page < self.index().pages()));
                if !pages.is_empty() {
                    watch.told_us = begun_us;
                } else if quiet {
                    self.begin_scan(watch, begun_us, false);
                }
            }
            // Reads that begin from here on are covered by what it will tell.
            Changed::All => self.begin_scan(watch, now_us(), true),
            Changed::Unknown => {
                self.index_mut().hinted_since_us = u64::MAX;
                if watch.scan.is_none() {
                    let first = watch.told_us == 0;
                    self.begin_scan(watch, begun_us, first);
                    self.index_mut().hinted_since_us = u64::MAX;
                }
            }
        }
    }

    /// Everything is to be read: what was read before `since_us` is not covered any more.
    fn begin_scan(&self, watch: &mut Watch, since_us: u64, urgent: bool) {
        self.looks.scans.fetch_add(1, Ordering::Relaxed);
        self.index_mut().hinted_since_us = since_us;
        watch.scan = Some(0);
        watch.urgent = urgent;
        watch.told_us = since_us.max(1);
    }

    fn scan(&self, now_us: &dyn Fn() -> u64, watch: &mut Watch) {
        let Some(first) = watch.scan else { return };
        let pages = self.index().pages();
        let some = if watch.urgent { STEP_PAGES } else { SLOW_PAGES };
        let end = pages.min(first + some);
        for step in (first..end).step_by(STEP_PAGES as usize) {
            self.read_pages(step..end.min(step + STEP_PAGES), now_us, watch);
        }
        watch.scan = (end < pages).then_some(end);
    }

    /// Reads the pages that are to be read now, neighbours together.
    fn read_again(&self, now_us: &dyn Fn() -> u64, watch: &mut Watch) {
        let again = std::mem::take(&mut watch.again);
        let mut pages = again.into_iter().peekable();
        while let Some(first) = pages.next() {
            let mut end = first + 1;
            while let Some(next) =
                pages.next_if(|next| *next <= end + GAP_PAGES && *next < first + STEP_PAGES)
            {
                end = next + 1;
            }
            self.read_pages(first..end, now_us, watch);
        }
    }

    /// Reads some pages; what does not check, or can't be read, is to be read again.
    fn read_pages(&self, pages: std::ops::Range<u32>, now_us: &dyn Fn() -> u64, watch: &mut Watch) {
        let (begun_us, first) = (now_us(), pages.start);
        let bytes = watch.buffer.get(pages.len() * PAGE_BYTES);
        let offset = u64::from(first) * PAGE_BYTES as u64;
        let filled = read_all(&self.files[TABLE_AT], offset, bytes).unwrap_or(0);
        self.looks.pages.fetch_add(pages.len() as u64, Ordering::Relaxed);
        for page in pages {
            let at = (page - first) as usize * PAGE_BYTES;
            let bytes = bytes[..filled].get(at..at + PAGE_BYTES);
            if bytes.is_some_and(|bytes| self.take_in(page, bytes, begun_us)) {
                watch.again.remove(&page);
            } else {
                self.index_mut().distrust(page);
                watch.again.insert(page);
            }
        }
    }

    /// Takes a page in; false where it does not check.
    fn take_in(&self, page: u32, bytes: &[u8], read_us: u64) -> bool {
        let Super { uuid, block_bytes, clear_epoch, .. } = &self.found;
        let (sequence, records) = match format::open(bytes, uuid, page) {
            Some((sequence, records)) => (sequence, records),
            // Never written.
            None if bytes.iter().all(|byte| *byte == 0) => {
                (0, [format::Record::FREE; RECORDS_A_PAGE])
            }
            None => return false,
        };
        let lines = records.map(|record| Known::of(&record, *block_bytes, *clear_epoch));
        self.index_mut().take_in(page, sequence, read_us.max(1), &lines);
        true
    }

    /// Whether this block stood in this slot less than `FRESH_US` ago; reads what it takes to know.
    pub(crate) fn confirm(
        &self,
        slot: u32,
        generation: u64,
        now_us: &dyn Fn() -> u64,
        buffer: &mut Buffer,
    ) -> bool {
        let now = now_us();
        if !self.is_fresh(now) && !self.check(now, buffer) {
            return false;
        }
        let page = slot / RECORDS_A_PAGE as u32;
        if now.saturating_sub(self.index().known_until_us(page)) > FRESH_US {
            let bytes = buffer.get(PAGE_BYTES);
            let offset = u64::from(page) * PAGE_BYTES as u64;
            let read = read_all(&self.files[TABLE_AT], offset, bytes).unwrap_or(0);
            self.looks.pages.fetch_add(1, Ordering::Relaxed);
            if read < PAGE_BYTES || !self.take_in(page, bytes, now) {
                return false;
            }
        }
        self.index().generation_in(slot) == Some(generation)
    }

    /// Reads a block's bytes into the buffer and compares their tag.
    pub(crate) fn payload(&self, slot: u32, known: &Known, buffer: &mut Buffer) -> Payload {
        let Super { uuid, fingerprint, slots_a_file, stride_bytes, .. } = &self.found;
        let (file, offset) = format::place(slot, *slots_a_file, *stride_bytes);
        let len = known.len as usize;
        // A sane record is no longer than a block, and a block no longer than its slot.
        let bytes = buffer.get(len.next_multiple_of(IO_ALIGN_BYTES as usize));
        let file = self.files.get(SLOTS_AT + file as usize);
        let read = file.map_or(0, |file| read_all(file, offset, bytes).unwrap_or(0));
        if read < len {
            return Payload::Unreadable;
        }
        let seed = tag_seed(uuid, fingerprint, &known.key, known.len, known.generation);
        if tag_bytes(digest(seed, &bytes[..len])) == known.tag {
            Payload::Good
        } else {
            Payload::Bad
        }
    }
}
