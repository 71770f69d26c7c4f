//! Newtypes for the numbers that must not be mixed: a header is not a frame, a count is not an
//! index.
//!
//! Owns: `Slot` (a header of the directory), `FrameId` (room for one block in the arena), `SsdSlot`
//! (room for one block on disk). Never does: anything but conversions. Invariant: `NONE` is no
//! valid index of any.

/// The number that stands for "none" wherever a `u32` index is stored.
pub const NONE: u32 = u32::MAX;

/// Number of a header in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an index of an array.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Number of a frame in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(pub u32);

impl FrameId {
    /// The frame as an index of an array.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Number of a block's place on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SsdSlot(pub u32);

impl SsdSlot {
    /// The place as an index of an array.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
