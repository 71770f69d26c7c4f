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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A simulated disk that outlives the stores on it.
#[derive(Clone)]
pub struct SimWorld {
    pub(crate) disk: Arc<SimDisk>,
    /// Somebody else has the directory.
    held: Arc<AtomicBool>,
    /// Opens so far.
    boots: Arc<AtomicU64>,
}

impl SimWorld {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self { disk: SimDisk::new(seed), held: Arc::default(), boots: Arc::default() }
    }

    pub(super) fn next_boot(&self) -> u64 {
        self.boots.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Somebody else takes the directory, or gives it back.
    #[doc(hidden)]
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }
}

/// Files of the simulated disk that are one device's.
pub(super) const FILES_A_DEVICE: u32 = 256;

/// Finds or makes the files of one device of a tier on a simulated disk.
pub(super) fn simulated(
    config: &SsdConfig,
    (device, capacity_bytes): (u32, u64),
    block_bytes: u32,
    stride_bytes: u32,
    world: &SimWorld,
) -> Result<Ground, Error> {
    let disk = &world.disk;
    let first_file = device * FILES_A_DEVICE;
    let slots = format::slots_for(capacity_bytes, stride_bytes);
    if slots == 0 {
        let message = format!("{capacity_bytes} bytes hold no block of {block_bytes}.");
        let hint = "raise the capacity of ssd= to one block and its table or more.";
        return Err(Error::new(ErrorKind::Config, "KS-CFG-005", message, hint));
    }
    if world.held.load(Ordering::Acquire) {
        let hint = "give it back.";
        return Err(Error::new(ErrorKind::Locked, "KS-LCK-001", "sim is held.", hint));
    }
    let found = look(config, disk, first_file)?;
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
    let files = shape(disk, first_file, (slots, slots_a_file), stride_bytes, found.is_some());
    assert!(
        config.others.is_empty() || files <= FILES_A_DEVICE,
        "a simulated device has few files"
    );
    let fresh = found.is_none();
    let sizes = (slots, slots_a_file);
    let superblock = found
        .unwrap_or_else(|| new_super(config, device, block_bytes, stride_bytes, sizes, [0; 32]));
    let superblock = Super { slots, slots_a_file, block_bytes, ..superblock };
    Ok(Ground {
        files: Files::Sim(Arc::clone(disk)),
        lock: None,
        changes: None,
        superblock,
        fresh,
        notes: Vec::new(),
        direct: true,
        first_file,
        path: if device == 0 { "sim".to_owned() } else { format!("sim {device}") },
    })
}

/// What SUPER says; none where the disk is empty, or is to be after a reset.
fn look(config: &SsdConfig, disk: &SimDisk, first_file: u32) -> Result<Option<Super>, Error> {
    let file = FileId(first_file + SUPER_FILE.0);
    if disk.files() <= file.0 || disk.file_len(file) < SUPER_BYTES {
        return Ok(None);
    }
    let mut copies = vec![0; SUPER_BYTES as usize];
    disk.read(file, 0, &mut copies);
    match format::newest(&copies[..PAGE_BYTES], &copies[PAGE_BYTES..]) {
        Ok(found) => Ok(Some(found)),
        // A crash before the first SUPER was confirmed leaves an empty one, or half of one.
        Err(format::Broken::Empty) => Ok(None),
        Err(format::Broken::Torn) if is_blank(disk, FileId(first_file + TABLE_FILE.0)) => Ok(None),
        Err(_) if config.reset_on_mismatch => Ok(None),
        Err(broken) => {
            let message = format!("SUPER is broken: {broken:?}.");
            let hint = "on_mismatch=\"reset\" starts afresh.";
            Err(Error::new(ErrorKind::Format, "KS-FMT-001", message, hint))
        }
    }
}

/// Whether no page of the table was ever written.
fn is_blank(disk: &SimDisk, table: FileId) -> bool {
    if disk.files() <= table.0 {
        return true;
    }
    let mut pages = vec![0; disk.file_len(table) as usize];
    disk.read(table, 0, &mut pages);
    pages.iter().all(|byte| *byte == 0)
}

/// Makes the files of a device as long as they are to be; how many they are.
fn shape(
    disk: &SimDisk,
    first_file: u32,
    (slots, slots_a_file): (u32, u32),
    stride_bytes: u32,
    keep: bool,
) -> u32 {
    let files = slots.div_ceil(slots_a_file);
    let mut wanted = vec![SUPER_BYTES, u64::from(format::table_pages(slots)) * PAGE_BYTES as u64];
    wanted.extend((0..files).map(|file| {
        let slots = slots_a_file.min(slots - file * slots_a_file);
        u64::from(slots) * u64::from(stride_bytes)
    }));
    while disk.files() < first_file {
        disk.add_file(0);
    }
    // As on a real disk: a fresh start finds nothing of before, and no file is left over.
    let kept = first_file + if keep { wanted.len() as u32 } else { 0 };
    let end = disk.files().min(first_file + FILES_A_DEVICE.max(wanted.len() as u32));
    disk.empty(kept.min(end)..end);
    let count = wanted.len() as u32;
    for (file, bytes) in (first_file..).zip(wanted) {
        if file >= disk.files() {
            disk.add_file(bytes);
        } else {
            disk.resize(FileId(file), bytes);
        }
    }
    count
}
