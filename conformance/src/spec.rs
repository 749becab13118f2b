//! What `spec/` says, carried along in the program: the requirements of the text, and the vectors.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use crate::draft::Segment;
use crate::wire::{ERROR, End, Expectation, Field, Fields, HEADER, REQUEST, RESPONSE, Receiver, code};

/// How much a requirement asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keyword {
    /// MAY.
    May,
    /// SHOULD or SHOULD NOT.
    Should,
    /// MUST or MUST NOT.
    Must,
}

/// A sentence of the specification.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// Such as W1-HDR-001.
    pub id: String,
    /// The heading of the section that it stands in, such as `3. Frames`.
    pub section: String,
    /// The sentence.
    pub text: String,
    /// The strongest of its keywords.
    pub keyword: Keyword,
}

/// All requirements, in the order of the text.
pub static REQUIREMENTS: LazyLock<Vec<Requirement>> =
    LazyLock::new(|| requirements(include_str!("../../spec/weave-v1.md")));

fn requirements(text: &str) -> Vec<Requirement> {
    let mut all: Vec<Requirement> = Vec::new();
    let (mut section, mut inside) = ("", false);
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        if let Some((id, rest)) = line.strip_prefix("- **").and_then(|rest| rest.split_once("** ")) {
            all.push(Requirement {
                id: id.to_owned(),
                section: section.to_owned(),
                text: rest.to_owned(),
                keyword: Keyword::May,
            });
            inside = true;
        } else if let (true, Some(more), Some(last)) = (inside, line.strip_prefix("  "), all.last_mut()) {
            last.text = format!("{} {more}", last.text);
        } else {
            inside = false;
        }
    }
    all.retain(|requirement| requirement.id.starts_with("W1-"));
    for requirement in &mut all {
        let has =
            |word| requirement.text.split(|c: char| !c.is_ascii_alphabetic()).any(|other| other == word);
        requirement.keyword = match () {
            () if has("MUST") => Keyword::Must,
            () if has("SHOULD") => Keyword::Should,
            () => Keyword::May,
        };
    }
    all
}

/// The sentence of a requirement; empty if there is no such id.
#[must_use]
pub fn sentence(id: &str) -> &'static str {
    REQUIREMENTS.iter().find(|requirement| requirement.id == id).map_or("", |requirement| &requirement.text)
}

/// A test vector: `spec/vectors/README.md` says what its members are.
#[derive(Debug, Deserialize)]
pub struct Vector {
    /// Permanent and unique.
    pub name: String,
    /// What is special about it.
    pub about: String,
    /// The requirements that it looks at.
    pub exercises: Vec<String>,
    receiver: String,
    bytes: Vec<Piece>,
    expect: Value,
    /// What a sender does otherwise, if a sender would not make these bytes.
    pub sender: Option<String>,
}

/// Bytes that stand somewhere once or several times.
#[derive(Debug, Deserialize)]
pub struct Piece {
    field: String,
    hex: String,
    times: Option<usize>,
}

impl Piece {
    /// The bytes, once.
    #[must_use]
    pub fn once(&self) -> Vec<u8> {
        unhex(&self.hex)
    }

    /// How often they stand there.
    #[must_use]
    pub fn times(&self) -> usize {
        self.times.unwrap_or(1)
    }
}

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

/// All vectors, file by file.
pub static VECTORS: LazyLock<Vec<Vector>> = LazyLock::new(|| {
    [
        include_str!("../../spec/vectors/requests-served.json"),
        include_str!("../../spec/vectors/requests-refused.json"),
        include_str!("../../spec/vectors/order-of-checks.json"),
        include_str!("../../spec/vectors/framing.json"),
        include_str!("../../spec/vectors/streams.json"),
        include_str!("../../spec/vectors/responses.json"),
        include_str!("../../spec/vectors/errors.json"),
    ]
    .into_iter()
    .flat_map(|text| serde_json::from_str::<File>(text).expect("a vector file").vectors)
    .collect()
});

/// The vectors for a receiver that some patterns mean.
pub fn vectors(receiver: Receiver, patterns: &[&str]) -> impl Iterator<Item = &'static Vector> {
    VECTORS.iter().filter(move |vector| {
        vector.receiver() == receiver && patterns.iter().any(|pattern| fits(pattern, &vector.name))
    })
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// Reads hexadecimal digits with or without spaces.
fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let byte = |pair: &[u8]| {
        std::str::from_utf8(pair)
            .ok()
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .expect("hexadecimal")
    };
    digits.chunks(2).map(byte).collect()
}

impl Vector {
    /// Who reads the bytes.
    #[must_use]
    pub fn receiver(&self) -> Receiver {
        if self.receiver == "server" { Receiver::Server } else { Receiver::Client }
    }

    /// The bytes as they are written down.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.bytes
    }

    /// The bytes, field by field.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let segment =
            |piece: &Piece| Segment { field: piece.field.clone(), bytes: piece.once().repeat(piece.times()) };
        self.bytes.iter().map(segment).collect()
    }

    /// What the receiver has to make of it.
    #[must_use]
    pub fn expectations(&self) -> Vec<Expectation> {
        self.expect["frames"].as_array().expect("frames").iter().map(expectation).collect()
    }

    /// How the connection stands afterwards.
    #[must_use]
    pub fn end(&self) -> End {
        match string(&self.expect["end"]) {
            "between-frames" => End::BetweenFrames,
            "inside-a-frame" => End::InsideAFrame,
            "closed" => End::Closed,
            other => panic!("{}: unknown end {other}", self.name),
        }
    }
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

/// A number, or a string with one.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

/// `text` or `hex`, repeated `times` times.
fn blob(value: &Value) -> Vec<u8> {
    let once = match value["text"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => unhex(string(&value["hex"])),
    };
    once.repeat(usize::try_from(value["times"].as_u64().unwrap_or(1)).unwrap_or(1))
}

fn expectation(value: &Value) -> Expectation {
    let (kind, of) = value.as_object().and_then(|object| object.iter().next()).expect("one member");
    let field_of = |field: &'static Field| -> (&'static str, u64) {
        let value = match (field.name, field.name.rsplit_once('_')) {
            ("cfg_scale", _) => {
                u64::from_str_radix(string(&of["cfg_scale"]["bits"]), 16).expect("hexadecimal")
            }
            (_, Some((encoder @ ("clip_l" | "clip_g" | "t5"), part))) => number(&of[encoder][part]),
            (name, _) => number(&of[name]),
        };
        (field.name, value)
    };
    let fields = |table: &'static [Field]| Fields::from(table.iter().map(field_of).collect::<Vec<_>>());
    let trailing = || usize::try_from(number(&of["trailing"])).unwrap_or(usize::MAX);
    match kind.as_str() {
        "request" => Expectation::Request {
            fields: fields(REQUEST),
            prompts: ["clip_l", "clip_g", "t5"].map(|name| blob(&of[name])),
        },
        "answer" => Expectation::Answer {
            request_id: number(&of["request_id"]),
            code: code(string(&of["name"])),
            step: u8::try_from(number(&of["step"])).unwrap_or(u8::MAX),
            field: string(&of["field"]).to_owned(),
        },
        "response" => Expectation::Response {
            fields: fields(RESPONSE),
            image_data: blob(&of["image_data"]),
            trailing: trailing(),
        },
        "error" => Expectation::Error {
            fields: fields(ERROR),
            message: blob(&of["error_msg"]),
            trailing: trailing(),
        },
        "close" => {
            let because = string(&of["because"]);
            let because = REQUIREMENTS.iter().find(|known| known.id == because).expect("a requirement");
            let field = string(&of["field"]);
            let field = [HEADER, RESPONSE, ERROR].into_iter().flatten().find(|known| known.name == field);
            Expectation::Close { because: &because.id, field: field.expect("a field").name }
        }
        other => panic!("unknown expectation {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::read;

    #[test]
    fn the_suites_own_reader_takes_every_vector_as_it_says() {
        for vector in VECTORS.iter() {
            let bytes: Vec<u8> = vector.segments().into_iter().flat_map(|segment| segment.bytes).collect();
            let (expectations, end) = read(vector.receiver(), &bytes);
            assert!(expectations == vector.expectations(), "{}: another expectation", vector.name);
            assert_eq!(end, vector.end(), "{}", vector.name);
        }
        assert!(VECTORS.len() >= 576);
    }

    #[test]
    fn the_requirements_are_those_of_the_text() {
        assert_eq!(REQUIREMENTS.len(), include_str!("../../spec/weave-v1.md").matches("\n- **W1-").count());
        assert_eq!(sentence("W1-HDR-001"), "A sender MUST begin each frame with the magic.");
        assert!(REQUIREMENTS.iter().all(|requirement| requirement.text.contains(['M', 'S'])));
        let keyword =
            |id: &str| REQUIREMENTS.iter().find(|requirement| requirement.id == id).map(|r| r.keyword);
        assert_eq!(keyword("W1-CON-001"), Some(Keyword::May));
        assert_eq!(keyword("W1-ERR-004"), Some(Keyword::Should));
        assert_eq!(keyword("W1-ERR-010"), Some(Keyword::Must));
    }
}
