//! The system's allocator, with somebody who looks on.

#![allow(unreachable_pub, reason = "a part of each test program that uses it")]

use std::alloc::{GlobalAlloc, Layout, System};

/// To be a program's `#[global_allocator]`. What looks on must not allocate.
pub struct Watched {
    /// Told of what is taken.
    pub taken: fn(Layout),
    /// Told of what is given back.
    pub given_back: fn(Layout),
}

// SAFETY: hands everything on to the system's allocator as it came.
#[allow(unsafe_code, reason = "an allocator can't be written without")]
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        (self.taken)(layout);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        (self.given_back)(layout);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.dealloc(at, layout) }
    }
}
