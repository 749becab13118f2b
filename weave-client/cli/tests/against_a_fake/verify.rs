//! `weave verify`.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use crate::command::{folder, good_daemon, run, weave};
use crate::fake::{Fake, Response, error, send};

/// Makes `cat.png` with the pixels of [`Response::good`].
fn cat(folder: &Path) {
    let fake = good_daemon();
    let mut command = weave(folder);
    command.args(["generate", "a cat", "-ocat.png", "--width=64", "--height=64", "--seed=7", "--cfg=7.1"]);
    command.arg("--socket").arg(fake.path());
    assert_eq!(run(command).status, Some(0));
    fake.end();
}

fn verify(folder: &Path, socket: &Path, args: &[&str]) -> Command {
    let mut command = weave(folder);
    command.args(["verify", "--timeout=20", "--socket"]).arg(socket).args(args);
    command
}

#[test]
fn the_same_image_is_asked_for_and_compared() {
    let folder = folder();
    cat(folder.path());
    let answers = |spoil: fn(&mut Vec<u8>)| {
        Fake::serving(move |stream, request| {
            assert_eq!([28, 32, 36].map(|at| request.u32(at)), [64, 64, 28]);
            assert_eq!((f32::from_bits(request.u32(40)), request.u64(44)), (7.1, 7));
            assert_eq!(request.0[76..81], *b"a cat");
            let mut response = Response::good(request.id());
            spoil(&mut response.pixels);
            send(stream, &response.bytes());
        })
    };
    let same = answers(|_| ());
    let run_ = run(verify(folder.path(), &same.path(), &["cat.png"]));
    assert_eq!(
        (run_.status, run_.stdout.as_str()),
        (Some(0), "cat.png: the same 4096 pixels, made in 1.2 s\n")
    );
    same.end();

    let spoil = |pixels: &mut Vec<u8>| {
        pixels[0] ^= 1;
        pixels[2] ^= 2;
        pixels[3000] = pixels[3000].wrapping_sub(9);
        assert!(pixels[3000] < 240, "it did not wrap");
    };
    let other = answers(spoil);
    let run_ = run(verify(folder.path(), &other.path(), &["cat.png"]));
    assert_eq!(run_.status, Some(1), "{}", run_.stderr);
    assert_eq!(run_.stdout, "cat.png: 2 of 4096 pixels differ, by at most 9 of 255\n");
    other.end();

    let other = answers(spoil);
    let run_ = run(verify(folder.path(), &other.path(), &["cat.png", "--json"]));
    assert_eq!(run_.status, Some(1));
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&run_.stdout).unwrap(),
        serde_json::json!({"file": "cat.png", "same": false, "pixels": 4096, "different_pixels": 2,
            "most_difference": 9, "generation_seconds": 1.234})
    );
    other.end();

    let same = answers(|_| ());
    let mut command = verify(folder.path(), &same.path(), &["-", "--quiet"]);
    command.stdin(File::open(folder.path().join("cat.png")).unwrap());
    let run = run(command);
    assert_eq!((run.status, run.stdout.as_str(), run.stderr.as_str()), (Some(0), "", ""));
    same.end();
}

#[test]
fn opaque_alpha_is_no_difference() {
    let folder = folder();
    cat(folder.path());
    let fake = Fake::serving(|stream, request| {
        let rgb = Response::good(request.id());
        let pixels = rgb.pixels.chunks(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect();
        send(stream, &Response { channels: 4, pixels, ..rgb }.bytes());
    });
    assert_eq!(run(verify(folder.path(), &fake.path(), &["cat.png"])).status, Some(0));
    fake.end();
}

/// A PNG file of one colour, with these texts.
fn png(path: &Path, width: u32, texts: &[(&str, &str)]) {
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path).unwrap()), width, 64);
    encoder.set_color(png::ColorType::Grayscale);
    for (keyword, text) in texts {
        encoder.add_text_chunk((*keyword).to_owned(), (*text).to_owned()).unwrap();
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![9; width as usize * 64]).unwrap();
}

#[test]
fn what_cannot_be_made_again_is_told_before_anybody_is_called() {
    let folder = folder();
    cat(folder.path());
    let path = |name: &str| folder.path().join(name);
    let whole = fs::read(path("cat.png")).unwrap();
    fs::write(path("cut.png"), &whole[..whole.len() - 20]).unwrap();
    fs::write(path("text.png"), "<!DOCTYPE html>").unwrap();
    let recipe = |change: (&str, &str)| {
        let recipe = r#"{"protocol":1,"model_id":0,"prompt":"a cat","width":64,"height":64,"steps":28,"cfg_scale":7.0,"seed":7}"#;
        recipe.replace(change.0, change.1)
    };
    png(&path("bare.png"), 64, &[("parameters", "a cat\nSteps: 28")]);
    png(&path("small.png"), 32, &[("Weave", &recipe(("", "")))]);
    png(&path("steps.png"), 64, &[("Weave", &recipe(("28", "0")))]);
    png(&path("model.png"), 64, &[("Weave", &recipe((r#""model_id":0"#, r#""model_id":3"#)))]);
    png(&path("seed.png"), 64, &[("Weave", &recipe((r#""seed":7"#, r#""seed":0"#)))]);
    png(&path("prompt.png"), 64, &[("Weave", &recipe(("a cat", "")))]);
    png(&path("json.png"), 64, &[("Weave", "{}")]);
    fs::write(path("cat.jpg"), b"\xFF\xD8\xFF\xE0\0\x10JFIF").unwrap();
    fs::write(path("cat.webp"), b"RIFF\0\0\0\0WEBPVP8L").unwrap();
    let cases = [
        ("cat.jpg", "cat.jpg is a JPEG file, and only a PNG file from `weave generate` has"),
        ("cat.webp", "cat.webp is a WebP file, and only a PNG file"),
        ("none.png", "can't read none.png: No such file"),
        ("text.png", "text.png is no sound PNG file"),
        ("cut.png", "cut.png is cut off, or no PNG file"),
        ("bare.png", "bare.png doesn't say how to make it: it has no text \"Weave\""),
        ("small.png", "small.png has 32×64 pixels, and was made with 64×64"),
        ("steps.png", "steps.png has parameters that can't be used: steps is 0, must be 1 to 100"),
        ("model.png", "model.png has parameters that can't be used: model_id is 3, must be 0"),
        ("seed.png", "seed is 0, which is another image each time"),
        ("prompt.png", "prompt.png has parameters that can't be used: the prompt is empty, must have"),
        ("json.png", "json.png has parameters that can't be used: missing field"),
    ];
    for (file, says) in cases {
        let run = run(verify(folder.path(), Path::new("nobody.sock"), &[file]));
        assert_eq!((run.status, run.stdout.as_str()), (Some(66), ""), "{file}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{file}: {}", run.stderr);
    }
}

#[test]
fn a_daemon_that_cannot_is_not_another_image() {
    let folder = folder();
    cat(folder.path());
    let fake = Fake::serving(|stream, request| send(stream, &error(request.id(), 500, 9, "")));
    assert_eq!(run(verify(folder.path(), &fake.path(), &["cat.png"])).status, Some(7));
    fake.end();
    assert_eq!(run(verify(folder.path(), Path::new("none"), &["cat.png"])).status, Some(69));
}
