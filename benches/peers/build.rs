//! Cap'n Proto's code for `message.capnp`; `.ci/need bench` installs its compiler.

fn main() {
    capnpc::CompilerCommand::new().file("message.capnp").run().expect("the compiler capnp");
}
