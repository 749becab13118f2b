//! Whether files are still what they were: a model is read by each worker, and again by the next one.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{ModelFiles, open};

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// The files of a model as they were at some moment. `None`: one couldn't be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamps(Vec<(&'static str, PathBuf, Option<Stamp>)>);

impl Stamps {
    /// Looks at the files.
    #[must_use]
    pub fn of(files: &ModelFiles) -> Self {
        let set = files.parts().into_iter().filter_map(|(setting, path)| Some((setting, path?)));
        let stamp = |setting, path| open(setting, path).ok().map(|(_, found)| Stamp::of(&found));
        Self(set.map(|(setting, path)| (setting, path.to_owned(), stamp(setting, path))).collect())
    }

    /// Looks again: of the files that were looked at and are still set, those that aren't what they were, as
    /// `clip_l: PATH`. From now on they are what they are now.
    pub fn look_again(&mut self, files: &ModelFiles) -> Vec<String> {
        let now = Self::of(files);
        let was = |setting: &str, path: &PathBuf| {
            self.0.iter().find(|(known, at, _)| *known == setting && at == path).map(|(.., stamp)| *stamp)
        };
        let changed =
            now.0.iter().filter(|(setting, path, stamp)| was(setting, path).is_some_and(|was| was != *stamp));
        let changed = changed.map(|(setting, path, _)| format!("{setting}: {}", path.display())).collect();
        *self = now;
        changed
    }

    /// [`Self::look_again`], and says in the log what has changed and whether the model can still be run. A worker checks it for
    /// itself; this is for whoever reads the log and wonders.
    pub fn watch(&mut self, files: &ModelFiles) {
        for what in self.look_again(files) {
            log::warn!("{what} has changed since weaved checked it: checking it again");
            match files.check() {
                Ok(found) => {
                    let words = found.map_or_else(String::new, |found| found.to_string());
                    log::warn!("images are drawn with the changed file from now on: {words}");
                }
                Err(error) => log::error!("the model can't be used any more: {error}"),
            }
        }
    }
}
