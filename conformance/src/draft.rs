//! What the suite sends: frames, field by field, of which each can be made wrong, and the writes of a stream.

use crate::wire::{
    CODES, ERROR, Field, HEADER, MAGIC, REQUEST, RESPONSE, TYPE_ERROR, TYPE_REQUEST, TYPE_RESPONSE,
};

/// A piece of a stream: a field, or bytes that have another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The field's name.
    pub field: String,
    /// What is sent of it.
    pub bytes: Vec<u8>,
}

/// A frame under construction: every field can be made wrong.
#[derive(Clone, Debug)]
pub struct Draft {
    header: Vec<(Field, u64)>,
    payload: Vec<(Field, u64)>,
    tail: Vec<Segment>,
    /// Whether payload_len is what it has to be.
    counts: bool,
}

impl Draft {
    fn new(msg_type: u64, table: &[Field]) -> Self {
        let values = |table: &[Field]| table.iter().map(|field| (*field, 0)).collect();
        let draft = Self { header: values(HEADER), payload: values(table), tail: Vec::new(), counts: true };
        draft.set("magic", MAGIC.into()).set("version", 1).set("msg_type", msg_type)
    }

    /// A frame of any type whose payload is just bytes.
    #[must_use]
    pub fn other(msg_type: u64, payload: &[u8]) -> Self {
        Self::new(msg_type, &[]).tail("payload", payload)
    }

    /// A request that can be served: 64×64 pixels, one step, three copies of a prompt.
    #[must_use]
    pub fn request(request_id: u64, prompt: &str) -> Self {
        let len = prompt.len() as u64;
        [("width", 64), ("height", 64), ("steps", 1), ("cfg_scale", 1.0f32.to_bits().into()), ("seed", 3)]
            .into_iter()
            .chain([("clip_l_length", len), ("clip_g_offset", len), ("clip_g_length", len)])
            .chain([("t5_offset", 2 * len), ("t5_length", len), ("request_id", request_id)])
            .fold(Self::new(TYPE_REQUEST, REQUEST), |draft, (name, value)| draft.set(name, value))
            .tail("prompt_data", prompt.repeat(3).as_bytes())
    }

    /// A request for a model that no server has.
    #[must_use]
    pub fn unknown_model(request_id: u64) -> Self {
        Self::new(TYPE_REQUEST, &REQUEST[..2]).set("request_id", request_id).set("model_id", u32::MAX.into())
    }

    /// A response. `image_data` is what is sent, image_data_len what `width` and `height` make of RGB.
    #[must_use]
    pub fn response(request_id: u64, width: u64, height: u64, image_data: &[u8]) -> Self {
        [("request_id", request_id), ("status", 200), ("generation_time_ms", 12), ("image_width", width)]
            .into_iter()
            .chain([("image_height", height), ("channels", 3), ("image_data_len", width * height * 3)])
            .fold(Self::new(TYPE_RESPONSE, RESPONSE), |draft, (name, value)| draft.set(name, value))
            .tail("image_data", image_data)
    }

    /// An error with the status that belongs to its code; 500 for an unknown one.
    #[must_use]
    pub fn error(request_id: u64, code: u64, message: &[u8]) -> Self {
        let status = CODES.iter().find(|(number, ..)| *number == code).map_or(500, |(.., status)| *status);
        [
            ("request_id", request_id),
            ("status", status),
            ("error_code", code),
            ("error_msg_len", message.len() as u64),
        ]
        .into_iter()
        .fold(Self::new(TYPE_ERROR, ERROR), |draft, (name, value)| draft.set(name, value))
        .tail("error_msg", message)
    }

    /// Changes a field. payload_len is from then on what it is set to.
    ///
    /// # Panics
    /// If the frame has no such field.
    #[must_use]
    pub fn set(mut self, name: &str, value: u64) -> Self {
        self.counts &= name != "payload_len";
        let place = self.header.iter_mut().chain(&mut self.payload).find(|(field, _)| field.name == name);
        place.unwrap_or_else(|| panic!("no field {name}")).1 = value;
        self
    }

    /// Appends bytes to the payload.
    #[must_use]
    pub fn tail(mut self, field: &str, bytes: &[u8]) -> Self {
        if !bytes.is_empty() {
            self.tail.push(Segment { field: field.to_owned(), bytes: bytes.to_vec() });
        }
        self
    }

    /// The frame, field by field.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let tail: usize = self.tail.iter().map(|segment| segment.bytes.len()).sum();
        let payload: usize = self.payload.iter().map(|(field, _)| field.size).sum();
        let segment = |(field, value): &(Field, u64)| {
            let value = match field.name {
                "payload_len" if self.counts => (payload + tail) as u64,
                _ => *value,
            };
            Segment { field: field.name.to_owned(), bytes: value.to_be_bytes()[8 - field.size..].to_vec() }
        };
        self.header.iter().chain(&self.payload).map(segment).chain(self.tail.iter().cloned()).collect()
    }

    /// The frame in one piece.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.segments().into_iter().flat_map(|segment| segment.bytes).collect()
    }
}

/// The pixel bytes of the checkerboard: blocks of 8×8 pixels, 0x00 and 0xFF in turn, 0x00 first.
#[must_use]
pub fn checkerboard(width: u64, height: u64, channels: u64) -> Vec<u8> {
    let row = |odd: bool| -> Vec<u8> {
        let pixel = |x: u64| if (x / 8 % 2 == 1) == odd { 0x00 } else { 0xFF };
        (0..width).flat_map(|x| (0..channels).map(move |_| pixel(x))).collect()
    };
    let rows = [row(false), row(true)];
    (0..height).flat_map(|y| rows[usize::from(y / 8 % 2 == 1)].iter().copied()).collect()
}

/// How a stream is cut into writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As few as the system takes.
    Whole,
    /// One for each field.
    Fields,
    /// One for each byte of the beginning and of the end; what lies between, if it is long, in pieces.
    Bytes,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Whole, Self::Fields, Self::Bytes];

    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Fields => "a write for each field",
            Self::Bytes => "one byte a write",
        }
    }

    /// The writes.
    #[must_use]
    pub fn writes(self, segments: &[Segment]) -> Vec<Vec<u8>> {
        const ENDS: usize = 1024;
        const PIECE: usize = 4093;
        let all = || segments.iter().flat_map(|segment| segment.bytes.clone()).collect::<Vec<u8>>();
        match self {
            Self::Whole => vec![all()],
            Self::Fields => segments.iter().map(|segment| segment.bytes.clone()).collect(),
            Self::Bytes => {
                let all = all();
                let single = |bytes: &[u8]| bytes.iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
                if all.len() <= 4 * ENDS {
                    return single(&all);
                }
                let (begin, rest) = all.split_at(ENDS);
                let (middle, end) = rest.split_at(rest.len() - ENDS);
                [single(begin), middle.chunks(PIECE).map(<[u8]>::to_vec).collect(), single(end)].concat()
            }
        }
    }
}
