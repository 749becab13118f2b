//! What holds for every message and every stream, tried with random ones.

use proptest::collection::vec;
use proptest::prelude::*;
use weave_core::error::{self, ErrorCode};
use weave_core::frame::{Arrived, Deframer, FrameError, Split, split};
use weave_core::limits::{
    HEADER_LEN, MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD,
    REQUEST_FIXED_LEN,
};
use weave_core::request::{self, Params, Prompts, Request};
use weave_core::response::{ImageSize, ResponseHead};

fn side() -> impl Strategy<Value = u32> {
    (1..=32u32).prop_map(|n| n * 64)
}

fn params() -> impl Strategy<Value = Params> {
    (side(), side(), 1..=100u32, 0f32..=20.0, any::<u64>())
        .prop_map(|(width, height, steps, cfg_scale, seed)| Params { width, height, steps, cfg_scale, seed })
}

/// 1 to 2,048 bytes of UTF-8 without NUL.
fn prompt() -> impl Strategy<Value = String> {
    vec(any::<char>().prop_filter("no NUL", |c| *c != '\0'), 1..=512).prop_map(String::from_iter)
}

fn whole(bytes: &[u8], max_payload: u32) -> weave_core::frame::Frame<'_> {
    match split(bytes, max_payload) {
        Ok(Split::Frame(frame, [])) => frame,
        other => panic!("not one frame: {other:?}"),
    }
}

/// A request frame that is right up to its prompts, whose places and bytes are anybody's guess.
fn doubtful_request() -> impl Strategy<Value = Vec<u8>> {
    let region = (0..60u32, 0..30u32);
    (any::<u64>(), params(), [region.clone(), region.clone(), region], vec(any::<u8>(), 0..90)).prop_map(
        |(id, params, regions, data)| {
            let mut out = [0; MAX_REQUEST_FRAME];
            let request = Request { request_id: id, params, prompts: Prompts::same("x") };
            let mut bytes = request.emit(&mut out).unwrap()[..HEADER_LEN + REQUEST_FIXED_LEN].to_vec();
            for (i, (offset, length)) in regions.into_iter().enumerate() {
                bytes[52 + 8 * i..][..4].copy_from_slice(&offset.to_be_bytes());
                bytes[56 + 8 * i..][..4].copy_from_slice(&length.to_be_bytes());
            }
            // Mostly letters, so that many are accepted.
            bytes.extend(data.iter().map(|byte| if *byte < 250 { b'a' + byte % 26 } else { *byte }));
            let payload_len = u32::try_from(bytes.len() - HEADER_LEN).unwrap();
            bytes[8..12].copy_from_slice(&payload_len.to_be_bytes());
            bytes
        },
    )
}

/// Announced length and kept payload of each frame, how the stream failed, and whether it ended well.
type Outcome = (Vec<(u32, Vec<u8>)>, Option<FrameError>, bool);

/// The payload, or what was kept of it.
fn kept<'a>(arrived: &Arrived<'a>) -> &'a [u8] {
    match arrived {
        Arrived::Whole(frame) => frame.payload(),
        Arrived::Skipped(skipped) => skipped.front(),
    }
}

/// What a deframer gives for a stream that comes in pieces of these sizes, taken in turn.
fn deframe(stream: &[u8], pieces: &[usize]) -> Outcome {
    let mut deframer = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
    let (mut frames, mut rest, mut pieces) = (Vec::new(), stream, pieces.iter().cycle());
    loop {
        match deframer.next_frame() {
            Ok(Some(arrived)) => frames.push((arrived.header().payload_len(), kept(&arrived).to_vec())),
            Err(error) => {
                // Whatever comes after an error changes nothing about it.
                let spare = deframer.spare();
                let n = spare.len().min(rest.len());
                spare[..n].copy_from_slice(&rest[..n]);
                deframer.filled(n);
                assert_eq!(deframer.next_frame().unwrap_err(), error);
                return (frames, Some(error), false);
            }
            Ok(None) if rest.is_empty() => return (frames, None, deframer.is_between_frames()),
            Ok(None) => {
                let spare = deframer.spare();
                let n = pieces.next().copied().unwrap_or(1).min(spare.len()).min(rest.len());
                spare[..n].copy_from_slice(&rest[..n]);
                deframer.filled(n);
                rest = &rest[n..];
            }
        }
    }
}

proptest! {
    #[test]
    fn a_request_that_is_emitted_is_parsed_to_the_same_values(
        id: u64, params in params(), texts in [prompt(), prompt(), prompt()]
    ) {
        let [clip_l, clip_g, t5] = &texts;
        let request = Request { request_id: id, params, prompts: Prompts::each(clip_l, clip_g, t5) };
        let mut out = [0xA5; MAX_REQUEST_FRAME];
        let bytes = request.emit(&mut out).unwrap();
        let frame = whole(bytes, MAX_SKIPPED_PAYLOAD);
        let parsed = request::parse(&frame).unwrap();
        prop_assert_eq!((parsed.request_id, parsed.params), (id, params));
        let prompts = parsed.prompts;
        prop_assert_eq!([prompts.clip_l(), prompts.clip_g(), prompts.t5()], [&**clip_l, clip_g, t5]);
    }

    #[test]
    fn a_request_that_is_accepted_is_emitted_to_the_same_bytes(bytes in doubtful_request()) {
        let frame = whole(&bytes, MAX_SKIPPED_PAYLOAD);
        if let Ok(request) = request::parse(&frame) {
            let mut out = [0xA5; MAX_REQUEST_FRAME];
            prop_assert_eq!(request.emit(&mut out).unwrap(), &bytes[..]);
        }
    }

    #[test]
    fn the_prompts_are_taken_exactly_if_they_are_utf8_without_nul(
        text in "[ -~]{1,80}", spoil in (any::<prop::sample::Index>(), any::<u8>()), start in 0..8u32
    ) {
        // Three equal ranges, and up to seven bytes before them that don't count.
        let mut data = vec![b'x'; start as usize];
        data.extend(text.as_bytes());
        let at = spoil.0.index(data.len());
        data[at] = spoil.1;
        let length = u32::try_from(text.len()).unwrap();
        let params = Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 };
        let mut out = [0; MAX_REQUEST_FRAME];
        let sent = Request { request_id: 1, params, prompts: Prompts::same("x") }.emit(&mut out).unwrap();
        let mut bytes = sent[..HEADER_LEN + 36].to_vec();
        bytes.extend([start.to_be_bytes(), length.to_be_bytes()].concat().repeat(3));
        bytes.extend(&data);
        bytes[8..12].copy_from_slice(&u32::try_from(REQUEST_FIXED_LEN + data.len()).unwrap().to_be_bytes());
        let prompt = &data[start as usize..];
        let is_right = std::str::from_utf8(prompt).is_ok() && !prompt.contains(&0);
        let frame = whole(&bytes, MAX_SKIPPED_PAYLOAD);
        let parsed = request::parse(&frame);
        prop_assert_eq!(parsed.is_ok(), is_right, "{:?}", parsed);
        if let Ok(request) = parsed {
            prop_assert_eq!(request.prompts.t5().as_bytes(), prompt);
        }
    }

    #[test]
    fn a_wrong_cfg_scale_is_shown_to_six_decimals(value in prop_oneof![20.000001f32..4.29e9, -4.29e9f32..-0.000001]) {
        let text = request::RequestError::CfgScale(value).to_string();
        let shown: f64 = text.strip_prefix("cfg_scale is ").unwrap().split(',').next().unwrap().parse().unwrap();
        prop_assert!((shown - f64::from(value)).abs() <= 0.000_000_500_1, "{value:e}: {text}");
    }

    #[test]
    fn any_bytes_give_a_value_in_range_or_an_error(mut bytes in doubtful_request(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..5)) {
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(Split::Frame(frame, _)) = split(&bytes, MAX_SKIPPED_PAYLOAD) {
            match request::parse(&frame) {
                Ok(request) => {
                    prop_assert!(request.params.check().is_ok());
                    prop_assert!(request.prompts.check().is_ok());
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }

    #[test]
    fn a_stream_gives_the_same_frames_however_it_is_cut(
        lens in vec(prop_oneof![0..200usize, 6190..6220usize, 6200..9000usize], 0..6),
        tail in vec(any::<u8>(), 0..40),
        pieces in vec(1..3000usize, 1..8),
    ) {
        let mut stream = Vec::new();
        for (id, len) in lens.iter().enumerate() {
            stream.extend(b"WEVE\x00\x01\x00\x01");
            stream.extend(u32::try_from(*len).unwrap().to_be_bytes());
            stream.extend([0; 4]);
            stream.extend((0..*len).map(|i| (i + id).to_le_bytes()[0]));
        }
        stream.extend(tail);
        let in_one = deframe(&stream, &[usize::MAX]);
        prop_assert!(in_one.0.len() >= lens.len());
        prop_assert_eq!(&deframe(&stream, &pieces), &in_one);
        prop_assert_eq!(&deframe(&stream, &[1]), &in_one);
    }

    #[test]
    fn a_response_head_that_is_emitted_is_parsed_to_the_same_values(
        request_id: u64, generation_time_ms: u32, width in side(), height in side(), channels in 3..=4u32
    ) {
        let image = ImageSize::new(width, height, channels).unwrap();
        let head = ResponseHead { request_id, generation_time_ms, image };
        let bytes = head.emit();
        let (header, fields) = bytes.split_first_chunk().unwrap();
        let header = weave_core::frame::Header::parse(header, MAX_RESPONSE_PAYLOAD).unwrap();
        prop_assert_eq!(header.payload_len(), width * height * channels + 32);
        prop_assert_eq!(ResponseHead::parse(header, fields.try_into().unwrap()), Ok((head, 0)));
    }

    #[test]
    fn an_error_that_is_emitted_is_parsed_to_the_same_values(id: u64, code: u32, text in ".{0,300}") {
        let code = ErrorCode::from_wire(code);
        let mut out = [0; MAX_ERROR_FRAME];
        let bytes = error::emit(id, code, &text, &mut out).unwrap();
        let frame = whole(bytes, MAX_RESPONSE_PAYLOAD);
        let parsed = error::parse(&frame).unwrap();
        prop_assert_eq!((parsed.request_id, parsed.code, parsed.status), (id, code, code.status()));
        prop_assert!(text.as_bytes().starts_with(parsed.message));
        prop_assert!(text.len() <= 255 && parsed.message.len() == text.len() || parsed.message.len() > 251);
    }
}
