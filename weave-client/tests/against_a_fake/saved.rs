//! Images that are saved: what `weave verify` makes of them is tested in `weave-cli`.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use png::text_metadata::ITXtChunk;
use weave_client::{Client, Image, Params};

use crate::fake::{Fake, Response, send};

fn image(prompt: &str, channels: u32) -> Image {
    let fake = Fake::serving(move |stream, request| {
        let pixels = (0..64 * 64 * channels).map(|i| (i % 253) as u8).collect();
        send(stream, &Response { channels, pixels, ..Response::good(request.id()) }.bytes());
    });
    let params = Params { width: 64, height: 64, steps: 8, cfg_scale: 1.5, seed: 7 };
    let image = Client::new(fake.path()).generate(&params, prompt).unwrap();
    fake.end();
    image
}

/// Pixels, and texts by their keywords, of which those that aren't Latin-1 follow.
fn read(file: &Path) -> (Vec<u8>, Vec<(String, String)>) {
    let mut reader = png::Decoder::new(Cursor::new(fs::read(file).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().map(|text| (text.keyword.clone(), text.text.clone()));
    let text = |chunk: &ITXtChunk| (chunk.keyword.clone(), chunk.get_text().unwrap());
    (pixels, latin1.chain(info.utf8_text.iter().map(text)).collect())
}

#[test]
fn a_saved_image_says_how_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cat.png");
    for (prompt, json, channels) in [("a \"cat\"", r#""a \"cat\"""#, 3), ("猫 ☂", r#""猫 ☂""#, 4)] {
        let image = image(prompt, channels);
        image.save(&path).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        let parameters = format!(
            "{prompt}\nSteps: 8, Sampler: unknown, CFG scale: 1.5, Seed: 7, Size: 64x64, Version: Weave \
             {version}"
        );
        let recipe = format!(
            r#"{{"protocol":1,"model_id":0,"prompt":{json},"width":64,"height":64,"steps":8,"cfg_scale":1.5,"seed":7,"provider":"local"}}"#
        );
        let texts = [("parameters", parameters), ("Weave", recipe)].map(|(key, text)| (key.to_owned(), text));
        // Spelt out: what `weave verify` reads, whichever version wrote it.
        let (pixels, found) = read(&path);
        assert_eq!(
            found,
            match channels {
                3 => texts.to_vec(),
                _ => {
                    let mut latin1_first = texts.to_vec();
                    latin1_first.sort_by_key(|(_, text)| text.chars().any(|c| u32::from(c) > 0xFF));
                    latin1_first
                }
            }
        );
        assert!(pixels == image.pixels, "other pixels");
    }
}

#[test]
fn a_file_is_there_complete_or_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let image = image("a cat", 3);
    let in_folder = |name: &str| folder.path().join(name);
    let whole = image.png().unwrap();

    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    image.save(in_folder("new.png")).unwrap();
    rustix::process::umask(umask);
    assert_eq!(fs::metadata(in_folder("new.png")).unwrap().mode() & 0o777, 0o640, "as any new file");

    fs::write(in_folder("old.png"), "old").unwrap();
    fs::set_permissions(in_folder("old.png"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("old.png", in_folder("link.png")).unwrap();
    image.save(in_folder("link.png")).unwrap();
    assert_eq!(fs::read_link(in_folder("link.png")).unwrap(), Path::new("old.png"));
    assert_eq!(fs::read(in_folder("old.png")).unwrap(), whole);
    assert_eq!(
        fs::metadata(in_folder("old.png")).unwrap().mode() & 0o777,
        0o600,
        "what was private stays so"
    );

    fs::create_dir(in_folder("folder.png")).unwrap();
    for (name, reason) in [
        ("folder.png", "it is there and is no regular file"),
        ("nowhere/cat.png", "No such file or directory (os error 2)"),
        // Found out when it is to get its name.
        (&"x".repeat(300), "File name too long (os error 36)"),
    ] {
        let error = image.save(in_folder(name)).unwrap_err();
        assert_eq!(error.to_string(), format!("can't write {}: {reason}", in_folder(name).display()));
    }
    // A device isn't replaced by a file.
    assert!(image.save("/dev/null").is_err());

    let mut spoilt = image.clone();
    spoilt.pixels.pop();
    assert!(spoilt.save(in_folder("new.png")).is_err());
    assert_eq!(fs::read(in_folder("new.png")).unwrap(), whole);
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["folder.png", "link.png", "new.png", "old.png"], "nothing else is left");
}
