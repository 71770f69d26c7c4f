//! From which memory nodes a mapping's pages come.
//!
//! Owns: the policy of one mapping, set before its pages are faulted in. Never does: move pages, or
//! change the policy of a thread. Invariant: a policy that can't be had changes nothing and is said
//! in one sentence.

use std::ffi::c_void;
use std::ptr;

use rustix::io::Errno;

use super::mapping::Mapping;

/// `MPOL_*` and `MPOL_F_*` of the kernel.
const MPOL_PREFERRED: libc::c_long = 1;
const MPOL_INTERLEAVE: libc::c_long = 3;
const MPOL_F_MEMS_ALLOWED: libc::c_long = 4;

const WORD_BITS: u32 = 64;
const MASK_WORDS: usize = 16;
/// The kernel counts one more than there are bits.
const MASK_BITS: libc::c_long = MASK_WORDS as libc::c_long * WORD_BITS as libc::c_long + 1;

/// Nodes by their bits.
type Mask = [u64; MASK_WORDS];

/// Where the pages of an arena come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numa {
    /// The node of the thread that opens the store, as long as it has memory.
    Local,
    /// All nodes that this process may use, in turn.
    Interleave,
}

impl Numa {
    /// The names that `parse` knows.
    pub const NAMES: &'static [&'static str] = &["local", "interleave"];

    /// The policy of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Local, Self::Interleave].into_iter().find(|numa| numa.name() == name)
    }

    /// The name of this policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Interleave => "interleave",
        }
    }
}

/// Sets the policy of a mapping that nobody has touched yet. What is in force, such as
/// `interleave:0-1`; empty where it was refused, which the mapping then tells.
pub(super) fn apply(mapping: &mut Mapping, numa: Numa) -> String {
    let allowed = match allowed_nodes() {
        Ok(allowed) => allowed,
        Err(errno) => return refused(mapping, numa, "get_mempolicy", errno),
    };
    let (mode, mask) = match numa {
        Numa::Interleave => (MPOL_INTERLEAVE, allowed),
        Numa::Local => match node_here() {
            Ok(node) => (MPOL_PREFERRED, mask_of(node)),
            Err(errno) => return refused(mapping, numa, "getcpu", errno),
        },
    };
    if let Err(errno) = bind(mapping, mode, &mask) {
        return refused(mapping, numa, "mbind", errno);
    }
    if allowed.iter().map(|word| word.count_ones()).sum::<u32>() == 1 {
        mapping.tell(format!(
            "numa=\"{}\": this process has one memory node, {}, so it changes nothing",
            numa.name(),
            listed(&allowed)
        ));
    }
    format!("{}:{}", numa.name(), listed(&mask))
}

fn refused(mapping: &mut Mapping, numa: Numa, call: &str, errno: Errno) -> String {
    let name = numa.name();
    mapping.tell(format!("numa=\"{name}\" was refused ({call}: {errno}); pages come as they may"));
    String::new()
}

fn bind(mapping: &Mapping, mode: libc::c_long, mask: &Mask) -> Result<(), Errno> {
    let base: *mut c_void = mapping.at(0, 0).cast();
    let no_flags: libc::c_long = 0;
    // SAFETY: the range is our own mapping, of whole pages; a policy for pages to come changes no
    // byte; the kernel reads the mask, which has the bits it is told.
    let said = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base,
            mapping.bytes() as libc::size_t,
            mode,
            mask.as_ptr(),
            MASK_BITS,
            no_flags,
        )
    };
    if said == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The nodes that the cpuset of this process allows.
fn allowed_nodes() -> Result<Mask, Errno> {
    let mut mask: Mask = [0; MASK_WORDS];
    let (no_mode, no_address) = (ptr::null_mut::<libc::c_int>(), ptr::null_mut::<c_void>());
    // SAFETY: the kernel writes the mask, which has the bits it is told, and nothing else.
    let said = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            no_mode,
            mask.as_mut_ptr(),
            MASK_BITS,
            no_address,
            MPOL_F_MEMS_ALLOWED,
        )
    };
    if said == 0 { Ok(mask) } else { Err(last_errno()) }
}

/// The node of the processor that this thread runs on.
fn node_here() -> Result<u32, Errno> {
    let (mut core, mut node) = (0_u32, 0_u32);
    let no_cache = ptr::null_mut::<c_void>();
    // SAFETY: the kernel writes the two numbers.
    let said = unsafe { libc::syscall(libc::SYS_getcpu, &raw mut core, &raw mut node, no_cache) };
    if said == 0 { Ok(node) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn mask_of(node: u32) -> Mask {
    let mut mask = [0; MASK_WORDS];
    if let Some(word) = mask.get_mut((node / WORD_BITS) as usize) {
        *word = 1 << (node % WORD_BITS);
    }
    mask
}

/// The nodes of a mask as the kernel writes them: `0-1,4`.
fn listed(mask: &Mask) -> String {
    let has = |node: usize| mask.get(node / 64).is_some_and(|word| word >> (node % 64) & 1 == 1);
    let bits = MASK_WORDS * WORD_BITS as usize;
    let firsts = (0..bits).filter(|node| has(*node) && (*node == 0 || !has(*node - 1)));
    let ranges = firsts.map(|first| {
        let last = (first..bits).take_while(|node| has(*node)).last().unwrap_or(first);
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    });
    ranges.collect::<Vec<_>>().join(",")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_listed_as_the_kernel_does() {
        let mut mask = [0; MASK_WORDS];
        assert_eq!(listed(&mask), "");
        mask[0] = 0b1_0011;
        assert_eq!(listed(&mask), "0-1,4");
        mask[0] = 1 << 63;
        mask[1] = 0b101;
        assert_eq!(listed(&mask), "63-64,66");
        assert_eq!(listed(&mask_of(130)), "130");
        assert_eq!(listed(&mask_of(1 << 20)), "");
    }

    #[test]
    fn a_policy_is_in_force_or_its_refusal_is_said() {
        for numa in [Numa::Local, Numa::Interleave] {
            assert_eq!(Numa::parse(numa.name()), Some(numa));
            let mut mapping = Mapping::new(1 << 20).expect("map");
            let before = mapping.refused().len();
            let force = apply(&mut mapping, numa);
            let told = mapping.refused().get(before).cloned().unwrap_or_default();
            if force.is_empty() {
                assert!(told.contains("was refused"), "{told}");
            } else {
                assert!(force.starts_with(numa.name()), "{force}");
                assert_eq!(told.is_empty(), force.contains([',', '-']), "{force}: {told}");
            }
        }
    }
}
