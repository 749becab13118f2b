//! A Cortex-M4 with an FPU: reset, semihosting and the stack.

use core::arch::{asm, global_asm};

// The processor loads its stack pointer and the address to start at from the first two words. The
// rest are faults, which end the program with a failure. FPU registers are used before anything
// else could switch the FPU on, so that is the first thing to do (CPACR: full access to CP10, CP11).
global_asm!(
    ".section .vector_table, \"a\"",
    ".word stack_top",
    ".word reset",
    ".rept 14",
    ".word fault",
    ".endr",
    ".section .text.reset, \"ax\"",
    ".global reset",
    ".type reset, %function",
    ".thumb_func",
    "reset:",
    "ldr r0, =0xE000ED88",
    "ldr r1, [r0]",
    "orr r1, r1, #0xF00000",
    "str r1, [r0]",
    "dsb",
    "isb",
    "bl firmware",
    "b {exit}",
    ".type fault, %function",
    ".thumb_func",
    "fault:",
    "movs r0, #0",
    "b {exit}",
    ".pool",
    exit = sym exit,
);

const SYS_WRITEC: u32 = 3;
const SYS_EXIT: u32 = 0x18;
const STOPPED_APPLICATION_EXIT: u32 = 0x20026;
const STOPPED_RUN_TIME_ERROR: u32 = 0x20023;

fn semihosting(operation: u32, argument: u32) {
    // SAFETY: the debugger (here QEMU) takes the operation in r0 and its argument in r1, gives a
    // result in r0 and touches nothing else but the memory that the argument names, which it reads.
    unsafe { asm!("bkpt 0xAB", inout("r0") operation => _, in("r1") argument, options(nostack)) }
}

/// Prints text on the debugger's console.
pub fn print(text: &str) {
    for byte in text.bytes() {
        semihosting(SYS_WRITEC, (&raw const byte).addr() as u32);
    }
}

/// Ends the program: 0 as exit status if `success`, else 1.
pub extern "C" fn exit(success: bool) -> ! {
    loop {
        semihosting(SYS_EXIT, if success { STOPPED_APPLICATION_EXIT } else { STOPPED_RUN_TIME_ERROR });
    }
}
const PAINT: u32 = 0x5AA5_C33C;

/// How many bytes of stack `work` used, its callees included: what lies below is painted first and
/// looked at afterwards.
#[inline(never)]
pub fn stack_used(work: &mut dyn FnMut()) -> u32 {
    let depth: u32;
    // SAFETY: writes only below the stack pointer, where nothing lives: there are no interrupts.
    // 16 KiB are far more than any codec function takes and far less than the stack has left.
    unsafe {
        asm!(
            "sub {low}, sp, #16384",
            "mov {at}, {low}",
            "2:",
            "str {paint}, [{at}], #4",
            "cmp {at}, sp",
            "bne 2b",
            low = out(reg) _,
            at = out(reg) _,
            paint = in(reg) PAINT,
        );
    }
    work();
    // SAFETY: reads the same memory, and stops at the stack pointer at the latest.
    unsafe {
        asm!(
            "sub {at}, sp, #16384",
            "2:",
            "cmp {at}, sp",
            "beq 3f",
            "ldr {word}, [{at}], #4",
            "cmp {word}, {paint}",
            "beq 2b",
            "sub {at}, {at}, #4",
            "3:",
            "sub {at}, sp, {at}",
            at = out(reg) depth,
            word = out(reg) _,
            paint = in(reg) PAINT,
            options(readonly),
        );
    }
    depth
}
