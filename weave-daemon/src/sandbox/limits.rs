//! How much of everything a worker may have.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FileType, fstat};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use super::rules::{Build, Rules};
use crate::proc::MemoryFiles;
use crate::scoreboard;

/// Descriptors: models have a dozen files, each read by several threads, and drivers open one for each queue.
const DESCRIPTORS: [u64; 2] = [256, 4096];
/// Threads beside those that this user has and that can be seen. The kernel counts by user, those of other containers
/// too, and an engine must find room beside them: this is against a flood, no measure of what it needs.
const THREADS: u64 = 32_768;

/// Lowers the limits of this process, for good.
///
/// # Errors
/// The operating system's.
pub(super) fn lower(rules: &Rules<'_>) -> io::Result<()> {
    let drives_gpus = rules.build == Build::Gpu;
    // A crash leaves no memory of prompts on the disk, and no message or priority outlives the process.
    for resource in [Resource::Core, Resource::Msgqueue, Resource::Nice, Resource::Rtprio] {
        lower_to(resource, 0)?;
    }
    lower_to(Resource::Nofile, DESCRIPTORS[usize::from(drives_gpus)])?;
    lower_to(Resource::Nproc, threads_of_this_user() + THREADS)?;
    if drives_gpus {
        // A driver keeps a cache, and reserves more addresses than there is memory.
        return Ok(());
    }
    lower_to(Resource::Memlock, 0)?;
    // The one file that a worker writes is the page that it shares with the daemon; or its log, for a worker that was
    // started by hand.
    let has_a_file =
        |status: rustix::fs::Stat| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    if !fstat(io::stderr()).is_ok_and(has_a_file) {
        lower_to(Resource::Fsize, scoreboard::PAGE_LEN)?;
    }
    // What it writes to, whether that is there or not: more than the machine has is never had, and less than all of it
    // leaves room for whoever else is there.
    if let Some(most) = MemoryFiles::open().and_then(|files| files.most()) {
        // Mapped files count as if they were to be written to.
        let mapped = rules.files.iter().filter(|_| rules.maps_files);
        let mapped: u64 = mapped.filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum();
        lower_to(Resource::Data, most / 16 * 15 + mapped)?;
    }
    Ok(())
}

fn lower_to(resource: Resource, value: u64) -> io::Result<()> {
    let most = getrlimit(resource).maximum.map_or(value, |most| most.min(value));
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

fn threads_of_this_user() -> u64 {
    let own = geteuid().as_raw();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_this_user = processes.filter(|process| process.metadata().is_ok_and(|file| file.uid() == own));
    let threads =
        |process: fs::DirEntry| fs::read_dir(process.path().join("task")).map_or(0, Iterator::count);
    of_this_user.map(|process| threads(process) as u64).sum()
}
