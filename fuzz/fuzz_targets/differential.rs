//! libFuzzer's program for [`weave_fuzz::differential`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_fuzz::differential(data));
