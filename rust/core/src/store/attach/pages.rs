//! The table's pages on their way from disk into the image.
//!
//! Owns: the reads, several at a time, each into its own lane of the memory for pages. Never does:
//! judge what a page holds. Invariants: each page is taken in once; one that can't be read, or not
//! in time, counts as missed: its blocks are lost; what hangs keeps its memory.

use crate::arena::{Arena, MemoryId, Region, RowsMut};
use crate::io::{Completion, Engine, Op, Request};
use crate::ssd::format::PAGE_BYTES;
use crate::store::tier::{FEW_PAGES, PAGES_MAX, TABLE_FILE, Tier};
use std::time::Duration;

/// Reads under way at once; they share the memory for table pages.
const READ_LANES: u32 = 4;
const _: () = assert!(PAGES_MAX.is_multiple_of(READ_LANES) && FEW_PAGES.is_multiple_of(READ_LANES));

/// What is read, and what is to be.
pub(super) struct Pages {
    pages: u32,
    next: u32,
    /// What is out, by lane: the first page, and how many.
    out: [Option<(u32, u32)>; READ_LANES as usize],
    lane_pages: u32,
    buffer: Vec<u8>,
    io_timeout_us: u64,
    give_up_us: u64,
}

impl Pages {
    pub(super) fn new(tier: &Tier, bounce: &Arena, now_us: u64, io_timeout_us: u64) -> Self {
        let lane_pages = bounce.frames() / READ_LANES;
        Self {
            pages: tier.pages(),
            next: 0,
            out: [None; READ_LANES as usize],
            lane_pages,
            buffer: vec![0; lane_pages as usize * PAGE_BYTES],
            io_timeout_us,
            give_up_us: now_us.saturating_add(io_timeout_us),
        }
    }

    /// Pages asked for, and pages there are.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.next.into(), self.pages.into())
    }

    /// Begins what reads it can, waits so long for one, takes in what has come; true where that was
    /// all.
    pub(super) fn step(
        &mut self,
        tier: &mut Tier,
        engine: &dyn Engine,
        bounce: &Arena,
        now_us: impl Fn() -> u64,
        wait: Duration,
    ) -> bool {
        for lane in 0..READ_LANES as usize {
            if self.out[lane].is_none() && self.next < self.pages {
                let count = self.lane_pages.min(self.pages - self.next);
                engine.submit(&[self.read_of(lane as u32, self.next, count)]);
                self.out[lane] = Some((self.next, count));
                self.next += count;
            }
        }
        if self.out.iter().all(Option::is_none) {
            return true;
        }
        let mut reaped: Vec<Completion> = Vec::new();
        engine.reap(wait, &mut reaped);
        let now_us = now_us();
        for completion in reaped {
            let lane = completion.id as usize;
            let Some((first, count)) = self.out.get_mut(lane).and_then(Option::take) else {
                continue;
            };
            self.give_up_us = now_us.saturating_add(self.io_timeout_us);
            let region = self.read_of(lane as u32, first, count).region;
            let whole = completion.result == Ok(region.len);
            if whole {
                let bytes = region.len as usize;
                bounce.read(region, &RowsMut::packed(&mut self.buffer[..bytes], bytes), 0);
            }
            self.take_in(tier, first, count, whole, now_us);
        }
        now_us >= self.give_up_us && self.give_up(tier, now_us)
    }

    /// The device hangs: what is not here counts as missed, and the memory that hung reads may
    /// still write to is not used any more.
    fn give_up(&mut self, tier: &mut Tier, now_us: u64) -> bool {
        for lane in 0..READ_LANES {
            let Some((first, count)) = self.out[lane as usize].take() else { continue };
            let from = lane * self.lane_pages;
            tier.lose_bounce(from..from + self.lane_pages);
            self.take_in(tier, first, count, false, now_us);
        }
        let left = std::mem::replace(&mut self.next, self.pages)..self.pages;
        left.for_each(|page| tier.miss_page(page, now_us));
        true
    }

    fn take_in(&self, tier: &mut Tier, first: u32, count: u32, whole: bool, now_us: u64) {
        let pages = self.buffer.chunks_exact(PAGE_BYTES);
        for (page, bytes) in (first..first + count).zip(pages) {
            if whole {
                tier.load_page(page, bytes, now_us);
            } else {
                tier.miss_page(page, now_us);
            }
        }
    }

    /// The read of some pages into a lane.
    fn read_of(&self, lane: u32, first: u32, count: u32) -> Request {
        let bytes = self.lane_pages * PAGE_BYTES as u32;
        Request {
            id: u64::from(lane),
            op: Op::Read,
            file: TABLE_FILE,
            offset: u64::from(first) * PAGE_BYTES as u64,
            region: Region {
                who: MemoryId::PAGES,
                offset: u64::from(lane * bytes),
                len: count * PAGE_BYTES as u32,
            },
            digest: None,
            urgent: true,
        }
    }
}
