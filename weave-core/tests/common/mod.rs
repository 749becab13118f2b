//! The files of `spec/` that more than one test reads.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The folder of the protocol's text and vectors.
pub(crate) fn spec() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec")
}

/// The protocol's text.
pub(crate) fn text() -> String {
    std::fs::read_to_string(spec().join("weave-v1.md")).unwrap()
}

/// The rows of the first table in a section whose heading begins with `heading`, such as "### 3.1 ", without
/// the table's own head.
pub(crate) fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    text.lines()
        .skip_while(|line| !line.starts_with(heading))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// The names of the vector files without `.json`, in alphabetical order.
pub(crate) fn vector_files() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(spec().join("vectors"))
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .filter(|name| name != "schema")
        .collect();
    names.sort();
    names
}

/// Reads a vector file into the shape that the caller wants of it.
pub(crate) fn vector_file<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let text = std::fs::read_to_string(spec().join("vectors").join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}.json: {error}"))
}

/// A piece of a vector's bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Segment {
    pub(crate) field: String,
    hex: String,
    times: Option<usize>,
}

impl Segment {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        unhex(&self.hex).unwrap_or_else(|| panic!("not hex: {}", self.hex)).repeat(self.times.unwrap_or(1))
    }
}

/// The bytes of "57 45 56".
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    text.split_whitespace()
        .map(|byte| if byte.len() == 2 { u8::from_str_radix(byte, 16).ok() } else { None })
        .collect()
}
