//! Frozen views: right bytes or a miss, whatever their owner does.

use super::*;
use crate::arena::RowsMut;

fn snapshot(folder: &Folder) -> Snapshot {
    Snapshot::open(&folder.0).unwrap_or_else(|error| panic!("{error}"))
}

fn get(snapshot: &Snapshot, range: Range<u64>) -> usize {
    let mut out = vec![0xEE; (range.end - range.start) as usize * BLOCK as usize];
    let mut rows = RowsMut::packed(&mut out, BLOCK as usize);
    let got = snapshot.get(&keys(range.clone()), &mut rows).expect("rows");
    for (at, (row, n)) in out.chunks(BLOCK as usize).zip(range).enumerate() {
        let expected = if at < got { fill(n) } else { Vec::new() };
        assert!(row[..expected.len()] == expected, "block {n} holds other bytes");
        assert!(row[expected.len()..].iter().all(|byte| *byte == 0xEE), "behind block {n}");
    }
    got
}

#[test]
fn a_closed_store_is_read() {
    let folder = Folder::new("snapshot");
    folder.stored(0..50);
    let view = snapshot(&folder);
    assert_eq!(view.match_run(&keys(0..60)), 50);
    assert_eq!(view.match_run(&keys(60..70)), 0);
    assert_eq!(view.contains(&[key(3), key(70), key(4)]), [true, false, true]);
    assert_eq!((get(&view, 0..60), get(&view, 20..30), get(&view, 60..61)), (50, 10, 0));
    assert_eq!((view.fingerprint(), view.layout()), (FINGERPRINT, Some(LAYOUT)));
    assert_eq!(view.block_bytes(), BLOCK as u32);
    let bytes = |range: Range<u64>| range.map(|n| fill(n).len() as u64).sum::<u64>();
    let expected = SnapshotStats {
        blocks: 50,
        bytes: bytes(0..50),
        hits: 60,
        misses: 11,
        bad: 0,
        lookup_hits: 52,
        lookup_misses: 21,
        bytes_out: bytes(0..50) + bytes(20..30),
        pages_unreadable: 0,
    };
    assert_eq!(view.stats(), expected);
}

#[test]
fn each_is_read_whatever_came_before_it() {
    let folder = Folder::new("snapshot-each");
    folder.stored(0..6);
    let view = snapshot(&folder);
    folder.flip(folder.slot_of(2), 9);
    assert_eq!(get(&view, 0..6), 2, "a run ends at rotten bytes");
    let mut out = vec![0xEE; 4 * BLOCK as usize];
    let asked = [key(1), key(2), key(77), key(5)];
    let there = view.get_each(&asked, &mut RowsMut::packed(&mut out, BLOCK as usize));
    assert_eq!(there.expect("rows"), [true, false, false, true]);
    let row = |at: usize| &out[at * BLOCK as usize..][..fill(5).len()];
    assert!(row(0).starts_with(&fill(1)) && row(3) == fill(5));
    assert!(row(1).iter().chain(row(2)).all(|byte| *byte == 0xEE), "bad bytes went out");
    assert_eq!((view.stats().bad, view.stats().hits, view.stats().misses), (2, 4, 6));
}

#[test]
fn rows_are_checked_before_anything_is_written() {
    let folder = Folder::new("snapshot-rows");
    folder.stored(0..3);
    let view = snapshot(&folder);
    let mut out = vec![0xEE; 3 * 2000];
    let refused = view.get(&keys(0..3), &mut RowsMut::packed(&mut out, 2000));
    assert_eq!(code(refused), "KS-LAY-003");
    let refused = view.get_each(&keys(0..3), &mut RowsMut::packed(&mut out, 2000));
    assert_eq!(code(refused), "KS-LAY-003");
    assert_eq!(code(view.get(&keys(0..2), &mut RowsMut::packed(&mut out, 2000))), "KS-LAY-001");
    assert!(out.iter().all(|byte| *byte == 0xEE));
    let (mut first, mut second) = (vec![0; 3000], vec![0; 1]);
    let mut rows = RowsMut::list(&mut [&mut first, &mut second]);
    assert_eq!(view.get(&[key(0), key(9)], &mut rows).ok(), Some(1), "no block, no length");
    assert_eq!(first, fill(0));
}

#[test]
fn it_is_frozen_while_its_owner_goes_on() {
    let folder = Folder::new("snapshot-owner");
    let store = folder.open(64);
    assert_eq!(put(&store, 0..20), 20);
    assert_eq!(store.flush(LONG).ok(), Some(0));
    let view = snapshot(&folder);
    assert_eq!(put(&store, 20..40), 20);
    assert_eq!(store.flush(LONG).ok(), Some(0));
    assert_eq!((get(&view, 0..20), view.match_run(&keys(20..40))), (20, 0));
    assert_eq!(store.remove(&keys(19..20), true).ok(), Some(1));
    assert_eq!(get(&view, 0..20), 20, "what is not overwritten is still there");
    assert_eq!(get(&snapshot(&folder), 0..20), 19, "a later view does not have it");
    // Everything is overwritten: 64 slots, 20 and 20 and 19 are taken.
    for chain in 1..20 {
        assert_eq!(put(&store, chain * 100..chain * 100 + 16), 16);
        assert_eq!(store.flush(LONG).ok(), Some(0));
    }
    assert_eq!((view.match_run(&keys(0..20)), get(&view, 0..20)), (20, 0));
    assert!(view.stats().bad > 0);
}

#[test]
fn what_was_cleared_is_not_in_it() {
    let folder = Folder::new("snapshot-clear");
    let store = folder.open(64);
    assert_eq!(put(&store, 0..20), 20);
    assert_eq!(store.flush(LONG).ok(), Some(0));
    store.clear().expect("the disk confirms");
    assert_eq!(snapshot(&folder).match_run(&keys(0..20)), 0);
    assert_eq!(put(&store, 0..5), 5);
    assert_eq!(store.flush(LONG).ok(), Some(0));
    assert_eq!(get(&snapshot(&folder), 0..20), 5);
}

#[test]
fn of_two_records_the_newer_one_counts() {
    for newer_first in [false, true] {
        let folder = Folder::new(&format!("snapshot-newer-{newer_first}"));
        folder.stored(0..4);
        let mut records = folder.page(0);
        let slot = folder.slot_of(1) as usize;
        let older = Record { generation: records[slot].generation - 1, ..records[slot] };
        let free = records.iter().position(Record::is_free).expect("a free slot");
        if newer_first {
            records[free] = older;
        } else {
            // The payload moves along.
            let mut payload = vec![0; BLOCK as usize];
            let at = |slot: usize| slot as u64 * BLOCK;
            folder.change("slots.0000", at(slot), BLOCK as usize, |it| {
                payload.copy_from_slice(it);
                it.fill(0xEE);
            });
            folder
                .change("slots.0000", at(free), BLOCK as usize, |it| it.copy_from_slice(&payload));
            records[free] = std::mem::replace(&mut records[slot], older);
        }
        folder.write_page(0, &records);
        assert_eq!(get(&snapshot(&folder), 0..4), 4);
    }
}

#[test]
fn a_path_must_name_one_store() {
    let folder = Folder::new("snapshot-paths");
    assert_eq!(code(Snapshot::open(&folder.0)), "KS-CFG-404");
    folder.stored(0..3);
    let second = folder.config(64);
    let ssd = second.ssd.map(|ssd| SsdConfig { member: "second".to_owned(), ..ssd });
    let store = Store::open(&StoreConfig { ssd, ..second }).expect("open");
    assert_eq!(put(&store, 50..51), 1);
    store.close(LONG);
    assert_eq!(code(Snapshot::open(&folder.0)), "KS-CFG-405");
    let view = Snapshot::open(&folder.0.join(HEX).join("second")).expect("one store");
    assert_eq!((view.match_run(&keys(0..1)), get(&view, 50..51)), (0, 1));
    fs::write(folder.file("SUPER"), "mine").expect("write");
    assert_eq!(code(Snapshot::open(&folder.member())), "KS-FMT-002");
}

#[test]
fn threads_read_at_once() {
    let folder = Folder::new("snapshot-threads");
    folder.stored(0..40);
    let view = snapshot(&folder);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let view = &view;
            scope.spawn(move || {
                for turn in 0..20 {
                    let from = (thread * 7 + turn * 3) % 30;
                    assert_eq!(get(view, from..from + 10), 10);
                }
            });
        }
    });
    assert_eq!(view.stats().hits, 800);
}
