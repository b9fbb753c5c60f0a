//! Server-streaming methods: one request, many replies.

use std::time::Duration;

use antiphon::worker::samples::{Samples, echo};
use bytes::Bytes;
use prost::Message as _;
use tonic::{Code, Request, Status, Streaming};

use crate::harness::{PATIENCE, TestGateway, streaming, trailer, until_async};
use crate::raw::{RawAnswer, framed, post};
use crate::records::{await_records, text};
use crate::several::{ByHand, HI, Part, TOPIC, Text, gateway, message, nothing, texts, value};

const STREAM: &str = "/several.v1.StreamService/Stream";
const THREE: &str = "/several.v1.StreamService/Three";
const SMALL: &str = "/several.v1.StreamService/Small";
const PARTIAL: &str = "/several.v1.StreamService/Partial";
const LETTERS: &str = "/several.v1.StreamService/Letters";

/// A call that is read to its end, answered with these records in one batch.
async fn answered(
    gateway: &TestGateway,
    worker: &mut ByHand,
    path: &'static str,
    timeout: &str,
    parts: Vec<Part>,
) -> RawAnswer {
    let address = gateway.gateway().grpc_address();
    let headers = [("grpc-timeout", timeout)];
    let call = post(address, path, &headers, framed(HI));
    tokio::time::timeout(PATIENCE, async { tokio::join!(call, worker.answer(parts)).0 }).await.unwrap()
}

async fn next(stream: &mut Streaming<Bytes>) -> Result<Option<String>, Status> {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    next.map(|message| message.map(|message| Text::decode(message).unwrap().text))
}

async fn open(gateway: &TestGateway, path: &'static str) -> Result<Streaming<Bytes>, Status> {
    let call = streaming(gateway.channel.clone(), path, Request::new(Bytes::from_static(HI)));
    tokio::time::timeout(PATIENCE, call).await.expect("headers in time").map(tonic::Response::into_inner)
}

fn place_is_free(gateway: &TestGateway) -> bool {
    let instance = gateway.gateway().instance();
    instance.pending_calls() == 0 && instance.budget.calls() == 0 && instance.budget.bytes() == 0
}

#[tokio::test]
async fn each_dialect_says_which_reply_is_the_last() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let plain: [(&str, Part, Part); 8] = [
        ("Stream", message("c").last(), nothing().last()),
        ("Smallrye", message("c").last(), nothing().last()),
        ("Faststream", message("c").last(), nothing().last()),
        (
            "Nestjs",
            message("c").with("kafka_nest-is-disposed", "\0"),
            nothing().with("kafka_nest-is-disposed", "\0"),
        ),
        ("Nestjs", message("c").last(), nothing().last()),
        ("Zilla", message("c").with("zilla:status", "0"), nothing().with("zilla:status", "0")),
        ("Zilla", message("c").with("zilla:status", "0"), nothing()),
        ("Custom", message("c").with("x-last", "true"), nothing().with("x-last", "true")),
    ];
    for (method, last, end) in plain {
        let path: &'static str = format!("/several.v1.StreamService/{method}").leak();
        let parts = vec![message("a"), message("b"), last];
        let marked = answered(&gateway, &mut worker, path, "20S", parts).await;
        assert_eq!(texts(&marked), ["a", "b", "c"], "{method}");
        assert_eq!((marked.code(), marked.said("antiphon-replies")), (Code::Ok, Some("3")), "{method}");
        assert_eq!(marked.said("antiphon-outcome"), Some("sent"));
        assert!(marked.said("antiphon-partial").is_none());

        let ended = answered(&gateway, &mut worker, path, "20S", vec![message("a"), end.clone()]).await;
        assert_eq!((texts(&ended), ended.code()), (vec!["a".to_owned()], Code::Ok), "{method}");
        let empty = answered(&gateway, &mut worker, path, "20S", vec![end]).await;
        assert_eq!((texts(&empty).len(), empty.code()), (0, Code::Ok), "{method}");
        assert_eq!(empty.said("antiphon-replies"), Some("0"));
    }
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn messages_reach_their_caller_as_they_come() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let (stream, request) = tokio::join!(open(&gateway, STREAM), async {
        let request = worker.request().await;
        worker.reply(&request, [message("first")]).await;
        request
    });
    let mut stream = stream.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().as_deref(), Some("first"));
    for text in ["second", "third"] {
        worker.reply(&request, [message(text)]).await;
        assert_eq!(next(&mut stream).await.unwrap().as_deref(), Some(text));
    }
    assert_eq!(gateway.gateway().instance().budget.calls(), 1, "a stream is a call in flight");
    worker.reply(&request, [nothing().last()]).await;
    assert_eq!(next(&mut stream).await.unwrap(), None);
    let trailers = stream.trailers().await.unwrap().unwrap();
    assert_eq!(trailer(&trailers, "antiphon-replies").as_deref(), Some("3"));
    assert!(trailer(&trailers, "antiphon-record").unwrap().starts_with(&gateway.topic(TOPIC)));
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn ten_thousand_replies_arrive_in_order() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let numbered = |range: std::ops::Range<u32>| range.map(|number| message(&number.to_string()));
    let (stream, request) = tokio::join!(open(&gateway, STREAM), async {
        let request = worker.request().await;
        worker.reply(&request, numbered(0..1_000)).await;
        request
    });
    let reading = async {
        let mut stream = stream.unwrap();
        for expected in 0..10_000 {
            assert_eq!(next(&mut stream).await.unwrap(), Some(expected.to_string()));
        }
        assert_eq!(next(&mut stream).await.unwrap(), None);
    };
    let writing = async {
        for batch in 1..10 {
            worker.reply(&request, numbered(batch * 1_000..(batch + 1) * 1_000)).await;
        }
        worker.reply(&request, [nothing().last()]).await;
    };
    tokio::join!(reading, writing);
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn metadata_is_of_the_first_reply_and_trailers_of_the_last() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let parts = vec![
        message("a").with("x-cost", "1").with("x-took", "1ms"),
        message("b").with("x-cost", "2").with("x-took", "2ms"),
        nothing().last().with("x-cost", "3"),
    ];
    let answer = answered(&gateway, &mut worker, STREAM, "20S", parts).await;
    assert_eq!(answer.headers["x-cost"], "1");
    let trailers =
        |name| answer.trailers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((trailers("x-took"), trailers("x-cost")), (vec!["2ms"], vec!["3"]));
    gateway.stop().await;
}

#[tokio::test]
async fn an_error_in_the_middle_ends_the_stream_with_that_status() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let cases = [
        (STREAM, value("").error("9", "no%20funds"), Code::FailedPrecondition),
        (
            "/several.v1.StreamService/Nestjs",
            nothing().with("kafka_nest-err", r#"{"code":9,"message":"no funds"}"#),
            Code::FailedPrecondition,
        ),
        (
            "/several.v1.StreamService/Zilla",
            nothing().with("zilla:status", "9").with("zilla:message", "no%20funds"),
            Code::FailedPrecondition,
        ),
    ];
    for (path, error, code) in cases {
        let parts = vec![message("a"), error.clone(), message("never")];
        let answer = answered(&gateway, &mut worker, path, "20S", parts).await;
        assert_eq!(texts(&answer), ["a"], "{path}");
        assert_eq!((answer.code(), answer.status().message()), (code, "no funds"), "{path}");
        assert_eq!(answer.said("antiphon-replies"), Some("2"), "the second reply is the error");
        let at_once = answered(&gateway, &mut worker, path, "20S", vec![error]).await;
        assert_eq!((texts(&at_once).len(), at_once.code()), (0, code), "{path}");
    }
    // The message behind each error is late.
    gateway.until("late replies", || gateway.replies_of("late") == 3).await;
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn what_comes_after_the_end_is_late_and_reaches_nobody() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let five = ["a", "b", "c", "d", "e"].map(message).to_vec();
    let answer = answered(&gateway, &mut worker, THREE, "20S", five).await;
    assert_eq!((texts(&answer), answer.code()), (vec!["a".into(), "b".into(), "c".to_owned()], Code::Ok));
    assert_eq!(answer.said("antiphon-replies"), Some("3/3"));
    gateway.until("two are late", || gateway.replies_of("late") == 2).await;
    assert_eq!(gateway.replies_of("delivered"), 3);

    // A mark ends nothing where only the number does.
    let marked = vec![message("a").last(), nothing().last(), message("b"), message("c")];
    let answer = answered(&gateway, &mut worker, THREE, "20S", marked).await;
    assert_eq!(texts(&answer), ["a", "b", "c"]);

    let request = {
        let (answer, request) = tokio::join!(
            post(gateway.gateway().grpc_address(), STREAM, &[("grpc-timeout", "20S")], framed(HI)),
            async {
                let request = worker.request().await;
                worker.reply(&request, [message("a").last()]).await;
                request
            }
        );
        assert_eq!(answer.code(), Code::Ok);
        request
    };
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    worker.reply(&request, [message("b"), nothing().last()]).await;
    gateway.until("two more are late", || gateway.replies_of("late") == 4).await;
    gateway.stop().await;
}

#[tokio::test]
async fn repeats_and_gaps_are_told_by_their_numbers() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let numbered = |text: &str, number: &'static str| message(text).with("antiphon-sequence", number);
    // A worker that died after two, and the one that took over.
    let parts = vec![
        numbered("a", "1"),
        numbered("b", "2"),
        numbered("a", "1"),
        numbered("b", "2"),
        numbered("c", "3"),
        nothing().with("antiphon-sequence", "4").last(),
    ];
    let answer = answered(&gateway, &mut worker, STREAM, "20S", parts).await;
    assert_eq!((texts(&answer), answer.code()), (vec!["a".into(), "b".into(), "c".to_owned()], Code::Ok));
    assert_eq!(gateway.replies_of("duplicate"), 2);

    let gap = vec![numbered("a", "1"), numbered("c", "3").last()];
    let answer = answered(&gateway, &mut worker, STREAM, "20S", gap).await;
    assert_eq!(
        (answer.code(), answer.status().message()),
        (Code::DataLoss, "reply 2 to this call was lost on its way")
    );
    assert_eq!(answer.said("antiphon-outcome"), Some("sent"));
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_worker_that_never_ends_meets_the_deadline() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let answer = answered(&gateway, &mut worker, LETTERS, "700m", vec![message("a"), message("b")]).await;
    assert_eq!(texts(&answer), ["a", "b"]);
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    assert_eq!(answer.status().message(), "the deadline passed before the last reply; 2 came");
    assert_eq!((answer.said("antiphon-replies"), answer.said("antiphon-outcome")), (Some("2"), Some("sent")));
    let letters = await_records(&gateway.cluster, &format!("{}.DLQ", gateway.topic(TOPIC)), 1).await;
    assert_eq!(text(&letters[0].1, "failure.class").as_deref(), Some("timeout"));
    assert_eq!(
        text(&letters[0].1, "failure.reason").as_deref(),
        Some("the deadline passed before the last reply; 2 came")
    );

    // Nothing at all.
    let silent = answered(&gateway, &mut worker, LETTERS, "300m", vec![]).await;
    assert_eq!((silent.code(), silent.said("antiphon-replies")), (Code::DeadlineExceeded, Some("0")));
    assert_eq!(silent.status().message(), "no reply within the deadline");

    // Where the route says so, what came is the answer.
    let parts = vec![message("a"), message("b")];
    let partial = answered(&gateway, &mut worker, PARTIAL, "700m", parts).await;
    assert_eq!((texts(&partial).len(), partial.code()), (2, Code::Ok));
    assert_eq!(
        (partial.said("antiphon-replies"), partial.said("antiphon-partial")),
        (Some("2"), Some("true"))
    );
    let none = answered(&gateway, &mut worker, PARTIAL, "300m", vec![]).await;
    assert_eq!(none.code(), Code::DeadlineExceeded);
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

/// More than the windows of HTTP/2 and the queue of the call hold together.
#[tokio::test]
async fn a_caller_that_does_not_read_ends_its_own_call_and_no_other() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let large = || message(&"x".repeat(1_000));
    let (stream, request) = tokio::join!(open(&gateway, SMALL), async {
        let request = worker.request().await;
        worker.reply(&request, [large()]).await;
        request
    });
    let mut stream = stream.unwrap();
    for _ in 0..20 {
        worker.reply(&request, std::iter::repeat_with(large).take(500)).await;
    }
    gateway.until("its place is free", || place_is_free(&gateway)).await;
    assert_eq!(gateway.replies_of("refused"), 1);
    let seen = || ["delivered", "refused", "late"].map(|kind| gateway.replies_of(kind)).iter().sum::<u64>();
    gateway.until("all are accounted for", || seen() == 10_001).await;
    assert!(gateway.replies_of("late") > 5_000);

    // Others are served meanwhile, on the same connection.
    let (other, ()) = tokio::join!(open(&gateway, STREAM), worker.answer([message("a").last()]));
    assert_eq!(next(&mut other.unwrap()).await.unwrap().as_deref(), Some("a"));

    let mut read = 0;
    let status = loop {
        match next(&mut stream).await {
            Ok(message) => {
                assert!(message.is_some());
                read += 1;
            }
            Err(status) => break status,
        }
    };
    assert!((1..10_001).contains(&read), "{read}");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.message(),
        "the replies to this call are more than replies_max (replies held for one call) allows, which is 100"
    );
    // The worker is told that nobody waits.
    let topic = gateway.topic(TOPIC);
    until_async("a cancel record", async || {
        let found = await_records(&gateway.cluster, &topic, 1).await;
        found.iter().filter(|(_, record)| record.header("antiphon-cancel").is_some()).count() == 1
    })
    .await;
    gateway.stop().await;
}

/// The deadline is kept even by a stream that nobody polls.
#[tokio::test]
async fn a_place_is_free_at_the_deadline_read_or_not() {
    let gateway = gateway().config(|config| config.grpc.message_bytes_max = 1 << 20).start().await;
    let mut worker = ByHand::new(&gateway).await;
    let large = || message(&"x".repeat(50_000));
    let address = gateway.gateway().grpc_address();
    let mut unread = crate::raw::open(address, STREAM, &[("grpc-timeout", "2S")], framed(HI)).await;
    let taken = worker.request().await;
    worker.reply(&taken, std::iter::repeat_with(large).take(15)).await;
    worker.reply(&taken, std::iter::repeat_with(large).take(15).chain([nothing().last()])).await;
    gateway.until("replies wait", || gateway.gateway().instance().budget.bytes() > 100_000).await;
    assert_eq!(gateway.gateway().instance().budget.calls(), 1);
    gateway.until("its place is free", || place_is_free(&gateway)).await;
    let answer = unread.read().await;
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    assert!(
        answer.status().message().starts_with("the deadline passed before the caller had read all replies")
    );
    assert!(texts(&answer).len() < 30);
    gateway.stop().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_place_and_the_worker_is_told() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let (stream, request) = tokio::join!(open(&gateway, LETTERS), async {
        let request = worker.request().await;
        worker.reply(&request, [message("a")]).await;
        request
    });
    drop(stream.unwrap());
    gateway.until("its place is free", || place_is_free(&gateway)).await;
    let topic = gateway.topic(TOPIC);
    until_async("a cancel record", async || {
        let found = await_records(&gateway.cluster, &topic, 1).await;
        found.iter().any(|(_, record)| record.header("antiphon-cancel").is_some())
    })
    .await;
    worker.reply(&request, [message("b"), nothing().last()]).await;
    gateway.until("late", || gateway.replies_of("late") == 2).await;

    // Before the first reply, too.
    let abandoned = tokio::time::timeout(
        Duration::from_millis(500),
        streaming(gateway.channel.clone(), STREAM, Request::new(Bytes::from_static(HI))),
    );
    assert!(abandoned.await.is_err());
    gateway.until("its place is free", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_key_can_not_be_kept_for_a_stream_and_is_refused() {
    let gateway = gateway().start().await;
    let address = gateway.gateway().grpc_address();
    let answer = post(address, STREAM, &[("idempotency-key", "k-1")], framed(HI)).await;
    assert_eq!(answer.code(), Code::InvalidArgument);
    assert!(answer.status().message().contains("idempotency-key"), "{}", answer.status().message());
    assert_eq!(answer.said("antiphon-outcome"), Some("not-sent"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_reply_that_can_not_be_understood_ends_the_stream_and_leaves_a_letter() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let answer = answered(&gateway, &mut worker, LETTERS, "20S", vec![message("a"), nothing()]).await;
    assert_eq!((texts(&answer), answer.code()), (vec!["a".to_owned()], Code::Internal));
    let letters = await_records(&gateway.cluster, &format!("{}.DLQ", gateway.topic(TOPIC)), 1).await;
    assert_eq!(text(&letters[0].1, "failure.class").as_deref(), Some("undecodable-reply"));

    let json = "/several.v1.StreamService/Json";
    let parts = vec![value(r#"{"text":"a"}"#), value(r#"{"text":"b"}"#).last()];
    let answer = answered(&gateway, &mut worker, json, "20S", parts).await;
    assert_eq!((texts(&answer), answer.code()), (vec!["a".into(), "b".to_owned()], Code::Ok));
    let answer =
        answered(&gateway, &mut worker, json, "20S", vec![value(r#"{"text":"a"}"#), value("{")]).await;
    assert_eq!((texts(&answer).len(), answer.code()), (1, Code::Internal));
    gateway.stop().await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish() {
    let mut gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let (stream, request) = tokio::join!(open(&gateway, STREAM), async {
        let request = worker.request().await;
        worker.reply(&request, [message("a")]).await;
        request
    });
    let mut stream = stream.unwrap();
    let instance = std::sync::Arc::clone(gateway.gateway().instance());
    let draining = gateway.take_gateway();
    let rest = async {
        crate::harness::until("the drain", || instance.phase() == antiphon::exchange::Phase::Draining).await;
        worker.reply(&request, [message("b"), nothing().last()]).await;
        let mut read = Vec::new();
        while let Some(text) = next(&mut stream).await.unwrap() {
            read.push(text);
        }
        read
    };
    let (stopped, read) = tokio::join!(draining.stop(), rest);
    assert!(stopped.is_ok(), "{stopped:?}");
    assert_eq!(read, ["a", "b"]);
    assert_eq!(instance.pending_calls(), 0);
}

#[tokio::test]
async fn a_stream_is_compressed_for_who_compresses() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let mut client = tonic::client::Grpc::new(gateway.channel.clone())
        .send_compressed(tonic::codec::CompressionEncoding::Gzip)
        .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Text, Text>::default();
    let request = Request::new(Text { text: "hi".to_owned() });
    let path = http::uri::PathAndQuery::from_static(STREAM);
    let large = "x".repeat(100_000);
    let (stream, ()) = tokio::join!(
        client.server_streaming(request, path, codec),
        worker.answer([message(&large), message("b").last()])
    );
    let stream = stream.unwrap();
    assert_eq!(trailer(stream.metadata(), "grpc-encoding").as_deref(), Some("gzip"));
    let mut stream = stream.into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().text, large);
    assert_eq!(stream.message().await.unwrap().unwrap().text, "b");
    assert!(stream.message().await.unwrap().is_none());
    gateway.stop().await;
}

#[tokio::test]
async fn the_sample_worker_echoes_three_times() {
    let gateway = TestGateway::build().handler(Samples::default()).start().await;
    let request = Bytes::from(echo::EchoRequest { payload: Bytes::from_static(b"hi") }.encode_to_vec());
    let path = "/echo.v1.EchoService/EchoMany";
    let mut stream =
        streaming(gateway.channel.clone(), path, Request::new(request.clone())).await.unwrap().into_inner();
    for _ in 0..3 {
        assert_eq!(stream.message().await.unwrap(), Some(request.clone()));
    }
    assert_eq!(stream.message().await.unwrap(), None);
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}
