//! Hints: what a caller knows about the future of its blocks.
//!
//! Owns: retire and retain. Never does: make a block unreadable, or refuse room for others.

use super::Store;
use crate::error::Error;
use crate::key::Key;
use std::time::Duration;

impl Store {
    /// For callers that know: these blocks will not be asked for again. From the last block that
    /// is there up to the first with another child they leave first, tail first; until then they
    /// are found as before, and a hit takes them back. Returns how many.
    ///
    /// # Errors
    /// Closed.
    pub fn retire(&self, keys: &[Key]) -> Result<usize, Error> {
        self.check()?;
        let mut run = self.look_up(keys);
        run.reverse();
        // Children are known, and earlier touches taken in, once their events are.
        self.drain();
        let (mut retired, mut going_on) = (0, true);
        while going_on {
            let step =
                self.keep(|keeper, parts, budget| keeper.retire(parts, &run, retired, budget));
            (retired, going_on) = step.unwrap_or((retired, false));
        }
        Ok(retired)
    }

    /// Keeps the leading blocks that are there for so long, as long as anything else can leave.
    /// At most half the frames are retained; beyond that the soonest deadline yields. Zero ends
    /// it. Returns how many are retained.
    ///
    /// # Errors
    /// Closed.
    pub fn retain(&self, keys: &[Key], time: Duration) -> Result<usize, Error> {
        self.check()?;
        let mut run = self.look_up(keys);
        run.reverse();
        self.drain();
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let deadline_us = self.parts.clock.now_us().saturating_add(time_us);
        let (mut done, mut retained) = (0, 0);
        while done < run.len() {
            let step = self.keep(|keeper, parts, budget| {
                keeper.retain(parts, &run[done..], deadline_us, budget)
            });
            let Some((worked, kept)) = step else { break };
            done += worked;
            retained += kept;
        }
        Ok(retained)
    }

    /// For tests: moves a manual clock, and does on the way what falls due.
    pub fn step(&self, us: u64) {
        let clock = &self.parts.clock;
        let until_us = clock.now_us().saturating_add(us);
        if self.driver.is_none() {
            return clock.advance(us);
        }
        let mut wait = Duration::ZERO;
        loop {
            wait = self.turn(wait);
            let left_us = until_us.saturating_sub(clock.now_us());
            if left_us == 0 || self.is_poisoned() {
                return;
            }
            wait = wait.min(Duration::from_micros(left_us));
        }
    }
}
