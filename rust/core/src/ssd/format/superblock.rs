//! SUPER: what a directory is, in two copies.
//!
//! Owns: its fields, their bytes, and which copy counts. Never does: I/O, or choose the value of a
//! field. Invariants: magic, version and checksum stand where they do in every version, so that a
//! later one is known for what it is; one broken copy costs nothing.

use super::crc_around;
use super::{EPOCH_MAX, FORMAT_VERSION, PAGE_BYTES, SLOTS_FILES_MAX, SLOTS_MAX, SUPER_COPIES};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const SUPER_MAGIC: [u8; 8] = *b"KSTOWSUP";
/// Where the checksum stands.
pub(super) const SUPER_CRC_AT: usize = PAGE_BYTES - 8;
const SUPER_CLEAN: u32 = 1;
const SUPER_DISTRUSTED: u32 = 2;

const _: () = assert!(size_of::<WireSuper>() == PAGE_BYTES);

/// What a directory is, besides its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Super {
    /// Of the directory, drawn when it was made.
    pub(crate) uuid: [u8; 16],
    /// Grows with every write; the copy that a write goes to is `sequence % SUPER_COPIES`.
    pub(crate) sequence: u64,
    /// The epoch in which records are written now; 24 bits.
    pub(crate) epoch: u32,
    /// Records of this epoch and of all before it are void.
    pub(crate) clear_epoch: u32,
    /// Of layout, namespace and salt.
    pub(crate) fingerprint: [u8; 16],
    /// BLAKE3 of `layout.json`.
    pub(crate) layout_hash: [u8; 32],
    /// The longest payload.
    pub(crate) block_bytes: u32,
    /// From the start of a slot to the start of the next.
    pub(crate) stride_bytes: u32,
    /// Slots of all files.
    pub(crate) slots: u32,
    /// Slots of each file but the last.
    pub(crate) slots_a_file: u32,
    /// Tells whether a master key is the right one; zeros when nothing is encrypted.
    pub(crate) key_check: [u8; 16],
    /// The last owner closed the directory.
    pub(crate) clean: bool,
    /// A sync failed, and none after it has confirmed every page of the table.
    pub(crate) distrusted: bool,
    /// The last opens, newest first, `BOOTS_MAX` at most: by them, directories that are opened
    /// together know what each has missed.
    pub(crate) boots: Vec<Boot>,
}

/// Opens that a directory remembers.
pub(crate) const BOOTS_MAX: usize = 32;

/// An open of one or several directories together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Drawn for it, never 0.
    pub(crate) id: u64,
    /// The last epoch of it that the directory has seen; of the newest, `Super::epoch`.
    pub(crate) epoch: u32,
}

/// Why bytes are not a SUPER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Nothing was ever written here.
    Empty,
    /// Something else stands here.
    Foreign,
    /// It was one: it is cut short, or its checksum is wrong.
    Torn,
    /// Written by a later format, of this number.
    Newer(u32),
    /// The checksum is right, the value of this field is not.
    Absurd(&'static str),
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct WireSuper {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    uuid: [u8; 16],
    sequence: U64,
    epoch: U32,
    clear_epoch: U32,
    fingerprint: [u8; 16],
    layout_hash: [u8; 32],
    block_bytes: U32,
    stride_bytes: U32,
    slots: U32,
    slots_a_file: U32,
    key_check: [u8; 16],
    boots: [WireBoot; BOOTS_MAX],
    reserve: [u8; SUPER_CRC_AT - 128 - BOOTS_MAX * size_of::<WireBoot>()],
    crc: U64,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct WireBoot {
    id: U64,
    epoch: U32,
}

impl Super {
    /// One copy's page.
    pub(crate) fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let wire = WireSuper::mut_from_bytes(&mut page).expect("a page is as long as a SUPER");
        wire.magic = SUPER_MAGIC;
        wire.version = FORMAT_VERSION.into();
        let flag = |on, bit| if on { bit } else { 0 };
        wire.flags =
            (flag(self.clean, SUPER_CLEAN) | flag(self.distrusted, SUPER_DISTRUSTED)).into();
        wire.uuid = self.uuid;
        wire.sequence = self.sequence.into();
        wire.epoch = self.epoch.into();
        wire.clear_epoch = self.clear_epoch.into();
        wire.fingerprint = self.fingerprint;
        wire.layout_hash = self.layout_hash;
        wire.block_bytes = self.block_bytes.into();
        wire.stride_bytes = self.stride_bytes.into();
        wire.slots = self.slots.into();
        wire.slots_a_file = self.slots_a_file.into();
        wire.key_check = self.key_check;
        for (at, (wire, boot)) in wire.boots.iter_mut().zip(&self.boots).enumerate() {
            let epoch = if at == 0 { self.epoch } else { boot.epoch };
            *wire = WireBoot { id: boot.id.into(), epoch: epoch.into() };
        }
        let crc = crc_around(&page, SUPER_CRC_AT);
        page[SUPER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads one copy.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Broken> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(Broken::Empty);
        }
        if !bytes.starts_with(&SUPER_MAGIC) {
            return Err(Broken::Foreign);
        }
        let Ok((wire, _)) = WireSuper::ref_from_prefix(bytes) else { return Err(Broken::Torn) };
        if wire.crc.get() != crc_around(&bytes[..PAGE_BYTES], SUPER_CRC_AT) {
            return Err(Broken::Torn);
        }
        match wire.version.get() {
            0 => return Err(Broken::Absurd("version")),
            FORMAT_VERSION => {}
            newer => return Err(Broken::Newer(newer)),
        }
        let flags = wire.flags.get();
        if flags & !(SUPER_CLEAN | SUPER_DISTRUSTED) != 0 {
            return Err(Broken::Absurd("flags"));
        }
        let found = Self {
            uuid: wire.uuid,
            sequence: wire.sequence.get(),
            epoch: wire.epoch.get(),
            clear_epoch: wire.clear_epoch.get(),
            fingerprint: wire.fingerprint,
            layout_hash: wire.layout_hash,
            block_bytes: wire.block_bytes.get(),
            stride_bytes: wire.stride_bytes.get(),
            slots: wire.slots.get(),
            slots_a_file: wire.slots_a_file.get(),
            key_check: wire.key_check,
            clean: flags & SUPER_CLEAN != 0,
            distrusted: flags & SUPER_DISTRUSTED != 0,
            boots: wire.boots.iter().map(WireBoot::read).take_while(|it| it.id != 0).collect(),
        };
        found.absurdity().map_or(Ok(found), |field| Err(Broken::Absurd(field)))
    }

    /// A new open begins in this epoch.
    pub(crate) fn boot(&mut self, id: u64, epoch: u32) {
        if let Some(last) = self.boots.first_mut() {
            last.epoch = self.epoch;
        }
        self.epoch = epoch;
        self.boots.insert(0, Boot { id, epoch });
        self.boots.truncate(BOOTS_MAX);
    }

    /// Whether the other directory was opened or cleared without this one, or never together with
    /// it: what was removed then may still be here.
    pub(crate) fn misses(&self, other: &Self) -> bool {
        if self.epoch == 0 || other.epoch == 0 {
            return false;
        }
        let seen = |id: u64| self.boots.iter().position(|boot| boot.id == id);
        match other.boots.first().and_then(|newest| seen(newest.id)) {
            Some(0) => self.epoch < other.epoch,
            Some(at) => self.boots[at].epoch < other.epoch,
            // Who remembers no further back does not miss what is older than that.
            None => {
                let oldest = self.boots.last().filter(|_| self.boots.len() == BOOTS_MAX);
                oldest.is_none_or(|oldest| other.epoch >= oldest.epoch)
            }
        }
    }

    /// Which copy this one is written to.
    pub(crate) fn copy(&self) -> usize {
        (self.sequence % SUPER_COPIES as u64) as usize
    }

    /// The first field that no writer of this format writes.
    fn absurdity(&self) -> Option<&'static str> {
        let page = PAGE_BYTES as u32;
        if self.sequence == u64::MAX {
            Some("sequence")
        } else if self.epoch == 0 || self.epoch > EPOCH_MAX {
            Some("epoch")
        } else if self.clear_epoch >= self.epoch {
            Some("clear_epoch")
        } else if self.block_bytes == 0 {
            Some("block_bytes")
        } else if self.stride_bytes < self.block_bytes || !self.stride_bytes.is_multiple_of(page) {
            Some("stride_bytes")
        } else if self.slots == 0 || self.slots > SLOTS_MAX {
            Some("slots")
        } else if self.slots_a_file == 0 || self.slots.div_ceil(self.slots_a_file) > SLOTS_FILES_MAX
        {
            Some("slots_a_file")
        } else {
            None
        }
    }
}

impl WireBoot {
    fn read(&self) -> Boot {
        Boot { id: self.id.get(), epoch: self.epoch.get() }
    }
}

/// The valid copy with the higher sequence. A copy of a newer format makes the directory newer,
/// whatever the other one is; of two broken ones the more telling fault is reported.
pub(crate) fn newest(first: &[u8], second: &[u8]) -> Result<Super, Broken> {
    match (Super::decode(first), Super::decode(second)) {
        (Err(Broken::Newer(version)), _) | (_, Err(Broken::Newer(version))) => {
            Err(Broken::Newer(version))
        }
        (Ok(first), Ok(second)) if second.sequence > first.sequence => Ok(second),
        (Ok(found), _) | (_, Ok(found)) => Ok(found),
        (Err(first), Err(second)) => Err(first.more_telling(second)),
    }
}

impl Broken {
    fn more_telling(self, other: Self) -> Self {
        let rank = |broken| match broken {
            Self::Empty => 0,
            Self::Foreign => 1,
            Self::Torn => 2,
            Self::Absurd(_) => 3,
            Self::Newer(_) => 4,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}
