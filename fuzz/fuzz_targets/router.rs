//! libFuzzer's program for [`weave_fuzz::router`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_fuzz::router(data));
