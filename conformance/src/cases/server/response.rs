//! Section 5 of the specification, the response: what is tried on a server.

use std::time::{Duration, Instant};

use crate::case::{Case, required};
use crate::connection::{Answer, Came};
use crate::draft::Draft;
use crate::secret::PROMPT;
use crate::server::Server;
use crate::talk::{Expected, Talk};
use crate::verdict::{Failure, Remark, Told, fail, not_applicable, skip};

use super::picture::{Judgement, Order, judge};
use super::probe::{NO_IMAGE, header};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-RSP-001a", "the answer has the request's request_id, all 64 bits of it")
        .server_vectors(&["request-id-*"]),
    required("W1-RSP-002a", "the image has the requested width and height").talks(|| {
        [(64, 64), (64, 2048), (2048, 64), (512, 768), (1984, 128)]
            .map(|(width, height)| {
                let request = Draft::request(3, PROMPT).set("width", width).set("height", height);
                Talk::new(
                    format!("{width}×{height}"),
                    &[request],
                    vec![Expected::Image { id: 3, width, height }],
                )
            })
            .to_vec()
    }),
    required("W1-RSP-003a", "generation_time_ms excludes the time in the queue").server(|server| {
        // What happens once may be an accident of a busy machine.
        const ROUNDS: usize = 3;
        let mut last = Remark::Pass;
        for _ in 0..ROUNDS {
            match waits_in_times(server)? {
                Err(why) => last = Remark::Skip(why),
                Ok(None) => return Ok(Remark::Pass),
                Ok(Some(problem)) => last = Remark::Warn(problem),
            }
        }
        match last {
            Remark::Warn(problem) => fail("W1-RSP-003", problem, "times without the wait for others"),
            other => Ok(other),
        }
    }),
    required("W1-RSP-003b", "generation_time_ms has what more steps take, in milliseconds")
        .server(more_steps),
    required("W1-RSP-004a", "status is 200, image_data_len is width × height × channels")
        .server(|server| header(server, &["W1-RSP-004"])),
    required("W1-RSP-009a", "pixels come in rows from the top, within a row from the left")
        .server(|server| order_of_pixels(server, Order::Place)),
    required("W1-RSP-009b", "the channels of a pixel come in the order red, green, blue")
        .server(|server| order_of_pixels(server, Order::Colour)),
    required("W1-RSP-012a", "no bytes follow image_data").server(|server| header(server, &["W1-RSP-012"])),
];

/// An image as it came.
struct Timed {
    /// How long after its request was sent it was there, in milliseconds.
    after: u64,
    /// generation_time_ms.
    claimed: u64,
}

/// Sends requests at once, and says when each image was there. What isn't answered with an image is left out.
fn timed(server: &mut Server, requests: &[Draft]) -> Result<Vec<Timed>, Box<Failure>> {
    let mut connection = server.connect()?;
    let bytes: Vec<u8> = requests.iter().flat_map(Draft::bytes).collect();
    let began = Instant::now();
    connection.write(&bytes);
    let mut images = Vec::new();
    for _ in requests {
        connection.set_deadline(Instant::now() + server.timeout);
        match connection.receive()? {
            Came::Answer(Answer::Image { time: claimed, .. }) => {
                let after = millis(began.elapsed());
                if claimed > after + 1 {
                    let problem = format!(
                        "generation_time_ms is {claimed}, and the image was there {after} ms after its request was sent"
                    );
                    return Err(Box::new(Failure::new(
                        "W1-RSP-003",
                        problem,
                        "the time that generation took",
                    )));
                }
                images.push(Timed { after, claimed });
            }
            Came::Answer(Answer::Error { .. }) => {}
            Came::Close => {
                let problem = "the server closed the connection";
                return Err(Box::new(Failure::new("W1-CON-005", problem, "an answer")));
            }
        }
    }
    Ok(images)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the times of images that were asked for at once have the wait for each other in them: how they do, or why
/// that can't be told.
///
/// A server that makes all of them at the same time may well take longer for each than for one alone, but then for the
/// first as well. Where the first takes no longer than one alone, and each later one as long as it was waited for, it
/// has waited.
fn waits_in_times(server: &mut Server) -> Result<Result<Option<String>, String>, Box<Failure>> {
    const AT_ONCE: usize = 24;
    let requests = |side: u64| -> Vec<Draft> {
        (1..=AT_ONCE as u64)
            .map(|id| Draft::request(id, PROMPT).set("width", side).set("height", side).set("seed", id))
            .collect()
    };
    for side in [64, 512] {
        let requests = requests(side);
        let mut alone = 0;
        for request in &requests[..3] {
            let images = timed(server, std::slice::from_ref(request))?;
            let Some(image) = images.first() else { return Ok(Err(NO_IMAGE.to_owned())) };
            alone = alone.max(image.claimed);
        }
        let images = timed(server, &requests)?;
        let (Some(first), Some(last)) = (images.first(), images.last()) else {
            return Ok(Err(NO_IMAGE.to_owned()));
        };
        let waited = images
            .iter()
            .filter(|image| image.claimed > 4 * alone + 8 && 10 * image.claimed > 8 * image.after)
            .count();
        if first.claimed <= 2 * alone + 2 && 2 * waited > images.len() {
            return Ok(Ok(Some(format!(
                "alone an image takes {alone} ms; of {} at once the first is said to have taken {} ms, and the last, which \
                 was there after {} ms, {} ms",
                images.len(),
                first.claimed,
                last.after,
                last.claimed
            ))));
        }
        // Long enough to have been seen.
        if last.after > 4 * alone + 30 {
            break;
        }
    }
    Ok(Ok(None))
}

/// Nothing but generation takes longer with more steps: what they add to the wait for an image has to be in
/// generation_time_ms.
fn more_steps(server: &mut Server) -> Told {
    /// What a busy machine adds to a wait now and then.
    const CLEAR: u64 = 200;
    let ask = |server: &mut Server, steps: u64| -> Result<Option<Timed>, Box<Failure>> {
        let mut best: Option<Timed> = None;
        for seed in 1..=3 {
            let request = Draft::request(1, PROMPT).set("steps", steps).set("seed", 1_000 * steps + seed);
            let Some(image) = timed(server, &[request])?.pop() else { return Ok(None) };
            if best.as_ref().is_none_or(|best| image.after < best.after) {
                best = Some(image);
            }
        }
        Ok(best)
    };
    let Some(one) = ask(server, 1)? else { return skip(NO_IMAGE) };
    let steps = (millis(server.timeout) / 2 / one.after.max(1)).clamp(2, 100);
    let Some(many) = ask(server, steps)? else { return skip(NO_IMAGE) };
    let longer = many.after.saturating_sub(one.after);
    if longer >= CLEAR && 10 * many.claimed.saturating_sub(one.claimed) < longer {
        let problem = format!(
            "generation_time_ms is {} with one step and {} with {steps}, and the images were there after {} and {} ms",
            one.claimed, many.claimed, one.after, many.after
        );
        return fail("W1-RSP-003", problem, "the milliseconds that generation took");
    }
    Ok(Remark::Pass)
}

/// Looks at the order of pixels or channels, as far as this server draws a reference picture.
fn order_of_pixels(server: &mut Server, order: Order) -> Told {
    let mut seen = false;
    for (width, height) in [(128, 64), (64, 192)] {
        // An engine may fail once.
        const TRIES: usize = 3;
        let request = [Draft::request(1, PROMPT).set("width", width).set("height", height)];
        let mut image = None;
        for _ in 0..TRIES {
            if let Answer::Image { channels, data, .. } = server.ask(&request)?.remove(0) {
                image = Some((channels, data));
                break;
            }
        }
        let Some((channels, data)) = image else { return skip(NO_IMAGE) };
        match judge(&data, width, height, channels) {
            Judgement::Wrong(what, how) if what == order => {
                let problem = format!("the picture of {width}×{height} is the reference, but {how}");
                return fail(
                    "W1-RSP-009",
                    problem,
                    "rows from the top, pixels from the left; red, green, blue, alpha",
                );
            }
            Judgement::Right(told) => seen |= told.contains(&order),
            Judgement::Wrong(..) | Judgement::Unknown => {}
        }
    }
    if seen {
        return Ok(Remark::Pass);
    }
    not_applicable("this server draws no reference picture that would show it")
}
