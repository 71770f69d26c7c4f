//! The SSD tier's own things: bytes on disk, the table's image, free slots, recovery, admission.
//!
//! Owns: format v1 (`FORMAT.md`), the directory on disk and what is known of it. Never does: I/O on
//! blocks, threads, clocks or choices about the RAM tier. Invariants: nothing read from disk is
//! trusted for a length, count or offset; a slot is free, used or quarantined, never two of them.

pub(crate) mod admit;
pub(crate) mod changes;
pub(crate) mod dir;
pub(crate) mod follow;
pub(crate) mod format;
pub(crate) mod reads;
pub(crate) mod recover;
pub(crate) mod slots;
pub(crate) mod table;
