//! A trace in memory: requests as sequences of dense block numbers.
//!
//! Owns: the numbering of ids and the reading of JSON lines. Never does: open files or decompress.
//! Invariants: numbers are dense from 0 in order of first appearance; a malformed line adds
//! nothing and is located.

use serde::Deserialize;
use std::collections::HashMap;

/// Malformed lines remembered by number; more are only counted.
const MALFORMED_SHOWN_MAX: usize = 8;

/// A line that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Line number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

#[derive(Deserialize)]
struct Line {
    hash_ids: Vec<i128>,
}

/// Requests, each a chain of blocks, head first.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    numbers: HashMap<i128, u32>,
    blocks: Vec<u32>,
    /// Where each request ends in `blocks`.
    ends: Vec<usize>,
    lines: u64,
    malformed: u64,
    shown: Vec<Malformed>,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl Trace {
    /// Adds one request; an empty one counts.
    pub fn push(&mut self, ids: impl IntoIterator<Item = i128>) {
        for id in ids {
            let next = self.numbers.len() as u32;
            self.blocks.push(*self.numbers.entry(id).or_insert(next));
        }
        self.ends.push(self.blocks.len());
    }

    /// Adds the requests of a piece of a JSONL file: an object with `hash_ids` on each line. Lines
    /// may be cut anywhere between pieces; blank ones are passed over.
    pub fn feed(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(&rest[..end]);
            self.line(&line);
            rest = &rest[end + 1..];
        }
        self.partial.extend_from_slice(rest);
    }

    /// Ends the file: a last line without a newline is taken in. The next piece begins with line
    /// 1 of another file.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.partial);
        if !line.is_empty() {
            self.line(&line);
        }
        self.lines = 0;
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        if line.trim_ascii().is_empty() {
            return;
        }
        // Serde would take an array's first item for the field.
        if !line.trim_ascii_start().starts_with(b"{") {
            return self.refuse("not a JSON object".into());
        }
        match serde_json::from_slice::<Line>(line) {
            Ok(line) => self.push(line.hash_ids),
            Err(error) => self.refuse(error.to_string()),
        }
    }

    fn refuse(&mut self, why: String) {
        self.malformed += 1;
        if self.shown.len() < MALFORMED_SHOWN_MAX {
            self.shown.push(Malformed { line: self.lines, why });
        }
    }

    /// The requests, in order.
    pub fn requests(&self) -> impl Iterator<Item = &[u32]> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let request = &self.blocks[start..*end];
            start = *end;
            request
        })
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Block references of all requests.
    pub fn refs(&self) -> usize {
        self.blocks.len()
    }

    /// Different blocks.
    pub fn unique(&self) -> usize {
        self.numbers.len()
    }

    /// How many lines were malformed, and the first of them.
    pub fn malformed(&self) -> (u64, &[Malformed]) {
        (self.malformed, &self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_may_be_cut_anywhere() {
        let file =
            b"{\"hash_ids\": [7, -1, 7]}\n\n{\"x\": 1, \"hash_ids\": []}\n{\"hash_ids\": [9]}";
        for piece in 1..file.len() {
            let mut trace = Trace::default();
            file.chunks(piece).for_each(|chunk| trace.feed(chunk));
            trace.finish();
            let requests: Vec<_> = trace.requests().map(<[u32]>::to_vec).collect();
            assert_eq!(requests, [vec![0, 1, 0], vec![], vec![2]], "pieces of {piece}");
            assert_eq!((trace.len(), trace.refs(), trace.unique()), (3, 4, 3));
        }
    }

    #[test]
    fn malformed_lines_are_counted_and_located() {
        let mut trace = Trace::default();
        trace.feed(b"{\"hash_ids\": [1]}\nnot json\n{\"hash_ids\": \"x\"}\n{}\n\xff\n[[1]]");
        trace.finish();
        trace.feed(b"\n{\"hash_ids\": [1.5]}\n");
        let (count, shown) = trace.malformed();
        assert_eq!((count, trace.len()), (6, 1));
        assert_eq!(shown.iter().map(|m| m.line).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 2]);
        assert!(shown[2].why.contains("hash_ids"), "{}", shown[2].why);
    }
}
