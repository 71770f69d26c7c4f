//! The table's pages on their way from disk into the image.
//!
//! Owns: the reads, several at a time, each into its own lane of the memory for pages. Never does:
//! judge what a page holds. Invariants: each page is taken in once; one that can't be read, or not
//! in time, counts as missed: its blocks are lost; what hangs keeps its memory.

use crate::arena::{Arena, MemoryId, Region, RowsMut};
use crate::io::{Completion, Engine, Op, Request};
use crate::ssd::format::PAGE_BYTES;
use crate::store::tier::{FEW_PAGES, PAGES_MAX, Tier};
use std::time::Duration;

/// Reads under way at once; they share the memory for table pages.
const READ_LANES: u32 = 4;
const _: () = assert!(PAGES_MAX.is_multiple_of(READ_LANES) && FEW_PAGES.is_multiple_of(READ_LANES));

/// What is read of one table.
struct Part {
    pages: u32,
    next: u32,
    /// What is out, by lane: the first page, and how many.
    out: [Option<(u32, u32)>; READ_LANES as usize],
}

/// What is read, and what is to be: of each device at the same time.
pub(super) struct Pages {
    parts: Vec<Part>,
    lane_pages: u32,
    buffer: Vec<u8>,
    io_timeout_us: u64,
    give_up_us: u64,
}

impl Pages {
    /// Of a device that is `fresh` nothing is read.
    pub(super) fn new(
        tier: &Tier,
        fresh: &[bool],
        bounce: &Arena,
        now_us: u64,
        io_timeout_us: u64,
    ) -> Self {
        let lane_pages = bounce.frames() / fresh.len() as u32 / READ_LANES;
        let parts = tier.pages().zip(fresh).map(|(pages, fresh)| {
            let pages = if *fresh { 0 } else { pages };
            Part { pages, next: 0, out: [None; READ_LANES as usize] }
        });
        Self {
            parts: parts.collect(),
            lane_pages,
            buffer: vec![0; lane_pages as usize * PAGE_BYTES],
            io_timeout_us,
            give_up_us: now_us.saturating_add(io_timeout_us),
        }
    }

    /// Pages asked for, and pages there are.
    pub(super) fn progress(&self) -> (u64, u64) {
        let sum = |of: fn(&Part) -> u32| self.parts.iter().map(|it| u64::from(of(it))).sum();
        (sum(|part| part.next), sum(|part| part.pages))
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
        self.submit(tier, engine);
        if self.parts.iter().all(|part| part.out.iter().all(Option::is_none)) {
            return true;
        }
        let mut reaped: Vec<Completion> = Vec::new();
        engine.reap(wait, &mut reaped);
        let now_us = now_us();
        for completion in reaped {
            let (at, lane) = (completion.id as u32 / READ_LANES, completion.id as u32 % READ_LANES);
            let part = self.parts.get_mut(at as usize);
            let Some((first, count)) = part.and_then(|part| part.out[lane as usize].take()) else {
                continue;
            };
            self.give_up_us = now_us.saturating_add(self.io_timeout_us);
            let region = self.region(at, lane, count);
            let whole = completion.result == Ok(region.len);
            if whole {
                let bytes = region.len as usize;
                bounce.read(region, &RowsMut::packed(&mut self.buffer[..bytes], bytes), 0);
            }
            self.take_in(tier, at as usize, (first, count), whole, now_us);
        }
        now_us >= self.give_up_us && self.give_up(tier, now_us)
    }

    fn submit(&mut self, tier: &Tier, engine: &dyn Engine) {
        for at in 0..self.parts.len() {
            for lane in 0..READ_LANES {
                let part = &mut self.parts[at];
                if part.out[lane as usize].is_some() || part.next == part.pages {
                    continue;
                }
                let (first, count) = (part.next, self.lane_pages.min(part.pages - part.next));
                part.out[lane as usize] = Some((first, count));
                part.next += count;
                let (file, offset) = tier.page_place(at, first);
                let region = self.region(at as u32, lane, count);
                let id = u64::from(at as u32 * READ_LANES + lane);
                let op = Op::Read;
                let request = Request { id, op, file, offset, region, digest: None, urgent: true };
                engine.submit(&[request]);
            }
        }
    }

    /// A device hangs: what is not here counts as missed, and the memory that hung reads may still
    /// write to is not used any more.
    fn give_up(&mut self, tier: &mut Tier, now_us: u64) -> bool {
        for at in 0..self.parts.len() {
            for lane in 0..READ_LANES {
                let Some(out) = self.parts[at].out[lane as usize].take() else { continue };
                let from = (at as u32 * READ_LANES + lane) * self.lane_pages;
                tier.lose_bounce(from..from + self.lane_pages);
                self.take_in(tier, at, out, false, now_us);
            }
            let part = &mut self.parts[at];
            let left = std::mem::replace(&mut part.next, part.pages)..part.pages;
            left.for_each(|page| tier.miss_page(at, page, now_us));
        }
        true
    }

    fn take_in(
        &self,
        tier: &mut Tier,
        device: usize,
        (first, count): (u32, u32),
        whole: bool,
        now_us: u64,
    ) {
        let pages = self.buffer.chunks_exact(PAGE_BYTES);
        for (page, bytes) in (first..first + count).zip(pages) {
            if whole {
                tier.load_page(device, page, bytes, now_us);
            } else {
                tier.miss_page(device, page, now_us);
            }
        }
    }

    /// The memory of a device's lane. A device's lanes are its own share of the memory for pages.
    fn region(&self, device: u32, lane: u32, count: u32) -> Region {
        let bytes = self.lane_pages * PAGE_BYTES as u32;
        Region {
            who: MemoryId::PAGES,
            offset: u64::from(device * READ_LANES + lane) * u64::from(bytes),
            len: count * PAGE_BYTES as u32,
        }
    }
}
