//! What is only in RAM goes to SSD, and the end of a store.
//!
//! Owns: flush, close, crash (of simulated disks) and the tier's deadlines. Never does: hold the
//! keeper's lock while it waits. Invariants: heads are written before what hangs on them; a block
//! counts as written once its record is on stable storage.

use super::keeper::Budget;
use super::tier::{End, Round, Tier, With};
use super::{Closed, Store};
use crate::error::{Error, ErrorKind};
use crate::io::{Crash, Op, Request};
use crate::policy::Policy;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a flush waits for the table after its own time is over, in transfers.
const LAST_TRANSFERS: u32 = 2;

impl Store {
    /// Runs `work` on the tier under the keeper's lock, and hands over what it started. `None`
    /// where there is no tier, or the store is poisoned.
    pub(super) fn with_tier<R>(
        &self,
        work: impl FnOnce(&mut Tier, &mut With<'_>) -> R,
    ) -> Option<R> {
        self.with_tier_within(|tier, with, _| work(tier, with))
    }

    /// The same for work that costs something of the hold's budget.
    pub(super) fn with_tier_within<R>(
        &self,
        work: impl FnOnce(&mut Tier, &mut With<'_>, &mut Budget) -> R,
    ) -> Option<R> {
        let driver = self.driver.as_ref()?;
        let mut requests = Vec::new();
        let done = self.keep_tier(&mut requests, work);
        driver.submit(&requests);
        done
    }

    /// The same for one read that the caller will wait for: done in this thread, where the engine
    /// can, which saves the way through two others.
    pub(super) fn with_tier_at_once<R>(
        &self,
        work: impl FnOnce(&mut Tier, &mut With<'_>) -> R,
    ) -> Option<R> {
        let driver = self.driver.as_ref()?;
        let mut requests = Vec::new();
        let done = self.keep_tier(&mut requests, |tier, with, _| work(tier, with));
        let ours = requests.iter().position(|request| request.op == Op::Read && request.urgent);
        let ours = ours.map(|at| requests.swap_remove(at));
        driver.submit(&requests);
        let ours = ours.zip(driver.engine()).and_then(|(read, engine)| engine.carry_out(&read));
        if let Some(completion) = ours {
            self.pump(&mut vec![completion]);
        }
        done
    }

    fn keep_tier<R>(
        &self,
        requests: &mut Vec<Request>,
        work: impl FnOnce(&mut Tier, &mut With<'_>, &mut Budget) -> R,
    ) -> Option<R> {
        let done = self.keep(|keeper, parts, budget| {
            let (tier, mut with) = keeper.tier(parts)?;
            let done = work(tier, &mut with, budget);
            tier.hand_over(requests);
            Some(done)
        });
        done.flatten()
    }

    /// How long a call waits for one transfer.
    pub(super) fn io_timeout_us(&self) -> u64 {
        u64::try_from(self.io_timeout.as_micros()).unwrap_or(u64::MAX)
    }

    /// The store's time so far from now.
    pub(super) fn deadline_us(&self, wait: Duration) -> u64 {
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.parts.clock.now_us().saturating_add(wait_us)
    }

    /// Writes what is only in RAM to SSD, as far as there is room, and brings it to stable
    /// storage; returns how many blocks are still in RAM only: all, where the tier is not there.
    ///
    /// # Errors
    /// Closed.
    pub fn flush(&self, timeout: Duration) -> Result<u64, Error> {
        self.flush_some(timeout).map(|(left, _)| left)
    }

    /// The same; says also whether it ended before its time: more time would bring no more.
    ///
    /// # Errors
    /// Closed.
    pub fn flush_some(&self, timeout: Duration) -> Result<(u64, bool), Error> {
        self.check()?;
        self.drain();
        let deadline_us = self.deadline_us(timeout);
        if !self.wait_until_taken(deadline_us) {
            return Ok((self.parts.directory.count_dirty(), true));
        }
        let ended = self.write_blocks(deadline_us);
        let round =
            if self.driver.is_some() { self.confirm_table(deadline_us) } else { Round::Confirmed };
        let left = self.parts.directory.count_dirty();
        Ok(match round {
            Round::Confirmed => (left, ended),
            Round::Failed => (left.max(1), true),
            Round::Pending => (left.max(1), false),
        })
    }

    /// Writes the blocks that can be written; false where the deadline came first.
    fn write_blocks(&self, deadline_us: u64) -> bool {
        self.with_tier(|tier, with| {
            tier.flushing += 1;
            tier.stuck = false;
            with.policy.name_again();
        });
        self.nudge();
        let ended = self.wait_for_tier(deadline_us, || {
            self.with_tier(|tier, _| tier.has_written()) != Some(false)
        });
        self.with_tier(|tier, _| tier.flushing -= 1);
        ended
    }

    /// Brings table and slots to stable storage.
    fn confirm_table(&self, deadline_us: u64) -> Round {
        let round = self.with_tier(|tier, _| tier.sync(true));
        self.nudge();
        let deadline_us = deadline_us.max(self.deadline_us(self.io_timeout * LAST_TRANSFERS));
        round.map_or(Round::Failed, |round| {
            self.wait_for_round(deadline_us, |tier| tier.sync_round(round))
        })
    }

    /// How a round of the table or of SUPER has ended by the deadline.
    pub(super) fn wait_for_round(&self, deadline_us: u64, look: impl Fn(&Tier) -> Round) -> Round {
        let mut end = Round::Pending;
        self.wait_for_tier(deadline_us, || {
            end = self.with_tier(|tier, _| look(tier)).unwrap_or(Round::Failed);
            end != Round::Pending
        });
        end
    }

    /// The last writes of a store that closes; whether the disk has confirmed the table. What it
    /// says then is on disk afterwards, and nothing else.
    fn write_the_last(&self, deadline_us: u64) -> bool {
        let end = |end| self.with_tier(|tier, _| tier.end = end);
        let last_us = deadline_us.max(self.deadline_us(self.io_timeout));
        self.write_blocks(deadline_us);
        if self.with_tier(|tier, _| tier.is_moving()) == Some(true) {
            // A read that ends badly gives its slot back, which another block may need.
            let still = || self.with_tier(|tier, _| tier.is_moving()) != Some(true);
            self.wait_for_tier(deadline_us.min(self.deadline_us(self.io_timeout)), still);
            self.write_blocks(deadline_us);
        }
        end(End::NoNewBlocks);
        self.wait_for_tier(last_us, || self.with_tier(|tier, _| tier.is_writing()) != Some(true));
        end(End::NoMoreRecords);
        self.confirm_table(deadline_us) == Round::Confirmed
    }

    /// Ends the store: writes back for so long, then later calls are refused. The memory goes with
    /// the last lease.
    pub fn close(&self, timeout: Duration) -> Closed {
        if self.forks != crate::arena::fork_count() || self.closed.swap(true, Ordering::AcqRel) {
            return Closed::default();
        }
        let Some(driver) = &self.driver else {
            let epoch = self.parts.directory.epoch();
            return Closed { written: 0, left: self.parts.counters.resident_now(epoch).0 };
        };
        let deadline_us = self.deadline_us(timeout);
        if let Some(follow) = &self.parts.follow {
            follow.stop();
        }
        self.drain();
        if !self.wait_until_taken(deadline_us) {
            driver.stop();
            self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
            return Closed { written: 0, left: self.parts.directory.count_dirty() };
        }
        let table_confirmed = self.write_the_last(deadline_us);
        let round = self.with_tier(|tier, _| tier.write_super(table_confirmed));
        self.nudge();
        let deadline_us = deadline_us.max(self.deadline_us(self.io_timeout));
        let round =
            round.map(|round| self.wait_for_round(deadline_us, |tier| tier.super_round(round)));
        let confirmed = table_confirmed && round == Some(Round::Confirmed);
        self.with_tier(|tier, _| tier.end = End::Nothing);
        let deadline_us = self.deadline_us(self.io_timeout);
        self.wait_for_tier(deadline_us, || self.with_tier(|tier, _| tier.busy()) != Some(true));
        driver.stop();
        let out = self.with_tier(|tier, _| {
            tier.stats.unclean = !confirmed;
            tier.snapshot().requests_in_flight
        });
        let mut locks = self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let locks = std::mem::take(&mut *locks);
        if out.unwrap_or(0) > 0 {
            // What is still out may land later: the directory has no new owner in this process.
            std::mem::forget(locks);
        }
        // Nothing changes any more: both are of one moment.
        let written = self.with_tier(|tier, _| tier.snapshot().blocks).unwrap_or(0);
        Closed { written, left: self.parts.directory.count_dirty() }
    }

    /// For tests: ends a deterministic store on a simulated disk as a crash would, and opens
    /// another on what is left of the disk.
    ///
    /// # Errors
    /// As `open`; Config where the disk is not simulated.
    #[doc(hidden)]
    pub fn crash(&self, seed: u64, power: bool) -> Result<Arc<Self>, Error> {
        let Some((world, config)) = &self.world else {
            let message = "only a store on a simulated disk can be crashed.";
            let hint = "open it with ssd=Ssd(\"\", ..., engine=\"sim\").";
            return Err(Error::new(ErrorKind::Config, "KS-CFG-006", message, hint));
        };
        self.closed.store(true, Ordering::Release);
        world.disk.crash(seed, if power { Crash::Power } else { Crash::Kill });
        Self::open_in(config, Some(world.clone()))
    }

    /// The simulated disk below, for tests.
    #[doc(hidden)]
    pub fn world(&self) -> Option<&super::SimWorld> {
        self.world.as_ref().map(|(world, _)| world)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Some(driver) = self.driver.take() else { return };
        let ours = self.forks == crate::arena::fork_count();
        if let Some(follow) = &self.parts.follow {
            if ours { follow.stop() } else { follow.forget() }
        }
        if ours {
            driver.stop();
        } else {
            // The threads are the parent's: nothing of them is here to be ended.
            std::mem::forget(driver);
        }
    }
}
