//! Settings of `weaved`, from a file, the environment and the command line at once.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use weave_daemon::config::{Config, ConfigError, Origin, Resolved, SETTINGS, unknown_variables};

const FILE: &str = "/etc/weave/weaved.toml";

/// Splits `NAME=value`. Without `=` all of it is the name.
fn named(part: &str) -> (String, String) {
    let (name, value) = part.split_once('=').unwrap_or((part, ""));
    (name.to_owned(), value.to_owned())
}

/// NUL separates the parts of the input. The first is text of the file. Of each other one, the first byte chooses a
/// setting, since a fuzzer seldom hits on a name, the second a source, and the rest is the value: for a flag, for a variable, for
/// the file as a string or as it is. Or it is a flag or a variable as it is.
///
/// What is accepted can be said as flags, or a worker would have other settings than its daemon; what is refused is
/// refused in one line that begins with where it stands.
pub fn config(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let mut text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (mut vars, mut flags) = (Vec::new(), Vec::new());
    for part in parts {
        let Some(([setting, source], bytes)) = part.split_first_chunk() else { continue };
        let value = String::from_utf8_lossy(bytes);
        let setting = &SETTINGS[usize::from(*setting) % SETTINGS.len()];
        match source % 6 {
            0 => flags.push((setting.flag(), value.into_owned())),
            1 => vars.push((setting.variable().into(), OsString::from_vec(bytes.to_vec()))),
            2 => text.insert_str(0, &format!("{} = \"{value}\"\n", setting.name)),
            3 => text.insert_str(0, &format!("{} = {value}\n", setting.name)),
            4 => flags.push(named(&value)),
            _ => {
                let (name, value) = named(&value);
                vars.push((name.into(), value.into()));
            }
        }
    }
    let text = text.as_str();
    match Resolved::from_sources(&flags, vars.iter().cloned(), Some((Path::new(FILE), text))) {
        Ok(Resolved { config, .. }) => {
            let said = config.to_flags();
            assert!(said.iter().all(|flag| !flag.contains('\0')), "no command line can carry {said:?}");
            let said: Vec<_> =
                said.iter().map(|flag| named(flag.strip_prefix("--").expect("a flag"))).collect();
            let again = Resolved::from_sources(&said, [].into_iter(), None).map(|all| all.config);
            // A worker has none of its own.
            let config = Config { worker_command: Vec::new(), ..config };
            assert_eq!(again.as_ref().ok(), Some(&config), "a worker's settings: {again:?}");
        }
        Err(error) => assert_names_its_origin(&error, text, &vars, &flags),
    }
    let known = |name: &String| SETTINGS.iter().any(|setting| setting.variable() == *name);
    assert!(!unknown_variables(vars.into_iter().map(|(name, _)| name)).any(|name| known(&name)));
}

fn assert_names_its_origin(
    error: &ConfigError,
    text: &str,
    vars: &[(OsString, OsString)],
    flags: &[(String, String)],
) {
    let shown = error.to_string();
    let is_line = |line: usize| (1..=1 + text.matches('\n').count()).contains(&line);
    let (origin, told) = match error {
        ConfigError::Value { origin, name, reason, .. } => {
            assert!(SETTINGS.iter().any(|setting| setting.name == *name), "{name} is no setting");
            (origin.clone(), reason)
        }
        ConfigError::Unknown(origin, name) => (origin.clone(), name),
        ConfigError::Syntax(path, line, what) => (Origin::File(path.clone(), *line), what),
        ConfigError::Usage(what) => {
            assert!(flags.iter().any(|(name, _)| what.contains(name)), "{shown}");
            return;
        }
        ConfigError::File(..) => panic!("no file was read: {shown}"),
    };
    assert!(shown.starts_with(&format!("{origin}: ")), "{shown}");
    assert!(!shown.contains('\n'), "{shown:?} is not one line");
    match origin {
        Origin::Flag(name) => assert!(flags.iter().any(|(flag, _)| *flag == name), "{shown}"),
        Origin::Variable(name) => assert!(vars.iter().any(|(var, _)| *var == *name), "{shown}"),
        Origin::File(path, line) => {
            assert!(path == Path::new(FILE) && is_line(line), "{shown}");
            assert!(!told.is_empty() || matches!(error, ConfigError::Unknown(..)), "{shown}");
        }
        Origin::Preset(_) => panic!("what a preset sets can be used: {shown}"),
    }
}
