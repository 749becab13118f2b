//! Every file of the corpus through its target, on any toolchain; and every vector through every target.

use std::path::{Path, PathBuf};

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    ("split", weave_fuzz::split),
    ("request", weave_fuzz::request),
    ("response", weave_fuzz::response),
    ("error", weave_fuzz::error),
    ("structured", weave_fuzz::structured),
    ("differential", weave_fuzz::differential),
    ("config", weave_fuzz::config),
    ("model", weave_fuzz::model),
    ("router", weave_fuzz::router),
    ("worker_link", weave_fuzz::worker_link),
    #[cfg(feature = "engine")]
    ("prompt", weave_fuzz::prompt),
];

/// What a corpus may have, in bytes: everybody who gets the sources gets it.
const LARGEST_CORPUS: u64 = 2_000_000;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("a file").path()).filter(|path| path.is_file()).collect()
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn the_corpus_is_small_and_all_of_it_is_used() {
    let mut size = 0;
    for folder in std::fs::read_dir(corpus()).expect("the corpus") {
        let folder = folder.expect("a folder").path();
        let name = folder.file_name().and_then(|name| name.to_str()).expect("a name");
        // Without the engine its target is not there.
        let is_known = name == "prompt" || TARGETS.iter().any(|(known, _)| *known == name);
        assert!(is_known, "{} is of no target", folder.display());
        size += files(&folder).iter().map(|file| file.metadata().expect("a file").len()).sum::<u64>();
    }
    assert!(
        size <= LARGEST_CORPUS,
        "the corpus has {size} bytes, may have {LARGEST_CORPUS}: `fuzz/run keep`"
    );
}

#[test]
fn what_was_found_stays_mended() {
    for &(name, target) in TARGETS {
        let files = files(&corpus().join(name));
        assert!(!files.is_empty(), "the corpus of {name} is empty");
        for path in files {
            // Said before, so that the file is known if the target panics.
            println!("{}", path.display());
            target(&std::fs::read(&path).expect("a file"));
        }
    }
}

#[test]
fn every_vector_passes_every_target() {
    for vector in weave_conformance::spec::VECTORS.iter() {
        let bytes: Vec<u8> = vector.segments().into_iter().flat_map(|segment| segment.bytes).collect();
        if bytes.len() > 1 << 20 {
            continue;
        }
        println!("{}", vector.name);
        for (_, target) in TARGETS {
            target(&bytes);
        }
        for cut in [0, 2, 200] {
            weave_fuzz::differential(&[&[0, cut], bytes.as_slice()].concat());
            weave_fuzz::differential(&[&[1, cut], bytes.as_slice()].concat());
            weave_fuzz::split(&[&[cut, 1, cut, 7], bytes.as_slice()].concat());
        }
    }
}
