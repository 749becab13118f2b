//! The command line: what it refuses, what its exit status means, and that reports are written whatever
//! happens.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn conform(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weave-conform")).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

/// The exit status has to be this, and the output has to have these words.
fn expect(args: &[&str], status: i32, words: &[&str]) -> String {
    let output = conform(args);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: no {word:?} in {said}");
    }
    said
}

/// A file of this test's own.
fn scratch(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("command-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// An adapter that can do nothing.
const UNABLE: &str = r#"sh -c 'while read -r line; do echo "{\"unsupported\": \"nothing is\"}"; done'"#;
/// One that takes every stream as empty.
const BLIND: &str =
    r#"sh -c 'while read -r line; do echo "{\"frames\": [], \"end\": \"between-frames\"}"; done'"#;

#[test]
fn wrong_usage_is_told_and_ends_with_2() {
    expect(&["server"], 2, &["--exec", "ADDRESS"]);
    expect(&["server", "--exec", "weaved"], 2, &["{address}"]);
    expect(&["client"], 2, &["--exec"]);
    expect(&["client", "--exec", "client"], 2, &["{address}"]);
    expect(&["codec", "--exec", "x", "--filter", "W1-NIX"], 2, &["W1-NIX", "--list"]);
    expect(&["codec", "--exec", "x", "--exclude", "W1-NIX"], 2, &["W1-NIX"]);
    expect(&["codec", "--exec", "x", "--timeout", "0"], 2, &["--timeout"]);
    expect(&["codec", "--exec", "x", "--repeat", "0"], 2, &["--repeat"]);
    expect(&["codec", "--exec", "x", "--expected-failures", "/nonexistent"], 2, &["/nonexistent"]);
    expect(&["matrix", "/nonexistent", "-o", "/dev/null"], 2, &["/nonexistent"]);
    expect(&["conform"], 2, &["conform"]);
    let file = scratch("no-report.json");
    std::fs::write(&file, "{}").unwrap();
    expect(&["matrix", file.to_str().unwrap(), "-o", "/dev/null"], 2, &["no report"]);
}

#[test]
fn a_list_runs_nothing_and_can_be_narrowed() {
    let all = expect(&["server", "--list"], 0, &["W1-TRN-001a", "W1-SEC-004a"]);
    let some =
        expect(&["server", "--list", "--filter", "W1-ERR", "--exclude", "W1-ERR-001"], 0, &["W1-ERR-005a"]);
    assert!(some.lines().count() < all.lines().count() && !some.contains("W1-ERR-001a"));
    assert!(some.lines().all(|line| line.starts_with("W1-ERR")), "{some}");
    let verbose = expect(&["server", "--list", "--verbose", "--filter", "W1-HDR-001a"], 0, &[]);
    assert!(
        verbose.ends_with("\n    W1-HDR-001: A sender MUST begin each frame with the magic.\n"),
        "{verbose}"
    );
}

#[test]
fn what_cannot_be_tried_is_skipped_and_not_praised() {
    expect(&["codec", "--exec", UNABLE], 0, &["as far as it was tried", "nothing is"]);
}

#[test]
fn failures_end_with_1_and_are_in_every_report() {
    let (json, junit, page) = (scratch("blind.json"), scratch("blind.xml"), scratch("blind.html"));
    let paths = [&json, &junit, &page].map(|path| path.to_str().unwrap());
    let filter = ["--filter", "W1-REQ-001c"];
    let said = expect(
        &[&["codec", "--exec", BLIND, "--json", paths[0], "--junit", paths[1]], &filter[..]].concat(),
        1,
        &["FAIL W1-REQ-001c", "request-steps-1", "sent:", "steps 1", "W1-REQ-001: A client MUST send values"],
    );
    assert!(said.contains("NOT conformant: 1 cases count against it"), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["conformant"], false);
    assert_eq!(report["cases"][0]["failures"].as_array().map(Vec::len), Some(3));
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains(r#"tests="1" failures="1" errors="0" skipped="0""#), "{xml}");
    let mut reader = quick_xml::Reader::from_str(&xml);
    while !matches!(reader.read_event().expect("well-formed XML"), quick_xml::events::Event::Eof) {}
    expect(&["matrix", paths[0], "-o", paths[2]], 0, &[]);
    assert!(std::fs::read_to_string(&page).unwrap().contains("W1-REQ-001c"));
}

#[test]
fn an_expected_failure_is_none_and_an_unexpected_pass_is_one() {
    let file = scratch("expected.txt");
    std::fs::write(&file, "# known\nW1-REQ-001c it is blind\n").unwrap();
    let path = file.to_str().unwrap();
    let filter = ["--filter", "W1-REQ-001c", "--expected-failures", path];
    expect(&[&["codec", "--exec", BLIND], &filter[..]].concat(), 0, &["it is blind"]);
    // Nothing comes on an empty stream, and so the blind one is right about it.
    std::fs::write(&file, "W1-FRM-009c it is blind\n").unwrap();
    let filter = ["--filter", "W1-FRM-009c", "--expected-failures", path];
    expect(&[&["codec", "--exec", BLIND], &filter[..]].concat(), 1, &["does not any more"]);
    for (line, problem) in [("W1-REQ-999a why", "W1-REQ-999a"), ("W1-REQ-001c", "a reason")] {
        std::fs::write(&file, line).unwrap();
        expect(&["codec", "--exec", "x", "--expected-failures", path], 2, &[problem, ":1:"]);
    }
}

#[test]
fn a_testee_that_ends_crashes_or_is_silent_is_told_apart() {
    let filter = ["--filter", "W1-FRM-009c", "--timeout", "0.5"];
    expect(
        &[&["codec", "--exec", "sh -c 'read line; exit 7'"], &filter[..]].concat(),
        1,
        &["CRASH", "exit status 7"],
    );
    expect(
        &[&["codec", "--exec", "sh -c 'read line; kill -SEGV $$'"], &filter[..]].concat(),
        1,
        &["CRASH", "signal 11"],
    );
    expect(&[&["codec", "--exec", "sleep 100"], &filter[..]].concat(), 1, &["HANG", "did not answer"]);
    expect(&[&["codec", "--exec", "yes"], &filter[..]].concat(), 1, &["FAIL", "no JSON"]);
}

#[test]
fn a_client_may_take_its_time_to_start_but_not_to_ask() {
    let filter = ["client", "--filter", "W1-HDR-001b", "--timeout", "0.3", "--exec"];
    let late = &[&filter[..], &["sh -c 'sleep 1; exit 5' {address}"]].concat();
    expect(late, 1, &["FAIL", "did not connect: exit status 5"]);
    let silent = python(
        "import socket, sys\n\
         client = socket.socket(socket.AF_UNIX)\n\
         client.connect(sys.argv[1])\n\
         client.recv(1)\n",
        "",
    );
    expect(&[&filter[..], &[&silent]].concat(), 1, &["W1-HDR-001b", "no whole request"]);
}

/// A command that runs a Python program with `{address}` as its first argument, and more.
fn python(program: &str, more: &str) -> String {
    let file = scratch(&format!("{:x}.py", program.len()));
    std::fs::write(&file, program).unwrap();
    format!("python3 {} {{address}} {more}", file.display())
}

#[test]
fn a_server_that_crashes_is_in_the_report_and_started_again() {
    let exec = python(
        "import os, signal, socket, sys\n\
         listener = socket.socket(socket.AF_UNIX)\n\
         listener.bind(sys.argv[1])\n\
         listener.listen()\n\
         while not listener.accept()[0].recv(1): pass\n\
         print('out of luck', file=sys.stderr, flush=True)\n\
         os.unlink(sys.argv[1])\n\
         os.kill(os.getpid(), signal.SIGSEGV)\n",
        "",
    );
    let (json, junit) = (scratch("crash.json"), scratch("crash.xml"));
    let reports = ["--json", json.to_str().unwrap(), "--junit", junit.to_str().unwrap()];
    let filter = ["--filter", "W1-REQ-001c", "--filter", "W1-FRM-004a"];
    expect(&[&["server", "--exec", &exec], &filter[..], &reports].concat(), 1, &["CRASH", "2 cases"]);
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        assert_eq!((&case["verdict"], &case["counts_against"]), (&"crash".into(), &true.into()), "{case}");
        let problem = case["failures"][0]["problem"].as_str().unwrap();
        assert!(problem.contains("signal 11") && problem.contains("out of luck"), "{problem}");
    }
    assert_eq!(report["conformant"], false);
    assert!(std::fs::read_to_string(&junit).unwrap().contains(r#"tests="2" failures="2""#));
}

#[test]
fn a_case_that_is_repeated_fails_if_it_fails_once() {
    let file = scratch("asked");
    // Nothing comes on an empty stream: it is right so many times, and once it is not.
    let tried = |right: usize, more: &[&str], status: i32| {
        let exec = format!(
            r#"sh -c 'while read -r line; do echo >>{0}; frames=; [ $(wc -l <{0}) != {1} ] || frames=1
               echo "{{\"frames\": [$frames], \"end\": \"between-frames\"}}"; done'"#,
            file.display(),
            right + 1
        );
        let _ = std::fs::remove_file(&file);
        let args = ["codec", "--exec", &exec, "--filter", "W1-FRM-009c"];
        expect(&[&args[..], more].concat(), status, &["1 cases"]);
        std::fs::read_to_string(&file).unwrap().len()
    };
    let once = tried(1_000_000, &[], 0);
    assert_eq!(tried(1_000_000, &["--repeat", "3"], 0), 3 * once);
    assert_eq!(tried(once, &["--repeat", "3"], 1), 3 * once);
    assert_eq!(tried(once, &[], 0), once);
}

#[test]
fn a_seed_makes_the_same_noise_each_time() {
    // Keeps what it reads of so many connections, and answers none.
    let exec = python(
        "import socket, sys\n\
         listener = socket.socket(socket.AF_UNIX)\n\
         listener.bind(sys.argv[1])\n\
         listener.listen()\n\
         left = 20\n\
         while left:\n\
        \x20    with listener.accept()[0] as connection, open(sys.argv[2], 'ab') as file:\n\
        \x20        said = connection.makefile('rb').read()\n\
        \x20        left -= len(said) > 0\n\
        \x20        file.write(said)\n",
        &scratch("noise").display().to_string(),
    );
    let noise = |seed: &str| {
        let _ = std::fs::remove_file(scratch("noise"));
        let json = scratch("noise.json");
        let report = ["--json", json.to_str().unwrap()];
        let args = ["server", "--exec", &exec, "--filter", "W1-SEC-001a", "--seed", seed];
        expect(&[&args[..], &report].concat(), 1, &["W1-SEC-001a"]);
        let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(report["seed"].to_string(), seed);
        std::fs::read(scratch("noise")).unwrap()
    };
    let seven = noise("7");
    assert!(seven.len() > 10_000, "{}", seven.len());
    assert!(noise("7") == seven && noise("8") != seven);
}

#[test]
fn a_server_that_cannot_be_started_is_trouble_of_the_suite() {
    let filter = ["--filter", "W1-REQ-001c", "--timeout", "0.5"];
    let json = scratch("harness.json");
    let report = ["--json", json.to_str().unwrap()];
    let gone =
        &[&["server", "--exec", "sh -c 'echo no such model >&2; exit 3' {address}"], &filter[..], &report]
            .concat();
    expect(gone, 3, &["HARNESS ERROR", "exit status 3", "no such model"]);
    assert!(json.exists(), "a report is written all the same");
    expect(&[&["server", "/nonexistent/weave.sock"], &filter[..]].concat(), 3, &["/nonexistent/weave.sock"]);
}

#[test]
fn the_manual_has_each_verb_and_its_options() {
    let page = expect(&["manual"], 0, &[".TH weave", ".SH \"SERVER\"", ".SH \"MATRIX\"", "Exit status"]);
    for option in ["\\-\\-exec\\-several", "\\-\\-expected\\-failures", "\\-\\-json", "\\-\\-output"] {
        assert!(page.contains(option), "{option} in {page}");
    }
    assert!(!page.contains("STRANGER"), "{page}");
}
