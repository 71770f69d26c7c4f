//! Which frames of the arena are free.
//!
//! Owns: the free stack of frame numbers and the frontier of frames never used. Never does: touch
//! a byte of a frame. Invariant: a number handed out by `take` is nobody else's until `give`.

use crate::directory::slab::Slab;
use crate::directory::stack::Stack;
use crate::sync::{AtomicU32, Ordering};
use crate::units::FrameId;

/// The free frames.
pub(crate) struct Frames {
    links: Slab<AtomicU32>,
    stack: Stack,
    /// Frames from here on were never handed out: taken in order, behind the prefault.
    fresh: AtomicU32,
    total: u32,
    /// Never more than are really free: counted after a give, before a take.
    free: AtomicU32,
}

impl Frames {
    pub(crate) fn new(total: u32) -> Self {
        Self {
            links: Slab::new(total as usize),
            stack: Stack::default(),
            fresh: AtomicU32::new(0),
            total,
            free: AtomicU32::new(total),
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.links.bytes()
    }

    /// Moves up to `want` free frames to `into`; how many.
    pub(crate) fn take(&self, want: usize, into: &mut Vec<FrameId>) -> usize {
        // The count is claimed first, so each claimed frame is found on the stack or the frontier.
        let claimed = self.claim(want);
        into.extend((0..claimed).map(|_| self.claimed()));
        claimed
    }

    /// One free frame.
    pub(crate) fn take_one(&self) -> Option<FrameId> {
        (self.claim(1) == 1).then(|| self.claimed())
    }

    fn claimed(&self) -> FrameId {
        let frame = self.fresh_frame().or_else(|| self.stack.pop(|n| &self.links[n as usize]));
        FrameId(frame.expect("a counted frame is there"))
    }

    /// Gives a frame back. The caller saw to it that nobody reads or writes it any more.
    pub(crate) fn give(&self, frame: FrameId) {
        self.stack.push(frame.0, |n| &self.links[n as usize]);
        // Release: who claims this count finds the push done.
        self.free.fetch_add(1, Ordering::Release);
    }

    fn claim(&self, want: usize) -> usize {
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            let take = free.min(u32::try_from(want).unwrap_or(u32::MAX));
            if take == 0 {
                return 0;
            }
            let new = free - take;
            match self.free.compare_exchange_weak(free, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return take as usize,
                Err(now) => free = now,
            }
        }
    }

    fn fresh_frame(&self) -> Option<u32> {
        if self.fresh.load(Ordering::Relaxed) >= self.total {
            return None;
        }
        let frame = self.fresh.fetch_add(1, Ordering::Relaxed);
        if frame < self.total {
            return Some(frame);
        }
        self.fresh.store(self.total, Ordering::Relaxed);
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_frame_is_handed_out_once() {
        let frames = Frames::new(5);
        let mut got = Vec::new();
        assert_eq!(frames.take(3, &mut got), 3);
        frames.give(got.remove(1));
        assert_eq!(frames.take(9, &mut got), 3);
        assert_eq!(frames.take(1, &mut got), 0);
        got.sort();
        assert_eq!(got, (0..5).map(FrameId).collect::<Vec<_>>());
        assert_eq!(frames.free(), 0);
    }

    #[test]
    fn threads_never_share_a_frame() {
        let frames = Frames::new(64);
        let owners: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    for round in 0..5_000_usize {
                        frames.take(round % 24, &mut mine);
                        for frame in &mine {
                            assert_eq!(owners[frame.index()].fetch_add(1, Ordering::SeqCst), 0);
                        }
                        for frame in mine.drain(..) {
                            owners[frame.index()].fetch_sub(1, Ordering::SeqCst);
                            frames.give(frame);
                        }
                    }
                });
            }
        });
        assert_eq!(frames.free(), 64);
    }
}
