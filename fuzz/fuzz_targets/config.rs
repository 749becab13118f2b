//! libFuzzer's program for [`weave_fuzz::config`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_fuzz::config(data));
