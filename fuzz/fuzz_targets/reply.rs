//! Replies: any headers, any value. The input is read as lines of
//! `name: value`, an empty line, and the record's value.
#![no_main]

use antiphon::correlation::CorrelationId;
use antiphon::message::dialect::{Kind, classify};
use antiphon::message::{Reply, reply_headers};
use antiphon::transport::Received;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const MESSAGE_BYTES_MAX: usize = 64;
/// Longer messages of a worker are cut.
const STATUS_MESSAGE_BYTES_MAX: usize = antiphon::limits::STATUS_MESSAGE_BYTES_MAX;

fn record(input: &[u8]) -> Received {
    let end = input.windows(2).position(|two| two == b"\n\n");
    let (head, value) = match end {
        Some(end) => (&input[..end], Some(Bytes::copy_from_slice(&input[end + 2..]))),
        None => (input, None),
    };
    let mut headers: Vec<(_, Bytes)> = Vec::new();
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        let value = line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]);
        headers.retain(|(known, _): &(std::borrow::Cow<'static, str>, _)| *known != name);
        headers.push((name.into(), Bytes::copy_from_slice(value)));
    }
    Received { offset: 1, timestamp_ms: 0, key: None, value, headers }
}

fuzz_target!(|input: &[u8]| {
    let record = record(input);
    match classify(&record) {
        Kind::Reply(id) => assert_eq!(CorrelationId::parse(&id.to_text()), Some(id)),
        Kind::Request | Kind::Uncorrelated => {}
    }
    let given = record.headers.len();
    for null_is_empty in [false, true] {
        let Ok(reply) = Reply::decode(record.clone(), null_is_empty, MESSAGE_BYTES_MAX) else { continue };
        assert!(reply.headers.len() <= given);
        match reply.result {
            Ok(message) => assert!(message.len() <= MESSAGE_BYTES_MAX),
            Err(status) => {
                assert!((1..=16).contains(&status.code));
                assert!(status.message.len() <= STATUS_MESSAGE_BYTES_MAX);
                let headers = reply_headers(&status);
                let again = Received { headers, value: None, ..record.clone() };
                let again = Reply::decode(again, false, MESSAGE_BYTES_MAX).expect("our own headers");
                assert_eq!(again.result, Err(status));
            }
        }
    }
});
