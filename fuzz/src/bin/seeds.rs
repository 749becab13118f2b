//! Writes the vectors of `spec/` as seeds for each target: `seeds FOLDER` makes `FOLDER/split/…` and so on.

use std::fs;
use std::path::PathBuf;

use weave_conformance::spec::VECTORS;
use weave_conformance::wire::Receiver;

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
        if bytes.len() > MAX_SEED {
            continue;
        }
        let (name, is_server) = (&vector.name, vector.receiver() == Receiver::Server);
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
    Ok(())
}
