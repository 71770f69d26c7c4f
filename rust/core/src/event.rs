//! What happened to which key, for those who keep an index of their own.
//!
//! Owns: the bounded log. Never does: decide what happened. Invariants: sequence numbers grow by
//! one, also over entries that were dropped because nobody came to read them.

use crate::key::Key;
use std::collections::VecDeque;

/// Entries kept until somebody reads them; the oldest is dropped for the newest.
pub const EVENTS_MAX: usize = 1 << 16;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The block has come to this tier.
    Stored,
    /// The block was evicted or removed from this tier.
    Removed,
    /// Everything stored before is gone.
    Cleared,
}

/// One entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Position in the whole history of the store, from 0.
    pub sequence: u64,
    /// What happened.
    pub kind: EventKind,
    /// Whose block; none for `Cleared`.
    pub key: Option<Key>,
    /// Where: "ram" or "ssd"; "" for `Cleared`, which is everywhere.
    pub tier: &'static str,
}

/// The log.
#[derive(Default)]
pub(crate) struct EventLog {
    entries: VecDeque<Event>,
    next: u64,
    dropped: u64,
}

impl EventLog {
    pub(crate) fn add(&mut self, kind: EventKind, key: Option<Key>, tier: &'static str) {
        if self.entries.len() == EVENTS_MAX {
            self.entries.pop_front();
            self.dropped += 1;
        }
        self.entries.push_back(Event { sequence: self.next, kind, key, tier });
        self.next += 1;
    }

    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.entries).into()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unread_log_drops_its_oldest_and_counts() {
        let mut log = EventLog::default();
        for _ in 0..EVENTS_MAX + 3 {
            log.add(EventKind::Cleared, None, "ram");
        }
        assert_eq!(log.dropped(), 3);
        assert_eq!(log.take().first().map(|e| e.sequence), Some(3));
        log.add(EventKind::Cleared, None, "ram");
        assert_eq!(log.take()[0].sequence, EVENTS_MAX as u64 + 3);
    }
}
