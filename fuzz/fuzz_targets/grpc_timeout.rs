//! `grpc-timeout`: one to eight digits and a unit, and nothing else.
#![no_main]

use antiphon::deadline::parse_grpc_timeout;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let legal = match input.split_last() {
        Some((unit, digits)) => {
            b"HMSmun".contains(unit)
                && (1..=8).contains(&digits.len())
                && digits.iter().all(u8::is_ascii_digit)
        }
        None => false,
    };
    assert_eq!(parse_grpc_timeout(input).is_ok(), legal);
});
