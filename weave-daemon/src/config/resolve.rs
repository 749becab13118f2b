//! Where settings come from, what is wrong with them, and how they are printed.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{ALIASES, Config, EngineKind, SETTINGS, Setting};
use crate::engine::tuning;
use crate::values::{nearest, quoted};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag(String),
    /// The environment.
    Variable(String),
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// A preset.
    Preset(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Preset(name) => write!(f, "preset {name}"),
        }
    }
}

/// Why the settings can't be used.
#[derive(Debug)]
pub enum ConfigError {
    /// A value outside its range.
    Value {
        /// Where it came from.
        origin: Origin,
        /// Which setting it is for.
        name: &'static str,
        /// What was said.
        value: String,
        /// What is allowed.
        reason: String,
    },
    /// No setting has this name.
    Unknown(Origin, String),
    /// The file can't be read.
    File(PathBuf, std::io::Error),
    /// The file isn't TOML.
    Syntax(PathBuf, usize, String),
    /// The command line can't be understood.
    Usage(String),
}

impl ConfigError {
    /// Whether the command line is to blame.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Usage(_) | Self::Unknown(Origin::Flag(_), _) | Self::Value { origin: Origin::Flag(_), .. }
        )
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { origin, name, value, reason } => {
                write!(f, "{origin}: {name} is {value:?}, must be {reason}")
            }
            Self::Unknown(origin, name) => {
                // As in a file, even if it was written as a flag or a variable is.
                let plain = name.trim_start_matches('-').replace('-', "_").to_lowercase();
                let plain = plain.strip_prefix("weave_").unwrap_or(&plain);
                match nearest(plain, names()) {
                    Some(meant) => write!(
                        f,
                        "{origin}: there is no setting {name:?}; did you mean {meant}? `weaved --help` lists them"
                    ),
                    None => write!(f, "{origin}: there is no setting {name:?}; `weaved --help` lists them"),
                }
            }
            Self::File(path, error) => write!(f, "can't read the settings in {}: {error}", path.display()),
            Self::Syntax(path, line, what) => write!(f, "{}:{line}: {what}", path.display()),
            Self::Usage(what) => {
                let end = if what.ends_with('?') { "" } else { ";" };
                write!(f, "{what}{end} `weaved --help` shows what there is")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// The settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The settings.
    pub config: Config,
    /// In the order of [`SETTINGS`]; `None` is a default.
    origins: Vec<Option<Origin>>,
}

impl Resolved {
    /// Every setting with its value, if it has one, and where that came from, if it is no default.
    pub fn settings(&self) -> impl Iterator<Item = (&'static Setting, Option<String>, Option<&Origin>)> {
        SETTINGS.iter().zip(&self.origins).map(|(s, origin)| (s, (s.get)(&self.config), origin.as_ref()))
    }

    /// As a settings file with the same values, each with its origin.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (setting, value, origin) in self.settings() {
            let line = match &value {
                Some(value) if setting.is_bare(value) => format!("{} = {value}", setting.name),
                Some(value) => format!("{} = {}", setting.name, quoted(value)),
                None => format!("#{} =", setting.name),
            };
            let origin = match (origin, setting.default()) {
                (Some(origin), _) => origin.to_string(),
                (None, Some(default)) if value.is_none() => format!("default: {default}"),
                (None, _) => "default".to_owned(),
            };
            text.push_str(&format!("{line:<40} # {origin}\n"));
        }
        text
    }

    /// The same as a list of objects.
    #[must_use]
    pub fn to_json(&self) -> String {
        let entries: Vec<_> = self
            .settings()
            .map(|(setting, value, origin)| {
                let kind = match origin {
                    None => "default",
                    Some(Origin::Flag(_)) => "flag",
                    Some(Origin::Variable(_)) => "variable",
                    Some(Origin::File(..)) => "file",
                    Some(Origin::Preset(_)) => "preset",
                };
                let or_null = |text: Option<String>| text.map_or("null".to_owned(), |text| quoted(&text));
                format!(
                    "  {{\"name\": {}, \"value\": {}, \"kind\": {}, \"origin\": {}, \"live\": {}}}",
                    quoted(setting.name),
                    or_null(value),
                    quoted(kind),
                    or_null(origin.map(ToString::to_string)),
                    setting.live
                )
            })
            .collect();
        format!("[\n{}\n]\n", entries.join(",\n"))
    }

    /// Puts all sources together. `flags` are (name, value) as the command line had them, `vars` the
    /// environment, `file` the settings file if there is one.
    ///
    /// # Errors
    /// [`ConfigError`]: the first value that can't be used.
    pub fn new(
        flags: &[(String, String)],
        vars: impl Iterator<Item = (OsString, OsString)>,
        file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let text = match file {
            Some(path) => Some(read(path).map_err(|error| ConfigError::File(path.to_owned(), error))?),
            None => None,
        };
        Self::from_sources(flags, vars, file.zip(text.as_deref()))
    }

    /// The same with the text of the file instead of the file.
    ///
    /// # Errors
    /// [`ConfigError`]: the first value that can't be used.
    pub fn from_sources(
        flags: &[(String, String)],
        vars: impl Iterator<Item = (OsString, OsString)>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, ConfigError> {
        let mut all = Self { config: Config::default(), origins: vec![None; SETTINGS.len()] };
        let vars: Vec<_> = vars.collect();
        all.take_all(flags, &vars, file)?;
        // A preset comes before everything else, whoever named it: all of that once more, on top of it.
        let chosen = all.config.tuning.preset;
        if let Some((name, values)) = tuning::PRESETS.iter().find(|(name, _)| Some(*name) == chosen) {
            all = Self { config: Config::default(), origins: vec![None; SETTINGS.len()] };
            for setting in SETTINGS {
                if let Some((_, value)) = values.iter().find(|(of, _)| *of == setting.name) {
                    all.take(setting, value, Origin::Preset(name))?;
                }
            }
            all.take_all(flags, &vars, file)?;
        }
        // What this program can't do itself is no default for one that is another program's router.
        let is_set = |name| SETTINGS.iter().zip(&all.origins).any(|(s, o)| s.name == name && o.is_some());
        if is_set("worker_command") && !is_set("engine") {
            all.config.engine = EngineKind::Sdcpp;
        }
        Ok(all)
    }

    /// Takes what the file, the environment and the command line say, in this order.
    fn take_all(
        &mut self,
        flags: &[(String, String)],
        vars: &[(OsString, OsString)],
        file: Option<(&Path, &str)>,
    ) -> Result<(), ConfigError> {
        if let Some((path, text)) = file {
            self.take_file(path, text)?;
        }
        // Its own name counts before another one of the same setting.
        for is_alias in [true, false] {
            for (variable, value) in vars {
                let Some(variable) = variable.to_str() else { continue };
                let found = Setting::find_variable(variable);
                let Some(setting) = found.filter(|found| (found.variable() != variable) == is_alias) else {
                    continue;
                };
                let origin = Origin::Variable(variable.to_owned());
                let Some(value) = value.to_str() else {
                    let (value, reason) = (value.to_string_lossy().into_owned(), "text in UTF-8".to_owned());
                    return Err(ConfigError::Value { origin, name: setting.name, value, reason });
                };
                self.take(setting, value, origin)?;
            }
        }
        for (flag, value) in flags {
            let origin = Origin::Flag(flag.clone());
            let Some(setting) = Setting::find_flag(flag) else {
                return Err(ConfigError::Usage(unknown_flag(flag)));
            };
            self.take(setting, value, origin)?;
        }
        Ok(())
    }

    /// Takes a value as somebody has written it. The same for all settings: blanks around it are dropped; a variable or a
    /// text in a file that is empty then counts as not set, and a flag must not be; a path has no `~`.
    fn take(&mut self, setting: &'static Setting, value: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = value.trim();
        if value.is_empty() && !matches!(origin, Origin::Flag(_)) {
            return Ok(());
        }
        match self.set(setting, value, &origin) {
            Ok(()) => {
                if let Some(at) = SETTINGS.iter().position(|other| other.name == setting.name) {
                    self.origins[at] = Some(origin);
                }
                Ok(())
            }
            Err(reason) => {
                Err(ConfigError::Value { origin, name: setting.name, value: value.to_owned(), reason })
            }
        }
    }

    fn set(&mut self, setting: &Setting, value: &str, origin: &Origin) -> Result<(), String> {
        if value.is_empty() {
            return match (setting.set)(&mut self.config.clone(), "") {
                Err(allowed) => Err(format!("{allowed}; leave the flag out for the default")),
                Ok(()) => Err("something; leave the flag out for the default".to_owned()),
            };
        }
        // A worker gets its settings on its command line, which can't carry a NUL.
        if value.contains('\0') {
            return Err("text without NUL".to_owned());
        }
        if setting.names_files() && value.starts_with('~') {
            return Err(without_tilde(value, std::env::var("HOME").ok().as_deref()));
        }
        match origin {
            // The one word that is no path.
            Origin::File(file, _) if setting.is_path && (setting.name, value) != ("admin_socket", "off") => {
                let path = file.parent().unwrap_or(Path::new("")).join(value);
                (setting.set)(&mut self.config, &path.to_string_lossy())
            }
            _ => (setting.set)(&mut self.config, value),
        }
    }

    fn take_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let line_of = |at: usize| 1 + text.get(..at).unwrap_or(text).matches('\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let line = line_of(error.span().map_or(0, |span| span.start));
            ConfigError::Syntax(path.to_owned(), line, error.message().to_owned())
        })?;
        // In the order of the file, so that the first error is the topmost one.
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut seen: Vec<(&str, usize)> = Vec::new();
        for (key, value) in entries {
            let line = line_of(key.span().start);
            let origin = Origin::File(path.to_owned(), line);
            let name = key.get_ref().as_ref();
            let Some(setting) = Setting::find(name) else {
                return Err(ConfigError::Unknown(origin, name.to_owned()));
            };
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == setting.name) {
                let what = format!("line {first} sets {} already, and {name} is the same", setting.name);
                return Err(ConfigError::Syntax(path.to_owned(), line, what));
            }
            seen.push((setting.name, line));
            let wrong = |reason: &str| ConfigError::Value {
                origin: origin.clone(),
                name: setting.name,
                value: text.get(value.span()).unwrap_or_default().chars().take(80).collect(),
                reason: reason.to_owned(),
            };
            let value = match (value.get_ref(), setting.separator) {
                (DeValue::Array(array), Some(separator)) => {
                    let parts: Option<Vec<_>> = array.iter().map(|part| scalar(part.get_ref())).collect();
                    let parts = parts.ok_or_else(|| wrong("a list of strings or numbers"))?;
                    let is_part = |part: &String| !part.trim().contains(separator);
                    if !parts.iter().all(is_part) {
                        return Err(wrong(match separator {
                            ',' => "a list without commas in its parts",
                            _ => "a list without blanks in its parts",
                        }));
                    }
                    parts.join(separator.encode_utf8(&mut [0; 4]))
                }
                (value, separator) => scalar(value).ok_or_else(|| {
                    wrong(match separator {
                        Some(_) => "a string, a number or a list of these",
                        None => "a string, a number, true or false",
                    })
                })?,
            };
            self.take(setting, &value, origin)?;
        }
        Ok(())
    }
}

impl Config {
    /// [`Resolved::new`], where only the values matter.
    ///
    /// # Errors
    /// [`ConfigError`]: the first value that can't be used.
    pub fn resolve(
        flags: &[(String, String)],
        vars: impl Iterator<Item = (OsString, OsString)>,
        file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        Resolved::new(flags, vars, file).map(|all| all.config)
    }

    /// The same settings as flags, for a worker's command line.
    #[must_use]
    pub fn to_flags(&self) -> Vec<String> {
        SETTINGS
            .iter()
            // It starts none.
            .filter(|setting| setting.name != "worker_command")
            .filter_map(|setting| (setting.get)(self).map(|value| format!("--{}={value}", setting.flag())))
            .collect()
    }

    /// Takes from `new` what can be changed while the daemon runs. Says what changed so, and what
    /// else differs.
    pub fn take_live(&mut self, new: &Self) -> (Vec<&'static str>, Vec<&'static str>) {
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for setting in SETTINGS {
            let value = (setting.get)(new);
            if value == (setting.get)(self) {
                continue;
            }
            match value {
                // What one `Config` has given another one takes.
                Some(value) if setting.live && (setting.set)(self, &value).is_ok() => {
                    taken.push(setting.name)
                }
                _ => left.push(setting.name),
            }
        }
        (taken, left)
    }
}

/// A single value of a file, as text.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

/// What to write instead of a path with `~`, which only a shell replaces, and only where it begins a word.
fn without_tilde(path: &str, home: Option<&str>) -> String {
    let rest = path.strip_prefix("~/");
    match rest.zip(home.filter(|home| home.starts_with('/'))) {
        Some((rest, home)) => {
            format!("a path without ~, which only shells know: {}/{rest}", home.trim_end_matches('/'))
        }
        None => format!("a path without ~, which only shells know; ./{path} is a file of that name"),
    }
}

/// All names that settings have in a file.
fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.name).chain(ALIASES.iter().map(|(alias, _)| *alias))
}

/// What to say of a flag that isn't there.
#[must_use]
pub fn unknown_flag(flag: &str) -> String {
    let others = ["config", "no-config", "help", "version", "json", "names", "strict", "connect"];
    let known = names().map(|name| name.replace('_', "-")).chain(others.map(str::to_owned));
    match nearest(&flag.replace('_', "-").to_lowercase(), known) {
        Some(meant) => format!("there is no flag --{flag}; did you mean --{meant}?"),
        None => format!("there is no flag --{flag}"),
    }
}

/// Variables that look like settings and are none: most likely they are misspelt.
pub fn unknown_variables(names: impl Iterator<Item = OsString>) -> impl Iterator<Item = String> {
    // The last ones are the build's.
    const OTHERS: [&str; 5] =
        ["WEAVE_CONFIG", "WEAVE_CACHE_DIR", "WEAVE_NATIVE", "WEAVE_CUDA_ARCHITECTURES", "WEAVE_CUDA_SETUP"];
    // These, and what begins with them, are the `weave` command's.
    const CLIENTS: [&str; 5] =
        ["WEAVE_AZURE_", "WEAVE_GATEWAY_", "WEAVE_OPENAI_", "WEAVE_PROVIDERS", "WEAVE_SERVER_UID"];
    names.filter_map(|name| name.into_string().ok()).filter(|name| {
        name.starts_with("WEAVE_")
            && !OTHERS.contains(&name.as_str())
            && !CLIENTS.iter().any(|clients| name.starts_with(clients))
            && Setting::find_variable(name).is_none()
    })
}

/// What to say of such a variable.
#[must_use]
pub fn unknown_variable(name: &str) -> String {
    let known = names().map(|name| format!("WEAVE_{}", name.to_uppercase()));
    match nearest(name, known.chain(["WEAVE_CONFIG".to_owned(), "WEAVE_CACHE_DIR".to_owned()])) {
        Some(meant) => format!("{name} is not a setting of weaved; did you mean {meant}?"),
        None => format!("{name} is not a setting of weaved; `weaved --help` lists them"),
    }
}

/// The settings file to read when none was named: the user's, else the system's.
#[must_use]
pub fn default_file() -> Option<PathBuf> {
    // The XDG specification has relative paths ignored; that covers an empty one.
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = var("XDG_CONFIG_HOME").or_else(|| var("HOME").map(|home| home.join(".config")));
    let user = user.map(|folder| folder.join("weave/weaved.toml"));
    user.into_iter().chain([PathBuf::from("/etc/weave/weaved.toml")]).find(|path| path.exists())
}

/// A settings file has some kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// All of a settings file.
fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(io::Error::other(format!("it has more than {MAX_FILE} bytes"))),
        false => weave_trust::text(&bytes).map_err(|error| io::Error::other(format!("it {error}"))),
    }
}
