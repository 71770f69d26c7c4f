//! Pieces of the store by themselves, for this crate's own benchmarks: ten million headers need no
//! ten million frames, and a tag no disk.

use crate::directory::{Block, Directory, Home};
use crate::key::Key;
use crate::units::FrameId;

/// An index of root blocks without bytes.
pub struct Index(Directory);

impl Index {
    /// An index that holds exactly these keys.
    pub fn filled(keys: &[Key]) -> Self {
        let directory = Directory::new(keys.len() as u32);
        let epoch = directory.epoch();
        for (i, key) in keys.iter().enumerate() {
            let home = Home::Frame(FrameId(i as u32));
            directory.commit(&Block { key: *key, parent: None, home, len: 0, epoch, pins: 0 });
        }
        Self(directory)
    }

    /// The leading run of keys that are there.
    pub fn match_prefix(&self, keys: &[Key]) -> usize {
        let mut found = 0;
        self.0.match_run(keys, |_| found += 1);
        found
    }
}

/// What a block's tag costs: the digest that every read from SSD and every write to it ends in.
pub fn digest(seed: u64, bytes: &[u8]) -> u128 {
    crate::io::digest(seed, bytes)
}
