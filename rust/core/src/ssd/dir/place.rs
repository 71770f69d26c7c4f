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
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, mkdirat, openat, statat};
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
/// How often a directory may be removed under our hands before we give up.
pub(super) const REMOVED_MAX: u32 = 8;

/// A member's directory, open.
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    pub(super) path: PathBuf,
    /// The directory of the fingerprint.
    middle: OwnedFd,
    /// Directories that were not there before, outermost first.
    made: Vec<PathBuf>,
}

impl Place {
    /// Opens the directory, making what is not there unless it is only to be read.
    pub(super) fn enter(config: &DirConfig<'_>, notes: &mut Notes) -> Result<Self, Error> {
        if !is_member(config.member) {
            return Err(bad_member(config.member, MEMBER_BYTES_MAX));
        }
        let said = notes.warnings.len();
        for _ in 0..REMOVED_MAX {
            let mut made = Vec::new();
            notes.warnings.truncate(said);
            let entered = descend(config, notes, &mut made);
            if !matches!(entered, Ok(Some(_))) {
                remove(&made);
            }
            if let Some((middle, folder, path)) = entered? {
                return Ok(Self { folder, path, middle, made });
            }
        }
        Err(failed("create", &config.root.join(hex(&config.fingerprint)), Errno::NOENT))
    }

    /// Whether the directory still has its name: it may have been removed since it was opened.
    pub(super) fn is_there(&self, member: &str) -> Result<bool, Error> {
        is_named(self.middle.as_fd(), member, self.folder.as_fd(), &self.path)
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

/// Whether `name` in `above` is the directory `folder`.
pub(super) fn is_named(
    above: BorrowedFd<'_>,
    name: &str,
    folder: BorrowedFd<'_>,
    path: &Path,
) -> Result<bool, Error> {
    let ours = fstat(folder).map_err(|errno| failed("stat", path, errno))?;
    match statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed("stat", path, errno)),
    }
}

/// The directories of the fingerprint and of the member, and the path of that; None if one was
/// removed before the next was made in it.
fn descend(
    config: &DirConfig<'_>,
    notes: &mut Notes,
    made: &mut Vec<PathBuf>,
) -> Result<Option<(OwnedFd, OwnedFd, PathBuf)>, Error> {
    let root = open_root(config, made)?;
    let stat = fstat(&root).map_err(|errno| failed("stat", config.root, errno))?;
    judge_root(config.root, stat.st_mode, stat.st_uid, notes);
    let name = hex(&config.fingerprint);
    let path = config.root.join(&name);
    let below = open_below(root.as_fd(), &name, &path, config.read_only, made)?;
    let Some(middle) = below else { return Ok(None) };
    let path = path.join(config.member);
    let below = open_below(middle.as_fd(), config.member, &path, config.read_only, made)?;
    let Some(folder) = below else { return Ok(None) };
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
    Ok(Some((middle, folder, path)))
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

/// A directory below an open one, made if it may be; None if the one above is gone.
fn open_below(
    above: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    read_only: bool,
    made: &mut Vec<PathBuf>,
) -> Result<Option<OwnedFd>, Error> {
    for _ in 0..OPENS_MAX {
        match openat(above, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(folder) => return Ok(Some(folder)),
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
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed("create", path, errno)),
        }
    }
    match openat(above, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("open", path, errno)),
    }
}

pub(super) fn is_member(name: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MEMBER_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(safe)
}

/// The directory of a fingerprint.
pub(crate) fn hex(fingerprint: &[u8; 16]) -> String {
    fingerprint.iter().fold(String::with_capacity(32), |mut name, byte| {
        write!(name, "{byte:02x}").expect("a String takes what it is given");
        name
    })
}

/// The fingerprint of a directory's name, if it is one of ours.
pub(crate) fn unhex(name: &str) -> Option<[u8; 16]> {
    let mut fingerprint = [0; 16];
    for (at, byte) in fingerprint.iter_mut().enumerate() {
        *byte = u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    (hex(&fingerprint) == name).then_some(fingerprint)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{DIR_FLAGS, open_below};
    use crate::ssd::dir::tests::Root;
    use rustix::fs::{CWD, Mode, openat};
    use std::os::fd::AsFd;

    #[test]
    fn nothing_is_made_in_a_directory_that_is_gone() {
        let root = Root::new("gone");
        std::fs::create_dir(&root.0).expect("create");
        let above = openat(CWD, &root.0, DIR_FLAGS, Mode::empty()).expect("open");
        std::fs::remove_dir(&root.0).expect("remove");
        let mut made = Vec::new();
        let below = open_below(above.as_fd(), "0", &root.0.join("0"), false, &mut made);
        assert!(below.expect("no error").is_none() && made.is_empty());
    }
}
