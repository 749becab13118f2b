//! One table says what each error means: the command's exit status, with the daemon alone and with providers, and the
//! gateway's HTTP status are three columns of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::command::{folder, run, weave};
use crate::fake::{Fake, Request, Response, error, send, until_closed};

/// What a daemon does with each request.
enum Daemon {
    /// Nobody listens.
    Absent,
    /// Answers with this, to the request of this id, and hangs up.
    Answers(fn(u64) -> Vec<u8>),
    /// Keeps it until the client has gone.
    Silent,
    /// It is somebody else's.
    Strange,
}

struct Row {
    what: &'static str,
    daemon: Daemon,
    steps: u32,
    exit: i32,
    http: (u16, &'static str),
}

const fn row(what: &'static str, daemon: Daemon, exit: i32, http: (u16, &'static str)) -> Row {
    Row { what, daemon, steps: 1, exit, http }
}

const FAILED: (u16, &str) = (500, "generation_failed");
const UNAVAILABLE: (u16, &str) = (503, "unavailable");
const REFUSED: (u16, &str) = (400, "request_refused");

fn rows() -> Vec<Row> {
    use Daemon::{Absent, Answers, Silent, Strange};
    let mut rows = vec![
        Row {
            steps: 0,
            ..row("a parameter out of range", Answers(|_| Vec::new()), 2, (400, "invalid_value"))
        },
        row("INVALID_STEPS", Answers(|id| error(id, 400, 6, "steps")), 3, REFUSED),
        row("an unknown client error", Answers(|id| error(id, 400, 4242, "new")), 3, REFUSED),
        row("BUSY", Answers(|id| error(id, 500, 23, "the queue is full")), 4, (429, "busy")),
        row("SHUTTING_DOWN", Answers(|id| error(id, 500, 24, "ending")), 4, UNAVAILABLE),
        row("TIMEOUT", Answers(|id| error(id, 500, 10, "deadline")), 5, (504, "timeout")),
        row("no answer in time", Silent, 5, (504, "timeout")),
        row("GPU_ERROR", Answers(|id| error(id, 500, 9, "the worker died")), 7, FAILED),
        row("OUT_OF_MEMORY", Answers(|id| error(id, 500, 8, "vram")), 7, (500, "out_of_memory")),
        row("an unknown server error", Answers(|id| error(id, 500, 4242, "new")), 7, FAILED),
        row("hangs up without a byte", Answers(|_| Vec::new()), 7, UNAVAILABLE),
        row(
            "hangs up after some bytes",
            Answers(|id| Response::good(id).bytes()[..5000].to_vec()),
            7,
            FAILED,
        ),
        row("nobody listens", Absent, 69, UNAVAILABLE),
        row("not Weave", Answers(|_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), 76, FAILED),
        row("wants a token first", Answers(|_| error(0, 400, 1, "weave-auth 1")), 76, FAILED),
        row("another request's image", Answers(|id| Response::good(id + 1).bytes()), 76, FAILED),
    ];
    if rustix::process::geteuid().is_root() {
        rows.push(row("somebody else's", Strange, 77, FAILED));
    } else {
        eprintln!("NOT CHECKED: only root can listen as somebody else");
    }
    rows
}

/// Serves any number of connections, and ends with the test.
fn daemon(does: &Daemon) -> Fake {
    let answer = match does {
        Daemon::Absent => return Fake::listening(drop),
        Daemon::Strange => {
            return Fake::of(4242, |listener| {
                while let Ok((mut stream, _)) = listener.accept() {
                    until_closed(&mut stream);
                }
            });
        }
        Daemon::Silent => None,
        Daemon::Answers(answer) => Some(*answer),
    };
    Fake::listening(move |listener| {
        while let Ok((mut stream, _)) = listener.accept() {
            let request = Request::read(&mut stream);
            match answer {
                Some(answer) => send(&mut stream, &answer(request.id())),
                None => until_closed(&mut stream),
            }
        }
    })
}

/// With a seed, which no cloud takes: so it is the daemon's error that decides.
fn generate(folder: &Path, socket: &Path, row: &Row) -> Command {
    let mut command = weave(folder);
    command.args(["generate", "a cat", "--width=64", "--height=64", "--seed=7", "--output=cat.png"]);
    command.arg(format!("--steps={}", row.steps)).arg(timeout(row)).arg("--socket").arg(socket);
    command
}

fn timeout(row: &Row) -> &'static str {
    if matches!(row.daemon, Daemon::Silent) { "--timeout=0.2" } else { "--timeout=20" }
}

/// A gateway that runs, and its port.
struct Gateway(Child, u16);

impl Gateway {
    fn start(folder: &Path, socket: &Path, row: &Row) -> Self {
        let mut command = weave(folder);
        command.args(["gateway", "--listen=127.0.0.1:0", timeout(row), "--socket"]).arg(socket);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening at http://127.0.0.1:").unwrap();
        let port = address.split(' ').next().unwrap().parse().unwrap();
        Self(child, port)
    }

    /// Status and code of the error that a request gets.
    fn ask(&self, steps: u32) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.1)).unwrap();
        let body =
            serde_json::json!({ "prompt": "a cat", "size": "64x64", "steps": steps, "seed": 7 }).to_string();
        let head = format!(
            "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        (status, body["error"]["code"].as_str().unwrap().to_owned())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn an_error_means_the_same_to_the_command_to_providers_and_to_the_gateway() {
    let mut wrong = Vec::new();
    for row in rows() {
        let (folder, fake) = (folder(), daemon(&row.daemon));
        let mut check = |surface: &str, found: String, expected: String| {
            if found != expected {
                wrong.push(format!("{}, {surface}: {found} instead of {expected}", row.what));
            }
        };
        let alone = run(generate(folder.path(), &fake.path(), &row));
        check("the daemon alone", format!("{:?}", alone.status), format!("{:?}", Some(row.exit)));

        let mut command = generate(folder.path(), &fake.path(), &row);
        command.args(["--providers=local,openai", "--busy-wait=0.05"]);
        command.env("OPENAI_API_KEY", "sk-test-0123456789abcdef");
        let providers = run(command);
        check("with providers", format!("{:?}", providers.status), format!("{:?}", Some(row.exit)));

        let gateway = Gateway::start(folder.path(), &fake.path(), &row);
        let (status, code) = gateway.ask(row.steps);
        check("the gateway", format!("{status} {code}"), format!("{} {}", row.http.0, row.http.1));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
