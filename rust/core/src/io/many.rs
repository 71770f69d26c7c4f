//! Several engines as one: each over the files of a device of its own.
//!
//! Owns: which engine a file is of. Never does: I/O. Invariants: the engines share one outbox, so
//! that one reaper waits for all; a device that hangs keeps its own engine busy and no other.

use std::sync::Arc;
use std::time::Duration;

use super::outbox::Outbox;
use super::{Completion, Engine, FileId, Request};

/// Engines, each with the number of its first file.
pub(crate) struct Many {
    engines: Vec<(u32, Box<dyn Engine>)>,
    outbox: Arc<Outbox>,
}

impl Many {
    /// One engine for all, in the order of their files, the first of which is 0. All complete into
    /// this outbox.
    pub(crate) fn over(
        mut engines: Vec<(u32, Box<dyn Engine>)>,
        outbox: Arc<Outbox>,
    ) -> Box<dyn Engine> {
        assert!(engines.is_sorted_by_key(|(first, _)| *first), "in the order of their files");
        match engines.pop() {
            Some((0, only)) if engines.is_empty() => only,
            last => {
                engines.extend(last);
                Box::new(Self { engines, outbox })
            }
        }
    }

    /// Whose a request is, and the request as that engine knows it.
    fn route(&self, request: &Request) -> (usize, Request) {
        let of = |(first, _): &(u32, Box<dyn Engine>)| *first <= request.file.0;
        let at = self.engines.iter().rposition(of).expect("a file of a device");
        let file = FileId(request.file.0 - self.engines[at].0);
        (at, Request { file, ..*request })
    }
}

impl Engine for Many {
    fn submit(&self, requests: &[Request]) {
        let mut of_each = vec![Vec::new(); self.engines.len()];
        for request in requests {
            let (at, request) = self.route(request);
            of_each[at].push(request);
        }
        for ((_, engine), requests) in self.engines.iter().zip(of_each) {
            if !requests.is_empty() {
                engine.submit(&requests);
            }
        }
    }

    fn carry_out(&self, request: &Request) -> Option<Completion> {
        let (at, request) = self.route(request);
        self.engines[at].1.carry_out(&request)
    }

    fn reap(&self, wait: Duration, into: &mut Vec<Completion>) {
        self.outbox.reap(wait, into);
    }

    fn wake(&self) {
        self.outbox.wake();
    }

    fn name(&self) -> &'static str {
        let first = self.engines[0].1.name();
        let alike = self.engines.iter().all(|(_, engine)| engine.name() == first);
        if alike { first } else { "mixed" }
    }

    fn direct(&self) -> bool {
        self.engines.iter().all(|(_, engine)| engine.direct())
    }

    fn registered_bytes(&self) -> u64 {
        self.engines.iter().map(|(_, engine)| engine.registered_bytes()).sum()
    }
}
