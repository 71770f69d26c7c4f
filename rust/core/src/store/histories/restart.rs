//! How a store ends and the next one begins: death, close, reopen; what must be warm then.
//!
//! Owns: the oracles of a restart. Never does: harm a disk by itself.

use super::history::{Done, FLUSH, History};
use super::situations::{Situation, What};
use crate::error::ErrorKind;
use crate::io::{Crash, FileId};
use crate::ssd::format::{PAGE_BYTES, SUPER_BYTES, newest};
use crate::store::tier::SUPER_FILE;

/// A block written so long ago is warm after a kill.
const WARM_AFTER_US: u64 = 1_000_000;

impl History {
    /// The keys that a kill at `at_us` must not lose.
    pub(super) fn must_be_warm(&self, at_us: u64) -> Vec<usize> {
        let old = |since: &Option<u64>| since.is_some_and(|us| us + WARM_AFTER_US < at_us);
        (0..self.there.len())
            .filter(|number| self.there[*number] && old(&self.on_ssd[*number]))
            .collect()
    }

    /// All that was stored, once everything is written.
    pub(super) fn on_disk(&self) -> Vec<usize> {
        (0..self.there.len()).filter(|number| self.on_ssd[*number].is_some()).collect()
    }

    pub(super) fn die(&mut self, what: What, power: bool, warm: &[usize]) -> Done {
        self.note_crash(what, power);
        let seed = self.rng.bits();
        self.say(|| format!("crash power {power}; warm: {warm:?}"));
        self.keep_some_leases();
        let world = self.store.world().cloned().ok_or("no simulated disk")?;
        self.store.closed.store(true, std::sync::atomic::Ordering::Release);
        let crash = if power { Crash::Power } else { Crash::Kill };
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
        let on_ssd = self.on_disk().len() as u64;
        if closed.written != on_ssd {
            return Err(format!("{on_ssd} blocks on SSD by the events, {closed:?}"));
        }
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
        // What hangs ends with the process at the latest.
        let end = if self.rng.one_in(2) { Crash::Power } else { Crash::Kill };
        let seed = self.rng.bits();
        self.disk(|disk| disk.crash(seed, end));
        self.reopen(&warm)
    }

    /// A copy was harmed, or its sync failed, or the disk lied.
    fn super_may_be_broken(&self) -> bool {
        let failed = self.disk(|disk| disk.counts().sync_errors > 0);
        self.super_harmed || self.lied || failed
    }

    /// A sync of the table failed, and SUPER does not say so.
    fn distrusted_in_vain(&self) -> bool {
        let of_each = self.store.with_tier(|tier, _| tier.distrusts()).unwrap_or_default();
        of_each.into_iter().filter(|(_, distrusts)| *distrusts).any(|(first_file, _)| {
            let mut copies = vec![0; SUPER_BYTES as usize];
            let file = FileId(first_file + SUPER_FILE.0);
            self.disk(|disk| disk.read(file, 0, &mut copies));
            let told = newest(&copies[..PAGE_BYTES], &copies[PAGE_BYTES..]);
            !told.is_ok_and(|found| found.distrusted)
        })
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
        // Of pages too, unless the next store hears of it.
        self.lied |= self.distrusted_in_vain();
        let mut warm = warm;
        if self.rng.one_in(8) {
            let size = self.plan.resize(&mut self.rng);
            self.situations.note(Situation::Grown, size.is_gt());
            self.situations.note(Situation::Shrunk, size.is_lt());
            // What lay in the slots that went is gone.
            warm = if size.is_lt() { &[] } else { warm };
            self.say_sizes();
        }
        if self.plan.devices() > 1 && self.change_devices() {
            warm = &[];
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
                        self.disk(|disk| disk.crash(seed, Crash::Power));
                        self.situations.note(Situation::CrashAtOpen, true);
                    }
                }
                Err(error) => return Err(format!("the store did not open again: {error}")),
            }
        };
        self.store = store;
        let honest = !self.harmed && !self.lied && !self.forgetful;
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
        self.pages_lost = self.sight().pages_lost();
        self.doubts = self.doubtful.iter().filter(|doubtful| **doubtful).count() as u64;
        self.asked = [0; 2];
        let waits = self.disk(|disk| disk.faults(|faults| faults.fail_next.is_some()));
        self.harmed = self.stormy || waits || self.sight().lacks_a_device();
        self.look()?;
        // Payloads that a sync of an earlier store failed to write, the disk has forgotten it owes.
        self.forgetful |= self.disk(|disk| disk.counts().sync_errors > 0);
        Ok(())
    }
}
