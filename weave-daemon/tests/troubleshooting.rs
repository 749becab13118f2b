//! Whether the messages that docs/troubleshooting.md quotes are still what the programs say.

use std::fs;
use std::path::{Path, PathBuf};

/// What other programs say; it stands in no source of ours.
const OTHERS: &[&str] = &[
    "error while loading shared libraries: libcudart.so.…",
    "no kernel image is available for execution on the device",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// A source as its messages read: strings that go on in the next line put together, `…` for each placeholder of
/// Rust's or the shell's.
fn as_read(source: &str) -> String {
    let mut joined = String::new();
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("\\\n") {
        joined.push_str(before);
        rest = after.trim_start();
    }
    joined.push_str(rest);
    let joined = joined.replace("\\\"", "\"").replace("\\`", "`").replace("$oldest", "11.8");
    let mut read = String::new();
    let mut rest = joined.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        read.push_str(before);
        // What is longer or of several lines is code.
        match after.split_once('}') {
            Some((name, after)) if name.len() < 40 && !name.contains(['\n', '{', ';', ' ']) => {
                read.push('…');
                rest = after;
            }
            _ => {
                read.push('{');
                rest = after;
            }
        }
    }
    read + rest
}

#[test]
fn every_quoted_message_is_in_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = Vec::new();
    for folder in [
        ".ci",
        "sdcpp-sys/build",
        "sdcpp-sys/src",
        "weave-client/src",
        "weave-client/cli-base/src",
        "weave-client/cli/src",
        "weave-client/gateway/src",
        "weave-client/trust/src",
        "weave-core/src",
        "weave-daemon/src",
    ] {
        files(&root.join(folder), &mut sources);
    }
    let sources: Vec<_> = sources.iter().map(|path| as_read(&fs::read_to_string(path).unwrap())).collect();

    let text = fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap();
    let quoted: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert!(quoted.len() > 40, "only {} messages were found", quoted.len());
    for other in OTHERS {
        assert!(quoted.contains(other), "{other:?} is not quoted");
    }
    let is_said = |message: &str| {
        // The program's name is put before all that it says.
        let bare = message.strip_prefix("weave: ").unwrap_or(message);
        sources.iter().any(|source| source.contains(bare))
    };
    let lost: Vec<_> =
        quoted.into_iter().filter(|message| !OTHERS.contains(message) && !is_said(message)).collect();
    assert!(lost.is_empty(), "docs/troubleshooting.md quotes what nobody says:\n{}", lost.join("\n"));
}
