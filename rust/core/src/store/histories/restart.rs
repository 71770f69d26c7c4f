//! How a store ends and the next one begins: crash, close, an operation cut short; what must be
//! warm then.
//!
//! Owns: the oracles of a restart. Never does: harm a disk by itself.

use super::history::{Done, FLUSH, History};
use super::situations::{Situation, What};
use crate::error::ErrorKind;
use crate::io::{FailNext, Mishap};

/// A block written so long ago is warm after a kill.
const WARM_AFTER_US: u64 = 1_000_000;

impl History {
    /// The keys that a kill at `at_us` must not lose.
    fn must_be_warm(&self, at_us: u64) -> Vec<usize> {
        let old = |since: &Option<u64>| since.is_some_and(|us| us + WARM_AFTER_US < at_us);
        (0..self.there.len())
            .filter(|number| self.there[*number] && old(&self.on_ssd[*number]))
            .collect()
    }

    /// All that was stored, once everything is written.
    fn on_disk(&self) -> Vec<usize> {
        (0..self.there.len()).filter(|number| self.on_ssd[*number].is_some()).collect()
    }

    /// The store ends without a word.
    pub(super) fn crash(&mut self) -> Done {
        match self.rng.below(8) {
            0 => self.crash_inside(),
            6 | 7 => self.crash_after_rewrite(),
            1 => {
                let flushed = self.flush()?;
                self.look()?;
                let warm = if flushed { self.on_disk() } else { Vec::new() };
                self.die(What::Other, true, &warm)
            }
            kind => {
                let power = kind < 4;
                let warm = if power { Vec::new() } else { self.must_be_warm(self.now_us()) };
                self.die(What::Other, power, &warm)
            }
        }
    }

    /// Blocks were removed and put again elsewhere; what the disk has of the old records and of the
    /// new ones is left to chance.
    fn crash_after_rewrite(&mut self) -> Done {
        self.remove_some(false)?;
        self.look()?;
        self.put()?;
        self.look()?;
        let us = self.rng.below(700_000);
        self.wait(us);
        self.look()?;
        self.die(What::Other, true, &[])
    }

    /// The store ends within a call: from some request on nothing is answered.
    fn crash_inside(&mut self) -> Done {
        self.calm();
        let after = self.rng.below(12) as u32;
        let next = FailNext { op: None, after, mishap: Mishap::Hang, forever: true };
        let power = self.rng.one_in(2);
        let warm = if power { Vec::new() } else { self.must_be_warm(self.now_us()) };
        let which = self.rng.below(6);
        let what = [What::Put, What::Remove, What::Remove, What::Clear, What::Other, What::Get];
        self.harmed_within(|history| {
            history.disk(|disk| disk.faults(|faults| faults.fail_next = Some(next)));
            history.say(|| format!("everything hangs after {after} requests"));
            match which {
                0 => history.put(),
                1 | 2 => history.remove(),
                3 => history.clear(),
                4 => history.flush().map(drop),
                _ => history.get(),
            }?;
            history.look()
        })?;
        self.disk(|disk| disk.faults(|faults| faults.fail_next = None));
        let warm: Vec<usize> = warm.into_iter().filter(|n| self.there[*n]).collect();
        self.die(what[which as usize], power, &warm)
    }

    fn harmed_within(&mut self, work: impl FnOnce(&mut Self) -> Done) -> Done {
        let before = std::mem::replace(&mut self.harmed, true);
        let done = work(self);
        self.harmed = before;
        done
    }

    fn die(&mut self, what: What, power: bool, warm: &[usize]) -> Done {
        self.note_crash(what, power);
        let seed = self.rng.bits();
        self.say(|| format!("crash power {power}; warm: {warm:?}"));
        self.keep_some_leases();
        let world = self.store.world().cloned().ok_or("no simulated disk")?;
        self.store.closed.store(true, std::sync::atomic::Ordering::Release);
        let crash = if power { crate::io::Crash::Power } else { crate::io::Crash::Kill };
        world.disk.crash(seed, crash);
        self.reopen(warm)
    }

    /// The store ends in order.
    pub(super) fn close(&mut self) -> Done {
        let before = self.sight();
        let closed = self.store.close(FLUSH);
        self.situations.note(Situation::HungAtClose, before.hangs() && self.sight().hangs());
        self.situations.note(Situation::ClosedDirty, closed.left > 0);
        self.hear()?;
        // Nothing is stored or written any more: what is on SSD stays.
        let warm = self.on_disk();
        self.say(|| format!("close -> {closed:?}; warm: {warm:?}"));
        let unclean = self.store.stats().ssd.is_none_or(|ssd| ssd.unclean);
        let whole = closed.left == 0 && !unclean;
        if !whole && !self.harmed {
            let without_room = closed.left > 0 && self.sight().is_full();
            if !without_room {
                return Err(format!("an honest disk did not confirm a close: {closed:?}"));
            }
        }
        if whole && !self.lied {
            self.shelves.iter_mut().for_each(super::model::Shelf::flushed);
        }
        self.keep_some_leases();
        if self.rng.one_in(2) {
            let seed = self.rng.bits();
            self.disk(|disk| disk.crash(seed, crate::io::Crash::Power));
        }
        self.reopen(&warm)
    }

    /// A copy was harmed, or its sync failed, or the disk lied.
    fn super_may_be_broken(&self) -> bool {
        let failed = self.disk(|disk| disk.counts().sync_errors > 0);
        self.super_harmed || self.lied || failed
    }

    fn say_sizes(&mut self) {
        let (frames, slots) = (self.plan.frames, self.plan.slots);
        self.say(|| format!("from here on {frames} frames, {slots} slots"));
    }

    fn keep_some_leases(&mut self) {
        if self.rng.one_in(2) {
            self.leases.clear();
        }
        self.situations.note(Situation::LeaseOutlives, !self.leases.is_empty());
    }

    fn reopen(&mut self, warm: &[usize]) -> Done {
        let mut warm = warm;
        if self.rng.one_in(8) {
            let size = self.plan.resize(&mut self.rng);
            self.situations.note(Situation::Grown, size.is_gt());
            self.situations.note(Situation::Shrunk, size.is_lt());
            // What lay in the slots that went is gone.
            warm = if size.is_lt() { &[] } else { warm };
            self.say_sizes();
        }
        let mut config = self.plan.config.clone();
        if !self.rng.one_in(3) {
            self.calm();
        }
        let store = loop {
            match self.open(&config) {
                Ok(store) => break store,
                Err(error) if error.kind == ErrorKind::Format && self.super_may_be_broken() => {
                    self.say(|| format!("open: {error}"));
                    config.ssd.as_mut().ok_or("no ssd")?.reset_on_mismatch = true;
                    self.situations.note(Situation::Reset, true);
                }
                Err(error) if error.kind == ErrorKind::Ssd && self.harmed => {
                    self.say(|| format!("open: {error}"));
                    self.stormy = true;
                    self.calm();
                    if self.rng.one_in(2) {
                        let seed = self.rng.bits();
                        self.disk(|disk| disk.crash(seed, crate::io::Crash::Power));
                        self.situations.note(Situation::CrashAtOpen, true);
                    }
                }
                Err(error) => return Err(format!("the store did not open again: {error}")),
            }
        };
        self.store = store;
        let honest = !self.harmed && !self.lied;
        let keys = self.plan.keys.clone();
        self.there = self.store.contains(&keys).map_err(|error| error.to_string())?;
        let mut came_back = false;
        for number in 0..self.there.len() {
            let was_gone = self.shelves[number].now.is_empty();
            came_back |= was_gone && self.there[number];
            let must = honest && warm.contains(&number);
            if must && !self.there[number] {
                return Err(format!("key {number} was on SSD and is not warm"));
            }
            self.shelves[number].reopen(must);
            // Removed or evicted ones may be found whose slots were written again.
            self.doubtful[number] = self.there[number] && (!must || self.doubtful[number]);
            self.in_ram[number] = false;
            self.on_ssd[number] = None;
        }
        // The events name what was found; it is as old as the disk.
        self.hear()?;
        self.on_ssd.iter_mut().flatten().for_each(|since_us| *since_us = 0);
        self.note_open(if honest { warm.len() } else { 0 }, came_back);
        self.doubts = self.doubtful.iter().filter(|doubtful| **doubtful).count() as u64;
        self.asked = [0; 2];
        let waits = self.disk(|disk| disk.faults(|faults| faults.fail_next.is_some()));
        self.harmed = self.stormy || waits;
        self.look()
    }
}
