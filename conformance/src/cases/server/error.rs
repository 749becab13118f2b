//! Section 6 of the specification, the error: what is tried on a server.

use crate::case::{Case, informational, recommended, required};
use crate::connection::{Answer, Came};
use crate::draft::Draft;
use crate::secret::PROMPT;
use crate::server::Server;
use crate::spec::vectors;
use crate::verdict::{Failure, Remark, Told, fail};
use crate::wire::{Expectation, Receiver};

use super::probe::{refusals, refused};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-ERR-001a", "an error has the request_id of the refused request")
        .server_vectors(&["echo-of-*"]),
    required("W1-ERR-001b", "request_id is 0 if the payload has less than 8 bytes").server_vectors(&[
        "payload-len-0",
        "payload-len-1",
        "payload-len-7",
        "payload-len-8",
        "msg-type-unknown-empty",
        "version-2-short",
        "version-2-of-8",
    ]),
    required("W1-ERR-002a", "an error has the status of its error_code")
        .server(|server| refusals(server, "W1-ERR-002")),
    required("W1-ERR-003a", "error_msg has at most 255 bytes")
        .server(|server| refusals(server, "W1-ERR-003")),
    recommended("W1-ERR-004a", "error_msg names the field and its value").server(|server| {
        for (field, value, draft) in refused() {
            let message = error_msg(server, &draft)?;
            names_field(&message, field)?;
            let shown = if field == "cfg_scale" { "20.5".to_owned() } else { value.to_string() };
            if !names_number(&message, value, &shown) {
                let problem = format!("{field} is {shown}, and error_msg is {message:?}");
                return fail("W1-ERR-004", problem, format!("a text with {shown:?} in it"));
            }
        }
        Ok(Remark::Pass)
    }),
    recommended("W1-ERR-004b", "error_msg names the first of two fields that the same error_code is for")
        .server(|server| {
            for vector in vectors(Receiver::Server, &["order-*"]) {
                let expected = vector.expectations();
                let [Expectation::Answer { step: step @ 8.., field, .. }] = expected.as_slice() else {
                    continue;
                };
                let frame: Vec<u8> =
                    vector.segments().into_iter().flat_map(|segment| segment.bytes).collect();
                let told = message_for(server, &frame).and_then(|message| {
                    names_field(&message, field)?;
                    // Of one prompt that breaks both rules.
                    if *step == 14 && !["utf", "unicode", "encod"].iter().any(|word| message.contains(word)) {
                        let problem = format!("{field} is not UTF-8, and error_msg is {message:?}");
                        return fail("W1-ERR-004", problem, "a text that says so");
                    }
                    Ok(Remark::Pass)
                });
                told.map_err(|mut failure| {
                    failure.variant.clone_from(&vector.name);
                    failure.sent.clone_from(&frame);
                    failure
                })?;
            }
            Ok(Remark::Pass)
        }),
    required("W1-ERR-005a", "error_msg contains nothing of the prompt").server(|server| {
        let set = |changes: &[(&str, u64)]| {
            let draft = Draft::request(1, PROMPT);
            changes.iter().fold(draft, |draft, (field, value)| draft.set(field, *value)).bytes()
        };
        let with = |encoder: usize, byte: u8| {
            let mut bytes = Draft::request(1, PROMPT).bytes();
            let last = bytes.len() - 1 - (2 - encoder) * PROMPT.len();
            bytes[last] = byte;
            bytes
        };
        let mut frames: Vec<Vec<u8>> = refused().iter().map(|(_, _, draft)| draft.bytes()).collect();
        for encoder in ["clip_l", "clip_g", "t5"] {
            let [offset, length] = ["offset", "length"].map(|end| format!("{encoder}_{end}"));
            frames.push(set(&[(&length, 0)]));
            frames.push(set(&[(&length, 2048)]));
            frames.push(set(&[(&offset, u32::MAX.into())]));
        }
        frames
            .extend((0..3).flat_map(|encoder| [with(encoder, 0xFF), with(encoder, 0), with(encoder, 0xC3)]));
        frames.push(Draft::request(1, &PROMPT.repeat(2049 / PROMPT.len() + 1)).bytes());
        // Longer than any request, so that it is skipped: what is kept of it begins with the prompt.
        frames.push(Draft::other(1, PROMPT.repeat(6_205 / PROMPT.len() + 1).as_bytes()).bytes());
        frames.push(Draft::request(1, PROMPT).tail("prompt_data", &[b'-'; 6_205]).bytes());
        frames.push(set(&[("height", 0)]));
        frames.push(set(&[("steps", 0)]));
        frames.push(set(&[("cfg_scale", 0x7FC0_0000)]));
        let mut short = Draft::request(1, PROMPT).bytes();
        short.truncate(16 + 59);
        short[8..12].copy_from_slice(&59u32.to_be_bytes());
        frames.push(short);
        frames.iter().try_for_each(|frame| message_for(server, frame).map(drop))?;
        Ok(Remark::Pass)
    }),
    required("W1-ERR-011a", "error_msg is UTF-8 without a byte 0 at its end")
        .server(|server| refusals(server, "W1-ERR-011")),
    informational("W1-ERR-011b", "error_msg has no control characters").server(|server| {
        for (field, _, draft) in refused() {
            let message = error_msg(server, &draft)?;
            if message.chars().any(char::is_control) {
                return Ok(Remark::Warn(format!("{field}: error_msg is {message:?}")));
            }
        }
        Ok(Remark::Pass)
    }),
    required("W1-ERR-012a", "no bytes follow error_msg").server(|server| refusals(server, "W1-ERR-012")),
    required("W1-ERR-013a", "error_code is one of the table").server(|server| refusals(server, "W1-ERR-013")),
];

fn error_msg(server: &mut Server, request: &Draft) -> Result<String, Box<Failure>> {
    message_for(server, &request.bytes())
}

/// The error_msg that a frame gets, which has to be refused, in lower case.
fn message_for(server: &mut Server, frame: &[u8]) -> Result<String, Box<Failure>> {
    let mut connection = server.connect()?;
    connection.write(frame);
    let (problem, requirement) = match connection.receive() {
        Ok(Came::Answer(Answer::Error { message, .. })) => {
            return Ok(String::from_utf8_lossy(&message).to_lowercase());
        }
        Ok(Came::Answer(answer)) => (format!("the answer is {answer}"), ""),
        Ok(Came::Close) => ("the server closed the connection".to_owned(), "W1-CON-005"),
        Err(mut failure) => {
            failure.sent = frame.to_vec();
            return Err(failure);
        }
    };
    let mut failure = Failure::new(requirement, problem, "an error");
    failure.sent = frame.to_vec();
    Err(Box::new(failure))
}

/// Whether a field is named, in whatever words a reader knows it by.
fn names_field(message: &str, field: &str) -> Told {
    let spaced = message.replace(['_', '-'], " ");
    let either: &[&str] = match field {
        "cfg_scale" => &["cfg", "guidance"],
        "model_id" => &["model"],
        "msg_type" => &["type"],
        "payload_len" => &["payload", "prompt data", "frame", "request"],
        "width" | "height" | "steps" | "version" => &[field],
        "t5" | "t5_length" | "t5_offset" => &["t5"],
        _ if field.starts_with("clip_l") => &["clip l", "clipl"],
        _ => &["clip g", "clipg"],
    };
    let also: &[&str] = match field {
        _ if field.ends_with("_length") => &["length", "long", "bytes", "len"],
        _ if field.ends_with("_offset") => &["offset", "range", "within", "outside", "beyond", "place"],
        _ => &[""],
    };
    if [either, also].iter().all(|words| words.iter().any(|word| spaced.contains(word))) {
        return Ok(Remark::Pass);
    }
    fail("W1-ERR-004", format!("error_msg is {message:?}"), format!("a text that names {field}"))
}

/// Whether a number is there: as `shown`, with separators between thousands, or in hexadecimal.
fn names_number(message: &str, value: u64, shown: &str) -> bool {
    let is_thousands =
        |letter: char| [',', '_', '\'', '\u{2019}', '\u{a0}', '\u{202f}', ' '].contains(&letter);
    let without: String = message.chars().filter(|letter| !is_thousands(*letter)).collect();
    [message, &without].iter().any(|text| text.contains(shown) || text.contains(&format!("{value:x}")))
        || (shown.contains('.')
            && [shown.replace('.', ","), "2.05e".to_owned()].iter().any(|s| message.contains(s)))
}
