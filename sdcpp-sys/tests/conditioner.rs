//! Prompts of any length, with any of SD 3.5's encoders: what the engine's conditioner does with them, with its own
//! tokenizers and encoders that have no weights. Each correction to it is needed for something here.

#![cfg(target_os = "linux")]
#![allow(dead_code, reason = "the build script uses all of what is included here, a test may not")]

#[path = "../build/corrections.rs"]
mod corrections;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use corrections::{CORRECTIONS, Correction};

const HEADER: &str = "src/conditioning/conditioner.hpp";

/// There is a source, and an engine that links without libraries of a GPU's maker.
fn is_for_this_test() -> bool {
    !env!("SDCPP_BUILT_HEADER").is_empty() && sdcpp_sys::ENGINE.back_ends == ["cpu"]
}

/// A program that goes from a prompt to a condition.
struct Conditioner(PathBuf);

impl Conditioner {
    /// Builds it from upstream's structure with all corrections but one.
    fn without(skipped: &str) -> Self {
        let source = Path::new(env!("SDCPP_BUILT_HEADER")).ancestors().nth(2).unwrap();
        let lib = Path::new(env!("SDCPP_BUILT_LIB"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("conditioner-{skipped}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join(HEADER).parent().unwrap()).unwrap();
        fs::write(folder.join(HEADER), fs::read_to_string(source.join(HEADER)).unwrap()).unwrap();
        let wanted: Vec<&Correction> = CORRECTIONS
            .iter()
            .filter(|correction| correction.files.contains(&HEADER) && correction.name != skipped)
            .collect();
        corrections::apply(&folder, &wanted).unwrap();
        let text = fs::read_to_string(folder.join(HEADER)).unwrap();
        let start = text.find("struct SD3CLIPEmbedder").expect("the structure");
        let end = start + text[start..].find("\n};\n").expect("its end") + 4;
        fs::write(folder.join("sd3_clip_embedder.inc"), &text[start..end]).unwrap();

        let program = folder.join("conditioner");
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let output = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-g", "-w", "-fsanitize=address", "-DGGML_MAX_NAME=128"])
            .arg(format!("-I{}", folder.display()))
            .args(
                ["src", "include", "ggml/include", "thirdparty"]
                    .map(|part| format!("-I{}", source.join(part).display())),
            )
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conditioner.cpp"))
            .arg("-o")
            .arg(&program)
            .arg("-Wl,--start-group")
            .args(
                ["stable-diffusion", "ggml", "ggml-cpu", "ggml-base"]
                    .map(|name| lib.join(format!("lib{name}.a"))),
            )
            .args(["-Wl,--end-group", "-lpthread", "-ldl"])
            .output()
            .expect("a C++ compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(program)
    }

    /// For each prompt the number of chunks that the encoders got, and why there is none for some.
    fn run(&self, encoders: u8, prompts: &[String]) -> Result<Vec<usize>, String> {
        let mut child = Command::new(&self.0)
            .arg(encoders.to_string())
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all((prompts.join("\0") + "\0").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(text + errors.lines().find(|line| line.contains("ERROR")).unwrap_or_default());
        }
        let counts: Vec<_> = text.lines().map(|line| chunks(encoders, line)).collect::<Result<_, _>>()?;
        assert_eq!(counts.len(), prompts.len());
        Ok(counts)
    }
}

/// Checks one line of the program's.
fn chunks(encoders: u8, line: &str) -> Result<usize, String> {
    let numbers: Vec<usize> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let [l, g, t5, rows, pooled] = numbers[..] else { return Err(line.to_owned()) };
    let most = l.max(g).max(t5).max(1);
    let wanted = [1, 2, 4].map(|bit| if encoders & bit > 0 { most } else { 0 });
    let fits = [l, g, t5] == wanted && rows == most * 2 * 77 && pooled == 768 + 1280;
    if fits { Ok(most) } else { Err(format!("chunks, rows, pooled numbers: {line}")) }
}

/// A prompt of nearly 2,048 bytes, the most that there can be.
fn long(piece: &str) -> String {
    piece.repeat(2048 / piece.len())
}

/// One word for CLIP, several for T5.
const LONG_IN_T5: &str = "bokeh ";

/// The other way round.
const LONG_IN_CLIP: &str = "\u{754c}";

#[test]
fn any_prompt_and_any_encoders_make_a_condition() {
    if !is_for_this_test() {
        return;
    }
    let conditioner = Conditioner::without("nothing");
    let mut prompts = vec![String::new(), "a cat in space".to_owned()];
    let pieces = [
        LONG_IN_T5,
        LONG_IN_CLIP,
        "a ",
        "a red circle, (blue:1.2) ",
        "\u{e9}",
        "\u{1f408}",
        " ",
        "(((",
        "BREAK ",
    ];
    prompts.extend(pieces.map(long));
    let counts: Vec<_> = (0..8).map(|encoders| conditioner.run(encoders, &prompts)).collect();
    assert!(counts.iter().all(Result::is_ok), "{counts:?}");
    let [clip, t5] = [1, 4].map(|encoders: usize| counts[encoders].as_ref().unwrap());
    assert!(t5[2] > clip[2] && t5[3] < clip[3], "CLIP {clip:?}, T5 {t5:?}: these prompts show nothing");
}

#[test]
fn each_correction_is_needed() {
    if !is_for_this_test() {
        return;
    }
    let short = || "a cat in space".to_owned();
    for (name, cases) in [
        ("pooled-rank-clip-l", vec![(2, short())]),
        ("pooled-rank-clip-g", vec![(1, short()), (5, short())]),
        ("equal-token-counts", vec![(0, short()), (5, long(LONG_IN_T5)), (5, long(LONG_IN_CLIP))]),
    ] {
        let conditioner = Conditioner::without(name);
        for (encoders, prompt) in cases {
            let result = conditioner.run(encoders, &[prompt]);
            assert!(result.is_err(), "without {name} encoders {encoders:03b} give {result:?}");
        }
    }
}
