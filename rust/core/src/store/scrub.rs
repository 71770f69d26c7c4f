//! The scrub of an open store: every block on SSD is read and its tag compared.
//!
//! Owns: the walk and its pace. Never does: decide what becomes of a bad copy; the tier does that
//! with every read. Invariants: one pin and one staging frame at a time, and neither while it waits
//! for a frame or for its pace; it ends, whatever is put meanwhile: slots go forward.

use super::Store;
use super::tier::{Begun, Staging};
use crate::directory::Entry;
use crate::error::Error;
use crate::units::SsdSlot;
use std::time::Duration;

/// Blocks between two shares of bookkeeping.
const TIDY_BLOCKS: u64 = 64;

/// What a scrub has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Copies read and found right.
    pub blocks: u64,
    /// Their payload.
    pub bytes: u64,
    /// Copies that were bad, and have been given up.
    pub bad: u64,
    /// Copies that could not be read now: a device that is slow, or left alone.
    pub skipped: u64,
    /// All slots have been seen.
    pub done: bool,
    next: u32,
    /// On the store's clock: no read begins before.
    due_us: u64,
}

/// How the look at one slot ended.
enum Look {
    Good(u32),
    Bad(u32),
    Skipped,
    Gone,
    /// No staging frame was free in time, or the store is poisoned.
    Stuck,
}

impl Store {
    /// Reads every block that is on SSD and compares its tag, at most `bytes_per_s`, for as long
    /// as `timeout`. A bad copy is given up: the block is written again if it is in RAM too (and
    /// may be met again further on), else a miss from now on.
    ///
    /// # Errors
    /// Closed.
    pub fn verify(&self, bytes_per_s: Option<u64>, timeout: Duration) -> Result<Scrubbed, Error> {
        let mut scrubbed = Scrubbed::default();
        self.verify_more(&mut scrubbed, bytes_per_s, timeout)?;
        Ok(scrubbed)
    }

    /// Goes on with a scrub. False: there is nothing more to do, because it is done or the store is
    /// poisoned.
    ///
    /// # Errors
    /// Closed.
    pub fn verify_more(
        &self,
        so_far: &mut Scrubbed,
        bytes_per_s: Option<u64>,
        timeout: Duration,
    ) -> Result<bool, Error> {
        self.check()?;
        let Some(staging) = self.parts.staging.as_ref() else {
            so_far.done = true;
            return Ok(false);
        };
        self.drain();
        let deadline_us = self.deadline_us(timeout);
        if !self.wait_until_taken(deadline_us) {
            return Ok(false);
        }
        let mut looks = 0;
        while !so_far.done && self.parts.clock.now_us() < deadline_us {
            self.check()?;
            let Some(next) = self.with_tier(|tier, _| tier.next_on_ssd(so_far.next)) else { break };
            let Some((ssd, used)) = next else {
                so_far.done = true;
                break;
            };
            so_far.next = ssd.0;
            if !used {
                continue;
            }
            if !self.wait_until(so_far.due_us.min(deadline_us)) || so_far.due_us > deadline_us {
                break;
            }
            let bytes = match self.verify_slot(staging, ssd, deadline_us) {
                Look::Good(len) => {
                    so_far.blocks += 1;
                    so_far.bytes += u64::from(len);
                    len
                }
                Look::Bad(len) => {
                    so_far.bad += 1;
                    len
                }
                Look::Skipped => {
                    so_far.skipped += 1;
                    0
                }
                Look::Gone => 0,
                Look::Stuck => break,
            };
            so_far.next += 1;
            so_far.due_us = so_far.due_us.max(self.parts.clock.now_us());
            so_far.due_us +=
                bytes_per_s.map_or(0, |rate| u64::from(bytes) * 1_000_000 / rate.max(1));
            looks += 1;
            if looks % TIDY_BLOCKS == 0 {
                self.tidy(0);
            }
        }
        self.tidy(0);
        Ok(!so_far.done && !self.is_poisoned())
    }

    /// Waits until a time on the store's clock; false where the store is poisoned.
    fn wait_until(&self, until_us: u64) -> bool {
        if self.parts.clock.now_us() < until_us {
            self.wait_for_tier(until_us, || self.closed());
        }
        !self.is_poisoned()
    }

    fn closed(&self) -> bool {
        self.check().is_err()
    }

    fn verify_slot(&self, staging: &Staging, ssd: SsdSlot, deadline_us: u64) -> Look {
        if staging.frames.free() == 0 {
            self.wait_for_tier(deadline_us, || staging.frames.free() > 0 || self.closed());
        }
        let Some(frame) = staging.frames.take_one() else { return Look::Stuck };
        let _inside = self.gate.enter();
        let begun = self.with_tier(|tier, with| tier.verify(with, ssd, frame));
        let (entry, len, ticket) = match begun {
            Some(Begun::Read { entry, len, ticket }) => (entry, len, ticket),
            ended => {
                staging.frames.give(frame);
                return match ended {
                    Some(Begun::Refused) => Look::Skipped,
                    Some(_) => Look::Gone,
                    None => Look::Stuck,
                };
            }
        };
        let give_up_us = self.deadline_us(self.io_timeout);
        let mut end = None;
        self.wait_for_tier(give_up_us, || {
            end = ticket.ended();
            end.is_some()
        });
        let look = if end.is_none() && ticket.abandon() {
            // The frame comes back with the completion.
            Look::Skipped
        } else {
            staging.frames.give(frame);
            self.end_look(ticket.ended() == Some(true), ssd, &entry, len)
        };
        self.parts.directory.unpin(entry.slot);
        look
    }

    fn end_look(&self, good: bool, ssd: SsdSlot, entry: &Entry, len: u32) -> Look {
        if good {
            return Look::Good(len);
        }
        match self.with_tier(|tier, with| tier.was_bad(with, ssd, entry)) {
            Some(Some(true)) => Look::Bad(len),
            Some(Some(false)) => Look::Skipped,
            Some(None) => Look::Gone,
            None => Look::Stuck,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
