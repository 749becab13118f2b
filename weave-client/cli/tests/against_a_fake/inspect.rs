//! `weave inspect`, as a command; what it says of frames is tested beside it.

use std::fs::{self, File};
use std::process::Stdio;

use crate::command::{folder, read_until, run, terminal, weave};
use crate::fake::{error, in_time};

#[test]
fn the_exit_status_is_the_verdict() {
    let folder = folder();
    let good = error(7, 400, 6, "steps is 0");
    let files: [(&str, &[u8]); 5] = [
        ("pcap", b"\xD4\xC3\xB2\xA1\x02\0\x04\0"),
        ("good", &good),
        ("cut", &good[..20]),
        ("empty", &[]),
        ("hex", b"57455645 000100ff  # a header\n00000000 00000000"),
    ];
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let cases: [(&[&str], i32, &str); 9] = [
        (&["pcap"], 66, "pcap is a capture of packets"),
        (&["good"], 0, "1 frame in 44 bytes, all is sound"),
        (&["cut"], 1, "cut off: 20 of 44 bytes are there (W1-FRM-009)"),
        (&["empty"], 1, "there is nothing to inspect"),
        (&["--hex", "hex"], 1, "payload_len is 0, too short for the error that it holds (W1-ERR-008)"),
        (&["hex"], 66, "hex is text with hexadecimal digits"),
        (&["--hex", "good"], 66, "good line 1: 'W' is no hexadecimal digit"),
        (&["none"], 66, "can't read none: No such file"),
        (&[], 2, "<FILE>"),
    ];
    for (args, status, says) in cases {
        let mut command = weave(folder.path());
        command.arg("inspect").args(args);
        let run = run(command);
        assert_eq!(run.status, Some(status), "{args:?}: {}{}", run.stdout, run.stderr);
        let (said, other) = if status < 2 { (run.stdout, run.stderr) } else { (run.stderr, run.stdout) };
        assert!(said.contains(says) && other.is_empty(), "{args:?}: {said}");
    }
    let mut command = weave(folder.path());
    command.args(["inspect", "-"]).stdin(File::open(folder.path().join("good")).unwrap());
    assert_eq!(run(command).status, Some(0));
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let folder = folder();
    fs::write(folder.path().join("cut"), &error(7, 400, 6, "x")[..20]).unwrap();
    let cases: [(&[(&str, &str)], bool); 4] = [
        (&[("TERM", "xterm")], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "")], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
    ];
    for (environment, coloured) in cases {
        let (mut master, slave) = terminal();
        let mut command = weave(folder.path());
        command.args(["inspect", "cut"]).envs(environment.iter().copied()).stdout(slave);
        let mut child = command.spawn().unwrap();
        drop(command);
        let shown = read_until(&mut master, "nothing that comes");
        assert_eq!(in_time(move || child.wait()).unwrap().code(), Some(1));
        assert!(
            shown.contains(if coloured { "\x1b[31mwrong\x1b[0m: cut" } else { "  wrong: cut" }),
            "{shown}"
        );
        assert_eq!(shown.contains('\x1b'), coloured, "{environment:?}");
    }
}

#[test]
fn who_wants_no_more_gets_no_more() {
    let folder = folder();
    fs::write(folder.path().join("many"), error(7, 400, 6, "x").repeat(1000)).unwrap();
    let mut command = weave(folder.path());
    command.args(["inspect", "many"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = in_time(move || child.wait_with_output()).unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
