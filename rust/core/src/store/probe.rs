//! What this machine gives, found by doing it with the store's own code.
//!
//! Owns: the questions that `keystow doctor` asks. Never does: judge an answer, or open a store.
//! Invariant: what a probe maps, makes or starts is gone when it returns.

use crate::arena::{Arena, ArenaConfig, ArenaOptions, FRAME_ALIGN_BYTES, MemoryId, Numa, Prefault};
use crate::error::Error;
use crate::io::try_ring;
use crate::ssd::dir;
use std::path::Path;

pub use crate::arena::{CgroupLimits, CpuLimit, RamLimit, cgroup_limits, ram_limit};
pub use crate::ssd::dir::{DirProbe, Failed, probe_directory};

/// Mapped to see which pages come: a few huge ones.
const PROBE_FRAMES: u32 = 8;
const PROBE_FRAME_BYTES: u32 = 2 << 20;

/// Why io_uring does not work here, as errno (0: without an error, but wrong) and the step that
/// failed; None: a write, a sync and a read through a ring came back right. `directory`: where that
/// is tried, else in the directory for temporary files.
pub fn io_uring_refusal(directory: Option<&Path>) -> Option<(i32, &'static str)> {
    let temporary = std::env::temp_dir();
    let file = match dir::scratch(directory.unwrap_or(&temporary), true) {
        Ok(file) => file,
        Err(error) => return Some((error.raw_os_error().unwrap_or(0), "a file to try it on")),
    };
    try_ring(vec![file]).err().map(|refusal| (refusal.errno, refusal.step))
}

/// The pages behind a small arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PagesProbe {
    /// Bytes mapped and faulted in.
    pub mapped_bytes: u64,
    /// Of them in huge pages.
    pub huge_bytes: u64,
    /// What the kernel refused.
    pub fallbacks: Vec<String>,
}

/// Maps a small arena, faults it in and looks at its pages.
///
/// # Errors
/// Config: there is not even so much memory.
pub fn probe_pages() -> Result<PagesProbe, Error> {
    let arena = Arena::map(ArenaConfig {
        who: MemoryId::ARENA,
        frames: PROBE_FRAMES,
        stride_bytes: PROBE_FRAME_BYTES,
        prefault: Prefault::Now,
        threads: 1,
    })?;
    Ok(PagesProbe {
        mapped_bytes: arena.mapped_bytes(),
        huge_bytes: arena.huge_bytes(),
        fallbacks: arena.fallbacks(),
    })
}

/// Asks for memory from all nodes in turn: what is in force, and what the kernel said.
///
/// # Errors
/// Config: there is not even a page.
pub fn probe_numa() -> Result<(String, Vec<String>), Error> {
    let page = ArenaConfig {
        who: MemoryId::ARENA,
        frames: 1,
        stride_bytes: FRAME_ALIGN_BYTES,
        prefault: Prefault::Now,
        threads: 1,
    };
    let arena =
        Arena::map_with(page, ArenaOptions { numa: Some(Numa::Interleave), copy_threads: 1 })?;
    Ok((arena.numa().to_owned(), arena.fallbacks()))
}

/// Cores that this process may use: of its affinity, and of what its cgroups leave.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The machine's architecture, then those of its instructions that make copies, keys and tags
/// faster.
pub fn cpu_features() -> Vec<&'static str> {
    let mut names = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    {
        let there = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("vaes", is_x86_feature_detected!("vaes")),
        ];
        names.extend(there.iter().filter(|(_, there)| *there).map(|(name, _)| name));
    }
    names
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_probe_of_pages_faults_all_of_them_in() {
        let pages = probe_pages().expect("16 MiB");
        assert_eq!(pages.mapped_bytes, 16 << 20);
        assert!(pages.huge_bytes == pages.mapped_bytes || !pages.fallbacks.is_empty());
    }

    #[test]
    fn the_machine_has_a_core_and_an_architecture() {
        assert!(cores() >= 1);
        assert_eq!(cpu_features()[0], std::env::consts::ARCH);
    }
}
