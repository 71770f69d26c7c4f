//! A file to try things on: in the directory, without a name.
//!
//! Owns: making it. Never does: leave a name behind, unless the process dies between two calls.

use super::files::FILE_MODE;
use rustix::fs::{AtFlags, Mode, OFlags, fcntl_getfl, fcntl_setfl, open, openat, unlinkat};
use rustix::io::Errno;
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::path::Path;

/// An empty file in a directory, and whether it bypasses the page cache: as asked, where the file
/// system can.
pub(crate) fn scratch(folder: &Path, direct: bool) -> std::io::Result<(OwnedFd, bool)> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let (file, _) = nameless(&open(folder, how, Mode::empty())?)?;
    let direct = direct
        && fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::DIRECT)).is_ok();
    Ok((file, direct))
}

/// A new file without a name; true: it never had one.
pub(super) fn nameless(folder: &OwnedFd) -> rustix::io::Result<(OwnedFd, bool)> {
    let access = OFlags::RDWR | OFlags::CLOEXEC;
    match openat(folder, ".", access | OFlags::TMPFILE, FILE_MODE) {
        Ok(file) => return Ok((file, true)),
        // Not every file system has files without a name; each says so in another way.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let random = std::collections::hash_map::RandomState::new().hash_one(());
    let name = format!(".keystow-try.{}.{random:016x}", std::process::id());
    let only_new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = openat(folder, &name, access | only_new, FILE_MODE)?;
    unlinkat(folder, &name, AtFlags::empty())?;
    Ok((file, false))
}
