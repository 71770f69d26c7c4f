//! Callers' memory as numbered rows: what a put reads from and a get writes to.
//!
//! Owns: addresses and lengths of rows for the length of one call. Never does: copying, or keeping
//! memory alive after the lifetime it was given. Invariant: every row handed out is memory that
//! the maker of the value vouched for.
//!
//! `RowsMut` may be shared by threads of one call, each on bytes of its own: whoever shares it asks
//! `overlap` first. Another writer of a row would be the caller's race, as with any shared buffer.

use std::marker::PhantomData;

/// Rows to read from.
#[derive(Debug)]
pub struct Rows<'a> {
    form: Form<*const u8>,
    owner: PhantomData<&'a [u8]>,
}

/// Rows to write to.
#[derive(Debug)]
pub struct RowsMut<'a> {
    form: Form<*mut u8>,
    owner: PhantomData<&'a mut [u8]>,
}

#[derive(Debug)]
enum Form<P> {
    /// `count` rows of `row_bytes`, one after the other.
    Packed { base: P, row_bytes: usize, count: usize },
    /// Rows anywhere, of any length.
    List(Vec<(P, usize)>),
}

// SAFETY: a value is a list of addresses whose memory lives for 'a whatever thread asks; reading
// shared memory is allowed from all threads.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}
// SAFETY: exclusive memory may be written by whichever thread holds the value.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: a shared value gives addresses only; who writes through them (`Arena::read`, `read_many`)
// gives no two threads the same bytes, see the module's text.
unsafe impl Sync for RowsMut<'_> {}

impl<P: Copy> Form<P> {
    fn len(&self) -> usize {
        match self {
            Self::Packed { count, .. } => *count,
            Self::List(rows) => rows.len(),
        }
    }

    #[inline]
    fn row(&self, index: usize, add: impl Fn(P, usize) -> P) -> (P, usize) {
        match self {
            Self::Packed { base, row_bytes, count } => {
                assert!(index < *count, "row {index} of {count}");
                (add(*base, index * row_bytes), *row_bytes)
            }
            Self::List(rows) => rows[index],
        }
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        let (packed, list) = match self {
            Self::Packed { row_bytes, count, .. } => ((*count > 0).then_some(*row_bytes), None),
            Self::List(rows) => (None, Some(rows.iter().map(|row| row.1))),
        };
        packed.into_iter().chain(list.into_iter().flatten())
    }
}

/// Number of whole rows; a rest would be a caller's error in the size of a row.
fn row_count(bytes: usize, row_bytes: usize) -> usize {
    assert!(row_bytes > 0 && bytes.is_multiple_of(row_bytes), "{bytes} bytes in {row_bytes}s");
    bytes / row_bytes
}

impl<'a> Rows<'a> {
    /// Rows of `row_bytes`, one after the other; `bytes` must be a multiple of it.
    pub fn packed(bytes: &'a [u8], row_bytes: usize) -> Self {
        let count = row_count(bytes.len(), row_bytes);
        // SAFETY: the slice is borrowed for 'a and holds exactly `count` rows.
        unsafe { Self::from_raw_packed(bytes.as_ptr(), row_bytes, count) }
    }

    /// One row a slice.
    pub fn list(rows: &[&'a [u8]]) -> Self {
        let rows = rows.iter().map(|row| (row.as_ptr(), row.len())).collect();
        // SAFETY: every slice is borrowed for 'a.
        unsafe { Self::from_raw_list(rows) }
    }

    /// Rows of `row_bytes`, one after the other from `base`.
    ///
    /// # Safety
    /// `count * row_bytes` bytes from `base` must be readable, and written by nobody, for `'a`.
    pub unsafe fn from_raw_packed(base: *const u8, row_bytes: usize, count: usize) -> Self {
        Self { form: Form::Packed { base, row_bytes, count }, owner: PhantomData }
    }

    /// Rows by address and length.
    ///
    /// # Safety
    /// Each row must be readable, and written by nobody, for `'a`.
    pub unsafe fn from_raw_list(rows: Vec<(*const u8, usize)>) -> Self {
        Self { form: Form::List(rows), owner: PhantomData }
    }

    /// Address and length of a row.
    #[inline]
    pub(super) fn row(&self, index: usize) -> (*const u8, usize) {
        self.form.row(index, <*const u8>::wrapping_add)
    }
}

impl<'a> RowsMut<'a> {
    /// Rows of `row_bytes`, one after the other; `bytes` must be a multiple of it.
    pub fn packed(bytes: &'a mut [u8], row_bytes: usize) -> Self {
        let count = row_count(bytes.len(), row_bytes);
        // SAFETY: the slice is borrowed for 'a, exclusively, and holds exactly `count` rows.
        unsafe { Self::from_raw_packed(bytes.as_mut_ptr(), row_bytes, count) }
    }

    /// One row a slice.
    pub fn list(rows: &mut [&'a mut [u8]]) -> Self {
        let rows = rows.iter_mut().map(|row| (row.as_mut_ptr(), row.len())).collect();
        // SAFETY: every slice is borrowed for 'a, exclusively.
        unsafe { Self::from_raw_list(rows) }
    }

    /// Rows of `row_bytes`, one after the other from `base`.
    ///
    /// # Safety
    /// `count * row_bytes` bytes from `base` must be writable, and used by nobody else, for `'a`.
    pub unsafe fn from_raw_packed(base: *mut u8, row_bytes: usize, count: usize) -> Self {
        Self { form: Form::Packed { base, row_bytes, count }, owner: PhantomData }
    }

    /// Rows by address and length.
    ///
    /// # Safety
    /// Each row must be writable, and used by nobody else, for `'a`. Rows may be the same memory:
    /// then it holds one of the blocks, or a mixture.
    pub unsafe fn from_raw_list(rows: Vec<(*mut u8, usize)>) -> Self {
        Self { form: Form::List(rows), owner: PhantomData }
    }

    /// Copies `bytes` to the start of a row, which is at least as long.
    pub(crate) fn fill(&mut self, index: usize, bytes: &[u8]) {
        let (at, row_bytes) = self.row(index);
        assert!(bytes.len() <= row_bytes, "{} bytes in a row of {row_bytes}", bytes.len());
        // SAFETY: the row is writable and used by nobody else (the maker's contract), this value
        // is borrowed exclusively, and the bytes fit.
        unsafe { std::ptr::copy(bytes.as_ptr(), at, bytes.len()) };
    }

    /// Whether the first bytes of some rows, so many of each, share memory.
    pub(super) fn overlap(&self, rows: impl Iterator<Item = (usize, usize)>) -> bool {
        let ranges = rows.filter(|(_, len)| *len > 0);
        let ranges = ranges.map(|(row, len)| (self.row(row).0.addr(), len));
        let mut ranges: Vec<(usize, usize)> = ranges.collect();
        ranges.sort_unstable();
        ranges.windows(2).any(|two| two[1].0 - two[0].0 < two[0].1)
    }

    /// Address and length of a row.
    #[inline]
    pub(super) fn row(&self, index: usize) -> (*mut u8, usize) {
        self.form.row(index, <*mut u8>::wrapping_add)
    }
}

macro_rules! sizes {
    ($name:ident) => {
        impl $name<'_> {
            /// Number of rows.
            pub fn len(&self) -> usize {
                self.form.len()
            }

            /// Whether there are no rows.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Length of a row in bytes.
            pub fn row_bytes(&self, index: usize) -> usize {
                self.row(index).1
            }

            /// Length of the shortest row, 0 without rows.
            pub fn smallest_row(&self) -> usize {
                self.form.lengths().min().unwrap_or(0)
            }

            /// Length of the longest row, 0 without rows.
            pub fn largest_row(&self) -> usize {
                self.form.lengths().max().unwrap_or(0)
            }
        }
    };
}
sizes!(Rows);
sizes!(RowsMut);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_rows_follow_each_other() {
        let bytes: Vec<u8> = (0..12).collect();
        let rows = Rows::packed(&bytes, 4);
        assert_eq!((rows.len(), rows.smallest_row(), rows.largest_row()), (3, 4, 4));
        // SAFETY: the row is 4 bytes of `bytes`.
        assert_eq!(unsafe { *rows.row(2).0 }, 8);
    }

    #[test]
    fn listed_rows_have_their_own_lengths() {
        let (mut a, mut b) = ([1_u8; 3], [2_u8; 5]);
        let rows = RowsMut::list(&mut [&mut a, &mut b]);
        assert_eq!((rows.len(), rows.smallest_row(), rows.largest_row()), (2, 3, 5));
        assert_eq!((rows.row_bytes(0), rows.row_bytes(1)), (3, 5));
    }

    #[test]
    fn a_fill_writes_the_start_of_its_row_only() {
        let mut bytes = [0_u8; 9];
        let mut rows = RowsMut::packed(&mut bytes, 3);
        rows.fill(1, &[7, 8]);
        rows.fill(2, &[]);
        assert_eq!(bytes, [0, 0, 0, 7, 8, 0, 0, 0, 0]);
    }

    #[test]
    fn rows_overlap_where_they_share_a_byte() {
        let mut bytes = [0_u8; 16];
        let base = bytes.as_mut_ptr();
        let at = |offset: usize, len| (base.wrapping_add(offset), len);
        // SAFETY: the rows lie in `bytes`, and nothing is written through them.
        let rows = unsafe {
            RowsMut::from_raw_list(vec![at(8, 8), at(0, 8), at(7, 2), at(4, 0), at(0, 1)])
        };
        let overlap = |some: &[(usize, usize)]| rows.overlap(some.iter().copied());
        assert!(!overlap(&[(0, 8), (1, 8), (3, 0)]));
        assert!(overlap(&[(0, 8), (2, 2)]) && overlap(&[(2, 1), (1, 8)]));
        assert!(!overlap(&[(0, 8), (2, 1), (1, 7)]));
        assert!(overlap(&[(1, 1), (4, 1)]) && overlap(&[(0, 1), (0, 1)]));
        assert!(!RowsMut::packed(&mut bytes, 4).overlap((0..4).map(|row| (row, 4))));
    }

    #[test]
    #[should_panic(expected = "4 bytes in a row of 3")]
    fn a_fill_beyond_its_row_is_refused() {
        RowsMut::packed(&mut [0; 9], 3).fill(1, &[0; 4]);
    }

    #[test]
    fn no_rows_are_fine() {
        let rows = Rows::packed(&[], 7);
        assert!(rows.is_empty());
        assert_eq!((rows.smallest_row(), Rows::list(&[]).largest_row()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "row 3 of 3")]
    fn a_row_outside_is_refused() {
        Rows::packed(&[0; 12], 4).row_bytes(3);
    }

    #[test]
    #[should_panic(expected = "13 bytes in 4s")]
    fn a_rest_is_refused() {
        Rows::packed(&[0; 13], 4);
    }
}
