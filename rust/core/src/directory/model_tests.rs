//! Random histories of the index against a plain model, with a full recount after each step.
//!
//! Method: the test plays putter and keeper: it commits under pinned parents, counts, drops pins,
//! evicts, removes, clears and takes in the wake stack. The model knows keys, parents, pins and
//! removals only; from them it says what a lookup sees, what may leave, and what must be gone.

use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const KEYS: u64 = 12;
const FRAMES: u32 = 16;

#[derive(Clone, Debug)]
enum Step {
    /// A block of this key, as a root or under that one (present, a hole, or absent).
    Insert(u64, Option<u64>),
    Pin(u64),
    Unpin(usize),
    Evict(u64),
    Remove(u64),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..KEYS;
    let step = prop_oneof![
        6 => (key.clone(), proptest::option::weighted(0.8, key.clone()))
            .prop_map(|(n, parent)| Step::Insert(n, parent.filter(|p| *p != n))),
        3 => key.clone().prop_map(Step::Pin),
        3 => (0_usize..8).prop_map(Step::Unpin),
        4 => key.clone().prop_map(Step::Evict),
        2 => key.prop_map(Step::Remove),
        1 => Just(Step::Clear),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A header by its life.
type Life = (Slot, u32);

#[derive(Clone, Copy, PartialEq)]
enum What {
    Block,
    Hole,
    Hidden,
}

struct World {
    directory: Directory,
    /// Every live header the model knows of.
    lives: HashMap<Life, (u64, What, Option<Life>)>,
    pins: Vec<Life>,
    frames: Vec<FrameId>,
}

impl World {
    fn new() -> Self {
        let frames = (0..FRAMES).map(FrameId).collect();
        let directory = Directory::new(FRAMES);
        Self { directory, lives: HashMap::new(), pins: Vec::new(), frames }
    }

    fn find(&self, n: u64, what: What) -> Option<Life> {
        let mut lives = self.lives.iter();
        lives.find(|(_, (key, is, _))| *key == n && *is == what).map(|(life, _)| *life)
    }

    fn has_child(&self, life: Life) -> bool {
        self.lives.values().any(|(_, _, parent)| *parent == Some(life))
    }

    /// No pin and no child: may leave.
    fn is_loose(&self, life: Life) -> bool {
        !self.pins.contains(&life) && !self.has_child(life)
    }

    fn insert(&mut self, n: u64, parent: Option<u64>) {
        let Some(frame) = self.frames.pop() else { return };
        let epoch = self.directory.epoch();
        let named = parent.and_then(|p| {
            let key = key(p);
            let there = self.directory.find_one(key);
            let pinned = there.filter(|e| self.directory.pin(e.slot, e.generation));
            let made = pinned.or_else(|| self.directory.hole(key, epoch))?;
            let life = (made.slot, made.generation);
            self.lives.entry(life).or_insert((p, What::Hole, None));
            Some(life)
        });
        let block =
            Block { key: key(n), parent: named, home: Home::Frame(frame), len: 1, epoch, pins: 1 };
        match self.directory.commit(&block) {
            Commit::Stored { entry, refilled } => {
                let life = (entry.slot, entry.generation);
                if let (true, Some((parent, _))) = (refilled, named) {
                    self.directory.unpin(parent);
                }
                assert_eq!(refilled, self.lives.contains_key(&life), "a hole is refilled in place");
                let own = if refilled { None } else { named };
                self.lives.insert(life, (n, What::Block, own));
                self.directory.count_child(entry.slot, refilled, true);
                self.directory.drop_event_pins(entry.slot);
            }
            other => {
                assert!(self.find(n, What::Block).is_some(), "{n} was refused: {other:?}");
                self.frames.push(frame);
                if let Some((parent, _)) = named {
                    self.directory.unpin(parent);
                }
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Insert(n, parent) => self.insert(n, parent),
            Step::Pin(n) => {
                if let Some(life) = self.find(n, What::Block) {
                    assert!(self.directory.pin(life.0, life.1));
                    self.pins.push(life);
                }
            }
            Step::Unpin(at) => {
                if !self.pins.is_empty() {
                    let life = self.pins.swap_remove(at % self.pins.len());
                    self.directory.unpin(life.0);
                }
            }
            Step::Evict(n) => {
                if let Some(life) = self.find(n, What::Block) {
                    let loose = self.is_loose(life);
                    assert_eq!(self.directory.stays(life.0, Dirty::Leaves), !loose, "{n} stays");
                    let left = self.directory.evict(life.0, Dirty::Leaves);
                    assert_eq!(left.is_some(), loose, "{n} leaves");
                    let gone = left.map(|left| {
                        let Left::Gone(gone) = left else { panic!("{n} is on no SSD: {left:?}") };
                        gone
                    });
                    if let Some(frame) = gone.and_then(|gone| gone.frame) {
                        self.directory.bury(life.0);
                        self.frames.push(frame);
                        self.lives.remove(&life);
                    }
                }
            }
            Step::Remove(n) => {
                let there = self.find(n, What::Block);
                let removed = self.directory.remove(key(n));
                assert_eq!(removed.map(|r| (r.slot, r.generation)), there);
                if let Some(life) = there {
                    self.hide(life);
                }
            }
            Step::Clear => {
                self.directory.next_epoch();
                let blocks: Vec<Life> = self.lives.keys().copied().collect();
                for life in blocks {
                    if self.lives.get(&life).is_some_and(|(_, what, _)| *what == What::Block) {
                        assert!(self.directory.hide_stale(life.0).is_some());
                        self.hide(life);
                    }
                }
                // Cleared holes are seen by nobody and go with their last child.
                for (_, what, _) in self.lives.values_mut() {
                    *what = What::Hidden;
                }
            }
        }
        self.wake_all();
    }

    fn hide(&mut self, life: Life) {
        if let Some(known) = self.lives.get_mut(&life) {
            known.1 = What::Hidden;
        }
        let settled = self.directory.settle(life.0);
        self.settled(life.0, settled);
    }

    fn settled(&mut self, slot: Slot, settled: Settled) {
        if let Settled::Released(frame) = settled {
            self.frames.extend(frame);
            let still = |life: &Life| self.directory.is_live(life.0, life.1);
            self.lives.retain(|life, _| life.0 != slot || still(life));
        }
    }

    fn wake_all(&mut self) {
        let mut next = self.directory.take_woken();
        while let Some(slot) = next {
            let (more, waits) = self.directory.wake_up(slot);
            if waits {
                let settled = self.directory.settle(slot);
                self.settled(slot, settled);
            }
            next = more.or_else(|| self.directory.take_woken());
        }
    }

    fn check(&self) {
        let (count, wrong) = self.directory.recount();
        assert!(wrong.is_empty(), "{wrong:?}");
        let blocks: HashSet<u64> = (0..KEYS)
            .filter(|n| self.directory.find_one(key(*n)).is_some_and(|e| e.resident))
            .collect();
        let should: HashSet<u64> =
            (0..KEYS).filter(|n| self.find(*n, What::Block).is_some()).collect();
        assert_eq!(blocks, should, "what a lookup sees");
        assert_eq!(count.pins, self.pins.len() as u64);
        assert_eq!(count.frames + self.frames.len() as u64, u64::from(FRAMES), "frames");
        for (life, (n, what, _)) in &self.lives {
            assert!(self.directory.is_live(life.0, life.1), "{n} has lost its header");
            let kept = !self.is_loose(*life);
            assert!(*what == What::Block || kept, "{n} is kept by nothing");
        }
    }
}

fn key(n: u64) -> Key {
    Key::from_words([n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn the_index_equals_its_model_after_every_step(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
    }
}
