//! Verbs that read, ask and hint: what comes back is what the model allows.
//!
//! Owns: the comparison of bytes. Never does: change what may be read, but for what a read has
//! shown to be there.

use super::history::{Done, FLUSH, Held, History, LEASES_MAX};
use super::model::{self, POISON, POISON_BYTES};
use super::situations::Situation;
use crate::store::RowsMut;
use std::time::Duration;

impl History {
    /// Makes the rows of the next read tell whether they were written; how far each does.
    fn poison(&mut self, rows: usize) -> usize {
        let row_bytes = self.row_bytes();
        let far = if self.rng.one_in(16) { row_bytes } else { POISON_BYTES.min(row_bytes) };
        for row in self.out.chunks_mut(row_bytes).take(rows) {
            row[..far].fill(POISON);
        }
        far
    }

    /// Checks one delivered row.
    fn read(&mut self, at: usize, number: usize, poisoned: usize) -> Done {
        let row_bytes = self.row_bytes();
        let row = &self.out[at * row_bytes..][..row_bytes];
        let shelf = &mut self.shelves[number];
        if let Some(seen) = model::recognize(row, poisoned, number, &shelf.now) {
            self.situations.note(Situation::StagedLate, seen.is_late());
            shelf.saw(seen);
            self.doubtful[number] = false;
            return Ok(());
        }
        let holds = model::describe(row);
        let old = model::recognize(row, poisoned, number, &shelf.ever);
        Err(format!("key {number}: read {holds}; ever put: {old:?}, legal now: {:?}", shelf.now))
    }

    pub(super) fn get(&mut self) -> Done {
        let (run, _) = self.run();
        let keys = self.keys_of(&run);
        let poisoned = self.poison(run.len());
        let row_bytes = self.row_bytes();
        let matched = run.iter().take_while(|number| self.there[**number]).count();
        let (before, tags) = (self.left(), self.bad_tags());
        let mut rows = RowsMut::packed(&mut self.out[..run.len() * row_bytes], row_bytes);
        let ms = self.rng.below(2);
        let timeout = self.rng.one_in(10).then_some(Duration::from_millis(ms));
        let got = self.store.get_within(&keys, &mut rows, timeout);
        let got = got.map_err(|error| format!("get failed: {error}"))?;
        self.asked[1] += run.len() as u64;
        self.say(|| format!("get {run:?} -> {got} of {matched}"));
        for (at, number) in run.iter().take(got).enumerate() {
            self.read(at, *number, poisoned)?;
        }
        let over = self.plan.frames > 0 && got > self.plan.frames;
        self.situations.note(Situation::GetOverRam, over);
        let bad = self.bad_tags() > tags;
        self.situations.note(Situation::BadTag, bad && got > 0 && got < matched);
        let doubt = run.get(got).is_some_and(|number| self.doubtful[*number]);
        let patient = timeout.is_none() && !self.harmed;
        if patient && !doubt && got < matched && before == self.left() {
            return Err(format!("{matched} blocks were there, a get brought {got}"));
        }
        Ok(())
    }

    pub(super) fn get_each(&mut self) -> Done {
        let (run, _) = self.wild();
        let keys = self.keys_of(&run);
        let poisoned = self.poison(run.len());
        let row_bytes = self.row_bytes();
        let before = self.left();
        let mut rows = RowsMut::packed(&mut self.out[..run.len() * row_bytes], row_bytes);
        let got = self.store.get_each(&keys, &mut rows).map_err(|error| error.to_string())?;
        self.asked[1] += run.len() as u64;
        self.say(|| format!("get_each {run:?} -> {got:?}"));
        for (at, number) in run.iter().enumerate() {
            if got[at] {
                self.read(at, *number, poisoned)?;
            } else if !self.harmed
                && !self.doubtful[*number]
                && self.there[*number]
                && before == self.left()
            {
                return Err(format!("get_each missed key {number}, which was there"));
            }
        }
        Ok(())
    }

    pub(super) fn lease(&mut self) -> Done {
        if self.leases.len() >= LEASES_MAX || !self.plan.leases {
            return self.drop_lease();
        }
        let (run, _) = self.run();
        let keys = self.keys_of(&run);
        let pinned = self.rng.one_in(4);
        let lease = if pinned {
            self.store.match_pinned(&keys).map(|(lease, _)| lease)
        } else {
            self.store.lease(&keys, 0)
        };
        let lease = lease.map_err(|error| error.to_string())?;
        if !pinned {
            self.asked[1] += run.len() as u64;
        }
        let len = lease.len();
        self.say(|| format!("lease {run:?} pinned only {pinned} -> {len}"));
        let mut blocks = Vec::new();
        for (at, number) in run.iter().take(len).enumerate() {
            let row_bytes = self.row_bytes();
            let row = &mut self.out[..row_bytes];
            row.fill(POISON);
            lease.copy_block(at, row);
            self.read(0, *number, row_bytes)?;
            let row = &self.out[..row_bytes];
            let seen = model::recognize(row, row_bytes, *number, &self.shelves[*number].ever);
            blocks.push((*number, seen.ok_or("a leased version that was never put")?));
        }
        self.leases.push(Held { lease, blocks });
        Ok(())
    }

    /// Drops a lease, whose bytes are still what they were.
    pub(super) fn drop_lease(&mut self) -> Done {
        if self.leases.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.leases.len() as u64) as usize;
        let held = self.leases.swap_remove(at);
        self.say(|| format!("drop the lease of {:?}", held.blocks));
        self.check_lease(&held)
    }

    pub(super) fn check_lease(&mut self, held: &Held) -> Done {
        let row_bytes = self.row_bytes();
        for (at, (number, version)) in held.blocks.iter().enumerate() {
            let row = &mut self.out[..row_bytes];
            row.fill(POISON);
            held.lease.copy_block(at, row);
            if model::recognize(row, row_bytes, *number, &[*version]).is_none() {
                let holds = model::describe(row);
                return Err(format!("a leased block {number} {version:?} changed: {holds}"));
            }
        }
        Ok(())
    }

    pub(super) fn ask(&mut self) -> Done {
        let (run, _) = self.run();
        let keys = self.keys_of(&run);
        let found = self.store.match_run(&keys).map_err(|error| error.to_string())?;
        let prefix = self.store.match_prefix(&keys).map_err(|error| error.to_string())?;
        self.say(|| format!("match {run:?} -> {found:?}"));
        let there = run.iter().take_while(|number| self.there[**number]).count();
        let ram = run[..there].iter().filter(|number| self.in_ram[**number]).count();
        if (found.blocks, found.ram, found.ssd, prefix) != (there, ram, there - ram, there) {
            return Err(format!("{there} were there, {ram} in RAM; match {found:?}, {prefix}"));
        }
        Ok(())
    }

    /// Reads all that is on SSD: what may have been bad is known then.
    pub(super) fn scrub(&mut self) -> Done {
        let doubts = self.doubtful.iter().any(|doubtful| *doubtful);
        let found = self.store.verify(None, FLUSH).map_err(|error| error.to_string())?;
        self.say(|| format!("scrub -> {found:?}"));
        if self.harmed {
            return Ok(());
        }
        if found.skipped > 0 || !found.done || (found.bad > 0 && !doubts) {
            return Err(format!("an honest disk's scrub: {found:?}"));
        }
        self.doubtful.fill(false);
        Ok(())
    }

    pub(super) fn hint(&mut self) -> Done {
        let (run, _) = self.run();
        let keys = self.keys_of(&run);
        let which = self.rng.below(3);
        let done = match which {
            0 => self.store.touch(&keys),
            1 => self.store.retire(&keys),
            _ => self.store.retain(&keys, Duration::from_millis(self.rng.below(3000))),
        };
        let name = ["touch", "retire", "retain"][which as usize];
        self.say(|| format!("{name} {run:?} -> {done:?}"));
        done.map(drop).map_err(|error| error.to_string())
    }
}
