//! Requests that several sections send: one that gets an image, and some that get errors of all kinds.

use crate::draft::{Cut, Draft};
use crate::server::Server;
use crate::talk::{Expected, Talk};
use crate::verdict::{Failure, Remark, Told, Verdict};

/// Why a case that needs the server's process is skipped.
pub(super) const NOT_OURS: &str = "the server was not started by the suite (--exec)";
/// Why a case that needs an image is skipped.
pub(super) const NO_IMAGE: &str = "the server answered with an error instead of an image";

/// Looks at an image and at an error for what one requirement says. What else is wrong with them is for other
/// cases.
pub(super) fn header(server: &mut Server, requirement: &str) -> Told {
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

/// Requests that are refused for all kinds of reasons.
pub(super) fn refused() -> Vec<(&'static str, u64, Draft)> {
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

pub(super) fn refusals(server: &mut Server, requirement: &str) -> Told {
    let result = refused().into_iter().try_for_each(|(_, _, draft)| server.ask(&[draft]).map(drop));
    only(requirement, result)
}
