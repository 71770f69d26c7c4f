//! Leases: blocks read where they lie, kept in RAM while the lease lives.
//!
//! Owns: the pins of a lease and the register of live ones. Never does: hand out anything
//! writable. Invariants: every block of a lease is at or above one of its pins; the pins fall once,
//! with the last handle; the memory outlives the store's close.

use super::past::{Bytes, Reach, Way};
use super::{Matched, Store};
use crate::arena::fork_count;
use crate::directory::{Entry, Located, pieces};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::stats::add;
use crate::units::{FrameId, Slot};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Live leases: which frames and how many pins each keeps.
#[derive(Default)]
pub(super) struct Registry {
    live: Mutex<(u64, HashMap<u64, Held>)>,
}

struct Held {
    frames: Vec<u32>,
    pins: u64,
}

impl Registry {
    fn add(&self, frames: Vec<u32>, pins: u64) -> u64 {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.0 += 1;
        let id = live.0;
        live.1.insert(id, Held { frames, pins });
        id
    }

    fn remove(&self, id: u64) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&id);
    }

    /// Different frames kept by all leases together.
    pub(super) fn frames(&self) -> u64 {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let mut frames: Vec<u32> = live.1.values().flat_map(|h| h.frames.iter().copied()).collect();
        frames.sort_unstable();
        frames.dedup();
        frames.len() as u64
    }

    /// Pins of all leases.
    pub(super) fn pins(&self) -> u64 {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.1.values().map(|held| held.pins).sum()
    }

    pub(super) fn count(&self) -> usize {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).1.len()
    }
}

/// Leading blocks of a run, kept in RAM until the lease is dropped.
pub struct Lease {
    store: Arc<Store>,
    places: Vec<(FrameId, u32)>,
    pins: Vec<Slot>,
    id: u64,
}

impl Store {
    /// Leases the leading resident run, possibly empty.
    ///
    /// # Errors
    /// Closed; Capacity where fewer than `min_blocks` are there.
    pub fn lease(self: &Arc<Self>, keys: &[Key], min_blocks: usize) -> Result<Lease, Error> {
        self.check()?;
        self.bring_home(keys);
        let (lease, run) = self.pin_run(keys);
        if run.len() < min_blocks {
            drop(lease);
            add(&self.parts.counters.misses, keys.len() as u64);
            return Err(self.too_few(keys.len(), run.len(), min_blocks));
        }
        self.count_delivered(keys.len(), &run, 0);
        Ok(lease)
    }

    /// Pins the leading run where it is, in RAM and on SSD, as a match: nothing is moved or
    /// touched, and it counts as a lookup. The lease's blocks are those in RAM before the first
    /// that is not.
    ///
    /// # Errors
    /// Closed.
    pub fn match_pinned(self: &Arc<Self>, keys: &[Key]) -> Result<(Lease, Matched), Error> {
        self.check()?;
        let directory = &self.parts.directory;
        let mut run = self.look_up(keys);
        let _inside = self.gate.enter();
        let (mut pins, mut kept) = (Vec::new(), 0);
        for piece in pieces(&run) {
            let tail = run[piece.end - 1];
            if !directory.pin(tail.slot, tail.generation) {
                break;
            }
            pins.push(tail.slot);
            kept = piece.end;
        }
        run.truncate(kept);
        let (mut places, mut found, mut bytes) = (Vec::new(), Matched::default(), [0, 0]);
        for (entry, safe) in run.iter().zip(self.kept_in_ram(&run)) {
            if !safe && directory.pin(entry.slot, entry.generation) {
                pins.push(entry.slot);
            }
            let (len, in_ram) = match directory.located(entry) {
                Located::Ram(frame, len) => {
                    if found.ssd == 0 {
                        places.push((frame, len));
                    }
                    (len, true)
                }
                Located::Ssd(len) => (len, false),
                Located::Loading => (directory.len_of(entry).unwrap_or(0), false),
                Located::Gone => break,
            };
            found.blocks += 1;
            *(if in_ram { &mut found.ram } else { &mut found.ssd }) += 1;
            bytes[usize::from(!in_ram)] += u64::from(len);
        }
        found.bytes = bytes[0] + bytes[1];
        found.load_s = self.load_s(bytes[0], bytes[1]);
        self.count_looked_up(keys.len(), found.blocks);
        Ok((self.register(places, pins), found))
    }

    fn register(self: &Arc<Self>, places: Vec<(FrameId, u32)>, pins: Vec<Slot>) -> Lease {
        let frames = places.iter().map(|(frame, _)| frame.0).collect();
        let id = self.leases.add(frames, pins.len() as u64);
        Lease { store: Arc::clone(self), places, pins, id }
    }

    /// Leases the leading run that is in RAM, after what is on SSD was read into frames.
    fn pin_run(self: &Arc<Self>, keys: &[Key]) -> (Lease, Vec<Entry>) {
        let mut run = self.look_up(keys);
        let mut loaded_under = Vec::new();
        let deadline_us = self.deadline_us(self.io_timeout);
        while run.iter().any(|entry| !entry.in_ram) {
            // Kept until the second pass has pins of its own: what was loaded stays.
            let hand_over = |new: &mut Vec<Slot>| loaded_under.append(new);
            let wanted = run.len();
            let (reached, short) =
                self.deliver(keys, run, usize::MAX, Way::to(Reach::Frame), |_, _| true, hand_over);
            let whole = reached.len() >= wanted;
            if !whole && short {
                // Dirty blocks have the frames: they are waited for without a pin.
                self.unpin_all(&mut loaded_under);
                // Frames that are free and were of no use are no reason to try again.
                let progress = || self.with_tier(|tier, _| tier.progress());
                let before = progress();
                self.wait_for_clean(deadline_us, wanted);
                if progress() != before && self.parts.clock.now_us() < deadline_us {
                    run = self.look_up(keys);
                    continue;
                }
            }
            run = self.look_up(&keys[..reached.len()]);
            break;
        }
        let ram = run.iter().take_while(|entry| entry.in_ram).count();
        run.truncate(ram);
        let (mut places, mut pins) = (Vec::with_capacity(ram), Vec::new());
        let place = |_, block: Bytes<'_>| {
            places.push((block.frame, block.len));
            true
        };
        let keys = &keys[..ram];
        let hand_over = |new: &mut Vec<Slot>| pins.append(new);
        let (run, _) = self.deliver(keys, run, usize::MAX, Way::to(Reach::Ram), place, hand_over);
        self.unpin_all(&mut loaded_under);
        (self.register(places, pins), run)
    }

    fn unpin_all(&self, pins: &mut Vec<Slot>) {
        for slot in pins.drain(..) {
            self.parts.directory.unpin(slot);
        }
    }

    fn too_few(&self, asked: usize, found: usize, min_blocks: usize) -> Error {
        let (frames, pinned) = (self.frames_total(), self.leases.frames());
        let leases = self.leases.count();
        let message = format!(
            "{min_blocks} of {asked} blocks asked, {found} there ({pinned} of {frames} frames \
             pinned by {leases} leases)."
        );
        let hint = "put the missing blocks first, or lower min_blocks=; release leases or raise \
                    ram= where puts come short.";
        Error::new(ErrorKind::Capacity, "KS-CAP-001", message, hint)
            .with("min_blocks", min_blocks)
            .with("found", found)
            .with("frames", frames)
            .with("frames_pinned", pinned)
            .with("leases", leases)
    }
}

impl Lease {
    /// Blocks leased.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing was there to lease.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Their payload in bytes.
    pub fn bytes(&self) -> u64 {
        self.places.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// Where block `i` lies, and its length. The bytes don't change and stay there as long as
    /// this lease.
    pub fn block(&self, i: usize) -> Option<(*const u8, usize)> {
        let (frame, len) = *self.places.get(i)?;
        let arena = &self.store.parts.arena;
        Some((arena.pointer(arena.frame(frame, len)), len as usize))
    }
}

#[cfg(test)]
impl Lease {
    /// Copies block `i` to the start of `out`.
    pub(super) fn copy_block(&self, i: usize, out: &mut [u8]) {
        let (frame, len) = self.places[i];
        let arena = &self.store.parts.arena;
        let row = out.len();
        arena.read(arena.frame(frame, len), &crate::arena::RowsMut::packed(out, row), 0);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // In a forked child the register's lock may be held by a thread that does not exist.
        if self.store.forks != fork_count() {
            return;
        }
        self.store.leases.remove(self.id);
        for slot in self.pins.drain(..) {
            self.store.parts.directory.unpin(slot);
        }
    }
}
