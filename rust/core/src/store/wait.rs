//! Opening a directory that somebody else may have.
//!
//! Owns: what `OnLocked` means. Never does: take the lock (`ssd::dir` does). Invariants: only a
//! directory that is held is waited for; a wait ends at its time or when the watch ends it, and
//! holds nothing meanwhile.

use super::OnLocked;
use super::open::{Progress, Watch, go_on};
use crate::error::Error;
use crate::ssd::dir::{self, DirConfig, Opened};
use std::time::{Duration, Instant};

/// The lock is tried again this often; who waits hears of an interrupt as soon.
const LOCK_TRY: Duration = Duration::from_millis(50);

/// Opens a directory as its owner, or does what was asked for where that is somebody else.
pub(super) fn open_directory(
    config: &DirConfig<'_>,
    on_locked: OnLocked,
    watch: &mut Watch<'_>,
) -> Result<Opened, Error> {
    let begun = Instant::now();
    let mut waits = false;
    loop {
        let held = match dir::open(config) {
            Ok(opened) => {
                if waits {
                    let path = opened.path.display();
                    let seconds = begun.elapsed().as_secs_f64();
                    let said = format!("{path}: free after {seconds:.1} s of waiting.");
                    go_on(watch, Progress::Said(said))?;
                }
                return Ok(opened);
            }
            Err(error) if error.code == dir::HELD => error,
            Err(error) => return Err(error),
        };
        let most = match on_locked {
            OnLocked::Fail | OnLocked::Ram => return Err(held),
            OnLocked::Wait(most) => most,
        };
        let waited = begun.elapsed();
        if waited >= most {
            return Err(still_held(held, waited));
        }
        if !waits {
            waits = true;
            let seconds = most.as_secs_f64();
            let said = format!("{} Waiting for it, {seconds} s at most.", held.message);
            go_on(watch, Progress::Said(said))?;
        }
        go_on(watch, Progress::Waits { waited, most })?;
        std::thread::sleep(LOCK_TRY.min(most - waited));
    }
}

#[cold]
fn still_held(mut held: Error, waited: Duration) -> Error {
    held.message.push_str(&format!(" It was waited for {:.1} s.", waited.as_secs_f64()));
    held.with("waited_ms", waited.as_millis())
}
