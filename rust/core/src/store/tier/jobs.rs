//! Requests that are out: what each is for, by its id.
//!
//! Owns: the table of jobs. Never does: decide. Invariant: a job leaves with the completion of its
//! request and not before, so whatever it names stays reserved until then.

use super::stage::{Peek, Staged};
use crate::units::{FrameId, Slot, SsdSlot};

/// What a request is for.
pub(super) enum Job {
    /// A held dirty block goes to SSD.
    Clean { slot: Slot, ssd: SsdSlot, generation: u64 },
    /// A held block comes back into its frame.
    Load { slot: Slot },
    /// A block goes to SSD past the arena.
    Stage(Box<Staged>),
    /// A block is read past the arena.
    Peek(Peek),
    /// A table page, sealed in a bounce frame.
    Page { page: u32, frame: FrameId },
    /// A copy of SUPER, in a bounce frame.
    Super,
    /// SUPER to stable storage.
    SyncSuper,
    /// The table to stable storage.
    SyncTable,
    /// A file of slots to stable storage.
    SyncSlots,
}

/// A job and its request's numbers.
pub(super) struct Begun {
    /// Which device's it is.
    pub(super) device: usize,
    pub(super) job: Job,
    pub(super) len: u32,
    /// The bounce frame, where there is one.
    pub(super) frame: FrameId,
    pub(super) begun_us: u64,
    /// Its deadline has passed, and that was counted.
    pub(super) late: bool,
    /// It decides about the breaker.
    pub(super) probe: bool,
}

/// All that is out. Ids are {turn 32, place 32}: a completion that comes twice finds nobody.
#[derive(Default)]
pub(super) struct Jobs {
    places: Vec<(u32, Option<Begun>)>,
    free: Vec<u32>,
    len: usize,
}

impl Jobs {
    pub(super) fn add(&mut self, begun: Begun) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let (turn, there) = &mut self.places[place as usize];
        *turn = turn.wrapping_add(1);
        *there = Some(begun);
        self.len += 1;
        u64::from(*turn) << 32 | u64::from(place)
    }

    pub(super) fn set_frame(&mut self, id: u64, frame: FrameId) {
        if let Some((_, Some(begun))) = self.places.get_mut(id as u32 as usize) {
            begun.frame = frame;
        }
    }

    /// Its deadline counts from now on.
    pub(super) fn start(&mut self, id: u64, now_us: u64) {
        if let Some((_, Some(begun))) = self.places.get_mut(id as u32 as usize) {
            begun.begun_us = now_us;
        }
    }

    pub(super) fn take(&mut self, id: u64) -> Option<Begun> {
        let (turn, there) = self.places.get_mut(id as u32 as usize)?;
        let begun = (*turn == (id >> 32) as u32).then(|| there.take()).flatten()?;
        self.free.push(id as u32);
        self.len -= 1;
        Some(begun)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Begun> {
        self.places.iter_mut().filter_map(|(_, there)| there.as_mut())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Begun> {
        self.places.iter().filter_map(|(_, there)| there.as_ref())
    }

    /// Writes of blocks: each has a slot that no header names.
    pub(super) fn writing(&self) -> u64 {
        let writes = |begun: &&Begun| matches!(begun.job, Job::Clean { .. } | Job::Stage(_));
        self.iter().filter(writes).count() as u64
    }

    /// Blocks being read into frames.
    pub(super) fn loading(&self) -> impl Iterator<Item = Slot> {
        self.iter().filter_map(|begun| match begun.job {
            Job::Load { slot } => Some(slot),
            _ => None,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}
