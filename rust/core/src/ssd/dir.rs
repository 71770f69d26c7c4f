//! The directory on disk: who owns it, which files are in it, and how long they are.
//!
//! Owns: `<root>/<fingerprint>/<member>/` with LOCK, SUPER, `table`, `slots.NNNN`, `layout.json`
//! and `changes`: making, opening, growing, cutting and resetting them. Never does: write SUPER, a
//! record or a block; the epoch is the tier's. Invariants:
//! - One owner: whoever holds the `LockGuard`. To look (`read_only`) takes no lock and changes
//!   nothing.
//! - The lengths of all files together are at most the capacity asked for, except those of files
//!   that are not ours.
//! - SUPER decides what the files mean, the capacity how many slots there are: where they differ,
//!   files are grown with zeros (which no tag matches) or cut, and what stays is not touched.
//! - Nothing is removed because it is not understood, unless the user asked for a reset.
//! - An open that fails leaves nothing that was not there before.
//! - What a removal has begun to take away is no store any more, whenever it stops.

mod faults;
mod files;
mod hint;
mod list;
mod lock;
mod place;
mod probe;
mod reclaim;
mod remove;
mod scratch;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use faults::{HELD, replaced};
pub(crate) use list::{Listed, list, list_all, members};
pub(crate) use lock::LockGuard;
pub(crate) use place::{hex, unhex};
pub use probe::{DirProbe, Failed, probe_directory};
pub(crate) use remove::{may_be_removed, remove};
pub(crate) use scratch::scratch;

use crate::error::{Error, ErrorKind};
use crate::ssd::format::{self, Super};
use faults::{broken, layout_too_long, nothing_there, too_many_files, too_small};
use files::{Disk, Files, Folder};
use place::{Place, REMOVED_MAX};
use reclaim::Reclaim;
use rustix::io::Errno;
use state::{LAYOUT, reset, survey, understand, warn_of_change, write_layout};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const SUPER: &str = "SUPER";
const TABLE: &str = "table";
const CHANGES: &str = "changes";

/// What to open.
#[derive(Clone, Debug)]
pub(crate) struct DirConfig<'a> {
    /// The directory that the user named; made if the one above it exists.
    pub(crate) root: &'a Path,
    /// Of layout, namespace and salt.
    pub(crate) fingerprint: [u8; 16],
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub(crate) member: &'a str,
    /// The layout's description; empty to take what is there, for a look only.
    pub(crate) layout_json: &'a str,
    /// Bytes of all files together, at most; of no account for a look.
    pub(crate) capacity_bytes: u64,
    /// From one slot to the next, a multiple of 4,096; 0 to take what is there, for a look only.
    pub(crate) stride_bytes: u32,
    /// Starts afresh where what is there is of another layout, another format or broken.
    pub(crate) reset_on_mismatch: bool,
    /// Where room is short, removes other directories under the root that nobody has open.
    pub(crate) reclaim: bool,
    /// To look: no lock, no change.
    pub(crate) read_only: bool,
    /// Slots of each file but the last when the directory is new; 0 is the default.
    pub(crate) slots_a_file: u32,
    /// Bypass the page cache where the file system can.
    pub(crate) direct: bool,
}

impl<'a> DirConfig<'a> {
    /// To look at a directory, whatever it holds: nothing is asked of it.
    pub(crate) fn to_look(root: &'a Path, fingerprint: [u8; 16], member: &'a str) -> Self {
        Self {
            root,
            fingerprint,
            member,
            layout_json: "",
            capacity_bytes: 0,
            stride_bytes: 0,
            reset_on_mismatch: false,
            reclaim: false,
            read_only: true,
            slots_a_file: 0,
            direct: false,
        }
    }
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Opened {
    /// In the order of `io::FileId`: SUPER, the table, `slots.0000` and on. True: direct.
    pub(crate) files: Vec<(OwnedFd, bool)>,
    /// The hint for followers, where there is one.
    pub(crate) changes: Option<OwnedFd>,
    /// The ownership; None for a look.
    pub(crate) lock: Option<LockGuard>,
    /// Slots of all files; `super_block` still has the number before.
    pub(crate) slots: u32,
    /// Slots of each file but the last.
    pub(crate) slots_a_file: u32,
    /// Nothing is in it: SUPER is to be written with a new uuid.
    pub(crate) fresh: bool,
    /// Every file is direct.
    pub(crate) direct: bool,
    /// What had to be done in a lesser way, and why, one sentence each.
    pub(crate) fallbacks: Vec<String>,
    /// What the user should look at, one sentence each.
    pub(crate) warnings: Vec<String>,
    /// `<root>/<fingerprint>/<member>`.
    pub(crate) path: PathBuf,
    /// BLAKE3 of the layout's description, for SUPER.
    pub(crate) layout_hash: [u8; 32],
    /// The newest valid copy; None when fresh.
    pub(crate) super_block: Option<Super>,
}

/// What an open has to tell.
#[derive(Debug, Default)]
struct Notes {
    fallbacks: Vec<String>,
    warnings: Vec<String>,
}

impl Notes {
    /// Says it once, however many files it is true of.
    fn fall_back(&mut self, sentence: String) {
        if !self.fallbacks.contains(&sentence) {
            self.fallbacks.push(sentence);
        }
    }
}

/// Which file has which slots.
#[derive(Clone, Copy)]
struct Shape {
    slots: u32,
    slots_a_file: u32,
    stride_bytes: u32,
}

impl Shape {
    fn of_super(found: &Super) -> Self {
        let Super { slots, slots_a_file, stride_bytes, .. } = *found;
        Self { slots, slots_a_file, stride_bytes }
    }

    /// The files of our own directory; what is there keeps its place.
    fn wanted(config: &DirConfig<'_>, found: Option<&Super>) -> Result<Self, Error> {
        let (capacity_bytes, stride_bytes) = (config.capacity_bytes, config.stride_bytes);
        let slots = hint::slots_beside(capacity_bytes, stride_bytes, found);
        let slots_a_file = match (found, config.slots_a_file) {
            (Some(found), _) => found.slots_a_file,
            (None, 0) => format::slots_a_file(stride_bytes),
            (None, asked) => asked,
        };
        let shape = Self { slots, slots_a_file, stride_bytes };
        if shape.files() > format::SLOTS_FILES_MAX {
            let most = format::SLOTS_FILES_MAX;
            return Err(too_many_files(capacity_bytes, shape.files().into(), most));
        }
        Ok(shape)
    }

    fn files(&self) -> u32 {
        self.slots.div_ceil(self.slots_a_file)
    }

    fn slots_bytes(&self, file: u32) -> u64 {
        let before = u64::from(file) * u64::from(self.slots_a_file);
        let left = u64::from(self.slots).saturating_sub(before);
        left.min(self.slots_a_file.into()) * u64::from(self.stride_bytes)
    }

    /// Names and lengths in the order of `io::FileId`.
    fn parts(&self) -> Vec<(String, u64)> {
        let table_bytes = u64::from(format::table_pages(self.slots)) * format::PAGE_BYTES as u64;
        let mut parts =
            vec![(SUPER.to_owned(), format::SUPER_BYTES), (TABLE.to_owned(), table_bytes)];
        parts.extend((0..self.files()).map(|file| (slots_name(file), self.slots_bytes(file))));
        parts
    }
}

fn slots_name(file: u32) -> String {
    format!("slots.{file:04}")
}

/// The number of a slots file of ours, if the name is one that we choose.
fn slots_number(name: &str) -> Option<u32> {
    let file = name.strip_prefix("slots.")?.parse().ok()?;
    (file < format::SLOTS_FILES_MAX && slots_name(file) == name).then_some(file)
}

/// Opens a directory: as its owner, or to look.
pub(crate) fn open(config: &DirConfig<'_>) -> Result<Opened, Error> {
    open_on(config, Disk::REAL)
}

fn open_on(config: &DirConfig<'_>, disk: Disk) -> Result<Opened, Error> {
    check(config)?;
    let mut reclaim = Reclaim::new(config, disk);
    let opened = loop {
        match attempt(config, disk, &mut reclaim) {
            // Not even room for a directory or LOCK.
            Err(error) if is_full(&error) && reclaim.make_room_in_root() => {}
            other => break other,
        }
    };
    match opened {
        Ok(mut opened) => {
            opened.warnings.extend(reclaim.said);
            Ok(opened)
        }
        Err(error) => Err(reclaim.named(error)),
    }
}

/// Whether a system call failed for room.
fn is_full(error: &Error) -> bool {
    let is = |errno: Errno| error.context.contains(&("errno", errno.raw_os_error().to_string()));
    is(Errno::NOSPC) || is(Errno::DQUOT)
}

fn attempt(config: &DirConfig<'_>, disk: Disk, reclaim: &mut Reclaim<'_>) -> Result<Opened, Error> {
    let (place, lock, notes) = match enter(config)? {
        (place, Some(lock), notes) => (place, lock, notes),
        (place, None, notes) => {
            return look(config, &Folder::of(&place, true), notes);
        }
    };
    let at = Folder::of(&place, false);
    match own(config, &at, disk, reclaim, notes) {
        Ok(mut opened) => {
            if let Err(errno) = lock.touch() {
                let why = std::io::Error::from(errno);
                let path = at.path.display();
                opened.warnings.push(format!("{path}: the time of LOCK stays as it was ({why})."));
            }
            Ok(Opened { lock: Some(lock), ..opened })
        }
        Err(error) => {
            lock.unmake(at.folder);
            drop(lock);
            place.unmake();
            Err(error)
        }
    }
}

/// Enters the directory and locks it, unless it is only to be looked at.
fn enter(config: &DirConfig<'_>) -> Result<(Place, Option<LockGuard>, Notes), Error> {
    for _ in 0..REMOVED_MAX {
        let mut notes = Notes::default();
        let place = Place::enter(config, &mut notes)?;
        if config.read_only {
            return Ok((place, None, notes));
        }
        let taken = LockGuard::take(place.folder.as_fd(), &place.path);
        // Who removes a directory takes its name away first: that lock is none, of whomever.
        if place.is_there(config.member)? {
            return match taken {
                Ok(lock) => Ok((place, Some(lock), notes)),
                Err(error) => {
                    place.unmake();
                    Err(error)
                }
            };
        }
        if let Ok(lock) = taken {
            lock.unmake(place.folder.as_fd());
        }
        place.unmake();
    }
    Err(faults::failed("open", &config.root.join(hex(&config.fingerprint)), Errno::NOENT))
}

/// What can be refused before anything is touched.
fn check(config: &DirConfig<'_>) -> Result<(), Error> {
    if config.layout_json.len() as u64 > format::LAYOUT_BYTES_MAX {
        return Err(layout_too_long(config.layout_json.len(), format::LAYOUT_BYTES_MAX));
    }
    if config.read_only {
        return Ok(());
    }
    let page = format::PAGE_BYTES as u32;
    assert!(config.stride_bytes > 0 && config.stride_bytes.is_multiple_of(page), "a stride");
    if format::slots_for(config.capacity_bytes, config.stride_bytes) == 0 {
        let page = format::PAGE_BYTES as u64;
        let rest_bytes = format::SUPER_BYTES + format::LAYOUT_BYTES_MAX + page;
        let least_bytes = rest_bytes + u64::from(config.stride_bytes);
        return Err(too_small(config.capacity_bytes, least_bytes));
    }
    Ok(())
}

/// Opens the directory as its owner: the lock is held.
fn own(
    config: &DirConfig<'_>,
    at: &Folder<'_>,
    disk: Disk,
    reclaim: &mut Reclaim<'_>,
    mut notes: Notes,
) -> Result<Opened, Error> {
    let (found, survey) = match understand(config, at, &mut notes) {
        Err(error) if error.kind == ErrorKind::Format && config.reset_on_mismatch => {
            reset(at)?;
            notes.warnings.push(format!("started afresh: {}", error.message));
            (None, survey(at)?)
        }
        other => other?,
    };
    let shape = Shape::wanted(config, found.as_ref())?;
    let parts = shape.parts();
    survey.warn(at, &mut notes);
    if let Some(found) = &found {
        warn_of_change(at, &Shape::of_super(found), &shape, &mut notes)?;
    }
    for file in survey.slots_files.into_iter().filter(|file| *file >= shape.files()) {
        at.remove(&slots_name(file))?;
    }
    let mut files = Files::new(*at, disk, reclaim);
    files.cut(&parts)?;
    let layout = (LAYOUT.to_owned(), config.layout_json.len() as u64);
    files.check_room(&[&parts[..], &[layout]].concat())?;
    write_layout(config, at, &mut files, found.is_some(), &mut notes)?;
    let mut descriptors = Vec::with_capacity(parts.len());
    for (name, want) in &parts {
        descriptors.push(files.fit(name, *want, &mut notes)?);
    }
    files.keep()?;
    let changes = hint::make(config, at, &parts, disk, &mut notes);
    Ok(Opened { changes, ..opened(config, at, descriptors, shape, found, notes) })
}

/// Opens the directory as it is.
fn look(config: &DirConfig<'_>, at: &Folder<'_>, mut notes: Notes) -> Result<Opened, Error> {
    let (found, survey) = understand(config, at, &mut notes)?;
    let Some(found) = found else { return Err(nothing_there(at.path, "its SUPER is empty")) };
    survey.warn(at, &mut notes);
    let mut shape = Shape::of_super(&found);
    let mut descriptors = Vec::new();
    for (name, _) in shape.parts() {
        let Some(file) = at.open(&name, true)? else { break };
        descriptors.push(file);
    }
    let Some(files) = descriptors.len().checked_sub(2).filter(|files| *files > 0) else {
        return Err(broken(at.path, "the table or the first slots file is missing"));
    };
    if files < shape.files() as usize {
        let all = shape.files();
        notes.warnings.push(format!(
            "{}: {} is missing; only the {files} files of {all} before it are read.",
            at.path.display(),
            slots_name(files as u32)
        ));
        // Fewer files than before, all of them full: the product is less than `slots`.
        shape.slots = files as u32 * shape.slots_a_file;
    }
    let changes = at.open(CHANGES, true)?;
    Ok(Opened { changes, ..opened(config, at, descriptors, shape, Some(found), notes) })
}

fn opened(
    config: &DirConfig<'_>,
    at: &Folder<'_>,
    descriptors: Vec<OwnedFd>,
    shape: Shape,
    found: Option<Super>,
    mut notes: Notes,
) -> Opened {
    let direct = !files::is_tmpfs(at, &mut notes) && config.direct;
    let files: Vec<_> = descriptors
        .into_iter()
        .map(|file| {
            let direct = direct && files::bypass(&file, at, &mut notes);
            (file, direct)
        })
        .collect();
    Opened {
        direct: files.iter().all(|(_, direct)| *direct),
        files,
        changes: None,
        lock: None,
        slots: shape.slots,
        slots_a_file: shape.slots_a_file,
        fresh: found.is_none(),
        fallbacks: notes.fallbacks,
        warnings: notes.warnings,
        path: at.path.to_owned(),
        layout_hash: *blake3::hash(config.layout_json.as_bytes()).as_bytes(),
        super_block: found,
    }
}
