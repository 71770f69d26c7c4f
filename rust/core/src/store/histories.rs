//! Histories over the simulated disk: any operations, any crash, compared with a model after every
//! step.
//!
//! Owns: the loop over seeds and operations, and how a failure is told and replayed. Never does:
//! know how a store works inside; `model` knows what may be read, `oracles` and `restart` what must
//! hold, `plan` what is drawn. Invariant: a seed is a history, for ever the same; each operation
//! draws from a stream of its own, so that a history with operations left out is one too.

mod history;
mod mischief;
mod model;
mod oracles;
mod plan;
mod restart;
mod situations;

use crate::io::Rng;
use history::{Done, History};
use plan::Plan;
use situations::{Situations, What};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// No operation asks the disk so often, however long it waits.
const REAPS_MAX: u64 = 100_000;

/// What a call may take beyond its timeouts: a few healthy transfers.
const SLACK: Duration = Duration::from_millis(200);

static WATCH: AtomicU64 = AtomicU64::new(0);

/// How one history went.
struct Outcome {
    ops: u64,
    failed: Option<(u32, String)>,
    trace: Vec<String>,
    situations: Situations,
}

/// What an operation is, as often as its weight says.
#[derive(Clone, Copy)]
enum Verb {
    Put,
    Get,
    GetEach,
    Lease,
    DropLease,
    Hint,
    Match,
    Remove,
    Clear,
    Flush,
    Close,
    Time,
    Mischief,
}

fn draw(history: &mut History) -> Verb {
    let deletes = history.plan.deletes;
    let weights = [
        (120, Verb::Put),
        (90, Verb::Get),
        (16, Verb::GetEach),
        (16, Verb::Lease),
        (16, Verb::DropLease),
        (16, Verb::Hint),
        (12, Verb::Match),
        (12 * deletes, Verb::Remove),
        (deletes, Verb::Clear),
        (4, Verb::Flush),
        (1, Verb::Close),
        (64, Verb::Time),
        (8, Verb::Mischief),
    ];
    let mut drawn = history.rng.below(weights.iter().map(|(weight, _)| weight).sum());
    for (weight, verb) in weights {
        if drawn < weight {
            return verb;
        }
        drawn -= weight;
    }
    Verb::Time
}

impl History {
    /// No call waits longer than it may.
    fn in_time(&self, verb: Verb, begun_us: u64) -> Done {
        let config = &self.plan.config;
        let transfers = |count: u32| config.io_timeout * count + SLACK;
        let most = match verb {
            Verb::Put => config.put_wait + transfers(2),
            Verb::Get | Verb::Lease | Verb::Remove | Verb::Clear => transfers(4),
            Verb::GetEach => transfers(16),
            Verb::Flush => history::FLUSH + transfers(2),
            Verb::Close | Verb::Time => return Ok(()),
            Verb::DropLease | Verb::Hint | Verb::Match | Verb::Mischief => Duration::ZERO,
        };
        let took = Duration::from_micros(self.now_us() - begun_us);
        if took > most {
            return Err(format!("a call took {took:?}, it may take {most:?}"));
        }
        Ok(())
    }
}

fn operation(history: &mut History) -> Done {
    let verb = draw(history);
    let before = history.sight();
    let what = match verb {
        Verb::Put => What::Put,
        Verb::Get | Verb::GetEach => What::Get,
        Verb::Remove => What::Remove,
        Verb::Clear => What::Clear,
        _ => What::Other,
    };
    match verb {
        Verb::Put => history.put()?,
        Verb::Get => history.get()?,
        Verb::GetEach => history.get_each()?,
        Verb::Lease => history.lease()?,
        Verb::DropLease => history.drop_lease()?,
        Verb::Hint => history.hint()?,
        Verb::Match => history.ask()?,
        Verb::Remove => history.remove()?,
        Verb::Clear => history.clear()?,
        Verb::Flush => history.flush().map(drop)?,
        // Another store from here on.
        Verb::Close => return history.close(),
        Verb::Time => history.pass_time(),
        Verb::Mischief => history.mischief(),
    }
    history.note_operation(what, &before);
    history.in_time(verb, before.now_us())
}

/// Runs a history, all of it or the operations that `keep` names.
fn run(seed: u64, keep: Option<&[bool]>, trace: bool, live: bool) -> Outcome {
    let mut outcome =
        Outcome { ops: 0, failed: None, trace: Vec::new(), situations: Situations::default() };
    let mut at = 0;
    let mut kept: Option<History> = None;
    let done = catch_unwind(AssertUnwindSafe(|| {
        let plan = Plan::draw(seed);
        let ops = plan.ops;
        let crashes = plan.crashes.clone();
        kept = Some(History::begin(plan, trace)?);
        let history = kept.as_mut().ok_or("no history")?;
        history.live = live;
        for op in 1..=ops {
            at = op;
            let crash = crashes.contains(&op);
            let skip = keep.is_some_and(|keep| keep.get(op as usize) == Some(&false));
            if skip {
                continue;
            }
            history.rng = Rng::new(seed ^ u64::from(op).wrapping_mul(0xD6E8_FEB8_6659_FD93));
            WATCH.store(seed, Ordering::Relaxed);
            history.disk(|disk| disk.faults(|faults| faults.reaps_left = REAPS_MAX));
            if trace {
                let now_us = history.now_us();
                history.say(|| format!("-- {op} at {now_us} us"));
            }
            if crash {
                history.audit()?;
                history.crash()?;
            } else {
                operation(history)?;
            }
            history.look()?;
            outcome.ops += 1;
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
        outcome.trace = history.trace.take().unwrap_or_default();
        outcome.situations = history.situations.clone();
    }
    // What is half done may panic again as it goes.
    if outcome.failed.is_some() {
        let _ = catch_unwind(AssertUnwindSafe(move || drop(kept)));
    }
    outcome
}

/// What kind of failure it is: its words without the numbers.
fn kind_of(failed: &(u32, String)) -> String {
    failed.1.chars().filter(|c| !c.is_ascii_digit()).take(48).collect()
}

/// Leaves out what the failure does not need.
fn shrink(seed: u64, failed: &(u32, String), time: Duration) -> Vec<bool> {
    let (begun, fails_at, kind) = (Instant::now(), failed.0, kind_of(failed));
    let alike = |fewer: &[bool]| {
        run(seed, Some(fewer), false, false).failed.is_some_and(|failed| kind_of(&failed) == kind)
    };
    let mut keep = vec![true; fails_at as usize + 1];
    let ops = Plan::draw(seed).ops as usize;
    keep.resize(ops + 1, false);
    let mut chunk = (fails_at as usize).div_ceil(2);
    while chunk > 0 {
        let mut at = 1;
        while at < fails_at as usize && begun.elapsed() < time {
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

fn report(seed: u64, failed: &(u32, String)) -> String {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let keep = shrink(seed, failed, Duration::from_secs(20));
    let short = run(seed, Some(&keep), true, false);
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

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn histories_fresh() {
    let seconds = number_from("KEYSTOW_SIM_SECONDS").unwrap_or(5);
    let first = number_from("KEYSTOW_SIM_FIRST").unwrap_or_else(|| {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        unix.map_or(0, |since| since.as_micros() as u64)
    });
    let begun = Instant::now();
    std::thread::spawn(|| {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = WATCH.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > Duration::from_secs(10) {
                println!("history {now} hangs");
                std::process::abort();
            }
        }
    });
    let found = Mutex::new(Vec::new());
    let (mut ops, mut seeds, mut situations) = (0, 0, Situations::default());
    while begun.elapsed() < Duration::from_secs(seconds) {
        let seed = first + seeds;
        let outcome = run(seed, None, false, false);
        (ops, seeds) = (ops + outcome.ops, seeds + 1);
        situations.add(&outcome.situations);
        if let Some(failed) = outcome.failed {
            found.lock().expect("no panic under it").push((seed, failed));
            if found.lock().expect("no panic under it").len() >= 20 {
                break;
            }
        }
    }
    print!("{situations}");
    println!("never: {:?}", situations.missing());
    let rate = ops as f64 / begun.elapsed().as_secs_f64();
    println!("{seeds} histories from seed {first}, {ops} operations, {rate:.0} a second");
    let found = found.into_inner().expect("no panic under it");
    for (seed, failed) in &found {
        println!("{seed}: {failed:?}");
    }
    if let Some((seed, failed)) = found.first() {
        panic!("{}", report(*seed, failed));
    }
}

#[test]
fn histories_replay() {
    let Some(seed) = number_from("KEYSTOW_SIM_SEED") else { return };
    let outcome = run(seed, None, true, true);
    if let Some(failed) = outcome.failed {
        panic!("{}", report(seed, &failed));
    }
}
