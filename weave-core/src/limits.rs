//! Every number of Weave v1, once.
//!
//! Sizes are in bytes, sides in pixels. All of them are part of the wire contract: an
//! implementation in another language uses the same values.
//!
//! A payload's length is a `u32`, as payload_len is; the length of what stands in memory is a `usize`.

/// The first four bytes of every frame, "WEVE".
pub const MAGIC: [u8; 4] = *b"WEVE";
/// The protocol version that this crate speaks.
pub const VERSION: u16 = 1;
/// Length of the common header.
pub const HEADER_LEN: usize = 16;

/// The model id of Stable Diffusion 3.5, the only one in v1.
pub const MODEL_ID_SD35: u32 = 0;
/// Shortest payload of a request that says for which model it is: request_id (8) and model_id (4).
pub const MIN_PREFIX_PAYLOAD: u32 = 12;
/// Shortest payload of a request for SD 3.5 that has all of its fields: up to prompt_data.
pub const MIN_REQUEST_PAYLOAD: u32 = 60;
/// A request's payload starts with request_id (8) and model_id (4).
pub const REQUEST_PREFIX_LEN: usize = MIN_PREFIX_PAYLOAD as usize;
/// The SD 3.5 parameters that follow: four numbers, the seed, three (offset, length) pairs.
pub const REQUEST_PARAMS_LEN: usize = REQUEST_FIXED_LEN - REQUEST_PREFIX_LEN;
/// Payload bytes before prompt_data.
pub const REQUEST_FIXED_LEN: usize = MIN_REQUEST_PAYLOAD as usize;
/// Shortest prompt of one encoder.
pub const MIN_PROMPT_LEN: u32 = 1;
/// Longest prompt of one encoder, in bytes of UTF-8.
pub const MAX_PROMPT_LEN: u32 = 2048;
/// Longest prompt_data: three longest prompts.
pub const MAX_PROMPT_DATA_LEN: u32 = 3 * MAX_PROMPT_LEN;
/// Longest payload of a request that can be accepted.
pub const MAX_REQUEST_PAYLOAD: u32 = MIN_REQUEST_PAYLOAD + MAX_PROMPT_DATA_LEN;
/// Longest payload that a server skips to keep the connection; beyond it the stream is given up.
pub const MAX_SKIPPED_PAYLOAD: u32 = 10 * 1024 * 1024;
/// Longest frame of an acceptable request, header included.
pub const MAX_REQUEST_FRAME: usize = HEADER_LEN + MAX_REQUEST_PAYLOAD as usize;

/// Shortest payload of a response that has all of its fields: up to the pixels.
pub const MIN_RESPONSE_PAYLOAD: u32 = 32;
/// Payload bytes of a response before the pixels.
pub const RESPONSE_FIXED_LEN: usize = MIN_RESPONSE_PAYLOAD as usize;
/// A response up to its first pixel: header and fixed fields.
pub const RESPONSE_HEAD_LEN: usize = HEADER_LEN + RESPONSE_FIXED_LEN;
/// Longest payload of a response: 2048 × 2048 RGBA.
pub const MAX_RESPONSE_PAYLOAD: u32 = MIN_RESPONSE_PAYLOAD + MAX_SIDE * MAX_SIDE * 4;

/// Shortest payload of an error: without a message.
pub const MIN_ERROR_PAYLOAD: u32 = 18;
/// Payload bytes of an error before its message.
pub const ERROR_FIXED_LEN: usize = MIN_ERROR_PAYLOAD as usize;
/// Longest message that a sender puts into an error, in bytes of UTF-8.
pub const MAX_ERROR_MESSAGE_LEN: usize = 255;
/// Longest error frame that a sender makes, header included.
pub const MAX_ERROR_FRAME: usize = HEADER_LEN + ERROR_FIXED_LEN + MAX_ERROR_MESSAGE_LEN;

/// Smallest width and height.
pub const MIN_SIDE: u32 = 64;
/// Largest width and height.
pub const MAX_SIDE: u32 = 2048;
/// Width and height are multiples of this.
pub const SIDE_STEP: u32 = 64;
/// Fewest denoising steps.
pub const MIN_STEPS: u32 = 1;
/// Most denoising steps.
pub const MAX_STEPS: u32 = 100;
/// Smallest guidance scale.
pub const MIN_CFG_SCALE: f32 = 0.0;
/// Largest guidance scale.
pub const MAX_CFG_SCALE: f32 = 20.0;

/// Status of a response.
pub const STATUS_OK: u32 = 200;
/// Status of an error that the client can mend.
pub const STATUS_CLIENT_ERROR: u32 = 400;
/// Status of an error on the server's side.
pub const STATUS_SERVER_ERROR: u32 = 500;
