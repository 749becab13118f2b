//! libFuzzer's program for [`weave_fuzz::request`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_fuzz::request(data));
