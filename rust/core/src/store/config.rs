//! What a store is asked to be, checked before anything is made.
//!
//! Owns: `StoreConfig` and its limits. Never does: read files or the environment. Invariant: a
//! configuration that passes `frames` can be opened unless the machine lacks the memory.

use crate::arena::{FRAME_ALIGN_BYTES, Prefault};
use crate::error::{Error, ErrorKind};
use std::time::Duration;

/// Largest block: 256 MiB.
pub const BLOCK_BYTES_MAX: u64 = 256 << 20;
/// Most frames of a store: header numbers are 32 bits, with room for holes.
pub const FRAMES_MAX: u64 = 1 << 31;

/// Which block leaves when room is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least recently used among the blocks without children.
    #[default]
    Lru,
    /// Adaptive: recency and frequency, balanced by what it regrets (Megiddo & Modha, FAST'03).
    Arc,
}

impl PolicyKind {
    /// The names that `parse` knows.
    pub const NAMES: &'static [&'static str] = &["lru", "arc"];

    /// The policy of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Lru, Self::Arc].into_iter().find(|kind| kind.name() == name)
    }

    /// The name of this policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Arc => "arc",
        }
    }
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes of RAM for blocks; the index comes on top and is shown in the stats.
    pub ram_bytes: u64,
    /// Largest payload of a block, 1 byte to 256 MiB; frames round it up to 4 KiB.
    pub block_bytes: u64,
    /// Which block leaves.
    pub policy: PolicyKind,
    /// For tests: no threads, no frames in reserve, all bookkeeping done when a call returns.
    pub deterministic: bool,
    /// For tests: time stands still until `Store::step` moves it.
    pub manual_clock: bool,
    /// When the RAM is faulted in.
    pub prefault: Prefault,
    /// How long a put may wait for calls in progress to give frames back.
    pub put_wait: Duration,
}

impl StoreConfig {
    /// A store of so much RAM for blocks of so many bytes, with the defaults.
    pub fn new(ram_bytes: u64, block_bytes: u64) -> Self {
        Self {
            ram_bytes,
            block_bytes,
            policy: PolicyKind::default(),
            deterministic: false,
            manual_clock: false,
            prefault: Prefault::Background,
            put_wait: Duration::from_secs(1),
        }
    }

    /// Frames and their stride in bytes.
    pub(crate) fn frames(&self) -> Result<(u32, u32), Error> {
        let error = |code, message: String, hint: &str| {
            Error::new(ErrorKind::Config, code, message, hint)
                .with("ram_bytes", self.ram_bytes)
                .with("block_bytes", self.block_bytes)
        };
        if self.block_bytes == 0 || self.block_bytes > BLOCK_BYTES_MAX {
            let message = format!(
                "blocks of {} bytes; 1 to {BLOCK_BYTES_MAX} are possible.",
                self.block_bytes
            );
            return Err(error("KS-CFG-001", message, "choose block_bytes= in that range."));
        }
        let stride = self.block_bytes.next_multiple_of(u64::from(FRAME_ALIGN_BYTES));
        let frames = self.ram_bytes / stride;
        if frames == 0 {
            let message = format!(
                "{} bytes of RAM hold no block of {} bytes (frames take {stride}).",
                self.ram_bytes, self.block_bytes
            );
            return Err(error("KS-CFG-002", message, "raise ram= to one block or more."));
        }
        if frames > FRAMES_MAX {
            let message = format!("{frames} frames; {FRAMES_MAX} are possible.");
            return Err(error("KS-CFG-003", message, "raise block_bytes= or lower ram=."));
        }
        Ok((frames as u32, stride as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_rounded_to_pages_and_ram_is_never_exceeded() {
        let frames = |ram, block| StoreConfig::new(ram, block).frames().map_err(|e| e.code);
        assert_eq!(frames(3 * 8192 - 1, 5000), Ok((2, 8192)));
        assert_eq!(frames(4096, 1), Ok((1, 4096)));
        assert_eq!(frames(4095, 1), Err("KS-CFG-002"));
        assert_eq!(frames(1 << 30, 0), Err("KS-CFG-001"));
        assert_eq!(frames(1 << 30, BLOCK_BYTES_MAX + 1), Err("KS-CFG-001"));
        assert_eq!(frames(u64::MAX, 4096), Err("KS-CFG-003"));
    }

    #[test]
    fn policies_know_their_names() {
        for name in PolicyKind::NAMES {
            assert_eq!(PolicyKind::parse(name).map(PolicyKind::name), Some(*name));
        }
        assert_eq!(PolicyKind::parse("mru"), None);
    }
}
