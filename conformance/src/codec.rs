//! stub
#[derive(Clone, Copy)]
pub struct CodecCase;
