//! stub
use crate::case::{Failure, Remark};
#[derive(Clone, Copy)]
pub struct ClientCase;
