//! `weaved completions`: what shells know about the command line, from the same tables as its help text.

use std::fmt::Write as _;

use weave_daemon::config::{SETTINGS, Setting};

use crate::COMMANDS;
use crate::manual::{OTHERS, USAGE};

type Script = fn() -> String;

/// The shells, and what makes the script of each.
const SHELLS: [(&str, Script); 3] = [("bash", bash), ("zsh", zsh), ("fish", fish)];

/// The script for a shell.
///
/// # Errors
/// There is none for this one.
pub(crate) fn script(shell: Option<&str>) -> Result<String, String> {
    match SHELLS.iter().find(|(name, _)| Some(*name) == shell) {
        Some((_, script)) => Ok(script()),
        None => Err("completions are for a shell: say bash, zsh or fish".to_owned()),
    }
}

/// What stands behind a flag.
enum Value {
    None,
    File,
    Words(String),
    Any,
}

/// A flag without its dashes, its value, and what it is for.
struct Flag {
    name: String,
    value: Value,
    help: &'static str,
}

fn flags() -> impl Iterator<Item = Flag> {
    let others = OTHERS.iter().map(|(flag, help)| {
        let (name, value) = flag.rsplit("--").next().unwrap_or_default().split_once(' ').unzip();
        let name = name.unwrap_or_else(|| flag.rsplit("--").next().unwrap_or_default()).to_owned();
        Flag { name, value: if value.is_some() { Value::File } else { Value::None }, help }
    });
    let of = |setting: &'static Setting| {
        let value = match setting.words() {
            _ if setting.is_switch() => Value::None,
            _ if setting.is_path => Value::File,
            Some(words) => Value::Words(words.join(" ")),
            None => Value::Any,
        };
        Flag { name: setting.flag(), value, help: setting.help }
    };
    others.chain(SETTINGS.iter().map(of))
}

/// What a command is for.
fn about(command: &str) -> &'static str {
    let is_it = |words: &str| words.replace(['[', ']'], "").split(' ').nth(1) == Some(command);
    USAGE.iter().find(|(words, _)| is_it(words)).map_or("", |(_, about)| about)
}

fn bash() -> String {
    let mut cases = String::new();
    let mut files = Vec::new();
    let mut words = COMMANDS.join(" ");
    for Flag { name, value, .. } in flags() {
        let _ = write!(words, " --{name}");
        match value {
            Value::None => {}
            Value::File => files.push(format!("--{name}")),
            Value::Words(choices) => {
                let _ = writeln!(cases, "        --{name}) words='{choices}' ;;");
            }
            Value::Any => {
                let _ = writeln!(cases, "        --{name}) return ;;");
            }
        }
    }
    let files = files.join("|");
    format!(
        r#"_weaved() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words
    # bash takes --flag=value for three words.
    if [[ $word == = ]]; then
        word=
    elif [[ $before == = ]]; then
        before=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    COMPREPLY=()
    case $before in
        {files}) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        completions) words='bash zsh fish' ;;
{cases}        *) words='{words}' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -F _weaved weaved
"#
    )
}

fn zsh() -> String {
    let mut text = "#compdef weaved\n\n_arguments \\\n".to_owned();
    for Flag { name, value, help } in flags() {
        let help = help.replace('\'', r"'\''").replace('\\', r"\\");
        let help = help.replace('[', r"\[").replace(']', r"\]").replace(':', r"\:");
        let _ = match value {
            Value::None => writeln!(text, "    '--{name}[{help}]' \\"),
            Value::File => writeln!(text, "    '--{name}=[{help}]:file:_files' \\"),
            Value::Words(words) => writeln!(text, "    '--{name}=[{help}]:word:({words})' \\"),
            Value::Any => writeln!(text, "    '--{name}=[{help}]:value:' \\"),
        };
    }
    let _ = writeln!(text, "    '1:command:({})'", COMMANDS.join(" "));
    text
}

fn fish() -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
    let mut text = "complete -c weaved -f\n".to_owned();
    for command in COMMANDS {
        let about = quoted(about(command));
        let _ = writeln!(text, "complete -c weaved -n __fish_use_subcommand -a {command} -d {about}");
    }
    let shells = "complete -c weaved -n '__fish_seen_subcommand_from completions' -a 'bash zsh fish'";
    let _ = writeln!(text, "{shells}");
    for Flag { name, value, help } in flags() {
        let help = quoted(help);
        let value = match value {
            Value::None => String::new(),
            Value::File => " -r -F".to_owned(),
            Value::Words(words) => format!(" -x -a {}", quoted(&words)),
            Value::Any => " -x".to_owned(),
        };
        let _ = writeln!(text, "complete -c weaved -l {name}{value} -d {help}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_knows_every_flag_and_command() {
        for (shell, script) in SHELLS {
            let script = script();
            for setting in SETTINGS {
                let flag = if shell == "fish" {
                    format!("-l {}", setting.flag())
                } else {
                    format!("--{}", setting.flag())
                };
                assert!(script.contains(&flag), "{shell} {flag}");
            }
            assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
            assert!(script.contains("sdcpp pattern") && script.contains("no-config"), "{shell}");
        }
        assert!(COMMANDS.iter().all(|command| !about(command).is_empty()));
    }

    #[test]
    fn bash_completes_words_flags_and_values() {
        use std::process::Command;

        // As bash calls it; the last word is the one at the cursor.
        let complete = |words: &str| {
            let script = format!(
                "{}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _weaved; echo \"${{COMPREPLY[*]}}\"",
                bash()
            );
            let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(complete("weaved chec"), "check");
        assert_eq!(complete("weaved --thr"), "--threads");
        assert_eq!(complete("weaved --engine ''"), "sdcpp pattern");
        assert_eq!(complete("weaved --engine = pat"), "pattern");
        assert_eq!(complete("weaved completions f"), "fish");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/completions.rs");
        assert_eq!(complete(&format!("weaved --model {}", source.trim_end_matches("ns.rs"))), source);
        assert_eq!(complete("weaved --queue ''"), "");
    }
}
