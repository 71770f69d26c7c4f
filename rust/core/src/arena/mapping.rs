//! One anonymous mapping on a 2 MiB boundary, fenced, kept out of forks and core dumps.
//!
//! Owns: the address range, from `mmap` to `munmap`. Never does: reading or writing it, or
//! faulting it in. Invariants: `at` never answers with an address outside the range; a forked
//! child never unmaps (its kernel removed the range, something else may live there by then).

use std::ffi::c_void;
use std::fs;
use std::ptr;

use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

use super::fork::fork_count;
use crate::error::{Error, ErrorKind};

/// Size and alignment of a huge page.
pub(super) const HUGE_PAGE_BYTES: u64 = 2 << 20;
const PAGE_BYTES: usize = 4096;
/// Unmapped room before and after: an overrun faults, and no neighbour merges with the mapping,
/// so that its line in smaps is ours alone.
const FENCE_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    bytes: u64,
    reserved: *mut c_void,
    reserved_bytes: usize,
    forks_at_birth: u64,
    refused: Vec<String>,
}

// SAFETY: the struct is an address range and never changes; who may touch the bytes behind it is
// the contract of `Arena`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` (a multiple of 4 KiB) of zeros.
    pub(super) fn new(bytes: u64) -> Result<Self, Error> {
        let forks_at_birth = fork_count();
        let refuse = |what: &str, errno: rustix::io::Errno| {
            Error::new(
                ErrorKind::Config,
                "KS-CFG-103",
                format!("The kernel refused to map {bytes} bytes ({what}: {errno})."),
                "Lower ram=, or raise the limit on address space (ulimit -v).",
            )
            .with("ram_bytes", bytes)
        };
        let reserved_bytes = usize::try_from(bytes + HUGE_PAGE_BYTES + 2 * FENCE_BYTES)
            .map_err(|_| refuse("mmap", rustix::io::Errno::NOMEM))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let reserved = unsafe {
            mm::mmap_anonymous(ptr::null_mut(), reserved_bytes, ProtFlags::empty(), flags)
        }
        .map_err(|errno| refuse("mmap", errno))?;
        let start = (reserved as u64 + FENCE_BYTES).next_multiple_of(HUGE_PAGE_BYTES);
        let base = reserved.cast::<u8>().wrapping_add((start - reserved as u64) as usize);
        let mut mapping =
            Self { base, bytes, reserved, reserved_bytes, forks_at_birth, refused: Vec::new() };
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range lies inside the reservation made above, which nobody else knows.
        unsafe { mm::mprotect(base.cast(), bytes as usize, access) }
            .map_err(|errno| refuse("mprotect", errno))?;
        mapping.advise(Advice::LinuxDontFork, "MADV_DONTFORK (a fork copies the arena)");
        mapping.advise(Advice::LinuxDontDump, "MADV_DONTDUMP (core dumps hold the arena)");
        if bytes >= HUGE_PAGE_BYTES {
            mapping.advise(Advice::LinuxHugepage, "MADV_HUGEPAGE (copies and I/O cost more CPU)");
        }
        Ok(mapping)
    }

    fn advise(&mut self, advice: Advice, what: &str) {
        // SAFETY: advice on our own mapping that changes no byte of it in this process.
        if let Err(errno) = unsafe { mm::madvise(self.base.cast(), self.bytes as usize, advice) } {
            self.tell(format!("{what} was refused: {errno}"));
        }
    }

    /// Keeps a sentence on what the kernel did not do.
    pub(super) fn tell(&mut self, sentence: String) {
        self.refused.push(sentence);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the kernel refused when the range was mapped.
    pub(super) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// Address of `len` bytes from `offset`.
    #[inline]
    pub(super) fn at(&self, offset: u64, len: u32) -> *mut u8 {
        let fits = offset <= self.bytes && u64::from(len) <= self.bytes - offset;
        assert!(fits, "{len} bytes at {offset} of an arena of {}", self.bytes);
        self.base.wrapping_add(offset as usize)
    }

    /// Whole huge pages that fit in the range.
    pub(super) fn huge_bytes_possible(&self) -> u64 {
        self.bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    }

    /// Bytes of the range that lie in huge pages now, as smaps tells.
    pub(super) fn huge_bytes_now(&self) -> u64 {
        if self.huge_bytes_possible() == 0 {
            return 0; // Reading smaps costs milliseconds in a large process.
        }
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let start = self.base as u64;
        huge_bytes_in(&smaps, start, start + self.bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if fork_count() != self.forks_at_birth {
            return;
        }
        // SAFETY: the reservation is ours since `new`; nobody uses it any more, because pointers
        // into it keep the arena alive and the prefault threads ended before.
        let unmapped = unsafe { mm::munmap(self.reserved, self.reserved_bytes) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// Sum of AnonHugePages over the areas of smaps that lie inside start..end.
fn huge_bytes_in(smaps: &str, start: u64, end: u64) -> u64 {
    let mut inside = false;
    let mut kib = 0;
    for line in smaps.lines() {
        if let Some(area) = area_of(line) {
            inside = area.0 >= start && area.1 <= end;
        } else if let Some(rest) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
            kib += rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        }
    }
    kib * 1024
}

/// The range of a head line of smaps, `7f00-7f80 rw-p ...`; other lines have a colon first.
fn area_of(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Room for so many items, in huge pages if it is large; only what is used of it is touched.
pub(crate) fn room_for<T>(items: usize) -> Vec<T> {
    let mut room = Vec::with_capacity(items);
    prefer_huge_pages(room.spare_capacity_mut());
    room
}

/// Asks for the cache line of an item of a table ahead of its use.
#[inline]
pub(crate) fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of a valid reference has no effect but on the cache.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}

/// Asks for huge pages under a large table of ours, best before it is touched. Advice only: where
/// it is refused, the table works on small pages.
pub(crate) fn prefer_huge_pages<T>(table: &[T]) {
    let begin = table.as_ptr().cast::<u8>();
    let start = begin.align_offset(PAGE_BYTES);
    let len = size_of_val(table).saturating_sub(start) / PAGE_BYTES * PAGE_BYTES;
    if len >= HUGE_PAGE_BYTES as usize {
        // SAFETY: whole pages inside a live borrow; this advice changes no byte of them.
        let _ = unsafe {
            let pages = begin.add(start).cast_mut();
            mm::madvise(pages.cast(), len, Advice::LinuxHugepage)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_on_a_huge_page_and_is_zero() {
        for bytes in [4096, 5 * 4096, HUGE_PAGE_BYTES + 4096] {
            let mapping = Mapping::new(bytes).expect("map");
            assert_eq!(mapping.at(0, 1) as u64 % HUGE_PAGE_BYTES, 0);
            assert_eq!(mapping.bytes(), bytes);
            // SAFETY: the last byte of the mapping, which nobody else knows.
            assert_eq!(unsafe { mapping.at(bytes - 1, 1).read() }, 0);
        }
    }

    #[test]
    #[should_panic(expected = "8192 bytes at 4096 of an arena of 8192")]
    fn an_address_outside_is_refused() {
        Mapping::new(8192).expect("map").at(4096, 8192);
    }

    #[test]
    fn more_than_the_address_space_is_a_config_error() {
        let error = Mapping::new(1 << 60).expect_err("2^60 bytes");
        assert_eq!((error.kind, error.code), (ErrorKind::Config, "KS-CFG-103"));
    }

    #[test]
    fn smaps_is_summed_over_our_areas_only() {
        let smaps = "1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nAnonHugePages:  2048 kB\n\
                     2000-3000 rw-p 00000000 00:00 0 \nAnonHugePages:  4096 kB\n\
                     3000-4000 ---p 00000000 00:00 0 [heap]\nAnonHugePages:  8192 kB\n";
        assert_eq!(huge_bytes_in(smaps, 0x2000, 0x3000), 4096 * 1024);
        assert_eq!(huge_bytes_in(smaps, 0x2000, 0x4000), 12288 * 1024);
        assert_eq!(huge_bytes_in(smaps, 0x5000, 0x6000), 0);
    }
}
