//! The table's image in RAM, and which of its pages the disk does not have yet.
//!
//! Owns: one record for each slot, each page's sequence and whether it differs from the disk.
//! Never does: I/O, or choose what a record says. Invariants: never two writes of one page in
//! flight; a page whose image changed is dirty until a write that was sealed after the change has
//! completed; the queue holds each page at most once, oldest change first.

use super::format::{PAGE_BYTES, RECORD_BYTES, RECORDS_A_PAGE, Record, seal, table_pages};
use crate::units::SsdSlot;
use std::collections::VecDeque;
use zerocopy::{FromBytes, IntoBytes};

/// A page is written at the latest this long after it changed.
pub(crate) const FLUSH_US: u64 = 500_000;

/// `dirty_since_us` of a page whose image is on disk or on its way there.
const CLEAN: u64 = u64::MAX;

#[derive(Clone)]
struct Page {
    sequence: u64,
    /// When the oldest change was made that no write has taken up.
    dirty_since_us: u64,
    in_flight: bool,
    /// Whether it is in the queue: dirty, and not found in flight at the queue's head.
    queued: bool,
}

/// The image.
pub(crate) struct Table {
    uuid: [u8; 16],
    /// A [`Record`] each; an array, so that the vector starts as untouched zero pages.
    image: Vec<[u64; RECORD_BYTES / 8]>,
    pages: Vec<Page>,
    queue: VecDeque<u32>,
    dirty: u32,
    in_flight: u32,
    /// The latest time seen: a clock that steps back must not put the queue out of order.
    latest_us: u64,
}

impl Table {
    /// An image of free slots, as a new directory has it on disk.
    pub(crate) fn new(slots: u32, uuid: [u8; 16]) -> Self {
        let page = Page { sequence: 0, dirty_since_us: CLEAN, in_flight: false, queued: false };
        let image = vec![[0; RECORD_BYTES / 8]; slots as usize];
        crate::arena::prefer_huge_pages(image.as_bytes());
        Self {
            uuid,
            image,
            pages: vec![page; table_pages(slots) as usize],
            queue: VecDeque::new(),
            dirty: 0,
            in_flight: 0,
            latest_us: 0,
        }
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let pages = self.pages.len() * size_of::<Page>() + self.queue.capacity() * size_of::<u32>();
        (self.image.as_bytes().len() + pages) as u64
    }

    pub(crate) fn slots(&self) -> u32 {
        self.image.len() as u32
    }

    pub(crate) fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// The page on which a slot's record is.
    pub(crate) fn page_of(slot: SsdSlot) -> u32 {
        slot.0 / RECORDS_A_PAGE as u32
    }

    pub(crate) fn get(&self, slot: SsdSlot) -> &Record {
        &self.image()[slot.index()]
    }

    /// The records of all slots from `first` on, free ones included.
    pub(crate) fn records_from(&self, first: usize) -> impl Iterator<Item = (SsdSlot, Record)> {
        let records = self.image().iter().enumerate().skip(first);
        records.map(|(slot, record)| (SsdSlot(slot as u32), *record))
    }

    /// The records of all slots that are not free.
    #[cfg(test)]
    pub(crate) fn records(&self) -> impl Iterator<Item = (SsdSlot, Record)> {
        self.records_from(0).filter(|(_, record)| !record.is_free())
    }

    pub(crate) fn set(&mut self, slot: SsdSlot, record: Record, now_us: u64) {
        self.image_mut()[slot.index()] = record;
        self.mark(Self::page_of(slot), now_us);
    }

    /// Makes the slot's record free.
    pub(crate) fn blank(&mut self, slot: SsdSlot, now_us: u64) {
        if !self.get(slot).is_free() {
            self.set(slot, Record::FREE, now_us);
        }
    }

    /// Notes a use, which goes to disk with the next change of the page: it is worth no write.
    pub(crate) fn touch_meta(&mut self, slot: SsdSlot, last_use: u32, hits: u8) {
        let record = &mut self.image_mut()[slot.index()];
        if !record.is_free() {
            (record.last_use, record.hits) = (last_use, hits);
        }
    }

    /// What the disk holds of a page is unknown (it could not be read): it counts as changed, so
    /// that nothing that stands there outlives a flush.
    pub(crate) fn distrust(&mut self, page: u32, now_us: u64) {
        self.mark(page, now_us);
    }

    /// Makes all records of a page free, which the caller distrusts.
    pub(crate) fn blank_page(&mut self, page: u32) {
        let range = self.range(page);
        self.image_mut()[range].fill(Record::FREE);
    }

    /// Takes over a page read from disk; false where it also has records of slots beyond the last,
    /// of a time when there were more.
    pub(crate) fn load_page(
        &mut self,
        page: u32,
        sequence: u64,
        records: &[Record; RECORDS_A_PAGE],
    ) -> bool {
        self.pages[page as usize].sequence = sequence;
        let range = self.range(page);
        let (kept, beyond) = records.split_at(range.len());
        self.image_mut()[range].copy_from_slice(kept);
        beyond.iter().all(Record::is_free)
    }

    /// The page whose oldest unwritten change is the oldest of all, if it is due and not in flight.
    pub(crate) fn next_due(&mut self, now_us: u64, urgent: bool) -> Option<u32> {
        let page = self.head()?;
        let due_us = self.due_us(page);
        (urgent || due_us <= now_us).then_some(page)
    }

    /// When `next_due` will have something to say, as things stand.
    pub(crate) fn next_due_at(&mut self) -> Option<u64> {
        self.head().map(|page| self.due_us(page))
    }

    /// Seals the image of a page that is not in flight into `out`, `PAGE_BYTES` long, and counts
    /// it as in flight and clean; returns its sequence.
    pub(crate) fn begin(&mut self, page: u32, out: &mut [u8]) -> u64 {
        debug_assert_eq!(out.len(), PAGE_BYTES);
        let range = self.range(page);
        let state = &mut self.pages[page as usize];
        assert!(!state.in_flight, "two writes of one page would land in any order");
        state.in_flight = true;
        self.in_flight += 1;
        state.sequence = state.sequence.wrapping_add(1);
        if state.dirty_since_us != CLEAN {
            state.dirty_since_us = CLEAN;
            self.dirty -= 1;
        }
        let sequence = state.sequence;
        if std::mem::take(&mut state.queued) {
            let place = self.queue.iter().position(|queued| *queued == page);
            self.queue.remove(place.expect("what is marked as queued is in the queue"));
        }
        seal(out, &self.uuid, page, sequence, &self.image()[range]);
        sequence
    }

    /// A page's write has ended. One that failed makes the page dirty as of now, unless it is
    /// already.
    pub(crate) fn done(&mut self, page: u32, ok: bool, now_us: u64) {
        let state = &mut self.pages[page as usize];
        assert!(state.in_flight, "a write ended that never began");
        state.in_flight = false;
        self.in_flight -= 1;
        if state.dirty_since_us == CLEAN {
            if !ok {
                self.mark(page, now_us);
            }
        } else if !state.queued {
            self.put_back(page);
        }
    }

    /// Whether the disk was given every change and confirmed it.
    pub(crate) fn settled(&self) -> bool {
        self.dirty == 0 && self.in_flight == 0
    }

    /// Pages that changed since their last write began.
    pub(crate) fn dirty_pages(&self) -> u32 {
        self.dirty
    }

    /// Pages being written.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn image(&self) -> &[Record] {
        <[Record]>::ref_from_bytes(self.image.as_bytes()).expect("as many words, aligned alike")
    }

    fn image_mut(&mut self) -> &mut [Record] {
        <[Record]>::mut_from_bytes(self.image.as_mut_bytes()).expect("as many words, aligned alike")
    }

    fn range(&self, page: u32) -> std::ops::Range<usize> {
        let start = page as usize * RECORDS_A_PAGE;
        start..(start + RECORDS_A_PAGE).min(self.image.len())
    }

    fn due_us(&self, page: u32) -> u64 {
        self.pages[page as usize].dirty_since_us.saturating_add(FLUSH_US)
    }

    fn mark(&mut self, page: u32, now_us: u64) {
        let state = &mut self.pages[page as usize];
        if state.dirty_since_us != CLEAN {
            return;
        }
        self.latest_us = self.latest_us.max(now_us.min(CLEAN - 1));
        state.dirty_since_us = self.latest_us;
        state.queued = true;
        self.dirty += 1;
        self.queue.push_back(page);
    }

    /// The oldest page that is not in flight. Those in flight leave the queue until they are done,
    /// so that each is passed once.
    fn head(&mut self) -> Option<u32> {
        while let Some(&page) = self.queue.front() {
            let state = &mut self.pages[page as usize];
            if !state.in_flight {
                return Some(page);
            }
            state.queued = false;
            self.queue.pop_front();
        }
        None
    }

    /// Returns a page to the queue that `head` took out. It was at the head, so only others that
    /// came back like it can be older: as many as are in flight, at most.
    fn put_back(&mut self, page: u32) {
        let since_us = self.pages[page as usize].dirty_since_us;
        let older = |queued: &&u32| self.pages[**queued as usize].dirty_since_us < since_us;
        let place = self.queue.iter().take_while(older).count();
        self.queue.insert(place, page);
        self.pages[page as usize].queued = true;
    }

    /// Recounts everything.
    #[cfg(test)]
    fn validate(&self) {
        let since = |page: &u32| self.pages[*page as usize].dirty_since_us;
        assert!(self.queue.iter().is_sorted_by_key(since));
        let count = |test: &dyn Fn(&Page) -> bool| self.pages.iter().filter(|p| test(p)).count();
        assert_eq!(count(&|page| page.queued), self.queue.len());
        assert!(self.queue.iter().all(|page| self.pages[*page as usize].queued));
        assert_eq!(count(&|page| page.dirty_since_us != CLEAN), self.dirty as usize);
        assert_eq!(count(&|page| page.in_flight), self.in_flight as usize);
        let lost = |page: &Page| {
            let dirty = page.dirty_since_us != CLEAN;
            page.queued && !dirty || dirty && !page.queued && !page.in_flight
        };
        assert_eq!(count(&lost), 0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
