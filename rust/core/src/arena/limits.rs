//! How much RAM may be asked for: what the machine has free and what the cgroups leave.
//!
//! Owns: reading `/proc/meminfo` and the memory controllers of cgroup v2 and v1. Never does:
//! reserving anything; the answer is true for the moment. Invariant: a file that is absent or
//! unreadable is no limit.

use std::fs;
use std::path::{Path, PathBuf};

/// The RAM that can be had now, and what sets that limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamLimit {
    /// Bytes; `u64::MAX` where nothing is known.
    pub bytes: u64,
    /// The file that says so, for messages.
    pub source: String,
}

/// The least of MemAvailable and of what each cgroup from ours up to the root leaves free.
pub fn ram_limit() -> RamLimit {
    ram_limit_under(Path::new("/"))
}

/// The same for a file tree under another root, so that tests can build machines of files.
fn ram_limit_under(root: &Path) -> RamLimit {
    let mut limit = RamLimit { bytes: u64::MAX, source: "no limit known".to_owned() };
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    if let Some(kib) = field(&meminfo, "MemAvailable:") {
        limit = RamLimit { bytes: kib.saturating_mul(1024), source: "MemAvailable".to_owned() };
    }
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    for version in [&V2, &V1] {
        let (Some(group), Some(mount)) = ((version.group)(&groups), (version.mount)(&mounts))
        else {
            continue;
        };
        for relative in ancestors(group, mount.root) {
            let folder = root.join(mount.point.trim_start_matches('/')).join(&relative);
            if let Some(bytes) = free_in(&folder, version).filter(|&free| free < limit.bytes) {
                let source = format!("{} of cgroup /{}", version.max, relative.display());
                limit = RamLimit { bytes, source };
            }
        }
    }
    limit
}

/// Where a cgroup version keeps what we read.
struct Version {
    group: fn(&str) -> Option<&str>,
    mount: fn(&str) -> Option<Mount<'_>>,
    max: &'static str,
    used: &'static str,
    /// File pages the kernel drops first under pressure: used, but as good as free.
    reclaimable: &'static str,
}

static V2: Version = Version {
    group: |groups| groups.lines().find_map(|line| line.strip_prefix("0::")),
    mount: |mounts| mounts.lines().find_map(|line| mount_of(line, "cgroup2", "")),
    max: "memory.max",
    used: "memory.current",
    reclaimable: "inactive_file",
};

static V1: Version = Version {
    group: |groups| {
        groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == "memory").then_some(path)
        })
    },
    mount: |mounts| mounts.lines().find_map(|line| mount_of(line, "cgroup", "memory")),
    max: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// A mounted hierarchy: the group that its mount point shows, and the mount point.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
}

/// Reads one line of mountinfo if it is of that filesystem and has that option ("" is any).
fn mount_of<'a>(line: &'a str, filesystem: &str, option: &str) -> Option<Mount<'a>> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    if right.next()? != filesystem {
        return None;
    }
    let options = right.nth(1).unwrap_or_default();
    if !option.is_empty() && !options.split(',').any(|name| name == option) {
        return None;
    }
    let mut left = left.split(' ').skip(3);
    Some(Mount { root: left.next()?, point: left.next()? })
}

/// Our group and all above it, as paths below the mount point, deepest first. In a container the
/// mount may show only a part of the tree; what it doesn't show has no files and no say.
fn ancestors(group: &str, mount_root: &str) -> Vec<PathBuf> {
    let inside = group.strip_prefix(mount_root).unwrap_or(group);
    Path::new(inside.trim_start_matches('/')).ancestors().map(Path::to_path_buf).collect()
}

/// What one group leaves free, if it has a limit.
fn free_in(folder: &Path, version: &Version) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok() // "max" is no number
    };
    let max = number(version.max)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let reclaimable = field(&stat, version.reclaimable).unwrap_or(0);
    let used = number(version.used).unwrap_or(0).saturating_sub(reclaimable);
    Some(max.saturating_sub(used))
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   800 kB\n";
    const V2_MOUNT: &str = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNT: &str = "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                            32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    /// A machine of files, gone with the value.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root =
                std::env::temp_dir().join(format!("keystow-limits-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("a folder")).expect("create");
                fs::write(path, text).expect("write");
            }
            Self(root)
        }

        fn limit(&self) -> (u64, String) {
            let RamLimit { bytes, source } = ram_limit_under(&self.0);
            (bytes, source)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn without_cgroups_what_is_available_counts() {
        let machine = Machine::new("none", &[("proc/meminfo", MEMINFO)]);
        assert_eq!(machine.limit(), (800 * 1024, "MemAvailable".to_owned()));
        let empty = Machine::new("empty", &[("etc/nothing", "")]);
        assert_eq!(empty.limit().0, u64::MAX);
    }

    #[test]
    fn v2_takes_the_tightest_of_all_ancestors_and_counts_inactive_file_as_free() {
        let machine = Machine::new(
            "v2",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/pod/app\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/pod/app/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/memory.max", "500000\n"),
                ("sys/fs/cgroup/pod/memory.current", "300000\n"),
                ("sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 100000\n"),
            ],
        );
        assert_eq!(machine.limit(), (300_000, "memory.max of cgroup /pod".to_owned()));
    }

    #[test]
    fn v2_above_what_is_available_does_not_count() {
        let machine = Machine::new(
            "v2-large",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/memory.max", "99999999\n"),
            ],
        );
        assert_eq!(machine.limit(), (800 * 1024, "MemAvailable".to_owned()));
    }

    #[test]
    fn v1_beside_a_v2_without_memory_controller() {
        let machine = Machine::new(
            "v1",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "4:memory:/a/b\n1:cpu,cpuacct:/x\n0::/\n"),
                ("proc/self/mountinfo", &format!("{V2_MOUNT}{V1_MOUNT}")),
                ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "5\n"),
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "700000\n"),
                ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "200000\n"),
                ("sys/fs/cgroup/memory/a/memory.stat", "total_inactive_file 50000\n"),
            ],
        );
        let source = "memory.limit_in_bytes of cgroup /a".to_owned();
        assert_eq!(machine.limit(), (550_000, source));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_mount_point() {
        let mount = "32 24 0:28 /docker/7f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let machine = Machine::new(
            "container",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "4:memory:/docker/7f\n"),
                ("proc/self/mountinfo", mount),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "400000\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n"),
            ],
        );
        assert_eq!(machine.limit().0, 0);
    }

    #[test]
    fn the_real_machine_has_some_memory() {
        assert!(ram_limit().bytes > 1 << 20);
    }
}
