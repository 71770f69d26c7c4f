//! The disk that outlives the engines on it: files, crashes, and damage for tests.
//!
//! Owns: the one lock on everything simulated. Never does: start anything by itself. Invariants:
//! after a crash nothing submitted before it moves another byte; after a power cut both images of
//! every file are alike.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Crash;
use super::faults::{SimCounts, SimFaults};
use super::image::Image;
use super::lane::{Lane, World};
use super::rng::Rng;
use crate::arena::Memory;
use crate::io::FileId;

/// A disk in memory.
#[derive(Debug)]
pub(crate) struct SimDisk {
    seed: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) world: World,
    pub(super) lanes: Vec<Option<Lane>>,
    /// Crashes so far: an engine of an earlier generation is dead.
    pub(super) generation: u64,
}

/// All files as reads saw them at one time.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot(Vec<Vec<u8>>);

#[cfg(test)]
impl Snapshot {
    /// Whether the file was there.
    pub(crate) fn holds(&self, file: FileId) -> bool {
        (file.0 as usize) < self.0.len()
    }
}

impl SimDisk {
    /// A disk without files.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { seed, state: Mutex::default() })
    }

    /// A file of zeros. Untouched bytes cost nothing.
    pub(crate) fn add_file(&self, bytes: u64) -> FileId {
        let files = &mut self.lock().world.files;
        files.push(Image::new(bytes));
        FileId(files.len() as u32 - 1)
    }

    /// Files so far.
    pub(crate) fn files(&self) -> u32 {
        self.lock().world.files.len() as u32
    }

    /// Grows a file with zeros or cuts it off; durable at once.
    pub(crate) fn resize(&self, file: FileId, bytes: u64) {
        self.lock().image(file).resize(bytes);
    }

    /// Cuts these files off; durable at once.
    pub(crate) fn empty(&self, files: Range<u32>) {
        let mut state = self.lock();
        let files = files.start as usize..files.end as usize;
        let there = state.world.files[files].iter_mut().filter(|image| image.len() > 0);
        there.for_each(|image| image.resize(0));
    }

    /// Ends all engines on the disk, as `crash` says. They do nothing any more; attach new ones.
    pub(crate) fn crash(&self, seed: u64, crash: Crash) {
        let mut rng = Rng::new(seed ^ self.seed.rotate_left(32));
        let State { world, lanes, generation } = &mut *self.lock();
        *generation += 1;
        for lane in lanes.drain(..).flatten() {
            lane.cut(world, crash, &mut rng);
        }
        world.counts.crashes += 1;
        for image in &mut world.files {
            if crash == Crash::Power {
                world.counts.dropped_sectors += image.power_cut(&mut rng);
            }
        }
    }

    /// Engine `seed` attaches: its generation and its lane.
    pub(super) fn attach(&self, memory: Memory, seed: u64) -> (u64, usize) {
        let mut state = self.lock();
        let lane = Some(Lane::new(memory, seed ^ self.seed.rotate_left(32)));
        let free = state.lanes.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            state.lanes.push(None);
            state.lanes.len() - 1
        });
        state.lanes[place] = lane;
        (state.generation, place)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a broken rule of the submitter's; the images are what they are.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn image(&mut self, file: FileId) -> &mut Image {
        &mut self.world.files[file.0 as usize]
    }
}

#[allow(dead_code, reason = "what befalls a disk in tests; a store never does it")]
impl SimDisk {
    pub(crate) fn file_len(&self, file: FileId) -> u64 {
        self.lock().image(file).len()
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().world.files.iter().map(Image::len).sum()
    }

    /// Changes the settings, from the next submission on.
    pub(crate) fn faults<R>(&self, change: impl FnOnce(&mut SimFaults) -> R) -> R {
        change(&mut self.lock().world.faults)
    }

    pub(crate) fn counts(&self) -> SimCounts {
        self.lock().world.counts
    }

    /// Requests that hang complete at the next reap of their engine.
    pub(crate) fn release_hangs(&self) {
        self.lock().lanes.iter_mut().flatten().for_each(Lane::release_hangs);
    }

    /// What a read would see, as far as the file goes; returns how much that is.
    pub(crate) fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> usize {
        let mut state = self.lock();
        let seen = state.image(file).seen(offset, into.len() as u64);
        into[..seen.len()].copy_from_slice(seen);
        seen.len()
    }

    /// Puts bytes on the medium, past all engines.
    pub(crate) fn write_raw(&self, file: FileId, offset: u64, bytes: &[u8]) {
        let damage = |at: &mut [u8]| at.copy_from_slice(bytes);
        self.lock().image(file).damage(offset, bytes.len() as u64, damage);
    }

    /// Flips the bits of `mask` in one byte.
    pub(crate) fn flip(&self, file: FileId, offset: u64, mask: u8) {
        self.lock().image(file).damage(offset, 1, |byte| byte[0] ^= mask);
    }

    pub(crate) fn zero(&self, file: FileId, range: Range<u64>) {
        let bytes = range.end - range.start;
        self.lock().image(file).damage(range.start, bytes, |at| at.fill(0));
    }

    /// Exchanges two pieces of `bytes` each, which must not overlap.
    pub(crate) fn swap(&self, file: FileId, a: u64, b: u64, bytes: u64) {
        let (low, high) = (a.min(b), a.max(b));
        assert!(low + bytes <= high, "pieces of {bytes} at {a} and {b} overlap");
        self.lock().image(file).damage(low, high + bytes - low, |at| {
            let (first, second) = at.split_at_mut((high - low) as usize);
            first[..bytes as usize].swap_with_slice(second);
        });
    }

    /// Exchanges two files.
    pub(crate) fn swap_files(&self, a: FileId, b: FileId) {
        self.lock().world.files.swap(a.0 as usize, b.0 as usize);
    }

    /// A copy that an operator may restore later.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let whole = |image: &Image| image.seen(0, image.len()).to_vec();
        Snapshot(state.world.files.iter().map(whole).collect())
    }

    /// A file is as it was, durably; what has not been synced is gone.
    pub(crate) fn restore(&self, file: FileId, from: &Snapshot) {
        self.lock().image(file).replace(&from.0[file.0 as usize]);
    }

    /// Whether a power cut could take back what a read sees here.
    pub(crate) fn at_risk(&self, file: FileId, offset: u64) -> bool {
        self.lock().image(file).at_risk(offset)
    }
}
