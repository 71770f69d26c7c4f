//! Every interleaving of what the SSD tier does to a header with what callers do meanwhile: the
//! end of a write against a remove, the end of a hold against the last unpin, a promotion's frame
//! against a reader. Each rule has a red twin.

use super::header::{Fields, Header};
use super::state::{HIDDEN, Kind, QUEUED, SKIPPED, State};
use crate::sync::{AtomicU32, Ordering};
use crate::units::{FrameId, SsdSlot};
use loom::sync::Arc;
use loom::thread;

fn header(kind: Kind, pins: u32) -> Arc<Header> {
    let fields = Fields { key: [1, 1], parent: None, frame: None, ssd: None, len: 7, epoch: 0 };
    let header = Arc::new(Header::default());
    header.publish(&fields, kind, pins);
    header
}

/// A write ends while its block is removed. `in_one`: the word that is swapped is the word that
/// was looked at; else the block may be called clean although the remove came first, and its
/// record would outlive it.
fn clean_against_remove(in_one: bool) {
    loom::model(move || {
        let header = header(Kind::Ram, 0);
        assert!(header.update(|s| Some(s.hold())).is_ok());
        let theirs = Arc::clone(&header);
        let remover = thread::spawn(move || {
            theirs.update(|s| Some(s.with(HIDDEN | SKIPPED))).is_ok_and(|s| s.kind() == Kind::Both)
        });
        header.place_on_ssd(Some(SsdSlot(3)));
        let clean = |s: State| !s.has(HIDDEN);
        let cleaned = if in_one {
            let step = |s: State| if clean(s) { s.with_kind(Kind::Both) } else { s };
            clean(header.unhold(step).0)
        } else {
            let cleaned = clean(header.state());
            header.unhold(|s| if cleaned { s.with_kind(Kind::Both) } else { s });
            cleaned
        };
        let removed_clean = remover.join().unwrap_or(false);
        assert_eq!(cleaned, removed_clean, "a record for a block that was removed before");
    });
}

#[test]
fn loom_a_write_that_ends_on_a_removed_block_shows_nothing() {
    clean_against_remove(true);
}

#[test]
#[should_panic(expected = "a record for a block that was removed before")]
fn loom_red_a_look_before_the_swap_shows_it() {
    clean_against_remove(false);
}

/// The hold and the last pin of a skipped block end at once. `look`: who ends the hold looks in the
/// word it swaps whether the block is queued already; else both put it on the wake stack.
fn hold_and_pin_end(look: bool) {
    loom::model(move || {
        let header = header(Kind::Ram, 1);
        assert!(header.update(|s| Some(s.hold().with(SKIPPED))).is_ok());
        let wakes = Arc::new(AtomicU32::new(0));
        let (theirs, on) = (Arc::clone(&header), Arc::clone(&wakes));
        let unpinner = thread::spawn(move || {
            if theirs.unpin() {
                on.fetch_add(1, Ordering::AcqRel);
            }
        });
        let woke = if look {
            header.unhold(|s| s).1
        } else {
            header.update(|s| Some(s.unhold())).is_ok_and(|before| before.pins() == 0)
        };
        assert!(unpinner.join().is_ok());
        let woken = wakes.load(Ordering::Acquire) + u32::from(woke);
        let idle = header.state().pins() == 0 && !header.state().held();
        assert!(idle && woken >= 1 && header.state().has(QUEUED), "nobody woke it: {woken}");
        assert_eq!(woken, 1, "one link on two stacks");
    });
}

#[test]
fn loom_the_end_of_hold_and_pin_wakes_once() {
    hold_and_pin_end(true);
}

#[test]
#[should_panic(expected = "one link on two stacks")]
fn loom_red_blind_to_the_queue_it_wakes_twice() {
    hold_and_pin_end(false);
}

/// A block comes into a frame while a reader with a pin looks where it is. `ordered`: the place is
/// written before the word that shows it, with Release.
fn load_against_reader(ordered: bool) {
    loom::model(move || {
        let header = header(Kind::Ssd, 1);
        header.locate(Some(FrameId(40)), 7);
        let theirs = Arc::clone(&header);
        let reader = thread::spawn(move || {
            if theirs.state().kind() == Kind::Both {
                assert_eq!(theirs.located().0, FrameId(12), "a frame that is another's");
            }
        });
        assert!(header.update(|s| Some(s.hold().with_kind(Kind::Loading))).is_ok());
        if ordered {
            header.locate(Some(FrameId(12)), 7);
            header.unhold(|s| s.with_kind(Kind::Both));
        } else {
            header.unhold(|s| s.with_kind(Kind::Both));
            header.locate(Some(FrameId(12)), 7);
        }
        assert!(reader.join().is_ok(), "a frame that is another's");
    });
}

#[test]
fn loom_a_loaded_block_shows_its_own_frame() {
    load_against_reader(true);
}

#[test]
#[should_panic(expected = "a frame that is another's")]
fn loom_red_shown_before_the_frame_is_named() {
    load_against_reader(false);
}
