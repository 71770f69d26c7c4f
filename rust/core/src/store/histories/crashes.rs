//! How a store ends without a word: the moments that crashes are aimed at.
//!
//! Owns: what is done just before. Never does: say what must hold afterwards, but for what is warm;
//! that is `restart`.

use super::history::{Done, History};
use super::plan::Nature;
use super::situations::What;
use crate::io::{FailNext, Fault, Mishap, Op};
use crate::ssd::format::{PAGE_BYTES, SUPER_BYTES};
use crate::store::tier::SUPER_FILE;

/// Blocks are put again elsewhere so often before a crash.
const REWRITES_MAX: u64 = 24;
const EIO: i32 = 5;

impl History {
    /// The store ends without a word.
    pub(super) fn crash(&mut self) -> Done {
        match self.rng.below(10) {
            0 => self.crash_inside(),
            6 | 7 => self.crash_after_rewrite(),
            8 => self.crash_after_failed_sync(),
            9 if self.plan.nature != Nature::Honest => self.crash_after_rotten_super(),
            1 => {
                let flushed = self.flush()?;
                self.look()?;
                // A page that is cut while it is written takes all its records along.
                let whole = flushed && self.sight().is_settled();
                let warm = if whole { self.on_disk() } else { Vec::new() };
                self.die(What::Other, true, &warm)
            }
            kind => {
                let power = kind < 4;
                let warm = if power { Vec::new() } else { self.must_be_warm(self.now_us()) };
                self.die(What::Other, power, &warm)
            }
        }
    }

    /// Blocks were removed and put again elsewhere; what the disk has of the old records and of the
    /// new ones is left to chance.
    fn crash_after_rewrite(&mut self) -> Done {
        // Slots are taken going forward: often enough, and records move to another page.
        for _ in 0..=self.rng.below(REWRITES_MAX) {
            self.remove_some(false)?;
            self.look()?;
            self.put()?;
            self.look()?;
            self.wait(30_000);
            self.look()?;
        }
        let us = self.rng.below(700_000);
        self.wait(us);
        self.look()?;
        self.die(What::Other, true, &[])
    }

    /// The store ends within a call: from some request on nothing is answered.
    fn crash_inside(&mut self) -> Done {
        self.calm();
        let after = self.rng.below(12) as u32;
        let next = FailNext { op: None, after, mishap: Mishap::Hang, forever: true };
        let power = self.rng.one_in(2);
        let at_us = self.now_us();
        let which = self.rng.below(6);
        let what = [What::Put, What::Remove, What::Remove, What::Clear, What::Other, What::Get];
        self.harmed_within(|history| {
            history.disk(|disk| disk.faults(|faults| faults.fail_next = Some(next)));
            history.say(|| format!("everything hangs after {after} requests"));
            match which {
                0 => history.put(),
                1 | 2 => history.remove(),
                3 => history.clear().map(drop),
                4 => history.flush().map(drop),
                _ => history.get(),
            }?;
            history.look()
        })?;
        self.disk(|disk| disk.faults(|faults| faults.fail_next = None));
        // What left the SSD meanwhile may be in RAM again, its slot written by another block.
        let warm = if power { Vec::new() } else { self.must_be_warm(at_us) };
        self.die(what[which as usize], power, &warm)
    }

    fn harmed_within(&mut self, work: impl FnOnce(&mut Self) -> Done) -> Done {
        let before = std::mem::replace(&mut self.harmed, true);
        let done = work(self);
        self.harmed = before;
        done
    }

    /// A remove fails for want of a sync, and is then repeated and confirmed: the sync that failed
    /// must not be taken for done.
    fn crash_after_failed_sync(&mut self) -> Done {
        self.calm();
        let (run, _) = self.natural();
        let (after, mishap) = (self.rng.below(2) as u32, Mishap::Error(Fault::Io(EIO)));
        let next = FailNext { op: Some(Op::Sync), after, mishap, forever: false };
        self.harmed_within(|history| {
            history.say(|| format!("next: {next:?}"));
            history.disk(|disk| disk.faults(|faults| faults.fail_next = Some(next)));
            history.remove_run(&run, true)?;
            history.look()?;
            history.remove_run(&run, true)?;
            history.look()
        })?;
        self.disk(|disk| disk.faults(|faults| faults.fail_next = None));
        self.die(What::Remove, true, &[])
    }

    /// One copy of SUPER rots after a clear: the other one has it too.
    fn crash_after_rotten_super(&mut self) -> Done {
        self.calm();
        let cleared = self.clear()?;
        self.look()?;
        let at = self.rng.below(2) * PAGE_BYTES as u64 + self.rng.below(150);
        self.say(|| format!("rot in SUPER at {at}"));
        // Another file may stand in its place.
        if cleared && self.disk(|disk| disk.file_len(SUPER_FILE)) == SUPER_BYTES {
            self.disk(|disk| disk.flip(SUPER_FILE, at, 0x10));
        }
        let power = self.rng.one_in(2);
        self.die(What::Clear, power, &[])
    }
}
