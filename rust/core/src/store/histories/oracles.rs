//! What is checked after every operation.
//!
//! Owns: the comparison of store and model. Never does: change the store, but for reading events.

use super::history::{Done, History};
use super::plan::number_of;
use crate::event::EventKind;
use crate::io::SimDisk;
use crate::stats::Stats;
use crate::store::Recount;

impl History {
    pub(super) fn disk<R>(&self, work: impl FnOnce(&SimDisk) -> R) -> R {
        work(&self.store.world().expect("a simulated disk").disk)
    }

    /// After an operation: what is there, and whether it may be.
    pub(super) fn look(&mut self) -> Done {
        if self.store.is_poisoned() {
            return Err("a panic has poisoned the store".to_owned());
        }
        self.hear()?;
        let there = self.store.contains(&self.plan.keys).map_err(|error| error.to_string())?;
        for (number, there) in there.iter().enumerate() {
            if *there && self.shelves[number].now.is_empty() {
                return Err(format!("key {number} is there, of which nothing may be"));
            }
            let told = self.in_ram[number] || self.on_ssd[number].is_some();
            if *there != told {
                let (ram, ssd) = (self.in_ram[number], self.on_ssd[number]);
                return Err(format!(
                    "key {number} there: {there}; by the events in RAM {ram}, on SSD {ssd:?}"
                ));
            }
        }
        self.there = there;
        let quiet = self.store.with_tier(|tier, _| !tier.busy()) == Some(true);
        if quiet {
            self.shelves.iter_mut().for_each(super::model::Shelf::settle);
        }
        if self.rng.one_in(self.plan.recount_every) {
            self.recount()?;
        }
        Ok(())
    }

    fn recount(&mut self) -> Done {
        let count = self.store.validate().map_err(|wrong| format!("recount: {wrong:?}"))?;
        let stats = self.store.stats();
        self.nothing_is_left(&count, &stats)?;
        let ram = self.in_ram.iter().filter(|there| **there).count() as u64;
        let ssd = self.on_ssd.iter().flatten().count() as u64;
        let seen = self.store.with_tier(|tier, _| (tier.records(), tier.outstanding().reads));
        let (records, reads) = seen.unwrap_or_default();
        // One found bad while it is read has lost its record already.
        if records > ssd || records + u64::from(reads) < ssd {
            return Err(format!("{ssd} blocks on SSD, {records} records"));
        }
        let told = (stats.blocks_ram, stats.ssd.map_or(0, |ssd| ssd.blocks));
        if told != (ram, ssd) {
            return Err(format!("in RAM and on SSD by the events: {ram}, {ssd}; told {told:?}"));
        }
        self.memory_is_back()?;
        let held = std::mem::take(&mut self.leases);
        let checked = held.iter().try_for_each(|held| self.check_lease(held));
        self.leases = held;
        checked
    }

    /// An empty store at rest has all its frames, slots and headers.
    fn nothing_is_left(&self, count: &Recount, stats: &Stats) -> Done {
        let busy = self.store.with_tier(|tier, _| tier.busy()) != Some(false);
        if busy || !self.leases.is_empty() || self.there.contains(&true) {
            return Ok(());
        }
        let ssd = stats.ssd.as_ref().ok_or("no stats of the SSD")?;
        let slots = ssd.slots_free + ssd.quarantined;
        let all = slots == ssd.slots_total && stats.frames_free == stats.frames_total;
        if !all || count.holes + count.hidden > 0 {
            return Err(format!("an empty store keeps something: {count:?} {stats:?}"));
        }
        Ok(())
    }

    /// Nothing is out: then nothing is kept for it.
    fn memory_is_back(&self) -> Done {
        let seen = self.store.with_tier(|tier, _| (tier.busy(), tier.outstanding()));
        let Some((false, out)) = seen else { return Ok(()) };
        let staging = self.store.parts.staging.as_ref().ok_or("no staging frames")?;
        let (free, total) = (staging.frames.free(), staging.frames.total());
        let pages = out.bounce_used;
        if free < total || pages > self.pages_lost {
            let lost = self.pages_lost;
            return Err(format!(
                "{free} of {total} staging frames free, {pages} pages, {lost} lost"
            ));
        }
        Ok(())
    }

    /// Takes the events in.
    pub(super) fn hear(&mut self) -> Done {
        let now_us = self.now_us();
        // Also of a store that was closed just now.
        let events = self.store.keep(|keeper, _, _| keeper.log.take()).unwrap_or_default();
        for event in events {
            let Some(key) = event.key else {
                self.in_ram.fill(false);
                self.on_ssd.fill(None);
                continue;
            };
            let number = number_of(key);
            let stored = event.kind == EventKind::Stored;
            self.say(|| format!("     {:?} {number} {}", event.kind, event.tier));
            match event.tier {
                "ram" if self.in_ram[number] == stored => {
                    return Err(format!("event {event:?} of key {number} comes twice"));
                }
                "ram" => self.in_ram[number] = stored,
                _ if self.on_ssd[number].is_some() == stored => {
                    return Err(format!("event {event:?} of key {number} comes twice"));
                }
                _ => self.on_ssd[number] = stored.then_some(now_us),
            }
        }
        Ok(())
    }

    /// The counters add up, and nothing was dropped that had a place.
    pub(super) fn audit(&mut self) -> Done {
        let stats = self.store.stats();
        let puts = stats.puts + stats.put_present + stats.put_duplicate + stats.put_short;
        if puts != self.asked[0] {
            return Err(format!("{} blocks were put, counted {puts}: {stats:?}", self.asked[0]));
        }
        let gets = stats.hits + stats.misses;
        if gets != self.asked[1] {
            return Err(format!("{} blocks were got, counted {gets}: {stats:?}", self.asked[1]));
        }
        // An operator who puts old or other files in place may make them longer.
        if !self.lied {
            self.fits_the_disk()?;
        }
        let ssd = stats.ssd.ok_or("no stats of the SSD")?;
        let dropped = ssd.dropped_waited + ssd.dropped_refused + ssd.dropped_off;
        let lost = ssd.lost.saturating_sub(self.doubts);
        if lost > 0 && !self.reads_harmed {
            return Err(format!("{lost} blocks lost although no read failed: {ssd:?}"));
        }
        if self.plan.is_plentiful() && !self.harmed && dropped > 0 {
            return Err(format!("{dropped} blocks dropped although each had a place: {ssd:?}"));
        }
        Ok(())
    }

    /// The files take no more than they may.
    fn fits_the_disk(&self) -> Done {
        let ssd = self.plan.config.ssd.as_ref();
        let most: u64 = ssd.map_or(0, |ssd| ssd.places().map(|place| place.capacity_bytes).sum());
        let away: u64 = self.plan.away.iter().map(|place| place.capacity_bytes).sum();
        let most = most + away;
        let bytes = self.disk(SimDisk::bytes);
        if bytes > most { Err(format!("{bytes} bytes of {most} on disk")) } else { Ok(()) }
    }
}
