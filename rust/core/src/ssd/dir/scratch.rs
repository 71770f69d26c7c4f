//! A file to try things on: in the directory, without a name.
//!
//! Owns: making it. Never does: leave a name behind, unless the process dies between two calls.

use super::files::FILE_MODE;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open, unlink};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// An empty file in a directory, and whether it bypasses the page cache: as asked, where the file
/// system can.
pub(crate) fn scratch(folder: &Path, direct: bool) -> std::io::Result<(OwnedFd, bool)> {
    let file = nameless(folder, FILE_MODE)?;
    let direct = direct
        && fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::DIRECT)).is_ok();
    Ok((file, direct))
}

fn nameless(folder: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let how = OFlags::RDWR | OFlags::CLOEXEC;
    match open(folder, how | OFlags::TMPFILE, mode) {
        // Not every file system has files without a name; overlays and FUSE may say it so.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        other => return other,
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!(".try-{}-{count}", std::process::id()));
    let file = open(&path, how | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)?;
    unlink(&path)?;
    Ok(file)
}
