//! The state word of a header: one `u64` that decides who may touch a block.
//!
//! Owns: the layout {generation 32, pins 20, hold 4, kind 4, flags 4} and every shift on it. Never
//! does: loads or stores. Invariant: a word with kind `Free` has no pins, hold or flags.

const PIN_ONE: u64 = 1 << 12;
const PIN_MAX: u32 = (1 << 20) - 1;
const HOLD_ONE: u64 = 1 << 8;
const KIND_SHIFT: u32 = 4;

/// Removed by the user: seen by no lookup, released by the leaf rule.
pub(crate) const HIDDEN: u64 = 1;
/// On the wake stack: not to be freed before the keeper took it from there.
pub(crate) const QUEUED: u64 = 2;
/// Passed by the RAM policy's cursor: its last pin, hold or child wakes it.
pub(crate) const SKIPPED: u64 = 4;
/// Passed by the SSD policy's cursor, likewise.
pub(crate) const SKIPPED_ON_SSD: u64 = 8;
/// Either of them: somebody wants to know when nothing keeps the block any more.
pub(crate) const AWAITED: u64 = SKIPPED | SKIPPED_ON_SSD;

/// What a header stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody's: on the free stack or never used.
    Free = 0,
    /// Dirty: a block whose bytes are in a frame and nowhere else.
    Ram = 1,
    /// Clean: in a frame and on SSD.
    Both = 2,
    /// On SSD only.
    Ssd = 3,
    /// On SSD, and on its way into a frame; held.
    Loading = 4,
    /// A key whose bytes are in no tier, kept because children name it.
    Hole = 5,
}

impl Kind {
    /// Bytes are in some tier: a lookup finds the block.
    pub(crate) fn is_there(self) -> bool {
        matches!(self, Self::Ram | Self::Both | Self::Ssd | Self::Loading)
    }

    /// Bytes can be read from a frame now.
    pub(crate) fn is_in_ram(self) -> bool {
        matches!(self, Self::Ram | Self::Both)
    }

    /// It occupies a frame: what the parent's `kids_ram` counts.
    pub(crate) fn has_frame(self) -> bool {
        matches!(self, Self::Ram | Self::Both | Self::Loading)
    }

    /// It occupies an SSD slot that its header names.
    pub(crate) fn has_ssd_slot(self) -> bool {
        matches!(self, Self::Both | Self::Ssd | Self::Loading)
    }
}

/// A state word, as loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(pub(crate) u64);

impl State {
    /// A live word of this generation with so many pins and no hold or flags.
    pub(crate) fn live(generation: u32, kind: Kind, pins: u32) -> Self {
        debug_assert!(kind != Kind::Free && pins <= PIN_MAX);
        Self(
            (u64::from(generation) << 32)
                | (u64::from(pins) * PIN_ONE)
                | ((kind as u64) << KIND_SHIFT)
                | if kind == Kind::Hole { SKIPPED } else { 0 },
        )
    }

    /// The free word that follows this generation.
    pub(crate) fn freed(self) -> Self {
        Self(u64::from(self.generation().wrapping_add(1)) << 32)
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) fn pins(self) -> u32 {
        ((self.0 / PIN_ONE) as u32) & PIN_MAX
    }

    pub(crate) fn held(self) -> bool {
        self.0 & (0xF * HOLD_ONE) != 0
    }

    pub(crate) fn kind(self) -> Kind {
        match (self.0 >> KIND_SHIFT) & 0xF {
            0 => Kind::Free,
            1 => Kind::Ram,
            2 => Kind::Both,
            3 => Kind::Ssd,
            4 => Kind::Loading,
            5 => Kind::Hole,
            other => unreachable!("kind {other} is not in use"),
        }
    }

    pub(crate) fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    pub(crate) fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    pub(crate) fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    pub(crate) fn with_kind(self, kind: Kind) -> Self {
        Self(self.0 & !(0xF << KIND_SHIFT) | (kind as u64) << KIND_SHIFT)
    }

    /// One pin more, or none where the count is full.
    pub(crate) fn pinned(self, count: u32) -> Option<Self> {
        (self.pins() + count <= PIN_MAX).then(|| Self(self.0 + u64::from(count) * PIN_ONE))
    }

    /// One pin less.
    pub(crate) fn unpinned(self) -> Self {
        assert!(self.pins() > 0, "an unpin without a pin");
        Self(self.0 - PIN_ONE)
    }

    /// With the one hold taken.
    pub(crate) fn hold(self) -> Self {
        debug_assert!(!self.held());
        Self(self.0 + HOLD_ONE)
    }

    /// With the hold given back.
    pub(crate) fn unhold(self) -> Self {
        assert!(self.held(), "a hold given back twice");
        Self(self.0 - HOLD_ONE)
    }

    /// Neither pinned nor held nor waiting on the wake stack.
    pub(crate) fn idle(self) -> bool {
        self.pins() == 0 && !self.held() && !self.has(QUEUED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_keeps_to_itself() {
        let word = State::live(u32::MAX, Kind::Ram, PIN_MAX).hold().with(HIDDEN | QUEUED | SKIPPED);
        assert_eq!((word.generation(), word.pins(), word.kind()), (u32::MAX, PIN_MAX, Kind::Ram));
        assert!(word.held() && word.has(HIDDEN) && word.has(QUEUED) && word.has(SKIPPED));
        assert_eq!(word.pinned(1), None);
        let word = word.unhold().unpinned().with_kind(Kind::Hole).without(QUEUED | HIDDEN);
        assert_eq!((word.pins(), word.kind(), word.held()), (PIN_MAX - 1, Kind::Hole, false));
        assert_eq!(word.freed(), State(0), "the generation wraps");
    }

    #[test]
    fn a_hole_is_born_skipped() {
        assert!(State::live(1, Kind::Hole, 1).has(SKIPPED));
        assert!(!State::live(1, Kind::Ram, 1).has(SKIPPED));
    }
}
