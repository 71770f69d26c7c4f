//! The way to a member's directory: `<root>/<fingerprint>/<member>`.
//!
//! Owns: opening and making the three directories. Never does: touch a file in them. Invariants:
//! below the root nothing is reached through a symbolic link or by a path, only from an open
//! directory; the directories that we make are ours alone (0700), and one that belongs to another
//! user is refused.

use super::faults::{bad_member, failed, no_parent, not_ours, nothing_there, root_is_no_directory};
use super::files::sync_folder;
use super::{DirConfig, Notes};
use crate::error::Error;
use rustix::fs::{CWD, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub(super) const MEMBER_BYTES_MAX: usize = 64;
const DIR_MODE: Mode = Mode::RWXU;
pub(super) const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Open, make, open again.
const OPENS_MAX: u32 = 2;

/// A member's directory, open.
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    pub(super) path: PathBuf,
    /// Directories that were not there before, outermost first.
    made: Vec<PathBuf>,
}

impl Place {
    /// Opens the directory, making what is not there unless it is only to be read.
    pub(super) fn enter(config: &DirConfig<'_>, notes: &mut Notes) -> Result<Self, Error> {
        if !is_member(config.member) {
            return Err(bad_member(config.member, MEMBER_BYTES_MAX));
        }
        let mut made = Vec::new();
        let entered = descend(config, notes, &mut made);
        if entered.is_err() {
            remove(&made);
        }
        let (folder, path) = entered?;
        Ok(Self { folder, path, made })
    }

    /// Removes the directories that this open made, as far as they are empty.
    pub(super) fn unmake(self) {
        remove(&self.made);
    }
}

fn remove(made: &[PathBuf]) {
    for path in made.iter().rev() {
        // An empty directory left behind harms nobody; one with something in it is in use.
        let _ = std::fs::remove_dir(path);
    }
}

fn descend(
    config: &DirConfig<'_>,
    notes: &mut Notes,
    made: &mut Vec<PathBuf>,
) -> Result<(OwnedFd, PathBuf), Error> {
    let root = open_root(config, made)?;
    let stat = fstat(&root).map_err(|errno| failed("stat", config.root, errno))?;
    judge_root(config.root, stat.st_mode, stat.st_uid, notes);
    let name = hex(&config.fingerprint);
    let path = config.root.join(&name);
    let middle = open_below(root.as_fd(), &name, &path, config.read_only, made)?;
    let path = path.join(config.member);
    let folder = open_below(middle.as_fd(), config.member, &path, config.read_only, made)?;
    for (folder, path) in [(&middle, path.parent().unwrap_or(&path)), (&folder, &path)] {
        let stat = fstat(folder).map_err(|errno| failed("stat", path, errno))?;
        let (owner, us) = (stat.st_uid, geteuid().as_raw());
        if !may_use(owner, us, config.read_only) {
            return Err(not_ours(path, owner, us));
        }
        let mode = stat.st_mode & 0o777;
        if mode & 0o077 != 0 {
            notes.warnings.push(format!(
                "{} is open to group or others (mode {mode:o}): chmod 700 it.",
                path.display()
            ));
        }
    }
    Ok((folder, path))
}

/// Whether user `us` may use what belongs to `owner`: the owner, and root to look.
pub(super) fn may_use(owner: u32, us: u32, read_only: bool) -> bool {
    owner == us || (read_only && us == 0)
}

/// A root that others can write to, where they could put their own directories for ours.
fn judge_root(root: &Path, mode: u32, owner: u32, notes: &mut Notes) {
    let loose = mode & 0o022 != 0 && mode & Mode::SVTX.bits() == 0;
    if loose {
        notes.warnings.push(format!(
            "{} may be written to by group or others (mode {:o}): they can replace the store.",
            root.display(),
            mode & 0o7777
        ));
    }
    let us = geteuid().as_raw();
    if owner != us && owner != 0 {
        notes.warnings.push(format!(
            "{} belongs to user {owner}, who can replace the store of user {us}.",
            root.display()
        ));
    }
}

fn open_root(config: &DirConfig<'_>, made: &mut Vec<PathBuf>) -> Result<OwnedFd, Error> {
    let root = config.root;
    match openat(CWD, root, DIR_FLAGS, Mode::empty()) {
        Ok(folder) => return Ok(folder),
        Err(Errno::NOTDIR) => return Err(root_is_no_directory(root)),
        Err(Errno::NOENT) if config.read_only => {
            return Err(nothing_there(root, "there is no such directory"));
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed("open", root, errno)),
    }
    match mkdirat(CWD, root, DIR_MODE) {
        Ok(()) => made.push(root.to_owned()),
        Err(Errno::EXIST) => {}
        Err(Errno::NOENT) => return Err(no_parent(root)),
        Err(errno) => return Err(failed("create", root, errno)),
    }
    let folder =
        openat(CWD, root, DIR_FLAGS, Mode::empty()).map_err(|errno| failed("open", root, errno))?;
    let above = openat(&folder, "..", DIR_FLAGS, Mode::empty())
        .map_err(|errno| failed("open the directory above", root, errno))?;
    sync_folder(above.as_fd(), root)?;
    Ok(folder)
}

fn open_below(
    above: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    read_only: bool,
    made: &mut Vec<PathBuf>,
) -> Result<OwnedFd, Error> {
    for _ in 0..OPENS_MAX {
        match openat(above, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT) if read_only => {
                return Err(nothing_there(path, "there is no such directory"));
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("open", path, errno)),
        }
        match mkdirat(above, name, DIR_MODE) {
            Ok(()) => {
                made.push(path.to_owned());
                sync_folder(above, path)?;
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("create", path, errno)),
        }
    }
    openat(above, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|errno| failed("open", path, errno))
}

pub(super) fn is_member(name: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MEMBER_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(safe)
}

/// The directory of a fingerprint.
pub(super) fn hex(fingerprint: &[u8; 16]) -> String {
    fingerprint.iter().fold(String::with_capacity(32), |mut name, byte| {
        write!(name, "{byte:02x}").expect("a String takes what it is given");
        name
    })
}

/// The fingerprint of a directory's name, if it is one of ours.
pub(super) fn unhex(name: &str) -> Option<[u8; 16]> {
    let mut fingerprint = [0; 16];
    for (at, byte) in fingerprint.iter_mut().enumerate() {
        *byte = u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    (hex(&fingerprint) == name).then_some(fingerprint)
}
