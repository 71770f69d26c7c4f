//! What a directory holds, understood before anything in it is changed.
//!
//! Owns: the survey of the names, the reading of SUPER and of the layout's description, the reset.
//! Never does: grow or cut a file. Invariants: what can't be read is a Format error that names it;
//! a directory counts as new only where no record was ever written, so that nothing is lost by it.

use super::faults::{broken, failed, newer, other_layout};
use super::files::{Files, Folder, sync_folder};
use super::lock::LOCK;
use super::{CHANGES, DirConfig, Notes, SUPER, Shape, TABLE, place, slots_name, slots_number};
use crate::error::Error;
use crate::ssd::format::{self, Broken, Super};
use std::fs::File;
use std::io::Read;

pub(super) const LAYOUT: &str = "layout.json";
/// The next `layout.json`, until it is whole.
const LAYOUT_NEW: &str = "layout.json.new";
/// Every name of ours but those of slots files, and what each directory has.
const OURS: [&str; 8] = [".", "..", LOCK, SUPER, TABLE, CHANGES, LAYOUT, LAYOUT_NEW];
/// Entries looked at when a directory is surveyed; more are somebody else's.
const ENTRIES_MAX: usize = 100_000;
/// Foreign files that are named in the warning.
const FOREIGN_SHOWN_MAX: usize = 5;
/// How far a table is searched for a record before it counts as written.
const BLANK_SCAN_BYTES_MAX: u64 = 2 << 30;
const SCAN_STEP_BYTES: u64 = 1 << 20;

/// What is in a directory, by name.
#[derive(Default)]
pub(super) struct Survey {
    /// Numbers of the slots files.
    pub(super) slots_files: Vec<u32>,
    /// Some names that are not ours, and how many there are.
    foreign: Vec<String>,
    foreign_count: usize,
}

impl Survey {
    /// What is not ours, if anything: how many names, and some of them.
    pub(super) fn foreign(&self) -> Option<(usize, String)> {
        let count = self.foreign_count;
        let more = if count > self.foreign.len() { ", ..." } else { "" };
        (count > 0).then(|| (count, format!("{}{more}", self.foreign.join(", "))))
    }

    pub(super) fn warn(&self, at: &Folder<'_>, notes: &mut Notes) {
        if let Some((count, shown)) = self.foreign() {
            let path = at.path.display();
            notes.warnings.push(format!(
                "{path}: {count} files that are not the store's are left alone ({shown})."
            ));
        }
    }
}

/// Lists the directory; each name of ours must be a regular file of ours.
pub(super) fn survey(at: &Folder<'_>) -> Result<Survey, Error> {
    let failed = |errno| failed("list", at.path, errno);
    let mut survey = Survey::default();
    for entry in rustix::fs::Dir::read_from(at.folder).map_err(failed)?.take(ENTRIES_MAX) {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy();
        if let Some(file) = slots_number(&name) {
            survey.slots_files.push(file);
        } else if !OURS.contains(&&*name) {
            survey.foreign_count += 1;
            if survey.foreign.len() < FOREIGN_SHOWN_MAX {
                survey.foreign.push(format!("{name:?}"));
            }
            continue;
        }
        if name != "." && name != ".." {
            at.length(&name)?;
        }
    }
    Ok(survey)
}

/// Reads what is there. None: nothing that could be lost. Format: something that can't be read.
pub(super) fn understand(
    config: &DirConfig<'_>,
    at: &Folder<'_>,
    notes: &mut Notes,
) -> Result<(Option<Super>, Survey), Error> {
    let survey = survey(at)?;
    let file = at.path.join(SUPER);
    let mut copies = at.read(SUPER, format::SUPER_BYTES)?.unwrap_or_default();
    copies.resize(format::SUPER_BYTES as usize, 0);
    let (first, second) = copies.split_at(format::PAGE_BYTES);
    let why = match format::newest(first, second) {
        Ok(found) => {
            check_layout(config, at, &found)?;
            return Ok((Some(found), survey));
        }
        Err(Broken::Newer(version)) => {
            return Err(newer(&file, version, format::FORMAT_VERSION));
        }
        Err(Broken::Absurd(field)) => {
            return Err(broken(&file, format_args!("no writer writes such a {field}")));
        }
        Err(Broken::Foreign | Broken::Torn) if !is_half_written(first, second) => {
            return Err(broken(&file, "it is not a store's"));
        }
        Err(Broken::Empty) => "it is empty",
        Err(Broken::Foreign | Broken::Torn) => "neither of its copies is whole",
    };
    // SUPER is the first that is ever written: a crash may have cut its first write short.
    if !is_blank(at)? {
        return Err(broken(&file, why));
    }
    if copies.iter().any(|byte| *byte != 0) {
        notes.warnings.push(format!("{}: {why}, and no record was written.", file.display()));
    }
    Ok((None, survey))
}

/// A first write of SUPER of which the beginning did not reach the disk: no magic, not another's.
fn is_half_written(first: &[u8], second: &[u8]) -> bool {
    let foreign =
        |copy: &[u8]| copy[..8] != [0; 8] && matches!(Super::decode(copy), Err(Broken::Foreign));
    !foreign(first) && !foreign(second)
}

/// Whether no page of the table was ever written.
fn is_blank(at: &Folder<'_>) -> Result<bool, Error> {
    let Some(table) = at.open(TABLE, true)? else { return Ok(true) };
    let table = File::from(table);
    let mut bytes = Vec::with_capacity(SCAN_STEP_BYTES as usize);
    let mut scanned_bytes = 0;
    while scanned_bytes < BLANK_SCAN_BYTES_MAX {
        bytes.clear();
        let count = (&table)
            .take(SCAN_STEP_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| at.io_failed("read", TABLE, &error))?;
        if count == 0 {
            return Ok(true);
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        scanned_bytes += count as u64;
    }
    Ok(false)
}

/// Whether a valid SUPER is of the store that is being opened.
fn check_layout(config: &DirConfig<'_>, at: &Folder<'_>, found: &Super) -> Result<(), Error> {
    if found.fingerprint != config.fingerprint {
        let (there, asked) = (place::hex(&found.fingerprint), place::hex(&config.fingerprint));
        return Err(other_layout(at.path, "the fingerprint", there, asked));
    }
    if config.stride_bytes != 0 && found.stride_bytes != config.stride_bytes {
        let (there, asked) = (found.stride_bytes, config.stride_bytes);
        return Err(other_layout(at.path, "the stride in bytes", there, asked));
    }
    let asked = blake3::hash(config.layout_json.as_bytes());
    if !config.layout_json.is_empty() && found.layout_hash != *asked.as_bytes() {
        let there = blake3::Hash::from_bytes(found.layout_hash).to_hex();
        return Err(other_layout(at.path, "the layout's hash", there, asked.to_hex()));
    }
    Ok(())
}

/// Removes all that is ours but LOCK. SUPER goes last: without the table it promises nothing.
pub(super) fn reset(at: &Folder<'_>) -> Result<(), Error> {
    for name in ours(at)? {
        at.remove(&name)?;
    }
    sync_folder(at.folder, at.path)
}

/// The names of ours but LOCK, in the order in which they are removed.
pub(super) fn ours(at: &Folder<'_>) -> Result<Vec<String>, Error> {
    let entries = rustix::fs::Dir::read_from(at.folder)
        .map_err(|errno| failed("list", at.path, errno))?
        .take(ENTRIES_MAX);
    let slots_files = entries
        .filter_map(|entry| slots_number(&entry.ok()?.file_name().to_string_lossy()))
        .map(slots_name);
    let mut names = vec![TABLE.to_owned()];
    names.extend(slots_files);
    names.extend([CHANGES, LAYOUT, LAYOUT_NEW, SUPER].map(str::to_owned));
    Ok(names)
}

/// Says what a reopen drops, and what was gone before it.
pub(super) fn warn_of_change(
    at: &Folder<'_>,
    before: &Shape,
    now: &Shape,
    notes: &mut Notes,
) -> Result<(), Error> {
    let path = at.path.display();
    if now.slots < before.slots {
        notes.warnings.push(format!(
            "{path}: the capacity is smaller than before: {} of {} slots are dropped.",
            before.slots - now.slots,
            before.slots
        ));
    }
    let (mut first, mut count) = (None, 0);
    for ((name, had), (_, wanted)) in before.parts().into_iter().zip(now.parts()) {
        if at.length(&name)?.unwrap_or(0) < had.min(wanted) {
            count += 1;
            first.get_or_insert(name);
        }
    }
    if let Some(name) = first {
        notes.warnings.push(format!(
            "{path}: {count} files, from {name} on, were missing or cut short: they are made \
             whole, and what was in the missing parts is a miss."
        ));
    }
    Ok(())
}

/// Writes the layout's description where it is not there, or not the one that SUPER means.
pub(super) fn write_layout(
    config: &DirConfig<'_>,
    at: &Folder<'_>,
    files: &mut Files<'_, '_>,
    kept: bool,
    notes: &mut Notes,
) -> Result<(), Error> {
    at.remove(LAYOUT_NEW)?;
    let there = at.read(LAYOUT, format::LAYOUT_BYTES_MAX + 1)?;
    if there.as_deref() == Some(config.layout_json.as_bytes()) {
        return Ok(());
    }
    if kept {
        let path = at.path.join(LAYOUT);
        notes.warnings.push(format!("{}: missing or changed, written anew.", path.display()));
    }
    at.replace(LAYOUT, LAYOUT_NEW, config.layout_json.as_bytes())?;
    if there.is_none() {
        files.made(LAYOUT);
    }
    Ok(())
}
