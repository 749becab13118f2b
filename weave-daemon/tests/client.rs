//! The client library, its examples and the `weave` command against the real daemon. What they make of answers that
//! no daemon gives is tested in weave-client.

mod harness;
#[allow(dead_code, reason = "its main is for who runs it")]
#[path = "../../weave-client/examples/one_image.rs"]
mod one_image;
#[allow(dead_code, reason = "its main is for who runs it")]
#[path = "../../weave-client/examples/several.rs"]
mod several;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::{Daemon, PATIENCE, gradient, request, sized_gradient, weave};
use rustix::process::Signal;
use weave_client::{Client, Error, ErrorCode, Params};

const PARAMS: Params = Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 7 };

fn client(daemon: &Daemon) -> Client {
    let mut client = Client::new(&*daemon.socket);
    client.set_timeout(Some(PATIENCE));
    client
}

#[test]
fn several_requests_get_each_its_own_answer() {
    let daemon = Daemon::pattern(&["--workers=2", "--in-flight=20", "--faults=fail@bad"]);
    let mut client = client(&daemon);
    let mut sent = BTreeMap::new();
    for seed in 1..=20 {
        let prompt = if seed % 5 == 0 { "bad" } else { "good" };
        let params = Params { seed, ..PARAMS };
        sent.insert(client.send(&params, prompt).unwrap(), (seed, prompt));
    }
    while let Some(answer) = client.receive() {
        let (seed, prompt) = sent.remove(&answer.request_id).unwrap();
        match answer.result {
            Ok(image) => assert!(image.pixels == gradient(prompt, seed), "not the picture of seed {seed}"),
            Err(Error::Refused(refusal)) => assert_eq!((refusal.code, prompt), (ErrorCode::GpuError, "bad")),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(sent.is_empty(), "not answered: {sent:?}");
}

#[test]
fn what_the_daemon_does_not_take_of_one_client_is_busy() {
    let daemon = Daemon::pattern(&["--queue=1", "--faults=hang@stop"]);
    let mut client = client(&daemon);
    let first = client.send(&PARAMS, "stop").unwrap();
    daemon.log.wait(&format!("request {first}:"));
    let ids = [(); 2].map(|()| client.send(&PARAMS, "stop").unwrap());
    let answer = client.receive().unwrap();
    assert_eq!(answer.request_id, ids[1]);
    assert!(matches!(answer.result, Err(Error::Refused(refusal)) if refusal.code == ErrorCode::Busy));
    assert_eq!(client.in_flight(), 2);
    daemon.kill_worker();
}

#[test]
fn a_daemon_that_closes_or_restarts_meanwhile_is_not_noticed() {
    let folder = harness::private_folder();
    let socket = folder.path().join("weave.sock");
    let start =
        || Daemon::start_at(&socket, &["--engine=pattern", "--pattern=gradient", "--idle-timeout=0.05"]);
    let mut daemon = start();
    let mut client = client(&daemon);
    assert!(client.generate(&PARAMS, "a cat").unwrap().pixels == gradient("a cat", 7));
    daemon.log.wait("idle timeout, no request for");
    assert!(client.generate(&PARAMS, "a cat").unwrap().pixels == gradient("a cat", 7));
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(matches!(client.generate(&PARAMS, "a cat"), Err(Error::Unreachable { .. })));
    let _daemon = start();
    client.ping().unwrap();
}

/// An end of a TCP stream alone would look like that of a client that only has no more to say.
#[test]
fn a_client_that_is_gone_is_noticed_over_tcp_too() {
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", "--faults=slow=0.2"]);
    let mut client = Client::new(format!("tcp://{}", daemon.tcp_address()));
    client.send(&Params { steps: 100, ..PARAMS }, "slow").unwrap();
    daemon.log.wait("100 steps");
    drop(client);
    daemon.log.wait("cancelled after");
}

#[test]
fn a_daemon_that_dies_under_requests_ends_them_all() {
    let mut daemon = Daemon::pattern(&["--faults=hang@stop"]);
    let mut client = client(&daemon);
    for seed in 1..=3 {
        client.send(&Params { seed, ..PARAMS }, "stop").unwrap();
    }
    daemon.log.wait("request 1:");
    daemon.signal(Signal::KILL);
    daemon.wait();
    for request_id in 1..=3 {
        let answer = client.receive().unwrap();
        assert_eq!(answer.request_id, request_id);
        assert!(matches!(answer.result, Err(Error::HungUp { received: 0 })), "{answer:?}");
    }
    assert!(client.receive().is_none());
}

#[test]
fn the_examples_do_what_they_say() {
    let daemon = Daemon::pattern(&["--workers=2", "--in-flight=3"]);
    let mut ppm = Vec::new();
    one_image::draw(daemon.socket.clone().into(), "a cat", &mut ppm).unwrap();
    let picture = sized_gradient("a cat", 1234, 512);
    assert!(ppm == [b"P6 512 512 255\n", &*picture].concat());
    let mut seeds = Vec::new();
    several::draw(daemon.socket.clone().into(), "a cat", 6, |seed, pixels| {
        assert!(pixels == sized_gradient("a cat", seed, 512), "not the picture of seed {seed}");
        seeds.push(seed);
    })
    .unwrap();
    seeds.sort_unstable();
    assert_eq!(seeds, [1, 2, 3, 4, 5, 6]);
}

/// The next answer, as it came.
fn raw_answer(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    stream.read_exact(&mut bytes).unwrap();
    let payload_len = u32::from_be_bytes(bytes[8..12].try_into().unwrap());
    bytes.resize(16 + payload_len as usize, 0);
    stream.read_exact(&mut bytes[16..]).unwrap();
    bytes
}

fn run(daemon: &Daemon, folder: &Path, args: &[&str]) -> Output {
    let mut command: Command = weave();
    command.env("WEAVE_SOCKET", &daemon.socket).current_dir(folder).args(args);
    command.env_remove("WEAVE_ADMIN_SOCKET").stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn the_command_makes_verifies_measures_and_inspects() {
    let daemon = Daemon::pattern(&["--workers=2"]);
    let folder = tempfile::tempdir().unwrap();
    let succeeds = |args: &[&str]| {
        let output = run(&daemon, folder.path(), args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();

    assert!(succeeds(&["ping"]).contains(": answered in "));
    let size = ["--width=64", "--height=64", "--steps=1", "--cfg=1"];
    let made = succeeds(
        &[&["generate", "a cat", "-n5", "--seed=7", "-o", "cat.png", "--json", "--quiet"], &size[..]]
            .concat(),
    );
    let mut files: Vec<_> =
        made.lines().map(|line| (json(line)["file"].clone(), json(line)["seed"].clone())).collect();
    files.sort_by_key(|(_, seed)| seed.as_u64());
    for ((file, seed), number) in files.iter().zip(1..) {
        assert_eq!((file, seed.as_u64()), (&format!("cat-{number}.png").into(), Some(6 + number)));
        let verified = succeeds(&["verify", file.as_str().unwrap()]);
        assert!(verified.contains("the same 4096 pixels"), "{verified}");
    }
    assert_eq!(files.len(), 5);

    let report = succeeds(&[&["bench", "-r20", "-c2", "-i2", "--json"], &size[..]].concat());
    assert_eq!((&json(&report)["images"], &json(&report)["errors"]), (&20.into(), &serde_json::json!({})));
    let stats = json(&succeeds(&["stats", "--json"]));
    assert_eq!(stats["weave_requests_total"]["image"], 30, "5 made, 5 verified, 20 measured");

    // Real traffic, in both directions.
    let mut traffic = fs::File::create(folder.path().join("traffic")).unwrap();
    let mut raw = daemon.connect();
    for frame in [request(1, "a cat", 7), weave_core::request::probe(2).to_vec()] {
        raw.write(&frame);
        traffic.write_all(&frame).unwrap();
        traffic.write_all(&raw_answer(&mut raw.stream)).unwrap();
    }
    let output = run(&daemon, folder.path(), &["inspect", "traffic"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "the probe is a request that is refused: {text}");
    assert!(text.contains("a server answers INVALID_MODEL_ID and reads on"), "{text}");
    assert!(text.contains("4 frames in ") && text.contains(", 1 that a receiver would refuse"), "{text}");
}

#[test]
fn another_picture_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let one = Daemon::pattern(&[]);
    let made = run(
        &one,
        folder.path(),
        &["generate", "a cat", "-ocat.png", "--width=64", "--height=64", "--steps=1"],
    );
    assert!(made.status.success(), "{made:?}");
    let other = Daemon::start(&["--engine=pattern", "--pattern=checkerboard"]);
    let output = run(&other, folder.path(), &["verify", "cat.png"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(" of 4096 pixels differ, by at most "), "{text}");
}
