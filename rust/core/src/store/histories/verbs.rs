//! Which operation comes next, and what is checked of any of them.
//!
//! Owns: the weights, and how long a call may take. Never does: keep the model; each verb does.

use super::history::{Done, FLUSH, History};
use super::situations::What;
use std::time::Duration;

/// What a call may take beyond its timeouts: a few healthy transfers.
const SLACK: Duration = Duration::from_millis(200);

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
    Scrub,
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
        (2, Verb::Scrub),
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
            Verb::Get | Verb::GetEach | Verb::Lease | Verb::Remove | Verb::Clear => transfers(4),
            Verb::Flush | Verb::Scrub => FLUSH + transfers(2),
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

/// Draws an operation, does it and checks what is true of any.
pub(super) fn operation(history: &mut History) -> Done {
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
        Verb::Scrub => history.scrub()?,
        Verb::Remove => history.remove()?,
        Verb::Clear => history.clear().map(drop)?,
        Verb::Flush => history.flush().map(drop)?,
        // Another store from here on.
        Verb::Close => return history.close(),
        Verb::Time => history.pass_time(),
        Verb::Mischief => history.mischief(),
    }
    history.note_operation(what, &before);
    history.in_time(verb, before.now_us())
}
