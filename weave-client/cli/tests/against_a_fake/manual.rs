//! What the command says about itself: help, completions, manual.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::command::{folder, run, weave};

/// The names in the list that `weave --help` has.
fn commands() -> Vec<String> {
    let folder = folder();
    let mut command = weave(folder.path());
    command.arg("--help");
    let help = run(command).stdout;
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let names: Vec<_> = list
        .lines()
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect();
    assert!(names.len() >= 6, "{help}");
    names
}

#[test]
fn help_has_examples_and_the_exit_statuses() {
    let folder = folder();
    let commands = commands();
    for args in [vec!["--help"]].into_iter().chain(commands.iter().map(|command| vec![command, "--help"])) {
        let mut command = weave(folder.path());
        command.args(args);
        let run = run(command);
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
        assert!(run.stdout.contains("Examples:\n  weave "), "{}", run.stdout);
        assert!(run.stdout.contains("   69  no daemon"), "{}", run.stdout);
    }
}

#[test]
fn bash_completes_what_there_is() {
    let folder = folder();
    let mut command = weave(folder.path());
    command.args(["completions", "bash"]);
    let script = folder.path().join("weave.bash");
    fs::write(&script, run(command).stdout).unwrap();
    let complete = |words: &[&str]| {
        let words = words.join(" ");
        let ask = format!(
            r#"source "$1"; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _weave weave "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"; echo "${{COMPREPLY[@]}}""#
        );
        let output = Command::new("bash").args(["--norc", "-c", &ask, "bash"]).arg(&script).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for name in commands() {
        assert!(complete(&["weave", &name]).split(' ').any(|word| word == name), "{name}");
    }
    assert_eq!(complete(&["weave", "generate", "--wid"]), "--width");
    assert_eq!(complete(&["weave", "completions", "fi"]), "fish");
}

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    let folder = folder();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let mut command = weave(folder.path());
        command.args(["completions", shell]);
        let run = run(command);
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""), "{shell}");
        for name in commands() {
            assert!(run.stdout.contains(&name), "{shell}: {name}");
        }
    }
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let folder = folder();
    let manual = |target: &Path| {
        let mut command = weave(folder.path());
        command.arg("manual").arg(target);
        run(command)
    };
    let target = folder.path().join("share/man1");
    for _replaced in [false, true] {
        let run = manual(&target);
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
        assert_eq!(run.stdout.lines().count(), commands().len() + 1);
        assert!(run.stdout.lines().all(|path| Path::new(path).is_file()), "{}", run.stdout);
    }
    for (page, command) in [("weave.1".to_owned(), "weave".to_owned())]
        .into_iter()
        .chain(commands().into_iter().map(|name| (format!("weave-{name}.1"), format!("weave {name}"))))
    {
        let text = fs::read_to_string(target.join(&page)).unwrap();
        let (_, synopsis) = text.split_once("\n.SH SYNOPSIS\n").unwrap();
        assert!(
            synopsis.replace("\\-", "-").starts_with(&format!("\\fB{command}\\fR")),
            "{page}: {synopsis}"
        );
        // In a C locale groff has no other letters.
        assert!(text.is_ascii(), "{page}");
        // Lines that are to stay lines.
        assert!(text.contains("\n.SH EXAMPLES\n.nf\n  weave "), "{page}: {text}");
        assert!(text.contains("\n.SH \"EXIT STATUS\"\n.nf\n    0  done\n"), "{page}: {text}");
    }

    fs::write(folder.path().join("file"), "").unwrap();
    let run = manual(&folder.path().join("file/man1"));
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("file/man1: Not a directory"), "{}", run.stderr);
}

#[test]
#[cfg(target_os = "linux")]
fn help_that_cannot_be_written_is_a_failure() {
    let folder = folder();
    for args in [&["--help"][..], &["--version"], &["generate", "--help"], &["completions", "bash"]] {
        let mut command = weave(folder.path());
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command.args(args).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            String::from_utf8(output.stderr).unwrap().contains("can't write to standard output: No space")
        );
    }
}

#[test]
fn a_prompt_without_quotes_is_seen_as_such() {
    let folder = folder();
    for (args, hint) in
        [(&["generate", "a", "cat"][..], true), (&["generate", "a", "--cat"], false), (&["ping", "a"], false)]
    {
        let mut command = weave(folder.path());
        command.args(args);
        let run = run(command);
        assert_eq!(run.status, Some(2));
        assert_eq!(run.stderr.contains("a prompt of several words needs quotes"), hint, "{}", run.stderr);
    }
}

/// What other programs call it, or have.
#[test]
fn what_people_know_from_elsewhere_leads_to_what_there_is() {
    let folder = folder();
    let cases: [(&[&str], &str); 9] = [
        (&["status"], "`weaved status`"),
        (&["models"], "docs/models.md"),
        (&["list"], "docs/models.md"),
        (&["serve"], "`weaved` is the daemon"),
        (&["generate", "x", "--negative-prompt", "y"], "docs/limits.md"),
        (&["generate", "x", "--negative-prompt=y"], "`weave generate` has no --negative-prompt"),
        (&["generate", "x", "--sampler=euler"], "its settings sampler"),
        (&["generate", "x", "--model", "y"], "docs/models.md"),
        (&["generate", "x", "--guidance_scale", "2"], "--cfg-scale X"),
    ];
    for (args, says) in cases {
        let mut command = weave(folder.path());
        command.args(args);
        let run = run(command);
        assert_eq!(run.status, Some(2), "{args:?}");
        assert!(run.stderr.contains(says) && !run.stderr.contains("tip:"), "{args:?}: {}", run.stderr);
    }
}
