//! The vectors of `spec/vectors`: each is taken apart and emitted again to the same bytes.

use std::path::Path;

use weave_core::error::{self, ErrorCode, Status};
use weave_core::frame::{Frame, Header, Kind, Split, split};
use weave_core::limits::{MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, RESPONSE_HEAD_LEN};
use weave_core::request::{self, Params};
use weave_core::response::{Channels, ResponseHead};

fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/vectors").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines()
        .flat_map(|line| line.split('#').next().unwrap_or("").split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

fn whole_frame(bytes: &[u8]) -> Frame<'_> {
    match split(bytes, MAX_RESPONSE_PAYLOAD) {
        Ok(Split::Frame(frame, [])) => frame,
        other => panic!("not exactly one frame: {other:?}"),
    }
}

#[test]
fn the_118_byte_request() {
    let bytes = vector("request-example.hex");
    assert_eq!(bytes.len(), 118);
    let request = request::parse(&whole_frame(&bytes)).unwrap();
    assert_eq!(request.request_id, 1);
    assert_eq!(request.params, Params { width: 512, height: 512, steps: 28, cfg_scale: 7.0, seed: 0 });
    let prompts = request.prompts;
    assert_eq!([prompts.clip_l(), prompts.clip_g(), prompts.t5()], ["a cat in space"; 3]);

    let mut out = [0xA5; MAX_REQUEST_FRAME];
    assert_eq!(request.emit(&mut out).unwrap(), bytes);
    // And from the values alone, without the layout that was received.
    let made = request::Request { prompts: request::Prompts::same("a cat in space"), ..request };
    out.fill(0xA5);
    assert_eq!(made.emit(&mut out).unwrap(), bytes);
}

#[test]
fn the_48_byte_response_head() {
    let bytes = vector("response-head-example.hex");
    let bytes: &[u8; RESPONSE_HEAD_LEN] = bytes.as_slice().try_into().unwrap();
    let (header, fields) = bytes.split_first_chunk::<16>().unwrap();
    let header = Header::parse(header, MAX_RESPONSE_PAYLOAD).unwrap();
    assert_eq!((header.version(), header.kind(), header.payload_len()), (1, Kind::Response, 786_464));
    let (head, trailing) = ResponseHead::parse(header, fields.try_into().unwrap()).unwrap();
    assert_eq!((head.request_id, head.generation_time_ms, trailing), (1, 10_000, 0));
    assert_eq!((head.image.width(), head.image.height()), (512, 512));
    assert_eq!((head.image.channels(), head.image.data_len()), (Channels::Rgb, 786_432));
    assert_eq!(&head.emit(), bytes);
}

#[test]
fn the_54_byte_error() {
    let bytes = vector("error-example.hex");
    assert_eq!(bytes.len(), 54);
    let error = error::parse(&whole_frame(&bytes)).unwrap();
    assert_eq!(
        (error.request_id, error.status, error.code, error.message),
        (1, Status::ClientError, ErrorCode::InvalidModelId, b"unsupported model ID".as_slice())
    );
    let mut out = [0xA5; 64];
    assert_eq!(error::emit(1, error.code, error.text(), &mut out).unwrap(), bytes);
}
