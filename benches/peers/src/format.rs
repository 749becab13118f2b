//! The same two messages in each format, with what its library offers for speed: buffers are used again, and what it
//! can lend instead of copying is lent.

use std::borrow::Cow;
use std::hint::black_box;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flatbuffers::{
    FlatBufferBuilder, Follow, ForwardsUOffset, InvalidFlatbuffer, Table, Vector, Verifiable, Verifier,
};
use prost::Message as _;
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use weave_core::frame::{Split, split};
use weave_core::limits::{MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD};

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod message_capnp {
    include!(concat!(env!("OUT_DIR"), "/message_capnp.rs"));
}
use message_capnp::{request as capnp_request, response as capnp_response};

pub const PROMPT: &str = "a cat in space";
pub const SIDE: u32 = 1024;

/// What would be written to a socket, piece by piece.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]);

/// A way to write and read the two messages.
pub struct Format {
    pub name: &'static str,
    pub encode_request: Box<dyn FnMut(Sink<'_>)>,
    /// Looks at every field.
    pub decode_request: fn(&Bytes),
    pub encode_response: Box<dyn FnMut(Sink<'_>)>,
    /// Looks at every field, and has the pixels as bytes.
    pub decode_response: fn(&Bytes),
}

/// All of them; `pixels` is the image.
pub fn all(pixels: &'static [u8]) -> Vec<Format> {
    vec![weave(pixels), protobuf(pixels), flatbuffers(pixels), capnp(pixels), msgpack(pixels), json(pixels)]
}

// ------------------------------------------------------------------------------------------- Weave

fn weave(pixels: &'static [u8]) -> Format {
    let (request, mut frame) = (weave_benches::request(), [0; MAX_REQUEST_FRAME]);
    Format {
        name: "Weave",
        encode_request: Box::new(move |sink| sink(request.emit(&mut frame).expect("a request"))),
        decode_request: |bytes| {
            let Ok(Split::Frame(frame, _)) = split(bytes, MAX_SKIPPED_PAYLOAD) else { panic!() };
            black_box(&weave_core::request::parse(&frame).expect("a request"));
        },
        encode_response: Box::new(move |sink| {
            sink(&weave_benches::response_head(SIDE).emit());
            sink(pixels);
        }),
        decode_response: |bytes| {
            let Ok(Split::Frame(frame, _)) = split(bytes, MAX_RESPONSE_PAYLOAD) else { panic!() };
            black_box(&weave_core::response::parse(&frame).expect("a response"));
        },
    }
}

// ---------------------------------------------------------------------------------------- Protobuf

#[derive(Clone, PartialEq, prost::Message)]
pub struct PbRequest {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    #[prost(uint32, tag = "2")]
    pub model_id: u32,
    #[prost(uint32, tag = "3")]
    pub width: u32,
    #[prost(uint32, tag = "4")]
    pub height: u32,
    #[prost(uint32, tag = "5")]
    pub steps: u32,
    #[prost(float, tag = "6")]
    pub cfg_scale: f32,
    #[prost(uint64, tag = "7")]
    pub seed: u64,
    #[prost(string, tag = "8")]
    pub clip_l: String,
    #[prost(string, tag = "9")]
    pub clip_g: String,
    #[prost(string, tag = "10")]
    pub t5: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PbResponse {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    #[prost(uint32, tag = "2")]
    pub status: u32,
    #[prost(uint32, tag = "3")]
    pub generation_time_ms: u32,
    #[prost(uint32, tag = "4")]
    pub width: u32,
    #[prost(uint32, tag = "5")]
    pub height: u32,
    #[prost(uint32, tag = "6")]
    pub channels: u32,
    #[prost(bytes = "bytes", tag = "7")]
    pub pixels: Bytes,
}

pub fn pb_request() -> PbRequest {
    PbRequest {
        request_id: 1,
        model_id: 0,
        width: SIDE,
        height: SIDE,
        steps: 28,
        cfg_scale: 7.0,
        seed: 42,
        clip_l: PROMPT.to_owned(),
        clip_g: PROMPT.to_owned(),
        t5: PROMPT.to_owned(),
    }
}

pub fn pb_response(pixels: Bytes) -> PbResponse {
    let (width, height) = (SIDE, SIDE);
    PbResponse { request_id: 1, status: 200, generation_time_ms: 1_500, width, height, channels: 3, pixels }
}

fn protobuf(pixels: &'static [u8]) -> Format {
    let (request, response) = (pb_request(), pb_response(Bytes::from_static(pixels)));
    let (mut small, mut large) = (Vec::new(), Vec::new());
    Format {
        name: "Protobuf (prost)",
        encode_request: Box::new(move |sink| {
            small.clear();
            request.encode(&mut small).expect("room");
            sink(&small);
        }),
        decode_request: |bytes| {
            black_box(&PbRequest::decode(bytes.clone()).expect("a request"));
        },
        encode_response: Box::new(move |sink| {
            large.clear();
            response.encode(&mut large).expect("room");
            sink(&large);
        }),
        decode_response: |bytes| {
            black_box(&PbResponse::decode(bytes.clone()).expect("a response"));
        },
    }
}

// ------------------------------------------------------------------------------------- FlatBuffers

/// Where the nth field of a table stands in its list of fields.
const fn field(n: u16) -> u16 {
    4 + 2 * n
}

struct FbRequest<'a>(Table<'a>);
struct FbResponse<'a>(Table<'a>);

impl<'a> Follow<'a> for FbRequest<'a> {
    type Inner = Self;
    unsafe fn follow(buf: &'a [u8], loc: usize) -> Self {
        // SAFETY: the caller's promise is the one that is asked for.
        Self(unsafe { Table::new(buf, loc) })
    }
}

impl<'a> Follow<'a> for FbResponse<'a> {
    type Inner = Self;
    unsafe fn follow(buf: &'a [u8], loc: usize) -> Self {
        // SAFETY: the caller's promise is the one that is asked for.
        Self(unsafe { Table::new(buf, loc) })
    }
}

impl Verifiable for FbRequest<'_> {
    fn run_verifier(v: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<u64>("request_id", field(0), true)?
            .visit_field::<u32>("model_id", field(1), false)?
            .visit_field::<u32>("width", field(2), true)?
            .visit_field::<u32>("height", field(3), true)?
            .visit_field::<u32>("steps", field(4), true)?
            .visit_field::<f32>("cfg_scale", field(5), true)?
            .visit_field::<u64>("seed", field(6), true)?
            .visit_field::<ForwardsUOffset<&str>>("clip_l", field(7), true)?
            .visit_field::<ForwardsUOffset<&str>>("clip_g", field(8), true)?
            .visit_field::<ForwardsUOffset<&str>>("t5", field(9), true)?
            .finish();
        Ok(())
    }
}

impl Verifiable for FbResponse<'_> {
    fn run_verifier(v: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        v.visit_table(pos)?
            .visit_field::<u64>("request_id", field(0), true)?
            .visit_field::<u32>("status", field(1), true)?
            .visit_field::<u32>("generation_time_ms", field(2), true)?
            .visit_field::<u32>("width", field(3), true)?
            .visit_field::<u32>("height", field(4), true)?
            .visit_field::<u32>("channels", field(5), true)?
            .visit_field::<ForwardsUOffset<Vector<'_, u8>>>("pixels", field(6), true)?
            .finish();
        Ok(())
    }
}

fn flatbuffers(pixels: &'static [u8]) -> Format {
    let (mut small, mut large) = (FlatBufferBuilder::new(), FlatBufferBuilder::new());
    Format {
        name: "FlatBuffers",
        encode_request: Box::new(move |sink| {
            small.reset();
            let texts = [(); 3].map(|()| small.create_string(PROMPT));
            let table = small.start_table();
            small.push_slot_always(field(0), 1_u64);
            small.push_slot(field(1), 0_u32, 0);
            for (n, value) in [(2, SIDE), (3, SIDE), (4, 28)] {
                small.push_slot_always(field(n), value);
            }
            small.push_slot_always(field(5), 7.0_f32);
            small.push_slot_always(field(6), 42_u64);
            for (n, text) in (7..).zip(texts) {
                small.push_slot_always(field(n), text);
            }
            let table = small.end_table(table);
            small.finish_minimal(table);
            sink(small.finished_data());
        }),
        decode_request: |bytes| {
            let FbRequest(table) = flatbuffers::root::<FbRequest<'_>>(bytes).expect("a request");
            // SAFETY: the verifier has seen fields of these types.
            unsafe {
                black_box(table.get::<u64>(field(0), None));
                black_box(table.get::<u32>(field(1), Some(0)));
                for n in 2..5 {
                    black_box(table.get::<u32>(field(n), None));
                }
                black_box(table.get::<f32>(field(5), None));
                black_box(table.get::<u64>(field(6), None));
                for n in 7..10 {
                    black_box(table.get::<ForwardsUOffset<&str>>(field(n), None));
                }
            }
        },
        encode_response: Box::new(move |sink| {
            large.reset();
            let pixels = large.create_vector(pixels);
            let table = large.start_table();
            large.push_slot_always(field(0), 1_u64);
            for (n, value) in (1..).zip([200, 1_500, SIDE, SIDE, 3]) {
                large.push_slot_always::<u32>(field(n), value);
            }
            large.push_slot_always(field(6), pixels);
            let table = large.end_table(table);
            large.finish_minimal(table);
            sink(large.finished_data());
        }),
        decode_response: |bytes| {
            let FbResponse(table) = flatbuffers::root::<FbResponse<'_>>(bytes).expect("a response");
            // SAFETY: the verifier has seen fields of these types.
            unsafe {
                black_box(table.get::<u64>(field(0), None));
                for n in 1..6 {
                    black_box(table.get::<u32>(field(n), None));
                }
                black_box(table.get::<ForwardsUOffset<Vector<'_, u8>>>(field(6), None).map(|v| v.bytes()));
            }
        },
    }
}

// ------------------------------------------------------------------------------------ Cap'n Proto

struct Written<'a>(Sink<'a>);

impl capnp::io::Write for Written<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> capnp::Result<()> {
        (self.0)(bytes);
        Ok(())
    }
}

fn capnp(pixels: &'static [u8]) -> Format {
    Format {
        name: "Cap'n Proto",
        encode_request: Box::new(|sink| {
            let mut message = capnp::message::Builder::new_default();
            let mut request = message.init_root::<capnp_request::Builder<'_>>();
            request.set_request_id(1);
            request.set_model_id(0);
            request.set_width(SIDE);
            request.set_height(SIDE);
            request.set_steps(28);
            request.set_cfg_scale(7.0);
            request.set_seed(42);
            request.set_clip_l(PROMPT);
            request.set_clip_g(PROMPT);
            request.set_t5(PROMPT);
            capnp::serialize::write_message(Written(sink), &message).expect("room");
        }),
        decode_request: |bytes| {
            let message = capnp::serialize::read_message_from_flat_slice(&mut &bytes[..], Default::default());
            let message = message.expect("a message");
            let request = message.get_root::<capnp_request::Reader<'_>>().expect("a request");
            black_box((request.get_request_id(), request.get_model_id(), request.get_seed()));
            black_box((
                request.get_width(),
                request.get_height(),
                request.get_steps(),
                request.get_cfg_scale(),
            ));
            for text in [request.get_clip_l(), request.get_clip_g(), request.get_t5()] {
                black_box(text.expect("text").to_str().expect("UTF-8"));
            }
        },
        encode_response: Box::new(move |sink| {
            let mut message = capnp::message::Builder::new_default();
            let mut response = message.init_root::<capnp_response::Builder<'_>>();
            response.set_request_id(1);
            response.set_status(200);
            response.set_generation_time_ms(1_500);
            response.set_width(SIDE);
            response.set_height(SIDE);
            response.set_channels(3);
            response.set_pixels(pixels);
            capnp::serialize::write_message(Written(sink), &message).expect("room");
        }),
        decode_response: |bytes| {
            let message = capnp::serialize::read_message_from_flat_slice(&mut &bytes[..], Default::default());
            let message = message.expect("a message");
            let response = message.get_root::<capnp_response::Reader<'_>>().expect("a response");
            black_box((response.get_request_id(), response.get_status(), response.get_generation_time_ms()));
            black_box((response.get_width(), response.get_height(), response.get_channels()));
            black_box(response.get_pixels().expect("pixels"));
        },
    }
}

// ------------------------------------------------------------------- MessagePack and JSON, by serde

#[derive(Serialize, Deserialize)]
pub struct SerdeRequest<'a> {
    pub request_id: u64,
    pub model_id: u32,
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    pub cfg_scale: f32,
    pub seed: u64,
    #[serde(borrow)]
    pub clip_l: Cow<'a, str>,
    #[serde(borrow)]
    pub clip_g: Cow<'a, str>,
    #[serde(borrow)]
    pub t5: Cow<'a, str>,
}

pub fn serde_request() -> SerdeRequest<'static> {
    let [clip_l, clip_g, t5] = [PROMPT; 3].map(Cow::Borrowed);
    let (width, height) = (SIDE, SIDE);
    SerdeRequest {
        request_id: 1,
        model_id: 0,
        width,
        height,
        steps: 28,
        cfg_scale: 7.0,
        seed: 42,
        clip_l,
        clip_g,
        t5,
    }
}

#[derive(Serialize, Deserialize)]
struct PackedResponse<'a> {
    request_id: u64,
    status: u32,
    generation_time_ms: u32,
    width: u32,
    height: u32,
    channels: u32,
    #[serde(with = "serde_bytes", borrow)]
    pixels: &'a [u8],
}

fn msgpack(pixels: &'static [u8]) -> Format {
    let (mut small, mut large) = (Vec::new(), Vec::new());
    Format {
        name: "MessagePack (rmp-serde)",
        encode_request: Box::new(move |sink| {
            small.clear();
            rmp_serde::encode::write(&mut small, &serde_request()).expect("room");
            sink(&small);
        }),
        decode_request: |bytes| {
            black_box(&rmp_serde::from_slice::<SerdeRequest<'_>>(bytes).expect("a request"));
        },
        encode_response: Box::new(move |sink| {
            let (width, height) = (SIDE, SIDE);
            let response = PackedResponse {
                request_id: 1,
                status: 200,
                generation_time_ms: 1_500,
                width,
                height,
                channels: 3,
                pixels,
            };
            large.clear();
            rmp_serde::encode::write(&mut large, &response).expect("room");
            sink(&large);
        }),
        decode_response: |bytes| {
            black_box(&rmp_serde::from_slice::<PackedResponse<'_>>(bytes).expect("a response"));
        },
    }
}

/// In JSON, with the pixels in base64.
#[derive(Serialize, Deserialize)]
pub struct JsonResponse<'a> {
    pub request_id: u64,
    pub status: u32,
    pub generation_time_ms: u32,
    pub width: u32,
    pub height: u32,
    pub channels: u32,
    #[serde(borrow)]
    pub pixels: Cow<'a, str>,
}

pub fn json_response(pixels: &[u8]) -> JsonResponse<'static> {
    JsonResponse {
        request_id: 1,
        status: 200,
        generation_time_ms: 1_500,
        width: SIDE,
        height: SIDE,
        channels: 3,
        pixels: BASE64_STANDARD.encode(pixels).into(),
    }
}

pub fn read_json_response(bytes: &[u8]) -> Vec<u8> {
    let response: JsonResponse<'_> = serde_json::from_slice(bytes).expect("a response");
    BASE64_STANDARD.decode(response.pixels.as_bytes()).expect("base64")
}

fn json(pixels: &'static [u8]) -> Format {
    let (mut small, mut large) = (Vec::new(), Vec::new());
    Format {
        name: "JSON, base64 (serde_json)",
        encode_request: Box::new(move |sink| {
            small.clear();
            serde_json::to_writer(&mut small, &serde_request()).expect("room");
            sink(&small);
        }),
        decode_request: |bytes| {
            black_box(&serde_json::from_slice::<SerdeRequest<'_>>(bytes).expect("a request"));
        },
        encode_response: Box::new(move |sink| {
            large.clear();
            serde_json::to_writer(&mut large, &json_response(pixels)).expect("room");
            sink(&large);
        }),
        decode_response: |bytes| {
            black_box(read_json_response(bytes));
        },
    }
}
