//! Builds the C implementation, which is one of those that `differential` compares.

fn main() {
    let c = "../conformance/implementations/c";
    println!("cargo:rerun-if-changed={c}/weave.c");
    println!("cargo:rerun-if-changed={c}/weave.h");
    println!("cargo:rerun-if-changed=src/outcomes.c");
    let mut build = cc::Build::new();
    build.include(c).file(format!("{c}/weave.c")).file("src/outcomes.c").std("c99").warnings(true);
    // Under a sanitizer the C code has one too. Undefined behaviour traps, which takes no other run-time library.
    if std::env::var("CARGO_CFG_SANITIZE").is_ok_and(|sanitizers| sanitizers.contains("address")) {
        build.flag("-fsanitize=address,undefined").flag("-fsanitize-undefined-trap-on-error");
    }
    build.compile("weave_c");
}
