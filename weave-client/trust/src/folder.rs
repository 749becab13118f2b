//! Folders: the way to one, step by step, and who could change what is found there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::accounts::{Who, is_private, may_be_outer_root};

/// As many links as the kernel follows.
const MAX_LINKS: u32 = 40;

/// Whom folders may belong to.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Beside root.
    us: u32,
    /// Whether what lies in a sticky folder is its owner's.
    sticky: bool,
    /// Device and inode of folders that are taken as they are.
    exceptions: Vec<(u64, u64)>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { us: geteuid().as_raw(), sticky: true, exceptions: Vec::new() }
    }
}

impl Rules {
    /// The usual rules, but for these folders: somebody who knows has said that nobody else uses them, whatever their owner
    /// and mode are. What isn't there is no exception.
    #[must_use]
    pub fn with_exceptions<P: AsRef<Path>>(folders: impl IntoIterator<Item = P>) -> Self {
        let exceptions = folders.into_iter().filter_map(|folder| fs::metadata(folder).ok());
        Self { exceptions: exceptions.map(|found| (found.dev(), found.ino())).collect(), ..Self::default() }
    }

    /// Root's folders and no others.
    pub(crate) const fn of_root() -> Self {
        Self { us: 0, sticky: false, exceptions: Vec::new() }
    }

    fn is_ours(&self, uid: u32) -> bool {
        uid == 0 || uid == self.us
    }

    /// The same for what is only passed by.
    fn may_pass(&self, uid: u32) -> bool {
        self.is_ours(uid) || may_be_outer_root(uid)
    }
}

/// Why something isn't trusted.
#[derive(Debug)]
pub struct Distrust {
    /// The folder or link that isn't.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: Why,
}

/// What is wrong with a folder or link.
#[derive(Debug)]
pub enum Why {
    /// It is this user's.
    Owner(u32),
    /// Others may write to it.
    Mode(u32),
    /// A group may write to it: mode and group.
    Group(u32, u32),
    /// It is a symbolic link where none may be.
    Link,
    /// It is a symbolic link of this user.
    LinkOf(u32),
    /// It is something else than a folder.
    Kind(&'static str),
    /// It can't be looked at.
    Io(io::Error),
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.why {
            Why::Owner(uid) => write!(f, "{path} belongs to {}, who could replace what is in it", Who(*uid)),
            Why::Mode(mode) => write!(
                f,
                "{path} has mode {mode:04o}, so every user could replace what is in it (chmod o-w changes that)"
            ),
            Why::Group(mode, gid) => write!(
                f,
                "{path} has mode {mode:04o}, so group {gid} could replace what is in it (chmod g-w changes that)"
            ),
            Why::Link => write!(f, "{path} is a symbolic link"),
            Why::LinkOf(uid) => write!(f, "{path} is a symbolic link of {}", Who(*uid)),
            Why::Kind(kind) => write!(f, "{path} is {kind}, not a folder"),
            Why::Io(error) => write!(f, "can't look at {path}: {error}"),
        }
    }
}

impl std::error::Error for Distrust {}

/// A folder that nobody could have put into its place but us and root. Whether the same holds for what is in it,
/// [`judge`](Self::judge) says. It is open: what is done with its descriptor is done in this very folder.
#[derive(Debug)]
pub struct Folder {
    file: File,
    found: Metadata,
    /// Without links.
    path: PathBuf,
    rules: Rules,
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What to do about a folder that isn't there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Fail,
    Make,
}

impl Folder {
    /// Goes to a folder.
    ///
    /// # Errors
    /// Who else could change the way there, or why there is none.
    pub fn find(path: &Path, rules: &Rules) -> Result<Self, Distrust> {
        Self::walk(path, rules, Missing::Fail)
    }

    /// Goes to a folder, and makes what is missing of it for us alone, with mode 0700.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn make(path: &Path, rules: &Rules) -> Result<Self, Distrust> {
        Self::walk(path, rules, Missing::Make)
    }

    /// Whether nobody else could replace what is ours in it. A sticky folder will do.
    ///
    /// # Errors
    /// Who could.
    pub fn judge(&self) -> Result<(), Distrust> {
        self.judge_with(self.rules.sticky)
    }

    /// Whether nobody else could have put anything into it. A sticky folder won't do.
    ///
    /// # Errors
    /// Who could.
    pub fn judge_content(&self) -> Result<(), Distrust> {
        self.judge_with(false)?;
        if self.rules.is_ours(self.found.uid()) || self.is_exception() {
            return Ok(());
        }
        Err(self.wrong(Why::Owner(self.found.uid())))
    }

    fn judge_with(&self, sticky: bool) -> Result<(), Distrust> {
        let (mode, uid, gid) = (self.found.mode() & 0o7777, self.found.uid(), self.found.gid());
        if self.is_exception() {
            return Ok(());
        }
        if !self.rules.may_pass(uid) {
            return Err(self.wrong(Why::Owner(uid)));
        }
        if sticky && mode & 0o1000 != 0 {
            return Ok(());
        }
        if mode & 0o002 != 0 {
            return Err(self.wrong(Why::Mode(mode)));
        }
        if mode & 0o020 != 0 && !is_private(self.rules.us, gid) && !is_private(0, gid) {
            return Err(self.wrong(Why::Group(mode, gid)));
        }
        Ok(())
    }

    fn is_exception(&self) -> bool {
        self.rules.exceptions.contains(&(self.found.dev(), self.found.ino()))
    }

    fn wrong(&self, why: Why) -> Distrust {
        Distrust { path: self.path.clone(), why }
    }

    /// Where it is, without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owner, mode and so on, as they were when it was opened.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.found
    }

    pub(crate) fn uid(&self) -> u32 {
        self.found.uid()
    }

    /// What has this name in it; a link counts as one.
    ///
    /// # Errors
    /// Nothing has, or it can't be looked at.
    pub fn kind_of(&self, name: &OsStr) -> io::Result<FileType> {
        Ok(FileType::from_raw_mode(statat(self, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
    }

    /// Enters a folder in it. Links are not followed.
    ///
    /// # Errors
    /// It is none, or can't be entered.
    pub fn enter(&self, name: &OsStr) -> Result<Self, Distrust> {
        self.step(name, Missing::Fail)
    }

    /// The same, and makes it with mode 0700 if it isn't there.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn enter_or_make(&self, name: &OsStr) -> Result<Self, Distrust> {
        self.step(name, Missing::Make)
    }

    fn step(&self, name: &OsStr, missing: Missing) -> Result<Self, Distrust> {
        let path = self.path.join(name);
        match open(Some(self), name) {
            Err(Errno::NOENT) if missing == Missing::Make => {
                match mkdirat(self, name, Mode::RWXU) {
                    // Somebody else may have made it just now.
                    Ok(()) | Err(Errno::EXIST) => self.step(name, Missing::Fail),
                    Err(error) => Err(Distrust { path, why: Why::Io(error.into()) }),
                }
            }
            Err(error) => {
                let why = match self.kind_of(name) {
                    Ok(FileType::Symlink) => Why::Link,
                    Ok(FileType::Directory) | Err(_) => Why::Io(error.into()),
                    Ok(_) => Why::Io(Errno::NOTDIR.into()),
                };
                Err(Distrust { path, why })
            }
            Ok(file) => Self::opened(file, path, &self.rules),
        }
    }

    fn opened(file: File, path: PathBuf, rules: &Rules) -> Result<Self, Distrust> {
        match file.metadata() {
            Ok(found) => Ok(Self { file, found, path, rules: rules.clone() }),
            Err(error) => Err(Distrust { path, why: Why::Io(error) }),
        }
    }

    fn root(rules: &Rules) -> Result<Self, Distrust> {
        let path = PathBuf::from("/");
        match open(None, OsStr::new("/")) {
            Ok(file) => Self::opened(file, path, rules),
            Err(error) => Err(Distrust { path, why: Why::Io(error.into()) }),
        }
    }

    /// The folder that this one is in. It was come by, or root's "/" is its own.
    fn parent(&self) -> Result<Self, Distrust> {
        let path = self.path.parent().unwrap_or(&self.path).to_owned();
        match open(Some(self), OsStr::new("..")) {
            Ok(file) => Self::opened(file, path, &self.rules),
            Err(error) => Err(Distrust { path, why: Why::Io(error.into()) }),
        }
    }

    fn walk(path: &Path, rules: &Rules, missing: Missing) -> Result<Self, Distrust> {
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let whole =
            path::absolute(here).map_err(|error| Distrust { path: path.to_owned(), why: Why::Io(error) })?;
        let mut ahead: VecDeque<OsString> = names(&whole);
        let mut at = Self::root(rules)?;
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                at = at.parent()?;
                continue;
            }
            // Whoever could change it could have changed what the name stands for, and could do so between two looks.
            at.judge()?;
            match at.target(&name)? {
                None => at = at.step(&name, missing)?,
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Distrust { path: at.path.join(name), why: Why::Io(Errno::LOOP.into()) });
                    }
                    if target.is_absolute() {
                        at = Self::root(rules)?;
                    }
                    for name in names(&target).into_iter().rev() {
                        ahead.push_front(name);
                    }
                }
            }
        }
        Ok(at)
    }

    /// Where a link of this name in it leads to, if it is one, and one of ours or root's.
    fn target(&self, name: &OsStr) -> Result<Option<PathBuf>, Distrust> {
        let at = |why| Distrust { path: self.path.join(name), why };
        let found = match statat(self, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(at(Why::Io(error.into()))),
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        if !self.rules.may_pass(found.st_uid) {
            return Err(at(Why::LinkOf(found.st_uid)));
        }
        match readlinkat(self, name, Vec::new()) {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()).into())),
            Err(error) => Err(at(Why::Io(error.into()))),
        }
    }
}

/// The folder in which a file lies, which has still to be judged, and its name there: links that lead to it are followed as
/// those on the way are.
pub(crate) fn locate(path: &Path, rules: &Rules) -> Result<(Folder, OsString), Distrust> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (Some(name), Some(folder)) = (path.file_name(), path.parent()) else {
            return Err(Distrust { path, why: Why::Kind("a folder") });
        };
        let folder = Folder::find(folder, rules)?;
        match folder.target(name)? {
            None => return Ok((folder, name.to_owned())),
            Some(target) => {
                folder.judge()?;
                path = folder.path.join(target);
            }
        }
    }
    Err(Distrust { path, why: Why::Io(Errno::LOOP.into()) })
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Opens a folder to go on from, for which it takes no permission to read.
fn open(within: Option<&Folder>, name: &OsStr) -> Result<File, Errno> {
    #[cfg(target_os = "linux")]
    const ACCESS: OFlags = OFlags::PATH;
    #[cfg(not(target_os = "linux"))]
    const ACCESS: OFlags = OFlags::RDONLY;
    let flags = ACCESS | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = name.as_bytes();
    let opened = match within {
        Some(folder) => openat(folder, name, flags, Mode::empty()),
        None => openat(rustix::fs::CWD, name, flags, Mode::empty()),
    };
    opened.map(File::from)
}
