//! Every interleaving of jobs of the copy team, from the threads' start to the team's end: who
//! calls, who is woken, who is waited for. The wait has a red twin: the same model without it must
//! fail.

use super::team::Team;
use crate::sync::{Condvar, Mutex};
use loom::cell::UnsafeCell;
use std::sync::{Arc, PoisonError};

/// Pieces of a job, as loom sees their bytes: two users at once, or one that does not know of the
/// other's end, are a fault.
struct Pieces(Vec<UnsafeCell<u32>>);

// SAFETY: loom's cells tell of every use that would be a race, which is what the models look for.
unsafe impl Sync for Pieces {}
// SAFETY: as above.
unsafe impl Send for Pieces {}

impl Pieces {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self((0..count).map(|_| UnsafeCell::new(0)).collect()))
    }

    /// One call of a job.
    fn call(&self, piece: usize) {
        self.0[piece].with_mut(|calls| {
            // SAFETY: loom has checked that nobody else is at the cell.
            unsafe { *calls += 1 };
        });
    }

    /// What the caller finds after a job.
    fn calls(&self) -> Vec<u32> {
        // SAFETY: as above.
        self.0.iter().map(|cell| cell.with(|calls| unsafe { *calls })).collect()
    }
}

#[test]
fn loom_a_job_ends_with_its_last_call_and_leaves_nobody_behind() {
    loom::model(|| {
        let team = Team::new(2);
        let pieces = Pieces::new(2);
        for job in 1..=2 {
            assert!(team.run(2, &|piece| pieces.call(piece)));
            assert_eq!(pieces.calls(), [job; 2]);
        }
        drop(team);
    });
}

/// Two pieces that wait for each other: a thread that slept through its job would be missed.
#[test]
fn loom_whoever_sleeps_is_woken_for_each_job() {
    loom::model(|| {
        let team = Team::new(2);
        for _ in 0..2 {
            let (arrived, met) = (Mutex::new(0), Condvar::new());
            assert!(team.run(2, &|_| {
                let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
                *arrived += 1;
                met.notify_all();
                while *arrived < 2 {
                    arrived = met.wait(arrived).unwrap_or_else(PoisonError::into_inner);
                }
            }));
        }
    });
}

/// Two callers and a thread: all interleavings with so many switches that nobody asked for.
const PREEMPTIONS_MAX: usize = 2;

#[test]
fn loom_two_callers_share_one_team() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(|| {
        let team = Arc::new(Team::new(2));
        let job = |team: &Team| {
            let pieces = Pieces::new(2);
            if team.run(2, &|piece| pieces.call(piece)) {
                assert_eq!(pieces.calls(), [1; 2]);
            }
        };
        let other = Arc::clone(&team);
        let caller = loom::thread::spawn(move || job(&other));
        job(&team);
        assert!(caller.join().is_ok());
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_red_a_job_that_does_not_wait_for_who_is_inside_is_read_too_early() {
    loom::model(|| {
        let team = Team::new(2);
        let pieces = Pieces::new(2);
        let shared = Arc::clone(&pieces);
        team.run_without_end(2, move |piece| shared.call(piece));
        assert_eq!(pieces.calls(), [1; 2]);
    });
}
