//! Writes seeds for each target, most of them from the vectors of `spec/`: `seeds FOLDER` makes `FOLDER/split/…` and so
//! on. Names and values of settings become a dictionary, `FOLDER/config.dict`.

use std::fs;
use std::path::PathBuf;

use weave_conformance::spec::VECTORS;
use weave_conformance::wire::Receiver;
use weave_core::limits::{HEADER_LEN, RESPONSE_FIXED_LEN};
use weave_daemon::config::SETTINGS;

/// Longer streams slow a fuzzer down and show nothing new.
const MAX_SEED: usize = 8 * 1024;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("the folder to write to"));
    let write = |target: &str, name: &str, parts: &[&[u8]]| {
        fs::create_dir_all(folder.join(target))?;
        fs::write(folder.join(target).join(name), parts.concat())
    };
    for vector in VECTORS.iter() {
        let bytes: Vec<u8> = vector.segments().into_iter().flat_map(|segment| segment.bytes).collect();
        let (name, is_server) = (&vector.name, vector.receiver() == Receiver::Server);
        if bytes.len() > MAX_SEED {
            // These two targets have pixels of their own, 3 or 4 bytes each.
            if let (false, Some(head)) = (is_server, bytes.get(..HEADER_LEN + RESPONSE_FIXED_LEN)) {
                write("response", name, &[head])?;
                write("differential", &format!("{name}-rgb"), &[&[5, 3], head])?;
                write("differential", &format!("{name}-rgba"), &[&[7, 3], head])?;
            }
            continue;
        }
        write("differential", name, &[&[u8::from(!is_server), 3], &bytes])?;
        write("split", name, &[&[1, 3, 0, 20], &bytes])?;
        if is_server {
            write("request", name, &[&bytes])?;
        } else {
            write("response", name, &[&bytes])?;
            write("error", name, &[&bytes])?;
        }
        write("structured", name, &[&bytes])?;
    }
    for prompt in [
        "a cat in space",
        "an (important:1.3) [word]",
        "a \\\\(b\\\\) BREAK c",
        "día, 日本, 🐈",
        "<|endoftext|></s>",
    ] {
        write("prompt", &prompt.len().to_string(), &[prompt.as_bytes()])?;
    }

    for choice in 128..168 {
        // With the setting that it is for, and in a checkpoint.
        write("model", &format!("part-{choice}"), &[&[choice % 5, choice]])?;
        write("model", &format!("checkpoint-{choice}"), &[&[5, choice]])?;
    }
    let header =
        br#"{"a.weight":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},"__metadata__":{"format":"pt"}}"#;
    let len = (header.len() as u64).to_le_bytes();
    for (name, start) in [
        ("safetensors", &[len.as_slice(), header].concat()),
        ("gguf", &[b"GGUF\x03\0\0\0".as_slice(), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()),
        ("pointer", &b"version https://git-lfs.github.com/spec/v1\nsize 12\n".to_vec()),
        ("page", &b"<!doctype html>".to_vec()),
        ("pickle", &b"\x80\x02".to_vec()),
    ] {
        write("model", name, &[&[5, 20], start])?;
    }

    // The examples have every setting; as they are, each one is a comment.
    let file = include_str!("../../../weave-daemon/example.toml").replace("\n#", "\n");
    write("config", "file", &[file.as_bytes()])?;
    let variables =
        include_str!("../../../weave-daemon/example.env").lines().filter_map(|line| line.strip_prefix('#'));
    let mut words = String::new();
    for (name, value) in variables.filter_map(|line| line.split_once('=')) {
        let Some(at) = SETTINGS.iter().position(|setting| setting.variable() == name) else { continue };
        // Neither is ever NUL, which separates.
        let setting = u8::try_from(at + SETTINGS.len()).expect("a byte is enough for all settings");
        for source in 6..10 {
            write("config", &format!("{name}-{source}"), &[b"\0", &[setting, source], value.as_bytes()])?;
        }
        words += &format!("\"{name}\"\n{value:?}\n");
    }
    for word in [
        "fail@",
        "hang@",
        "crash@",
        "slow=",
        "=\\\"",
        "\\\"\\\"\\\"",
        "\\\\u0000",
        "[",
        "{",
        "e-12",
        "315360000",
    ] {
        words += &format!("\"{word}\"\n");
    }
    fs::write(folder.join("config.dict"), words)
}
