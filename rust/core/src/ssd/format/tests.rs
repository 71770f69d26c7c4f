//! Tests of format v1: fixed bytes, round trips, refusals, hostile bytes.

use super::superblock::{BOOTS_MAX, Boot, SUPER_CRC_AT, SUPER_MAGIC};
use super::*;
use crate::io::digest;
use proptest::prelude::*;

fn run<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|i| first + i as u8)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn golden_super() -> Super {
    Super {
        uuid: run(0),
        sequence: 7,
        epoch: 3,
        clear_epoch: 1,
        fingerprint: run(16),
        layout_hash: run(32),
        block_bytes: 1_000_000,
        stride_bytes: 1 << 20,
        slots: 1000,
        slots_a_file: 600,
        key_check: [0; 16],
        clean: true,
        distrusted: false,
        boots: Vec::new(),
    }
}

fn golden_record() -> Record {
    let payload: Vec<u8> = (0..5000_u32).map(|i| (i * 7 % 256) as u8).collect();
    let (key, generation) = (Key(run(64)), generation(3, 5));
    let seed = tag_seed(&run(0), &run(16), &key, 5000, generation);
    Record {
        key,
        parent: Key(run(80)),
        tag: tag_bytes(digest(seed, &payload)),
        generation,
        len: 5000,
        stored_len: 5000,
        tenant: 0x0102_0304,
        labels: 0x0506_0708,
        expires_at: 0x090A_0B0C,
        last_use: 3_456_789,
        position: 320,
        pool: 0,
        codec: 0,
        flags: Record::LIVE | Record::HAS_PARENT,
        hits: 9,
        priority: -1,
        spare: [0; 6],
    }
}

/// The payload of `golden_record` and these bytes are in FORMAT.md. They were made with another
/// implementation; a red test here means that every SSD cache in the world goes cold.
#[test]
fn golden_vectors() {
    let page = golden_super().encode();
    let expected = concat!(
        "4b53544f575355500100000001000000000102030405060708090a0b0c0d0e0f",
        "07000000000000000300000001000000101112131415161718191a1b1c1d1e1f",
        "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f",
        "40420f0000001000e80300005802000000000000000000000000000000000000",
    );
    assert_eq!(hex(&page[..128]), expected);
    assert!(page[128..4088].iter().all(|byte| *byte == 0));
    assert_eq!(hex(&page[4088..]), "87509dcdc53e7feb");

    let record = golden_record();
    let seed = tag_seed(&run(0), &run(16), &record.key, record.len, record.generation);
    assert_eq!(seed, 0xE398_9688_C970_DE31);
    assert_eq!(hex(&record.tag), "21fcd99dcd46175d44f97990c7756f0b");
    let expected = concat!(
        "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f",
        "21fcd99dcd46175d44f97990c7756f0b05000000000300008813000088130000",
        "0000000304030201080706050c0b0a0915bf340009ff40010000000000000000",
    );
    assert_eq!(hex(&record.encode()), expected);

    let mut page = [0xEE; PAGE_BYTES];
    seal(&mut page, &run(0), 5, 2, &[record]);
    let expected = concat!(
        "4b53544f57544142000102030405060708090a0b0c0d0e0f0500000000000000",
        "0200000000000000ecad71062d3e5efb00000000000000000000000000000000",
    );
    assert_eq!(hex(&page[..64]), expected);
    assert_eq!(page[64..160], record.encode());
    assert!(page[160..].iter().all(|byte| *byte == 0));
}

#[test]
fn every_part_of_a_seed_counts() {
    let key = Key(run(64));
    let seeds = [
        tag_seed(&run(0), &run(16), &key, 10, 20),
        tag_seed(&run(1), &run(16), &key, 10, 20),
        tag_seed(&run(0), &run(17), &key, 10, 20),
        tag_seed(&run(0), &run(16), &Key(run(65)), 10, 20),
        tag_seed(&run(0), &run(16), &key, 11, 20),
        tag_seed(&run(0), &run(16), &key, 10, 21),
    ];
    let distinct: std::collections::HashSet<u64> = seeds.into_iter().collect();
    assert_eq!(distinct.len(), seeds.len());
}

#[test]
fn super_refuses_what_it_cannot_mean() {
    type Change = fn(&mut Super);
    let page = PAGE_BYTES as u32;
    let cases: [(&str, Change); 12] = [
        ("sequence", |it| it.sequence = u64::MAX),
        ("epoch", |it| it.epoch = 1 << 24),
        ("epoch", |it| (it.epoch, it.clear_epoch) = (0, 0)),
        ("clear_epoch", |it| it.clear_epoch = it.epoch),
        ("block_bytes", |it| it.block_bytes = 0),
        ("stride_bytes", |it| it.stride_bytes += 1),
        ("stride_bytes", |it| it.stride_bytes = 0),
        ("stride_bytes", |it| it.block_bytes = it.stride_bytes + 1),
        ("slots", |it| it.slots = 0),
        ("slots", |it| it.slots = SLOTS_MAX + 1),
        ("slots_a_file", |it| it.slots_a_file = 0),
        ("slots_a_file", |it| (it.slots, it.slots_a_file) = (SLOTS_FILES_MAX + 1, 1)),
    ];
    for (number, (field, change)) in cases.into_iter().enumerate() {
        let mut changed = golden_super();
        change(&mut changed);
        let refusal = Super::decode(&changed.encode());
        assert_eq!(refusal, Err(Broken::Absurd(field)), "case {number}");
    }
    let mut least = golden_super();
    (least.epoch, least.clear_epoch, least.clean) = (1, 0, false);
    (least.block_bytes, least.stride_bytes) = (1, page);
    (least.slots, least.slots_a_file) = (1, 1);
    assert_eq!(Super::decode(&least.encode()), Ok(least));
}

/// A SUPER of another version, or with other flags, whose checksum is right.
fn patched(at: usize, value: u32) -> [u8; PAGE_BYTES] {
    let mut page = golden_super().encode();
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let crc = crc_around(&page, SUPER_CRC_AT);
    page[SUPER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    page
}

#[test]
fn super_says_what_is_wrong() {
    let page = golden_super().encode();
    assert_eq!(Super::decode(&[]), Err(Broken::Empty));
    assert_eq!(Super::decode(&[0; PAGE_BYTES]), Err(Broken::Empty));
    assert_eq!(Super::decode(b"#!/bin/sh"), Err(Broken::Foreign));
    assert_eq!(Super::decode(&[0xFF; PAGE_BYTES]), Err(Broken::Foreign));
    assert_eq!(Super::decode(&page[..PAGE_BYTES - 1]), Err(Broken::Torn));
    let mut torn = page;
    torn[512..].fill(0);
    assert_eq!(Super::decode(&torn), Err(Broken::Torn));
    assert_eq!(Super::decode(&patched(8, 2)), Err(Broken::Newer(2)));
    assert_eq!(Super::decode(&patched(8, 0)), Err(Broken::Absurd("version")));
    assert_eq!(Super::decode(&patched(12, 4)), Err(Broken::Absurd("flags")));
    assert_eq!(Super::decode(&patched(12, 1 << 31)), Err(Broken::Absurd("flags")));
    // What this format sets aside may be used without a new version.
    assert_eq!(Super::decode(&patched(600, 77)), Ok(golden_super()));
}

/// What two directories miss of each other after opens of the first, of the second, of both.
#[test]
fn what_was_opened_without_the_other_is_missed() {
    let made = || Super { epoch: 0, ..golden_super() };
    let (mut ids, mut epoch) = (1.., 0);
    let mut open = |which: &mut [&mut Super]| {
        epoch += 1;
        let id = ids.next().expect("endless");
        which.iter_mut().for_each(|it| it.boot(id, epoch));
    };
    let misses = |a: &Super, b: &Super| (a.misses(b), b.misses(a));
    let (mut a, mut b) = (made(), made());
    open(&mut [&mut a]);
    assert_eq!(misses(&a, &b), (false, false), "one is new");
    open(&mut [&mut a, &mut b]);
    assert_eq!(misses(&a, &b), (false, false));
    open(&mut [&mut a]);
    assert_eq!(misses(&a, &b), (false, true));
    open(&mut [&mut b]);
    assert_eq!(misses(&a, &b), (true, true), "each went on without the other");
    open(&mut [&mut a, &mut b]);
    assert_eq!(misses(&a, &b), (false, false));
    b.epoch += 1;
    assert_eq!(misses(&a, &b), (true, false), "a clear that one has not seen");
    open(&mut [&mut b]);
    assert_eq!(misses(&a, &b), (true, false));
    let (mut c, mut d) = (made(), made());
    open(&mut [&mut c]);
    open(&mut [&mut d]);
    assert_eq!(misses(&c, &d), (true, true), "never together");
    open(&mut [&mut c, &mut d]);
    (0..BOOTS_MAX).for_each(|_| open(&mut [&mut c]));
    assert_eq!(misses(&c, &d), (false, true), "forgotten, but older than all it knows");
}

#[test]
fn the_newest_whole_copy_counts() {
    let old = golden_super();
    let new = Super { sequence: 8, epoch: 4, ..old.clone() };
    assert_eq!((old.copy(), new.copy()), (1, 0));
    let (a, b) = (old.encode(), new.encode());
    let (empty, junk) = ([0; PAGE_BYTES], [7; PAGE_BYTES]);
    let mut torn = b;
    torn[4000] ^= 1;
    assert_eq!(newest(&a, &b), Ok(new.clone()));
    assert_eq!(newest(&b, &a), Ok(new));
    for other in [&empty[..], &junk, &torn, &[], &patched(12, 4)] {
        assert_eq!(newest(&a, other), Ok(old.clone()));
        assert_eq!(newest(other, &a), Ok(old.clone()));
        assert_eq!(newest(other, &patched(8, 9)), Err(Broken::Newer(9)));
    }
    assert_eq!(newest(&a, &patched(8, 9)), Err(Broken::Newer(9)));
    assert_eq!(newest(&patched(8, 9), &a), Err(Broken::Newer(9)));
    assert_eq!(newest(&empty, &[]), Err(Broken::Empty));
    assert_eq!(newest(&empty, &torn), Err(Broken::Torn));
    assert_eq!(newest(&torn, &junk), Err(Broken::Torn));
    assert_eq!(newest(&junk, &empty), Err(Broken::Foreign));
    assert_eq!(newest(&torn, &patched(12, 4)), Err(Broken::Absurd("flags")));
}

#[test]
fn only_what_a_writer_writes_is_sane() {
    type Change = fn(&mut Record);
    let bad: [Change; 7] = [
        |it| it.flags &= !Record::LIVE,
        |it| it.flags |= 4,
        |it| it.pool = 1,
        |it| it.codec = 1,
        |it| it.stored_len += 1,
        |it| (it.len, it.stored_len) = (6001, 6001),
        |it| it.flags &= !Record::HAS_PARENT,
    ];
    for (number, change) in bad.into_iter().enumerate() {
        let mut record = golden_record();
        assert!(record.is_sane(6000));
        change(&mut record);
        assert!(!record.is_sane(6000), "case {number}");
    }
    let good: [Change; 4] = [
        |it| (it.len, it.stored_len) = (6000, 6000),
        |it| (it.len, it.stored_len) = (0, 0),
        |it| (it.flags, it.parent) = (Record::LIVE, Key([0; 16])),
        |it| (it.tenant, it.labels, it.expires_at) = (u32::MAX, 0, 1),
    ];
    for (number, change) in good.into_iter().enumerate() {
        let mut record = golden_record();
        change(&mut record);
        assert!(record.is_sane(6000), "case {number}");
    }
    assert!(!Record::FREE.is_sane(6000));
    assert!(Record::FREE.is_free() && Record::decode(&[0; RECORD_BYTES]).is_free());
    assert_eq!(Record::FREE.encode(), [0; RECORD_BYTES]);
}

#[test]
fn a_page_is_this_page_of_this_directory() {
    let mut page = [0; PAGE_BYTES];
    let records = [golden_record(); RECORDS_A_PAGE];
    seal(&mut page, &run(0), 5, u64::MAX, &records);
    assert_eq!(open(&page, &run(0), 5), Some((u64::MAX, records)));
    assert_eq!(open(&page, &run(0), 6), None);
    assert_eq!(open(&page, &run(1), 5), None);
    assert_eq!(open(&page[..PAGE_BYTES - 1], &run(0), 5), None);
    assert_eq!(open(&[&page[..], &[0]].concat(), &run(0), 5), None);
    assert_eq!(open(&[0; PAGE_BYTES], &[0; 16], 0), None);
    assert_eq!(open(&[], &run(0), 5), None);
}

#[test]
fn generations_sort_by_epoch_then_counter() {
    assert!(generation(2, 0) > generation(1, COUNTER_MAX));
    assert!(generation(2, 1) > generation(2, 0));
    assert_eq!(epoch_of(generation(EPOCH_MAX, COUNTER_MAX)), EPOCH_MAX);
    assert_eq!(generation(EPOCH_MAX, COUNTER_MAX), u64::MAX);
}

#[test]
fn minutes_begin_with_2020() {
    assert_eq!(minutes_since_2020(0), 0);
    assert_eq!(minutes_since_2020(1_577_836_859), 0);
    assert_eq!(minutes_since_2020(1_577_836_860), 1);
    // 2026-01-01T00:00:00Z: six years with two leap days.
    assert_eq!(minutes_since_2020(1_767_225_600), (6 * 365 + 2) * 24 * 60);
    assert_eq!(minutes_since_2020(u64::MAX), u32::MAX);
}

#[test]
fn places_and_sizes() {
    assert_eq!(place(0, 600, 1 << 20), (0, 0));
    assert_eq!(place(599, 600, 1 << 20), (0, 599 << 20));
    assert_eq!(place(1201, 600, 1 << 20), (2, 1 << 20));
    let huge = place(u32::MAX, u32::MAX, u32::MAX);
    assert_eq!(huge, (1, 0));
    assert_eq!((table_pages(1), table_pages(42), table_pages(43)), (1, 1, 2));
    assert_eq!(table_pages(SLOTS_MAX), 51_130_564);
    assert_eq!(slots_a_file(1 << 20), 65_536);
    assert_eq!(slots_a_file(u32::MAX), 16);
    assert_eq!(slots_for(u64::MAX, 4096), SLOTS_MAX);
    assert_eq!(slots_for(0, 4096), 0);
}

fn any_record() -> impl Strategy<Value = Record> {
    any::<[u8; RECORD_BYTES]>().prop_map(|bytes| Record::decode(&bytes))
}

/// A sane SUPER.
fn any_super() -> impl Strategy<Value = Super> {
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 32]>(), any::<[u8; 16]>());
    let boots = proptest::collection::vec((1..u64::MAX, any::<u32>()), 0..=BOOTS_MAX);
    let numbers = (0..u64::MAX, 1..=EPOCH_MAX, any::<u32>(), any::<[bool; 2]>(), boots);
    let sizes = (1..=1_u32 << 28, 0..3_u32, 1..=SLOTS_MAX, 1..=u32::MAX);
    (ids, numbers, sizes).prop_map(|(ids, numbers, sizes)| {
        let (uuid, fingerprint, layout_hash, key_check) = ids;
        let (sequence, epoch, clear, [clean, distrusted], boots) = numbers;
        let (block_bytes, spare, slots, a_file) = sizes;
        let page = PAGE_BYTES as u32;
        let stride_bytes = block_bytes.next_multiple_of(page) + spare * page;
        let slots_a_file = a_file.max(slots.div_ceil(SLOTS_FILES_MAX));
        let clear_epoch = clear % epoch;
        Super {
            uuid,
            sequence,
            epoch,
            clear_epoch,
            fingerprint,
            layout_hash,
            block_bytes,
            stride_bytes,
            slots,
            slots_a_file,
            key_check,
            clean,
            distrusted,
            boots: boots
                .into_iter()
                .enumerate()
                .map(|(at, (id, seen))| Boot { id, epoch: if at == 0 { epoch } else { seen } })
                .collect(),
        }
    })
}

proptest! {
    #[test]
    fn a_super_comes_back(sane in any_super(), at in 0..PAGE_BYTES, bit in 0..8_u32) {
        let mut page = sane.encode();
        prop_assert_eq!(Super::decode(&page), Ok(sane));
        page[at] ^= 1_u8 << bit;
        prop_assert!(Super::decode(&page).is_err());
    }

    #[test]
    fn a_record_comes_back(bytes: [u8; RECORD_BYTES]) {
        prop_assert_eq!(Record::decode(&bytes).encode(), bytes);
    }

    #[test]
    fn a_page_comes_back_whole_or_not_at_all(
        records in proptest::collection::vec(any_record(), 0..=RECORDS_A_PAGE),
        uuid: [u8; 16], number: u32, sequence: u64, at in 0..PAGE_BYTES, bit in 0..8_u32,
    ) {
        let mut page = [0xEE; PAGE_BYTES];
        seal(&mut page, &uuid, number, sequence, &records);
        let mut whole = [Record::FREE; RECORDS_A_PAGE];
        whole[..records.len()].copy_from_slice(&records);
        prop_assert_eq!(open(&page, &uuid, number), Some((sequence, whole)));
        page[at] ^= 1_u8 << bit;
        prop_assert_eq!(open(&page, &uuid, number), None);
    }

    /// Any bytes, also behind a right magic and a right checksum, end in a value or a refusal, and
    /// a value is within its bounds.
    #[test]
    fn hostile_bytes_are_survived(
        junk in proptest::collection::vec(any::<u8>(), 0..5000),
        magic: bool, sealed: bool,
    ) {
        let mut page = junk;
        if magic && page.len() >= 16 {
            page[..8].copy_from_slice(&SUPER_MAGIC);
            page[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        }
        if sealed {
            page.resize(PAGE_BYTES, 0x11);
            let crc = crc_around(&page, SUPER_CRC_AT);
            page[SUPER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(found) = Super::decode(&page) {
            prop_assert!(found.epoch <= EPOCH_MAX && found.slots > 0 && found.slots_a_file > 0);
            prop_assert!(found.stride_bytes >= found.block_bytes);
        }
        prop_assert!(newest(&page, &page).is_ok() == Super::decode(&page).is_ok());
        let uuid = [0x11; 16];
        if sealed {
            page[..8].copy_from_slice(&TABLE_MAGIC);
            page[8..24].copy_from_slice(&uuid);
            page[24..28].copy_from_slice(&3_u32.to_le_bytes());
            let crc = crc_around(&page, TABLE_CRC_AT);
            page[TABLE_CRC_AT..TABLE_CRC_AT + 8].copy_from_slice(&crc.to_le_bytes());
        }
        prop_assert_eq!(open(&page, &uuid, 3).is_some(), sealed);
    }

    /// The directory fits, one slot more would not, and no byte less would do.
    #[test]
    fn slots_fill_the_capacity(slots in 1..10_000_u32, pages in 1..=65_536_u32, spare: u32) {
        let stride = pages * PAGE_BYTES as u32;
        let total = |slots: u32| {
            let table = u64::from(table_pages(slots)) * PAGE_BYTES as u64;
            SUPER_BYTES + LAYOUT_BYTES_MAX + table + u64::from(slots) * u64::from(stride)
        };
        prop_assert_eq!(slots_for(total(slots), stride), slots);
        prop_assert_eq!(slots_for(total(slots) - 1, stride), slots - 1);
        let capacity = total(slots) + u64::from(spare % stride);
        let filled = slots_for(capacity, stride);
        prop_assert!(total(filled) <= capacity && total(filled + 1) > capacity);
    }

    /// No two slots share a byte, and none is beyond its file.
    #[test]
    fn places_do_not_overlap(slot: u32, a_file in 1..=u32::MAX, pages in 1..=65_536_u32) {
        let stride = pages * PAGE_BYTES as u32;
        let (file, offset) = place(slot, a_file, stride);
        let back = u64::from(file) * u64::from(a_file) + offset / u64::from(stride);
        prop_assert_eq!(back, u64::from(slot));
        prop_assert!(offset % u64::from(stride) == 0);
        prop_assert!(offset < u64::from(a_file) * u64::from(stride));
    }
}
