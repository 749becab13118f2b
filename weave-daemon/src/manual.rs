//! What `weaved --help` says, and the same as a page for man(1): both from one text and the table of settings.

use std::fmt::Write as _;

use weave_daemon::config::{SETTINGS, Setting};

const ABOUT: &str = "image generation behind a Unix socket";

/// Command lines, and what they are for.
pub(crate) const USAGE: [(&str, &str); 8] = [
    ("weaved [serve] [SETTINGS]", "listen for clients, queue their requests, and run them on workers"),
    (
        "weaved worker --connect PATH [SETTINGS]",
        "connect to a socket and serve the requests on it, until it is closed, standard input ends or SIGTERM comes",
    ),
    (
        "weaved check [--strict] [SETTINGS]",
        "check settings, model files, devices and sockets without serving; --strict: a warning counts as an error",
    ),
    ("weaved config [--json] [SETTINGS]", "print the settings, and where each comes from"),
    ("weaved status [SETTINGS]", "ask the running daemon whether it is ready; needs its admin socket"),
    (
        "weaved devices [--json|--names] [SETTINGS]",
        "list the devices that the engine can compute on, and their memory",
    ),
    ("weaved manual [FOLDER]", "print this as a page for man(1), or write it to FOLDER/weaved.8"),
    ("weaved completions SHELL", "print a script that completes weaved's words in bash, zsh or fish"),
];

const SOURCES: &str = "Settings come from flags, then WEAVE_… variables, then a TOML file, then defaults [in brackets].\n\
                       Lists have commas in between. TIME is in seconds, or has units: 250ms, 5m, 1h30m. GIB is in GiB, or has MiB behind it.\n\
                       SIGHUP reloads settings; those with a star change at once, the others take a restart:";

/// Flags that are no settings.
pub(crate) const OTHERS: [(&str, &str); 4] = [
    (
        "--config FILE",
        "TOML file, with names like diffusion_model [$XDG_CONFIG_HOME/weave/weaved.toml, /etc/weave/weaved.toml]",
    ),
    ("--no-config", "read neither a file nor the environment"),
    ("-h, --help", "this text"),
    ("-V, --version", "the version"),
];

const EXIT_CODES: [(&str, &str); 6] = [
    ("0", "stopped by SIGTERM or SIGINT, or success"),
    ("1", "failure, or not ready"),
    ("2", "usage"),
    ("69", "another daemon has the socket"),
    ("77", "no permission"),
    ("78", "settings, model files, devices or sockets handed over"),
];

const SYSTEMD: &str = "Type=notify, WatchdogSec=, socket activation, and levels for the journal.";

const EXAMPLE: [&str; 2] = [
    "weaved --diffusion-model sd3.5_medium.safetensors --vae sd3_vae.safetensors \\",
    "       --clip-l clip_l.safetensors --clip-g clip_g.safetensors --t5xxl t5xxl_fp16.safetensors",
];

fn flag(setting: &Setting) -> String {
    format!("--{} {}", setting.flag(), setting.value).trim_end().to_owned()
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    let mut text = format!("weaved: {ABOUT}\n\nUsage:\n");
    for (command, about) in USAGE {
        let _ = writeln!(text, "  {command:<43} {about}");
    }
    let _ = writeln!(text, "\n{SOURCES}\n");
    for setting in SETTINGS {
        let live = if setting.live { '*' } else { ' ' };
        let _ = writeln!(text, "  {:<29}{live} {}", flag(setting), setting.help);
    }
    text.push('\n');
    for (flag, help) in OTHERS {
        let _ = writeln!(text, "  {flag:<29}  {help}");
    }
    let codes: Vec<_> = EXIT_CODES.iter().map(|(code, meaning)| format!("{code} {meaning}")).collect();
    let _ = writeln!(text, "\nExit codes: {}.\n\nUnder systemd: {SYSTEMD}", codes.join("; "));
    let _ = writeln!(text, "\nExample:\n  {}\n  {}", EXAMPLE[0], EXAMPLE[1]);
    text
}

/// weaved(8), in the language of man(7).
pub(crate) fn page() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH WEAVED 8 \"\" \"weave {version}\" Weave\n.SH NAME\nweaved \\- {ABOUT}\n.SH SYNOPSIS\n.nf\n"
    );
    for (command, _) in USAGE {
        let _ = writeln!(page, "{}", escaped(command));
    }
    page.push_str(".fi\n.SH COMMANDS\n");
    for (command, about) in USAGE {
        let words = command.strip_prefix("weaved ").unwrap_or(command).replace(" [SETTINGS]", "");
        tagged(&mut page, &words, about);
    }
    let _ = writeln!(page, ".SH SETTINGS\n{}\n", escaped(SOURCES));
    for setting in SETTINGS {
        let live = if setting.live { " *" } else { "" };
        tagged(&mut page, &(flag(setting) + live), setting.help);
    }
    page.push_str(".SH OTHER OPTIONS\n");
    for (flag, help) in OTHERS {
        tagged(&mut page, flag, help);
    }
    page.push_str(".SH ENVIRONMENT\n");
    let example = SETTINGS.iter().find(|setting| setting.name.contains('_'));
    if let Some(setting) = example {
        let _ = writeln!(
            page,
            "{}",
            escaped(&format!(
                "Each setting has a variable: --{} is {}. WEAVE_CONFIG names the file that --config would.",
                setting.flag(),
                setting.variable()
            ))
        );
    }
    page.push_str(".SH EXIT STATUS\n");
    for (code, meaning) in EXIT_CODES {
        tagged(&mut page, code, meaning);
    }
    let _ = writeln!(page, ".SH SYSTEMD\n{}", escaped(SYSTEMD));
    let _ = writeln!(page, ".SH EXAMPLE\n.nf\n{}\n.fi", escaped(&EXAMPLE.join("\n")));
    page.push_str(".SH SEE ALSO\n.BR weave (1),\n.BR weave-conform (1)\n");
    page
}

/// A paragraph that hangs from its first words.
fn tagged(page: &mut String, tag: &str, text: &str) {
    let _ = writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(tag), escaped(text));
}

/// Text that means nothing but itself to man(7).
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...").replace('×', "\\(mu");
    let lines = text.split('\n').map(|line| {
        // Which would be a command.
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        format!("{guard}{line}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_command() {
        assert_eq!(escaped(".so /etc/passwd\n'a \\fB--x"), "\\&.so /etc/passwd\n\\&'a \\efB\\-\\-x");
    }

    #[test]
    fn both_have_every_setting() {
        let (help, page) = (help(), page());
        assert!(page.is_ascii(), "in a C locale man(1) loses all else");
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{}", setting.flag())), "{}", setting.name);
            assert!(page.contains(&escaped(&format!("--{}", setting.flag()))), "{}", setting.name);
            assert!(page.contains(&escaped(setting.help)), "{}", setting.name);
        }
    }
}
