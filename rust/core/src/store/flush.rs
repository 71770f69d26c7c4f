//! What is only in RAM goes to SSD, and the end of a store.
//!
//! Owns: flush, close, crash (of simulated disks) and the tier's deadlines. Never does: hold the
//! keeper's lock while it waits. Invariants: heads are written before what hangs on them; a block
//! counts as written once its record is on stable storage.

use super::keeper::Budget;
use super::tier::{Round, Tier, With};
use super::{Closed, Store};
use crate::error::{Error, ErrorKind};
use crate::io::Crash;
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
        let done = self.keep(|keeper, parts, budget| {
            let (tier, mut with) = keeper.tier(parts)?;
            let done = work(tier, &mut with, budget);
            tier.hand_over(&mut requests);
            Some(done)
        });
        driver.submit(&requests);
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
    /// storage; returns how many blocks are still in RAM only.
    ///
    /// # Errors
    /// Closed.
    pub fn flush(&self, timeout: Duration) -> Result<u64, Error> {
        self.check()?;
        let confirmed = self.write_back(timeout);
        let left = self.parts.directory.count_dirty();
        Ok(if confirmed { left } else { left.max(1) })
    }

    /// Writes what can be written; whether the disk has confirmed all that was.
    fn write_back(&self, timeout: Duration) -> bool {
        self.drain();
        if self.driver.is_none() {
            return true;
        }
        let deadline_us = self.deadline_us(timeout);
        self.with_tier(|tier, with| {
            tier.flushing += 1;
            tier.stuck = false;
            with.policy.name_again();
        });
        self.nudge();
        self.wait_for_tier(deadline_us, || {
            self.with_tier(|tier, _| tier.has_written()) != Some(false)
        });
        let round = self.with_tier(|tier, _| {
            tier.flushing -= 1;
            tier.sync(true)
        });
        self.nudge();
        let deadline_us = deadline_us.max(self.deadline_us(self.io_timeout * LAST_TRANSFERS));
        round.is_some_and(|round| self.wait_for_round(round, deadline_us))
    }

    /// Whether the table's round was confirmed by the deadline.
    pub(super) fn wait_for_round(&self, round: u64, deadline_us: u64) -> bool {
        let mut end = Round::Pending;
        self.wait_for_tier(deadline_us, || {
            end = self.with_tier(|tier, _| tier.sync_round(round)).unwrap_or(Round::Failed);
            end != Round::Pending
        });
        end == Round::Confirmed
    }

    /// Whether SUPER's round was confirmed by the deadline.
    pub(super) fn wait_for_super(&self, round: u64, deadline_us: u64) -> bool {
        let mut end = Round::Pending;
        self.wait_for_tier(deadline_us, || {
            end = self.with_tier(|tier, _| tier.super_round(round)).unwrap_or(Round::Failed);
            end != Round::Pending
        });
        end == Round::Confirmed
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
        let written_back = self.write_back(timeout);
        let round = self.with_tier(|tier, _| tier.write_super(written_back));
        self.nudge();
        let deadline_us = deadline_us.max(self.deadline_us(self.io_timeout));
        let confirmed = round.is_some_and(|round| self.wait_for_super(round, deadline_us));
        let confirmed = confirmed && written_back;
        // What is under way ends; what is not begun is left.
        self.with_tier(|tier, _| tier.closing = true);
        let deadline_us = self.deadline_us(self.io_timeout);
        self.wait_for_tier(deadline_us, || self.with_tier(|tier, _| tier.busy()) != Some(true));
        driver.stop();
        let out = self.with_tier(|tier, _| {
            tier.stats.unclean = !confirmed;
            tier.snapshot().requests_in_flight
        });
        let lock = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if out.unwrap_or(0) > 0 {
            // What is still out may land later: the directory has no new owner in this process.
            std::mem::forget(lock);
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
        if self.forks == crate::arena::fork_count() {
            driver.stop();
        } else {
            // The threads are the parent's: nothing of them is here to be ended.
            std::mem::forget(driver);
        }
    }
}
