//! Turns `spec/vectors/*.json` into a table for the flash, and hands the linker its script.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::Value;

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let folder = here.join("../../spec/vectors");
    println!("cargo:rerun-if-changed={}", folder.display());
    fs::write(out.join("vectors.rs"), table(&folder)).expect("OUT_DIR is writable");

    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let script = here.join("link.ld");
        println!("cargo:rerun-if-changed={}", script.display());
        println!("cargo:rustc-link-arg=-T{}", script.display());
    }
}

/// All vectors of all files, as the Rust text of a slice of `Vector`.
fn table(folder: &Path) -> String {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("spec/vectors is there")
        .map(|entry| entry.expect("a folder's entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json") && !path.ends_with("schema.json"))
        .collect();
    files.sort();
    let mut text = String::from("&[\n");
    for path in files {
        println!("cargo:rerun-if-changed={}", path.display());
        let bytes = fs::read(&path).expect("a vector file");
        let file: Value = serde_json::from_slice(&bytes).expect("a vector file is JSON");
        for vector in file["vectors"].as_array().expect("vectors") {
            writeln!(text, "    {},", self::vector(vector)).expect("a String takes it");
        }
    }
    text + "]\n"
}

fn vector(vector: &Value) -> String {
    let expect = &vector["expect"];
    let outcomes: Vec<String> = expect["frames"].as_array().expect("frames").iter().map(outcome).collect();
    format!(
        "Vector {{ name: {:?}, to_server: {}, bytes: {}, outcomes: &[{}], end: End::{}, head: {}, same_when_emitted: {} }}",
        string(&vector["name"]),
        vector["receiver"] == "server",
        runs(vector["bytes"].as_array().expect("bytes")),
        outcomes.join(", "),
        match string(&expect["end"]) {
            "between-frames" => "BetweenFrames",
            "inside-a-frame" => "InsideAFrame",
            "closed" => "Closed",
            other => panic!("unknown end {other}"),
        },
        if expect["head"].is_null() { "None".to_owned() } else { format!("Some({})", head(&expect["head"])) },
        vector["sender"].is_null(),
    )
}

/// Bytes and how often they stand there; neighbours that stand there once become one.
fn runs(segments: &[Value]) -> String {
    let mut runs: Vec<(Vec<u8>, u64)> = Vec::new();
    for segment in segments {
        let bytes = unhex(string(&segment["hex"]));
        match (runs.last_mut(), times(segment)) {
            (Some((before, 1)), 1) => before.extend(bytes),
            (_, times) => runs.push((bytes, times)),
        }
    }
    let runs: Vec<String> = runs.iter().map(|(bytes, times)| run(bytes, *times)).collect();
    format!("&[{}]", runs.join(", "))
}

fn run(bytes: &[u8], times: u64) -> String {
    format!("Run {{ bytes: b\"{}\", times: {times} }}", bytes.escape_ascii())
}

fn outcome(outcome: &Value) -> String {
    let (kind, fields) = outcome.as_object().and_then(|object| object.iter().next()).expect("one member");
    match kind.as_str() {
        "request" => format!(
            "Outcome::Request {{ request_id: {}, model_id: {}, width: {}, height: {}, steps: {}, cfg_scale_bits: 0x{}, seed: {}, prompts: [{}, {}, {}] }}",
            string(&fields["request_id"]),
            fields["model_id"],
            fields["width"],
            fields["height"],
            fields["steps"],
            string(&fields["cfg_scale"]["bits"]),
            string(&fields["seed"]),
            prompt(&fields["clip_l"]),
            prompt(&fields["clip_g"]),
            prompt(&fields["t5"]),
        ),
        "answer" => format!(
            "Outcome::Answer {{ request_id: {}, status: {}, code: {}, name: {:?}, step: {}, field: {:?} }}",
            string(&fields["request_id"]),
            fields["status"],
            fields["error_code"],
            string(&fields["name"]),
            fields["step"],
            string(&fields["field"]),
        ),
        "response" => format!(
            "Outcome::Response {{ head: {}, pixels: {}, trailing: {} }}",
            head(fields),
            blob(&fields["image_data"]),
            fields["trailing"],
        ),
        "error" => format!(
            "Outcome::Error {{ request_id: {}, status: {}, code: {}, name: {:?}, message_len: {}, message: {}, trailing: {} }}",
            string(&fields["request_id"]),
            fields["status"],
            fields["error_code"],
            fields["name"].as_str(),
            fields["error_msg_len"],
            blob(&fields["error_msg"]),
            fields["trailing"],
        ),
        "close" => format!(
            "Outcome::Close {{ because: {:?}, field: {:?} }}",
            string(&fields["because"]),
            string(&fields["field"])
        ),
        other => panic!("unknown outcome {other}"),
    }
}

fn head(fields: &Value) -> String {
    format!(
        "Head {{ request_id: {}, status: {}, generation_time_ms: {}, image_width: {}, image_height: {}, channels: {}, image_data_len: {} }}",
        string(&fields["request_id"]),
        fields["status"],
        fields["generation_time_ms"],
        fields["image_width"],
        fields["image_height"],
        fields["channels"],
        fields["image_data_len"],
    )
}

fn prompt(prompt: &Value) -> String {
    let text = run(string(&prompt["text"]).as_bytes(), times(prompt));
    format!("Prompt {{ offset: {}, length: {}, text: {text} }}", prompt["offset"], prompt["length"])
}

fn blob(blob: &Value) -> String {
    match blob["text"].as_str() {
        Some(text) => run(text.as_bytes(), times(blob)),
        None => run(&unhex(string(&blob["hex"])), times(blob)),
    }
}

fn times(value: &Value) -> u64 {
    value["times"].as_u64().unwrap_or(1)
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

fn unhex(hex: &str) -> Vec<u8> {
    hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
}
