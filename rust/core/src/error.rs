//! What can go wrong, as a closed list with stable codes.
//!
//! Owns: `Error`, `ErrorKind`. Never does: formatting for one language; the binding turns an
//! `Error` into an exception of its own. Invariant: a code never changes its meaning; the message
//! holds the numbers, the hint the way out.

use std::fmt;

/// The class of an error: what the caller should do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A setting is unknown, absurd or beyond the machine: change it.
    Config,
    /// Keys of another fingerprint, length or form: make them with this store.
    KeyFormat,
    /// Memory of the wrong size, dtype, layout or mutability: pass other memory.
    Layout,
    /// Asked for more blocks than can be had now: ask for fewer, or release leases.
    Capacity,
    /// The store is closed, or this process is a fork of its owner: open a store here.
    Closed,
    /// Another store has the directory open: close it, or use another member.
    Locked,
    /// A directory, or what is in it, is in a form that this version can't read.
    Format,
    /// The disk or its directory did not do what was asked: see the path and the errno.
    Ssd,
}

/// An error with its kind, stable code, message, way out and the numbers behind it.
#[derive(Clone, Debug)]
pub struct Error {
    /// What the caller should do.
    pub kind: ErrorKind,
    /// Stable code, for example `KS-CFG-001`.
    pub code: &'static str,
    /// What happened, with the numbers.
    pub message: String,
    /// The way out, one sentence.
    pub hint: String,
    /// The numbers of the message by name.
    pub context: Vec<(&'static str, String)>,
}

impl Error {
    /// A new error without context pairs.
    pub fn new(
        kind: ErrorKind,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { kind, code, message: message.into(), hint: hint.into(), context: Vec::new() }
    }

    /// Adds one number of the message by name.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.context.push((name, value.to_string()));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]: {} Hint: {}", self.code, self.message, self.hint)
    }
}

impl std::error::Error for Error {}
