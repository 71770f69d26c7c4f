//! Every interleaving of the checked read and the pin against an eviction and the next life of
//! the same header. Each rule has a red twin: the same model with one step left out must fail.

use super::header::{Fields, Header};
use super::state::{Kind, State};
use crate::sync::{AtomicU32, Ordering};
use crate::units::{FrameId, Slot};
use loom::sync::Arc;
use loom::thread;

const OLD: [u64; 2] = [1, 1];
const NEW: [u64; 2] = [2, 2];

/// The parent's number tells which life the fields belong to.
fn fields(key: [u64; 2]) -> Fields {
    let parent = Some((Slot(key[0] as u32), 0));
    Fields { key, parent, frame: Some(FrameId(0)), ssd: None, len: 0, epoch: 0 }
}

/// `publish` without its Release fence.
fn publish_without_fence(header: &Header, fields: &Fields) {
    header.write_fields(fields);
    let word = header.state();
    let live = State::live(word.generation(), Kind::Ram, 0);
    assert!(header.update(|_| Some(live)).is_ok());
}

fn checked_read_against_the_next_life(key: [u64; 2], fence: bool) {
    loom::model(move || {
        let header = Arc::new(Header::default());
        header.publish(&fields(OLD), Kind::Ram, 0);
        let owner = Arc::clone(&header);
        let evictor = thread::spawn(move || {
            assert!(owner.update(|s| Some(s.freed())).is_ok());
            if fence {
                owner.publish(&fields(NEW), Kind::Ram, 0);
            } else {
                publish_without_fence(&owner, &fields(NEW));
            }
        });
        if let Some(seen) = header.checked(key) {
            assert_eq!(u64::from(seen.parent), key[0], "a parent of another life");
            assert_eq!(u64::from(seen.state.generation()) + 1, key[0], "another life's word");
        }
        assert!(evictor.join().is_ok());
    });
}

#[test]
fn loom_a_checked_read_never_mixes_two_lives() {
    checked_read_against_the_next_life(OLD, true);
    checked_read_against_the_next_life(NEW, true);
}

#[test]
#[should_panic(expected = "another life")]
fn loom_red_without_the_release_fence_it_does() {
    checked_read_against_the_next_life(OLD, false);
    checked_read_against_the_next_life(NEW, false);
}

/// A reader pins, then reads the frame; the evictor takes the header only from pins = 0 and then
/// writes the frame. `check` left out: it does not look at the pins.
fn pin_against_eviction(check: bool) {
    loom::model(move || {
        let header = Arc::new(Header::default());
        let generation = header.publish(&fields(OLD), Kind::Ram, 0);
        let frame = Arc::new(AtomicU32::new(7));
        let (owner, bytes) = (Arc::clone(&header), Arc::clone(&frame));
        let evictor = thread::spawn(move || {
            let goes = |s: State| !check || s.idle();
            if owner.update(|s| goes(s).then(|| s.freed())).is_ok() {
                bytes.store(8, Ordering::Relaxed);
            }
        });
        if header.pin(generation, false).is_ok() {
            assert_eq!(frame.load(Ordering::Relaxed), 7, "a pinned frame was written");
        }
        assert!(evictor.join().is_ok());
    });
}

#[test]
fn loom_a_pinned_frame_is_not_written() {
    pin_against_eviction(true);
}

#[test]
#[should_panic(expected = "a pinned frame was written")]
fn loom_red_an_eviction_blind_to_pins_writes_it() {
    pin_against_eviction(false);
}

/// A reader of the frame that ends with `unpin` happens before the next owner's write: the read
/// below must not see the value written after the eviction. `release` left out: the pin falls by
/// a relaxed step.
fn a_read_before_the_unpin(release: bool) {
    loom::model(move || {
        let header = Arc::new(Header::default());
        header.publish(&fields(OLD), Kind::Ram, 1);
        let frame = Arc::new(loom::cell::UnsafeCell::new(7));
        let (owner, bytes) = (Arc::clone(&header), Arc::clone(&frame));
        let evictor = thread::spawn(move || {
            if owner.update(|s| s.idle().then(|| s.freed())).is_ok() {
                // SAFETY: the model checks that no read is concurrent; that is what it is for.
                bytes.with_mut(|bytes| unsafe { *bytes = 8 });
            }
        });
        // SAFETY: as above.
        assert_eq!(frame.with(|bytes| unsafe { *bytes }), 7);
        if release {
            header.unpin();
        } else {
            header.unpin_relaxed();
        }
        assert!(evictor.join().is_ok());
    });
}

#[test]
fn loom_reads_under_a_pin_come_before_the_next_write() {
    a_read_before_the_unpin(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_red_a_relaxed_unpin_lets_them_race() {
    a_read_before_the_unpin(false);
}
