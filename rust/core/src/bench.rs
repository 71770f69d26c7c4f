//! Pieces of the store by themselves, for this crate's own benchmarks: ten million headers need no
//! ten million frames, and a tag no disk.

use crate::directory::{Block, Directory, Home};
use crate::key::Key;
use crate::ssd::follow;
use crate::ssd::format::{RECORDS_A_PAGE, Record, generation};
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

/// The index of a followed directory, as if its table had been read.
pub struct FollowedIndex(follow::Index);

impl FollowedIndex {
    /// An index that holds exactly these keys.
    pub fn filled(keys: &[Key]) -> Self {
        let mut index = follow::Index::new(keys.len() as u32);
        for (page, keys) in (0..).zip(keys.chunks(RECORDS_A_PAGE)) {
            let line = |key: &Key| {
                let (generation, flags) = (generation(1, 1), Record::LIVE);
                follow::Known::of(&Record { key: *key, generation, flags, ..Record::FREE }, 1, 0)
            };
            let lines: Vec<follow::Known> = keys.iter().map(line).collect();
            index.take_in(page, 1, 1, &lines);
        }
        Self(index)
    }

    /// The leading run of keys that are there.
    pub fn match_prefix(&self, keys: &[Key]) -> usize {
        follow::walk(&[&self.0], keys, |_| true, |_, found| found.is_some())
    }
}

/// What a block's tag costs: the digest that every read from SSD and every write to it ends in.
pub fn digest(seed: u64, bytes: &[u8]) -> u128 {
    crate::io::digest(seed, bytes)
}
