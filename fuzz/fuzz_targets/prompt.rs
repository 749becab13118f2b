//! libFuzzer's program for [`weave_fuzz::prompt`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_fuzz::prompt(data));
