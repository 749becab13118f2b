//! The text of `spec/weave-v1.md` agrees with itself, with this crate's constants and with the vectors.
//!
//! Each check is a function from the text to a list of problems, so that it can also be shown that
//! it finds some: see [`every_check_can_fail`].
//!
//! `spec/vectors/INDEX.md` is made here: `WEAVE_BLESS=1 cargo test -p weave-core --test spec` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;
use weave_core::error::ErrorCode;
use weave_core::frame::Kind;
use weave_core::limits::{
    ERROR_FIXED_LEN, HEADER_LEN, MAGIC, MAX_CFG_SCALE, MAX_ERROR_FRAME, MAX_ERROR_MESSAGE_LEN,
    MAX_PROMPT_DATA_LEN, MAX_PROMPT_LEN, MAX_REQUEST_PAYLOAD, MAX_RESPONSE_PAYLOAD, MAX_SIDE,
    MAX_SKIPPED_PAYLOAD, MAX_STEPS, MIN_CFG_SCALE, MIN_PROMPT_LEN, MIN_SIDE, MIN_STEPS, MODEL_ID_SD35,
    REQUEST_FIXED_LEN, REQUEST_PARAMS_LEN, REQUEST_PREFIX_LEN, RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN,
    SIDE_STEP, STATUS_CLIENT_ERROR, STATUS_OK, STATUS_SERVER_ERROR, VERSION,
};

mod common;

use common::table;

type Problems = Vec<String>;

/// What these tests need of a vector; `tests/vectors.rs` knows all of it.
#[derive(Deserialize)]
struct Vector {
    name: String,
    about: String,
    exercises: Vec<String>,
    bytes: Vec<common::Segment>,
    expect: Value,
}

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

/// All vectors, each with the name of its file.
static VECTORS: LazyLock<Vec<(String, Vector)>> = LazyLock::new(|| {
    let of_file = |name: String| {
        let file: File = common::vector_file(&name);
        file.vectors.into_iter().map(move |vector| (name.clone(), vector))
    };
    common::vector_files().into_iter().flat_map(of_file).collect()
});

/// 10485760 as the text writes it: 10,485,760.
fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn len(len: usize) -> u32 {
    u32::try_from(len).unwrap()
}

/// The requirements in their order: id and text.
fn requirements(text: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut in_item = false;
    for line in text.lines() {
        if let Some((id, rest)) = line.strip_prefix("- **W1-").and_then(|rest| rest.split_once("**")) {
            all.push((format!("W1-{id}"), rest.to_owned()));
            in_item = true;
        } else if let (true, Some(more), Some((_, text))) = (in_item, line.strip_prefix("  "), all.last_mut())
        {
            *text += " ";
            *text += more;
        } else {
            in_item = false;
        }
    }
    all
}

/// Every id that a text mentions.
fn ids_in(text: &str) -> BTreeSet<String> {
    text.match_indices("W1-")
        .map(|(at, _)| {
            let end = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-');
            text[at..].split(end).next().unwrap_or("").trim_end_matches('-').to_owned()
        })
        .collect()
}

fn has_keyword(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphabetic()).any(|word| ["MUST", "SHOULD", "MAY"].contains(&word))
}

/// Ids are well-formed, unique, ascending without gaps, and stand before every MUST, SHOULD and MAY.
fn ids(text: &str) -> Problems {
    let mut problems = Problems::new();
    let all = requirements(text);
    let withdrawn = ids_in(text.split("\n## 13. ").nth(1).unwrap_or_default());
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    for (id, words) in &all {
        let Some((group, number)) = id.strip_prefix("W1-").and_then(|rest| rest.split_once('-')) else {
            problems.push(format!("{id} has no group and number"));
            continue;
        };
        let well_formed = group.len() == 3
            && group.chars().all(|c| c.is_ascii_uppercase())
            && number.len() == 3
            && number.chars().all(|c| c.is_ascii_digit());
        let number = number.parse().unwrap_or(0);
        if !well_formed {
            problems.push(format!("{id} is not like W1-HDR-001"));
        }
        let before = last.insert(group, number).unwrap_or(0);
        if number <= before {
            problems.push(format!("{id} comes after number {before} of its group"));
        }
        for gap in before + 1..number {
            let missing = format!("W1-{group}-{gap:03}");
            if !withdrawn.contains(&missing) {
                problems.push(format!("{missing} is missing and not listed as withdrawn"));
            }
        }
        if withdrawn.contains(id) {
            problems.push(format!("{id} is withdrawn and used"));
        }
        if !has_keyword(words) {
            problems.push(format!("{id} requires nothing"));
        }
    }
    let known: BTreeSet<&String> = all.iter().map(|(id, _)| id).collect();
    problems.extend(
        ids_in(text)
            .iter()
            .filter(|id| !known.contains(id) && !withdrawn.contains(*id))
            .map(|id| format!("{id} is named and not there")),
    );
    // Outside the requirements the keywords stand only where they are explained.
    let is_item = |paragraph: &str| paragraph.starts_with("- **W1-");
    for paragraph in text.split("\n\n").filter(|p| !is_item(p) && !p.contains("RFC 2119")) {
        if has_keyword(paragraph) {
            problems.push(format!("a requirement without id: {paragraph}"));
        }
    }
    for paragraph in text.split("\n\n").filter(|p| is_item(p)) {
        for line in paragraph.lines().filter(|line| !line.starts_with("- **W1-") && !line.starts_with("  ")) {
            problems.push(format!("not of a requirement: {line}"));
        }
    }
    problems
}

/// The numbers of a sentence, as they are written.
fn numbers(text: &str) -> Vec<String> {
    text.split_whitespace()
        .map(|word| word.trim_matches(|c: char| !(c.is_alphanumeric() || c == '-')))
        .filter(|word| word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit()))
        .filter(|word| word.chars().all(|c| c.is_ascii_digit() || ",.-".contains(c)))
        .map(str::to_owned)
        .collect()
}

/// Every number in a requirement is the constant that it should be.
fn numbers_of_requirements(text: &str) -> Problems {
    let cfg_min = format!("{MIN_CFG_SCALE:?}");
    let skipped = grouped(MAX_SKIPPED_PAYLOAD);
    let expected: BTreeMap<&str, Vec<String>> = BTreeMap::from([
        ("W1-TRN-002", vec!["0700".to_owned(), "0600".to_owned()]),
        ("W1-TRN-005", vec!["754".to_owned()]),
        ("W1-HDR-002", vec![VERSION.to_string()]),
        ("W1-HDR-004", vec!["0".to_owned()]),
        ("W1-FRM-001", vec![grouped(MAX_REQUEST_PAYLOAD)]),
        ("W1-FRM-002", vec![skipped.clone()]),
        ("W1-FRM-003", vec![skipped]),
        ("W1-FRM-007", vec![grouped(MAX_RESPONSE_PAYLOAD)]),
        ("W1-REQ-003", vec!["0".to_owned()]),
        ("W1-REQ-007", vec![format!("-{cfg_min}"), cfg_min]),
        ("W1-REQ-009", vec!["0".to_owned(), "0".to_owned()]),
        ("W1-REQ-010", vec![u64::BITS.to_string()]),
        ("W1-RSP-004", vec![STATUS_OK.to_string()]),
        ("W1-RSP-006", vec![RESPONSE_FIXED_LEN.to_string()]),
        ("W1-RSP-011", vec!["0".to_owned()]),
        ("W1-ERR-001", vec![size_of::<u64>().to_string(), "0".to_owned(), "0".to_owned()]),
        ("W1-ERR-003", vec![MAX_ERROR_MESSAGE_LEN.to_string()]),
        ("W1-ERR-007", vec![STATUS_CLIENT_ERROR.to_string(), STATUS_SERVER_ERROR.to_string()]),
        ("W1-ERR-008", vec![ERROR_FIXED_LEN.to_string()]),
        ("W1-ERR-011", vec!["0".to_owned()]),
        ("W1-VAL-003", vec![STATUS_SERVER_ERROR.to_string()]),
        ("W1-VAL-004", vec![STATUS_SERVER_ERROR.to_string(), "4".to_owned()]),
        ("W1-CON-008", vec!["0".to_owned()]),
    ]);
    let all = requirements(text);
    let mut problems = Problems::new();
    for (id, words) in &all {
        let is = numbers(words);
        let must_be = expected.get(id.as_str()).map_or([].as_slice(), Vec::as_slice);
        if is != must_be {
            problems.push(format!("{id} has the numbers {is:?}, the constants are {must_be:?}"));
        }
    }
    for id in expected.keys().filter(|id| !all.iter().any(|(other, _)| other == *id)) {
        problems.push(format!("{id} has numbers to check and is not there"));
    }
    problems
}

/// Offsets follow from sizes, sizes from types, and the whole from the constants.
fn layouts(text: &str) -> Problems {
    let mut problems = Problems::new();
    for (heading, total) in [
        ("### 3.1 ", HEADER_LEN),
        ("## 4. ", REQUEST_FIXED_LEN),
        ("## 5. ", RESPONSE_FIXED_LEN),
        ("## 6. ", ERROR_FIXED_LEN),
    ] {
        let mut offset = 0;
        for row in table(text, heading) {
            let [at, size, kind, field, _] = row.as_slice() else {
                problems.push(format!("{heading}: a row of {} cells", row.len()));
                continue;
            };
            if *at != offset.to_string() {
                problems.push(format!("{heading}: {field} is at {at}, the fields before it end at {offset}"));
            }
            let of_kind = match kind.as_str() {
                "u16" => Some(2),
                "u32" | "f32" => Some(4),
                "u64" => Some(8),
                "bytes" if field == "magic" => Some(MAGIC.len()),
                "bytes" => None,
                other => {
                    problems.push(format!("{heading}: {field} is a {other}"));
                    None
                }
            };
            if *size != of_kind.map_or("n".to_owned(), |size| size.to_string()) {
                problems.push(format!("{heading}: {field} is {size} bytes of {kind}"));
            }
            offset += of_kind.unwrap_or(0);
        }
        if offset != total {
            problems.push(format!("{heading}: {offset} bytes, the constant is {total}"));
        }
    }
    let prefix: Vec<String> = table(text, "## 4. ").into_iter().map(|row| row[3].clone()).take(2).collect();
    if prefix != ["request_id", "model_id"] || REQUEST_PREFIX_LEN != 8 + 4 {
        problems.push(format!("the first {REQUEST_PREFIX_LEN} bytes of a request are {prefix:?}"));
    }
    problems
}

/// What a table says of its fields, made from the constants.
fn ranges(text: &str) -> Problems {
    let side = format!("{MIN_SIDE} to {MAX_SIDE}, a multiple of {SIDE_STEP}");
    let prompt = format!("{MIN_PROMPT_LEN} to {MAX_PROMPT_LEN}");
    let types = [Kind::Request, Kind::Response, Kind::Error]
        .map(|kind| format!("0x{:04X} {}", kind.to_wire(), format!("{kind:?}").to_lowercase()));
    let magic: Vec<String> = MAGIC.iter().map(|byte| format!("{byte:02X}")).collect();
    let [within, any] = ["within prompt_data", "any"].map(str::to_owned);
    let expected: [(&str, Vec<(&str, String)>); 4] = [
        (
            "### 3.1 ",
            vec![
                ("magic", format!("`{}`, \"{}\"", magic.join(" "), MAGIC.escape_ascii())),
                ("version", VERSION.to_string()),
                ("msg_type", types.join(", ")),
                ("payload_len", "bytes after the header".to_owned()),
                ("reserved", "0".to_owned()),
            ],
        ),
        (
            "## 4. ",
            vec![
                ("request_id", any),
                ("model_id", MODEL_ID_SD35.to_string()),
                ("width", side.clone()),
                ("height", side.clone()),
                ("steps", format!("{MIN_STEPS} to {MAX_STEPS}")),
                ("cfg_scale", format!("{MIN_CFG_SCALE:?} to {MAX_CFG_SCALE:?}")),
                ("seed", "any; 0 leaves the choice to the server".to_owned()),
                ("clip_l_offset", within.clone()),
                ("clip_l_length", prompt.clone()),
                ("clip_g_offset", within.clone()),
                ("clip_g_length", prompt.clone()),
                ("t5_offset", within),
                ("t5_length", prompt),
                ("prompt_data", format!("at most {} bytes", grouped(MAX_PROMPT_DATA_LEN))),
            ],
        ),
        (
            "## 5. ",
            vec![
                ("request_id", "that of the request".to_owned()),
                ("status", STATUS_OK.to_string()),
                ("generation_time_ms", "milliseconds".to_owned()),
                ("image_width", side.clone()),
                ("image_height", side),
                ("channels", "3 for RGB, 4 for RGBA".to_owned()),
                ("image_data_len", "image_width · image_height · channels".to_owned()),
                ("image_data", "the pixels".to_owned()),
            ],
        ),
        (
            "## 6. ",
            vec![
                ("request_id", "that of the request, or 0".to_owned()),
                ("status", format!("{STATUS_CLIENT_ERROR} or {STATUS_SERVER_ERROR}")),
                ("error_code", "see below".to_owned()),
                ("error_msg_len", "bytes of error_msg".to_owned()),
                ("error_msg", "UTF-8".to_owned()),
            ],
        ),
    ];
    let mut problems = Problems::new();
    for (heading, expected) in expected {
        let rows: Vec<(String, String)> =
            table(text, heading).into_iter().map(|row| (row[3].clone(), row[4].clone())).collect();
        let expected: Vec<(String, String)> =
            expected.into_iter().map(|(field, range)| (field.to_owned(), range)).collect();
        if rows != expected {
            problems.push(format!("{heading}: is {rows:?}, the constants make {expected:?}"));
        }
    }
    problems
}

/// The table of the longest payloads, and the sentences that repeat a number.
fn limits(text: &str) -> Problems {
    let error_payload = MAX_ERROR_FRAME - HEADER_LEN;
    let prompt_data = grouped(MAX_PROMPT_DATA_LEN);
    let expected = [
        (
            "MAX_REQUEST_PAYLOAD",
            grouped(MAX_REQUEST_PAYLOAD),
            format!("a request: {REQUEST_PREFIX_LEN} + {REQUEST_PARAMS_LEN} + {prompt_data}"),
        ),
        (
            "MAX_SKIPPED_PAYLOAD",
            grouped(MAX_SKIPPED_PAYLOAD),
            "what a server follows without giving the stream up".to_owned(),
        ),
        (
            "MAX_RESPONSE_PAYLOAD",
            grouped(MAX_RESPONSE_PAYLOAD),
            format!("a response: {RESPONSE_FIXED_LEN} + {MAX_SIDE} · {MAX_SIDE} · 4"),
        ),
        (
            "MAX_ERROR_PAYLOAD",
            grouped(len(error_payload)),
            format!("an error, as senders make it: {ERROR_FIXED_LEN} + {MAX_ERROR_MESSAGE_LEN}"),
        ),
    ]
    .map(|(name, bytes, bounds)| vec![name.to_owned(), bytes, bounds]);
    let mut problems = Problems::new();
    let rows = table(text, "### 3.2 ");
    if rows != expected {
        problems.push(format!("3.2 is {rows:?}, the constants make {expected:?}"));
    }
    let one_line = text.replace('\n', " ");
    for sentence in [
        format!("The header has {HEADER_LEN} bytes."),
        format!(
            "The first {REQUEST_PREFIX_LEN} bytes are the same for every model; the {REQUEST_PARAMS_LEN} that follow"
        ),
        format!("Model {MODEL_ID_SD35} is Stable Diffusion 3.5"),
        format!("msg_type 0x{:04X}, from client to server.", Kind::Request.to_wire()),
        format!("msg_type 0x{:04X}, from server to client: the image", Kind::Response.to_wire()),
        format!("msg_type 0x{:04X}, from server to client: why", Kind::Error.to_wire()),
    ] {
        if !one_line.contains(&sentence) {
            problems.push(format!("it does not say: {sentence}"));
        }
    }
    problems
}

/// The table of error codes is [`ErrorCode::ALL`].
fn error_codes(text: &str) -> Problems {
    let after = text.split("| n | bytes | error_msg | UTF-8 |").nth(1).unwrap_or_default();
    let is: Vec<[String; 3]> = table(&format!("\n{after}"), "")
        .into_iter()
        .map(|row| [row[0].clone(), row[1].clone(), row[2].clone()])
        .collect();
    let must_be: Vec<[String; 3]> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let status = match code {
                ErrorCode::None => "–".to_owned(),
                code => code.status().to_wire().to_string(),
            };
            [code.to_wire().to_string(), code.name().to_owned(), status]
        })
        .collect();
    if is == must_be { Vec::new() } else { vec![format!("the codes are {is:?}, the crate has {must_be:?}")] }
}

/// The order of checks, with the constants, and with the steps and errors that the vectors give.
fn order_of_checks(text: &str) -> Problems {
    let payload_at_least = |bytes: usize| format!("payload_len at least {bytes}");
    let expected = [
        ("magic".to_owned(), "INVALID_MAGIC, close"),
        (format!("payload_len at most {}", grouped(MAX_SKIPPED_PAYLOAD)), "TOO_LARGE, close"),
        (format!("version is {VERSION}"), "UNSUPPORTED_VERSION"),
        (format!("msg_type is 0x{:04X}", Kind::Request.to_wire()), "UNSUPPORTED_TYPE"),
        (payload_at_least(REQUEST_PREFIX_LEN), "MALFORMED"),
        (format!("model_id is {MODEL_ID_SD35}"), "INVALID_MODEL_ID"),
        (payload_at_least(REQUEST_FIXED_LEN), "MALFORMED"),
        ("width, then height".to_owned(), "INVALID_DIMENSIONS"),
        ("steps".to_owned(), "INVALID_STEPS"),
        ("cfg_scale".to_owned(), "INVALID_CFG"),
        ("clip_l_length, clip_g_length, t5_length".to_owned(), "INVALID_PROMPT"),
        (format!("prompt_data at most {} bytes", grouped(MAX_PROMPT_DATA_LEN)), "INVALID_PROMPT"),
        ("the three ranges, in the same order".to_owned(), "INVALID_PROMPT"),
        ("the three prompts are UTF-8".to_owned(), "INVALID_PROMPT"),
        ("the three prompts have no byte 0".to_owned(), "INVALID_PROMPT"),
    ];
    let rows = table(text, "## 7. ");
    let expected: Vec<Vec<String>> = (1u8..)
        .zip(expected)
        .map(|(step, (check, error))| vec![step.to_string(), check, error.to_owned()])
        .collect();
    let mut problems = Problems::new();
    if rows != expected {
        problems.push(format!("7 is {rows:?}, the constants make {expected:?}"));
    }
    let mut seen = BTreeSet::new();
    for (_, vector) in &*VECTORS {
        for answer in vector.expect["frames"].as_array().into_iter().flatten().filter_map(|f| f.get("answer"))
        {
            let step = answer["step"].to_string();
            let says = rows.iter().find(|row| row[0] == step).map(|row| row[2].trim_end_matches(", close"));
            if says != answer["name"].as_str() {
                problems.push(format!(
                    "{}: step {step} gives {}, the text {says:?}",
                    vector.name, answer["name"]
                ));
            }
            seen.insert(step);
        }
    }
    problems.extend(
        rows.iter()
            .filter(|row| !seen.contains(&row[0]))
            .map(|row| format!("no vector fails at step {}", row[0])),
    );
    problems
}

/// Every hex block is the vector of its name, and its comments are true.
fn hex_blocks(text: &str) -> Problems {
    let mut problems = Problems::new();
    let mut blocks = 0;
    for block in text.split("```hex ").skip(1) {
        blocks += 1;
        let (kind, rest) = block.split_once('\n').unwrap_or_default();
        let name = format!("{kind}-example");
        let Some((_, vector)) = VECTORS.iter().find(|(_, vector)| vector.name == name) else {
            problems.push(format!("there is no vector {name}"));
            continue;
        };
        let mut bytes = Vec::new();
        for line in rest.lines().take_while(|line| !line.starts_with("```")) {
            let (hex, comment) = line.split_once('#').unwrap_or((line, ""));
            let Some(piece) = common::unhex(hex) else {
                problems.push(format!("{name}: not hex: {line}"));
                continue;
            };
            problems.extend(comment_problems(vector, &piece, comment.trim()));
            bytes.extend(piece);
        }
        let of_vector: Vec<u8> = vector.bytes.iter().flat_map(common::Segment::bytes).collect();
        if bytes != of_vector {
            problems.push(format!("{name}: the text has {bytes:02X?}, the vector {of_vector:02X?}"));
        }
        let size = if kind == "response-head" {
            format!("follow these {RESPONSE_HEAD_LEN}.")
        } else {
            format!(": {} bytes.", grouped(len(bytes.len())))
        };
        let before = text.split(&format!("```hex {kind}\n")).next().unwrap_or_default();
        let paragraph = before.trim_end().rsplit("\n\n").next().unwrap_or_default();
        if !paragraph.contains(&size) {
            problems.push(format!("{name}: the sentence before it does not say \"{size}\""));
        }
    }
    if blocks != 3 {
        problems.push(format!("there are {blocks} hex blocks"));
    }
    problems
}

/// "payload_len 102" stands beside the bytes of payload_len, and they are 102.
fn comment_problems(vector: &Vector, bytes: &[u8], comment: &str) -> Problems {
    let labelled = |label: &str| vector.bytes.iter().find(|s| s.field == label).map(common::Segment::bytes);
    let integer = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (label, value) = comment.split_once(' ').unwrap_or((comment, ""));
    let label = label.trim_end_matches(':');
    let number = value.split(' ').next().unwrap_or_default().trim_end_matches(':').replace(',', "");
    let is_true = if let Some(field) = labelled(label) {
        let is_value = match (label, bytes) {
            ("magic", _) => value == format!("\"{}\"", MAGIC.escape_ascii()),
            ("msg_type", [high, low]) => {
                let kind = Kind::from_wire(u16::from_be_bytes([*high, *low]));
                value == format!("{kind:?}").to_lowercase()
            }
            ("cfg_scale", _) => number.parse().map(f32::to_be_bytes).is_ok_and(|value| value == bytes),
            ("reserved", _) => integer(bytes) == 0 && value.is_empty(),
            _ => number.parse() == Ok(integer(bytes)),
        };
        is_value && field == bytes
    } else if let Some((offset, length)) =
        value.strip_prefix("offset ").and_then(|rest| rest.split_once(", length "))
    {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        offset.parse() == Ok(integer(first))
            && length.parse() == Ok(integer(second))
            && labelled(&format!("{label}_offset")).as_deref() == Some(first)
            && labelled(&format!("{label}_length")).as_deref() == Some(second)
    } else if let Some(quoted) = comment.strip_prefix('"').and_then(|rest| rest.split('"').next()) {
        quoted.as_bytes() == bytes
    } else {
        comment.is_empty()
    };
    if is_true { Vec::new() } else { vec![format!("{}: {bytes:02X?} is not \"{comment}\"", vector.name)] }
}

/// A check's name and what it finds in a text.
type Check = (&'static str, fn(&str) -> Problems);

const CHECKS: [Check; 8] = [
    ("ids", ids),
    ("numbers of requirements", numbers_of_requirements),
    ("layouts", layouts),
    ("ranges", ranges),
    ("limits", limits),
    ("error codes", error_codes),
    ("order of checks", order_of_checks),
    ("hex blocks", hex_blocks),
];

#[test]
fn the_text_is_right() {
    let text = common::text();
    let problems: Vec<String> = CHECKS
        .iter()
        .flat_map(|(name, check)| check(&text).into_iter().map(move |problem| format!("{name}: {problem}")))
        .collect();
    assert!(problems.is_empty(), "weave-v1.md:\n{}", problems.join("\n"));
    assert!(requirements(&text).len() > 60, "the requirements were not found");
}

/// Spoils the text in one place at a time: the check that is named, and no other, must see it.
#[test]
fn every_check_can_fail() {
    let text = common::text();
    for (check, from, to) in [
        ("ids", "**W1-HDR-005** A", "**W1-HDR-003** A"),
        ("ids", "**W1-HDR-003** A", "**W1-HDR-3** A"),
        ("ids", "**W1-HDR-003** A", "**W1-HDR-013** A"),
        ("ids", "**W1-HDR-003** A", "**W1-hdr-003** A"),
        ("ids", "- **W1-HDR-003** A sender MUST write", "- A sender MUST write"),
        ("ids", "- **W1-HDR-003** A sender MUST write", "- **W1-HDR-003** A sender writes"),
        ("ids", "There is no\npadding.", "There MUST be no\npadding."),
        ("ids", "(W1-TRN-002, W1-TRN-003)", "(W1-TRN-002, W1-TRN-033)"),
        ("ids", "requirements\n\nNone.", "requirements\n\n- W1-TRN-002: nothing."),
        ("numbers of requirements", "payload of more than 6,204 bytes", "payload of more than 6,205 bytes"),
        ("numbers of requirements", "more than 10,485,760 with", "more than 10,485,761 with"),
        ("numbers of requirements", "more than 16,777,248.", "more than 16,777,216."),
        ("numbers of requirements", "at most 255 bytes", "at most 256 bytes"),
        ("numbers of requirements", "begin each frame with the magic", "begin each frame with the magic 1"),
        ("layouts", "| 40 | 4 | u32 | clip_l_length", "| 41 | 4 | u32 | clip_l_length"),
        ("layouts", "| 28 | 8 | u64 | seed", "| 28 | 8 | u32 | seed"),
        ("layouts", "| 16 | 2 | u16 | error_msg_len", "| 16 | 2 | i16 | error_msg_len"),
        ("ranges", "| steps | 1 to 100 |", "| steps | 1 to 101 |"),
        ("ranges", "| t5_length | 1 to 2048 |", "| t5_length | 0 to 2048 |"),
        (
            "ranges",
            "| image_height | 64 to 2048, a multiple of 64 |",
            "| image_height | 64 to 2048, a multiple of 32 |",
        ),
        ("ranges", "0x00FF error |", "0x00FE error |"),
        ("ranges", "| status | 200 |", "| status | 201 |"),
        ("limits", "| 10,485,760 | what", "| 10,485,761 | what"),
        ("limits", "a request: 12 + 48 + 6,144", "a request: 12 + 48 + 6,145"),
        ("limits", "| 273 |", "| 272 |"),
        ("limits", "The header has 16 bytes.", "The header has 12 bytes."),
        ("limits", "msg_type 0x0002, from", "msg_type 0x0003, from"),
        ("error codes", "| 23 | BUSY | 500 |", "| 23 | BUSY | 400 |"),
        ("error codes", "| 10 | TIMEOUT |", "| 11 | TIMEOUT |"),
        ("error codes", "| 9 | GPU_ERROR |", "| 9 | ENGINE_ERROR |"),
        (
            "error codes",
            "| 24 | SHUTTING_DOWN | 500 | the server is ending | try again when it is back |\n",
            "",
        ),
        ("order of checks", "| 9 | steps | INVALID_STEPS |", "| 9 | steps | INVALID_CFG |"),
        ("order of checks", "payload_len at least 60", "payload_len at least 61"),
        ("hex blocks", "00 00 00 1C                # steps 28", "00 00 00 1D                # steps 29"),
        ("hex blocks", "# steps 28", "# steps 29"),
        ("hex blocks", "# payload_len 786,464", "# payload_len 786,432"),
        ("hex blocks", "# cfg_scale 7.0", "# cfg_scale 7.5"),
        ("hex blocks", "# t5: offset 28", "# t5: offset 14"),
        ("hex blocks", "# msg_type: error", "# msg_type: response"),
        ("hex blocks", "any seed: 118 bytes.", "any seed: 117 bytes."),
        ("hex blocks", "```hex error", "```hex mistake"),
    ] {
        assert_eq!(text.matches(from).count(), 1, "once in the text: {from}");
        let spoilt = text.replacen(from, to, 1);
        let complaining: Vec<&str> =
            CHECKS.iter().filter(|(_, check)| !check(&spoilt).is_empty()).map(|(name, _)| *name).collect();
        assert_eq!(complaining, [check], "{from} -> {to}");
    }
}

/// Ids that a vector or another file of `spec/` names are ids of the text.
#[test]
fn ids_named_elsewhere_exist() {
    let known: BTreeSet<String> = requirements(&common::text()).into_iter().map(|(id, _)| id).collect();
    for (file, vector) in &*VECTORS {
        for id in &vector.exercises {
            assert!(known.contains(id), "{file}.json, {}: there is no {id}", vector.name);
        }
        for id in ids_in(&vector.expect.to_string()) {
            assert!(vector.exercises.contains(&id), "{file}.json, {}: exercises not {id}", vector.name);
        }
    }
    for folder in ["", "vectors", "check", "examples"] {
        for entry in std::fs::read_dir(common::spec().join(folder)).into_iter().flatten() {
            let path = entry.unwrap().path();
            let is_text =
                |ending: &std::ffi::OsStr| ["ksy", "lua", "md", "js", "py"].iter().any(|e| *e == ending);
            if path.extension().is_some_and(is_text) {
                for id in ids_in(&std::fs::read_to_string(&path).unwrap()) {
                    assert!(known.contains(&id), "{}: there is no {id}", path.display());
                }
            }
        }
    }
}

/// `INDEX.md` lists the vectors as they are.
#[test]
fn the_index_is_up_to_date() {
    let path = common::spec().join("vectors/INDEX.md");
    let made = index();
    if std::env::var_os("WEAVE_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(is == made, "{} is old: run this test with WEAVE_BLESS=1", path.display());
}

fn index() -> String {
    let mut text = String::from(
        "# The vectors\n\n<!-- Made by weave-core/tests/spec.rs; WEAVE_BLESS=1 writes it anew. -->\n",
    );
    write!(text, "\n{} vectors. [README.md](README.md) says how to read them.\n", VECTORS.len()).unwrap();
    for file in common::vector_files() {
        let own: Vec<&Vector> =
            VECTORS.iter().filter(|(name, _)| *name == file).map(|(_, vector)| vector).collect();
        write!(text, "\n## [{file}.json]({file}.json): {}\n\n", own.len()).unwrap();
        text += "| name | about | exercises |\n| --- | --- | --- |\n";
        for Vector { name, about, exercises, .. } in own {
            let short: Vec<&str> = exercises.iter().map(|id| id.trim_start_matches("W1-")).collect();
            let about = about.replace('|', "\\|");
            writeln!(text, "| {name} | {about} | {} |", short.join(", ")).unwrap();
        }
    }
    text += "\n## Requirements and their vectors\n\n| id | vectors |\n| --- | --- |\n";
    let mut without = Vec::new();
    for (id, _) in requirements(&common::text()) {
        let n = VECTORS.iter().filter(|(_, vector)| vector.exercises.contains(&id)).count();
        if n == 0 { without.push(id) } else { writeln!(text, "| {id} | {n} |").unwrap() }
    }
    write!(
        text,
        "\n## Requirements without a vector\n\nBytes alone can't show whether these {} are kept; they are about what a program does around them.\n\n",
        without.len()
    )
    .unwrap();
    for id in without {
        writeln!(text, "- {id}").unwrap();
    }
    text
}
