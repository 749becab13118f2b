//! Requests that several sections send: one that gets an image, and some that get errors of all kinds.

use std::time::{Duration, Instant};

use crate::connection::{Answer, Came, Connection};
use crate::draft::{Cut, Draft};
use crate::secret::PROMPT;
use crate::server::Server;
use crate::talk::{Expected, Talk};
use crate::testee::Memory;
use crate::verdict::{Failure, Remark, Told, Verdict};
use crate::wire::{HEADER_LEN, code, code_name};

/// Why a case that needs the server's process is skipped.
pub(super) const NOT_OURS: &str = "the server was not started by the suite (--exec)";
/// Why a case that needs an image is skipped.
pub(super) const NO_IMAGE: &str = "the server answered with an error instead of an image";

/// Looks at an image and at errors for what one of some requirements says. What else is wrong with them is for
/// other cases.
pub(super) fn header(server: &mut Server, requirements: &[&str]) -> Told {
    let talks = [
        Talk::new("an image", &[Draft::request(7, PROMPT)], vec![Expected::small_image(7)]),
        Talk::new(
            "an error",
            &[Draft::request(8, PROMPT).set("width", 65)],
            vec![Expected::error(8, "INVALID_DIMENSIONS")],
        ),
        Talk::new(
            "an unknown model",
            &[Draft::unknown_model(9)],
            vec![Expected::error(9, "INVALID_MODEL_ID")],
        ),
        Talk::new(
            "another version",
            &[Draft::request(10, PROMPT).set("version", 9)],
            vec![Expected::error(10, "UNSUPPORTED_VERSION")],
        ),
    ];
    let results = talks.iter().map(|talk| server.hold(talk, Cut::Whole).map(drop)).collect();
    only(requirements, results)
}

/// Keeps the failures about these requirements.
fn only(requirements: &[&str], results: Vec<Result<(), Box<Failure>>>) -> Told {
    let mut other = None;
    for failure in results.into_iter().filter_map(Result::err) {
        if requirements.contains(&failure.requirement.as_str()) || failure.verdict != Verdict::Fail {
            return Err(failure);
        }
        other = Some(failure);
    }
    Ok(match other {
        None => Remark::Pass,
        Some(failure) => {
            Remark::Skip(format!("another rule was in the way: {}: {}", failure.requirement, failure.problem))
        }
    })
}

/// Requests that are refused for all kinds of reasons.
pub(super) fn refused() -> Vec<(&'static str, u64, Draft)> {
    let wrong =
        |field: &'static str, value: u64| (field, value, Draft::request(0xE0, PROMPT).set(field, value));
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

/// Looks at errors of all kinds for what one requirement says.
pub(super) fn refusals(server: &mut Server, requirement: &str) -> Told {
    let results = refused().into_iter().map(|(_, _, draft)| server.ask(&[draft]).map(drop)).collect();
    only(&[requirement], results)
}

/// The pixels for a request. `None` if this server has none for any request, or not for one of this size.
///
/// # Errors
/// It is refused, time and again, for what a client may ask (W1-VAL-003, W1-VAL-004).
pub(super) fn picture(server: &mut Server, request: &Draft) -> Result<Option<Vec<u8>>, Box<Failure>> {
    const TRIES: usize = 3;
    let mut why = 0;
    for _ in 0..TRIES {
        match server.ask(std::slice::from_ref(request))?.remove(0) {
            Answer::Image { data, .. } => return Ok(Some(data)),
            Answer::Error { status: 500, code, .. } => why = code,
            answer @ Answer::Error { .. } => {
                let failure = Failure::new("W1-VAL-003", format!("the answer is {answer}"), "an image");
                return Err(with_sent(failure, request));
            }
        }
    }
    if ["OUT_OF_MEMORY", "TIMEOUT"].map(code).contains(&why) || !server.makes_images()? {
        return Ok(None);
    }
    let problem = format!("{} comes each time, and a request with other values is served", code_name(why));
    Err(with_sent(Failure::new("W1-VAL-004", problem, "an image"), request))
}

fn with_sent(mut failure: Failure, request: &Draft) -> Box<Failure> {
    failure.sent = request.bytes();
    Box::new(failure)
}

/// The pixels for some requests.
pub(super) fn pictures(
    server: &mut Server,
    requests: &[Draft],
) -> Result<Option<Vec<Vec<u8>>>, Box<Failure>> {
    requests.iter().map(|request| picture(server, request)).collect()
}

/// What two kinds of sending cost a server, on as many connections each.
pub(super) struct Costs {
    pub(super) connections: u64,
    control: Memory,
    other: Memory,
}

impl Costs {
    /// How much more of reserved and of touched memory the other kind takes.
    pub(super) fn more(&self) -> (u64, u64) {
        (
            self.other.reserved.saturating_sub(self.control.reserved),
            self.other.touched.saturating_sub(self.control.touched),
        )
    }
}

/// Compares what it costs a server, in memory, that clients have sent `other` with what it costs that as many have
/// sent `control`, the beginning of a frame with a payload of `control_len`. All are connected and served before, so
/// that what a connection costs by itself, such as a thread's stack, is in neither. `None`: the server isn't ours.
pub(super) fn costs(
    server: &mut Server,
    control: &[u8],
    control_len: u64,
    other: &[u8],
) -> Result<Option<Costs>, Box<Failure>> {
    if server.process().is_none() {
        return Ok(None);
    }
    // What earlier cases have left in caches would hide what is reserved now.
    server.restart()?;
    let mut open = places(server)?;
    let timeout = server.timeout;
    let measured = |server: &mut Server, prober: Option<&mut Connection>| {
        if let Some(prober) = prober {
            // Others have their turn meanwhile.
            for _ in 0..10 {
                prober.set_deadline(Instant::now() + timeout);
                server.barrier(prober)?;
            }
        }
        Ok::<_, Box<Failure>>(server.memory().unwrap_or_default())
    };
    let n = (open.len() - 1) / 2;
    let before = measured(server, open.last_mut())?;
    let (first, second);
    if n == 0 {
        let only = &mut open[0];
        only.set_deadline(Instant::now() + timeout);
        only.write(control);
        first = measured(server, None)?;
        let sent = control.len() - HEADER_LEN;
        only.write(&vec![0; usize::try_from(control_len).unwrap_or(sent).saturating_sub(sent)]);
        only.receive()?;
        only.write(other);
        second = measured(server, None)?;
    } else {
        let send = |open: &mut [Connection], bytes: &[u8]| {
            for connection in open {
                connection.set_deadline(Instant::now() + timeout);
                connection.write(bytes);
            }
        };
        send(&mut open[..n], control);
        first = measured(server, open.last_mut())?;
        send(&mut open[n..2 * n], other);
        second = measured(server, open.last_mut())?;
    }
    drop(open);
    server.still_serves()?;
    let growth = |from: Memory, to: Memory| Memory {
        reserved: to.reserved.saturating_sub(from.reserved),
        touched: to.touched.saturating_sub(from.touched),
    };
    Ok(Some(Costs {
        connections: n.max(1) as u64,
        control: growth(before, first),
        other: growth(first, second),
    }))
}

/// How many bytes of memory it costs a server that so many idle clients have sent this much of a request. `None`: the
/// server isn't ours.
pub(super) fn cost_beside_idle(
    server: &mut Server,
    beginning: &[u8],
) -> Result<Option<(u64, u64)>, Box<Failure>> {
    if server.process().is_none() {
        return Ok(None);
    }
    // One place is for whoever proves that all have had their turn.
    let n = places(server)?.len().saturating_sub(1).max(1);
    // What those connections have left in caches would hide the cost.
    server.restart()?;
    let mut idle = Vec::new();
    for _ in 0..n {
        idle.push(server.connect()?);
    }
    let measured = |server: &mut Server| {
        for _ in 0..10 {
            if n > 1 {
                server.still_serves()?;
            }
        }
        Ok::<_, Box<Failure>>(server.memory().unwrap_or_default().touched)
    };
    let before = measured(server)?;
    for connection in &mut idle {
        connection.write(beginning);
    }
    let after = measured(server)?;
    drop(idle);
    Ok(Some((n as u64, after.saturating_sub(before))))
}

/// As many connections as the server has places for, up to some, each of which was served once.
fn places(server: &mut Server) -> Result<Vec<Connection>, Box<Failure>> {
    const MOST: usize = 65;
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut open = Vec::new();
    let began = Instant::now();
    let mut first = server.connect()?;
    server.barrier(&mut first)?;
    let patience = PATIENCE.max(20 * began.elapsed()).min(server.timeout);
    open.push(first);
    while open.len() < MOST {
        let mut next = server.connect()?;
        next.set_deadline(Instant::now() + patience);
        next.write(&Draft::request(1, PROMPT).bytes());
        match next.receive() {
            Ok(Came::Answer(Answer::Image { .. } | Answer::Error { id: 1, .. })) => open.push(next),
            // BUSY, a close, or silence until another one ends.
            _ => break,
        }
    }
    Ok(open)
}
