//! Replies: any headers, any value. The input is read as lines of
//! `name: value`, an empty line, and the record's value.
#![no_main]

use std::sync::Arc;

use antiphon::correlation::CorrelationId;
use antiphon::message::dialect::{Custom, Dialect, Kind, classify};
use antiphon::message::{Reply, reply_headers};
use antiphon::terms::{CorrelationForm, PartitionForm};
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
        // Names may have colons: `zilla:status: 5`.
        let Some(colon) = line.windows(2).position(|two| two == b": ") else { continue };
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        let value = &line[colon + 2..];
        headers.retain(|(known, _): &(std::borrow::Cow<'static, str>, _)| *known != name);
        headers.push((name.into(), Bytes::copy_from_slice(value)));
    }
    Received { offset: 1, partition: 0, timestamp_ms: 0, key: None, value, headers }
}

fn custom() -> Custom {
    Custom {
        correlation_id: "x-call".to_owned(),
        correlation_form: CorrelationForm::Text,
        reply_topic: "x-answer-to".to_owned(),
        reply_partition: None,
        reply_partition_form: PartitionForm::Int32,
        error_code: Some("x-code".to_owned()),
        error_message: Some("x-error".to_owned()),
        last: None,
    }
}

fn dialects() -> [Dialect; 6] {
    [
        Dialect::Spring(CorrelationForm::Text),
        Dialect::Nestjs,
        Dialect::Smallrye,
        Dialect::Faststream,
        Dialect::Zilla,
        Dialect::Custom(Arc::new(custom())),
    ]
}

fuzz_target!(|input: &[u8]| {
    let record = record(input);
    match classify(&record, Some(&custom())) {
        Kind::Reply(id) | Kind::Part(id) => assert_eq!(CorrelationId::parse(&id.to_text()), Some(id)),
        Kind::Request | Kind::Uncorrelated => {}
    }
    let given = record.headers.len();
    let cases = dialects().into_iter().flat_map(|dialect| [(dialect.clone(), false), (dialect, true)]);
    for (dialect, null_is_empty) in cases {
        let decoded = Reply::decode(record.clone(), &dialect, null_is_empty, MESSAGE_BYTES_MAX);
        let Ok(reply) = decoded else { continue };
        assert!(reply.headers.len() <= given);
        match reply.result {
            Ok(message) => assert!(message.len() <= MESSAGE_BYTES_MAX),
            Err(status) => {
                assert!((1..=16).contains(&status.code));
                assert!(status.message.len() <= STATUS_MESSAGE_BYTES_MAX);
                let headers = reply_headers(&status);
                let again = Received { headers, value: None, ..record.clone() };
                let again =
                    Reply::decode(again, &dialect, false, MESSAGE_BYTES_MAX).expect("our own headers");
                assert_eq!(again.result, Err(status));
            }
        }
    }
});
