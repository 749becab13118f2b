//! Has the program find the engine's shared libraries where the build found them: a toolkit in a home, or an engine
//! that somebody else has built. Cargo lets only this package say so, for its own programs.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // From sdcpp-sys, if that is part of this build.
    for folder in std::env::var("DEP_SDCPP_RPATH").iter().flat_map(|folders| folders.split(':')) {
        if !folder.is_empty() {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        }
    }
}
