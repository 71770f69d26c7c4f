//! Admission: which chains are worth a write to the disk.
//!
//! Owns: the budget of bytes a second as a token bucket, and the keys that it refused lately.
//! Never does: I/O, read a clock, or choose victims. Invariants: the budget's debt is bounded by
//! `DEBT_S` seconds of it, or by one chain longer than its burst; memory of refusals is bounded.

use std::collections::{HashSet, VecDeque};

/// Chains with a reason may be written ahead of the budget by this many seconds of it.
const DEBT_S: u64 = 4;
/// The bucket holds at least so many blocks, lest a small budget write nothing at all.
const BURST_BLOCKS_MIN: u64 = 4;
/// Refused keys remembered at most.
pub(crate) const REFUSED_MAX: usize = 1 << 20;
/// Refused keys remembered for each block that the store has room for.
const REFUSED_A_PLACE: usize = 2;
const MICROS_A_SECOND: i128 = 1_000_000;

/// How to admit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdmitConfig {
    /// `None`: everything is written.
    pub(crate) write_bytes_per_s: Option<u64>,
    pub(crate) block_bytes: u64,
    /// Frames and SSD slots of the store.
    pub(crate) places: u64,
}

/// What speaks for a chain, besides budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reasons {
    /// One of its blocks was hit since it was put.
    pub(crate) hit: bool,
    /// A block below it is on the disk already, and worth nothing without it.
    pub(crate) child_on_ssd: bool,
    /// The caller said so.
    pub(crate) hinted: bool,
}

/// Whether to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Write,
    Refuse,
}

/// Decisions so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AdmitCounts {
    /// Within the budget, or without one.
    pub(crate) written_under: u64,
    /// Beyond the budget, for a reason.
    pub(crate) written_over: u64,
    pub(crate) refused: u64,
}

/// The bucket, in millionths of a byte so that no time is lost to rounding.
struct Bucket {
    bytes_per_s: u64,
    level: i128,
    burst: i128,
    floor: i128,
    filled_at_us: u64,
}

impl Bucket {
    fn new(bytes_per_s: u64, block_bytes: u64, now_us: u64) -> Self {
        let scaled = |bytes: u64| i128::from(bytes) * MICROS_A_SECOND;
        let burst = scaled(bytes_per_s.max(block_bytes.saturating_mul(BURST_BLOCKS_MIN)));
        let floor = -scaled(bytes_per_s) * i128::from(DEBT_S);
        Self { bytes_per_s, level: burst, burst, floor, filled_at_us: now_us }
    }

    fn fill(&mut self, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.filled_at_us);
        self.filled_at_us = self.filled_at_us.max(now_us);
        let gained = i128::from(self.bytes_per_s).saturating_mul(i128::from(elapsed_us));
        self.level = self.level.saturating_add(gained).min(self.burst);
    }
}

/// The judge.
pub(crate) struct Admission {
    bucket: Option<Bucket>,
    /// The same keys twice: to ask, and in the order of their refusal.
    refused: HashSet<u64>,
    refusals: VecDeque<u64>,
    remembered_max: usize,
    counts: AdmitCounts,
}

impl Admission {
    pub(crate) fn new(config: &AdmitConfig, now_us: u64) -> Self {
        let places = usize::try_from(config.places).unwrap_or(usize::MAX);
        let bucket = |rate| Bucket::new(rate, config.block_bytes, now_us);
        Self {
            bucket: config.write_bytes_per_s.map(bucket),
            refused: HashSet::new(),
            refusals: VecDeque::new(),
            remembered_max: places.saturating_mul(REFUSED_A_PLACE).min(REFUSED_MAX),
            counts: AdmitCounts::default(),
        }
    }

    /// Decides about a chain of `bytes` as a whole, and spends them if it is to be written. `key`
    /// is the words of the one key by which the chain is known again.
    pub(crate) fn decide(
        &mut self,
        now_us: u64,
        bytes: u64,
        reasons: Reasons,
        key: [u64; 2],
    ) -> Verdict {
        let Some(bucket) = &mut self.bucket else {
            self.counts.written_under += 1;
            return Verdict::Write;
        };
        bucket.fill(now_us);
        let cost = i128::from(bytes) * MICROS_A_SECOND;
        // A chain longer than the burst needs a full bucket, and is paid for afterwards.
        if bucket.level >= cost.min(bucket.burst) {
            bucket.level -= cost;
            self.counts.written_under += 1;
            return Verdict::Write;
        }
        let after = bucket.level - cost;
        let name = key[0] ^ key[1].rotate_left(32);
        let reason = reasons.hit || reasons.hinted || self.refused.contains(&name);
        if after >= bucket.floor && reason {
            bucket.level = after;
        } else if reasons.child_on_ssd {
            bucket.level = after.max(bucket.floor.min(bucket.level));
        } else {
            self.remember(name);
            self.counts.refused += 1;
            return Verdict::Refuse;
        }
        self.counts.written_over += 1;
        Verdict::Write
    }

    pub(crate) fn counts(&self) -> AdmitCounts {
        self.counts
    }

    fn remember(&mut self, name: u64) {
        if self.remembered_max == 0 || !self.refused.insert(name) {
            return;
        }
        self.refusals.push_back(name);
        if self.refusals.len() > self.remembered_max {
            let oldest = self.refusals.pop_front().expect("there is more than one");
            self.refused.remove(&oldest);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
