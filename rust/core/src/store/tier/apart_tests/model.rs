//! Anything at all, in any order, before, while and after a store takes its directory.
//!
//! Owns: what may be read of each key. Never does: say what must be there.

use super::{SOON, open_apart, settle};
use crate::store::attach::Phase;
use crate::store::tier::tests::{config, keys, valid};
use crate::store::{PutOptions, Rows, RowsMut, SimWorld, Store};
use proptest::prelude::*;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Act {
    Put { run: (u64, u64), chained: bool },
    Get { run: (u64, u64) },
    Remove { run: (u64, u64) },
    Clear,
    Turn { times: u8 },
    Free,
    Flush,
}

fn any_act() -> impl Strategy<Value = Act> {
    let run = || (0..40_u64, 1..6_u64);
    prop_oneof![
        4 => (run(), any::<bool>()).prop_map(|(run, chained)| Act::Put { run, chained }),
        3 => run().prop_map(|run| Act::Get { run }),
        2 => run().prop_map(|run| Act::Remove { run }),
        1 => Just(Act::Clear),
        4 => (1..5_u8).prop_map(|times| Act::Turn { times }),
        2 => Just(Act::Free),
        1 => Just(Act::Flush),
    ]
}

/// Which versions of each key may be read.
struct Model {
    may_be: Vec<Vec<u8>>,
    version: u8,
}

impl Model {
    fn act(&mut self, world: &SimWorld, store: &Store, act: &Act) {
        match act {
            Act::Put { run: (from, len), chained } => {
                self.version += 1;
                let row = [self.version; 64];
                let rows = vec![&row[..]; *len as usize];
                let parent = from.checked_sub(1).map(|before| keys(before..before + 1)[0]);
                let options = PutOptions {
                    parent: parent.filter(|_| *chained),
                    chained: *chained,
                    wait: None,
                };
                store.put(&keys(*from..from + len), &Rows::list(&rows), &options).expect("open");
                for number in *from..from + len {
                    self.may_be[number as usize].push(self.version);
                }
            }
            Act::Get { run } => self.check(store, *run),
            Act::Remove { run: (from, len) } => {
                store.remove(&keys(*from..from + len), false).expect("open");
                for number in *from..from + len {
                    self.may_be[number as usize].clear();
                }
            }
            Act::Clear => {
                let there = matches!(store.phase(), Phase::Settled | Phase::Entering);
                assert_eq!(store.clear().is_ok(), there);
                self.may_be.iter_mut().for_each(Vec::clear);
            }
            Act::Turn { times } => {
                for _ in 0..*times {
                    store.turn(Duration::from_millis(60));
                }
            }
            Act::Free => world.hold(false),
            Act::Flush => {
                let left = store.flush(SOON).expect("open");
                assert!(left == 0 || store.phase() == Phase::Waiting);
            }
        }
    }

    /// Whatever is read is what some put carried, after the last remove or clear.
    fn check(&self, store: &Store, (from, len): (u64, u64)) {
        let mut out = vec![0; len as usize * 4096];
        let mut rows = RowsMut::packed(&mut out, 4096);
        let got = store.get_each(&keys(from..from + len), &mut rows).expect("open");
        for (at, _) in got.iter().enumerate().filter(|(_, got)| **got) {
            let row = &out[at * 4096..][..64];
            let may_be = &self.may_be[from as usize + at];
            assert!(may_be.contains(&row[0]) && row.iter().all(|byte| *byte == row[0]), "{row:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn whatever_is_done_meanwhile_only_right_bytes_are_read(
        before in proptest::collection::vec(any_act(), 1..12),
        acts in proptest::collection::vec(any_act(), 1..40),
        frames in 3..40_u64, power: bool,
    ) {
        let world = SimWorld::new(7);
        let mut model = Model { may_be: vec![Vec::new(); 64], version: 0 };
        let first = Store::open_on(&config(64, 60), Some(world.clone()), &mut |_| true);
        let first = first.expect("a store");
        for act in &before {
            model.act(&world, &first, act);
        }
        first.close(SOON);
        let store = open_apart(&world, frames, 60);
        for act in &acts {
            model.act(&world, &store, act);
            valid(&store);
        }
        settle(&world, &store);
        model.check(&store, (0, 46));
        // Everything is on the disk then, removals and clears too; their pages are synced by this.
        store.step(2_000_000);
        prop_assert_eq!(store.flush(SOON).ok(), Some(0));
        let again = store.crash(9, power).expect("a disk to open");
        valid(&again);
        model.check(&again, (0, 46));
        prop_assert_eq!(again.stats().blocks, store.stats().blocks);
    }
}
