//! Format v1: what the bytes of a directory mean, described for other readers in `FORMAT.md`.
//!
//! Owns: SUPER, table pages, records, generations, the seed of a tag, sizes. Never does: I/O, or
//! decide which record wins. Invariants: all numbers are little-endian; whatever is decoded passed
//! its checksum and its bounds; any bytes at all decode to a value or a refusal, never a panic.

mod superblock;

pub(crate) use superblock::{Broken, Super, newest};

use crate::io::digest64;
use crate::key::Key;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format this code writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// A table page, and each copy of SUPER.
pub(crate) const PAGE_BYTES: usize = 4096;
/// One record of the table.
pub(crate) const RECORD_BYTES: usize = 96;
/// What a table page begins with.
pub(crate) const HEAD_BYTES: usize = 64;
/// Records of one table page.
pub(crate) const RECORDS_A_PAGE: usize = 42;
/// Copies of SUPER, written in turn.
pub(crate) const SUPER_COPIES: usize = 2;
/// Both copies of SUPER.
pub(crate) const SUPER_BYTES: u64 = (SUPER_COPIES * PAGE_BYTES) as u64;
/// Set aside for `layout.json`.
pub(crate) const LAYOUT_BYTES_MAX: u64 = 8192;
/// A slots file is at most this long, unless a single slot is longer.
pub(crate) const SLOTS_FILE_BYTES_MAX: u64 = 64 << 30;
/// Slots files have four digits.
pub(crate) const SLOTS_FILES_MAX: u32 = 10_000;
/// More would be 200 GB of records; half of u32 leaves numbers that are no slot's.
pub(crate) const SLOTS_MAX: u32 = 1 << 31;
/// An epoch has 24 bits.
pub(crate) const EPOCH_MAX: u32 = (1 << EPOCH_BITS) - 1;
/// A generation's counter has 40 bits.
pub(crate) const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;

const EPOCH_BITS: u32 = 64 - COUNTER_BITS;
const COUNTER_BITS: u32 = 40;
const TABLE_MAGIC: [u8; 8] = *b"KSTOWTAB";
/// Where a page's checksum stands.
const TABLE_CRC_AT: usize = 40;
/// 2020-01-01T00:00:00Z.
const UNIX_SECONDS_OF_2020: u64 = 1_577_836_800;

const _: () = assert!(size_of::<WireHead>() == HEAD_BYTES);
const _: () = assert!(size_of::<WireRecord>() == RECORD_BYTES);
const _: () = assert!(size_of::<Record>() == RECORD_BYTES);
const _: () = assert!(HEAD_BYTES + RECORDS_A_PAGE * RECORD_BYTES == PAGE_BYTES);

/// A block's line in the table. All zeros: the slot is free. In memory the fields are the machine's
/// own numbers, ordered so that nothing pads them.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// Zeros without `HAS_PARENT`.
    pub(crate) parent: Key,
    /// XXH3-128 of the payload under [`tag_seed`], as [`tag_bytes`] writes it.
    pub(crate) tag: [u8; 16],
    /// See [`generation`].
    pub(crate) generation: u64,
    /// Bytes of the payload.
    pub(crate) len: u32,
    /// Bytes in the slot: `len` under codec 0.
    pub(crate) stored_len: u32,
    pub(crate) tenant: u32,
    pub(crate) labels: u32,
    pub(crate) expires_at: u32,
    /// Minutes since 2020, as of the last write of the page.
    pub(crate) last_use: u32,
    /// Token position of the block in its chain; 0 where nobody said.
    pub(crate) position: u32,
    pub(crate) pool: u16,
    pub(crate) codec: u8,
    pub(crate) flags: u8,
    pub(crate) hits: u8,
    pub(crate) priority: i8,
    pub(crate) spare: [u8; 6],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct WireRecord {
    key: Key,
    parent: Key,
    tag: [u8; 16],
    generation: U64,
    len: U32,
    stored_len: U32,
    pool: U16,
    codec: u8,
    flags: u8,
    tenant: U32,
    labels: U32,
    expires_at: U32,
    last_use: U32,
    hits: u8,
    priority: i8,
    position: U32,
    spare: [u8; 6],
}

impl Record {
    /// The record of a free slot.
    pub(crate) const FREE: Self = Self {
        key: Key([0; 16]),
        parent: Key([0; 16]),
        tag: [0; 16],
        generation: 0,
        len: 0,
        stored_len: 0,
        tenant: 0,
        labels: 0,
        expires_at: 0,
        last_use: 0,
        position: 0,
        pool: 0,
        codec: 0,
        flags: 0,
        hits: 0,
        priority: 0,
        spare: [0; 6],
    };
    /// Flag: a block is here.
    pub(crate) const LIVE: u8 = 1;
    /// Flag: `parent` is a key.
    pub(crate) const HAS_PARENT: u8 = 2;
    const FLAGS: u8 = Self::LIVE | Self::HAS_PARENT;

    /// Whether the slot is free.
    pub(crate) fn is_free(&self) -> bool {
        *self == Self::FREE
    }

    /// The key of the block before this one; `None` for the first of its chain.
    pub(crate) fn parent(&self) -> Option<Key> {
        (self.flags & Self::HAS_PARENT != 0).then_some(self.parent)
    }

    /// Whether a writer of this format could have written it for a block of at most `block_bytes`.
    pub(crate) fn is_sane(&self, block_bytes: u32) -> bool {
        self.flags & Self::LIVE != 0
            && self.flags & !Self::FLAGS == 0
            && self.pool == 0
            && self.codec == 0
            && self.len <= block_bytes
            && self.stored_len == self.len
            && (self.parent().is_some() || self.parent == Self::FREE.parent)
    }

    /// Its bytes on disk.
    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        zerocopy::transmute!(WireRecord {
            key: self.key,
            parent: self.parent,
            tag: self.tag,
            generation: self.generation.into(),
            len: self.len.into(),
            stored_len: self.stored_len.into(),
            pool: self.pool.into(),
            codec: self.codec,
            flags: self.flags,
            tenant: self.tenant.into(),
            labels: self.labels.into(),
            expires_at: self.expires_at.into(),
            last_use: self.last_use.into(),
            hits: self.hits,
            priority: self.priority,
            position: self.position.into(),
            spare: self.spare,
        })
    }

    /// The record that these bytes are; any bytes are one, sane or not.
    pub(crate) fn decode(bytes: &[u8; RECORD_BYTES]) -> Self {
        let wire: &WireRecord = zerocopy::transmute_ref!(bytes);
        Self {
            key: wire.key,
            parent: wire.parent,
            tag: wire.tag,
            generation: wire.generation.get(),
            len: wire.len.get(),
            stored_len: wire.stored_len.get(),
            tenant: wire.tenant.get(),
            labels: wire.labels.get(),
            expires_at: wire.expires_at.get(),
            last_use: wire.last_use.get(),
            position: wire.position.get(),
            pool: wire.pool.get(),
            codec: wire.codec,
            flags: wire.flags,
            hits: wire.hits,
            priority: wire.priority,
            spare: wire.spare,
        }
    }
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct WireHead {
    magic: [u8; 8],
    uuid: [u8; 16],
    page: U32,
    pad: U32,
    sequence: U64,
    crc: U64,
    reserve: [u8; 16],
}

/// Writes a table page over all of `out`, which is `PAGE_BYTES` long. Records beyond those given
/// are free.
pub(crate) fn seal(out: &mut [u8], uuid: &[u8; 16], page: u32, sequence: u64, records: &[Record]) {
    assert!(out.len() == PAGE_BYTES && records.len() <= RECORDS_A_PAGE);
    let head = WireHead {
        magic: TABLE_MAGIC,
        uuid: *uuid,
        page: page.into(),
        pad: 0.into(),
        sequence: sequence.into(),
        crc: 0.into(),
        reserve: [0; 16],
    };
    let (front, rest) = out.split_at_mut(HEAD_BYTES);
    front.copy_from_slice(head.as_bytes());
    let (lines, _) = rest.as_chunks_mut::<RECORD_BYTES>();
    let free = std::iter::repeat(&Record::FREE);
    for (line, record) in lines.iter_mut().zip(records.iter().chain(free)) {
        *line = record.encode();
    }
    let crc = crc_around(out, TABLE_CRC_AT);
    out[TABLE_CRC_AT..TABLE_CRC_AT + 8].copy_from_slice(&crc.to_le_bytes());
}

/// The sequence and records of a table page; `None` unless it is whole and is this page of this
/// directory.
pub(crate) fn open(
    bytes: &[u8],
    uuid: &[u8; 16],
    page: u32,
) -> Option<(u64, [Record; RECORDS_A_PAGE])> {
    let (head, rest) = WireHead::ref_from_prefix(bytes).ok()?;
    let right = bytes.len() == PAGE_BYTES
        && head.magic == TABLE_MAGIC
        && head.uuid == *uuid
        && head.page.get() == page
        && head.crc.get() == crc_around(bytes, TABLE_CRC_AT);
    if !right {
        return None;
    }
    let mut records = [Record::FREE; RECORDS_A_PAGE];
    for (record, line) in records.iter_mut().zip(rest.as_chunks::<RECORD_BYTES>().0) {
        *record = Record::decode(line);
    }
    Some((head.sequence.get(), records))
}

/// The checksum of a page: XXH3-64 of what follows its 8 bytes, under the XXH3-64 of what precedes
/// them as seed.
fn crc_around(page: &[u8], at: usize) -> u64 {
    digest64(digest64(0, &page[..at]), &page[at + 8..])
}

/// The generation of a write to a slot: unique in the directory and growing with time, as long as
/// the counter never falls within an epoch.
pub(crate) fn generation(epoch: u32, counter: u64) -> u64 {
    debug_assert!(epoch <= EPOCH_MAX && counter <= COUNTER_MAX);
    u64::from(epoch) << COUNTER_BITS | counter & COUNTER_MAX
}

/// The epoch of a generation.
pub(crate) fn epoch_of(generation: u64) -> u32 {
    (generation >> COUNTER_BITS) as u32
}

/// The seed of a block's tag: whatever is not this write of this key here has another.
pub(crate) fn tag_seed(
    uuid: &[u8; 16],
    fingerprint: &[u8; 16],
    key: &Key,
    len: u32,
    generation: u64,
) -> u64 {
    let mut message = [0; 64];
    message[..4].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    message[4..20].copy_from_slice(uuid);
    message[20..36].copy_from_slice(fingerprint);
    message[36..52].copy_from_slice(&key.0);
    message[52..56].copy_from_slice(&len.to_le_bytes());
    message[56..].copy_from_slice(&generation.to_le_bytes());
    digest64(0, &message)
}

/// A payload's digest as a record keeps it.
pub(crate) fn tag_bytes(digest: u128) -> [u8; 16] {
    digest.to_le_bytes()
}

/// Table pages of so many slots.
pub(crate) fn table_pages(slots: u32) -> u32 {
    slots.div_ceil(RECORDS_A_PAGE as u32)
}

/// The most slots that fit into `capacity_bytes` together with everything else in a directory.
pub(crate) fn slots_for(capacity_bytes: u64, stride_bytes: u32) -> u32 {
    let stride = u64::from(stride_bytes.max(1));
    let page = PAGE_BYTES as u64;
    let Some(room) = capacity_bytes.checked_sub(SUPER_BYTES + LAYOUT_BYTES_MAX) else { return 0 };
    let group = page + RECORDS_A_PAGE as u64 * stride;
    let last = (room % group).saturating_sub(page) / stride;
    let slots = (room / group).saturating_mul(RECORDS_A_PAGE as u64).saturating_add(last);
    slots.min(u64::from(SLOTS_MAX)) as u32
}

/// Slots of each file but the last, unless the user says otherwise.
pub(crate) fn slots_a_file(stride_bytes: u32) -> u32 {
    let most = SLOTS_FILE_BYTES_MAX / u64::from(stride_bytes.max(1));
    most.clamp(1, u64::from(SLOTS_MAX)) as u32
}

/// Which slots file a slot is in, and at which byte of it.
pub(crate) fn place(slot: u32, slots_a_file: u32, stride_bytes: u32) -> (u32, u64) {
    (slot / slots_a_file, u64::from(slot % slots_a_file) * u64::from(stride_bytes))
}

/// A record's clock.
pub(crate) fn minutes_since_2020(unix_seconds: u64) -> u32 {
    let minutes = unix_seconds.saturating_sub(UNIX_SECONDS_OF_2020) / 60;
    minutes.min(u64::from(u32::MAX)) as u32
}

#[cfg(all(test, not(loom)))]
mod tests;
