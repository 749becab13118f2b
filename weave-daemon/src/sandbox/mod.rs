//! What a worker process gives up: most before its engine sees a byte, and more once its engine has read its model.
//!
//! The engine is a large body of C++ that reads model files and prompts from elsewhere. On a CPU it needs to read the
//! model, and then nothing but memory, threads and the streams that it has. So what it may do is a list, and the
//! kernel refuses all else: [`calls`] says which system calls, `files` which files, `limits` how much of
//! everything. Drivers of GPUs need more, and nobody has recorded what: a build for GPUs has a wider list.
//!
//! What this kernel can't do stays as it was, and [`Entered::missing`] says so.

pub mod calls;
mod files;
mod limits;
mod rules;

use landlock::RulesetStatus;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

pub use rules::{Build, Phase, Rules};

use crate::worker::Settled;

/// A sandbox that this process is in.
#[derive(Debug)]
pub struct Entered {
    missing: Vec<String>,
    /// Whether the list of system calls is in force.
    has_list: bool,
    build: Build,
    refusal: libc::c_int,
}

/// Gives up what a worker doesn't need while its engine reads its model. Holds for this thread and for all threads
/// and processes that come of it: to be called while there are no others.
///
/// What can't be given up is no failure.
#[must_use]
pub fn enter(rules: &Rules<'_>) -> Entered {
    let mut missing = Vec::new();
    let mut keep = |what: &str, why: &dyn std::fmt::Display| missing.push(format!("{what} ({why})"));
    if let Err(error) = limits::lower(rules) {
        keep("resources without a limit", &error);
    }
    if let Err(error) = set_no_new_privs(true) {
        keep("gaining privileges", &error);
    }
    if let Err(error) = drop_capabilities() {
        keep("capabilities", &error);
    }
    match files::restrict(rules) {
        Ok(RulesetStatus::FullyEnforced) => {}
        // What an old kernel's rules for files lack, the list of system calls has.
        Ok(RulesetStatus::PartiallyEnforced) if rules.build == Build::Cpu => {}
        Ok(RulesetStatus::PartiallyEnforced) => keep("signals and more", &"Landlock before Linux 6.12"),
        Ok(RulesetStatus::NotEnforced) => keep("files", &"this kernel has no Landlock"),
        Err(error) => keep("files", &error),
    }
    let list = calls::allow(Phase::Load, rules);
    if let Err(error) = &list {
        keep("system calls", error);
    }
    Entered { missing, has_list: list.is_ok(), build: rules.build, refusal: rules.refusal }
}

impl Entered {
    /// What this kernel could not take away, all of it in words.
    #[must_use]
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Gives up the rest, in all threads: the engine has read its model. Drivers go on to read and compile, so that a
    /// build for GPUs stays as it is. So does one that has kept all calls, and has said so.
    ///
    /// # Errors
    /// What this kernel could not take away.
    pub fn settle(&self) -> Result<Settled, String> {
        if self.build == Build::Gpu || !self.has_list {
            return Ok(Settled::Open);
        }
        let rules = Rules { build: self.build, refusal: self.refusal, ..Rules::new(&[]) };
        calls::allow(Phase::Draw, &rules).map_err(|error| format!("system calls ({error})"))?;
        Ok(Settled::Closed)
    }
}

/// A root without capabilities: one that may still read the model, whoever owns it.
fn drop_capabilities() -> rustix::io::Result<()> {
    let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let CapabilitySets { effective, permitted, .. } = capabilities(None)?;
    if kept.contains(permitted) {
        return Ok(());
    }
    let inheritable = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets { effective: effective & kept, permitted: permitted & kept, inheritable },
    )
}
