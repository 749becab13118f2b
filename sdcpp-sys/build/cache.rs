//! A folder of finished builds that all profiles, target folders and clones share.
//!
//! An entry is named after a hash of everything that went into it and holds that text, so that two
//! builds can't be taken for each other. It is made under another name and renamed when it is whole:
//! what has its final name is complete, whatever happened to the build that was on its way.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;

use weave_trust::{Folder, Rules};

/// The file in an entry that holds the text of its inputs.
pub(crate) const INPUTS: &str = "inputs.txt";

/// The environment variables that say where the cache is.
pub(crate) const VARIABLES: &[&str] = &["WEAVE_CACHE_DIR", "XDG_CACHE_HOME", "HOME"];

/// The folder for finished engines, given the environment.
pub(crate) fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("WEAVE_CACHE_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("weave")))
        .or_else(|| Some(set("HOME")?.join(".cache/weave")))
        .ok_or("There is no place to keep the built engine: set WEAVE_CACHE_DIR or HOME.")?;
    if cache.is_absolute() {
        Ok(cache.join("engine"))
    } else {
        Err(format!("The cache folder {} is not an absolute path.", cache.display()))
    }
}

/// The name of the entry for these inputs: 16 hexadecimal digits (FNV-1a, 64 bits).
pub(crate) fn key(inputs: &str) -> String {
    let hash = inputs.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Whatever lies in the cache becomes part of programs, so nobody else may be able to put anything there. Makes the folder
/// if it isn't there.
fn trusted(folder: &Path) -> Result<(), String> {
    Folder::make(folder, &Rules::default()).and_then(|folder| folder.judge_content()).map_err(|why| {
        format!(
            "The engine can't be kept in {}: {why}. Mend that, or set WEAVE_CACHE_DIR to a folder that is yours alone.",
            folder.display()
        )
    })
}

/// The entry for these inputs, if it is there.
pub(crate) fn look_up(folder: &Path, inputs: &str) -> Option<PathBuf> {
    let entry = folder.join(key(inputs));
    (fs::read_to_string(entry.join(INPUTS)).ok()? == inputs).then_some(entry)
}

/// The entry for these inputs. If it isn't there, `build` makes it: it gets a folder to work in and
/// one, empty, for what is to be kept. A second process that wants the same entry waits.
pub(crate) fn get_or_build(
    folder: &Path,
    inputs: &str,
    build: impl FnOnce(&Path, &Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}.", path.display());
    trusted(folder)?;
    let key = key(inputs);
    let lock_path = folder.join(format!("{key}.lock"));
    let lock = File::create(&lock_path).map_err(|e| named(&lock_path, e))?;
    lock.lock().map_err(|e| named(&lock_path, e))?;
    if let Some(entry) = look_up(folder, inputs) {
        return Ok(entry);
    }

    // Whoever holds the lock is alone with this key. Leftovers are of builds that were killed, and
    // a compiler that outlived its build may still write into one: hence a fresh name each time.
    let prefix = format!("{key}.building.");
    for leftover in fs::read_dir(folder).map_err(|e| named(folder, e))?.flatten() {
        if leftover.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_dir_all(leftover.path());
        }
    }
    let work = folder.join(format!("{prefix}{}", process::id()));
    let kept = work.join("kept");
    fs::create_dir_all(&kept).map_err(|e| named(&kept, e))?;
    let built = build(&work, &kept).and_then(|()| {
        let inputs_path = kept.join(INPUTS);
        fs::write(&inputs_path, inputs).map_err(|e| named(&inputs_path, e))?;
        let entry = folder.join(&key);
        // Something without the right inputs in it: damaged, or another build with the same hash.
        if entry.exists() {
            fs::remove_dir_all(&entry).map_err(|e| named(&entry, e))?;
        }
        fs::rename(&kept, &entry).map_err(|e| named(&entry, e))?;
        Ok(entry)
    });
    let _ = fs::remove_dir_all(&work);
    built
}
