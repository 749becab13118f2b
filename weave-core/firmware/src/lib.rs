//! How a firmware begins, prints and ends on a Cortex-M4 board as qemu-system-arm has it, which talks by
//! semihosting; and what happens if it panics.

#![no_std]

mod cortex_m;

pub use cortex_m::{exit, print, stack_used};

/// Says so and ends with a status that is a failure.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    print("panicked\n0 passed, 1 failed\n");
    exit(false)
}

/// Prints a number.
pub fn print_number(mut number: u32) {
    let mut digits = [0; 10];
    let mut rest = digits.as_mut_slice();
    let mut len = 0usize;
    while let Some((digit, before)) = rest.split_last_mut() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        rest = before;
        len += 1;
        if number == 0 {
            break;
        }
    }
    let start = digits.len().saturating_sub(len);
    print(digits.get(start..).and_then(|digits| core::str::from_utf8(digits).ok()).unwrap_or("?"));
}
