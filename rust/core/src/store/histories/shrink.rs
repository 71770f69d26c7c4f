//! A failure for people: the fewest operations that show it.
//!
//! Owns: the search for them, and the words. Never does: give up the kind of failure that was
//! found.

use super::plan::Plan;
use super::{Tell, run};
use std::time::{Duration, Instant};

/// How long the search may take.
const SEARCH: Duration = Duration::from_secs(20);

/// What kind of failure it is: its words without the numbers.
fn kind_of(failed: &(u32, String)) -> String {
    failed.1.chars().filter(|c| !c.is_ascii_digit()).take(48).collect()
}

/// Leaves out what the failure does not need.
fn shrink(seed: u64, failed: &(u32, String)) -> Vec<bool> {
    let (begun, fails_at, kind) = (Instant::now(), failed.0, kind_of(failed));
    let alike = |fewer: &[bool]| {
        run(seed, Some(fewer), Tell::Nothing).failed.is_some_and(|failed| kind_of(&failed) == kind)
    };
    let mut keep = vec![true; fails_at as usize + 1];
    let ops = Plan::draw(seed).ops as usize;
    keep.resize(ops + 1, false);
    let mut chunk = (fails_at as usize).div_ceil(2);
    while chunk > 0 {
        let mut at = 1;
        while at < fails_at as usize && begun.elapsed() < SEARCH {
            let end = (at + chunk).min(fails_at as usize);
            let mut fewer = keep.clone();
            fewer[at..end].fill(false);
            if fewer != keep && alike(&fewer) {
                keep = fewer;
            }
            at = end;
        }
        chunk /= 2;
    }
    keep
}

/// What failed, the shortest history that shows it, and how to see it again.
pub(super) fn report(seed: u64, failed: &(u32, String)) -> String {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let keep = shrink(seed, failed);
    let short = run(seed, Some(&keep), Tell::AtTheEnd);
    std::panic::set_hook(hook);
    let (at, wrong) = short.failed.unwrap_or_else(|| failed.clone());
    format!(
        "history {seed} failed at operation {}: {}\n{}\nshortest found, at {at}: {wrong}\n{}\n\
         replay: KEYSTOW_SIM_SEED={seed} cargo test --release -p keystow-core --lib \
         histories_replay -- --nocapture",
        failed.0,
        failed.1,
        Plan::draw(seed).describe(),
        short.trace.join("\n")
    )
}
