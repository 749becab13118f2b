//! What a worker is left, in short.

use std::path::Path;

/// What a worker's engine computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// The processor alone.
    Cpu,
    /// GPUs, by drivers that nobody has recorded.
    Gpu,
}

impl Build {
    /// This program's own.
    pub const THIS: Self =
        if cfg!(any(feature = "cuda", feature = "vulkan")) { Self::Gpu } else { Self::Cpu };
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its engine reads the model.
    Load,
    /// Its engine has read all that it needs.
    Draw,
}

/// What a worker is left.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// What its engine computes on.
    pub build: Build,
    /// The files that its engine reads.
    pub files: &'a [&'a Path],
    /// Whether it maps them into memory.
    pub maps_files: bool,
    /// What a refused system call fails of.
    pub refusal: libc::c_int,
    /// Further system calls, to try a driver by hand.
    pub also: &'a [libc::c_long],
}

impl<'a> Rules<'a> {
    /// Those for a worker of this very program.
    #[must_use]
    pub const fn new(files: &'a [&'a Path]) -> Self {
        Self { build: Build::THIS, files, maps_files: false, refusal: libc::EPERM, also: &[] }
    }
}
