//! libFuzzer's program for [`weave_fuzz::worker_link`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_fuzz::worker_link(data));
