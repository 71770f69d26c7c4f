//! Where followed directories are.
//!
//! Owns: what "siblings" and paths mean. Never does: open one, or LOCK. Invariants: one's own
//! directory is never among them; each is named once; a path that can't be followed has a reason,
//! and is looked at again.

use super::super::config::{Following, SsdConfig};
use crate::ssd::dir::{hex, members};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a member's directory has at least one of.
const FILES: [&str; 3] = ["SUPER", "LOCK", "table"];

/// What was asked for.
pub(super) struct Sources {
    pub(super) fingerprint: [u8; 16],
    following: Following,
    /// One's own: a root and a directory for each device.
    roots: Vec<PathBuf>,
    own: Vec<PathBuf>,
}

/// The path from the root of the file system: a process may change its directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|stat| (stat.dev(), stat.ino()))
}

impl Sources {
    pub(super) fn new(ssd: &SsdConfig) -> Self {
        let following = match &ssd.follow {
            Following::Paths(paths) => {
                Following::Paths(paths.iter().map(|path| absolute(path)).collect())
            }
            other => other.clone(),
        };
        let roots: Vec<PathBuf> = ssd.places().map(|place| absolute(&place.path)).collect();
        let own = roots.iter().map(|root| root.join(hex(&ssd.fingerprint)).join(&ssd.member));
        let own = own.collect();
        Self { fingerprint: ssd.fingerprint, following, roots, own }
    }

    /// A member's directory.
    pub(super) fn path(&self, root: &Path, name: &str) -> PathBuf {
        root.join(hex(&self.fingerprint)).join(name)
    }

    /// The directories that there are now, by root and name.
    pub(super) fn find(&self, reasons: &mut BTreeMap<PathBuf, String>) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        match &self.following {
            Following::Nobody => {}
            Following::Siblings => {
                self.roots.iter().for_each(|root| self.below(root, &mut found, reasons));
            }
            Following::Paths(paths) => {
                paths.iter().for_each(|path| self.named(path, &mut found, reasons));
            }
        }
        let mut seen = Vec::new();
        let own: Vec<_> = self.own.iter().map(|own| inode(own)).collect();
        found.retain(|(root, name)| {
            let path = self.path(root, name);
            let inode = inode(&path);
            let others = inode.is_some() && !self.own.contains(&path) && !own.contains(&inode);
            let new = others && !seen.contains(&inode);
            seen.push(inode);
            new
        });
        found
    }

    fn below(
        &self,
        root: &Path,
        found: &mut Vec<(PathBuf, String)>,
        reasons: &mut BTreeMap<PathBuf, String>,
    ) {
        match members(root, &self.fingerprint) {
            Ok(names) => found.extend(names.into_iter().map(|name| (root.to_owned(), name))),
            Err(error) => {
                reasons.insert(root.to_owned(), error.message);
            }
        }
    }

    /// What a path names: a member's directory, or a root.
    fn named(
        &self,
        path: &Path,
        found: &mut Vec<(PathBuf, String)>,
        reasons: &mut BTreeMap<PathBuf, String>,
    ) {
        let is_member = FILES.iter().any(|file| path.join(file).symlink_metadata().is_ok());
        if !is_member && path.is_dir() {
            let before = found.len();
            self.below(path, found, reasons);
            if found.len() == before && !reasons.contains_key(path) {
                let why = format!("no store of this layout there ({})", hex(&self.fingerprint));
                reasons.insert(path.to_owned(), why);
            }
            return;
        }
        let above = path.parent();
        let of = above.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let name = path.file_name().and_then(|name| name.to_str());
        match (above.and_then(Path::parent), name) {
            _ if !is_member => {
                reasons.insert(path.to_owned(), "there is no such directory".to_owned());
            }
            (Some(root), Some(name)) if of.as_ref() == Some(&hex(&self.fingerprint)) => {
                found.push((root.to_owned(), name.to_owned()));
            }
            _ => {
                let (of, asked) = (of.unwrap_or_default(), hex(&self.fingerprint));
                let why = format!("it is of another layout or namespace ({of}, not {asked})");
                reasons.insert(path.to_owned(), why);
            }
        }
    }
}
