//! Every interleaving of the protocols around the header: refill of a hole, insert events, the
//! wake stack. Small: two threads, two or three headers. Each rule has a red twin.

use super::header::{Fields, Header};
use super::state::{Kind, SKIPPED, State};
use super::{Block, Commit, Directory, Dirty, Entry, Home};
use crate::key::Key;
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::units::{FrameId, Slot};
use loom::sync::Arc;
use loom::thread;

fn bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Two puts refill one hole, each with a frame of its own. By the hold, one of them; without it
/// (fields first, then the kind) the header can name the frame that the loser gives back.
fn two_refills(by_hold: bool) {
    loom::model(move || {
        let fields = Fields { key: [1, 1], parent: None, frame: None, ssd: None, len: 0, epoch: 0 };
        let header = Arc::new(Header::default());
        header.publish(&fields, Kind::Hole, 0);
        let refill = move |header: &Header, frame: u32| {
            let hole = |s: State| s.kind() == Kind::Hole && !s.held();
            if !by_hold {
                header.locate(Some(FrameId(frame)), 1);
                let shown = header.update(|s| hole(s).then(|| s.with_kind(Kind::Ram)));
                return shown.is_ok();
            }
            if header.update(|s| hole(s).then(|| s.hold())).is_err() {
                return false;
            }
            header.locate(Some(FrameId(frame)), 1);
            header.update(|s| Some(s.unhold().with_kind(Kind::Ram))).is_ok()
        };
        let other = Arc::clone(&header);
        let thread = thread::spawn(move || refill(&other, 12));
        let mine = refill(&header, 40);
        let theirs = thread.join().unwrap_or(false);
        assert!(mine != theirs, "one of two refills");
        let given_back = FrameId(if mine { 12 } else { 40 });
        assert_ne!(header.located().0, given_back, "a frame in use was given back");
    });
}

#[test]
fn loom_one_of_two_puts_refills_a_hole() {
    two_refills(true);
}

#[test]
#[should_panic(expected = "a frame in use was given back")]
fn loom_red_without_the_hold_both_write_it() {
    two_refills(false);
}

fn commit(directory: &Directory, n: u64, parent: Option<&Entry>, pins: u32) -> Option<Entry> {
    let parent = parent.map(|p| (p.slot, p.generation));
    let (key, frame, epoch) = (Key::from_words([n, n]), FrameId(n as u32), directory.epoch());
    match directory.commit(&Block { key, parent, home: Home::Frame(frame), len: 1, epoch, pins }) {
        Commit::Stored { entry, .. } => Some(entry),
        _ => None,
    }
}

/// A putter stores a and b below the pinned q and tells the keeper; the keeper counts and evicts
/// whatever it may. `born`: headers are born with the pins that their events carry.
fn insert_events(born: bool) {
    bounded(2, move || {
        let directory = Arc::new(Directory::with_headers(3, 1, [3, 5]));
        let q = commit(&directory, 1, None, 1).expect("an empty index");
        let slots = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let notes = Arc::new(Mutex::new(Vec::new()));
        let (index, told, seen) = (Arc::clone(&directory), Arc::clone(&notes), Arc::clone(&slots));
        let putter = thread::spawn(move || {
            let pins = u32::from(born);
            let Some(a) = commit(&index, 2, Some(&q), 2 * pins) else { return };
            seen[0].store(a.slot.0 + 1, Ordering::Release);
            if !born && !index.pin(a.slot, a.generation) {
                return;
            }
            let Some(b) = commit(&index, 3, Some(&a), pins) else { return };
            seen[1].store(b.slot.0 + 1, Ordering::Release);
            if let Ok(mut notes) = told.lock() {
                notes.extend([b.slot, a.slot]);
            }
        });
        for _ in 0..2 {
            for slot in slots.iter() {
                if let Some(slot) = slot.load(Ordering::Acquire).checked_sub(1) {
                    keeper(&directory, &notes, Slot(slot), born);
                }
            }
        }
        assert!(putter.join().is_ok());
    });
}

fn keeper(directory: &Directory, notes: &Mutex<Vec<Slot>>, victim: Slot, born: bool) {
    let told = notes.lock().map(|mut notes| std::mem::take(&mut *notes));
    for slot in told.unwrap_or_default() {
        directory.count_child(slot, false, true);
        if born {
            directory.drop_event_pins(slot);
        }
    }
    // A loaded parent link is what an uncounted child would take a count from.
    if directory.evict(victim, Dirty::Leaves).is_some() {
        directory.bury(victim);
    }
}

#[test]
fn loom_a_block_is_counted_before_it_can_leave() {
    insert_events(true);
}

#[test]
#[should_panic(expected = "a RAM child was counted before")]
fn loom_red_without_birth_pins_it_leaves_uncounted() {
    insert_events(false);
}

/// The last unpin of a skipped header against an eviction. `queue` left out: the flag is set in a
/// step of its own, and the header can be freed between.
fn wake_against_eviction(queue: bool) {
    loom::model(move || {
        let fields = Fields { key: [1, 1], parent: None, frame: None, ssd: None, len: 0, epoch: 0 };
        let header = Arc::new(Header::default());
        header.publish(&fields, Kind::Ram, 1);
        assert!(header.update(|s| Some(s.with(SKIPPED))).is_ok());
        let stacks = Arc::new(AtomicU32::new(0));
        let (owner, on) = (Arc::clone(&header), Arc::clone(&stacks));
        let unpinner = thread::spawn(move || {
            let wakes =
                if queue { owner.unpin() } else { owner.update(|s| Some(s.unpinned())).is_ok() };
            if wakes {
                on.fetch_add(1, Ordering::AcqRel);
            }
        });
        let (owner, on) = (Arc::clone(&header), Arc::clone(&stacks));
        let evictor = thread::spawn(move || {
            if owner.update(|s| s.idle().then(|| s.freed())).is_ok() {
                on.fetch_add(1, Ordering::AcqRel);
            }
        });
        assert!(unpinner.join().is_ok() && evictor.join().is_ok());
        assert_eq!(stacks.load(Ordering::Acquire), 1, "one link on two stacks, or on none");
    });
}

#[test]
fn loom_a_woken_header_is_on_one_stack() {
    wake_against_eviction(true);
}

#[test]
#[should_panic(expected = "one link on two stacks")]
fn loom_red_without_the_queued_flag_it_is_on_two() {
    wake_against_eviction(false);
}
