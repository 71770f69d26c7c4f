//! Fixed arrays of atomics that start as zeros and never move: headers, bins, links.
//!
//! Owns: their memory, asked for in huge pages and faulted in only where it is used. Never does:
//! interpret what lies in it. Invariant: the length never changes; zeros are a valid `T`.

#[cfg(loom)]
pub(crate) use modelled::Slab;
#[cfg(not(loom))]
pub(crate) use real::Slab;

/// Types for which all-zero bytes are a valid value that needs no drop.
///
/// # Safety
/// The implementer must be made of integers and atomics of integers only.
pub(crate) unsafe trait Zeroed {}

#[cfg(not(loom))]
mod real {
    use super::Zeroed;
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    use std::ops::Deref;

    const HUGE_PAGE_BYTES: usize = 2 << 20;

    pub(crate) struct Slab<T: Zeroed> {
        map: *mut std::ffi::c_void,
        map_bytes: usize,
        items: *const T,
        len: usize,
    }

    // SAFETY: the slab hands out shared references only, and `Zeroed` types are atomics.
    unsafe impl<T: Zeroed + Sync> Sync for Slab<T> {}
    // SAFETY: as above; the mapping belongs to no thread.
    unsafe impl<T: Zeroed + Send> Send for Slab<T> {}

    impl<T: Zeroed> Slab<T> {
        /// `len` zeroed items. Panics where the address space is exhausted.
        pub(crate) fn new(len: usize) -> Self {
            let bytes = len.checked_mul(size_of::<T>()).expect("a size that fits the machine");
            let map_bytes = bytes + HUGE_PAGE_BYTES;
            // SAFETY: a fresh anonymous mapping at an address the kernel chooses.
            let map = unsafe {
                let access = ProtFlags::READ | ProtFlags::WRITE;
                mmap_anonymous(std::ptr::null_mut(), map_bytes, access, MapFlags::PRIVATE)
            }
            .expect("memory for the index");
            let skip = map.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
            // SAFETY: `skip` < HUGE_PAGE_BYTES, by which the mapping is longer than the items.
            let items = unsafe { map.cast::<u8>().add(skip) };
            if bytes >= HUGE_PAGE_BYTES {
                // Advice only: refused, the index works on small pages.
                // SAFETY: the range lies inside the mapping.
                let _ = unsafe { madvise(items.cast(), bytes, Advice::LinuxHugepage) };
            }
            Self { map, map_bytes, items: items.cast(), len }
        }

        pub(crate) fn bytes(&self) -> u64 {
            (self.len * size_of::<T>()) as u64
        }
    }

    impl<T: Zeroed> Deref for Slab<T> {
        type Target = [T];
        #[inline]
        fn deref(&self) -> &[T] {
            // SAFETY: `len` zeroed items lie there until drop; zeros are valid (`Zeroed`).
            unsafe { std::slice::from_raw_parts(self.items, self.len) }
        }
    }

    impl<T: Zeroed> Drop for Slab<T> {
        fn drop(&mut self) {
            // SAFETY: the mapping of `new`, unmapped once; nothing borrows it any more.
            let unmapped = unsafe { munmap(self.map, self.map_bytes) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

#[cfg(loom)]
mod modelled {
    use super::Zeroed;
    use std::ops::Deref;

    pub(crate) struct Slab<T: Zeroed>(Vec<T>);

    impl<T: Zeroed + Default> Slab<T> {
        pub(crate) fn new(len: usize) -> Self {
            Self((0..len).map(|_| T::default()).collect())
        }

        pub(crate) fn bytes(&self) -> u64 {
            (self.0.len() * size_of::<T>()) as u64
        }
    }

    impl<T: Zeroed> Deref for Slab<T> {
        type Target = [T];
        fn deref(&self) -> &[T] {
            &self.0
        }
    }
}
