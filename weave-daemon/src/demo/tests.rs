//! What is unpacked, whoever else unpacks at the same time and whatever lies there already.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process;
use std::thread;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::rules::{f16, hex, wave};
use super::*;

/// The files that `demo/expand.py` and `demo/make_clip.py` write, and what they may take on the disk.
const REFERENCE: [(&str, u64, &str, u64); 3] = [
    (
        "mmdit.safetensors",
        22_234_400,
        "143c0387f118bb26c9b1cbae79d41c89bff46d24df6148c726514ce065972c40",
        10_000_000,
    ),
    (
        "taesd.safetensors",
        4_938_444,
        "b320e813be79136c2c4d71de456fe89d09e51fdd189efe06d2e44a2516d78658",
        2_000_000,
    ),
    (
        "clip_l.safetensors",
        246_386_064,
        "3420dc0e9e944c65264ddd98d9d527d3778b26d794751800610c9b5e6a8b34bb",
        80_000_000,
    ),
];

fn cache() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn unpack(cache: &Path) -> Result<Files, Error> {
    super::unpack(cache, &Rules::default())
}

fn folder(path: &Path) -> Folder {
    Folder::find(path, &Rules::default()).expect("a folder that can be trusted")
}

fn ensure(path: &Path, model: &Model) -> Result<(), Error> {
    super::ensure(&folder(path.parent().expect("a parent")), path, model)
}

fn sha256(path: &Path) -> String {
    let mut digest = Sha256::new();
    let mut file = File::open(path).expect("opens");
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).expect("reads") {
            0 => return hex(&digest.finalize()),
            n => digest.update(&buffer[..n]),
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().display().to_string()).collect();
    names.sort();
    names
}

/// When the folder and each file in it last changed, and which file it is.
fn state(folder: &Path) -> Vec<(SystemTime, u64)> {
    let paths = names(folder).into_iter().map(|n| folder.join(n)).chain([folder.to_path_buf()]);
    let metadata = paths.map(|p| fs::metadata(p).expect("metadata"));
    metadata.map(|m| (m.modified().expect("a time"), m.ino())).collect()
}

/// The one test that writes the large file: twice, at once.
#[test]
fn two_at_once_write_what_the_reference_writes() {
    let cache = cache();
    // The cache itself and its parent need not exist.
    let root = cache.path().join("a/b");
    let (one, two) = thread::scope(|s| {
        let other = s.spawn(|| unpack(&root));
        (unpack(&root), other.join().expect("no panic"))
    });
    let files = one.expect("unpacks");
    assert_eq!(files, two.expect("unpacks"));
    assert_eq!(files.diffusion_model, root.join(FOLDER).join("mmdit.safetensors"));
    assert_eq!(files.taesd, root.join(FOLDER).join("taesd.safetensors"));
    assert_eq!(files.clip_l, root.join(FOLDER).join("clip_l.safetensors"));

    let folder = root.join(FOLDER);
    assert_eq!(names(&folder), ["clip_l.safetensors", "mmdit.safetensors", "taesd.safetensors"]);
    for path in [&root, &folder] {
        assert_eq!(fs::metadata(path).expect("metadata").mode() & 0o777, 0o700);
    }
    for (name, bytes, digest, on_disk) in REFERENCE {
        let path = folder.join(name);
        let metadata = fs::metadata(&path).expect("metadata");
        assert_eq!(metadata.len(), bytes, "{name}");
        assert_eq!(sha256(&path), digest, "{name}");
        let blocks = metadata.blocks() * 512;
        assert!(blocks < on_disk, "{name} takes {blocks} bytes: does this file system have no holes?");
    }

    let before = state(&folder);
    assert_eq!(unpack(&root).expect("is there"), files);
    assert_eq!(state(&folder), before, "the second time nothing is written");
}

#[test]
fn the_description_has_the_tables_digests() {
    let description = include_str!("../../demo/README.md");
    assert!(description.contains(TOKENS.digest));
    assert!(description.contains(POSITIONS.digest));
}

/// To be raised when this module writes other files from the same input.
const FORMAT: u32 = 1;

#[test]
fn the_folder_is_named_after_what_the_files_are_made_from() {
    let mut digest = Sha256::new();
    digest.update(FORMAT.to_le_bytes());
    for model in [&MMDIT, &TAESD] {
        digest.update(model.compact);
    }
    assert_eq!(FOLDER, format!("demo-model-{:.16}", hex(&digest.finalize())));
}

#[test]
fn damaged_files_are_written_again() {
    let cache = cache();
    let path = cache.path().join("taesd.safetensors");
    ensure(&path, &TAESD).expect("writes");
    let (_, bytes, digest, _) = REFERENCE[1];
    type Damage<'a> = &'a dyn Fn(&File) -> io::Result<()>;
    let damages: [(&str, Damage<'_>); 8] = [
        ("empty", &|f| f.set_len(0)),
        ("cut off", &|f| f.set_len(bytes - 1)),
        ("longer", &|f| f.set_len(bytes + 1)),
        ("another header length", &|f| f.write_all_at(b"x", 0)),
        ("a weight that was learned", &|f| f.write_all_at(b"x", bytes / 4)),
        ("a weight that is zero", &|f| f.write_all_at(b"x", bytes - 1)),
        ("open to others", &|f| f.set_permissions(fs::Permissions::from_mode(0o666))),
        ("the header's last byte", &|f| f.write_all_at(b"x", Layout::of(&TAESD).header.len() as u64 - 1)),
    ];
    for (name, damage) in damages {
        damage(&OpenOptions::new().write(true).open(&path).expect("opens")).expect(name);
        ensure(&path, &TAESD).expect(name);
        assert_eq!(sha256(&path), digest, "{name}");
    }
    fs::remove_file(&path).expect("removes");
    ensure(&path, &TAESD).expect("writes");
    assert_eq!(sha256(&path), digest);
    assert_eq!(names(cache.path()), ["taesd.safetensors"]);
}

#[test]
fn drafts_of_dead_runs_go_and_others_stay() {
    let cache = cache();
    let file = |name: &str, age| {
        let file = File::create(cache.path().join(name)).expect("creates");
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("sets the time");
    };
    file(".taesd.safetensors.7-0.draft", 700);
    file(".taesd.safetensors.7-1.draft", 500);
    file("taesd.safetensors", 700);
    file("notes.draft", 700);
    file(".notes", 700);
    sweep(&folder(cache.path()));
    assert_eq!(
        names(cache.path()),
        [".notes", ".taesd.safetensors.7-1.draft", "notes.draft", "taesd.safetensors"]
    );
}

/// Of a dead process that had this process's number.
#[test]
fn a_draft_in_the_way_is_passed_by() {
    let cache = cache();
    let path = cache.path().join("x");
    let name = |n| format!(".x.{}-{n}.draft", process::id());
    let folder = folder(cache.path());
    let first = Draft::create(&folder, &path, 1).expect("creates");
    let count: u32 = (0..1000).find(|n| first.temporary == *name(*n)).expect("a number");
    // Tests that run beside this one count too.
    for n in count + 1..count + 100 {
        File::create(cache.path().join(name(n))).expect("creates");
    }
    let second = Draft::create(&folder, &path, 1).expect("creates");
    assert!(cache.path().join(&second.temporary).exists());
    drop((first, second));
    assert_eq!(names(cache.path()).len(), 99);
}

#[test]
fn errors_name_the_path_and_the_way_out() {
    let cache = cache();
    let file = cache.path().join("file");
    File::create(&file).expect("creates");
    let text = unpack(&file.join("cache")).expect_err("not a folder").to_string();
    assert!(
        text.contains(&format!("cannot create the folder {}/cache/demo-model-", file.display())),
        "{text}"
    );
    assert!(text.contains("(Not a directory") && text.contains("remove what is in the way"), "{text}");

    let path = cache.path().join("taesd.safetensors");
    fs::create_dir(&path).expect("creates");
    let text = ensure(&path, &TAESD).expect_err("a folder").to_string();
    assert!(text.contains(&format!("cannot write {}", path.display())), "{text}");
    assert!(text.contains("remove what is in the way"), "{text}");
    assert_eq!(names(cache.path()), ["file", "taesd.safetensors"], "no draft is left");

    for (kind, way_out) in [
        (ErrorKind::StorageFull, "free 100 MB"),
        (ErrorKind::QuotaExceeded, "free 100 MB"),
        (ErrorKind::PermissionDenied, "make it writable"),
        (ErrorKind::ReadOnlyFilesystem, "make it writable"),
        (ErrorKind::Other, "try again"),
    ] {
        let text = Error::io("write", Path::new("/a/b"), kind.into()).to_string();
        assert!(text.contains("cannot write /a/b (") && text.contains(way_out), "{text}");
        assert!(text.contains("set WEAVE_CACHE_DIR"), "{text}");
    }
}

/// Somebody else was there first, with weights of their own under a header that is right.
#[test]
fn a_folder_of_somebody_else_is_neither_read_nor_written() {
    let layout = Layout::of(&TAESD);
    let plant = |folder: &Path, mode: u32| {
        fs::create_dir_all(folder).expect("creates");
        let theirs = [&layout.header[..], &vec![7; layout.bytes - layout.header.len()]].concat();
        fs::write(folder.join(TAESD.file), &theirs).expect("writes");
        let draft = File::create(folder.join(".x.draft")).expect("creates");
        draft.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("sets the time");
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("sets the mode");
        theirs
    };
    let refused = |root: &Path, folder: &Path, theirs: &[u8], words: &str| {
        for text in [
            check_place(root, &Rules::default()).err().map(|error| error.to_string()),
            Some(unpack(root).expect_err(words).to_string()),
        ]
        .into_iter()
        .flatten()
        {
            assert!(text.contains(words) && text.contains("WEAVE_CACHE_DIR"), "{words}: {text}");
        }
        assert!(fs::read(folder.join(TAESD.file)).expect("reads") == theirs, "{words}: overwritten");
        assert_eq!(names(folder), [".x.draft", TAESD.file], "{words}");
    };
    for (place, mode) in [("", 0o777), ("", 0o772), (FOLDER, 0o777), (FOLDER, 0o1777)] {
        let cache = cache();
        let folder = cache.path().join("cache").join(FOLDER);
        let theirs = plant(&folder, 0o700);
        let open = cache.path().join("cache").join(place);
        fs::set_permissions(&open, fs::Permissions::from_mode(mode)).expect("sets the mode");
        refused(&cache.path().join("cache"), &folder, &theirs, &format!("has mode {mode:04o}"));
    }
    // A folder further up.
    let cache = cache();
    let folder = cache.path().join("open/cache").join(FOLDER);
    let theirs = plant(&folder, 0o700);
    fs::set_permissions(cache.path().join("open"), fs::Permissions::from_mode(0o777)).expect("sets the mode");
    refused(&cache.path().join("open/cache"), &folder, &theirs, "has mode 0777");
    // The name leads elsewhere.
    let cache = self::cache();
    let elsewhere = cache.path().join("elsewhere");
    let theirs = plant(&elsewhere, 0o700);
    std::os::unix::fs::symlink(&elsewhere, cache.path().join(FOLDER)).expect("links");
    refused(cache.path(), &elsewhere, &theirs, "is a symbolic link");

    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT CHECKED: only root can give folders away");
        return;
    }
    let give = |path: &Path| std::os::unix::fs::chown(path, Some(4242), Some(4242)).expect("gives it away");
    for whose in ["cache", &format!("cache/{FOLDER}")] {
        let cache = self::cache();
        let folder = cache.path().join("cache").join(FOLDER);
        let theirs = plant(&folder, 0o755);
        give(&cache.path().join(whose));
        refused(&cache.path().join("cache"), &folder, &theirs, "belongs to uid 4242");
    }
    // A file that was put there while the folder was open.
    let cache = self::cache();
    let theirs = plant(&cache.path().join(FOLDER), 0o755);
    let file = cache.path().join(FOLDER).join(TAESD.file);
    give(&file);
    let text = unpack(cache.path()).expect_err("of somebody else").to_string();
    assert!(text.contains("taesd.safetensors belongs to uid 4242"), "{text}");
    assert!(fs::read(file).expect("reads") == theirs);
    // A link of theirs, in a folder where everybody may put something.
    let cache = self::cache();
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o1777)).expect("sets the mode");
    let elsewhere = cache.path().join("elsewhere").join(FOLDER);
    let theirs = plant(&elsewhere, 0o700);
    let link = cache.path().join("cache");
    std::os::unix::fs::symlink(cache.path().join("elsewhere"), &link).expect("links");
    std::os::unix::fs::lchown(&link, Some(4242), None).expect("gives it away");
    refused(&link, &elsewhere, &theirs, "is a symbolic link of uid 4242");
}

#[test]
fn an_unwritable_folder_is_an_error() {
    let cache = cache();
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o500)).expect("sets the mode");
    if File::create(cache.path().join("probe")).is_ok() {
        return; // Root may write everywhere.
    }
    let text = unpack(cache.path()).expect_err("unwritable").to_string();
    assert!(text.contains("cannot create the folder") && text.contains("make it writable"), "{text}");
}

#[test]
fn the_cache_folder_comes_from_the_environment() {
    let dir = |variables: &[(&str, &str)]| {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name);
        cache_dir_from(|name| find(name).map(|(_, value)| value.into())).ok()
    };
    let [own, xdg, home] = [("WEAVE_CACHE_DIR", "/w"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(dir(&[own, xdg, home]), Some("/w".into()));
    assert_eq!(dir(&[xdg, home]), Some("/x/weave".into()));
    assert_eq!(dir(&[home]), Some("/h/.cache/weave".into()));
    assert_eq!(dir(&[]), None);
    assert_eq!(dir(&[("WEAVE_CACHE_DIR", ""), ("XDG_CACHE_HOME", ""), home]), Some("/h/.cache/weave".into()));
    assert_eq!(dir(&[("XDG_CACHE_HOME", "x"), home]), Some("/h/.cache/weave".into()));
    assert_eq!(dir(&[("HOME", "h")]), None);
    let here = env::current_dir().expect("a current folder");
    assert_eq!(dir(&[("WEAVE_CACHE_DIR", "w"), home]), Some(here.join("w")));
    assert!(Error::NoCacheDir.to_string().contains("set WEAVE_CACHE_DIR"));
}

#[test]
fn layouts_are_aligned_and_lack_no_tensor() {
    for (model, count) in [(&MMDIT, 665), (&TAESD, 134), (&CLIP_L, 196)] {
        let layout = Layout::of(model);
        assert_eq!(layout.tensors.len(), count, "{}", model.file);
        assert_eq!(layout.header.len() % 8, 0, "{}", model.file);
        // The reader reads what the writer writes; a tensor's place is a multiple of its numbers' size.
        let data = vec![0; layout.bytes - layout.header.len()];
        let whole = [&layout.header[..], &data].concat();
        let found = read_compact(model.file, &whole).expect("reads");
        assert_eq!(found.len(), count, "{}", model.file);
        for tensor in &layout.tensors {
            let place = &found[tensor.name.as_str()];
            let offset = place.data.as_ptr().addr() - whole.as_ptr().addr();
            assert_eq!(place.shape, tensor.shape, "{}", tensor.name);
            assert_eq!(offset % if tensor.is_vector() { 4 } else { 2 }, 0, "{}", tensor.name);
        }
    }
}

#[test]
fn f16_is_rounded_to_the_nearest_even() {
    let e = f64::exp2;
    for (value, bits) in [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3C00),
        (-1.0, 0xBC00),
        (0.5, 0x3800),
        (0.1, 0x2E66),
        (65504.0, 0x7BFF),
        // Halfway: to the even one, up or down.
        (1.0 + e(-11.0), 0x3C00),
        (1.0 + 3.0 * e(-11.0), 0x3C02),
        // A little more than halfway, so little that f32 would lose it.
        (1.0 + e(-11.0) + e(-40.0), 0x3C01),
        (1.0 + 3.0 * e(-11.0) - e(-40.0), 0x3C01),
        // The carry goes to the exponent.
        (2.0 - e(-12.0), 0x4000),
        // Around the smallest normal number.
        (e(-14.0), 0x0400),
        (e(-14.0) - e(-24.0), 0x03FF),
        (e(-14.0) - e(-26.0), 0x0400),
        // Around the smallest of all.
        (e(-24.0), 0x0001),
        (-3.0 * e(-25.0), 0x8002),
        (e(-25.0), 0x0000),
        (e(-25.0) + e(-60.0), 0x0001),
        (e(-26.0), 0x0000),
        (1e-300, 0x0000),
        (f64::from_bits(1), 0x0000),
    ] {
        assert_eq!(u16::from_le_bytes(f16(value)), bits, "{value:e}");
    }
}

/// Values that numpy computed.
#[test]
fn waves_are_those_that_the_model_was_trained_with() {
    let wave = |patch| -> Vec<u16> {
        wave(patch).chunks(2).map(|b| u16::from_le_bytes(b.try_into().expect("two bytes"))).collect()
    };
    for (patch, values) in [
        (0, [0x39A8, 0xBC00, 0xBC00, 0x39A8, 0x2248]),
        (63, [0xB9A8, 0xB8E0, 0xA248, 0x39A8, 0x3C00]),
        (127, [0xB9A8, 0x3C00, 0x3C00, 0x39A8, 0x2248]),
    ] {
        assert_eq!([0, 1, 23, 24, 47].map(|i| wave(patch)[i]), values, "{patch}");
    }
}

#[test]
fn a_smaller_tensor_fills_the_corner() {
    let mut full = [0; 2 * 3 * 2];
    assert!(fill_corner(&mut full, &[2, 3], &[1, 2, 3, 4], &[1, 2]));
    assert_eq!(full, [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut full = [0; 2 * 2 * 2];
    assert!(fill_corner(&mut full, &[2, 2, 1], &[1, 2, 3, 4], &[2, 1, 1]));
    assert_eq!(full, [1, 2, 0, 0, 3, 4, 0, 0]);
    assert!(!fill_corner(&mut full, &[2, 2], &[0; 12], &[2, 3]), "too wide");
    assert!(!fill_corner(&mut full, &[2, 2], &[0; 12], &[3, 2]), "too high");
    assert!(!fill_corner(&mut full, &[4], &[0; 8], &[2, 2]), "too many dimensions");
}

/// A safetensors file with 8 bytes of data.
fn compact(header: &str) -> &'static [u8] {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &[1, 2, 3, 4, 5, 6, 7, 8]].concat().leak()
}

#[test]
fn a_compact_file_is_taken_apart() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}  "#;
    let found = read_compact("x", compact(header)).expect("reads");
    assert_eq!(found.len(), 2);
    assert_eq!(found["a"], Learned { shape: vec![1], data: &[5, 6, 7, 8] });
    assert_eq!(found["b"], Learned { shape: vec![1, 2], data: &[1, 2, 3, 4] });

    for header in [
        "",
        "{",
        "{}",
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}"#,
        r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}}"#,
    ] {
        let text = read_compact("x", compact(header)).expect_err(header).to_string();
        assert!(text.contains("x cannot be made (the header is not understood"), "{text}");
    }
    for bytes in [&[0; 7][..], &[9, 0, 0, 0, 0, 0, 0, 0, b'{'], &[255; 16], &[1, 0, 0, 0, 0, 0, 0, 0, 255]] {
        assert!(read_compact("x", bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn wrong_input_leaves_no_file() {
    fn vector() -> Vec<Tensor> {
        vec![Tensor::new("a".into(), &[1], Fill::Zeros)]
    }
    fn table() -> Vec<Tensor> {
        static WRONG: Signs = Signs { seed: 1, ..POSITIONS };
        vec![Tensor::new("a".into(), &[WRONG.rows, Signs::WIDTH], Fill::Signs(&WRONG))]
    }
    let unknown = compact(r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#);
    let large = compact(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#);
    let cache = cache();
    for (compact, tensors, expected) in [
        (unknown, vector as fn() -> _, "b has no place in the model"),
        (large, vector, "a does not fit"),
        (&[], table, "the SHA-256"),
    ] {
        let model = Model { file: "x", compact, tensors };
        let text = ensure(&cache.path().join("x"), &model).expect_err(expected).to_string();
        assert!(text.contains(expected), "{text}");
        assert_eq!(names(cache.path()), [""; 0], "{expected}");
    }
}

#[test]
fn what_is_missing_is_what_unpacking_writes() {
    let cache = tempfile::tempdir().unwrap();
    let before = missing(cache.path()).unwrap();
    let files = unpack(cache.path()).unwrap();
    let files = [files.diffusion_model, files.clip_l, files.taesd];
    let on_disk = files.map(|file| fs::metadata(file).unwrap().blocks() * 512).iter().sum::<u64>();
    assert!(on_disk > before / 10 * 9 && before > 1_000_000, "{before} bytes, {on_disk} on the disk");
    assert_eq!(missing(cache.path()).unwrap(), 0);
}
