//! Compiles the sample protos for the demo's workers, with protox: no protoc
//! needed. The gateway itself compiles protos at start, not here.

use std::error::Error;

const PROTOS: [&str; 3] = ["payments/v1/payments.proto", "delivery/v1/delivery.proto", "echo/v1/echo.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(PROTOS, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    // The options are read through reflection, as those of users are.
    config.extern_path(".antiphon.v1", "::antiphon_options_are_not_compiled");
    config.compile_fds(files)?;
    Ok(())
}
