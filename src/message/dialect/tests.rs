//! What the golden vectors of all dialects share, and which record is what.
#![allow(non_snake_case, reason = "values that would be constants if they could be")]

use proptest::prelude::*;

use super::*;
use crate::correlation::Minter;
use crate::message::Reply;

pub(super) const ID_BYTES: [u8; 16] = [0, 0, 1, 2, 0, 3, 0x80, 4, 0x80, 5, 0, 0, 0, 0, 0, 6];

pub(super) fn ID() -> CorrelationId {
    CorrelationId::parse(&ID_BYTES).unwrap()
}

pub(super) fn ADDRESS() -> ReplyAddress {
    ReplyAddress { topic: Bytes::from_static(b"replies.a"), partition: Some(258) }
}

pub(super) fn custom() -> Custom {
    Custom {
        correlation_id: "x-call".to_owned(),
        correlation_form: CorrelationForm::Text,
        reply_topic: "x-answer-to".to_owned(),
        reply_partition: None,
        reply_partition_form: crate::terms::PartitionForm::Int32,
        error_code: None,
        error_message: None,
        last: None,
    }
}

pub(super) fn assert_headers(found: &[(HeaderName, Bytes)], expected: &[(&str, &[u8])]) {
    let found: Vec<(&str, &[u8])> = found.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(found, expected);
}

pub(super) fn reply(value: Option<&'static [u8]>, headers: &[(&'static str, &'static [u8])]) -> Received {
    let headers = headers.iter().map(|(n, v)| (HeaderName::Borrowed(*n), Bytes::from_static(v))).collect();
    Received {
        offset: 0,
        partition: 0,
        timestamp_ms: 0,
        key: None,
        value: value.map(Bytes::from_static),
        headers,
    }
}

fn every_dialect() -> [Dialect; 7] {
    [
        Dialect::Spring(CorrelationForm::Text),
        Dialect::Spring(CorrelationForm::Binary),
        Dialect::Nestjs,
        Dialect::Smallrye,
        Dialect::Faststream,
        Dialect::Zilla,
        Dialect::Custom(Arc::new(custom())),
    ]
}

fn requested(dialect: &Dialect, id: CorrelationId, reply_to: Option<&ReplyAddress>) -> Received {
    let mut headers = Vec::new();
    dialect.write_request(&Bytes::from_static(b"/a.B/C"), id, reply_to, &mut headers);
    Received { headers, ..reply(Some(b""), &[]) }
}

#[test]
fn a_reply_is_told_from_a_request_in_every_dialect() {
    let id = Minter::new(1, 2, [3; 32]).mint(4);
    let custom = custom();
    for dialect in every_dialect() {
        let astray = requested(&dialect, id, Some(&ADDRESS()));
        assert_eq!(classify(&astray, Some(&custom)), Kind::Request, "{dialect:?}");
        let echoed = requested(&dialect, id, None);
        let expected = if dialect == Dialect::Zilla { Kind::Part(id) } else { Kind::Reply(id) };
        assert_eq!(classify(&echoed, Some(&custom)), expected, "{dialect:?}");
        let end = Received { value: None, ..echoed };
        assert_eq!(classify(&end, Some(&custom)), Kind::Reply(id), "{dialect:?}");
    }
    let unknown = requested(&every_dialect()[6], id, None);
    assert_eq!(classify(&unknown, None), Kind::Uncorrelated);
    assert_eq!(classify(&reply(None, &[]), Some(&custom)), Kind::Uncorrelated);
    let not_ours = reply(None, &[("kafka_correlationId", b"7")]);
    assert_eq!(classify(&not_ours, None), Kind::Uncorrelated);
    assert_eq!(classify(&reply(None, &[("REPLY_TOPIC", b"x")]), None), Kind::Request);
}

/// A worker for Spring's headers that is built with FastStream, for example.
#[test]
fn an_id_that_a_framework_made_up_does_not_hide_ours() {
    let id = Minter::new(1, 2, [3; 32]).mint(4);
    let ours = Bytes::copy_from_slice(&id.to_text());
    let theirs = Bytes::from_static(b"6f1c1c0e-8b5c-4a53-9d0e-2f8f3d1f7a11");
    let headers: [(HeaderName, Bytes); 2] =
        [("correlation_id".into(), theirs), ("kafka_correlationId".into(), ours)];
    for headers in [headers.to_vec(), headers.iter().rev().cloned().collect()] {
        let record = Received { headers, ..reply(Some(b""), &[]) };
        assert_eq!(classify(&record, None), Kind::Reply(id));
    }
    // And a header that means something in another dialect means nothing here.
    let mut record = requested(&Dialect::Spring(CorrelationForm::Text), id, None);
    record.headers.push(("reply_to".into(), Bytes::from_static(b"somebody@example.org")));
    assert_eq!(classify(&record, None), Kind::Reply(id));
}

#[test]
fn a_frameworks_own_headers_are_not_offered_as_metadata() {
    let id = ID();
    for dialect in every_dialect() {
        let mut record = requested(&dialect, id, Some(&ADDRESS()));
        record.headers.push(("x-shop".into(), Bytes::from_static(b"7")));
        let reply = Reply::decode(record, &dialect, false, 16).unwrap();
        assert_headers(&reply.headers, &[("x-shop", b"7")]);
    }
}

/// Our own headers are the same in every dialect, and win over a framework's.
#[test]
fn a_grpc_status_is_understood_in_every_dialect() {
    for dialect in every_dialect() {
        let record = reply(
            None,
            &[
                ("grpc-status", b"9"),
                ("grpc-message", b"no%20funds"),
                ("kafka_nest-err", b"x"),
                ("zilla:status", b"2"),
            ],
        );
        let status = Reply::decode(record, &dialect, false, 16).unwrap().result.unwrap_err();
        assert_eq!((status.code, &*status.message), (9, "no funds"), "{dialect:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_replies_never_panic(
        value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..32)),
        picks in proptest::collection::vec((0usize..10, proptest::collection::vec(any::<u8>(), 0..48)), 0..6),
    ) {
        const NAMES: [&str; 10] = [
            "kafka_correlationId", "kafka_nest-err", "kafka_nest-is-disposed", "zilla:correlation-id",
            "zilla:status", "zilla:message", "meta:x", "x-code", "x-error", "x-call",
        ];
        let headers = picks.into_iter().map(|(n, v)| (HeaderName::Borrowed(NAMES[n]), Bytes::from(v)));
        let record = Received { value: value.map(Bytes::from), headers: headers.collect(), ..reply(None, &[]) };
        let errors = Custom {
            error_code: Some("x-code".to_owned()), error_message: Some("x-error".to_owned()), ..custom()
        };
        classify(&record, Some(&errors));
        for dialect in every_dialect().into_iter().chain([Dialect::Custom(Arc::new(errors))]) {
            if let Ok(Reply { result: Err(status), .. }) = Reply::decode(record.clone(), &dialect, false, 16) {
                prop_assert!((1..=16).contains(&status.code));
            }
        }
    }
}

#[test]
fn tombstones_are_errors_but_for_methods_that_return_nothing() {
    for dialect in every_dialect() {
        let decode = |headers, null_is_empty| {
            Reply::decode(reply(None, headers), &dialect, null_is_empty, 16).map(|reply| reply.result)
        };
        assert_eq!(decode(&[], true), Ok(Ok(Bytes::new())), "{dialect:?}");
        let refused = decode(&[("kafka_nest-is-disposed", &[0])], false).unwrap_err();
        assert!(matches!(refused, DecodeError::Tombstone | DecodeError::NoMessage), "{refused}");
        assert_eq!(decode(&[("grpc-status", b"0")], false), Ok(Ok(Bytes::new())), "{dialect:?}");
    }
    // The status of an end is no word that an empty message was meant.
    let end = reply(None, &[("zilla:status", b"0")]);
    assert_eq!(Reply::decode(end, &Dialect::Zilla, false, 16), Err(DecodeError::NoMessage));
}

#[test]
fn a_framework_that_answers_with_an_error_is_understood_without_its_route() {
    let nest = reply(None, &[("kafka_correlationId", b"x"), ("kafka_nest-err", b"broken")]);
    let zilla = reply(None, &[("zilla:correlation-id", b"x"), ("zilla:status", b"5")]);
    for (record, code) in [(nest, 2), (zilla, 5)] {
        let dialect = Dialect::guess(&record);
        let status = Reply::decode(record, &dialect, true, 16).unwrap().result.unwrap_err();
        assert_eq!(status.code, code);
    }
}
