//! Every kind of object in the file system, every mode, and every place for it.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{geteuid, getgid};
use tempfile::TempDir;
use weave_trust::{Folder, Rules, SecretError, read_secret};

const SECRET: &str = "0123456789abcdef";

fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        eprintln!("NOT CHECKED: only root can give files away");
    }
    is_root
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn secret(folder: &Path, mode: u32) -> PathBuf {
    let path = folder.join("secret");
    fs::write(&path, format!("{SECRET}\n")).unwrap();
    set_mode(&path, mode);
    path
}

fn read(path: &Path) -> Result<String, SecretError> {
    read_secret(path, 64, &Rules::default())
}

fn refused(path: &Path, words: &str) -> SecretError {
    let error = read(path).expect_err(words);
    let text = error.to_string();
    assert!(text.contains(words), "{words:?}: {text}");
    assert!(!text.contains(SECRET));
    error
}

#[test]
fn modes_of_a_secret_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut owners = vec![geteuid().as_raw()];
    if is_root() {
        owners.push(4242);
    }
    for owner in owners {
        for mode in 0..=0o777 {
            let path = secret(folder.path(), mode);
            if owner == 4242 {
                chown(&path, Some(owner), None).unwrap();
                assert!(refused(&path, "belongs to uid 4242").is_exposed());
            } else if mode & !(if owner == 0 { 0o740 } else { 0o700 }) != 0 {
                // Root reads what nobody may read; others get no further than the kernel lets them.
                if mode & 0o400 != 0 || owner == 0 {
                    let error = refused(&path, &format!("has mode {mode:04o}, must have at most 0600"));
                    assert!(error.is_exposed());
                } else {
                    read(&path).unwrap_err();
                }
            } else if mode & 0o400 != 0 || owner == 0 {
                assert_eq!(read(&path).unwrap(), SECRET, "{mode:04o}");
            }
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn what_else_can_have_the_name_of_a_secret_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // None of them is waited for: nobody writes to the pipe.
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _listener = UnixListener::bind(at("socket")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    symlink("pipe", at("link-to-pipe")).unwrap();
    fs::write(at("file"), "").unwrap();
    for (path, words, exposed) in [
        (at("pipe"), "is a pipe, not a file", false),
        (at("link-to-pipe"), "is a pipe", false),
        (at("socket"), "is a socket", false),
        (at(""), "is a folder", false),
        (at("."), "is a folder", false),
        (at(".."), "is a folder", false),
        ("/".into(), "is a folder", false),
        ("/dev/null".into(), "is a device", false),
        ("/dev/tty".into(), "is a device", false),
        (at("dangling"), "can't be read: No such file", false),
        (at("absent"), "can't be read: No such file", false),
        (at("absent/too"), "can't be read: No such file", false),
        (at("file/within"), "can't be read: Not a directory", false),
        (at("loop"), "can't be read: Too many levels", false),
    ] {
        assert_eq!(refused(&path, words).is_exposed(), exposed, "{}", path.display());
    }
    // A pipe of the shell's, as in `--token-file <(command)`.
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&stdin));
    assert!(read(Path::new(&path)).is_err());
    drop(stdin);
    child.wait().unwrap();

    for (content, words) in [
        (&b""[..], "is empty"),
        (b" \n\t\r\n", "is empty"),
        (
            b"caf\xe9",
            "is not UTF-8 text from its byte 3 on (Latin-1 or Windows-1252, perhaps); save it as UTF-8",
        ),
        (b"caf\0", "has a NUL as its byte 3"),
        (b"\xff\xfe\n\0", "is empty"),
        (&[b'x'; 65], "has more than 64 bytes"),
        (&[b'x'; 5000], "has more than 64 bytes"),
        (&[&[b'x'; 64][..], &[b' '; 5000]].concat(), "has more than 64 bytes"),
    ] {
        let path = secret(folder.path(), 0o600);
        fs::File::create(&path).unwrap().write_all(content).unwrap();
        assert!(!refused(&path, words).is_exposed());
    }
    let path = secret(folder.path(), 0o600);
    for content in [
        vec![b'x'; 64],
        [&[b'x'; 64][..], b"\r\n\n"].concat(),
        // As Windows' programs write it.
        [b"\xef\xbb\xbf", &[b'x'; 64][..], b"\r\n"].concat(),
        [b"\xff\xfe", &b"x\0".repeat(64)[..], b"\r\0\n\0"].concat(),
        [b"\xfe\xff", &b"\0x".repeat(64)[..]].concat(),
    ] {
        fs::write(&path, &content).unwrap();
        assert_eq!(read(&path).unwrap().len(), 64);
    }
}

/// A private file, and what can be wrong with the way to it.
struct Place {
    root: TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        fs::create_dir_all(&folder).unwrap();
        Self { file: secret(&folder, 0o600), root }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

#[test]
fn folders_on_the_way_to_a_secret_file() {
    for name in ["", "a", "a/b"] {
        for (mode, words) in [
            (0o700, None),
            (0o755, None),
            (0o711, None),
            (0o1777, None),
            (0o1770, None),
            (0o777, Some("so every user could replace")),
            (0o757, Some("so every user could replace")),
            (0o703, Some("so every user could replace")),
            (0o2777, Some("has mode 2777")),
        ] {
            let place = Place::new();
            set_mode(&place.at(name), mode);
            match words {
                None => assert_eq!(read(&place.file).unwrap(), SECRET, "{name} {mode:o}"),
                Some(words) => {
                    let error = refused(&place.file, words);
                    assert!(error.is_exposed());
                    let text = error.to_string();
                    assert!(text.contains(place.at(name).to_str().unwrap().trim_end_matches('/')), "{text}");
                    // Unless somebody says that it is right.
                    let rules = Rules::with_exceptions([place.at("absent"), place.at(name)]);
                    assert_eq!(read_secret(&place.file, 64, &rules).unwrap(), SECRET);
                }
            }
        }
    }
}

#[test]
fn groups_on_the_way_to_a_secret_file() {
    let place = Place::new();
    set_mode(&place.at("a"), 0o775);
    if is_root() {
        chown(place.at("a"), None, Some(4242)).unwrap();
        let error = refused(&place.file, "has mode 0775, so group 4242 could replace").to_string();
        assert!(error.contains("/a has mode"), "{error}");
    }
    // Whether this user's own group is nobody else's, this machine's files say.
    let _ = chown(place.at("a"), None, Some(getgid().as_raw()));
    if let Err(error) = read(&place.file) {
        assert!(error.to_string().contains("could replace"), "{error}");
    }
}

#[test]
fn owners_on_the_way_to_a_secret_file() {
    if !is_root() {
        return;
    }
    for name in ["a", "a/b"] {
        let place = Place::new();
        chown(place.at(name), Some(4242), None).unwrap();
        let error = refused(&place.file, "belongs to uid 4242, who could replace");
        assert!(
            error.is_exposed() && error.to_string().contains(place.at(name).to_str().unwrap()),
            "{error}"
        );
        // Sticky or not: it is the owner's.
        set_mode(&place.at(name), 0o1777);
        refused(&place.file, "belongs to uid 4242");
    }
}

#[test]
fn links_on_the_way_to_a_secret_file() {
    let place = Place::new();
    symlink("a", place.at("relative")).unwrap();
    symlink(place.at("a/b"), place.at("absolute")).unwrap();
    symlink("../relative/b/secret", place.at("a/last")).unwrap();
    symlink("/", place.at("top")).unwrap();
    let from_top = place.at("top").join(place.file.strip_prefix("/").unwrap());
    let good = [
        place.at("relative/b/secret"),
        place.at("absolute/secret"),
        place.at("absolute/../b/secret"),
        place.at("relative/../a/b/./secret"),
        place.at("a/last"),
        from_top,
    ];
    for path in &good {
        assert_eq!(read(path).unwrap(), SECRET, "{}", path.display());
    }
    // Where the links lie counts, and where they lead to.
    set_mode(&place.at("a/b"), 0o777);
    for path in &good {
        refused(path, "has mode 0777");
    }
    set_mode(&place.at("a/b"), 0o755);
    fs::create_dir(place.at("open")).unwrap();
    symlink("../a/b/secret", place.at("open/secret")).unwrap();
    symlink("../a", place.at("open/a")).unwrap();
    set_mode(&place.at("open"), 0o777);
    refused(&place.at("open/secret"), "open has mode 0777");
    refused(&place.at("open/a/b/secret"), "open has mode 0777");
    set_mode(&place.at("open"), 0o1777);
    assert_eq!(read(&place.at("open/secret")).unwrap(), SECRET);
    assert_eq!(read(&place.at("open/a/b/secret")).unwrap(), SECRET);
    if is_root() {
        lchown(place.at("open/a"), Some(4242), None).unwrap();
        lchown(place.at("open/secret"), Some(4242), None).unwrap();
        refused(&place.at("open/a/b/secret"), "is a symbolic link of uid 4242");
        refused(&place.at("open/secret"), "is a symbolic link of uid 4242");
    }
}

#[test]
fn a_folder_is_made_for_its_owner_alone_and_nowhere_else() {
    let place = Place::new();
    let rules = Rules::default();
    let made = Folder::make(&place.at("a/x/y"), &rules).unwrap();
    assert_eq!(made.path(), place.root.path().canonicalize().unwrap().join("a/x/y"));
    for name in ["a/x", "a/x/y"] {
        assert_eq!(fs::metadata(place.at(name)).unwrap().permissions().mode() & 0o7777, 0o700);
    }
    made.judge_content().unwrap();
    assert!(Folder::find(&place.at("a/z"), &rules).is_err() && !place.at("a/z").exists());
    Folder::make(&place.at("a/x/y"), &rules).unwrap().enter_or_make("z".as_ref()).unwrap();
    assert!(place.at("a/x/y/z").is_dir());

    set_mode(&place.at("a/x"), 0o777);
    assert!(Folder::make(&place.at("a/x/new"), &rules).is_err() && !place.at("a/x/new").exists());
    // The way leads to it, but not on from it.
    let open = Folder::find(&place.at("a/x"), &rules).unwrap();
    assert!(open.judge().is_err() && open.judge_content().is_err());
    // In a sticky one our folders are ours; what else is in it may be anybody's.
    set_mode(&place.at("a/x"), 0o1777);
    Folder::make(&place.at("a/x/new"), &rules).unwrap().judge_content().unwrap();
    let sticky = Folder::find(&place.at("a/x"), &rules).unwrap();
    sticky.judge().unwrap();
    assert!(sticky.judge_content().unwrap_err().to_string().contains("has mode 1777"));
    // Entering follows no link.
    symlink("a", place.at("link")).unwrap();
    let root = Folder::find(place.root.path(), &rules).unwrap();
    for result in [root.enter("link".as_ref()), root.enter_or_make("link".as_ref())] {
        assert!(result.unwrap_err().to_string().ends_with("link is a symbolic link"));
    }
    let error =
        root.enter("a".as_ref()).unwrap().enter("b".as_ref()).unwrap().enter("secret".as_ref()).unwrap_err();
    assert!(error.to_string().contains("Not a directory"), "{error}");
}
