//! Room for an open from directories that nobody has open.
//!
//! Owns: which of them goes next, and what is told of it. Never does: remove one (`remove` does),
//! or wait for one that is locked. Invariants: only where the user asked for it; only under the
//! same root and on the same file system, never the one that is being opened; what a removal left
//! before goes first, then the one whose last open is the longest ago; none where all of them
//! together would not do.

use super::DirConfig;
use super::faults::HELD;
use super::files::Disk;
use super::list::{Listed, list_all};
use super::place::{DIR_FLAGS, hex};
use super::remove::{may_be_removed, remove};
use crate::error::Error;
use rustix::fs::{CWD, Mode, fstat, openat};
use std::cmp::Reverse;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

/// A file system may give room back late: it is asked so often, so long apart.
const ROOM_TRIES_MAX: u32 = 100;
const ROOM_TRY: Duration = Duration::from_millis(10);
/// Directories that an error names.
const SHOWN_MAX: usize = 5;
const DAY_S: u64 = 86_400;

/// What an open may take room from.
pub(super) struct Reclaim<'a> {
    config: &'a DirConfig<'a>,
    disk: Disk,
    /// What may go, the next one last; None until room is short.
    candidates: Option<Vec<Listed>>,
    gone: Vec<PathBuf>,
    gone_bytes: u64,
    /// What has gone or could not, one sentence each.
    pub(super) said: Vec<String>,
}

impl<'a> Reclaim<'a> {
    pub(super) fn new(config: &'a DirConfig<'a>, disk: Disk) -> Self {
        let (candidates, gone, said) = (None, Vec::new(), Vec::new());
        Self { config, disk, candidates, gone, gone_bytes: 0, said }
    }

    /// Removes the next directory on the file system of `folder`; false where there is none, or
    /// where all of them together have less than `missing_bytes`.
    pub(super) fn make_room(&mut self, folder: BorrowedFd<'_>, missing_bytes: u64) -> bool {
        if !self.config.reclaim || self.config.read_only {
            return false;
        }
        if self.candidates.is_none() {
            self.candidates = Some(self.find(folder));
        }
        while self.left_bytes() >= missing_bytes
            && let Some(next) = self.candidates.as_mut().and_then(Vec::pop)
        {
            let before = (self.disk.free_bytes)(folder);
            match remove(self.config.root, next.fingerprint, &next.name) {
                Ok(()) => {
                    self.tell(&next);
                    self.settle(folder, before, next.room_bytes);
                    return true;
                }
                // Somebody opened it just now, or removes it too.
                Err(error) if error.code == HELD => {}
                Err(error) => self.said.push(format!("not reclaimed: {}", error.message)),
            }
        }
        false
    }

    /// The same before there is a directory of our own.
    pub(super) fn make_room_in_root(&mut self) -> bool {
        let root = openat(CWD, self.config.root, DIR_FLAGS, Mode::empty());
        // Without a root there is nothing in it.
        root.is_ok_and(|root| self.make_room(root.as_fd(), 0))
    }

    /// An open's failure, with what was removed for it.
    pub(super) fn named(&self, mut error: Error) -> Error {
        if self.gone.is_empty() {
            if let Some(left) = self.candidates.as_ref().filter(|left| !left.is_empty()) {
                error.message.push_str(&format!(
                    " Nothing was reclaimed: {} unlocked directories beside it have {} bytes.",
                    left.len(),
                    self.left_bytes()
                ));
            }
            return error;
        }
        let shown = self.gone.iter().take(SHOWN_MAX);
        let shown: Vec<_> = shown.map(|path| path.display().to_string()).collect();
        let more = if self.gone.len() > SHOWN_MAX { ", ..." } else { "" };
        error.message.push_str(&format!(
            " Reclaimed for it: {} bytes ({}{more}).",
            self.gone_bytes,
            shown.join(", ")
        ));
        error.with("reclaimed_bytes", self.gone_bytes).with("reclaimed", self.gone.len())
    }

    /// What may go, the next one last.
    fn find(&mut self, folder: BorrowedFd<'_>) -> Vec<Listed> {
        let DirConfig { root, fingerprint, member, .. } = *self.config;
        let Ok(device) = fstat(folder).map(|stat| stat.st_dev) else { return Vec::new() };
        let mut found = match list_all(root) {
            Ok(found) => found,
            Err(error) => {
                self.said.push(format!("nothing was reclaimed: {}", error.message));
                return Vec::new();
            }
        };
        found.retain(|it| {
            let own = it.fingerprint == fingerprint && it.name == member;
            !own && !it.locked && it.device == device
        });
        found.retain(|it| match may_be_removed(root, it.fingerprint, &it.name) {
            Ok(()) => true,
            Err(error) => {
                self.said.push(format!("not reclaimed: {}", error.message));
                false
            }
        });
        found.sort_by_key(|it| Reverse((!it.half_removed, it.opened_unix_s)));
        found
    }

    fn left_bytes(&self) -> u64 {
        let all = self.candidates.iter().flatten();
        all.fold(0, |sum, it| sum.saturating_add(it.room_bytes.max(it.bytes)))
    }

    fn tell(&mut self, gone: &Listed) {
        let path = self.config.root.join(hex(&gone.fingerprint)).join(&gone.name);
        let opened = match gone.opened_unix_s {
            _ if gone.half_removed => "the rest of a removal".to_owned(),
            Some(unix_s) => format!("last opened {}", utc(unix_s)),
            None => "never opened".to_owned(),
        };
        self.said.push(format!(
            "reclaimed {} for room: {} bytes, {opened}.",
            path.display(),
            gone.bytes
        ));
        self.gone_bytes = self.gone_bytes.saturating_add(gone.bytes);
        self.gone.push(path);
    }

    /// Waits until the room of what was removed shows, so that no more goes than is needed.
    fn settle(&self, folder: BorrowedFd<'_>, before: Option<u64>, room_bytes: u64) {
        let Some(before) = before else { return };
        for _ in 0..ROOM_TRIES_MAX {
            let free = (self.disk.free_bytes)(folder);
            if free.is_none_or(|free| free >= before.saturating_add(room_bytes)) {
                return;
            }
            std::thread::sleep(ROOM_TRY);
        }
    }
}

/// A time of day for people.
fn utc(unix_s: u64) -> String {
    let (days, in_day) = (unix_s / DAY_S, unix_s % DAY_S);
    // Days since 0000-03-01: there the leap day is the last of its year (Howard Hinnant's method).
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (in_day / 3600, in_day / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::utc;

    #[test]
    fn times_of_day() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_735_689_599), "2024-12-31 23:59 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00 UTC");
    }
}
