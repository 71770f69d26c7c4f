//! How much RAM may be asked for, and how many cores: what the machine has and the cgroups leave.
//!
//! Owns: reading `/proc/meminfo` and the memory and cpu controllers of cgroup v2 and v1. Never
//! does: reserving anything; the answer is true for the moment. Invariant: a file that is absent
//! or unreadable is no limit.

use std::fs;
use std::path::{Path, PathBuf};

/// cgroup v1 has no word for no limit: the largest number of pages stands there.
const NO_LIMIT_BYTES: u64 = 1 << 62;

/// The RAM that can be had now, and what sets that limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamLimit {
    /// Bytes; `u64::MAX` where nothing is known.
    pub bytes: u64,
    /// The file that says so, for messages.
    pub source: String,
}

/// The processor time that the cgroups allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuLimit {
    /// Thousandths of a core.
    pub millicores: u64,
    /// The file that says so, for messages.
    pub source: String,
}

/// What the cgroups allow this process: the tightest of its own group and all above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Who has the memory controller: "v2", "v1", or "none".
    pub version: &'static str,
    /// What the tightest memory limit leaves.
    pub ram: Option<RamLimit>,
    /// The tightest limit on processor time.
    pub cpu: Option<CpuLimit>,
}

/// The least of MemAvailable and of what each cgroup from ours up to the root leaves free.
pub fn ram_limit() -> RamLimit {
    ram_limit_under(Path::new("/"))
}

/// What the cgroups allow this process.
pub fn cgroup_limits() -> CgroupLimits {
    cgroup_limits_under(Path::new("/"))
}

/// The same for a file tree under another root, so that tests can build machines of files.
fn ram_limit_under(root: &Path) -> RamLimit {
    let mut limit = RamLimit { bytes: u64::MAX, source: "no limit known".to_owned() };
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    if let Some(kib) = field(&meminfo, "MemAvailable:") {
        limit = RamLimit { bytes: kib.saturating_mul(1024), source: "MemAvailable".to_owned() };
    }
    cgroup_limits_under(root).ram.filter(|ram| ram.bytes < limit.bytes).unwrap_or(limit)
}

fn cgroup_limits_under(root: &Path) -> CgroupLimits {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let mut limits = CgroupLimits { version: "none", ..CgroupLimits::default() };
    for version in [&V2, &V1] {
        for (folder, group) in folders(root, &groups, &mounts, version, "memory") {
            limits.version = version.name;
            for max in version.max {
                let Some(bytes) = free_in(&folder, version, max) else { continue };
                if limits.ram.as_ref().is_none_or(|ram| bytes < ram.bytes) {
                    let source = format!("{max} of cgroup {group}");
                    limits.ram = Some(RamLimit { bytes, source });
                }
            }
        }
        for (folder, group) in folders(root, &groups, &mounts, version, "cpu") {
            let Some((millicores, file)) = (version.cpu)(&folder) else { continue };
            if limits.cpu.as_ref().is_none_or(|cpu| millicores < cpu.millicores) {
                let source = format!("{file} of cgroup {group}");
                limits.cpu = Some(CpuLimit { millicores, source });
            }
        }
    }
    limits
}

/// Where a cgroup version keeps what we read.
struct Version {
    name: &'static str,
    /// The group of a controller, in `/proc/self/cgroup`.
    group: fn(&str, &str) -> Option<String>,
    filesystem: &'static str,
    /// Controllers are mounted each by itself, as options of the mount.
    by_option: bool,
    /// More than `memory.high` is given, at the price of a process that stands still.
    max: &'static [&'static str],
    used: &'static str,
    /// File pages the kernel drops first under pressure: used, but as good as free.
    reclaimable: &'static str,
    /// Thousandths of a core that a group may use, and the file that says so.
    cpu: fn(&Path) -> Option<(u64, &'static str)>,
}

static V2: Version = Version {
    name: "v2",
    group: |groups, _| groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned),
    filesystem: "cgroup2",
    by_option: false,
    max: &["memory.max", "memory.high"],
    used: "memory.current",
    reclaimable: "inactive_file",
    cpu: |folder| {
        let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?; // "max" is no number
        Some((millicores(quota.parse().ok()?, period.parse().ok()?)?, "cpu.max"))
    },
};

static V1: Version = Version {
    name: "v1",
    group: |groups, wanted| {
        groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == wanted).then(|| path.to_owned())
        })
    },
    filesystem: "cgroup",
    by_option: true,
    max: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
    cpu: |folder| {
        let quota = number(folder, "cpu.cfs_quota_us")?; // -1 is no number
        Some((millicores(quota, number(folder, "cpu.cfs_period_us")?)?, "cpu.cfs_quota_us"))
    },
};

fn millicores(quota_us: u64, period_us: u64) -> Option<u64> {
    quota_us.saturating_mul(1000).checked_div(period_us)
}

/// The folders of our group and of all above it, deepest first, with the groups' names.
fn folders(
    root: &Path,
    groups: &str,
    mounts: &str,
    version: &Version,
    controller: &str,
) -> Vec<(PathBuf, String)> {
    let option = if version.by_option { controller } else { "" };
    let mount = mounts.lines().find_map(|line| mount_of(line, version.filesystem, option));
    let (Some(group), Some(mount)) = ((version.group)(groups, controller), mount) else {
        return Vec::new();
    };
    let point = root.join(mount.point.trim_start_matches('/'));
    let all = ancestors(&group, mount.root).into_iter();
    all.map(|relative| (point.join(&relative), format!("/{}", relative.display()))).collect()
}

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

/// What one group leaves free under one of its limits, if it has that.
fn free_in(folder: &Path, version: &Version, max: &str) -> Option<u64> {
    let max = number(folder, max).filter(|max| *max < NO_LIMIT_BYTES)?; // "max" is no number
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let reclaimable = field(&stat, version.reclaimable).unwrap_or(0);
    let used = number(folder, version.used).unwrap_or(0).saturating_sub(reclaimable);
    Some(max.saturating_sub(used))
}

/// What stands in a file of one number.
fn number(folder: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
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
    fn v2_high_is_a_limit_too() {
        let machine = Machine::new(
            "v2-high",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/pod/app\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/pod/app/memory.max", "700000\n"),
                ("sys/fs/cgroup/pod/app/memory.high", "600000\n"),
                ("sys/fs/cgroup/pod/memory.max", "650000\n"),
            ],
        );
        assert_eq!(machine.limit(), (600_000, "memory.high of cgroup /pod/app".to_owned()));
    }

    #[test]
    fn processor_time_is_the_least_of_all_groups() {
        let cpu = |machine: &Machine| {
            let limits = cgroup_limits_under(&machine.0);
            (limits.version, limits.cpu.map(|cpu| (cpu.millicores, cpu.source)))
        };
        let v2 = Machine::new(
            "cpu-v2",
            &[
                ("proc/self/cgroup", "0::/pod/app\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/pod/app/cpu.max", "max 100000\n"),
                ("sys/fs/cgroup/pod/cpu.max", "150000 100000\n"),
                ("sys/fs/cgroup/cpu.max", "400000 100000\n"),
            ],
        );
        assert_eq!(cpu(&v2), ("v2", Some((1500, "cpu.max of cgroup /pod".to_owned()))));
        let v1 = Machine::new(
            "cpu-v1",
            &[
                ("proc/self/cgroup", "4:memory:/a\n1:cpu,cpuacct:/x\n0::/\n"),
                ("proc/self/mountinfo", &format!("{V2_MOUNT}{V1_MOUNT}")),
                ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000\n"),
                ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ],
        );
        assert_eq!(cpu(&v1), ("v1", Some((500, "cpu.cfs_quota_us of cgroup /x".to_owned()))));
        assert_eq!(cpu(&Machine::new("cpu-none", &[("etc/nothing", "")])), ("none", None));
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
