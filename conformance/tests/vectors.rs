//! The vectors themselves: one that is refused is refused for one reason, or it shows which reason comes first.
//!
//! A frame with two defects says nothing of either check: a receiver that lacks one of them still refuses it. So
//! each refused frame is mended in the field that is at fault, and has to be accepted then. A side or the number
//! of channels may take image_data_len and the pixels along, if these were made for it.

use std::collections::BTreeSet;

use weave_conformance::draft::{Draft, Segment};
use weave_conformance::spec::{VECTORS, Vector};
use weave_conformance::wire::{
    ERROR, Expectation, Field, HEADER, MAX_RESPONSE_PAYLOAD, REQUEST, RESPONSE, Receiver, read, size,
};

/// Vectors with several defects that are not about the order of checks, and why they have them.
const SEVERAL: &[(&str, &str)] = &[
    ("version-2-short", "there is no request_id to echo"),
    ("version-2-of-8", "there is nothing but a request_id"),
    ("msg-type-unknown-empty", "there is nothing to look into"),
    ("magic-payload-len-0", "there is nothing to look into"),
    ("model-id-1-of-12", "what follows model_id belongs to the model"),
    ("prompt-data-6145-at-the-end", "the last range is in the byte that is too many"),
    ("response-product-overflows-to-0", "it takes two sides"),
    ("stream-frame-within-an-unknown-type", "what a server must not look into is no request"),
    ("stream-empty-payloads", "there is nothing to look into"),
];

/// Whether it is about which of several defects comes first.
fn is_of_order(vector: &Vector) -> bool {
    vector.name.starts_with("order-") || vector.name == "client-magic-before-payload-len"
}

/// The bytes of one frame.
#[derive(Clone)]
struct Frame(Vec<u8>);

impl Frame {
    fn payload(&self) -> &[u8] {
        self.0.get(16..).unwrap_or_default()
    }

    /// Where a field of the header or of a payload stands.
    fn place(table: &[Field], name: &str) -> std::ops::Range<usize> {
        let before = |table: &[Field]| size(&table[..table.iter().position(|f| f.name == name).unwrap()]);
        let is_header = HEADER.iter().any(|field| field.name == name);
        let table = if is_header { HEADER } else { table };
        let at = before(table) + if is_header { 0 } else { 16 };
        at..at + table.iter().find(|field| field.name == name).unwrap().size
    }

    fn get(&self, table: &[Field], name: &str) -> u64 {
        self.0[Self::place(table, name)].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn with(&self, table: &[Field], name: &str, value: u64) -> Self {
        let place = Self::place(table, name);
        let mut bytes = self.0.clone();
        bytes[place.clone()].copy_from_slice(&value.to_be_bytes()[8 - place.len()..]);
        Self(bytes)
    }

    /// With another payload, and the payload_len of that.
    fn with_payload(&self, payload: &[u8]) -> Self {
        let len = u64::try_from(payload.len()).unwrap();
        Self([&self.0[..16], payload].concat()).with(&[], "payload_len", len)
    }

    /// With a payload that ends like another one.
    fn completed_by(&self, other: &Draft) -> Self {
        let (own, other) = (self.payload(), &other.bytes()[16..]);
        self.with_payload(&[own, other.get(own.len()..).unwrap_or_default()].concat())
    }
}

fn request() -> Draft {
    Draft::request(1, "abc")
}

fn response() -> Draft {
    Draft::response(1, 64, 64, &[0; 64 * 64 * 3])
}

/// What a server could have been sent instead: `field` is mended, and nothing else.
fn mended_request(frame: &Frame, step: u8, field: &str) -> Vec<Frame> {
    let with = |values: &[u64]| values.iter().map(|value| frame.with(REQUEST, field, *value)).collect();
    let encoder = field.trim_end_matches("_offset").trim_end_matches("_length");
    let range = || {
        let get = |part: &str| {
            usize::try_from(frame.get(REQUEST, &format!("{encoder}_{part}"))).unwrap_or(usize::MAX)
        };
        76 + get("offset")..76 + get("offset") + get("length")
    };
    match (step, field) {
        (1, _) => with(&[0x5745_5645]),
        (2, _) => with(&[69]),
        (3 | 4, _) => with(&[1]),
        (5 | 7, _) => vec![frame.completed_by(&request())],
        (6, _) => with(&[0]),
        (8, _) => with(&[64]),
        (9, _) => with(&[1]),
        (10, _) => with(&[0x3F80_0000]),
        (11, _) => with(&[1]),
        (12, _) => vec![frame.with_payload(&frame.payload()[..60 + 6_144])],
        (13, _) => {
            let length = format!("{encoder}_length");
            let longer = frame.with_payload(&[frame.payload(), b"abcabcabc"].concat());
            vec![
                frame.with(REQUEST, field, 0),
                frame.with(REQUEST, &length, 1),
                frame.with(REQUEST, field, 0).with(REQUEST, &length, 1),
                longer,
            ]
        }
        (14, _) => {
            let mut mended = frame.clone();
            let text = &mut mended.0[range()];
            // Byte by byte: a byte 0 is another defect, and has to stay.
            while let Err(error) = std::str::from_utf8(text) {
                text[error.valid_up_to()] = b'x';
            }
            vec![mended]
        }
        (15, _) => {
            let mut mended = frame.clone();
            mended.0[range()].iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b'x');
            vec![mended]
        }
        other => panic!("how is {other:?} mended?"),
    }
}

/// What a client could have got instead.
fn mended_answer(frame: &Frame, because: &str, field: &str) -> Vec<Frame> {
    let product = |frame: &Frame| {
        ["image_width", "image_height", "channels"]
            .iter()
            .map(|name| frame.get(RESPONSE, name))
            .fold(1, u64::wrapping_mul)
    };
    let sent = |frame: &Frame| frame.payload().len() as u64 - 32;
    // With the right image_data_len, and as many bytes of pixels if there were as many as it said.
    let counted = |mended: Frame| {
        let (said, right) = (frame.get(RESPONSE, "image_data_len"), product(&mended));
        let mended = mended.with(RESPONSE, "image_data_len", right);
        if sent(frame) != said || right > MAX_RESPONSE_PAYLOAD {
            return mended;
        }
        let mut payload = mended.payload().to_vec();
        payload.resize(32 + usize::try_from(right).unwrap(), 0);
        mended.with_payload(&payload)
    };
    // image_data_len goes along if it was made for the wrong value, as 32 bits hold it.
    let with = |value: u64| {
        let is_made_for_it = frame.get(RESPONSE, "image_data_len") == product(frame) & 0xFFFF_FFFF;
        let mended = frame.with(RESPONSE, field, value);
        if is_made_for_it { counted(mended) } else { mended }
    };
    match (because, field) {
        ("W1-FRM-006", _) => vec![frame.with(&[], "magic", 0x5745_5645)],
        ("W1-FRM-007", _) => {
            let len = match frame.get(&[], "msg_type") {
                0xFF => 18 + frame.get(ERROR, "error_msg_len"),
                _ if frame.payload().len() >= 32 => 32 + frame.get(RESPONSE, "image_data_len"),
                _ => 32 + 64 * 64 * 3,
            };
            vec![frame.with(&[], "payload_len", len)]
        }
        ("W1-FRM-010", "version") => vec![frame.with(&[], "version", 1)],
        ("W1-FRM-010", _) => [2, 0xFF].map(|kind| frame.with(&[], "msg_type", kind)).to_vec(),
        ("W1-RSP-005", "status") => vec![frame.with(RESPONSE, field, 200)],
        ("W1-RSP-005", "image_data_len") => vec![counted(frame.clone())],
        ("W1-RSP-005", "channels") => [3, 4].map(with).to_vec(),
        ("W1-RSP-005", _) => [64, 2048].map(with).to_vec(),
        ("W1-RSP-006", _) => vec![frame.completed_by(&response())],
        ("W1-ERR-007", _) => vec![frame.with(ERROR, field, 400)],
        ("W1-ERR-008", _) => {
            vec![frame.completed_by(&Draft::error(1, 3, &vec![b'x'; usize::from(u16::MAX)]))]
        }
        other => panic!("how is {other:?} mended?"),
    }
}

/// A refusal: where it stands in the order of checks, and of what.
type Refusal = (u8, String);

fn refusal(expectation: &Expectation) -> Option<Refusal> {
    match expectation {
        Expectation::Answer { step, field, .. } => Some((*step, field.clone())),
        Expectation::Close { because, field } => Some((0, format!("{because} {field}"))),
        _ => None,
    }
}

/// The refused frames of a vector: why they are refused, and what they could have been. What doesn't begin like a
/// frame is none.
fn refused(vector: &Vector) -> Vec<(Refusal, Vec<Frame>)> {
    let mut frames: Vec<Option<Frame>> = Vec::new();
    for Segment { field, bytes } in vector.segments() {
        match (field.as_str(), frames.last_mut()) {
            ("magic", _) => frames.push(Some(Frame(bytes))),
            ("junk", _) => frames.push(None),
            (_, Some(Some(frame))) => frame.0.extend(bytes),
            (field, _) => panic!("{}: {field} is in no frame", vector.name),
        }
    }
    let mended = |(frame, expectation): (Option<Frame>, Expectation)| {
        let (frame, refusal) = (frame?, refusal(&expectation)?);
        let mended = match &expectation {
            Expectation::Answer { step, field, .. } => mended_request(&frame, *step, field),
            Expectation::Close { because, field } => mended_answer(&frame, because, field),
            _ => return None,
        };
        Some((refusal, mended))
    };
    frames.into_iter().zip(vector.expectations()).filter_map(mended).collect()
}

/// Why a frame is still refused; `None` if it is taken, or waited for. An image that leaves bytes over is not taken:
/// those belong to another one.
fn still_refused(receiver: Receiver, frame: &Frame) -> Option<Refusal> {
    match read(receiver, &frame.0).0.first()? {
        Expectation::Response { trailing, .. } if *trailing > 0 => Some((0, "trailing".to_owned())),
        expectation => refusal(expectation),
    }
}

#[test]
fn a_refused_frame_has_one_defect() {
    let (mut problems, mut several) = (Vec::new(), BTreeSet::new());
    let mut tried = 0;
    for vector in VECTORS.iter().filter(|vector| !is_of_order(vector)) {
        for (refusal, mended) in refused(vector) {
            tried += 1;
            let others: Vec<_> = mended.iter().map(|frame| still_refused(vector.receiver(), frame)).collect();
            if others.iter().any(Option::is_none) {
                continue;
            }
            several.insert(vector.name.as_str());
            if !SEVERAL.iter().any(|(name, _)| *name == vector.name) {
                problems.push(format!("{}: {refusal:?}, mended: {others:?}", vector.name));
            }
        }
    }
    assert!(problems.is_empty(), "{} of {tried}:\n{}", problems.len(), problems.join("\n"));
    assert!(tried > 300, "only {tried} refused frames were found");
    for (name, _) in SEVERAL {
        assert!(several.contains(name), "{name} has one defect, and need not be excepted");
    }
}

/// The checks of a request in their order (section 7), each with its field.
fn checks() -> Vec<Refusal> {
    let encoders = ["clip_l", "clip_g", "t5"];
    let single = [
        (1, "magic"),
        (2, "payload_len"),
        (3, "version"),
        (4, "msg_type"),
        (5, "payload_len"),
        (6, "model_id"),
        (7, "payload_len"),
        (8, "width"),
        (8, "height"),
        (9, "steps"),
        (10, "cfg_scale"),
    ]
    .map(|(step, field)| (step, field.to_owned()));
    let of_each =
        |step, ending: &'static str| encoders.map(move |encoder| (step, format!("{encoder}{ending}")));
    single
        .into_iter()
        .chain(of_each(11, "_length"))
        .chain([(12, "payload_len".to_owned())])
        .chain(of_each(13, "_offset"))
        .chain(of_each(14, ""))
        .chain(of_each(15, ""))
        .collect()
}

#[test]
fn each_check_and_the_next_have_a_frame_in_which_both_fail() {
    let checks = checks();
    let place = |refusal: &Refusal| checks.iter().position(|known| known == refusal).expect("a check");
    let mut pairs = BTreeSet::new();
    for vector in VECTORS.iter().filter(|vector| is_of_order(vector)) {
        for (first, mended) in refused(vector) {
            let after = mended.iter().map(|frame| still_refused(vector.receiver(), frame));
            let mut after: Vec<_> = after.filter(|next| next.as_ref() != Some(&first)).collect();
            let next = after.pop().flatten().unwrap_or_else(|| panic!("{}: {first:?} alone", vector.name));
            assert!(after.iter().all(|other| other.as_ref() == Some(&next)), "{}: {after:?}", vector.name);
            if vector.receiver() == Receiver::Server {
                assert!(place(&next) > place(&first), "{}: {next:?} after {first:?}", vector.name);
                pairs.insert((place(&first), place(&next)));
            }
        }
    }
    let missing: Vec<_> = checks
        .windows(2)
        .enumerate()
        .filter(|(at, _)| !pairs.contains(&(*at, at + 1)))
        .map(|(_, pair)| format!("{:?} before {:?}", pair[0], pair[1]))
        .collect();
    assert!(missing.is_empty(), "no vector has\n{}", missing.join("\n"));
}
