//! A tier on a simulated disk: its files, and the disk that outlives the stores on it.
//!
//! Owns: what `ssd::dir` does for real directories. Never does: faults; `io::sim` has them.

use super::SsdConfig;
use super::open::{Files, Ground, new_super};
use super::tier::{SUPER_FILE, TABLE_FILE};
use crate::error::{Error, ErrorKind};
use crate::io::{FileId, SimDisk};
use crate::ssd::format::{self, PAGE_BYTES, SUPER_BYTES, Super};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A simulated disk that outlives the stores on it.
#[derive(Clone)]
pub struct SimWorld {
    pub(crate) disk: Arc<SimDisk>,
    /// Somebody else has the directory.
    held: Arc<AtomicBool>,
}

impl SimWorld {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self { disk: SimDisk::new(seed), held: Arc::default() }
    }

    /// Somebody else takes the directory, or gives it back.
    #[doc(hidden)]
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }
}

/// Finds or makes the files of a tier on a simulated disk.
pub(super) fn simulated(
    config: &SsdConfig,
    block_bytes: u32,
    stride_bytes: u32,
    world: &SimWorld,
) -> Result<Ground, Error> {
    let disk = &world.disk;
    let slots = format::slots_for(config.capacity_bytes, stride_bytes);
    if slots == 0 {
        let message = format!("{} bytes hold no block of {block_bytes}.", config.capacity_bytes);
        let hint = "raise the capacity of ssd= to one block and its table or more.";
        return Err(Error::new(ErrorKind::Config, "KS-CFG-005", message, hint));
    }
    if world.held.load(Ordering::Acquire) {
        let hint = "give it back.";
        return Err(Error::new(ErrorKind::Locked, "KS-LCK-001", "sim is held.", hint));
    }
    let found = look(config, disk)?;
    let slots_a_file = found.as_ref().map_or_else(
        || {
            if config.slots_a_file == 0 {
                format::slots_a_file(stride_bytes)
            } else {
                config.slots_a_file
            }
        },
        |found| found.slots_a_file,
    );
    shape(disk, (slots, slots_a_file), stride_bytes, found.is_some());
    let fresh = found.is_none();
    let sizes = (slots, slots_a_file);
    let superblock =
        found.unwrap_or_else(|| new_super(config, block_bytes, stride_bytes, sizes, [0; 32]));
    let superblock = Super { slots, slots_a_file, block_bytes, ..superblock };
    Ok(Ground {
        files: Files::Sim(Arc::clone(disk)),
        lock: None,
        changes: None,
        superblock,
        fresh,
        notes: Vec::new(),
        direct: true,
        path: "sim".to_owned(),
    })
}

/// What SUPER says; none where the disk is empty, or is to be after a reset.
fn look(config: &SsdConfig, disk: &SimDisk) -> Result<Option<Super>, Error> {
    if disk.files() == 0 {
        return Ok(None);
    }
    let mut copies = vec![0; SUPER_BYTES as usize];
    disk.read(SUPER_FILE, 0, &mut copies);
    match format::newest(&copies[..PAGE_BYTES], &copies[PAGE_BYTES..]) {
        Ok(found) => Ok(Some(found)),
        // A crash before the first SUPER was confirmed leaves an empty one, or half of one.
        Err(format::Broken::Empty) => Ok(None),
        Err(format::Broken::Torn) if is_blank(disk) => Ok(None),
        Err(_) if config.reset_on_mismatch => Ok(None),
        Err(broken) => {
            let message = format!("SUPER is broken: {broken:?}.");
            let hint = "on_mismatch=\"reset\" starts afresh.";
            Err(Error::new(ErrorKind::Format, "KS-FMT-001", message, hint))
        }
    }
}

/// Whether no page of the table was ever written.
fn is_blank(disk: &SimDisk) -> bool {
    if disk.files() <= TABLE_FILE.0 {
        return true;
    }
    let mut pages = vec![0; disk.file_len(TABLE_FILE) as usize];
    disk.read(TABLE_FILE, 0, &mut pages);
    pages.iter().all(|byte| *byte == 0)
}

/// Makes the files as long as they are to be.
fn shape(disk: &SimDisk, (slots, slots_a_file): (u32, u32), stride_bytes: u32, keep: bool) {
    let files = slots.div_ceil(slots_a_file);
    let mut wanted = vec![SUPER_BYTES, u64::from(format::table_pages(slots)) * PAGE_BYTES as u64];
    wanted.extend((0..files).map(|file| {
        let slots = slots_a_file.min(slots - file * slots_a_file);
        u64::from(slots) * u64::from(stride_bytes)
    }));
    // As on a real disk: a fresh start finds nothing of before, and no file is left over.
    let kept = if keep { wanted.len() as u32 } else { 0 };
    (kept..disk.files()).for_each(|file| disk.resize(FileId(file), 0));
    for (file, bytes) in wanted.into_iter().enumerate() {
        if file as u32 >= disk.files() {
            disk.add_file(bytes);
        } else {
            disk.resize(FileId(file as u32), bytes);
        }
    }
}
