//! Configuration files: any text, and what it says of services and methods.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use antiphon::config::check_text;
use antiphon::route::{Sources, compile};
use libfuzzer_sys::fuzz_target;

/// The sample services as a descriptor set, which is quicker to read than
/// their sources.
static SAMPLES: LazyLock<PathBuf> = LazyLock::new(|| {
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/payments/v1/payments.proto");
    let table = compile(&Sources { protos: vec![protos.into()], ..Sources::default() }).expect("the samples");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), table.descriptor_set()).expect("a file");
    file.into_temp_path().keep().expect("a file")
});

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match check_text(text) {
        Err(mistakes) => {
            assert!(mistakes.len() > 0);
            let _ = mistakes.to_string();
        }
        Ok(config) if config.routes.services.is_empty() && config.routes.methods.is_empty() => {}
        Ok(config) => {
            let sources = Sources {
                descriptor_sets: vec![SAMPLES.clone()],
                protos: Vec::new(),
                include_paths: Vec::new(),
                ..config.routes
            };
            match compile(&sources) {
                Ok(table) => assert!(!table.routes().is_empty()),
                Err(mistakes) => drop(mistakes.to_string()),
            }
        }
    }
});
