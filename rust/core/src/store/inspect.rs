//! Looking into directories from outside: what is in them, whether it is sound, and reading it.
//!
//! Owns: which members a path names, what `inspect` tells of each, `verify`, and the frozen
//! `Snapshot`. Never does: take a lock, change a file, or need the owner to be away. Invariants:
//! what an owner changes meanwhile is at worst a miss or a count of things that changed; lengths,
//! counts and offsets are checked by `ssd::format` before they are used.

mod look;
mod snapshot;
#[cfg(all(test, not(loom)))]
mod tests;
mod verify;

pub use snapshot::{Snapshot, SnapshotStats};
pub use verify::{Verified, verify};

use crate::error::{Error, ErrorKind};
use crate::ssd::dir;
use crate::ssd::format::FORMAT_VERSION;
use crate::ssd::reads::Buffer;
use crate::ssd::recover::plan;
use look::Look;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// 2020-01-01T00:00:00Z, where a record's minutes begin.
const UNIX_SECONDS_OF_2020: u64 = 1_577_836_800;
/// What a member's directory has at least one of.
const FILES: [&str; 3] = ["SUPER", "LOCK", "table"];
/// Members that an error names.
const SHOWN_MAX: usize = 5;

/// A member's directory, seen from outside.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// Of layout, namespace and salt, in 32 hex digits.
    pub fingerprint: String,
    /// Its name.
    pub member: String,
    /// `<root>/<fingerprint>/<member>`.
    pub path: PathBuf,
    /// A store has it open: what is told of its contents may be changing.
    pub locked: bool,
    /// Lengths of all its files.
    pub bytes: u64,
    /// What is in it, or why that can't be told.
    pub contents: Result<Contents, Error>,
}

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Of the files.
    pub format_version: u32,
    /// The layout's description; none where it is missing, or another one than SUPER means.
    pub layout: Option<String>,
    /// Longest payload.
    pub block_bytes: u32,
    /// From one slot to the next.
    pub stride_bytes: u32,
    /// Room for so many blocks.
    pub slots: u32,
    /// Slots with a record of any kind.
    pub slots_used: u32,
    /// Blocks that an open would find.
    pub live: u32,
    /// Their payload.
    pub live_bytes: u64,
    /// Those of them that begin a chain.
    pub chains: u32,
    /// Those of them whose parent is missing.
    pub orphans: u32,
    /// Records of a cleared epoch.
    pub stale: u32,
    /// Records that no writer of this format writes.
    pub insane: u32,
    /// Records of a key that has a newer one.
    pub losers: u32,
    /// Circles of parents, each cut at its oldest block.
    pub cycles: u32,
    /// One more with every open and every clear.
    pub epoch: u32,
    /// Records up to this epoch are void.
    pub clear_epoch: u32,
    /// The last owner closed it in order.
    pub clean: bool,
    /// Pages of the table.
    pub pages: u32,
    /// Those that could not be read or do not check: their blocks are lost.
    pub pages_unreadable: u32,
    /// Last use of the block that was used the longest ago, in seconds since 1970; a block that
    /// was never used says nothing.
    pub oldest_use_unix_s: Option<u64>,
    /// Last use of the one that was used last.
    pub newest_use_unix_s: Option<u64>,
    /// What its owner should look at, one sentence each.
    pub warnings: Vec<String>,
}

/// Where a member is.
#[derive(Clone, Debug)]
struct Member {
    root: PathBuf,
    fingerprint: [u8; 16],
    name: String,
    locked: bool,
    bytes: u64,
}

impl Member {
    fn path(&self) -> PathBuf {
        self.root.join(hex(&self.fingerprint)).join(&self.name)
    }

    /// Whether a store has it open now.
    fn is_locked_now(&self) -> bool {
        let same = |it: &dir::Listed| it.fingerprint == self.fingerprint && it.member == self.name;
        dir::list(&self.root).map_or(true, |all| all.iter().any(|it| same(it) && it.locked))
    }
}

/// Looks into the directories of a root, or into one member's: read-only, without a lock, also
/// while their owners run. A root without stores gives nothing.
///
/// # Errors
/// Config: there is no such directory, or it is a member's and not in its place. Ssd: it can't be
/// read. What is wrong with one member stands in its `contents`.
pub fn inspect(path: &Path) -> Result<Vec<Inspected>, Error> {
    let mut buffer = Buffer::default();
    let look = |member: Member| Inspected {
        fingerprint: hex(&member.fingerprint),
        path: member.path(),
        locked: member.locked,
        bytes: member.bytes,
        contents: Look::open(&member, true).map(|look| contents(look, &mut buffer)),
        member: member.name,
    };
    Ok(members(path)?.into_iter().map(look).collect())
}

fn contents(look: Look, buffer: &mut Buffer) -> Contents {
    let mut slots_used = 0;
    let mut records = look.records(buffer);
    let used = records.by_ref().inspect(|_| slots_used += 1);
    let found = &look.found;
    let plan = plan(used, found.clear_epoch, found.block_bytes);
    let pages_unreadable = records.unreadable;
    let used = plan.blocks.iter().filter(|block| block.last_use > 0);
    let used = used.map(|block| UNIX_SECONDS_OF_2020 + u64::from(block.last_use) * 60);
    let counts = plan.counts;
    Contents {
        format_version: FORMAT_VERSION,
        block_bytes: found.block_bytes,
        stride_bytes: found.stride_bytes,
        slots: look.slots,
        slots_used,
        live: counts.live,
        live_bytes: plan.blocks.iter().map(|block| u64::from(block.len)).sum(),
        chains: plan.blocks.iter().filter(|block| block.parent.is_none()).count() as u32,
        orphans: counts.orphans,
        stale: counts.stale,
        insane: counts.insane,
        losers: counts.losers,
        cycles: counts.cycles,
        epoch: found.epoch,
        clear_epoch: found.clear_epoch,
        clean: found.clean,
        pages: look.pages(),
        pages_unreadable,
        oldest_use_unix_s: used.clone().min(),
        newest_use_unix_s: used.max(),
        layout: look.layout,
        warnings: look.warnings,
    }
}

/// The members that a path names: itself, or those below it.
fn members(path: &Path) -> Result<Vec<Member>, Error> {
    let whole = std::fs::canonicalize(path).map_err(|error| not_there(path, &error))?;
    if !whole.is_dir() {
        return Err(not_a_directory(path));
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let above = whole.parent().unwrap_or(&whole);
    if FILES.iter().any(|file| whole.join(file).symlink_metadata().is_ok()) {
        let (member, fingerprint) = (name(&whole), name(above));
        let of = |it: &Member| {
            Some(&it.name) == member.as_ref() && Some(hex(&it.fingerprint)) == fingerprint
        };
        let root = above.parent().unwrap_or(above);
        return match below(root)?.into_iter().find(of) {
            Some(member) => Ok(vec![member]),
            None => Err(out_of_place(path)),
        };
    }
    let mut found = below(&whole)?;
    if found.is_empty() {
        // The directory of one fingerprint, between a root and its members.
        let fingerprint = name(&whole);
        found = below(above)?;
        found.retain(|member| Some(hex(&member.fingerprint)) == fingerprint);
    }
    Ok(found)
}

fn below(root: &Path) -> Result<Vec<Member>, Error> {
    let member = |it: dir::Listed| Member {
        root: root.to_owned(),
        fingerprint: it.fingerprint,
        name: it.member,
        locked: it.locked,
        bytes: it.bytes,
    };
    Ok(dir::list(root)?.into_iter().map(member).collect())
}

fn hex(fingerprint: &[u8; 16]) -> String {
    fingerprint.iter().fold(String::with_capacity(32), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes what it is given");
        text
    })
}

const WHERE: &str = "name the directory that was given as ssd=, or <root>/<fingerprint>/<member>.";

#[cold]
pub(super) fn not_there(path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => {
            ErrorKind::Config
        }
        _ => ErrorKind::Ssd,
    };
    let message = format!("cannot look into {}: {error}.", path.display());
    Error::new(kind, "KS-CFG-401", message, WHERE).with("path", path.display())
}

#[cold]
pub(super) fn not_a_directory(path: &Path) -> Error {
    let message = format!("{} is no directory.", path.display());
    Error::new(ErrorKind::Config, "KS-CFG-402", message, WHERE).with("path", path.display())
}

#[cold]
fn out_of_place(path: &Path) -> Error {
    let message = format!(
        "{} looks like a member's directory, but is not at <root>/<fingerprint>/<member>.",
        path.display()
    );
    let hint = "move it to such a place: both names are those that it had where it came from.";
    Error::new(ErrorKind::Config, "KS-CFG-403", message, hint).with("path", path.display())
}

#[cold]
fn no_store(path: &Path) -> Error {
    let message = format!("{} holds no store.", path.display());
    Error::new(ErrorKind::Config, "KS-CFG-404", message, WHERE).with("path", path.display())
}

#[cold]
fn too_many(path: &Path, found: &[Member]) -> Error {
    let shown: Vec<String> =
        found.iter().take(SHOWN_MAX).map(|member| member.path().display().to_string()).collect();
    let more = if found.len() > SHOWN_MAX { ", ..." } else { "" };
    let message =
        format!("{} holds {} stores: {}{more}.", path.display(), found.len(), shown.join(", "));
    let hint = "name one of them.";
    Error::new(ErrorKind::Config, "KS-CFG-405", message, hint)
        .with("path", path.display())
        .with("stores", found.len())
}
