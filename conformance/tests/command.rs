//! The command line: what it refuses, what its exit status means, and that reports are written and nothing is left
//! behind, whatever happens.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
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

/// A folder of one test's own with a short path, for sockets; removed with all that is in it.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wc{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Nothing has to be left in it.
    fn check(&self) {
        let left: Vec<_> = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?} is left");
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
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
    expect(&["codec", "--exec", "x", "--filter", ""], 2, &["empty"]);
    expect(&["codec", "--exec", "x", "--exclude", ""], 2, &["empty"]);
    expect(&["codec", "--exec", "x", "--exclude", "W1-"], 2, &["no case"]);
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
    let json = scratch("unable.json");
    let args = ["codec", "--exec", UNABLE, "--json", json.to_str().unwrap()];
    let all = expect(&["codec", "--list"], 0, &[]);
    let required = all.lines().filter(|line| line.contains(" required ")).count();
    let words = format!("not judged: {required} required");
    expect(&args, 0, &["conformant as far as it was judged", &words, "nothing is"]);
    let lenient = report(&json);
    assert_eq!(lenient["not_judged"]["required"], required);
    assert_eq!(lenient["conformant"], true);
    // Strictly, what is required has to be judged.
    let xml = scratch("unable.xml");
    let strictly = [&args[..], &["--strict", "--junit", xml.to_str().unwrap()]].concat();
    expect(&strictly, 1, &[&format!("NOT conformant: {required} cases count against it")]);
    let strict = report(&json);
    assert_eq!(strict["conformant"], false);
    for case in strict["cases"].as_array().unwrap() {
        assert_eq!(case["counts_against"], case["level"] == "required", "{case}");
    }
    let xml = std::fs::read_to_string(&xml).unwrap();
    let rest = all.lines().count() - required;
    assert!(xml.contains(&format!(r#"failures="{required}" errors="0" skipped="{rest}""#)), "{xml}");
    assert!(xml.contains(&format!(r#"<property name="not_judged.required" value="{required}"/>"#)), "{xml}");
}

#[test]
fn a_server_that_is_not_ours_to_start_is_not_blamed_for_it() {
    let temp = Temp::new("ours");
    let (socket, pid_file, json) = (temp.0.join("sock"), scratch("ours.pid"), scratch("ours.json"));
    let command = refuses(&pid_file).replace("{address}", socket.to_str().unwrap());
    let mut server = Command::new("sh").args(["-c", &format!("exec {command}")]).spawn().unwrap();
    wait_for("socket", || socket.exists().then_some(()));
    let address = socket.to_str().unwrap();
    let args = ["server", address, "--strict", "--filter", "W1-SEC-004a", "--json", json.to_str().unwrap()];
    expect(&args, 0, &["NOT APPLICABLE", "--exec", "not judged: 1 required: W1-SEC-004a"]);
    assert_eq!(report(&json)["cases"][0]["verdict"], "not applicable");
    // And the suite starts none at a place where somebody listens.
    let args = ["server", address, "--exec", &command, "--filter", "W1-FRM-004a"];
    expect(&args, 3, &[address, "another program listens there already"]);
    server.kill().unwrap();
    server.wait().unwrap();
    // A killed one has left its socket, which the suite removes.
    expect(&args, 0, &["PASS W1-FRM-004a"]);
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
    assert!(said.contains("NOT conformant: 1 case counts against it: W1-REQ-001c"), "{said}");
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

/// An adapter that takes so many streams as empty, and then does something else.
fn blind_for(count: usize, then: &str) -> String {
    format!(
        r#"sh -c 'n=0; while read -r line; do n=$((n + 1)); [ $n -le {count} ] || {{ {then}; }}
        echo "{{\"frames\": [], \"end\": \"between-frames\"}}"; done'"#
    )
}

#[test]
fn a_testee_that_ends_crashes_or_is_silent_is_told_apart() {
    let filter = ["--filter", "W1-FRM-009c", "--timeout", "0.5"];
    let told = |then: &str, words: &[&str]| {
        expect(&[&["codec", "--exec", &blind_for(1, then)], &filter[..]].concat(), 1, words);
    };
    told("exit 7", &["CRASH", "exit status 7"]);
    told("kill -SEGV $$", &["CRASH", "signal 11"]);
    told("sleep 100", &["HANG", "did not answer"]);
    expect(&[&["codec", "--exec", "yes"], &filter[..]].concat(), 1, &["FAIL", "no JSON"]);
}

#[test]
fn a_client_may_take_its_time_to_start_but_not_to_ask() {
    let filter = ["client", "--filter", "W1-HDR-001b", "--timeout", "0.3", "--exec"];
    let late = &[&filter[..], &["sh -c 'sleep 1; exit 5' {address}"]].concat();
    expect(late, 3, &["HARNESS ERROR", "did not connect: exit status 5"]);
    // One that has connected once can be started, and is at fault if it then isn't.
    let once = python(
        "import os, socket, sys\n\
         if os.path.exists(sys.argv[2]):\n\
        \x20    sys.exit(5)\n\
         open(sys.argv[2], 'w').close()\n\
         client = socket.socket(socket.AF_UNIX)\n\
         client.connect(sys.argv[1])\n",
        &scratch("connected").display().to_string(),
    );
    let _ = std::fs::remove_file(scratch("connected"));
    let two = [&filter[..], &[&once, "--filter", "W1-HDR-002b"]].concat();
    expect(&two, 1, &["FAIL", "did not connect: exit status 5", "2 fail"]);
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
    let mut hasher = DefaultHasher::new();
    program.hash(&mut hasher);
    let file = scratch(&format!("{:x}.py", hasher.finish()));
    std::fs::write(&file, program).unwrap();
    format!("python3 -B {} {{address}} {more}", file.display())
}

/// A server that refuses what isn't Weave (W1-FRM-004a), closes when it is asked how long it takes, and is silent
/// otherwise. It leaves its socket behind, writes its process id to a file, and starts what the shell makes of a second
/// argument.
const REFUSES: &str = r#"
import os, socketserver, struct, subprocess, sys

class Weave(socketserver.StreamRequestHandler):
    def handle(self):
        header = self.rfile.read(16)
        if len(header) == 16 and header[:4] != b"WEVE":
            payload = struct.pack(">QIIH", 0, 400, 1, 0)
            self.wfile.write(struct.pack(">4sHHII", b"WEVE", 1, 0xFF, len(payload), 0) + payload)
        elif b"how long?" not in self.rfile.read1(4096):
            self.rfile.read()

if len(sys.argv) > 3:
    subprocess.Popen(sys.argv[3], shell=True)
with open(sys.argv[2], "w") as file:
    file.write(str(os.getpid()))
socketserver.ThreadingUnixStreamServer.daemon_threads = True
socketserver.ThreadingUnixStreamServer(sys.argv[1], Weave).serve_forever()
"#;

fn refuses(pid_file: &Path) -> String {
    let _ = std::fs::remove_file(pid_file);
    python(REFUSES, pid_file.to_str().unwrap())
}

/// Waits for something, but not for ever.
fn wait_for<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The process id that a program has written to a file.
fn pid_in(file: &Path) -> Pid {
    wait_for("process id", || Pid::from_raw(std::fs::read_to_string(file).ok()?.trim().parse().ok()?))
}

fn is_gone(pid: Pid) -> bool {
    test_kill_process(pid).is_err()
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(report: &Value, key: &str) -> Vec<String> {
    let id = |value: &Value| value["id"].as_str().or(value.as_str()).unwrap().to_owned();
    report[key].as_array().unwrap().iter().map(id).collect()
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
            right + 2
        );
        let _ = std::fs::remove_file(&file);
        let args = ["codec", "--exec", &exec, "--filter", "W1-FRM-009c"];
        expect(&[&args[..], more].concat(), status, &["1 case"]);
        // Before the first case it is tried whether that is an adapter at all.
        std::fs::read_to_string(&file).unwrap().len() - 1
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

/// The run has to end with its first case: with one error of the suite, that counts against nobody.
fn ends_at_once(args: &[&str], words: &[&str]) {
    let (json, junit) = (scratch("at-once.json"), scratch("at-once.xml"));
    let reports = ["--json", json.to_str().unwrap(), "--junit", junit.to_str().unwrap()];
    let said = expect(&[args, &reports].concat(), 3, words);
    assert_eq!(said.matches("HARNESS ERROR").count(), 1, "{said}");
    assert!(said.contains("the suite could not go on") && !said.contains("NOT conformant"), "{said}");
    let all = expect(&[args[0], "--list"], 0, &[]).lines().count();
    let report = report(&json);
    assert_eq!(report["ended_by"], "harness error");
    assert_eq!((ids(&report, "cases").len(), ids(&report, "not_run").len()), (1, all - 1));
    assert_eq!(report["cases"][0]["counts_against"], false);
    assert_eq!(report["conformant"], false);
    let xml = std::fs::read_to_string(&junit).unwrap();
    let counts = format!(r#"tests="{all}" failures="0" errors="1" skipped="{}""#, all - 1);
    assert!(xml.contains(&counts), "{xml}");
}

#[test]
fn what_does_not_start_is_told_once_and_counts_against_nobody() {
    let gone = "sh -c 'echo no such model >&2; exit 3' {address}";
    ends_at_once(&["server", "--exec", gone], &["exit status 3", "no such model"]);
    ends_at_once(&["client", "--exec", gone], &["exit status 3", "no such model"]);
    ends_at_once(&["codec", "--exec", gone], &["exit status 3", "no such model"]);
    for mode in ["server", "client", "codec"] {
        ends_at_once(&[mode, "--exec", "/nonexistent/program {address}"], &["/nonexistent/program", "127"]);
    }
    ends_at_once(&["server", "/nonexistent/weave.sock"], &["/nonexistent/weave.sock"]);
    ends_at_once(&["codec", "--exec", "sleep 100", "--timeout", "0.5"], &["did not answer"]);
}

#[test]
fn what_never_listens_or_connects_is_told_once() {
    std::thread::scope(|scope| {
        for mode in ["server", "client"] {
            scope.spawn(move || {
                let args =
                    [mode, "--exec", "sleep 1000 # {address}", "--timeout", "0.5", "--filter", "W1-FRM"];
                let said = expect(&args, 3, &["the suite could not go on"]);
                assert_eq!(said.matches("HARNESS ERROR").count(), 1, "{said}");
            });
        }
    });
}

#[test]
fn a_crash_counts_though_the_server_can_not_be_started_again() {
    let (marker, json) = (scratch("started"), scratch("not-again.json"));
    let _ = std::fs::remove_file(&marker);
    let exec = python(
        "import os, socket, sys\n\
         if os.path.exists(sys.argv[2]):\n\
        \x20    sys.exit('the model is broken')\n\
         open(sys.argv[2], 'w').close()\n\
         listener = socket.socket(socket.AF_UNIX)\n\
         listener.bind(sys.argv[1])\n\
         listener.listen()\n\
         while not listener.accept()[0].recv(1): pass\n\
         os.abort()\n",
        marker.to_str().unwrap(),
    );
    for more in [&[][..], &["--repeat", "2"]] {
        let _ = std::fs::remove_file(&marker);
        let args = ["server", "--exec", &exec, "--filter", "W1-FRM", "--json", json.to_str().unwrap()];
        let words = ["CRASH", "the model is broken", "NOT conformant: 1 case counts", "could not go on"];
        expect(&[&args[..], more].concat(), 1, &words);
        let report = report(&json);
        assert_eq!(report["cases"][0]["verdict"], "crash");
        assert_eq!(report["ended_by"], "harness error");
    }
}

/// A run of the suite, in a process group of its own and with a folder of its own for what is temporary.
struct Interrupted {
    suite: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    temp: Temp,
    json: PathBuf,
    junit: PathBuf,
}

impl Interrupted {
    fn start(name: &str, args: &[&str]) -> Self {
        let temp = Temp::new(name);
        let (json, junit) = (scratch(&format!("{name}.json")), scratch(&format!("{name}.xml")));
        let mut suite = Command::new(env!("CARGO_BIN_EXE_weave-conform"))
            .args(args)
            .args(["--timeout", "1000", "--json", json.to_str().unwrap(), "--junit", junit.to_str().unwrap()])
            .env("TMPDIR", &temp.0)
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(suite.stdout.take().unwrap()).lines();
        Self { suite, lines, temp, json, junit }
    }

    /// Waits until a case is told.
    fn until(&mut self, id: &str) {
        let mut told = Vec::new();
        for line in &mut self.lines {
            let line = line.unwrap();
            if line.contains(id) {
                return;
            }
            told.push(line);
        }
        panic!("{id} was not told: {told:?}");
    }

    /// Has a signal end it, looks at what is left, and gives the report.
    fn end(mut self, signal: Signal, name: &str, group: bool) -> Value {
        let pid = Pid::from_child(&self.suite);
        (if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) }).unwrap();
        let rest: Vec<String> = self.lines.map(Result::unwrap).collect();
        let status = self.suite.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{rest:?}");
        assert!(rest.iter().any(|line| line.contains(&format!("interrupted by {name}"))), "{rest:?}");
        self.temp.check();
        let report = report(&self.json);
        assert_eq!((&report["ended_by"], &report["conformant"]), (&name.into(), &false.into()));
        let xml = std::fs::read_to_string(&self.junit).unwrap();
        assert!(
            xml.ends_with("</testsuites>") && xml.contains(r#"errors="1""#) && xml.contains(name),
            "{xml}"
        );
        report
    }
}

#[test]
fn a_signal_ends_a_run_against_a_server_and_leaves_reports_and_nothing_else() {
    for (signal, name, group) in
        [(Signal::INT, "SIGINT", true), (Signal::TERM, "SIGTERM", false), (Signal::TERM, "SIGTERM", true)]
    {
        let stem = format!("server-{name}-{group}");
        let (pid_file, stray) = (scratch(&format!("{stem}.pid")), scratch(&format!("{stem}.stray")));
        let _ = std::fs::remove_file(&stray);
        // What it starts leaves its process group.
        let leaves = format!("exec setsid sh -c 'echo $$ >{}; exec sleep 1000'", stray.display());
        let exec = format!("{} {leaves:?}", refuses(&pid_file)).replace("$$", "\\$\\$");
        let filter = ["--filter", "W1-FRM-004a", "--filter", "W1-CON-001a", "--filter", "W1-CON-004a"];
        let mut run = Interrupted::start(&stem, &[&["server", "--exec", &exec], &filter[..]].concat());
        // What has ended is told, though the run doesn't go on.
        run.until("PASS W1-FRM-004a");
        let pids = [pid_in(&pid_file), pid_in(&stray)];
        let report = run.end(signal, name, group);
        assert_eq!(ids(&report, "cases"), ["W1-FRM-004a"]);
        assert_eq!(ids(&report, "not_run"), ["W1-CON-001a", "W1-CON-004a"]);
        assert!(pids.into_iter().all(is_gone), "the server runs on");
    }
}

#[test]
fn a_signal_ends_a_run_against_an_adapter_or_a_client() {
    let pid_file = scratch("adapter.pid");
    let _ = std::fs::remove_file(&pid_file);
    let exec = blind_for(5, &format!("echo $$ >{}; exec sleep 1000", pid_file.display()));
    let filter = ["--filter", "W1-FRM-009c", "--filter", "W1-REQ-001c"];
    let mut run = Interrupted::start("adapter", &[&["codec", "--exec", &exec], &filter[..]].concat());
    if ids_of_list("codec", &filter)[0] == "W1-FRM-009c" {
        run.until("PASS W1-FRM-009c");
    }
    let pid = pid_in(&pid_file);
    let report = run.end(Signal::INT, "SIGINT", false);
    assert_eq!(ids(&report, "not_run"), ["W1-REQ-001c"]);
    assert!(is_gone(pid), "the adapter runs on");

    let pid_file = scratch("client.pid");
    let _ = std::fs::remove_file(&pid_file);
    let exec = python(
        "import os, socket, sys\n\
         client = socket.socket(socket.AF_UNIX)\n\
         client.connect(sys.argv[1])\n\
         with open(sys.argv[2], 'w') as file: file.write(str(os.getpid()))\n\
         client.recv(1)\n",
        pid_file.to_str().unwrap(),
    );
    let run = Interrupted::start("client", &["client", "--exec", &exec, "--filter", "W1-HDR-001b"]);
    let pid = pid_in(&pid_file);
    let report = run.end(Signal::TERM, "SIGTERM", true);
    assert_eq!(ids(&report, "not_run"), ["W1-HDR-001b"]);
    assert!(is_gone(pid), "the client runs on");
}

/// The ids that a filter leaves, in the order in which they are run.
fn ids_of_list(mode: &str, filter: &[&str]) -> Vec<String> {
    let said = expect(&[&[mode, "--list"], filter].concat(), 0, &[]);
    said.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn exec_is_any_command_of_the_shell_and_the_address_is_one_word_of_it() {
    let exec = refuses(&scratch("shell.pid"));
    let temp = Temp::new("it's \"$HOME\" ö");
    for command in [
        format!("cd / && {exec}"),
        format!("A=1 {exec}"),
        format!("exec {exec}"),
        format!("{exec}; exit 1"),
        format!("sh -c '{} & wait'", exec.replace("{address}", "$1").replace(" $1", " \"$1\""))
            + " sh {address}",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_weave-conform"))
            .args(["server", "--exec", &command, "--filter", "W1-FRM-004a"])
            .env("TMPDIR", &temp.0)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", text(&output));
        temp.check();
        assert!(is_gone(pid_in(&scratch("shell.pid"))), "{command}: the server runs on");
    }
}

#[test]
fn a_server_behind_a_shell_gets_the_signal_and_its_status_counts() {
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/implementations/python/server.py");
    let json = scratch("behind.json");
    let exec = format!("echo $$ >/dev/null; python3 -B {server} {{address}}; exit $?");
    let args = ["server", "--exec", &exec, "--filter", "W1-CON-009a", "--json", json.to_str().unwrap()];
    expect(&args, 0, &["PASS W1-CON-009a"]);
    let out_of_luck = blind_for(1, "(kill -SEGV $(sh -c \"echo \\$PPID\")); exit $?");
    let args = ["codec", "--exec", &out_of_luck, "--filter", "W1-FRM-009c"];
    expect(&args, 1, &["CRASH", "exit status 139", "signal 11"]);
}

#[test]
fn a_folder_for_sockets_that_is_missing_or_too_long_is_told() {
    let with = |temp: &Path, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weave-conform"))
            .args(["server", "--exec", &refuses(&scratch("long.pid")), "--filter", "W1-FRM-004a"])
            .args(more)
            .env("TMPDIR", temp)
            .output()
            .unwrap();
        (output.status.code(), text(&output))
    };
    let (status, said) = with(Path::new("/nonexistent"), &[]);
    assert!(status == Some(3) && said.contains("/nonexistent/weave-conform-"), "{said}");
    assert!(said.contains("TMPDIR"), "{said}");
    let long = scratch(&"x".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    let (status, said) = with(&long, &[]);
    assert!(status == Some(3) && said.contains("too many") && said.contains("TMPDIR"), "{said}");
    assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0, "a folder is left");
}

#[test]
fn reports_are_opened_before_the_run_and_their_errors_are_told() {
    let ran = scratch("ran");
    let exec = format!("touch {}; {UNABLE}", ran.display());
    let args = ["codec", "--exec", &exec, "--filter", "W1-FRM-009c"];
    for option in ["--json", "--junit"] {
        for path in ["/nonexistent/report", "/"] {
            let said = expect(&[&args[..], &[option, path]].concat(), 2, &[path]);
            assert!(!ran.exists() && !said.contains("conformant"), "{said}");
        }
    }
    // One report that can't be written keeps no other from being.
    let junit = scratch("full.xml");
    let full = [&args[..], &["--json", "/dev/full", "--junit", junit.to_str().unwrap()]].concat();
    expect(&full, 3, &["/dev/full", "No space left"]);
    assert!(std::fs::read_to_string(&junit).unwrap().ends_with("</testsuites>"));
}

#[test]
fn a_full_standard_output_is_an_error_and_a_closed_one_is_none() {
    let json = scratch("closed.json");
    let run = ["codec", "--exec", UNABLE, "--json", json.to_str().unwrap()];
    for args in [&run[..], &["codec", "--list"], &["manual"], &["--help"], &["stub"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weave-conform"));
        command.args(args).stdin(std::fs::File::open("/dev/urandom").unwrap());
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command.stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{args:?}: {}", text(&output));
        assert!(text(&output).contains("No space left"), "{args:?}: {}", text(&output));
        if args[0] == "stub" {
            continue;
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""), "{args:?}");
    }
    assert!(ids(&report(&json), "cases").len() > 10);
}

#[test]
fn the_manual_has_each_verb_and_its_options() {
    let page = expect(&["manual"], 0, &[".TH weave", ".SH \"SERVER\"", ".SH \"MATRIX\"", "Exit status"]);
    for option in ["\\-\\-exec\\-several", "\\-\\-expected\\-failures", "\\-\\-json", "\\-\\-output"] {
        assert!(page.contains(option), "{option} in {page}");
    }
    assert!(!page.contains("STRANGER"), "{page}");
}
