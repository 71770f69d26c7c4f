//! Histories over the simulated disk: any operations, any crash, compared with a model after every
//! step.
//!
//! Owns: the loop over seeds and operations. Never does: know how a store works inside; `model`
//! knows what may be read, `oracles` and `restart` what must hold, `plan` what is drawn. Invariant:
//! a seed is a history, always the same; each operation draws from a stream of its own, so that a
//! history with operations left out is one too.
//!
//! `KEYSTOW_SIM_SECONDS` says how long fresh seeds are tried, `KEYSTOW_SIM_FIRST` from which one
//! on, `KEYSTOW_SIM_SEED` which one `histories_replay` shows step by step.

mod crashes;
mod history;
mod mischief;
mod model;
mod oracles;
mod plan;
mod reads;
mod restart;
mod shrink;
mod situations;
mod verbs;
mod writes;

use crate::io::Rng;
use history::{Done, History};
use plan::{DEVICES_SHIFT, Plan};
use shrink::report;
use situations::Situations;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds that found something, each with what it was.
const SAVED: &str = include_str!("histories/seeds.txt");
/// Seconds of fresh histories where nobody says otherwise.
const FRESH_SECONDS: u64 = 5;
/// A run of so many operations must have come into every situation; the rarest comes once or twice
/// in a million.
const ALL_SITUATIONS_OPS: u64 = 8_000_000;
/// Failures after which a run ends.
const FAILURES_MAX: usize = 20;
/// Threads of a run at most.
const THREADS_MAX: usize = 8;
/// No operation asks the disk so often, however long it waits.
const REAPS_MAX: u64 = 100_000;
/// A history takes milliseconds: one that takes so long never ends.
const HANGS: Duration = Duration::from_secs(20);

/// How one history went.
struct Outcome {
    ops: u64,
    failed: Option<(u32, String)>,
    trace: Vec<String>,
    situations: Situations,
}

/// What a history tells of its operations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Nothing,
    AtTheEnd,
    /// For histories that don't end.
    AtOnce,
}

/// Runs a history, all of it or the operations that `keep` names.
fn run(seed: u64, keep: Option<&[bool]>, tell: Tell) -> Outcome {
    let mut outcome =
        Outcome { ops: 0, failed: None, trace: Vec::new(), situations: Situations::default() };
    let (mut at, mut kept) = (0, None);
    let done = catch_unwind(AssertUnwindSafe(|| {
        let plan = Plan::draw(seed);
        let ops = plan.ops;
        let history = kept.insert(History::begin(plan, tell)?);
        for op in 1..=ops {
            if keep.is_none_or(|keep| keep[op as usize]) {
                at = op;
                step(history, op)?;
                outcome.ops += 1;
            }
        }
        history.audit()
    }));
    outcome.failed = match done {
        Ok(Ok(())) => None,
        Ok(Err(wrong)) => Some((at, wrong)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
            Some((at, format!("panic: {}", text.unwrap_or_default())))
        }
    };
    if let Some(history) = &mut kept {
        outcome.trace = std::mem::take(&mut history.trace);
        outcome.situations = history.situations.clone();
    }
    // What is half done may panic again as it goes.
    let _ = catch_unwind(AssertUnwindSafe(move || drop(kept)));
    outcome
}

fn step(history: &mut History, op: u32) -> Done {
    let stream = u64::from(op).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    history.rng = Rng::new(history.plan.seed ^ stream);
    history.disk(|disk| disk.faults(|faults| faults.reaps_left = REAPS_MAX));
    let now_us = history.now_us();
    history.say(|| format!("-- {op} at {now_us} us"));
    if history.plan.crashes.contains(&op) {
        history.audit()?;
        history.crash()?;
    } else {
        verbs::operation(history)?;
    }
    history.look()
}

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// What the threads of a run have found together.
#[derive(Default)]
struct Found {
    failures: Vec<(u64, (u32, String))>,
    situations: Situations,
    histories: u64,
    ops: u64,
    cpu: Duration,
}

/// A run over fresh seeds: the next seed, and the end.
struct Fresh {
    next: AtomicU64,
    until: Instant,
    over: AtomicBool,
    found: Mutex<Found>,
}

impl Fresh {
    fn work(&self, watch: &AtomicU64) {
        let (mut ops, mut histories, mut situations) = (0, 0, Situations::default());
        while Instant::now() < self.until && !self.over.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            // Of eight, one has two devices and one has three.
            let seed = seed | (seed % 8).saturating_sub(5) << DEVICES_SHIFT;
            watch.store(seed, Ordering::Relaxed);
            let outcome = run(seed, None, Tell::Nothing);
            (ops, histories) = (ops + outcome.ops, histories + 1);
            situations.add(&outcome.situations);
            if let Some(failed) = outcome.failed {
                let failures = &mut self.found.lock().expect("nobody panics under it").failures;
                failures.push((seed, failed));
                self.over.fetch_or(failures.len() >= FAILURES_MAX, Ordering::Relaxed);
            }
        }
        watch.store(u64::MAX, Ordering::Relaxed);
        let mut found = self.found.lock().expect("nobody panics under it");
        found.histories += histories;
        found.ops += ops;
        found.situations.add(&situations);
        found.cpu += thread_cpu();
    }

    /// Ends the process where a history does not end.
    fn watch(watches: &[AtomicU64]) {
        let mut seen: Vec<(u64, Instant)> = vec![(0, Instant::now()); watches.len()];
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now: Vec<u64> = watches.iter().map(|w| w.load(Ordering::Relaxed)).collect();
            if now.iter().all(|seed| *seed == u64::MAX) {
                return;
            }
            for (seen, seed) in seen.iter_mut().zip(now) {
                if seen.0 != seed {
                    *seen = (seed, Instant::now());
                } else if seen.1.elapsed() > HANGS && seed != u64::MAX {
                    println!("history {seed} does not end: replay it with KEYSTOW_SIM_SEED={seed}");
                    std::process::abort();
                }
            }
        }
    }
}

/// What this thread has used; the machine's load does not count.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
}

#[test]
fn histories_fresh() {
    let seconds = number_from("KEYSTOW_SIM_SECONDS").unwrap_or(FRESH_SECONDS);
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let by_time = unix.map_or(0, |since| since.as_micros() as u64);
    let first = number_from("KEYSTOW_SIM_FIRST").unwrap_or(by_time);
    let fresh = &Fresh {
        next: AtomicU64::new(first),
        until: Instant::now() + Duration::from_secs(seconds),
        over: AtomicBool::new(false),
        found: Mutex::default(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let watches: &Vec<AtomicU64> = &(0..threads).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        watches.iter().for_each(|watch| drop(scope.spawn(move || fresh.work(watch))));
        scope.spawn(move || Fresh::watch(watches));
    });
    let mut found = fresh.found.lock().expect("nobody panics under it");
    let Found { failures, situations, histories, ops, cpu } = &mut *found;
    let rate = *ops as f64 / cpu.as_secs_f64();
    print!("{situations}");
    println!(
        "{histories} histories from seed {first} on, {ops} checked operations, {rate:.0} a \
              second of a core's time"
    );
    failures.iter().for_each(|(seed, failed)| println!("{seed}: {failed:?}"));
    if let Some((seed, failed)) = failures.first() {
        panic!("{}", report(*seed, failed));
    }
    let missing = situations.missing();
    assert!(*ops < ALL_SITUATIONS_OPS || missing.is_empty(), "never came: {missing:?}");
}

#[test]
fn histories_saved() {
    for line in SAVED.lines().filter(|line| !line.starts_with('#')) {
        let (seed, what) = line.split_once(' ').expect("a seed and what it found");
        let seed = seed.parse().expect("a seed is a number");
        if let Some(failed) = run(seed, None, Tell::Nothing).failed {
            panic!("{what}, again: {}", report(seed, &failed));
        }
    }
}

#[test]
fn histories_replay() {
    let Some(seed) = number_from("KEYSTOW_SIM_SEED") else { return };
    if let Some(failed) = run(seed, None, Tell::AtOnce).failed {
        panic!("{}", report(seed, &failed));
    }
}
