//! What /proc says of a process.

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
