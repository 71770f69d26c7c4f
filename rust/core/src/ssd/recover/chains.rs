//! Which candidate comes after which: parents before their children.
//!
//! Owns: the walk up from each candidate to one that has its place, and back down. Never does: look
//! at a key. Invariants: each winner gets its place once; a circle is cut once; what a walk does is
//! counted block by block, so that it can stop anywhere, however long a chain is.

use super::Found;
use crate::arena::room_for;
use crate::units::NONE;

/// A depth: no walk has seen the candidate.
pub(super) const UNSEEN: u32 = u32::MAX;
/// On the path of the walk under way.
const ON_PATH: u32 = u32::MAX - 1;
/// Another candidate of its key counts.
pub(super) const LOSER: u32 = u32::MAX - 2;
const _: () = assert!(super::super::format::SLOTS_MAX < LOSER);

/// Where the walk is.
#[derive(Clone, Copy, Default)]
enum Walk {
    /// Between two chains.
    #[default]
    Start,
    /// On its way up, about to look at this one.
    Up(u32),
    /// The path has come back to `to`: looks along it, down from `next`, for the oldest block.
    Around { to: u32, next: usize, oldest: usize },
    /// Gives up what stands behind the oldest block of a circle, which ends the path.
    Cut { oldest: usize },
    /// On its way down: the last one of the path has this depth.
    Down(u32),
}

/// The winners, each behind its parent and else in the order of the slots, which is mostly that of
/// the chains.
#[derive(Default)]
pub(super) struct Chains {
    /// Each one's parent; `NONE` where there is none.
    pub(super) links: Vec<u32>,
    /// Each one's distance from the first block of its piece, once it has its place.
    pub(super) depths: Vec<u32>,
    pub(super) order: Vec<u32>,
    pub(super) cycles: u32,
    path: Vec<u32>,
    /// The next candidate to start from.
    start: u32,
    walk: Walk,
}

impl Chains {
    /// Room for so many candidates; only what is used of it is touched.
    pub(super) fn new(candidates: usize) -> Self {
        Self {
            links: room_for(candidates),
            depths: room_for(candidates),
            order: room_for(candidates),
            path: room_for(candidates),
            ..Self::default()
        }
    }

    /// Goes on by at most so many looks at a candidate; true where every winner has its place.
    pub(super) fn step(&mut self, found: &mut [Found], most: usize) -> bool {
        let mut left = most;
        while left > 0 {
            self.walk = match self.walk {
                Walk::Start if self.start as usize == self.links.len() => return true,
                Walk::Start => self.start_some(&mut left),
                Walk::Up(at) => self.go_up(at, &mut left),
                Walk::Around { to, next, oldest } => {
                    self.go_around(found, to, next, oldest, &mut left)
                }
                Walk::Cut { oldest } => self.cut(found, oldest, &mut left),
                Walk::Down(depth) => self.go_down(depth, &mut left),
            };
        }
        false
    }

    /// Looks for the next candidate that has no place yet.
    fn start_some(&mut self, left: &mut usize) -> Walk {
        while (self.start as usize) < self.depths.len() && *left > 0 {
            let start = self.start;
            self.start += 1;
            *left -= 1;
            if self.depths[start as usize] == UNSEEN {
                return Walk::Up(start);
            }
        }
        Walk::Start
    }

    fn go_up(&mut self, mut at: u32, left: &mut usize) -> Walk {
        while *left > 0 {
            if at == NONE {
                return Walk::Down(0);
            }
            *left -= 1;
            match self.depths[at as usize] {
                UNSEEN => {
                    self.depths[at as usize] = ON_PATH;
                    self.path.push(at);
                    at = self.links[at as usize];
                }
                ON_PATH => {
                    let last = self.path.len() - 1;
                    return Walk::Around { to: at, next: last, oldest: last };
                }
                above => return Walk::Down(above + 1),
            }
        }
        Walk::Up(at)
    }

    /// A circle of parents (keys that were removed and put again in another order) is cut above its
    /// oldest block: what was written before its parent can't have been born under it.
    fn go_around(
        &self,
        found: &[Found],
        to: u32,
        mut next: usize,
        mut oldest: usize,
        left: &mut usize,
    ) -> Walk {
        let born = |at: usize| found[self.path[at] as usize].generation;
        while *left > 0 {
            *left -= 1;
            if born(next) < born(oldest) {
                oldest = next;
            }
            if self.path[next] == to {
                return Walk::Cut { oldest };
            }
            next -= 1;
        }
        Walk::Around { to, next, oldest }
    }

    /// Makes the oldest block of a circle the first of its chain: the path ends there, and those
    /// above it have their walk later.
    fn cut(&mut self, found: &mut [Found], oldest: usize, left: &mut usize) -> Walk {
        while self.path.len() > oldest + 1 {
            if *left == 0 {
                return Walk::Cut { oldest };
            }
            *left -= 1;
            if let Some(above) = self.path.pop() {
                self.depths[above as usize] = UNSEEN;
            }
        }
        let first = self.path[oldest] as usize;
        self.links[first] = NONE;
        found[first].parent = None;
        self.cycles += 1;
        Walk::Down(0)
    }

    fn go_down(&mut self, mut depth: u32, left: &mut usize) -> Walk {
        while *left > 0 {
            let Some(node) = self.path.pop() else { return Walk::Start };
            *left -= 1;
            self.depths[node as usize] = depth;
            self.order.push(node);
            depth += 1;
        }
        Walk::Down(depth)
    }
}
