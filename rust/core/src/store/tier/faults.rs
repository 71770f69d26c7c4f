//! When to leave a device alone, and what dirty blocks do meanwhile.
//!
//! Owns: the breaker, deadlines of requests, the right of dirty blocks to leave unwritten. Never
//! does: hide a fault; each is counted. Invariants: an open breaker starts no request but, after a
//! while, one probe; a request past its deadline keeps its memory and its slot.

use super::jobs::Begun;
use super::{Tier, With};
use crate::directory::Dirty;
use crate::io::{Completion, Fault};
use crate::key::Key;
use crate::policy::Policy;
use crate::units::Slot;
use std::sync::atomic::Ordering;

/// So many faults within the window open the breaker.
const FAULTS_MAX: u32 = 8;
/// A device that stalls makes everything late that is out. That counts as so many faults, once in
/// each timeout: one stall does not open the breaker, a device that hangs does after three.
const FAULTS_A_STALL: u32 = 3;
const WINDOW_US: u64 = 10_000_000;
/// First time an open breaker waits before its probe; doubled at each failed one.
const OPEN_US: u64 = 1_000_000;
const OPEN_US_MAX: u64 = 60_000_000;

/// Whether the device is trusted.
#[derive(Default)]
pub(super) struct Breaker {
    faults: u32,
    window_from_us: u64,
    /// Open until then.
    until_us: Option<u64>,
    open_us: u64,
    probing: bool,
    /// When a stall was last counted.
    stalled_us: Option<u64>,
    /// Requests have become late since `stall` last looked, the probe among them.
    late: bool,
    probe_late: bool,
}

/// What may be started now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    Full,
    /// One request, whose end decides.
    Probe,
    Nothing,
}

impl Breaker {
    pub(super) fn trust(&self, now_us: u64) -> Trust {
        match self.until_us {
            None => Trust::Full,
            Some(until_us) if now_us >= until_us && !self.probing => Trust::Probe,
            Some(_) => Trust::Nothing,
        }
    }

    pub(super) fn state(&self) -> &'static str {
        match (self.until_us, self.probing) {
            (None, _) => "ok",
            (Some(_), true) => "probing",
            (Some(_), false) => "off",
        }
    }

    pub(super) fn begin_probe(&mut self) {
        self.probing = true;
    }

    fn is_open(&self) -> bool {
        self.until_us.is_some()
    }

    fn note_late(&mut self, probe: bool) {
        self.late = true;
        self.probe_late |= probe;
    }

    /// Counts what has become late; true where that opens the breaker.
    fn stall(&mut self, now_us: u64, timeout_us: u64) -> bool {
        if std::mem::take(&mut self.probe_late) {
            self.end_probe(now_us, false);
        }
        let late = std::mem::take(&mut self.late);
        let counted = self.stalled_us.is_some_and(|at_us| now_us < at_us + timeout_us);
        if counted || !late {
            return false;
        }
        self.stalled_us = Some(now_us);
        (0..FAULTS_A_STALL).fold(false, |opened, _| self.fault(now_us) || opened)
    }

    /// One fault more; true where it opens the breaker.
    fn fault(&mut self, now_us: u64) -> bool {
        if now_us.saturating_sub(self.window_from_us) > WINDOW_US {
            (self.faults, self.window_from_us) = (0, now_us);
        }
        self.faults += 1;
        let opens = self.faults >= FAULTS_MAX && !self.is_open();
        if opens {
            self.open(now_us, OPEN_US);
        }
        opens
    }

    fn open(&mut self, now_us: u64, open_us: u64) {
        self.open_us = open_us.min(OPEN_US_MAX);
        self.until_us = Some(now_us + self.open_us);
        (self.faults, self.probing) = (0, false);
    }

    /// The probe's end: true where the device is trusted again.
    fn end_probe(&mut self, now_us: u64, good: bool) -> bool {
        if !good {
            self.open(now_us, self.open_us * 2);
            return false;
        }
        *self = Self::default();
        true
    }
}

impl Tier {
    /// Counts how a request ended, for the statistics and for the breaker.
    pub(super) fn judge(&mut self, with: &mut With<'_>, begun: &Begun, end: &Completion) {
        let fault = match end.result {
            Ok(moved) => moved != begun.len,
            Err(_) => true,
        };
        match end.result {
            Ok(_) if fault => self.stats.short_transfers += 1,
            Err(Fault::Full) => self.stats.disk_full += 1,
            Err(_) => self.stats.io_errors += 1,
            Ok(_) => {}
        }
        if begun.probe {
            self.stats.probes += 1;
            if self.devices[begun.device].breaker.end_probe(with.now_us, !fault) {
                self.trust_again(with);
            }
        } else if fault && self.devices[begun.device].breaker.fault(with.now_us) {
            self.leave_alone(with, begun.device);
        }
    }

    /// Looks for requests past their deadline.
    pub(super) fn watch(&mut self, with: &mut With<'_>) {
        let deadline_us = with.now_us.saturating_sub(self.geometry.io_timeout_us);
        let mut any_late = false;
        self.devices.iter_mut().for_each(|device| device.stalled = false);
        for begun in self.jobs.iter_mut().filter(|begun| begun.begun_us < deadline_us) {
            let device = &mut self.devices[begun.device];
            // What stays late counts again as long as nothing else comes back.
            if begun.late && device.completed_us >= deadline_us {
                continue;
            }
            any_late = true;
            device.stalled = true;
            self.stats.late += u64::from(!std::mem::replace(&mut begun.late, true));
            device.breaker.note_late(std::mem::take(&mut begun.probe));
        }
        if !any_late {
            return;
        }
        for device in 0..self.devices.len() {
            let breaker = &mut self.devices[device].breaker;
            if breaker.stall(with.now_us, self.geometry.io_timeout_us) {
                self.leave_alone(with, device);
            }
        }
    }

    /// The breaker of a device has opened: the others and RAM go on alone.
    fn leave_alone(&mut self, with: &mut With<'_>, device: usize) {
        self.stats.breaker_opened += 1;
        self.tell_away(with);
        if self.is_apart() {
            self.let_dirty_leave(with, Dirty::Leaves);
        }
        self.cancel_waiting_reads(with, device);
    }

    /// Paths of all devices.
    pub(in crate::store) fn paths(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.place.path.clone()).collect()
    }

    /// Paths of the devices that are left alone.
    pub(in crate::store) fn away(&self) -> impl Iterator<Item = &str> {
        let away = self.devices.iter().filter(|device| device.breaker.is_open());
        away.map(|device| &*device.place.path)
    }

    fn tell_away(&self, with: &With<'_>) {
        let away = self.away().next().is_some();
        // Relaxed: who sees it late puts a block that it could have had to itself.
        with.parts.away.store(away, Ordering::Relaxed);
    }

    /// Whether a block is only on a device that is left alone: it can't be had now.
    pub(in crate::store) fn is_away(&self, with: &With<'_>, slot: Slot) -> bool {
        let ssd = with.parts.directory.ssd_slot_of(slot);
        let ssd = ssd.filter(|_| !with.parts.directory.is_in_ram(slot) || self.is_loading(slot));
        ssd.is_some_and(|ssd| self.devices[self.devices.of(ssd)].breaker.is_open())
    }

    /// Somebody has the bytes of a block. Where its only copy is on a device that is left alone,
    /// that copy is given up, so that the block can be stored again. True where a read of it is out
    /// that keeps it: the block has to be removed.
    pub(in crate::store) fn disown_away(&mut self, with: &mut With<'_>, key: Key) -> bool {
        let directory = &with.parts.directory;
        let found = directory.find_one(key).filter(|it| it.resident);
        let found = found.filter(|it| directory.is_live(it.slot, it.generation));
        let Some(found) = found.filter(|it| self.is_away(with, it.slot)) else { return false };
        if self.is_loading(found.slot) {
            return true;
        }
        if let Some(ssd) = directory.ssd_slot_of(found.slot) {
            let lost = self.stats.lost;
            self.bad_copy(with, found.slot, ssd, false);
            self.stats.given_up += self.stats.lost - lost;
            self.stats.lost = lost;
        }
        false
    }

    /// What the stats say of all devices together.
    pub(super) fn state(&self) -> &'static str {
        let first = self.devices[0].breaker.state();
        if self.devices.iter().all(|device| device.breaker.state() == first) {
            return first;
        }
        "degraded"
    }

    fn trust_again(&mut self, with: &mut With<'_>) {
        self.stats.breaker_closed += 1;
        self.tell_away(with);
        if self.recovering {
            return;
        }
        self.let_dirty_leave(with, Dirty::Stay);
        self.stuck = false;
        with.policy.name_again();
    }

    /// RAM goes on alone: nothing is written now.
    fn is_apart(&self) -> bool {
        self.recovering || self.devices.iter().all(|device| device.breaker.is_open())
    }

    /// Everything is taken in: from here on the tier takes its part.
    pub(in crate::store) fn join(&mut self, with: &mut With<'_>) {
        self.recovering = false;
        if !self.is_apart() {
            self.let_dirty_leave(with, Dirty::Stay);
        }
    }

    fn let_dirty_leave(&mut self, with: &mut With<'_>, dirty: Dirty) {
        if self.dirty != dirty {
            self.dirty = dirty;
            if dirty != Dirty::Stay {
                with.policy.rewind();
            }
        }
    }

    /// How far this block may leave although it is dirty.
    pub(in crate::store) fn dirty_of(&self, slot: Slot) -> Dirty {
        match self.dirty {
            Dirty::Stay if self.refused.get(slot) => Dirty::Leaves,
            dirty => dirty,
        }
    }

    /// A put has waited long enough, or in vain: so many dirty blocks may leave unwritten.
    pub(in crate::store) fn allow_drops(&mut self, with: &mut With<'_>, blocks: u64) {
        self.drops_allowed = self.drops_allowed.max(blocks);
        let dirty = if self.dirty == Dirty::Holes { Dirty::Holes } else { Dirty::Leaves };
        self.let_dirty_leave(with, dirty);
    }

    /// The put for which dirty blocks were let go has taken what it could.
    pub(in crate::store) fn end_drops(&mut self, with: &mut With<'_>) {
        self.drops_allowed = 0;
        if !self.is_apart() {
            self.let_dirty_leave(with, Dirty::Stay);
        }
    }

    /// Nothing can leave as things are: one step further, if there is one; else back to normal.
    pub(in crate::store) fn let_more_leave(&mut self, with: &mut With<'_>) -> bool {
        match self.dirty {
            Dirty::Leaves => {
                self.let_dirty_leave(with, Dirty::Holes);
                return true;
            }
            Dirty::Holes if self.is_apart() => self.dirty = Dirty::Leaves,
            Dirty::Holes => self.dirty = Dirty::Stay,
            Dirty::Stay => {}
        }
        self.drops_allowed = 0;
        false
    }

    /// Whether a put should wait for the cleaner rather than take what can leave.
    pub(in crate::store) fn keeps_dirty(&self) -> bool {
        self.dirty == Dirty::Stay
    }

    /// A dirty block has left unwritten.
    pub(in crate::store) fn dropped(&mut self, slot: Slot, retired: bool) {
        let refused = self.refused.get(slot);
        self.refused.set(slot, false);
        let counter = if retired {
            &mut self.stats.dropped_retired
        } else if refused && self.dirty == Dirty::Stay {
            &mut self.stats.dropped_refused
        } else if self.is_apart() {
            &mut self.stats.dropped_off
        } else {
            &mut self.stats.dropped_waited
        };
        *counter += 1;
        if self.drops_allowed > 0 && !retired {
            self.drops_allowed -= 1;
            if self.drops_allowed == 0 && !self.is_apart() {
                self.dirty = Dirty::Stay;
            }
        }
    }
}
