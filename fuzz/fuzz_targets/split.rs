//! libFuzzer's program for [`weave_fuzz::split`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_fuzz::split(data));
