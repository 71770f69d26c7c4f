//! What befalls the disk: storms of faults, one bad request, rot, swaps, old files.
//!
//! Owns: the damage, and what it excuses. Never does: call a verb. Invariant: what only makes a
//! disk fail or forget what it says it forgot never excuses a removed block that comes back.

use super::history::History;
use super::plan::Nature;
use super::situations::Situation;
use crate::io::{FailNext, Fault, FileId, Mishap, Op};
use crate::store::simulated::FILES_A_DEVICE;

const PAGE_BYTES: u64 = 4096;
const EIO: i32 = 5;
/// Of several devices, files that something befalls: SUPER, the table, some slots.
const FILES_OFTEN: u32 = 5;

fn is_super(file: FileId) -> bool {
    file.0.is_multiple_of(FILES_A_DEVICE)
}

impl History {
    /// Something happens to the disk, as its nature allows.
    pub(super) fn mischief(&mut self) {
        match self.rng.below(10) {
            _ if self.plan.nature == Nature::Honest => {}
            _ if self.plan.devices() > 1 && self.rng.one_in(4) => self.lose_device(),
            0..=2 => self.storm(),
            3 => self.release_hangs(),
            4 | 5 => self.one_mishap(),
            6 | 7 => self.rot(),
            _ if self.plan.nature == Nature::Flaky => self.swap_pieces(),
            8 => self.swap_files(),
            _ => self.old_file(),
        }
    }

    fn storm(&mut self) {
        self.stormy = !self.stormy;
        let stormy = self.stormy;
        let faults = if stormy { self.plan.storm.clone() } else { self.plan.calm.clone() };
        self.say(|| format!("storm {stormy}"));
        self.disk(|disk| disk.faults(|now| *now = faults));
        self.reads_harmed = true;
        self.harm(self.liar());
    }

    /// The disk behaves from now on.
    pub(super) fn calm(&mut self) {
        if std::mem::take(&mut self.stormy) {
            let calm = self.plan.calm.clone();
            self.disk(|disk| disk.faults(|faults| *faults = calm));
        }
    }

    pub(super) fn harm(&mut self, lied: bool) {
        self.harmed = true;
        self.lied |= lied;
    }

    fn release_hangs(&mut self) {
        self.say(|| "release what hangs".to_owned());
        self.disk(crate::io::SimDisk::release_hangs);
    }

    fn one_mishap(&mut self) {
        let honest = [
            Mishap::Error(Fault::Io(EIO)),
            Mishap::Error(Fault::Full),
            Mishap::Error(Fault::ReadOnly),
            Mishap::Short,
            Mishap::Hang,
            Mishap::Rot,
        ];
        let lies = [Mishap::Lost, Mishap::Misdirected, Mishap::Torn, Mishap::Duplicate];
        let lie = self.liar() && self.rng.one_in(2);
        let of = if lie { &lies[..] } else { &honest[..] };
        let mishap = of[self.rng.below(of.len() as u64) as usize];
        let op = match self.rng.below(4) {
            _ if lie => Some(Op::Write),
            0 => Some(Op::Read),
            1 => Some(Op::Write),
            2 => Some(Op::Sync),
            _ => None,
        };
        let after = self.rng.below(8) as u32;
        let forever = self.rng.one_in(12);
        let next = FailNext { op, after, mishap, forever };
        self.say(|| format!("next: {next:?}"));
        self.disk(|disk| disk.faults(|faults| faults.fail_next = Some(next)));
        self.stormy |= forever;
        // Where only writes and syncs fail, and say so, no block loses its bytes.
        let only_writes = matches!(op, Some(Op::Write | Op::Sync)) && !lie;
        self.reads_harmed |= !only_writes || mishap == Mishap::Hang;
        self.harm(lie);
    }

    /// Draws nothing where there is one.
    fn any_device(&mut self) -> u32 {
        let devices = self.plan.devices();
        if devices > 1 { self.rng.below(devices.into()) as u32 } else { 0 }
    }

    /// A device does nothing any more, until the disk is calm again.
    fn lose_device(&mut self) {
        let first = self.any_device() * FILES_A_DEVICE;
        let hangs = self.rng.one_in(3);
        let mishap = if hangs { Mishap::Hang } else { Mishap::Error(Fault::Io(EIO)) };
        self.say(|| format!("the device of file {first} is lost: {mishap:?}"));
        let lost = Some((first..first + FILES_A_DEVICE, mishap));
        self.disk(|disk| disk.faults(|faults| faults.lost_files = lost));
        self.situations.note(Situation::DeviceLost, true);
        self.stormy = true;
        self.reads_harmed = true;
        self.harm(false);
    }

    /// Between two stores: a device is replaced by an empty one, or all but the first are left out
    /// or there again. Whether anything is other than it was.
    pub(super) fn change_devices(&mut self) -> bool {
        if self.plan.devices() == 1 {
            return false;
        }
        match self.rng.below(8) {
            // Who alone knew of the removals of a time must not go while the others are away.
            0 if self.plan.away.is_empty() => {
                let first = self.any_device() * FILES_A_DEVICE;
                self.say(|| format!("the device of file {first} is replaced by an empty one"));
                self.disk(|disk| {
                    let files = disk.files();
                    (first..files.min(first + FILES_A_DEVICE))
                        .for_each(|file| disk.resize(FileId(file), 0));
                });
                self.situations.note(Situation::DeviceReplaced, true);
                true
            }
            // Nor come back to one that may have forgotten them.
            1 if self.plan.away.is_empty() || !self.super_harmed => {
                let out = self.plan.leave_out();
                self.say(|| format!("all devices but the first left out: {out}"));
                self.situations.note(Situation::DeviceLeftOut, out);
                true
            }
            _ => !self.plan.away.is_empty(),
        }
    }

    fn any_file(&mut self) -> (FileId, u64) {
        let files = self.disk(crate::io::SimDisk::files);
        // The table as often as all slots.
        let first = self.any_device() * FILES_A_DEVICE;
        let files = if self.plan.devices() > 1 { FILES_OFTEN } else { files };
        let file = if self.rng.one_in(3) { 1 } else { self.rng.below(u64::from(files)) as u32 };
        let file = FileId(first + file);
        let there = self.disk(crate::io::SimDisk::files) > file.0;
        let file = if there { file } else { FileId(first) };
        (file, self.disk(|disk| disk.file_len(file)))
    }

    fn rot(&mut self) {
        let (file, len) = self.any_file();
        if len < PAGE_BYTES {
            return;
        }
        self.super_harmed |= is_super(file);
        let page = self.rng.below(len / PAGE_BYTES) * PAGE_BYTES;
        let (at, mask) = (page + self.rng.below(600), 1 << self.rng.below(8));
        let zero = self.rng.one_in(3);
        self.say(|| format!("rot in {file:?} at {at}, whole page {zero}"));
        self.disk(|disk| {
            if zero {
                disk.zero(file, page..page + PAGE_BYTES);
            } else {
                disk.flip(file, at, mask);
            }
        });
        self.reads_harmed = true;
        self.harm(false);
    }

    fn swap_pieces(&mut self) {
        let (file, len) = self.any_file();
        let bytes = PAGE_BYTES * (1 + self.rng.below(2));
        let pieces = len / bytes;
        let (a, b) = (self.rng.below(pieces), self.rng.below(pieces));
        if pieces < 2 || a == b {
            return;
        }
        self.say(|| format!("swap pieces {a} and {b} of {bytes} in {file:?}"));
        self.disk(|disk| disk.swap(file, a * bytes, b * bytes, bytes));
        self.reads_harmed = true;
        // Swapped back later, old pages are there again.
        self.harm(true);
    }

    fn swap_files(&mut self) {
        let (a, _) = self.any_file();
        let (b, _) = self.any_file();
        if a == b {
            return;
        }
        self.super_harmed |= is_super(a) || is_super(b);
        self.say(|| format!("swap files {a:?} and {b:?}"));
        self.disk(|disk| disk.swap_files(a, b));
        self.reads_harmed = true;
        self.harm(true);
    }

    fn old_file(&mut self) {
        let Some(old) = self.snapshot.take() else {
            self.say(|| "take a copy of the disk".to_owned());
            self.snapshot = Some(self.disk(crate::io::SimDisk::snapshot));
            self.lied = true;
            return;
        };
        let files = self.disk(crate::io::SimDisk::files);
        let all = self.rng.one_in(3);
        let only = self.any_file().0;
        self.super_harmed |= all || only.0 == 0;
        self.say(|| format!("restore {only:?} of {files}, all {all}"));
        for file in (0..files).map(FileId).filter(|file| all || *file == only) {
            if old.holds(file) {
                self.disk(|disk| disk.restore(file, &old));
            }
        }
        self.reads_harmed = true;
        self.harm(true);
    }
}
