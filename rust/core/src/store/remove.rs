//! Remove and clear.
//!
//! Owns: the user's deletions. Never does: free a frame that a lease reads; that is the keeper's,
//! by the leaf rule. Invariants: once remove has returned, the keys are not found; once clear has,
//! nothing is found that a put begun before it brought.

use super::Store;
use super::ring::Note;
use crate::error::Error;
use crate::key::Key;
use crate::stats::add;

impl Store {
    /// Removes the blocks of these keys; returns how many were there. Leased ones stay readable
    /// through their lease.
    ///
    /// # Errors
    /// Closed.
    pub fn remove(&self, keys: &[Key]) -> Result<usize, Error> {
        self.check()?;
        let counters = &self.parts.counters;
        let mut removed = 0;
        for key in keys {
            if let Some(block) = self.parts.directory.remove(*key) {
                add(&counters.removed, 1);
                counters.resident(u32::from(block.epoch), -1, -i64::from(block.len));
                self.tell(Note::Removed { slot: block.slot, generation: block.generation });
                removed += 1;
            }
        }
        self.tidy(removed);
        Ok(removed)
    }

    /// Forgets everything, in O(1); the frames come back as the keeper sweeps. Use it when the
    /// weights change.
    ///
    /// # Errors
    /// Closed.
    pub fn clear(&self) -> Result<(), Error> {
        self.check()?;
        // False: too many clears wait for the sweep, which has to go on first.
        while self.keep(|keeper, parts, _| keeper.clear(parts)) == Some(false) {
            self.keep(|keeper, parts, budget| keeper.sweep(parts, budget));
        }
        self.tidy(0);
        Ok(())
    }
}
