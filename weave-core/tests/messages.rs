//! What each message accepts and refuses, at every boundary and in the protocol's order.

use weave_core::NoRoom;
use weave_core::error::{self, ErrorCode, ErrorParseError, Status};
use weave_core::frame::{FrameError, Split, split};
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD};
use weave_core::request::{self, EmitError, Encoder, Params, Prompts, Request, RequestError};
use weave_core::response::{self, ImageSize, ResponseError, ResponseHead};

/// The specification has a requirement of this id.
fn assert_is_required(id: &str) {
    let spec = include_str!("../../spec/weave-v1.md");
    assert!(spec.contains(&format!("- **{id}** ")), "{id}");
}

/// A request frame that a test can spoil. Offsets are those of the frame, header included.
struct Wire(Vec<u8>);

const VERSION: usize = 4;
const TYPE: usize = 6;
const PAYLOAD_LEN: usize = 8;
const MODEL: usize = 24;
const WIDTH: usize = 28;
const HEIGHT: usize = 32;
const STEPS: usize = 36;
const CFG: usize = 40;
const CLIP_L: usize = 52;
const CLIP_G: usize = 60;
const T5: usize = 68;
const DATA: usize = 76;

impl Wire {
    fn good() -> Self {
        let params = Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 3 };
        let mut out = [0; MAX_REQUEST_FRAME];
        let request = Request { request_id: 0x0102_0304_0506_0708, params, prompts: Prompts::same("abc") };
        Self(request.emit(&mut out).unwrap().to_vec())
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn u32(self, at: usize, value: u32) -> Self {
        self.with(at, &value.to_be_bytes())
    }

    /// The payload gets another length, in the header and in fact.
    fn payload(mut self, len: usize) -> Self {
        self.0.resize(16 + len, b'x');
        self.u32(PAYLOAD_LEN, len.try_into().unwrap())
    }

    fn parse(&self) -> Result<Request<'_>, RequestError> {
        let Ok(Split::Frame(frame, [])) = split(&self.0, MAX_SKIPPED_PAYLOAD) else { panic!("no frame") };
        request::parse(&frame)
    }

    fn refused(&self) -> RequestError {
        let error = self.parse().unwrap_err();
        let text = error.to_string();
        assert!(text.len() <= 255, "{text}");
        assert_is_required(error.requirement());
        assert!(!text.contains("abc"), "the prompt leaked: {text}");
        error
    }
}

#[test]
fn sides_steps_and_guidance_are_taken_up_to_their_limits() {
    for side in [64, 128, 1984, 2048] {
        assert_eq!(Wire::good().u32(WIDTH, side).parse().unwrap().params.width, side);
        assert_eq!(Wire::good().u32(HEIGHT, side).parse().unwrap().params.height, side);
    }
    for side in [0, 1, 63, 65, 96, 2047, 2049, 2112, u32::MAX] {
        assert_eq!(Wire::good().u32(WIDTH, side).refused(), RequestError::Width(side));
        assert_eq!(Wire::good().u32(HEIGHT, side).refused(), RequestError::Height(side));
    }
    for steps in [1, 2, 99, 100] {
        assert_eq!(Wire::good().u32(STEPS, steps).parse().unwrap().params.steps, steps);
    }
    for steps in [0, 101, u32::MAX] {
        assert_eq!(Wire::good().u32(STEPS, steps).refused(), RequestError::Steps(steps));
    }
    let cfg = |value: f32| Wire::good().with(CFG, &value.to_be_bytes());
    for value in [0.0, f32::MIN_POSITIVE, 7.0, 20.0] {
        assert_eq!(cfg(value).parse().unwrap().params.cfg_scale, value);
    }
    assert_eq!(cfg(-0.0).parse().unwrap().params.cfg_scale.to_bits(), 0);
    for value in [-f32::MIN_POSITIVE, 20.0f32.next_up(), f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        assert!(matches!(cfg(value).refused(), RequestError::CfgScale(_)), "{value}");
    }
}

#[test]
fn a_wrong_cfg_scale_is_shown_so_that_one_sees_why() {
    for (value, shown) in [
        (20.5, "20.5"),
        (-1.0, "-1.0"),
        (20.0f32.next_up(), "20.000002"),
        (20.015_625, "20.015625"),
        (99.999_99, "99.999992"),
        (8_388_607.5, "8388607.5"),
        (8_388_608.0, "8388608.0"),
        (16_777_216.0, "16777216.0"),
        (4_294_967_040.0, "4294967040.0"),
        (4_294_967_296.0, "more than 4294967295"),
        (f32::INFINITY, "more than 4294967295"),
        (f32::MIN, "less than -4294967295"),
        (-0.000_001, "-0.000001"),
        (-0.000_000_4, "barely below 0.0"),
        (-f32::from_bits(1), "barely below 0.0"),
        (-0.999_999_94, "-1.0"),
        (f32::NAN, "NaN"),
        (-f32::NAN, "NaN"),
    ] {
        let text = RequestError::CfgScale(value).to_string();
        assert_eq!(text, format!("cfg_scale is {shown}, must be 0.0 to 20.0"), "{value:e}");
    }
}

#[test]
fn prompts_are_taken_up_to_their_limits() {
    for (at, encoder) in [(CLIP_L, Encoder::ClipL), (CLIP_G, Encoder::ClipG), (T5, Encoder::T5)] {
        for length in [0, 2049, u32::MAX] {
            let refused = Wire::good().u32(at + 4, length).refused();
            assert_eq!(refused, RequestError::PromptLength { encoder, length });
        }
        // The last byte is still inside, one more is not; neither is what wraps around.
        assert!(Wire::good().u32(at, 6).parse().is_ok());
        for offset in [7, 9, 10, u32::MAX - 2, u32::MAX] {
            let refused = Wire::good().u32(at, offset).refused();
            assert_eq!(refused, RequestError::PromptRange { encoder, offset, length: 3, available: 9 });
        }
        let own = DATA + 3 * (at - CLIP_L) / 8;
        let refused = Wire::good().with(own + 1, &[0xFF]).refused();
        assert_eq!(refused, RequestError::PromptUtf8 { encoder, valid_up_to: 1 });
        let refused = Wire::good().with(own + 2, &[0]).refused();
        assert_eq!(refused, RequestError::PromptNul { encoder, at: 2 });
    }
    let longest = "x".repeat(2048);
    let mut out = [0; MAX_REQUEST_FRAME];
    let request = Request { prompts: Prompts::same(&longest), ..Wire::good().parse().unwrap() };
    let frame = request.emit(&mut out).unwrap();
    assert_eq!(frame.len(), 6220);
    assert_eq!(Wire(frame.to_vec()).parse().unwrap().prompts.t5(), longest);
    assert_eq!(Wire::good().payload(60 + 6145).refused(), RequestError::PromptDataLength(6145));
}

#[test]
fn one_copy_with_three_equal_ranges_is_a_request() {
    let wire = Wire::good().u32(CLIP_G, 0).u32(T5, 0).payload(63);
    let request = wire.parse().unwrap();
    assert_eq!(request.prompts.t5(), "abc");
    assert!(request.prompts.are_equal());
    let mut out = [0; MAX_REQUEST_FRAME];
    assert_eq!(request.emit(&mut out).unwrap(), wire.0, "a request comes out as it came in");
}

/// Each step of the order gets its own defect; with all of them present the first wins, and as the
/// defects are mended one by one from the front, each next one shows.
#[test]
fn the_first_failure_decides() {
    type Mend = fn(Wire) -> Wire;
    let order: [(ErrorCode, Mend); 10] = [
        (ErrorCode::UnsupportedVersion, |w| w.with(VERSION, &[0, 1])),
        (ErrorCode::UnsupportedType, |w| w.with(TYPE, &[0, 1])),
        (ErrorCode::InvalidModelId, |w| w.u32(MODEL, 0)),
        (ErrorCode::InvalidDimensions, |w| w.u32(WIDTH, 64)),
        (ErrorCode::InvalidDimensions, |w| w.u32(HEIGHT, 64)),
        (ErrorCode::InvalidSteps, |w| w.u32(STEPS, 1)),
        (ErrorCode::InvalidCfg, |w| w.u32(CFG, 0)),
        (ErrorCode::InvalidPrompt, |w| w.u32(CLIP_L + 4, 1).u32(CLIP_L, u32::MAX)),
        (ErrorCode::InvalidPrompt, |w| w.payload(60 + 9)),
        (ErrorCode::InvalidPrompt, |w| w.u32(CLIP_L, 0)),
    ];
    let mut wire = Wire::good()
        .with(VERSION, &[0, 2])
        .with(TYPE, &[0, 2])
        .u32(MODEL, 1)
        .u32(WIDTH, 65)
        .u32(HEIGHT, 65)
        .u32(STEPS, 0)
        .u32(CFG, f32::NAN.to_bits())
        .u32(CLIP_L + 4, 0)
        .payload(60 + 6145);
    let mut seen = Vec::new();
    for (code, mend) in order {
        let error = wire.refused();
        assert_eq!(error.code(), code, "{error}");
        assert!(!seen.contains(&error), "{error} was mended already");
        seen.push(error);
        wire = mend(wire);
    }
    assert!(wire.parse().is_ok());
}

#[test]
fn a_short_payload_is_malformed_and_keeps_its_id() {
    for len in 0..60u32 {
        let wire = Wire::good().payload(len as usize);
        let need = if len < 12 { 12 } else { 60 };
        assert_eq!(wire.refused(), RequestError::Short { payload_len: len, need });
        let Ok(Split::Frame(frame, _)) = split(&wire.0, MAX_SKIPPED_PAYLOAD) else { panic!() };
        assert_eq!(frame.request_id(), if len < 8 { 0 } else { 0x0102_0304_0506_0708 });
    }
    // Model before length: 12 bytes are enough to see that the model is wrong.
    assert_eq!(Wire::good().payload(12).u32(MODEL, 1).refused(), RequestError::ModelId(1));
}

#[test]
fn a_probe_is_refused_for_its_model_and_nothing_else() {
    let probe = Wire(request::probe(5).to_vec());
    assert_eq!(probe.refused(), RequestError::ModelId(u32::MAX));
    let Ok(Split::Frame(frame, [])) = split(&probe.0, MAX_SKIPPED_PAYLOAD) else { panic!() };
    assert_eq!(frame.request_id(), 5);
}

#[test]
fn what_cannot_be_sent_is_not_emitted() {
    let good = Wire::good();
    let request = good.parse().unwrap();
    let mut out = [0; MAX_REQUEST_FRAME];
    let bad = Request { params: Params { steps: 0, ..request.params }, ..request };
    assert_eq!(bad.emit(&mut out), Err(EmitError::Invalid(RequestError::Steps(0))));
    let bad = Request { prompts: Prompts::each("a", "", "c"), ..request };
    let reason = RequestError::PromptLength { encoder: Encoder::ClipG, length: 0 };
    assert_eq!(bad.emit(&mut out), Err(EmitError::Invalid(reason)));
    let bad = Request { prompts: Prompts::each("a", "b", "c\0"), ..request };
    let reason = RequestError::PromptNul { encoder: Encoder::T5, at: 1 };
    assert_eq!(bad.emit(&mut out), Err(EmitError::Invalid(reason)));
    assert_eq!(request.emit(&mut out[..84]), Err(EmitError::NoRoom(NoRoom { need: 85, have: 84 })));
}

#[test]
fn a_stream_is_given_up_for_its_magic_or_its_length_only() {
    let wire = Wire::good().with(0, b"HTTP");
    assert_eq!(split(&wire.0, MAX_SKIPPED_PAYLOAD).unwrap_err(), FrameError::Magic(*b"HTTP"));
    let wire = Wire::good().u32(PAYLOAD_LEN, 10_485_761);
    let error = split(&wire.0, MAX_SKIPPED_PAYLOAD).unwrap_err();
    assert_eq!(error, FrameError::TooLarge { payload_len: 10_485_761, max_payload: 10_485_760 });
    assert_eq!(error.code(), ErrorCode::TooLarge);
    let wire = Wire::good().u32(PAYLOAD_LEN, 10_485_760);
    assert!(matches!(split(&wire.0, MAX_SKIPPED_PAYLOAD), Ok(Split::Need(n)) if n == 10_485_760 - 69));
}

#[test]
fn responses_that_contradict_themselves_are_not_believed() {
    let head =
        ResponseHead { request_id: 9, generation_time_ms: 5, image: ImageSize::new(64, 64, 3).unwrap() };
    let mut frame = head.emit().to_vec();
    frame.resize(48 + 64 * 64 * 3, 7);
    let parse = |bytes: &[u8]| match split(bytes, MAX_RESPONSE_PAYLOAD) {
        Ok(Split::Frame(frame, [])) => response::parse(&frame).map(|r| (r.head, r.pixels.len())),
        other => panic!("{other:?}"),
    };
    assert_eq!(parse(&frame), Ok((head, 12_288)));
    let spoil = |at: usize, value: u32| {
        let mut spoilt = frame.clone();
        spoilt[at..at + 4].copy_from_slice(&value.to_be_bytes());
        parse(&spoilt).unwrap_err()
    };
    assert_eq!(spoil(24, 400), ResponseError::Status(400));
    assert_eq!(spoil(32, 100), ResponseError::Side { name: "image_width", side: 100 });
    assert_eq!(spoil(36, 4096), ResponseError::Side { name: "image_height", side: 4096 });
    assert_eq!(spoil(40, 2), ResponseError::Channels(2));
    assert_eq!(spoil(44, 12_287), ResponseError::DataLen { is: 12_287, must_be: 12_288 });
    // Large enough to wrap around 32 bits if it were multiplied carelessly.
    assert_eq!(spoil(32, 0x8000_0000), ResponseError::Side { name: "image_width", side: 0x8000_0000 });

    let short = &frame[..frame.len() - 1];
    let mut short = short.to_vec();
    short[8..12].copy_from_slice(&(32u32 + 12_287).to_be_bytes());
    assert_eq!(parse(&short), Err(ResponseError::Short { payload_len: 12_319, need: 12_320 }));
    let mut longer = frame.clone();
    longer.extend([1, 2, 3]);
    longer[8..12].copy_from_slice(&(32u32 + 12_291).to_be_bytes());
    assert_eq!(parse(&longer), Ok((head, 12_288)), "appended fields are skipped");
}

#[test]
fn errors_go_by_their_status_when_the_code_is_new() {
    let mut out = [0; MAX_ERROR_FRAME];
    let mut frame = error::emit(7, ErrorCode::Busy, "later", &mut out).unwrap().to_vec();
    let parse = |bytes: &[u8]| match split(bytes, MAX_RESPONSE_PAYLOAD) {
        Ok(Split::Frame(frame, [])) => error::parse(&frame).map(|e| (e.status, e.code)),
        other => panic!("{other:?}"),
    };
    frame[28..32].copy_from_slice(&77u32.to_be_bytes());
    assert_eq!(parse(&frame), Ok((Status::ServerError, ErrorCode::Unknown(77))));
    frame[24..28].copy_from_slice(&200u32.to_be_bytes());
    assert_eq!(parse(&frame), Err(ErrorParseError::Status(200)));
    frame[24..28].copy_from_slice(&400u32.to_be_bytes());
    frame[33] = 6;
    assert_eq!(parse(&frame), Err(ErrorParseError::Short { payload_len: 23 }));
}

#[test]
fn every_code_survives_the_wire_and_long_messages_are_cut_between_characters() {
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_wire(code.to_wire()), *code);
    }
    let mut out = [0; MAX_ERROR_FRAME];
    let long = "é".repeat(200);
    let frame = error::emit(1, ErrorCode::Internal, &long, &mut out).unwrap();
    let Ok(Split::Frame(frame, [])) = split(frame, MAX_RESPONSE_PAYLOAD) else { panic!() };
    let message = error::parse(&frame).unwrap().message;
    assert_eq!(message, &long.as_bytes()[..254]);
}

#[test]
fn a_peer_cannot_write_into_the_terminal() {
    let mut out = [0; MAX_ERROR_FRAME];
    let frame = error::emit(1, ErrorCode::Internal, "\x1b[2Jgone\u{9b} \u{202e}and back", &mut out).unwrap();
    let Ok(Split::Frame(frame, [])) = split(frame, MAX_RESPONSE_PAYLOAD) else { panic!() };
    let text = error::parse(&frame).unwrap().text().to_string();
    assert_eq!(text, "\\u{1b}[2Jgone\\u{9b} \\u{202e}and back");
}
