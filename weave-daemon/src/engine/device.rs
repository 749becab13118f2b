//! What the engine can compute on, and how much memory that has.
#![allow(unsafe_code, reason = "asks the engine, which is C++")]

use std::ffi::{CStr, c_char};
use std::fs;
use std::mem::MaybeUninit;
use std::ptr;

use sdcpp_sys as sys;

use super::tuning::Tuning;
use crate::proc::{Memory, MemoryFiles};
use crate::values::quoted;

/// A device, as the engine tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What settings call it: `CUDA0`, `CPU`.
    pub name: String,
    /// What its maker calls it.
    pub description: String,
    /// The part of the engine that computes on it: `CUDA`, `Vulkan`, `CPU`.
    pub back_end: String,
    /// It is no GPU.
    pub is_cpu: bool,
}

/// All devices, those first that the engine takes first. None at all: an engine that doesn't show them.
#[must_use]
pub fn all() -> Vec<Device> {
    (0..).map_while(at).collect()
}

fn at(index: usize) -> Option<Device> {
    let mut device = MaybeUninit::uninit();
    // SAFETY: there is room for the device, and a message is not wanted, for which null and 0 stand.
    let status = unsafe { sys::sdcpp_device_at(index, device.as_mut_ptr(), ptr::null_mut(), 0) };
    if status != sys::sdcpp_status::SDCPP_OK {
        return None;
    }
    // SAFETY: the call succeeded, so all of it is initialised.
    let device: sys::sdcpp_device = unsafe { device.assume_init() };
    let [name, description, back_end] = [&device.name[..], &device.description, &device.back_end].map(words);
    Some(Device { name, description, back_end, is_cpu: device.is_cpu })
}

/// A text in an array of C's characters.
fn words(text: &[c_char]) -> String {
    let bytes: Vec<_> = text.iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().trim().to_owned()
}

/// The memory of the device with this number in [`all`].
///
/// On a GPU that this process has not computed on yet, this takes some of it. If it is full, the process
/// is aborted: to be asked for in a process that may end, or after an image was made.
#[must_use]
pub fn memory(index: usize) -> Option<Memory> {
    if at(index)?.is_cpu {
        return MemoryFiles::open()?.read();
    }
    let (mut free, mut total) = (0, 0);
    // SAFETY: there is room for both numbers, and a message is not wanted, for which null and 0 stand.
    let status = unsafe { sys::sdcpp_device_memory(index, &mut free, &mut total, ptr::null_mut(), 0) };
    (status == sys::sdcpp_status::SDCPP_OK && total > 0).then_some(Memory { free, total })
}

/// The device that a setting means, by the engine's own rules: its name, or how that begins, in any case
/// of letters; `gpu` is the first that is one.
#[must_use]
pub fn find<'a>(devices: &'a [Device], name: &str) -> Option<&'a Device> {
    let name = name.to_lowercase();
    if name == "gpu" {
        return devices.iter().find(|device| !device.is_cpu);
    }
    let lower = |device: &Device| device.name.to_lowercase();
    let exact = devices.iter().find(|device| lower(device) == name);
    exact.or_else(|| devices.iter().find(|device| lower(device).starts_with(&name)))
}

/// What the diffusion model is computed on; `None` where the engine doesn't show its devices.
///
/// # Errors
/// A sentence about the first device that is named and missing, or about the missing GPU.
pub fn chosen<'a>(devices: &'a [Device], tuning: &Tuning) -> Result<Option<&'a Device>, String> {
    if devices.is_empty() {
        return Ok(None);
    }
    let names = || devices.iter().map(|device| &*device.name).collect::<Vec<_>>().join(", ");
    for name in tuning.devices() {
        if find(devices, name).is_none() {
            return Err(format!(
                "there is no device {name}; there is {} (`weaved devices` says more)",
                names()
            ));
        }
    }
    let named = tuning.device_of("diffusion").and_then(|name| find(devices, name));
    // The engine's own order.
    let device = named.or_else(|| devices.iter().find(|device| !device.is_cpu)).or(devices.first());
    match device {
        Some(device) if device.is_cpu && tuning.require_gpu => Err(format!(
            "require_gpu is set, but the engine would compute on {} ({}); {}",
            device.name,
            device.description,
            if sys::ENGINE.back_ends.iter().any(|back_end| *back_end != "cpu") {
                "look after the driver (CUDA: nvidia-smi) and who may use it"
            } else {
                "this weaved was built for the CPU alone"
            }
        )),
        device => Ok(device),
    }
}

/// What is known of NVIDIA's driver.
#[must_use]
pub fn cuda_driver() -> String {
    let version = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    match version.lines().next().and_then(|line| line.strip_prefix("NVRM version:")) {
        Some(version) => version.split_whitespace().collect::<Vec<_>>().join(" "),
        None => "none is loaded".to_owned(),
    }
}

/// A table for people.
#[must_use]
pub fn to_text(devices: &[(&Device, Option<Memory>)]) -> String {
    let engine = sys::ENGINE;
    let commit =
        engine.commit().map(|commit| format!(" (stable-diffusion.cpp {commit})")).unwrap_or_default();
    let back_ends = engine.back_ends.join(", ");
    let mut text = format!("engine: {} {}{commit}, built for {back_ends}\n", engine.source, engine.version);
    if engine.back_ends.contains(&"cuda") {
        text += &format!("CUDA: compiled in; driver: {}\n", cuda_driver());
    } else {
        text += "CUDA: not compiled in\n";
    }
    if devices.is_empty() {
        text += "this engine was built elsewhere and does not show its devices\n";
    }
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    for (device, memory) in devices {
        let memory = memory.map_or("memory unknown".to_owned(), |memory| {
            format!("{:.1} of {:.1} GiB free", gib(memory.free), gib(memory.total))
        });
        text += &format!("{:<10} {memory:<24} {}\n", device.name, device.description);
    }
    text
}

/// The same as a list of objects.
#[must_use]
pub fn to_json(devices: &[(&Device, Option<Memory>)]) -> String {
    let number = |n: Option<u64>| n.map_or("null".to_owned(), |n| n.to_string());
    let entry = |(device, memory): &(&Device, Option<Memory>)| {
        format!(
            "  {{\"name\": {}, \"kind\": {}, \"back_end\": {}, \"description\": {}, \"free\": {}, \"total\": {}}}",
            quoted(&device.name),
            quoted(if device.is_cpu { "cpu" } else { "gpu" }),
            quoted(&device.back_end),
            quoted(&device.description),
            number(memory.map(|memory| memory.free)),
            number(memory.map(|memory| memory.total)),
        )
    };
    format!("[\n{}\n]\n", devices.iter().map(entry).collect::<Vec<_>>().join(",\n"))
}
