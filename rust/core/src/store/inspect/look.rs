//! A member's directory, open to be read: its SUPER, its table, its payloads.
//!
//! Owns: what is read where, and what a page that does not check is worth. Never does:
//! write, take a lock, or trust a number that `format` has not checked. Invariants: every read is
//! bounded by the buffer it goes to; the owner may be writing meanwhile, so what does not check is
//! looked at again before it counts.

use super::Member;
use crate::error::Error;
use crate::io::{IO_ALIGN_BYTES, digest};
use crate::ssd::dir::{self, DirConfig};
use crate::ssd::format::{self, PAGE_BYTES, RECORDS_A_PAGE, Record, SUPER_BYTES, Super, tag_bytes};
use crate::ssd::reads::{Buffer, read_all};
use crate::units::SsdSlot;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// Places of the files: SUPER, the table, the slots from here on.
const SUPER_AT: usize = 0;
const TABLE_AT: usize = 1;
const SLOTS_AT: usize = 2;
const LAYOUT: &str = "layout.json";
/// Table pages of one read.
const STEP_PAGES: u32 = 256;
/// A page or a SUPER that does not check may be about to be written: it is read so often.
const TRIES: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_millis(1);
/// After so many unreadable pages the table is broken, not busy: no more waiting.
const PATIENCE_PAGES: u32 = 64;

/// What a payload turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// Its bytes are those of its record.
    Good,
    /// They are others.
    Bad,
    /// They could not be read.
    Unreadable,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Look {
    files: Vec<File>,
    pub(super) found: Super,
    /// Slots that have a file.
    pub(super) slots: u32,
    pub(super) path: PathBuf,
    pub(super) warnings: Vec<String>,
    /// The layout's description, if it is the one that SUPER means.
    pub(super) layout: Option<String>,
}

impl Look {
    /// Opens a member's directory. `direct`: past the page cache where that can be, so that what
    /// is read is what the disk has.
    pub(super) fn open(member: &Member, direct: bool) -> Result<Self, Error> {
        let look = DirConfig::to_look(&member.root, member.fingerprint, &member.name);
        let opened = dir::open(&DirConfig { direct, ..look })?;
        let found = opened.super_block.expect("a look has a SUPER or fails");
        let mut look = Self {
            files: opened.files.into_iter().map(|(file, _)| File::from(file)).collect(),
            slots: opened.slots,
            found,
            path: opened.path,
            warnings: opened.warnings,
            layout: None,
        };
        look.layout = look.read_layout();
        Ok(look)
    }

    fn read_layout(&mut self) -> Option<String> {
        let path = self.path.join(LAYOUT);
        let nofollow = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let read = nofollow.and_then(|file| {
            let mut bytes = vec![0; format::LAYOUT_BYTES_MAX as usize + 1];
            let len = read_all(&file, 0, &mut bytes)?;
            bytes.truncate(len);
            Ok(bytes)
        });
        let why = match read {
            Ok(bytes) if *blake3::hash(&bytes).as_bytes() == self.found.layout_hash => {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            Ok(_) => "not the one that SUPER means".to_owned(),
            Err(error) => error.to_string(),
        };
        self.warnings.push(format!("{}: {why}.", path.display()));
        None
    }

    /// Pages of the table.
    pub(super) fn pages(&self) -> u32 {
        format::table_pages(self.slots)
    }

    /// Records up to this epoch are void now. As it was at the open where it can't be read any
    /// more.
    pub(super) fn clear_epoch_now(&self, buffer: &mut Buffer) -> u32 {
        let at_open = self.found.clear_epoch;
        let now = try_often(TRIES, || {
            let bytes = buffer.get(SUPER_BYTES as usize);
            let len = read_all(&self.files[SUPER_AT], 0, bytes).ok()?;
            let (first, second) = bytes[..len].split_at_checked(PAGE_BYTES)?;
            format::newest(first, second).ok()
        });
        now.map_or(at_open, |now| now.clear_epoch.max(at_open))
    }

    /// The record of a slot as it is now; `None` where its page can't be read.
    pub(super) fn record_now(&self, slot: SsdSlot, buffer: &mut Buffer) -> Option<Record> {
        let page = slot.0 / RECORDS_A_PAGE as u32;
        let records = try_often(TRIES, || self.page_now(page, buffer))?;
        Some(records[slot.index() % RECORDS_A_PAGE])
    }

    fn page_now(&self, page: u32, buffer: &mut Buffer) -> Option<[Record; RECORDS_A_PAGE]> {
        let bytes = buffer.get(PAGE_BYTES);
        let offset = u64::from(page) * PAGE_BYTES as u64;
        let len = read_all(&self.files[TABLE_AT], offset, bytes).ok()?;
        (len == PAGE_BYTES).then(|| self.decode(bytes, page)).flatten()
    }

    /// The records of a page; a page that was never written has free ones.
    fn decode(&self, bytes: &[u8], page: u32) -> Option<[Record; RECORDS_A_PAGE]> {
        match format::open(bytes, &self.found.uuid, page) {
            Some((_, records)) => Some(records),
            None if bytes.iter().all(|byte| *byte == 0) => Some([Record::FREE; RECORDS_A_PAGE]),
            None => None,
        }
    }

    /// All records that are not free, in the order of the slots.
    pub(super) fn records<'a>(&'a self, buffer: &'a mut Buffer) -> Records<'a> {
        Records {
            look: self,
            buffer,
            step: 0..0,
            filled: 0,
            page: [Record::FREE; RECORDS_A_PAGE],
            page_at: 0,
            slot: 0,
            unreadable: 0,
        }
    }

    /// Whether a live record may count: a writer of this format wrote it, after the last clear.
    pub(super) fn counts(&self, record: &Record, clear_epoch: u32) -> bool {
        record.is_sane(self.found.block_bytes) && format::epoch_of(record.generation) > clear_epoch
    }

    /// Reads a payload into the buffer and compares its tag.
    pub(super) fn payload(&self, slot: SsdSlot, record: &Record, buffer: &mut Buffer) -> Payload {
        let Super { slots_a_file, stride_bytes, .. } = self.found;
        let (file, offset) = format::place(slot.0, slots_a_file, stride_bytes);
        let len = record.len as usize;
        // A sane record is no longer than a block, and a block no longer than its slot.
        let bytes = buffer.get(len.next_multiple_of(IO_ALIGN_BYTES as usize));
        let read = match self.files.get(SLOTS_AT + file as usize) {
            Some(file) => read_all(file, offset, bytes).unwrap_or(0),
            None => 0,
        };
        if read < len {
            return Payload::Unreadable;
        }
        let Super { uuid, fingerprint, .. } = &self.found;
        let seed = format::tag_seed(uuid, fingerprint, &record.key, record.len, record.generation);
        if tag_bytes(digest(seed, &bytes[..len])) == record.tag {
            Payload::Good
        } else {
            Payload::Bad
        }
    }
}

/// What `work` gives, called up to so many times with a pause in between.
fn try_often<T>(tries: u32, mut work: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 1..tries {
        if let Some(done) = work() {
            return Some(done);
        }
        std::thread::sleep(TRY_AGAIN);
    }
    work()
}

/// The walk over a table.
pub(super) struct Records<'a> {
    look: &'a Look,
    buffer: &'a mut Buffer,
    /// Pages read ahead, and how many bytes of them came.
    step: std::ops::Range<u32>,
    filled: usize,
    page: [Record; RECORDS_A_PAGE],
    /// The page after the one that is handed out.
    page_at: u32,
    /// The next slot.
    slot: u32,
    /// Pages that could not be read, or do not check.
    pub(super) unreadable: u32,
}

impl Records<'_> {
    /// Takes the next page up.
    fn turn(&mut self) {
        let page = self.page_at;
        if page >= self.step.end {
            self.step = page..(page + STEP_PAGES).min(self.look.pages());
            let bytes = self.buffer.get(self.step.len() * PAGE_BYTES);
            let offset = u64::from(page) * PAGE_BYTES as u64;
            self.filled = read_all(&self.look.files[TABLE_AT], offset, bytes).unwrap_or(0);
        }
        let at = (page - self.step.start) as usize * PAGE_BYTES;
        let whole = at + PAGE_BYTES <= self.filled;
        let bytes = self.buffer.get(self.step.len() * PAGE_BYTES);
        let records = whole.then(|| self.look.decode(&bytes[at..at + PAGE_BYTES], page)).flatten();
        self.page = records.unwrap_or_else(|| {
            let tries = if self.unreadable < PATIENCE_PAGES { TRIES } else { 1 };
            let again = try_often(tries, || self.look.page_now(page, &mut Buffer::default()));
            self.unreadable += u32::from(again.is_none());
            again.unwrap_or([Record::FREE; RECORDS_A_PAGE])
        });
        self.page_at += 1;
    }
}

impl Iterator for Records<'_> {
    type Item = (SsdSlot, Record);

    fn next(&mut self) -> Option<Self::Item> {
        while self.slot < self.look.slots {
            let slot = self.slot;
            if slot / RECORDS_A_PAGE as u32 == self.page_at {
                self.turn();
            }
            self.slot += 1;
            let record = self.page[slot as usize % RECORDS_A_PAGE];
            if !record.is_free() {
                return Some((SsdSlot(slot), record));
            }
        }
        None
    }
}
