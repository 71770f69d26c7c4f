//! One history: a store, the model beside it, and the operations on both.
//!
//! Owns: the state of a run. Never does: draw anything but from the operation's own stream, so that
//! leaving an operation out does not change what the others do.

use super::Tell;
use super::model::{self, POISON, POISON_BYTES, Shelf, Version};
use super::plan::{Nature, Plan};
use super::situations::{Situation, Situations};
use crate::io::{Rng, Snapshot};
use crate::key::Key;
use crate::store::{Lease, PutOptions, Rows, RowsMut, SimWorld, Store, StoreConfig};
use std::sync::Arc;
use std::time::Duration;

pub(super) type Done = Result<(), String>;

/// Blocks of one call at most.
const RUN_MAX: usize = 48;
const LEASES_MAX: usize = 4;
/// How long a flush or a close may take.
pub(super) const FLUSH: Duration = Duration::from_secs(5);

/// A lease, and what its blocks were when it was taken.
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) blocks: Vec<(usize, Version)>,
}

/// The run.
pub(super) struct History {
    pub(super) plan: Plan,
    pub(super) store: Arc<Store>,
    pub(super) shelves: Vec<Shelf>,
    /// Which keys were there after the last operation.
    pub(super) there: Vec<bool>,
    /// As the events tell it: in RAM, and since when on SSD.
    pub(super) in_ram: Vec<bool>,
    pub(super) on_ssd: Vec<Option<u64>>,
    pub(super) leases: Vec<Held>,
    pub(super) versions: u32,
    pub(super) rng: Rng,
    /// Blocks asked of put, and of get, get_each and lease, in this store.
    pub(super) asked: [u64; 2],
    /// The disk confirmed something it does not have.
    pub(super) lied: bool,
    /// Something went wrong on the disk since the store was opened.
    pub(super) harmed: bool,
    /// SUPER may be broken.
    pub(super) super_harmed: bool,
    /// Which blocks, found at open, may have lost their bytes; and how many there were.
    pub(super) doubtful: Vec<bool>,
    pub(super) doubts: u64,
    pub(super) stormy: bool,
    pub(super) situations: Situations,
    /// The power went while a table page was not on the disk.
    pub(super) page_cut: bool,
    pub(super) snapshot: Option<Snapshot>,
    tell: Tell,
    pub(super) trace: Vec<String>,
    bytes: Vec<u8>,
    pub(super) out: Vec<u8>,
}

impl History {
    pub(super) fn begin(plan: Plan, tell: Tell) -> Result<Self, String> {
        let seed = plan.config.ssd.as_ref().map_or(0, |ssd| ssd.seed);
        let world = SimWorld::new(seed);
        world.disk.faults(|faults| *faults = plan.calm.clone());
        let store = Store::open_in(&plan.config, Some(world)).map_err(|error| error.to_string())?;
        let keys = plan.keys.len();
        let block_bytes = plan.config.block_bytes as usize;
        let rng = Rng::new(plan.seed);
        Ok(Self {
            plan,
            store,
            shelves: vec![Shelf::default(); keys],
            there: vec![false; keys],
            in_ram: vec![false; keys],
            on_ssd: vec![None; keys],
            leases: Vec::new(),
            versions: 0,
            rng,
            asked: [0; 2],
            lied: false,
            harmed: false,
            super_harmed: false,
            doubtful: vec![false; keys],
            doubts: 0,
            stormy: false,
            situations: Situations::default(),
            page_cut: false,
            snapshot: None,
            tell,
            trace: Vec::new(),
            bytes: vec![0; RUN_MAX * block_bytes],
            out: vec![0; RUN_MAX * block_bytes],
        })
    }

    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        match self.tell {
            Tell::Nothing => {}
            Tell::AtTheEnd => self.trace.push(what()),
            Tell::AtOnce => println!("{}", what()),
        }
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.plan.config.block_bytes as usize
    }

    pub(super) fn now_us(&self) -> u64 {
        self.store.parts.clock.now_us()
    }

    /// The run of a key: from its root, or from somewhere below it, with the key before it.
    fn natural(&mut self) -> (Vec<usize>, Option<usize>) {
        let mut at = self.rng.below(self.plan.keys.len() as u64) as usize;
        let mut run = vec![at];
        while let Some(parent) = self.plan.parents[at].filter(|_| run.len() < RUN_MAX) {
            run.push(parent);
            at = parent;
        }
        run.reverse();
        let from = if self.rng.one_in(4) { self.rng.below(run.len() as u64) as usize } else { 0 };
        let parent = from.checked_sub(1).map(|before| run[before]);
        run.drain(..from);
        (run, parent)
    }

    /// Any keys at all, in any order.
    fn wild(&mut self) -> (Vec<usize>, Option<usize>) {
        let keys = self.plan.keys.len() as u64;
        let len = 1 + self.rng.below(12);
        let run = (0..len).map(|_| self.rng.below(keys) as usize).collect();
        (run, self.rng.one_in(3).then(|| self.rng.below(keys) as usize))
    }

    pub(super) fn run(&mut self) -> (Vec<usize>, Option<usize>) {
        if self.rng.one_in(10) { self.wild() } else { self.natural() }
    }

    pub(super) fn keys_of(&self, run: &[usize]) -> Vec<Key> {
        run.iter().map(|number| self.plan.keys[*number]).collect()
    }

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
        let options = PutOptions { parent: parent_key, chained, wait: None };
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
        let free = run.iter().chain(&parent).all(|number| !self.there[*number]);
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
        let patient = self.plan.config.put_wait >= Duration::from_millis(200);
        let fits = asked <= self.plan.frames && self.leases.is_empty() && free && patient;
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

    /// Blocks that left the store, other than by name.
    pub(super) fn left(&self) -> u64 {
        let keeper = self.store.keeper.lock().expect("nobody panics under it");
        let tier = keeper.tier.as_ref();
        keeper.evictions + tier.map_or(0, |tier| tier.stats.evictions + tier.stats.lost)
    }

    fn bad_tags(&self) -> u64 {
        self.store.with_tier(|tier, _| tier.stats.bad_tags).unwrap_or(0)
    }

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
        let got =
            self.store.get(&keys, &mut rows).map_err(|error| format!("get failed: {error}"))?;
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
        if !self.harmed && !doubt && got < matched && before == self.left() {
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

    pub(super) fn remove(&mut self) -> Done {
        let durable = !self.rng.one_in(3);
        self.remove_some(durable)
    }

    pub(super) fn remove_some(&mut self, durable: bool) -> Done {
        let (run, _) = if self.rng.one_in(2) { self.wild() } else { self.natural() };
        let run = &run[..run.len().min(1 + self.rng.below(4) as usize)];
        let keys = self.keys_of(run);
        let done = self.store.remove(&keys, durable);
        let good = done.is_ok();
        self.say(|| format!("remove {run:?} durable {durable} -> {:?}", done.map_err(|e| e.code)));
        self.situations.note(Situation::Unconfirmed, !good);
        if !good && !self.harmed {
            return Err("an honest disk did not confirm a remove".to_owned());
        }
        let confirmed = good && !self.lied;
        for number in run {
            self.shelves[*number].remove(durable, confirmed);
        }
        Ok(())
    }

    pub(super) fn clear(&mut self) -> Done {
        let done = self.store.clear();
        let good = done.is_ok();
        self.say(|| format!("clear -> {:?}", done.map_err(|e| e.code)));
        self.situations.note(Situation::Unconfirmed, !good);
        if !good && !self.harmed {
            return Err("an honest disk did not confirm a clear".to_owned());
        }
        let confirmed = good && !self.lied;
        self.shelves.iter_mut().for_each(|shelf| shelf.clear(confirmed));
        Ok(())
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

    pub(super) fn pass_time(&mut self) {
        const STEPS_US: [u64; 8] =
            [50, 300, 1_000, 20_000, 100_000, 600_000, 1_500_000, 12_000_000];
        let us = STEPS_US[self.rng.below(8) as usize];
        let times = if us < 1_000_000 { 1 + self.rng.below(4) } else { 1 };
        self.say(|| format!("step {us} us {times} times"));
        for _ in 0..times {
            self.wait(us);
        }
    }

    /// Lets time go by as a driver would: it wakes whenever something is due.
    pub(super) fn wait(&mut self, us: u64) {
        let until_us = self.now_us() + us;
        let driver = self.store.driver.as_ref().expect("an SSD tier");
        let (mut reaped, mut wait) = (Vec::new(), Duration::ZERO);
        loop {
            driver.engine.reap(wait, &mut reaped);
            let next = self.store.pump(&mut reaped);
            let left_us = until_us.saturating_sub(self.store.parts.clock.now_us());
            if left_us == 0 {
                return;
            }
            let idle = self.store.with_tier(|tier, _| tier.stuck && !tier.busy() && tier.settled());
            let next = if idle == Some(true) { Duration::MAX } else { next };
            wait = next.min(Duration::from_micros(left_us)).max(Duration::from_micros(1));
        }
    }

    /// Opens the next store on what the last one left.
    pub(super) fn open(&mut self, config: &StoreConfig) -> Result<Arc<Store>, crate::error::Error> {
        let world = self.store.world().cloned();
        Store::open_in(config, world)
    }

    pub(super) fn liar(&self) -> bool {
        self.plan.nature == Nature::Liar
    }
}
