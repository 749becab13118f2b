//! Text to value and back, as settings have them, and the words for a value that can't be used.
//!
//! What takes a text answers with what is allowed if the text isn't. What takes a value answers with its
//! text, or with `None` where it is no more than the default.
//!
//! The rules for blanks, lists, times and sizes are those of `docs/operating.md`, which the `weave` command follows too
//! (`weave-cli-base`, `arguments`). Blanks around a value are gone before it comes here.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The longest time that a setting takes: ten years, far inside what the clock can add.
const LONGEST: f64 = 10.0 * 365.0 * 86_400.0;
/// The shortest: anything less would become no time at all, which no worker's command line may say.
const SHORTEST: f64 = 1e-9;

pub(crate) const BOOLS: &[(&str, bool)] = &[("true", true), ("false", false)];

/// A time: a number of seconds, or numbers with units.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = match text.parse::<f64>() {
        Ok(seconds) => Some(seconds),
        // Capitals would be other units: M is a month.
        Err(_) if text.contains(|c: char| c.is_ascii_uppercase()) => None,
        Err(_) => humantime::parse_duration(text).ok().map(|time| time.as_secs_f64()),
    };
    match seconds {
        Some(seconds) if (SHORTEST..=LONGEST).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("a time, such as 90, 250ms, 5m or 1h30m, from {SHORTEST} to {LONGEST} seconds")),
    }
}

/// Memory in GiB: a number of them, or a number with a unit.
pub(crate) fn gib(range: RangeInclusive<f32>) -> impl Fn(&str) -> Result<f32, String> {
    const UNITS: [(&str, f32); 4] = [("MiB", 1.0 / 1024.0), ("GiB", 1.0), ("M", 1.0 / 1024.0), ("G", 1.0)];
    move |text| {
        let with_unit =
            UNITS.iter().find_map(|(unit, gib)| Some((text.strip_suffix(unit)?.trim_end(), *gib)));
        let (digits, unit) = with_unit.unwrap_or((text, 1.0));
        match digits.parse::<f32>().map(|number| number * unit) {
            Ok(gib) if range.contains(&gib) => Ok(gib),
            _ => Err(format!(
                "a number of GiB from {} to {}, or one with MiB or GiB behind it",
                range.start(),
                range.end()
            )),
        }
    }
}

/// The parts of a list: commas separate them, blanks around them are dropped, and none is empty.
pub(crate) fn parts(text: &str) -> Result<Vec<&str>, String> {
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    match parts.iter().any(|part| part.is_empty()) {
        true => Err("a list with commas in between, none of whose parts is empty".to_owned()),
        false => Ok(parts),
    }
}

pub(crate) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path".to_owned()) } else { Ok(PathBuf::from(text)) }
}

/// Paths, with commas in between. Absolute, since others than their owner know them.
pub(crate) fn folders(text: &str) -> Result<Vec<PathBuf>, String> {
    let folders: Vec<_> = parts(text)?.into_iter().map(PathBuf::from).collect();
    match folders.iter().all(|folder| folder.is_absolute()) {
        true => Ok(folders),
        false => Err("absolute paths of folders, with commas in between".to_owned()),
    }
}

/// The one of these words that somebody may have meant who wrote another.
#[must_use]
pub fn nearest<T: AsRef<str>>(word: &str, known: impl IntoIterator<Item = T>) -> Option<T> {
    // A letter in four may be wrong, and one in a short word.
    let most = 1 + word.chars().count() / 5;
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(word, known.as_ref()), known))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// The value of one of these names.
pub(crate) fn one_of<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&str) -> Result<T, String> {
    |text| {
        choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            format!("one of {}", names.join(", "))
        })
    }
}

/// One of these names itself.
pub(crate) fn named(names: &[&'static str]) -> impl Fn(&str) -> Result<&'static str, String> {
    |text| {
        let found = names.iter().copied().find(|name| *name == text);
        found.ok_or_else(|| format!("one of {}", names.join(", ")))
    }
}

/// A whole number with bounds.
pub(crate) fn count<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("a whole number from {} to {}", range.start(), range.end())),
    }
}

/// A number with bounds.
pub(crate) fn number(range: RangeInclusive<f32>) -> impl Fn(&str) -> Result<f32, String> {
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("a number from {} to {}", range.start(), range.end())),
    }
}

/// Numbers, or names that stand in `file`, where the third of the fields between colons is the number.
pub(crate) fn ids(file: &'static str) -> impl Fn(&str) -> Result<Vec<u32>, String> {
    move |text| {
        let known = std::fs::read_to_string(file).unwrap_or_default();
        let number_of = |name: &str| {
            let line = known.lines().find(|line| line.split(':').next() == Some(name))?;
            line.split(':').nth(2)?.parse().ok()
        };
        let id = |part: &str| part.parse().ok().or_else(|| number_of(part));
        parts(text)?
            .into_iter()
            .map(id)
            .collect::<Option<_>>()
            .ok_or_else(|| format!("numbers, or names that stand in {file}, with commas in between"))
    }
}

/// A value for a setting that may be unset.
pub(crate) fn some<T>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| parse(text).map(Some)
}

/// The same, where this word leaves it unset.
pub(crate) fn unless<T>(
    word: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| match text == word {
        true => Ok(None),
        false => parse(text).map(Some).map_err(|error| format!("{word}, or {error}")),
    }
}

/// Any value that can be printed.
pub(crate) fn shown<T: Display>(value: &T) -> Option<String> {
    Some(value.to_string())
}

pub(crate) fn shown_seconds(time: &Duration) -> Option<String> {
    Some(time.as_secs_f64().to_string())
}

pub(crate) fn shown_path(path: &impl AsRef<Path>) -> Option<String> {
    Some(path.as_ref().to_string_lossy().into_owned())
}

/// A switch that is on; off is its default.
pub(crate) fn shown_switch(is_on: &bool) -> Option<String> {
    is_on.then(|| "true".to_owned())
}

/// The name that stands for a value.
pub(crate) fn name_in<T: PartialEq>(choices: &[(&str, T)]) -> impl Fn(&T) -> Option<String> {
    |value| choices.iter().find(|(_, other)| other == value).map(|(name, _)| (*name).to_owned())
}

/// Numbers with commas in between; none at all is the default.
pub(crate) fn list(numbers: &[u32]) -> Option<String> {
    let list: Vec<_> = numbers.iter().map(u32::to_string).collect();
    (!list.is_empty()).then(|| list.join(","))
}

/// Paths, if there are some.
pub(crate) fn shown_folders(folders: &[PathBuf]) -> Option<String> {
    let list: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    (!list.is_empty()).then(|| list.join(","))
}

/// A value that may be unset.
pub(crate) fn if_set<T>(show: impl Fn(&T) -> Option<String>) -> impl Fn(&Option<T>) -> Option<String> {
    move |value| value.as_ref().and_then(&show)
}

/// The same, where this word says that it is.
pub(crate) fn or<T>(
    word: &str,
    show: impl Fn(&T) -> Option<String>,
) -> impl Fn(&Option<T>) -> Option<String> {
    move |value| value.as_ref().map_or_else(|| Some(word.to_owned()), &show)
}

/// A string as TOML and JSON both have it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\0'..=' ' | '\x7f' if char != ' ' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            _ => out.push(char),
        }
    }
    out.push('"');
    out
}
