//! What a store does before it has its tier, and has to do to the tier as well.
//!
//! Owns: the keys removed and the clears of that time; the tier's way in, under the lock. Never
//! does: I/O, or hold the lock for more than a piece. Invariants: a key that was removed before its
//! record was seen does not come back; after a clear nothing of before does.

use super::{Budget, Keeper};
use crate::key::Key;
use crate::ssd::format::minutes_since_2020;
use crate::ssd::recover::Plan;
use crate::store::Parts;
use crate::store::tier::{RECOVERED_A_HOLD, Recovery, Removed, Tier};
use crate::units::Slot;

/// A store that waits for its tier, or is taking it in.
#[derive(Default)]
pub(in crate::store) struct Apart {
    removed: Removed,
    cleared: bool,
    /// Seconds since 1970 when the store's clock stood at 0.
    opened_unix_s: u64,
}

impl Apart {
    pub(in crate::store) fn new(opened_unix_s: u64) -> Self {
        Self { opened_unix_s, ..Self::default() }
    }

    /// For the records to come: minutes since 2020.
    fn minutes(&self, now_us: u64) -> u32 {
        minutes_since_2020(self.opened_unix_s + now_us / 1_000_000)
    }
}

impl Keeper {
    /// Whether the tier is not all there yet.
    pub(in crate::store) fn is_apart(&self) -> bool {
        self.apart.is_some()
    }

    /// These keys are about to be removed: older copies on disk do not come back.
    pub(in crate::store) fn will_remove(&mut self, keys: &[Key]) {
        if let Some(apart) = &mut self.apart {
            apart.removed.add(keys);
        }
    }

    /// Nothing that the disk held before this moment is to come back.
    pub(super) fn forget_before(&mut self) {
        if let Some(apart) = &mut self.apart {
            (apart.removed, apart.cleared) = (Removed::default(), true);
        }
    }

    /// The tier never comes: there is nothing to be remembered for it.
    pub(in crate::store) fn stay_apart(&mut self) {
        self.apart = None;
    }

    /// The tier is there: its blocks come in by `recover_some`.
    ///
    /// # Errors
    /// The epoch that would have to begin, where the format has none left; there is no tier then.
    pub(in crate::store) fn install(
        &mut self,
        mut tier: Box<Tier>,
        plan: Plan,
    ) -> Result<Recovery, u32> {
        let recovery = tier.begin_recovery(plan, self.is_apart())?;
        if self.apart.as_ref().is_some_and(|apart| apart.cleared) {
            tier.clear()?;
        }
        self.tier = Some(tier);
        Ok(recovery)
    }

    /// Takes in some more of what the disk holds: at open a large piece, later within the budget;
    /// false where that was all.
    pub(in crate::store) fn recover_some(
        &mut self,
        parts: &Parts,
        recovery: &mut Recovery,
        budget: &mut Budget,
    ) -> bool {
        let apart = self.apart.take();
        let most = apart.as_ref().map_or(RECOVERED_A_HOLD, |_| *budget.left() as usize);
        let did = self.tier(parts).map_or(0, |(tier, mut with)| {
            let removed = apart.as_ref().map(|apart| &apart.removed);
            tier.recover_some(&mut with, recovery, removed, most)
        });
        if apart.is_some() {
            *budget.left() -= did as u32;
        }
        self.apart = apart;
        did > 0
    }

    /// All of it is in; that took so long.
    pub(in crate::store) fn end_recovery(&mut self, parts: &Parts, took_us: u64) {
        self.apart = None;
        if let Some((tier, mut with)) = self.tier(parts) {
            tier.stats.recovery_us = took_us;
            tier.join(&mut with);
        }
    }

    /// Notes for the record to come that a block was put, or used.
    pub(super) fn note_apart(&self, parts: &Parts, slot: Slot, put: bool) {
        let Some(apart) = self.apart.as_ref().filter(|_| self.tier.is_none()) else { return };
        let minutes = apart.minutes(parts.clock.now_us());
        if put {
            parts.directory.note_insert(slot, minutes);
        } else {
            parts.directory.note_use(slot, minutes);
        }
    }
}
