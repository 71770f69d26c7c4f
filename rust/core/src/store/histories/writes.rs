//! Verbs that store and delete, on the store and on the model.
//!
//! Owns: what a put's and a deletion's answer means. Never does: look at what is there afterwards,
//! which is the business of `look`.

use super::history::{Done, FLUSH, History};
use super::model::{self, Shelf, Version};
use super::situations::Situation;
use crate::store::{PutOptions, Rows};
use std::time::Duration;

impl History {
    pub(super) fn put(&mut self) -> Done {
        let (run, parent) = if self.plan.tangled { self.run() } else { self.natural() };
        let chained = !self.rng.one_in(12);
        let parent = parent.filter(|_| !self.rng.one_in(4));
        let keys = self.keys_of(&run);
        let row_bytes = self.row_bytes();
        let mut versions = Vec::with_capacity(run.len());
        for (number, row) in run.iter().zip(self.bytes.chunks_mut(row_bytes)) {
            let lengths = &self.plan.lengths;
            let len = lengths[self.rng.below(lengths.len() as u64) as usize];
            self.versions += 1;
            model::fill(&mut row[..len as usize], *number, self.versions);
            versions.push(Version::new(self.versions, len));
        }
        let rows: Vec<&[u8]> = self
            .bytes
            .chunks(row_bytes)
            .zip(&versions)
            .map(|(row, version)| &row[..version.len as usize])
            .collect();
        let parent_key = parent.map(|number| self.plan.keys[number]);
        let waits = [0, 5, 300];
        let ms = waits[self.rng.below(3) as usize];
        let hurried = !self.plan.is_plentiful() && self.rng.one_in(10);
        let wait = hurried.then_some(Duration::from_millis(ms));
        let options = PutOptions { parent: parent_key, chained, wait };
        let before = self.left();
        let covered = self.store.put(&keys, &Rows::list(&rows), &options);
        let covered = covered.map_err(|error| format!("put failed: {error}"))?;
        self.asked[0] += run.len() as u64;
        let kept = before == self.left();
        self.say(|| {
            format!(
                "put {run:?} after {parent:?} chained {chained} from version {} -> {covered}",
                versions[0].number
            )
        });
        if covered > run.len() {
            return Err(format!("a put of {} blocks stored {covered}", run.len()));
        }
        for (at, (number, version)) in run.iter().zip(&versions).enumerate() {
            let repeats = run[..at].contains(number);
            let was_there = self.there[*number] || repeats;
            self.shelves[*number].put(*version, was_there, kept && !repeats, at < covered);
        }
        let frames = self.plan.frames;
        let over = covered > frames && frames > 0;
        self.situations.note(Situation::ChainOverRam, over);
        let short = covered < run.len() && !self.leases.is_empty();
        self.situations.note(Situation::ShortOfLeases, short && run.len() <= frames);
        let patient = wait.unwrap_or(self.plan.config.put_wait) >= Duration::from_millis(200);
        let free = patient && run.iter().chain(&parent).all(|number| !self.there[*number]);
        self.after_put(&run[..covered], kept, run.len(), free)
    }

    /// What a put returned is there, and on an honest disk it is all that fits. `free`: nothing of
    /// it, nor its parent, was there and kept others from leaving.
    fn after_put(&mut self, covered: &[usize], kept: bool, asked: usize, free: bool) -> Done {
        if kept {
            let keys = self.keys_of(covered);
            let there = self.store.contains(&keys).map_err(|error| error.to_string())?;
            if let Some(at) = there.iter().position(|there| !there) {
                return Err(format!("put covered key {} which is not there", covered[at]));
            }
        }
        let fits = asked <= self.plan.frames && self.leases.is_empty() && free;
        if !self.harmed && fits && covered.len() < asked {
            // Removed blocks keep their frames while children of theirs are in RAM.
            let recount = self.store.validate().map_err(|wrong| format!("recount: {wrong:?}"))?;
            if recount.hidden > 0 {
                return Ok(());
            }
            return Err(format!("a put of {asked} blocks came short: {}", covered.len()));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self) -> Done {
        let durable = !self.rng.one_in(3);
        self.remove_some(durable)
    }

    pub(super) fn remove_some(&mut self, durable: bool) -> Done {
        let (run, _) = if self.rng.one_in(2) { self.wild() } else { self.natural() };
        let most = 1 + self.rng.below(4) as usize;
        self.remove_run(&run[..run.len().min(most)], durable)
    }

    pub(super) fn remove_run(&mut self, run: &[usize], durable: bool) -> Done {
        let keys = self.keys_of(run);
        let done = self.store.remove(&keys, durable);
        let good = done.is_ok();
        self.say(|| format!("remove {run:?} durable {durable} -> {:?}", done.map_err(|e| e.code)));
        let confirmed = self.is_confirmed(good, "remove")?;
        for number in run {
            self.shelves[*number].remove(durable, confirmed);
        }
        Ok(())
    }

    /// Whether a deletion that the disk called good is to be believed; an honest disk says so.
    fn is_confirmed(&mut self, good: bool, verb: &str) -> Result<bool, String> {
        self.situations.note(Situation::Unconfirmed, !good);
        if !good && !self.harmed {
            return Err(format!("an honest disk did not confirm a {verb}"));
        }
        Ok(good && !self.lied)
    }

    /// Whether the disk has confirmed it.
    pub(super) fn clear(&mut self) -> Result<bool, String> {
        let done = self.store.clear();
        let good = done.is_ok();
        self.say(|| format!("clear -> {:?}", done.map_err(|e| e.code)));
        let confirmed = self.is_confirmed(good, "clear")?;
        self.shelves.iter_mut().for_each(|shelf| shelf.clear(confirmed));
        Ok(good)
    }

    /// What is there then is warm after any crash that follows at once; whether all is written.
    pub(super) fn flush(&mut self) -> Result<bool, String> {
        let left = self.store.flush(FLUSH).map_err(|error| error.to_string())?;
        self.say(|| format!("flush -> {left} left"));
        if left > 0 && !self.harmed && self.plan.is_plentiful() {
            return Err(format!("an honest flush left {left}"));
        }
        if left == 0 && !self.lied {
            self.shelves.iter_mut().for_each(Shelf::flushed);
        }
        Ok(left == 0)
    }
}
