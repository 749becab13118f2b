//! What /proc says of a process, and of the machine's memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// What /proc says of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Bytes in memory.
    pub resident: u64,
    /// Bytes of addresses.
    pub virtual_size: u64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Most open descriptors.
    pub descriptor_limit: u64,
}

impl Process {
    /// Looks at a process: `self`, or a number. What can't be read is 0.
    #[must_use]
    pub fn read(pid: &str) -> Self {
        let folder = format!("/proc/{pid}");
        let stat = std::fs::read_to_string(format!("{folder}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything. The third field comes after it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let field = |nth: usize| fields.get(nth - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let ticks = rustix::param::clock_ticks_per_second();
        Self {
            resident: field(24) * rustix::param::page_size() as u64,
            virtual_size: field(23),
            cpu: (field(14) + field(15)) as f64 / ticks as f64,
            threads: field(20),
            descriptors: std::fs::read_dir(format!("{folder}/fd")).map_or(0, Iterator::count) as u64,
            descriptor_limit: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .unwrap_or(u64::MAX),
        }
    }
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Not taken by anybody.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// The files that tell of this machine's memory, and of the control group that this process is in where that has
/// less. They stay open: a worker that draws may open nothing.
#[derive(Debug)]
pub struct MemoryFiles {
    machine: File,
    group: Option<Group>,
}

#[derive(Debug)]
struct Group {
    limit: File,
    used: File,
    stat: Option<File>,
}

impl MemoryFiles {
    /// `None`: there is no /proc.
    #[must_use]
    pub fn open() -> Option<Self> {
        let machine = File::open("/proc/meminfo").ok()?;
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        // In a container the group's own path is hidden, and its files lie at the top.
        let folders = [format!("/sys/fs/cgroup{group}"), "/sys/fs/cgroup".to_owned()];
        Some(Self { machine, group: folders.iter().find_map(|folder| Group::open(folder)) })
    }

    /// As it is now.
    #[must_use]
    pub fn read(&self) -> Option<Memory> {
        let text = text(&self.machine)?;
        let memory = Memory { free: kilobytes(&text, "MemAvailable")?, total: kilobytes(&text, "MemTotal")? };
        let of_group = self.group.as_ref().and_then(Group::read);
        Some(of_group.map_or(memory, |group| Memory {
            free: memory.free.min(group.free),
            total: memory.total.min(group.total),
        }))
    }

    /// The most that this process could ever have, with what is swapped out.
    #[must_use]
    pub fn most(&self) -> Option<u64> {
        let text = text(&self.machine)?;
        let swap = kilobytes(&text, "SwapTotal").unwrap_or(0);
        let group = self.group.as_ref().and_then(|group| number(&group.limit)).unwrap_or(u64::MAX);
        Some(kilobytes(&text, "MemTotal")?.min(group).saturating_add(swap))
    }
}

impl Group {
    fn open(folder: &str) -> Option<Self> {
        let open = |file: &str| File::open(format!("{folder}/{file}")).ok();
        let group =
            Self { limit: open("memory.max")?, used: open("memory.current")?, stat: open("memory.stat") };
        // A group without a limit says "max".
        number(&group.limit).is_some().then_some(group)
    }

    fn read(&self) -> Option<Memory> {
        let (limit, used) = (number(&self.limit)?, number(&self.used)?);
        let stat = self.stat.as_ref().and_then(text).unwrap_or_default();
        let free = limit.saturating_sub(used.saturating_sub(kept_files(&stat)));
        Some(Memory { free, total: limit })
    }
}

/// Bytes of files that are only kept at hand, by a control group's `memory.stat`. They count as used, and go when
/// there is need; `MemAvailable` has them as free.
fn kept_files(stat: &str) -> u64 {
    let pages = |line: &str| -> Option<u64> {
        line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("active_file "))?.parse().ok()
    };
    stat.lines().filter_map(pages).sum()
}

/// What the kernel writes anew for each reading. None of these files has as much as there is room for.
fn text(file: &File) -> Option<String> {
    let mut bytes = vec![0; 16 * 1024];
    let mut len = 0;
    while let Ok(n @ 1..) = file.read_at(&mut bytes[len..], len as u64) {
        len += n;
    }
    bytes.truncate(len);
    String::from_utf8(bytes).ok()
}

fn number(file: &File) -> Option<u64> {
    text(file)?.trim().parse().ok()
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::kept_files;

    #[test]
    fn files_at_hand_are_free_in_a_control_group_too() {
        let stat = "anon 5\nfile 16\ninactive_anon 3\ninactive_file 7\nactive_file 9\nunevictable 1\n";
        assert_eq!(kept_files(stat), 16);
        assert_eq!(kept_files(""), 0);
    }
}
