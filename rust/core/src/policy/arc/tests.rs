//! ARC against figure 4 of the paper, written down again with plain queues, and against DBL(2c),
//! which knows nothing of p.

use super::*;
use std::collections::VecDeque;

struct Free;

impl Residents for Free {
    fn stays(&self, _slot: Slot) -> bool {
        false
    }
}

/// The paper's ARC; least recent first.
#[derive(Default)]
struct Paper {
    c: usize,
    p: f64,
    t: [VecDeque<u64>; 2],
    b: [VecDeque<u64>; 2],
}

fn take(queue: &mut VecDeque<u64>, x: u64) -> bool {
    let at = queue.iter().position(|y| *y == x);
    at.map(|at| queue.remove(at)).is_some()
}

impl Paper {
    fn replace(&mut self, in_b2: bool) {
        let t1 = self.t[0].len() as f64;
        let list = usize::from(!(t1 >= 1.0 && (t1 > self.p || (in_b2 && t1 == self.p))));
        let victim = self.t[list].pop_front().expect("a full cache has a victim");
        self.b[list].push_back(victim);
    }

    fn access(&mut self, x: u64) -> bool {
        let (b1, b2) = (self.b[0].len() as f64, self.b[1].len() as f64);
        if take(&mut self.t[0], x) || take(&mut self.t[1], x) {
            self.t[1].push_back(x);
            return true;
        }
        if self.b[0].contains(&x) {
            self.p = (self.p + (b2 / b1).max(1.0)).min(self.c as f64);
            self.replace(false);
            take(&mut self.b[0], x);
            self.t[1].push_back(x);
        } else if self.b[1].contains(&x) {
            self.p = (self.p - (b1 / b2).max(1.0)).max(0.0);
            self.replace(true);
            take(&mut self.b[1], x);
            self.t[1].push_back(x);
        } else {
            let total = self.t.iter().chain(&self.b).map(VecDeque::len).sum::<usize>();
            if self.t[0].len() + self.b[0].len() == self.c {
                if self.t[0].len() < self.c {
                    self.b[0].pop_front();
                    self.replace(false);
                } else {
                    self.t[0].pop_front();
                }
            } else if total >= self.c {
                if total == 2 * self.c {
                    self.b[1].pop_front();
                }
                self.replace(false);
            }
            self.t[0].push_back(x);
        }
        false
    }
}

/// The two lists that ARC's directory must equal, whatever p did.
struct Dbl {
    c: usize,
    l: [VecDeque<u64>; 2],
}

impl Dbl {
    fn access(&mut self, x: u64) {
        if take(&mut self.l[0], x) || take(&mut self.l[1], x) {
            return self.l[1].push_back(x);
        }
        if self.l[0].len() == self.c {
            self.l[0].pop_front();
        } else if self.l[0].len() + self.l[1].len() == 2 * self.c {
            self.l[1].pop_front();
        }
        self.l[0].push_back(x);
    }
}

fn key(x: u64) -> Fingerprint {
    [x, 0]
}

/// One access to our policy as a cache of `c`: slot numbers are the block's own.
fn access(arc: &mut Arc, c: u64, x: u64) -> bool {
    let slot = Slot(x as u32);
    if arc.contains(slot) {
        arc.touch(slot, &Free);
        return true;
    }
    if arc.len() == c {
        let mut budget = u32::MAX;
        let found = arc.victim(Some(key(x)), &Free, &mut budget);
        let Search::Victim(victim) = found else { panic!("{found:?} in a full cache") };
        arc.leave(victim, key(u64::from(victim.0)), Some(key(x)));
    }
    arc.insert(slot, key(x), 0, &Free);
    false
}

fn lists(arc: &Arc) -> [Vec<u64>; 4] {
    let blocks = |list| arc.order.validate(list).iter().map(|s| u64::from(s.0)).collect();
    let ghosts = |list| arc.ghosts.validate(list).iter().map(|key| key[0]).collect();
    [blocks(ONCE), blocks(AGAIN), ghosts(ONCE), ghosts(AGAIN)]
}

#[test]
fn every_list_and_p_equal_the_paper_over_random_traces() {
    let mut random = 9_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    for _ in 0..400 {
        let (c, kind) = (1 + next(9), next(3));
        let mut arc = Arc::new(64, c as u32, false);
        let mut paper = Paper { c: c as usize, ..Paper::default() };
        let mut dbl = Dbl { c: c as usize, l: Default::default() };
        for i in 0..250 {
            let x = match kind {
                0 => next(30),
                1 => {
                    let below = 1 + next(40);
                    next(below)
                }
                _ => i % (2 * c + 1),
            };
            assert_eq!(access(&mut arc, c, x), paper.access(x));
            dbl.access(x);
            arc.validate();
            assert_eq!(arc.aim, paper.p);
            let ours = lists(&arc);
            let theirs = [&paper.t[0], &paper.t[1], &paper.b[0], &paper.b[1]];
            assert_eq!(ours, theirs.map(|q| q.iter().copied().collect::<Vec<_>>()));
            for list in [ONCE, AGAIN] {
                let whole: Vec<u64> = ours[2 + list].iter().chain(&ours[list]).copied().collect();
                assert_eq!(VecDeque::from(whole), dbl.l[list], "DBL(2c)");
            }
        }
    }
}

#[test]
fn a_search_without_a_victim_changes_nothing() {
    struct Stuck;
    impl Residents for Stuck {
        fn stays(&self, _slot: Slot) -> bool {
            true
        }
    }
    let mut arc = Arc::new(64, 4, false);
    for x in [1, 2, 3, 4, 1, 2, 5, 6] {
        access(&mut arc, 4, x);
    }
    let (before, aim) = (lists(&arc), arc.aim);
    let ghost = before[2].first().copied().expect("something has left");
    let found = arc.victim(Some(key(ghost)), &Stuck, &mut u32::MAX.clone());
    assert_eq!(found, Search::Nothing);
    assert_eq!((lists(&arc), arc.aim), (before, aim));
}

#[test]
fn a_search_stops_at_its_budget_and_goes_on() {
    struct Heads;
    impl Residents for Heads {
        fn stays(&self, slot: Slot) -> bool {
            slot.0 < 50
        }
    }
    let mut arc = Arc::new(64, 64, false);
    for x in 0..60 {
        arc.order.push(ONCE, Slot(x));
    }
    let (mut budget, mut holds) = (0, 0);
    let found = loop {
        match arc.victim(None, &Heads, &mut budget) {
            Search::Again => (budget, holds) = (8, holds + 1),
            found => break found,
        }
    };
    assert_eq!((found, holds, arc.steps()), (Search::Victim(Slot(50)), 7, 51));
}

#[test]
fn what_is_withdrawn_leaves_no_trace_in_the_sizes() {
    let mut arc = Arc::new(64, 2, false);
    arc.admit(key(1));
    arc.admit(key(2));
    arc.withdraw(key(1));
    assert_eq!((arc.size(ONCE), arc.coming.len()), (1, 1));
    arc.insert(Slot(2), key(2), 0, &Free);
    assert_eq!((arc.size(ONCE), arc.coming.len()), (1, 0));
}
