//! Compiles the protos with protox: no protoc needed.

use std::error::Error;

const PROTO_DIR: &str = "../../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_DIR}");
    let files = protox::compile(["payments/v1/payments.proto"], [PROTO_DIR])?;
    let mut config = prost_build::Config::new();
    // The gateway's options; a worker has no use for them.
    config.extern_path(".antiphon.v1", "::antiphon_options_are_not_compiled");
    config.compile_fds(files)?;
    Ok(())
}
