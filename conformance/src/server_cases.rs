//! What a server is asked.
//!
//! A new case goes to the end of its requirement's, with the next letter. `cases.txt` has all ids that were ever used.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::{Case, Failure, Level, Remark, Run, Told, Verdict};
use crate::server::{Answer, Came, Cut, Expected, Server, ServerCase, Talk};
use crate::spec::VECTORS;
use crate::testee::{Address, how_it_ended};
use crate::wire::{Draft, End, Outcome, Receiver, Segment, code};

use Level::{Informational, Recommended, Required, Robustness};
use ServerCase::{By, Talks};

const fn case(id: &'static str, level: Level, title: &'static str, run: ServerCase) -> Case {
    Case { id, level, title, run: Run::Server(run) }
}

const fn vectors(
    id: &'static str,
    level: Level,
    title: &'static str,
    names: &'static [&'static str],
) -> Case {
    Case { id, level, title, run: Run::Vectors(Receiver::Server, names) }
}

/// All of them.
#[rustfmt::skip] // a table
pub const CASES: &[Case] = &[
    case("W1-TRN-001a", Required, "a request is the same wherever the stream is cut in two", By(cut_in_two)),
    case("W1-TRN-002a", Recommended, "the socket has the mode 0600 and lies in a folder of 0700", By(modes)),
    case("W1-TRN-003a", Required, "a peer of another user is turned away before it has sent a byte", By(stranger)),
    case("W1-TRN-004a", Required, "a peer of another user gets no answer", By(stranger)),
    case("W1-TRN-005a", Required, "integers are big-endian: ids and sides come back as they were sent",
        Talks(asymmetric)),
    vectors("W1-TRN-005b", Required, "cfg_scale is a binary32 in big-endian order",
        &["request-cfg-scale-*", "cfg-scale-*"]),
    vectors("W1-TRN-006a", Required, "fields follow each other without padding",
        &["request-example", "request-plain", "request-smallest"]),
    case("W1-HDR-001a", Required, "answers begin with the magic", By(|server| header(server, "W1-HDR-001"))),
    case("W1-HDR-002a", Required, "answers have version 1", By(|server| header(server, "W1-HDR-002"))),
    case("W1-HDR-003a", Required, "payload_len of an answer is what follows",
        By(|server| header(server, "W1-HDR-003"))),
    vectors("W1-HDR-003b", Required, "a request ends where its payload_len says",
        &["stream-payload-len-one-less", "stream-payload-len-one-more", "stream-empty-payloads"]),
    case("W1-HDR-004a", Required, "reserved of an answer is 0", By(|server| header(server, "W1-HDR-004"))),
    vectors("W1-HDR-005a", Required, "reserved of a request is ignored", &["reserved-*"]),
    vectors("W1-FRM-002a", Required, "a payload that is too long to be followed gets TOO_LARGE and a close",
        &["payload-len-10485761*", "payload-len-16777248", "payload-len-2147483648", "payload-len-largest",
            "stream-nothing-is-read-after-too-large"]),
    vectors("W1-FRM-003a", Required, "a payload that is too long for a request is skipped",
        &["prompt-data-*", "payload-len-10485760", "stream-6205-between-two", "stream-10-mib-between-two",
            "stream-longest-around-oversized"]),
    vectors("W1-FRM-003b", Required, "a skipped payload is not looked at",
        &["stream-frames-within-a-skipped-payload", "stream-frame-within-an-unknown-type",
            "magic-within-a-payload"]),
    vectors("W1-FRM-004a", Required, "a wrong magic gets INVALID_MAGIC and a close",
        &["magic-first-byte", "magic-second-byte", "magic-third-byte", "magic-last-byte",
            "magic-backwards", "magic-lower-case", "magic-zeros", "magic-http", "magic-after-one-byte"]),
    vectors("W1-FRM-004b", Required, "a wrong magic after good frames, too; what follows is not read",
        &["stream-garbage-after-a-frame", "stream-nothing-is-read-after-garbage"]),
    vectors("W1-FRM-005a", Required, "the magic is checked first, then payload_len",
        &["order-magic-*", "order-payload-len-*"]),
    case("W1-FRM-008a", Required, "no memory is reserved for what is only announced", By(announced)),
    vectors("W1-FRM-009a", Required, "a frame that the peer cuts off is dropped without an answer",
        &["cut-*", "stream-cut-*"]),
    case("W1-FRM-009b", Robustness, "the same at every length that a request can be cut off at", By(truncated)),
    vectors("W1-FRM-009c", Required, "a connection without a byte is nothing", &["nothing"]),
    vectors("W1-REQ-001a", Required, "width, up to its bounds and beyond", &["request-width-*", "width-*"]),
    vectors("W1-REQ-001b", Required, "height, up to its bounds and beyond",
        &["request-height-*", "height-*", "request-sides-largest"]),
    vectors("W1-REQ-001c", Required, "steps, up to its bounds and beyond", &["request-steps-*", "steps-*"]),
    vectors("W1-REQ-001d", Required, "the three lengths, up to their bounds and beyond",
        &["request-clip-*", "request-t5-*", "clip-l-length-*", "clip-g-length-*", "t5-length-*",
            "request-longest"]),
    vectors("W1-REQ-001e", Required, "model_id is 0", &["model-id-*"]),
    vectors("W1-REQ-002a", Required, "a range must lie within prompt_data",
        &["clip-l-range-*", "clip-g-range-*", "t5-range-*", "range-*"]),
    vectors("W1-REQ-003a", Required, "what is not UTF-8 is refused",
        &["clip-l-not-utf-8", "clip-g-not-utf-8", "t5-not-utf-8", "not-utf-8-*"]),
    vectors("W1-REQ-003b", Required, "what is UTF-8 is served", &["utf-8-*"]),
    vectors("W1-REQ-003c", Required, "the byte 0 is refused", &["clip-l-nul", "clip-g-nul", "t5-nul", "nul-*"]),
    vectors("W1-REQ-005a", Required, "ranges may overlap and coincide, and have any order",
        &["ranges-coincide*", "ranges-overlap", "ranges-nest", "ranges-out-of-order",
            "ranges-at-the-end-of-longest", "ranges-2048-of-longest", "ranges-whole-characters-of-a-shared-text"]),
    vectors("W1-REQ-006a", Required, "bytes that no range covers are ignored",
        &["ranges-with-gaps", "ranges-after-a-gap", "ranges-before-a-rest", "ranges-uncovered-*"]),
    vectors("W1-REQ-007a", Required, "-0.0 is served; NaN and infinities are refused",
        &["request-cfg-scale-minus-zero", "cfg-scale-nan*", "cfg-scale-minus-nan",
            "cfg-scale-signalling-nan", "cfg-scale-infinity", "cfg-scale-minus-infinity"]),
    case("W1-REQ-007b", Required, "-0.0 gives the image of 0.0", By(negative_zero)),
    case("W1-REQ-008a", Required, "of three different prompts the one for CLIP-L counts", By(three_prompts)),
    vectors("W1-REQ-008b", Required, "three prompts may differ", &["request-prompts-differ"]),
    case("W1-REQ-009a", Required, "seed 0 gives another image each time", By(drawn_seed)),
    case("W1-REQ-010a", Required, "the same request gives the same pixels", By(same_pixels)),
    case("W1-REQ-010b", Required, "all 64 bits of the seed count", By(all_of_the_seed)),
    vectors("W1-REQ-010c", Required, "seeds up to the largest are served", &["request-seed-*"]),
    vectors("W1-RSP-001a", Required, "every request_id comes back, all 64 bits of it", &["request-id-*"]),
    case("W1-RSP-002a", Required, "the image is as large as was asked for", Talks(sizes)),
    case("W1-RSP-003a", Required, "generation_time_ms does not count the wait in the queue", By(time_without_wait)),
    case("W1-RSP-004a", Required, "status is 200, image_data_len is what sides and channels make",
        By(|server| header(server, "W1-RSP-004"))),
    vectors("W1-ERR-001a", Required, "the id of a refused request comes back", &["echo-of-*"]),
    vectors("W1-ERR-001b", Required, "a payload of 8 bytes has an id, a shorter one has none",
        &["payload-len-0", "payload-len-1", "payload-len-7", "payload-len-8", "msg-type-unknown-empty",
            "version-2-short", "version-2-of-8"]),
    case("W1-ERR-002a", Required, "the status is the one of the code", By(|server| refusals(server, "W1-ERR-002"))),
    case("W1-ERR-003a", Required, "error_msg has at most 255 bytes", By(|server| refusals(server, "W1-ERR-003"))),
    case("W1-ERR-004a", Recommended, "error_msg names the field and its value", By(telling)),
    case("W1-ERR-005a", Required, "error_msg has nothing of a prompt", By(discreet)),
    vectors("W1-VAL-001a", Required, "a msg_type that is no request gets UNSUPPORTED_TYPE",
        &["msg-type-0*", "msg-type-ffff"]),
    vectors("W1-VAL-001b", Required, "a payload that is too short for its fields is MALFORMED",
        &["payload-len-11", "payload-len-12", "payload-len-13", "payload-len-36", "payload-len-59",
            "payload-len-60"]),
    vectors("W1-VAL-001c", Required, "the first failure decides: version, msg_type, lengths, model_id",
        &["order-version-*", "order-msg-type-*", "order-first-length-*", "order-model-id-*",
            "order-second-length-*"]),
    vectors("W1-VAL-001d", Required, "the first failure decides: sides, steps, cfg_scale",
        &["order-width-*", "order-height-*", "order-steps-*", "order-cfg-scale-*"]),
    vectors("W1-VAL-001e", Required, "the first failure decides: the prompts",
        &["order-clip-*", "order-t5-*", "order-prompt-data-*", "order-utf-8-*"]),
    vectors("W1-VAL-001f", Required, "the first failure decides: everything wrong at once",
        &["order-everything-*"]),
    vectors("W1-VAL-002a", Required, "the end of a range can't overflow",
        &["clip-l-range-wraps*", "clip-g-range-wraps*", "t5-range-wraps*", "clip-l-range-negative",
            "clip-g-range-negative", "t5-range-negative"]),
    vectors("W1-VAL-003a", Required, "a request that passes all checks is served, or gets a status of 500",
        &["request-example", "request-longest", "stream-longest-three-times"]),
    vectors("W1-CON-001a", Required, "requests may be sent before the answers to others are there",
        &["stream-two-requests", "stream-five-requests"]),
    case("W1-CON-001b", Robustness, "2,000 requests at once", Talks(many_at_once)),
    case("W1-CON-002a", Required, "every request is answered exactly once", By(exactly_once)),
    case("W1-CON-003a", Informational, "answers may come in any order", By(order_of_answers)),
    vectors("W1-CON-004a", Required, "request_ids need not differ", &["stream-same-id-twice"]),
    case("W1-CON-004b", Robustness, "one id for fifty requests", Talks(one_id)),
    vectors("W1-CON-005a", Required, "the connection lives on after a refusal",
        &["stream-refused-between-two", "stream-one-refusal-of-each-kind"]),
    case("W1-CON-006a", Required, "answers are written whole, however slowly they are read",
        By(slow_reader_gets_whole_frames)),
    case("W1-CON-007a", Required, "a full queue gets BUSY at once", By(flood)),
    case("W1-CON-008a", Robustness, "2,000 connections at once: refused ones get BUSY or a close, others are served",
        By(crowd)),
    case("W1-CON-009a", Recommended, "a server that is told to end finishes what it has begun", By(told_to_end)),
    case("W1-CON-010a", Required, "a client may end its direction: it gets its answers, then a close",
        Talks(half_closed)),
    case("W1-CON-011a", Robustness, "a client that takes nothing of its answers doesn't stop others",
        By(deaf_client)),
    case("W1-CON-012a", Required, "what one connection does wrong doesn't harm another", By(neighbours_in_trouble)),
    case("W1-CON-012b", Robustness, "a client that sends a byte now and then doesn't stop others",
        By(dripping_client)),
    case("W1-CON-012c", Robustness, "connections that say nothing, or half a header, don't stop others",
        By(silent_clients)),
    case("W1-CON-012d", Robustness, "clients that hang up in the middle of their answers don't harm others",
        By(hang_up)),
    case("W1-VER-002a", Required, "a request of version 1 is answered in version 1",
        By(|server| refusals(server, "W1-VER-002"))),
    vectors("W1-VER-003a", Required, "another version gets UNSUPPORTED_VERSION",
        &["version-*", "cut-version-2"]),
    case("W1-VER-004a", Required, "the end of a frame of another version is found", Talks(later_version)),
    case("W1-SEC-001a", Robustness, "noise ends nothing", By(noise)),
    case("W1-SEC-001b", Robustness, "requests with bytes changed at random end nothing", By(mutated)),
    case("W1-SEC-001c", Robustness, "three images of 2048×2048 on one connection", Talks(largest_images)),
    case("W1-SEC-002a", Recommended, "a hundred connections with half a request each cost little memory",
        By(half_requests)),
    case("W1-SEC-003a", Recommended, "the log has no prompts", By(prompts_in_the_log)),
    case("W1-SEC-004a", Required, "no other machine can connect", By(not_reachable)),
];

fn fail(requirement: &str, problem: impl Into<String>, expected: impl Into<String>) -> Told {
    Err(Box::new(Failure::new(requirement, problem, expected)))
}

fn skip(reason: &str) -> Told {
    Ok(Remark::Skip(reason.to_owned()))
}

const NOT_OURS: &str = "the server was not started by the suite (--exec)";

// Transport -------------------------------------------------------------------------------------------------------

fn cut_in_two(server: &mut Server) -> Told {
    const ID: u64 = 0x0102_0304_0506_0708;
    let request = Draft::request(ID, "a cat in space").bytes();
    let mut connection = server.connect()?;
    for at in 1..request.len() {
        let (first, second) = request.split_at(at);
        connection.wait_until(Instant::now() + server.patience);
        connection.write(first);
        // Somebody else is served in between: by then the first piece has been read, in a call of its own.
        server.still_serves()?;
        connection.write(second);
        let wrong = |problem: String| {
            let mut failure = Failure::new("W1-TRN-001", problem, "an image for the request");
            failure.variant = format!("cut after {at} bytes");
            failure.sent.clone_from(&request);
            Err(Box::new(failure))
        };
        match connection.receive()? {
            Came::Answer(Answer::Image { id: ID, .. } | Answer::Error { id: ID, status: 500, .. }) => {}
            Came::Answer(answer) => return wrong(format!("the answer is {answer}")),
            Came::Close => return wrong("the server closed the connection".to_owned()),
        }
    }
    server.barrier(&mut connection).map(|()| Remark::Pass)
}

fn modes(server: &mut Server) -> Told {
    let Address::Unix(path) = server.address().clone() else { return skip("the server listens on TCP") };
    let mode = |path: &std::path::Path| std::fs::metadata(path).map(|data| data.permissions().mode() & 0o777);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match (mode(&path), folder.map(mode)) {
        (Ok(0o600), Some(Ok(0o700))) => Ok(Remark::Pass),
        (Ok(0o600), Some(Ok(folder))) => {
            fail("W1-TRN-002", format!("the socket's folder has the mode {folder:04o}"), "0700")
        }
        (Ok(socket), _) => fail("W1-TRN-002", format!("the socket has the mode {socket:04o}"), "0600"),
        (Err(error), _) => fail("W1-TRN-002", format!("{}: {error}", path.display()), "a socket"),
    }
}

/// Connects as another user, which only root can.
fn stranger(server: &mut Server) -> Told {
    let Address::Unix(path) = server.address().clone() else { return skip("the server listens on TCP") };
    if !rustix::process::geteuid().is_root() {
        return skip("only root can connect as another user");
    }
    if std::fs::metadata(&path).is_ok_and(|data| data.uid() != 0) {
        return skip("the server runs as another user than root already");
    }
    // The socket, and what of ours is above it, is opened to everybody for this, so that the server has to decide.
    let shared = std::env::temp_dir();
    let opened: Vec<_> = path
        .ancestors()
        .take_while(|path| path.starts_with(&shared) && **path != *shared)
        .filter_map(|path| Some((path.to_path_buf(), std::fs::metadata(path).ok()?.permissions())))
        .collect();
    for (path, _) in &opened {
        let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(0o777));
    }
    let told = as_stranger(&path, server.patience);
    for (path, permissions) in opened {
        let _ = std::fs::set_permissions(path, permissions);
    }
    server.still_serves()?;
    told
}

/// Starts this program again as nobody, to connect and to say what comes.
fn as_stranger(path: &std::path::Path, patience: Duration) -> Told {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return skip(&format!("this program can't be started again: {error}")),
    };
    let output = Command::new(&program)
        .arg("stranger")
        .arg(path)
        .arg(patience.as_secs().max(1).to_string())
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output();
    let said = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => return skip(&format!("this program can't be started as another user: {error}")),
    };
    match said.as_str() {
        "closed" | "refused" => Ok(Remark::Pass),
        "served" => fail("W1-TRN-003", "a peer of another user was served", "a close"),
        "answered" => fail("W1-TRN-004", "a peer of another user got an answer", "a close without an answer"),
        "silent" => {
            fail("W1-TRN-004", "a peer of another user was neither served nor turned away", "a close")
        }
        _ => skip("this program could not connect as another user"),
    }
}

/// What the program does when it was started as another user: connects, sends nothing at first, and prints what comes.
pub fn be_a_stranger(path: &std::path::Path, patience: Duration) {
    use std::io::Read;
    let mut stream = match std::os::unix::net::UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(_) => return println!("refused"),
    };
    let _ = stream.set_read_timeout(Some(patience));
    // A server that decides by the kernel's credentials needs no byte for that. One that serves strangers waits for a
    // request, so it gets one.
    let _ = stream.write_all(&Draft::request(1, "a stranger").bytes());
    let mut header = [0; 16];
    let said = match stream.read(&mut header) {
        Ok(0) => "closed",
        Ok(n) if n >= 8 && header[7] == 2 => "served",
        Ok(_) => "answered",
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => "closed",
        Err(_) => "silent",
    };
    println!("{said}");
}

fn asymmetric() -> Vec<Talk> {
    let sized = |id: u64, width: u64, height: u64| {
        let request = Draft::request(id, "x").set("width", width).set("height", height);
        Talk::new(format!("{width}×{height}"), &[request], vec![Expected::Image { id, width, height }])
    };
    vec![sized(0x0102_0304_0506_0708, 64, 128), sized(0x8000_0000_0000_0001, 256, 64), sized(1, 192, 320)]
}

// Frames ----------------------------------------------------------------------------------------------------------

/// Looks at an image and at an error for what one requirement says. What else is wrong with them is for other cases.
fn header(server: &mut Server, requirement: &str) -> Told {
    let talks = [
        Talk::new("an image", &[Draft::request(7, "x")], vec![Expected::small_image(7)]),
        Talk::new(
            "an error",
            &[Draft::request(8, "x").set("width", 65)],
            vec![Expected::error(8, "INVALID_DIMENSIONS")],
        ),
        Talk::new(
            "an unknown model",
            &[Draft::unknown_model(9)],
            vec![Expected::error(9, "INVALID_MODEL_ID")],
        ),
    ];
    only(requirement, talks.iter().try_for_each(|talk| server.hold(talk, Cut::Whole).map(drop)))
}

/// Keeps a failure if it is about this requirement.
fn only(requirement: &str, result: Result<(), Box<Failure>>) -> Told {
    match result {
        Ok(()) => Ok(Remark::Pass),
        Err(failure) if failure.requirement == requirement || failure.verdict != Verdict::Fail => {
            Err(failure)
        }
        Err(failure) => Ok(Remark::Skip(format!(
            "another rule was in the way: {}: {}",
            failure.requirement, failure.problem
        ))),
    }
}

fn announced(server: &mut Server) -> Told {
    const CONNECTIONS: usize = 100;
    // A tenth of what would be reserved by a server that does.
    const ALLOWED: u64 = CONNECTIONS as u64 * 10_485_760 / 10;
    let Some(before) = memory(server) else { return skip(NOT_OURS) };
    let header = Draft::request(1, "x").set("payload_len", 10_485_760).bytes();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = server.connect()?;
        connection.write(&header[..16]);
        open.push(connection);
    }
    // Its answer proves that the headers before it were read, as far as the server reads in the order of arrival.
    server.still_serves()?;
    let Some(after) = memory(server) else { return skip(NOT_OURS) };
    drop(open);
    let grown = after.saturating_sub(before);
    if grown > ALLOWED {
        let problem =
            format!("{CONNECTIONS} headers that announce 10,485,760 bytes each cost {grown} bytes of memory");
        return fail("W1-FRM-008", problem, format!("at most {ALLOWED} bytes"));
    }
    server.still_serves().map(|()| Remark::Pass)
}

/// Bytes that the server's processes have asked the system for, and can write to.
fn memory(server: &mut Server) -> Option<u64> {
    let mut all = 0;
    for pid in family(server.process()?.id()) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmData:"))?.trim().strip_suffix(" kB")?;
        all += kib.parse::<u64>().ok()? * 1024;
    }
    Some(all)
}

/// A process and all that come from it.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let threads = std::fs::read_dir(format!("/proc/{}/task", all[at])).into_iter().flatten().flatten();
        for thread in threads {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        at += 1;
    }
    all
}

fn truncated(server: &mut Server) -> Told {
    let request = Draft::request(5, "a cat in space").bytes();
    for len in 1..request.len() {
        let talk = Talk {
            name: format!("cut off after {len} bytes"),
            sends: vec![Segment { field: "beginning".to_owned(), bytes: request[..len].to_vec() }],
            expected: Vec::new(),
            end: End::InsideAFrame,
        };
        server.hold(&talk, Cut::Whole).map_err(|mut failure| {
            failure.variant = talk.name.clone();
            failure
        })?;
    }
    server.still_serves().map(|()| Remark::Pass)
}

// Requests --------------------------------------------------------------------------------------------------------

/// The pixels of some requests.
fn pictures(server: &mut Server, requests: &[Draft]) -> Result<Option<Vec<Vec<u8>>>, Box<Failure>> {
    let mut pictures = Vec::new();
    for request in requests {
        let answers = server.ask(std::slice::from_ref(request))?;
        match answers[0].pixels() {
            Some(pixels) => pictures.push(pixels.to_vec()),
            None => return Ok(None),
        }
    }
    Ok(Some(pictures))
}

const NO_IMAGE: &str = "the server answered with an error instead of an image";
const SEEDS_DO_NOT_SHOW: &str = "this server's images don't depend on the seed";

fn differs_by_seed(server: &mut Server) -> Result<Option<bool>, Box<Failure>> {
    let requests = [5, 6].map(|seed| Draft::request(1, "a seed that shows").set("seed", seed));
    Ok(pictures(server, &requests)?.map(|pictures| pictures[0] != pictures[1]))
}

fn negative_zero(server: &mut Server) -> Told {
    let requests = [0.0f32, -0.0].map(|cfg| Draft::request(1, "zero").set("cfg_scale", cfg.to_bits().into()));
    match pictures(server, &requests)? {
        Some(pictures) if pictures[0] == pictures[1] => Ok(Remark::Pass),
        Some(_) => fail("W1-REQ-007", "-0.0 and 0.0 give different images", "the same image"),
        None => skip(NO_IMAGE),
    }
}

fn three_prompts(server: &mut Server) -> Told {
    let same = |text: &str| Draft::request(1, text);
    // Three texts of the same length, one after the other.
    let mut different = same("one").segments();
    if let Some(last) = different.last_mut() {
        last.bytes = b"onetwothr".to_vec();
    }
    let bytes: Vec<u8> = different.into_iter().flat_map(|segment| segment.bytes).collect();
    let mut connection = server.connect()?;
    connection.write(&bytes);
    let got = match connection.receive()? {
        Came::Answer(Answer::Image { data, .. }) => data,
        Came::Answer(Answer::Error { status: 500, .. }) => return skip(NO_IMAGE),
        Came::Answer(answer) => return fail("W1-REQ-008", format!("the answer is {answer}"), "an image"),
        Came::Close => return fail("W1-CON-005", "the server closed the connection", "an image"),
    };
    match pictures(server, &[same("one"), same("two"), same("thr")])? {
        Some(pictures) if pictures[0] == pictures[1] && pictures[0] == pictures[2] => {
            skip("this server's images don't depend on the prompt")
        }
        Some(pictures) if pictures[0] == got => Ok(Remark::Pass),
        Some(_) => {
            fail("W1-REQ-008", "the image is not that of the prompt for CLIP-L", "the image of \"one\"")
        }
        None => skip(NO_IMAGE),
    }
}

fn drawn_seed(server: &mut Server) -> Told {
    match differs_by_seed(server)? {
        None => return skip(NO_IMAGE),
        Some(false) => return skip(SEEDS_DO_NOT_SHOW),
        Some(true) => {}
    }
    let drawn = |_| Draft::request(1, "a seed that shows").set("seed", 0);
    let Some(pictures) = pictures(server, &[0; 8].map(drawn))? else { return skip(NO_IMAGE) };
    let different: BTreeSet<_> = pictures.iter().collect();
    // A generator of 64 bits doesn't repeat itself in eight draws.
    if different.len() < pictures.len() {
        let problem = format!("8 requests with seed 0 gave {} different images", different.len());
        return fail("W1-REQ-009", problem, "8");
    }
    Ok(Remark::Pass)
}

fn same_pixels(server: &mut Server) -> Told {
    for seed in [1, 1 << 40, 1 << 63, u64::MAX] {
        let request = Draft::request(1, "again").set("seed", seed);
        match pictures(server, &[request.clone(), request])? {
            Some(pictures) if pictures[0] == pictures[1] => {}
            Some(_) => {
                return fail(
                    "W1-REQ-010",
                    format!("seed {seed} gave two different images"),
                    "the same pixels",
                );
            }
            None => return skip(NO_IMAGE),
        }
    }
    Ok(Remark::Pass)
}

fn all_of_the_seed(server: &mut Server) -> Told {
    match differs_by_seed(server)? {
        None => return skip(NO_IMAGE),
        Some(false) => return skip(SEEDS_DO_NOT_SHOW),
        Some(true) => {}
    }
    const SEED: u64 = 0x0123_4567_89AB_CDEF;
    let bits = [0u32, 31, 32, 52, 53, 62, 63];
    let mut requests = vec![Draft::request(1, "a seed that shows").set("seed", SEED)];
    requests.extend(bits.map(|bit| Draft::request(1, "a seed that shows").set("seed", SEED ^ 1 << bit)));
    let Some(pictures) = pictures(server, &requests)? else { return skip(NO_IMAGE) };
    match bits.iter().zip(&pictures[1..]).find(|(_, picture)| **picture == pictures[0]) {
        Some((bit, _)) => {
            fail("W1-REQ-010", format!("bit {bit} of the seed changes nothing"), "another image")
        }
        None => Ok(Remark::Pass),
    }
}

// Answers ---------------------------------------------------------------------------------------------------------

fn sizes() -> Vec<Talk> {
    [(64, 64), (64, 2048), (2048, 64), (512, 768), (1984, 128)]
        .map(|(width, height)| {
            let request = Draft::request(3, "x").set("width", width).set("height", height);
            Talk::new(format!("{width}×{height}"), &[request], vec![Expected::Image { id: 3, width, height }])
        })
        .to_vec()
}

fn time_without_wait(server: &mut Server) -> Told {
    // What eight images are said to have taken can't be more than it took until all were there, if they were made one
    // after the other; a server with several devices may take that much on each.
    const DEVICES: u64 = 16;
    let began = Instant::now();
    let requests: Vec<Draft> =
        (1..=8).map(|id| Draft::request(id, "x").set("width", 512).set("height", 512)).collect();
    let answers = server.ask(&requests)?;
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let claimed: Vec<u64> = answers
        .iter()
        .filter_map(|answer| match answer {
            Answer::Image { time, .. } => Some(*time),
            Answer::Error { .. } => None,
        })
        .collect();
    if let Some(time) = claimed.iter().find(|time| **time > took + 1) {
        let problem = format!("generation_time_ms is {time}, and all eight images together took {took} ms");
        return fail("W1-RSP-003", problem, "the time that generation took");
    }
    let sum: u64 = claimed.iter().sum();
    if claimed.len() == requests.len() && sum > took + 8 {
        let note =
            format!("eight images are said to have taken {sum} ms together, and were there after {took} ms");
        return if sum > took * DEVICES {
            fail("W1-RSP-003", note, "no wait")
        } else {
            Ok(Remark::Warn(note))
        };
    }
    Ok(Remark::Pass)
}

/// Requests that are refused for all kinds of reasons.
fn refused() -> Vec<(&'static str, u64, Draft)> {
    let wrong = |field: &'static str, value: u64| (field, value, Draft::request(0xE0, "x").set(field, value));
    vec![
        wrong("width", 65),
        wrong("height", 2112),
        wrong("steps", 101),
        wrong("cfg_scale", 20.5f32.to_bits().into()),
        wrong("clip_l_length", 2049),
        wrong("t5_offset", 77_777),
        wrong("model_id", 12_345),
        wrong("version", 9),
        wrong("msg_type", 0x0777),
    ]
}

fn refusals(server: &mut Server, requirement: &str) -> Told {
    let result = refused().into_iter().try_for_each(|(_, _, draft)| server.ask(&[draft]).map(drop));
    only(requirement, result)
}

fn telling(server: &mut Server) -> Told {
    for (field, value, draft) in refused() {
        let answers = server.ask(&[draft])?;
        let Answer::Error { message, .. } = &answers[0] else { continue };
        let message = String::from_utf8_lossy(message).to_lowercase();
        let shown = match field {
            "cfg_scale" => "20.5".to_owned(),
            "msg_type" => "777".to_owned(),
            _ => value.to_string(),
        };
        for part in [field.replace('_', " ").as_str(), &shown] {
            if !message.replace('_', " ").contains(part) {
                let problem = format!("{field} is {shown}, and error_msg is {message:?}");
                return fail("W1-ERR-004", problem, format!("a text with {part:?} in it"));
            }
        }
    }
    Ok(Remark::Pass)
}

fn discreet(server: &mut Server) -> Told {
    const SECRET: &str = "xylophone";
    let too_long = SECRET.repeat(2049 / SECRET.len() + 1);
    let requests = [
        Draft::request(1, SECRET).set("width", 65),
        Draft::request(2, SECRET).set("t5_length", 5000),
        Draft::request(3, SECRET).set("t5_offset", 4_000_000_000),
        Draft::request(4, &format!("{SECRET}\0")),
        Draft::request(5, &too_long),
    ];
    let mut not_utf8 = Draft::request(6, SECRET).bytes();
    if let Some(last) = not_utf8.last_mut() {
        *last = 0xFF;
    }
    let mut connection = server.connect()?;
    let check = |came: Came| match came {
        Came::Answer(Answer::Error { message, .. }) => {
            let message = String::from_utf8_lossy(&message).to_lowercase();
            if message.contains("xyloph") || message.contains("lophone") {
                return fail("W1-ERR-005", format!("error_msg is {message:?}"), "nothing of the prompt");
            }
            Ok(Remark::Pass)
        }
        Came::Answer(answer) => fail("", format!("the answer is {answer}"), "an error"),
        Came::Close => fail("W1-CON-005", "the server closed the connection", "an error"),
    };
    for request in requests {
        connection.write(&request.bytes());
        check(connection.receive()?)?;
    }
    connection.write(&not_utf8);
    check(connection.receive()?)
}

// Connections -----------------------------------------------------------------------------------------------------

/// Requests of all kinds, most of them refused, so that no engine is troubled.
fn mixture(count: u64) -> (Vec<Draft>, Vec<Expected>) {
    (1..=count)
        .map(|id| match id % 4 {
            0 => (Draft::request(id, "x"), Expected::small_image(id)),
            1 => (Draft::unknown_model(id), Expected::error(id, "INVALID_MODEL_ID")),
            2 => (Draft::request(id, "x").set("steps", 0), Expected::error(id, "INVALID_STEPS")),
            _ => (Draft::other(9, &id.to_be_bytes()), Expected::error(id, "UNSUPPORTED_TYPE")),
        })
        .unzip()
}

fn many_at_once() -> Vec<Talk> {
    let (frames, expected) = mixture(2_000);
    vec![Talk::new("2,000 requests", &frames, expected)]
}

fn one_id() -> Vec<Talk> {
    let frames = vec![Draft::request(77, "x"); 50];
    vec![Talk::new("50 requests with the id 77", &frames, vec![Expected::small_image(77); 50])]
}

fn exactly_once(server: &mut Server) -> Told {
    let (frames, expected) = mixture(200);
    let mut connection = server.connect()?;
    let bytes: Vec<u8> = frames.iter().flat_map(Draft::bytes).collect();
    connection.write(&bytes);
    let mut counts = vec![0u32; expected.len()];
    let mut seen = 0;
    while seen < expected.len() {
        match connection.receive()? {
            Came::Answer(answer) => {
                let count =
                    usize::try_from(answer.id()).ok().and_then(|id| counts.get_mut(id.wrapping_sub(1)));
                match count {
                    Some(count) if *count == 0 => *count += 1,
                    Some(_) => {
                        return fail(
                            "W1-CON-002",
                            format!("request {} was answered twice", answer.id()),
                            "once",
                        );
                    }
                    None => {
                        return fail(
                            "W1-CON-002",
                            format!("nobody asked for {answer}"),
                            "an answer to a request",
                        );
                    }
                }
                seen += 1;
            }
            Came::Close => {
                return fail("W1-CON-002", format!("a close after {seen} of 200 answers"), "all answers");
            }
        }
    }
    server.barrier(&mut connection)?;
    connection.end_writing();
    match connection.receive() {
        Ok(Came::Close) => Ok(Remark::Pass),
        Ok(Came::Answer(answer)) => fail("W1-CON-002", format!("one more answer: {answer}"), "a close"),
        Err(failure) if failure.verdict == Verdict::Hang => {
            Ok(Remark::Warn("the server did not close after the client had ended its direction".to_owned()))
        }
        Err(failure) => Err(failure),
    }
}

fn order_of_answers(server: &mut Server) -> Told {
    let requests: Vec<Draft> = (1..=10).map(|id| Draft::request(id, "x")).collect();
    let ids: Vec<u64> = server.ask(&requests)?.iter().map(Answer::id).collect();
    if ids.is_sorted() {
        Ok(Remark::Pass)
    } else {
        Ok(Remark::Warn(format!("ten answers came in the order {ids:?}")))
    }
}

fn slow_reader_gets_whole_frames(server: &mut Server) -> Told {
    let mut connection = server.connect()?;
    connection.read_at_most(4093);
    for id in 1..=3 {
        connection.write(&Draft::request(id, "x").set("width", 1024).set("height", 1024).bytes());
        connection.write(&Draft::unknown_model(100 + id).bytes());
    }
    let mut missing: Vec<u64> = vec![1, 2, 3, 101, 102, 103];
    while !missing.is_empty() {
        match connection.receive()? {
            Came::Answer(answer) => match missing.iter().position(|id| *id == answer.id()) {
                Some(at) => drop(missing.remove(at)),
                None => {
                    return fail(
                        "W1-CON-002",
                        format!("an answer that nobody asked for: {answer}"),
                        "one each",
                    );
                }
            },
            Came::Close => return fail("W1-CON-006", "the server closed the connection", "all six answers"),
        }
    }
    server.barrier(&mut connection).map(|()| Remark::Pass)
}

fn flood(server: &mut Server) -> Told {
    const REQUESTS: u64 = 4_000;
    let frames: Vec<Draft> = (1..=REQUESTS).map(|id| Draft::request(id, "x")).collect();
    let began = Instant::now();
    let answers = server.ask(&frames)?;
    let took = began.elapsed();
    server.still_serves()?;
    let is_busy =
        |answer: &&Answer| matches!(answer, Answer::Error { code: number, .. } if *number == code("BUSY"));
    let last_image = answers.iter().rposition(|answer| answer.pixels().is_some());
    match (answers.iter().position(|answer| is_busy(&answer)), last_image) {
        (None, _) => {
            skip(&format!("the queue could not be filled: 4,000 requests were served in {took:.1?}"))
        }
        (Some(_), None) => {
            fail("W1-CON-007", "only BUSY came", "images for the requests that the queue has room for")
        }
        (Some(busy), Some(image)) if busy > image => {
            fail("W1-CON-007", "the first BUSY came after the last image", "BUSY at once")
        }
        _ => Ok(Remark::Pass),
    }
}

fn crowd(server: &mut Server) -> Told {
    const CONNECTIONS: usize = 2_000;
    let mut open = Vec::new();
    for n in 0..CONNECTIONS {
        match server.connect() {
            Ok(connection) => open.push(connection),
            Err(failure) if failure.verdict == Verdict::Crash => return Err(failure),
            Err(failure) => return Ok(Remark::Warn(format!("connection {n}: {}", failure.problem))),
        }
    }
    // The first ones have a place for sure; of the others each is served, or told that it is not.
    let mut served = 0;
    for connection in &mut open {
        connection.write(&Draft::unknown_model(1).bytes());
    }
    for connection in &mut open {
        match connection.receive()? {
            Came::Answer(Answer::Error { id: 1, .. }) => served += 1,
            Came::Answer(Answer::Error { id: 0, code: number, .. }) if number == code("BUSY") => {}
            Came::Answer(answer) => {
                return fail("W1-CON-008", format!("the answer is {answer}"), "BUSY for request 0");
            }
            Came::Close => {}
        }
    }
    if served == 0 {
        return fail(
            "W1-CON-008",
            format!("none of {CONNECTIONS} connections was served"),
            "those that there is room for",
        );
    }
    drop(open);
    server.still_serves()?;
    Ok(Remark::Pass)
}

fn told_to_end(server: &mut Server) -> Told {
    if server.process().is_none() {
        return skip(NOT_OURS);
    }
    let mut connection = server.connect()?;
    let count = 20;
    for id in 1..=count {
        connection.write(&Draft::request(id, "x").set("width", 512).set("height", 512).bytes());
    }
    // It has begun with them when the first one is there.
    let first = connection.receive()?;
    if !matches!(first, Came::Answer(Answer::Image { .. })) {
        return skip(NO_IMAGE);
    }
    let until = Instant::now() + server.patience;
    if let Some(process) = server.process() {
        process.signal(Signal::TERM);
    }
    let mut answered = 1;
    let told = loop {
        match connection.receive() {
            Ok(Came::Answer(Answer::Image { .. })) => answered += 1,
            Ok(Came::Answer(Answer::Error { code: number, .. })) if number == code("SHUTTING_DOWN") => {
                answered += 1
            }
            Ok(Came::Answer(answer)) => {
                break fail("W1-CON-009", format!("the answer is {answer}"), "an image or SHUTTING_DOWN");
            }
            Ok(Came::Close) if answered == count => break Ok(Remark::Pass),
            Ok(Came::Close) => {
                break fail(
                    "W1-CON-009",
                    format!("a close after {answered} of {count} answers"),
                    "all answers",
                );
            }
            Err(failure) => break Err(failure),
        }
    };
    let ended = server.process().and_then(|process| process.wait(until));
    server.stop();
    let told = told.map_err(|mut failure| {
        // It was told to end: that it did is no crash.
        failure.verdict = Verdict::Fail;
        failure
    })?;
    match ended {
        Some(status) if status.success() => Ok(told),
        Some(status) => {
            Ok(Remark::Warn(format!("the server ended with {} after SIGTERM", how_it_ended(status))))
        }
        None => fail("W1-CON-009", "the server did not end after SIGTERM", "an end"),
    }
}

fn half_closed() -> Vec<Talk> {
    let (frames, expected) = mixture(12);
    vec![
        Talk::new("one request", &[Draft::request(6, "x")], vec![Expected::small_image(6)])
            .ends(End::InsideAFrame),
        Talk::new(
            "a refused one",
            &[Draft::request(6, "x").set("steps", 0)],
            vec![Expected::error(6, "INVALID_STEPS")],
        )
        .ends(End::InsideAFrame),
        Talk::new("twelve", &frames, expected).ends(End::InsideAFrame),
    ]
}

fn deaf_client(server: &mut Server) -> Told {
    let mut deaf = server.connect()?;
    for id in 1..=4 {
        deaf.write(&Draft::request(id, "x").set("width", 1024).set("height", 1024).bytes());
    }
    // It may take until the server has given the deaf one up, but not longer than any answer may take.
    for _ in 0..20 {
        server.still_serves()?;
    }
    drop(deaf);
    server.still_serves().map(|()| Remark::Pass)
}

fn neighbours_in_trouble(server: &mut Server) -> Told {
    let request = Draft::request(1, "a cat in space").bytes();
    let (first, second) = request.split_at(60);
    let mut good = server.connect()?;
    good.write(first);
    let troubles: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &Draft::request(1, "x").set("payload_len", u32::MAX.into()).bytes(),
        &Draft::request(1, "x").set("steps", 0).bytes(),
        &Draft::request(1, "x").bytes()[..50],
    ];
    for trouble in troubles {
        let mut bad = server.connect()?;
        bad.write(trouble);
        bad.reset();
        server.still_serves()?;
    }
    good.write(second);
    match good.receive()? {
        Came::Answer(Answer::Image { id: 1, .. }) => server.barrier(&mut good).map(|()| Remark::Pass),
        Came::Answer(Answer::Error { status: 500, .. }) => skip(NO_IMAGE),
        Came::Answer(answer) => {
            fail("W1-CON-012", format!("the answer is {answer}"), "an image for request 1")
        }
        Came::Close => fail("W1-CON-012", "the server closed the connection", "an image for request 1"),
    }
}

fn dripping_client(server: &mut Server) -> Told {
    let request = Draft::request(1, "drop by drop").bytes();
    let mut slow = server.connect()?;
    slow.wait_until(Instant::now() + server.patience + Duration::from_secs(10));
    for byte in &request {
        slow.write(std::slice::from_ref(byte));
        // Between two drops others are served, which takes as long as it takes.
        server.still_serves()?;
    }
    match slow.receive()? {
        Came::Answer(Answer::Image { id: 1, .. } | Answer::Error { id: 1, status: 500, .. }) => {
            Ok(Remark::Pass)
        }
        Came::Answer(answer) => {
            fail("W1-CON-012", format!("the answer is {answer}"), "an image for request 1")
        }
        Came::Close => Ok(Remark::Warn("the server closed the connection of the slow client".to_owned())),
    }
}

fn silent_clients(server: &mut Server) -> Told {
    let mut open = Vec::new();
    let header = Draft::request(1, "x").bytes();
    for n in 0..200 {
        let mut connection = server.connect()?;
        connection.write(&header[..[0, 1, 8, 15, 16, 40][n % 6]]);
        open.push(connection);
    }
    for _ in 0..20 {
        server.still_serves()?;
    }
    Ok(Remark::Pass)
}

fn hang_up(server: &mut Server) -> Told {
    for n in 0..40 {
        let mut connection = server.connect()?;
        let side = [64, 512, 1024][n % 3];
        connection.write(&Draft::request(1, "x").set("width", side).set("height", side).bytes());
        if n % 2 == 0 {
            connection.write(&Draft::request(2, "x").bytes());
        }
        if n % 4 == 1 {
            // In the middle of the image rather than before it.
            connection.read_some(1000)?;
        }
        if n % 8 < 4 {
            connection.reset()
        } else {
            drop(connection)
        }
        server.still_serves()?;
    }
    Ok(Remark::Pass)
}

fn later_version() -> Vec<Talk> {
    let unknown =
        |id: u64| Draft::other(1, &[id.to_be_bytes().as_slice(), &[0xAB; 500]].concat()).set("version", 2);
    let frames = [Draft::request(1, "x"), unknown(2), Draft::request(3, "x")];
    let expected =
        vec![Expected::small_image(1), Expected::error(2, "UNSUPPORTED_VERSION"), Expected::small_image(3)];
    vec![Talk::new("a frame of version 2 between two of version 1", &frames, expected)]
}

// Security --------------------------------------------------------------------------------------------------------

/// Numbers that look random and are the same for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

fn noise(server: &mut Server) -> Told {
    let mut random = Random::new(server.seed);
    for _ in 0..200 {
        let len = random.below(4096);
        let mut bytes: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[3]).collect();
        if random.below(2) == 0 {
            bytes.splice(0..0, *b"WEVE");
        }
        let mut connection = server.connect()?;
        connection.write(&bytes);
        connection.end_writing();
        loop {
            match connection.receive() {
                Ok(Came::Answer(_)) => {}
                Ok(Came::Close) => break,
                Err(mut failure) => {
                    failure.sent = bytes;
                    return Err(failure);
                }
            }
        }
    }
    server.still_serves().map(|()| Remark::Pass)
}

/// Valid requests with one to four bytes changed: what the suite's own reader makes of them has to come.
fn mutated(server: &mut Server) -> Told {
    let mut random = Random::new(server.seed ^ 0x00C0_FFEE);
    for n in 0..500 {
        let request =
            if n % 2 == 0 { Draft::request(n, "a cat in space") } else { Draft::request(n, "宇宙の猫") };
        let mut bytes = request.bytes();
        for _ in 0..=random.below(4) {
            // The header's length stays as it is: how a stream goes on is for other cases.
            let at = [random.below(8), 12 + random.below(bytes.len() - 12)][usize::from(random.below(8) > 0)];
            let value = random.next().to_le_bytes()[5];
            if let Some(byte) = bytes.get_mut(at) {
                *byte = [value, *byte ^ (1 << (value % 8)), 0, 0xFF][random.below(4)];
            }
        }
        let (outcomes, end) = crate::wire::read(Receiver::Server, &bytes);
        if let [Outcome::Request { fields, .. }] = outcomes.as_slice()
            && fields.get("width") * fields.get("height") > 512 * 512
        {
            continue;
        }
        let talk = Talk {
            name: format!("number {n} of seed {}", server.seed),
            sends: vec![Segment { field: "frame".to_owned(), bytes }],
            expected: outcomes.iter().map(Expected::of).collect(),
            end,
        };
        server.hold(&talk, Cut::Whole).map_err(|mut failure| {
            failure.variant = talk.name.clone();
            failure
        })?;
    }
    Ok(Remark::Pass)
}

fn largest_images() -> Vec<Talk> {
    let request = |id| Draft::request(id, "x").set("width", 2048).set("height", 2048);
    let expected = |id| Expected::Image { id, width: 2048, height: 2048 };
    vec![Talk::new("three images of 2048×2048", &[1, 2, 3].map(request), [1, 2, 3].map(expected).to_vec())]
}

fn half_requests(server: &mut Server) -> Told {
    const CONNECTIONS: usize = 100;
    const EACH: u64 = 64 * 1024;
    let Some(before) = memory(server) else { return skip(NOT_OURS) };
    let longest = VECTORS.iter().find(|vector| vector.name == "request-longest");
    let bytes: Vec<u8> =
        longest.map(|vector| vector.segments()).into_iter().flatten().flat_map(|s| s.bytes).collect();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = server.connect()?;
        connection.write(&bytes[..bytes.len() / 2]);
        open.push(connection);
    }
    server.still_serves()?;
    let Some(after) = memory(server) else { return skip(NOT_OURS) };
    drop(open);
    server.still_serves()?;
    let each = after.saturating_sub(before) / CONNECTIONS as u64;
    if each > EACH {
        let problem = format!("a connection with half of the longest request costs {each} bytes of memory");
        return fail("W1-SEC-002", problem, format!("at most {EACH} bytes"));
    }
    Ok(Remark::Pass)
}

fn prompts_in_the_log(server: &mut Server) -> Told {
    const SECRET: &str = "a very secret xylophone";
    if server.process().is_none() {
        return skip(NOT_OURS);
    }
    server.ask(&[Draft::request(1, SECRET)])?;
    server.ask(&[Draft::request(2, SECRET).set("width", 1)])?;
    server.ask(&[Draft::request(3, &format!("{SECRET}\0"))])?;
    server.still_serves()?;
    let said = server.process().map(|process| process.said()).unwrap_or_default();
    match said.lines().find(|line| line.contains("xylophone")) {
        Some(line) => {
            fail("W1-SEC-003", format!("the server's output has the prompt in it: {line}"), "no prompt")
        }
        None => Ok(Remark::Pass),
    }
}

fn not_reachable(server: &mut Server) -> Told {
    let Some(process) = server.process() else { return skip(NOT_OURS) };
    let pids = family(process.id());
    let mut sockets = BTreeSet::new();
    for pid in &pids {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Ok(target) = std::fs::read_link(entry.path())
                && let Some(inode) =
                    target.to_string_lossy().strip_prefix("socket:[").and_then(|s| s.strip_suffix(']'))
            {
                sockets.insert(inode.to_owned());
            }
        }
    }
    if sockets.is_empty() {
        return skip("the server's sockets can't be listed");
    }
    for (table, loopback) in [("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")] {
        let lines = std::fs::read_to_string(format!("/proc/{}/net/{table}", pids[0])).unwrap_or_default();
        for line in lines.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            // Local address, state (0A: listening) and inode.
            if let (Some(local), Some(&"0A"), Some(inode)) = (columns.get(1), columns.get(3), columns.get(9))
                && sockets.contains(*inode)
                && !local.starts_with(loopback)
            {
                return fail(
                    "W1-SEC-004",
                    format!("the server listens on TCP at {local} (/proc/net/{table})"),
                    "no such socket",
                );
            }
        }
    }
    Ok(Remark::Pass)
}
