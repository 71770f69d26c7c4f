//! One history: a store, the model beside it, and the operations on both.
//!
//! Owns: the state of a run. Never does: draw anything but from the operation's own stream, so that
//! leaving an operation out does not change what the others do.

use super::Tell;
use super::model::{Shelf, Version};
use super::plan::{Nature, Plan};
use super::situations::Situations;
use crate::io::{Rng, Snapshot};
use crate::key::Key;
use crate::store::{Lease, SimWorld, Store, StoreConfig};
use std::sync::Arc;
use std::time::Duration;

pub(super) type Done = Result<(), String>;

/// Blocks of one call at most.
const RUN_MAX: usize = 48;
pub(super) const LEASES_MAX: usize = 4;
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
    /// Payloads may be gone with the power that a sync had confirmed.
    pub(super) forgetful: bool,
    /// Something went wrong on the disk since the store was opened.
    pub(super) harmed: bool,
    /// A read may have failed or brought other bytes.
    pub(super) reads_harmed: bool,
    /// SUPER may be broken.
    pub(super) super_harmed: bool,
    /// Which blocks, found at open, may have lost their bytes; and how many there were.
    pub(super) doubtful: Vec<bool>,
    pub(super) doubts: u64,
    pub(super) stormy: bool,
    pub(super) situations: Situations,
    /// Pages into which a hung read of the last open may still come.
    pub(super) pages_lost: u32,
    /// The power went while a table page was not on the disk.
    pub(super) page_cut: bool,
    pub(super) snapshot: Option<Snapshot>,
    tell: Tell,
    pub(super) trace: Vec<String>,
    pub(super) bytes: Vec<u8>,
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
            forgetful: false,
            harmed: false,
            reads_harmed: false,
            super_harmed: false,
            doubtful: vec![false; keys],
            doubts: 0,
            stormy: false,
            situations: Situations::default(),
            page_cut: false,
            pages_lost: 0,
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
    pub(super) fn natural(&mut self) -> (Vec<usize>, Option<usize>) {
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
    pub(super) fn wild(&mut self) -> (Vec<usize>, Option<usize>) {
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

    /// Blocks that left the store, other than by name.
    pub(super) fn left(&self) -> u64 {
        let keeper = self.store.keeper.lock().expect("nobody panics under it");
        let tier = keeper.tier.as_ref();
        keeper.evictions
            + tier.map_or(0, |tier| {
                let stats = &tier.stats;
                stats.evictions + stats.lost + stats.given_up
            })
    }

    pub(super) fn bad_tags(&self) -> u64 {
        self.store.with_tier(|tier, _| tier.stats.bad_tags).unwrap_or(0)
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
            driver.engine().expect("a simulated disk").reap(wait, &mut reaped);
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
