//! Remove and clear.
//!
//! Owns: the user's deletions. Never does: free a frame that a lease reads; that is the keeper's,
//! by the leaf rule. Invariants: once remove has returned, the keys are not found; once clear has,
//! nothing is found that a put begun before it brought.

use super::attach::Phase;
use super::keeper::Cleared;
use super::open::no_epochs_left;
use super::ring::Note;
use super::tier::Round;
use super::{LOCK_BLOCKS_MAX, Store};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::stats::add;

/// A remove or clear waits for the disk so many times as long as for one transfer.
const CONFIRM_TRANSFERS: u32 = 4;

impl Store {
    /// Removes the blocks of these keys; returns how many were there. Leased ones stay readable
    /// through their lease. `durable`: from the disk too, before this returns, older copies of the
    /// same keys included; else with the next flush or within a second.
    ///
    /// # Errors
    /// Closed. Ssd where the disk does not confirm, or `durable` is asked of a tier that is not
    /// there yet: they are gone from this store, but a restart may bring them back.
    pub fn remove(&self, keys: &[Key], durable: bool) -> Result<usize, Error> {
        self.check()?;
        if self.is_apart() {
            for keys in keys.chunks(LOCK_BLOCKS_MAX as usize) {
                self.keep(|keeper, _, _| keeper.will_remove(keys));
            }
        }
        let counters = &self.parts.counters;
        let mut removed = 0;
        for key in keys {
            if self.hide(*key) {
                add(&counters.removed, 1);
                removed += 1;
            }
        }
        self.tidy(removed);
        if durable && self.driver.is_some() {
            // What was told is taken in: the records are blank in the table's image.
            self.drain();
            let Some(round) = self.with_tier(|tier, _| tier.sync(false)) else {
                return Err(self.not_there(removed));
            };
            self.nudge();
            let deadline_us = self.deadline_us(self.io_timeout * CONFIRM_TRANSFERS);
            let end = self.wait_for_round(deadline_us, |tier| tier.sync_round(round));
            if end != Round::Confirmed {
                return Err(self.unconfirmed("KS-SSD-104", "the table", removed));
            }
        }
        Ok(removed)
    }

    /// The block is not found any more; whether it was there.
    pub(super) fn hide(&self, key: Key) -> bool {
        let Some(block) = self.parts.directory.remove(key) else { return false };
        let (epoch, bytes) = (u32::from(block.epoch), i64::from(block.len));
        self.parts.counters.resident(epoch, -1, -bytes);
        self.tell(Note::Removed { slot: block.slot, generation: block.generation });
        true
    }

    fn unconfirmed(&self, code: &'static str, what: &str, removed: usize) -> Error {
        let message = format!(
            "the disk did not confirm {what} within {} s; {removed} blocks are gone from this \
             store, but a restart may bring them back.",
            (self.io_timeout * CONFIRM_TRANSFERS).as_secs_f64()
        );
        let hint = "repeat it once the disk answers again (stats().ssd_state), or delete the \
                    directory.";
        Error::new(ErrorKind::Ssd, code, message, hint).with("removed", removed)
    }

    /// The tier is not there, or the store is poisoned.
    fn not_there(&self, removed: usize) -> Error {
        let (what, then) = match self.phase() {
            Phase::Settled => return self.unconfirmed("KS-SSD-104", "the table", removed),
            Phase::Off => ("could not be opened", "the directory may hold older copies."),
            _ => (
                "is not taken yet",
                "its blocks go with it once it is; a restart before that may bring them back.",
            ),
        };
        let message = format!(
            "the SSD tier {what}: what was asked is done in this store ({removed} blocks); {then}"
        );
        let hint = "repeat it once stats().ssd_state is \"ok\", or delete the directory.";
        Error::new(ErrorKind::Ssd, "KS-SSD-109", message, hint).with("removed", removed)
    }

    /// Forgets everything, in O(1); the frames come back as the keeper sweeps. Use it when the
    /// weights change.
    ///
    /// On SSD it is O(1) too, and there once this returns.
    ///
    /// # Errors
    /// Closed. Ssd where the disk does not confirm, or the tier is not there yet (it is cleared
    /// when it is taken): everything is gone from this store, but a restart may bring it back.
    /// Format where the directory has seen 2^24 opens and clears.
    pub fn clear(&self) -> Result<(), Error> {
        self.check()?;
        // False: too many clears wait for the sweep, which has to go on first.
        let round = loop {
            match self.keep(|keeper, parts, _| keeper.clear(parts)) {
                Some(Cleared::Later) => {
                    self.keep(|keeper, parts, budget| keeper.sweep(parts, budget));
                }
                Some(Cleared::NoEpoch(epoch)) => return Err(no_epochs_left(epoch)),
                Some(Cleared::Done(round)) => break round,
                None => return Ok(()),
            }
        };
        self.tidy(0);
        self.nudge();
        if self.driver.is_some() {
            let Some(round) = round else { return Err(self.not_there(0)) };
            let deadline_us = self.deadline_us(self.io_timeout * CONFIRM_TRANSFERS);
            let end = self.wait_for_round(deadline_us, |tier| tier.super_round(round));
            if end != Round::Confirmed {
                return Err(self.unconfirmed("KS-SSD-105", "SUPER", 0));
            }
        }
        Ok(())
    }
}
