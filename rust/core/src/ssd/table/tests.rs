//! Tests of the table's image: what is due when, and that a settled image is what the disk has.

use super::super::format::open;
use super::*;
use crate::key::Key;
use proptest::prelude::*;

const UUID: [u8; 16] = [7; 16];
const A_PAGE: u32 = RECORDS_A_PAGE as u32;

fn record(name: u8) -> Record {
    Record { key: Key([name; 16]), flags: Record::LIVE, generation: 1, ..Record::FREE }
}

fn write(table: &mut Table, page: u32) -> (u64, [Record; RECORDS_A_PAGE]) {
    let mut bytes = [0xEE; PAGE_BYTES];
    let sequence = table.begin(page, &mut bytes);
    let (sealed, records) = open(&bytes, &UUID, page).expect("sealed");
    assert_eq!(sealed, sequence);
    (sequence, records)
}

#[test]
fn a_change_is_due_after_the_flush_time_or_at_once() {
    let mut table = Table::new(100, UUID);
    assert!(table.settled());
    assert_eq!((table.next_due(u64::MAX, true), table.next_due_at()), (None, None));
    table.set(SsdSlot(50), record(1), 1000);
    assert!(!table.settled());
    assert_eq!(table.next_due_at(), Some(1000 + FLUSH_US));
    assert_eq!(table.next_due(999 + FLUSH_US, false), None);
    assert_eq!(table.next_due(1000 + FLUSH_US, false), Some(1));
    assert_eq!(table.next_due(1000, true), Some(1));
    // A second change does not put the first one off.
    table.set(SsdSlot(51), record(2), 2000);
    assert_eq!(table.next_due_at(), Some(1000 + FLUSH_US));
    assert_eq!(table.dirty_pages(), 1);

    let (sequence, records) = write(&mut table, 1);
    assert_eq!((sequence, table.dirty_pages(), table.in_flight()), (1, 0, 1));
    assert_eq!((records[8], records[9], records[10]), (record(1), record(2), Record::FREE));
    assert!(!table.settled());
    table.done(1, true, 3000);
    assert!(table.settled());
}

#[test]
fn a_page_changed_in_flight_goes_again_and_only_afterwards() {
    let mut table = Table::new(100, UUID);
    table.set(SsdSlot(0), record(1), 0);
    write(&mut table, 0);
    table.set(SsdSlot(1), record(2), 10);
    table.set(SsdSlot(99), record(3), 20);
    assert_eq!(table.next_due(u64::MAX, true), Some(2), "page 0 is in flight");
    assert_eq!(table.next_due_at(), Some(20 + FLUSH_US));
    write(&mut table, 2);
    assert_eq!((table.next_due(u64::MAX, true), table.next_due_at()), (None, None));
    table.set(SsdSlot(99), record(4), 30);
    table.done(2, true, 40);
    table.done(0, true, 50);
    // The oldest change first, whatever came back first.
    assert_eq!(table.next_due(u64::MAX, false), Some(0));
    assert_eq!(table.next_due_at(), Some(10 + FLUSH_US));
    let (sequence, records) = write(&mut table, 0);
    assert_eq!((sequence, records[1]), (2, record(2)));
    assert_eq!(table.next_due(u64::MAX, false), Some(2));
}

#[test]
fn a_failed_write_is_due_again_later() {
    let mut table = Table::new(42, UUID);
    table.set(SsdSlot(0), record(1), 0);
    write(&mut table, 0);
    table.done(0, false, 700);
    assert_eq!((table.dirty_pages(), table.in_flight()), (1, 0));
    assert_eq!(table.next_due_at(), Some(700 + FLUSH_US));
    write(&mut table, 0);
    table.set(SsdSlot(0), record(2), 800);
    table.done(0, false, 900);
    assert_eq!(table.next_due_at(), Some(800 + FLUSH_US));
}

#[test]
fn uses_ride_along() {
    let mut table = Table::new(42, UUID);
    table.touch_meta(SsdSlot(3), 5, 6);
    assert!(table.get(SsdSlot(3)).is_free(), "a use makes no record");
    table.set(SsdSlot(3), record(1), 0);
    write(&mut table, 0);
    table.done(0, true, 0);
    table.touch_meta(SsdSlot(3), 5, 6);
    assert!(table.settled());
    table.blank(SsdSlot(4), 0);
    assert!(table.settled(), "blanking a free slot changes nothing");
    table.set(SsdSlot(5), record(2), 0);
    let (_, records) = write(&mut table, 0);
    assert_eq!((records[3].last_use, records[3].hits), (5, 6));
    table.done(0, true, 0);
    table.blank(SsdSlot(3), 0);
    assert_eq!(table.dirty_pages(), 1);
    assert!(table.get(SsdSlot(3)).is_free());
}

#[test]
fn loaded_pages_are_clean_and_go_on_counting() {
    let mut table = Table::new(50, UUID);
    let records: [Record; RECORDS_A_PAGE] = std::array::from_fn(|i| record(i as u8 + 1));
    assert!(!table.load_page(1, 77, &records), "there are records of slots beyond the last");
    assert!(table.settled());
    assert_eq!(table.records().count(), 8, "slots beyond the last are not there");
    assert_eq!(table.records().next(), Some((SsdSlot(42), record(1))));
    table.distrust(0, 5);
    assert_eq!(table.next_due(5, true), Some(0));
    table.blank(SsdSlot(42), 6);
    let (sequence, sealed) = write(&mut table, 1);
    assert_eq!((sequence, sealed[0], sealed[1]), (78, Record::FREE, record(2)));
    assert_eq!((table.slots(), table.pages()), (50, 2));
}

#[test]
fn a_clock_that_steps_back_keeps_the_order() {
    let mut table = Table::new(200, UUID);
    table.set(SsdSlot(0), record(1), 1000);
    table.set(SsdSlot(199), record(2), 500);
    table.validate();
    assert_eq!(table.next_due(u64::MAX, false), Some(0));
    table.set(SsdSlot(50), record(3), u64::MAX);
    assert_eq!(table.dirty_pages(), 3);
    table.validate();
}

#[test]
#[should_panic(expected = "two writes of one page")]
fn a_page_in_flight_is_not_written_again() {
    let mut table = Table::new(42, UUID);
    write(&mut table, 0);
    write(&mut table, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Set(u32, u8),
    Blank(u32),
    Touch(u32),
    Distrust(u32),
    /// Writes the page that is due, urgently or not.
    Write(bool),
    /// Writes a page that nobody asked for.
    WriteAny(u32),
    /// The n-th write in flight ends.
    Done(usize, bool),
    Wait(u64),
}

const PAGES: u32 = 5;

fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..(PAGES - 1) * A_PAGE + 3;
    prop_oneof![
        4 => (slot(), 1..=255_u8).prop_map(|(slot, name)| Step::Set(slot, name)),
        2 => slot().prop_map(Step::Blank),
        1 => slot().prop_map(Step::Touch),
        1 => (0..PAGES).prop_map(Step::Distrust),
        4 => any::<bool>().prop_map(Step::Write),
        1 => (0..PAGES).prop_map(Step::WriteAny),
        4 => (0..3_usize, proptest::bool::weighted(0.8)).prop_map(|(n, ok)| Step::Done(n, ok)),
        3 => (0..FLUSH_US).prop_map(Step::Wait),
    ]
}

/// A table beside a disk and what is known of both.
struct Machine {
    table: Table,
    disk: Vec<[Record; RECORDS_A_PAGE]>,
    flying: Vec<(u32, [Record; RECORDS_A_PAGE])>,
    /// When each page changed first since its last write began.
    since: Vec<Option<u64>>,
    now_us: u64,
}

impl Machine {
    fn new() -> Self {
        Self {
            table: Table::new((PAGES - 1) * A_PAGE + 3, UUID),
            disk: vec![[Record::FREE; RECORDS_A_PAGE]; PAGES as usize],
            flying: Vec::new(),
            since: vec![None; PAGES as usize],
            now_us: 0,
        }
    }

    fn changed(&mut self, page: u32) {
        self.since[page as usize].get_or_insert(self.now_us);
    }

    fn launch(&mut self, page: u32) {
        if self.flying.iter().all(|(flying, _)| *flying != page) {
            let (_, records) = write(&mut self.table, page);
            self.flying.push((page, records));
            self.since[page as usize] = None;
        }
    }

    fn due(&mut self, urgent: bool) -> Option<u32> {
        let flying = |page: u32| self.flying.iter().any(|(flying, _)| *flying == page);
        let ready = (0..PAGES).filter(|page| !flying(*page));
        let oldest = ready.filter_map(|page| self.since[page as usize]).min();
        assert_eq!(self.table.next_due_at(), oldest.map(|since| since + FLUSH_US));
        let page = self.table.next_due(self.now_us, urgent);
        let due = oldest.filter(|since| urgent || since + FLUSH_US <= self.now_us);
        assert_eq!(page.and_then(|page| self.since[page as usize]), due);
        page
    }

    fn done(&mut self, page: u32, records: [Record; RECORDS_A_PAGE], ok: bool) {
        if ok {
            self.disk[page as usize] = records;
        } else {
            self.changed(page);
        }
        self.table.done(page, ok, self.now_us);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Set(slot, name) => {
                self.table.set(SsdSlot(slot), record(name), self.now_us);
                self.changed(slot / A_PAGE);
            }
            Step::Blank(slot) => {
                if !self.table.get(SsdSlot(slot)).is_free() {
                    self.changed(slot / A_PAGE);
                }
                self.table.blank(SsdSlot(slot), self.now_us);
            }
            Step::Touch(slot) => self.table.touch_meta(SsdSlot(slot), 1, 2),
            Step::Distrust(page) => {
                self.table.distrust(page, self.now_us);
                self.changed(page);
            }
            Step::Write(urgent) => {
                if let Some(page) = self.due(urgent) {
                    self.launch(page);
                }
            }
            Step::WriteAny(page) => self.launch(page),
            Step::Done(which, ok) => {
                if which < self.flying.len() {
                    let (page, records) = self.flying.remove(which);
                    self.done(page, records, ok);
                }
            }
            Step::Wait(us) => self.now_us += us,
        }
    }

    /// Keys on disk and in the image; uses may differ.
    fn agree(&self, page: u32) -> bool {
        let range = self.table.range(page);
        let image = &self.table.image()[range];
        let disk = &self.disk[page as usize];
        image.iter().zip(disk).all(|(image, disk)| image.key == disk.key)
    }
}

proptest! {
    #[test]
    fn what_differs_from_the_disk_is_dirty_or_in_flight(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut it = Machine::new();
        for step in &steps {
            it.apply(step);
            it.table.validate();
            let dirty = it.since.iter().flatten().count();
            prop_assert_eq!(it.table.dirty_pages() as usize, dirty);
            prop_assert_eq!(it.table.in_flight() as usize, it.flying.len());
            for page in 0..PAGES {
                let flying = it.flying.iter().any(|(flying, _)| *flying == page);
                prop_assert!(it.agree(page) || flying || it.since[page as usize].is_some());
            }
        }
        for (page, records) in std::mem::take(&mut it.flying) {
            it.done(page, records, true);
        }
        while let Some(page) = it.due(true) {
            it.launch(page);
            let (page, records) = it.flying.pop().expect("just launched");
            it.done(page, records, true);
        }
        prop_assert!(it.table.settled());
        prop_assert!((0..PAGES).all(|page| it.agree(page)));
    }
}
