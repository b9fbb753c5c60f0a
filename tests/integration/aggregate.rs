//! Unary methods that collect several replies in a repeated field.

use prost::Message as _;
use tonic::Code;

use crate::harness::{PATIENCE, TestGateway, until_async};
use crate::raw::{RawAnswer, framed, post};
use crate::records::{all, await_records, text};
use crate::several::{ByHand, HI, Part, TOPIC, Texts, gateway, message, nothing, value};

const ALL: &str = "/several.v1.CollectService/All";
const THREE: &str = "/several.v1.CollectService/Three";
const PARTIAL: &str = "/several.v1.CollectService/Partial";
const GATHER: &str = "/several.v1.CollectService/Gather";
const SKIPPING: &str = "/several.v1.CollectService/Skipping";
const FEW: &str = "/several.v1.CollectService/Few";

async fn answered(
    gateway: &TestGateway,
    worker: &mut ByHand,
    path: &str,
    headers: &[(&str, &str)],
    parts: Vec<Part>,
) -> RawAnswer {
    let address = gateway.gateway().grpc_address();
    let call = post(address, path, headers, framed(HI));
    tokio::time::timeout(PATIENCE, async { tokio::join!(call, worker.answer(parts)).0 }).await.unwrap()
}

/// The texts in the one message of an answer.
fn collected(answer: &RawAnswer) -> Vec<String> {
    assert_eq!(answer.code(), Code::Ok, "{}", answer.status().message());
    let texts = Texts::decode(answer.body.slice(5..)).unwrap();
    assert!(texts.note.is_empty());
    texts.all.into_iter().map(|text| text.text).collect()
}

fn place_is_free(gateway: &TestGateway) -> bool {
    let instance = gateway.gateway().instance();
    instance.pending_calls() == 0 && instance.budget.calls() == 0 && instance.budget.bytes() == 0
}

#[tokio::test]
async fn replies_are_elements_in_the_order_in_which_they_came() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let method = |name: &str| format!("/several.v1.CollectService/{name}");
    let json = |text: &str| value(format!(r#"{{"text":"{text}"}}"#));
    let disposed = ("kafka_nest-is-disposed", "\0");
    let cases: [(&str, Vec<Part>, &str); 7] = [
        ("All", vec![message("a"), message("b"), message("c").last()], "3"),
        ("All", vec![message("a"), message("b"), message("c"), nothing().last()], "3"),
        ("Three", vec![message("a").last(), message("b"), message("c")], "3/3"),
        ("Json", vec![json("a"), json("b"), json("c").last()], "3"),
        (
            "Nestjs",
            vec![message("a"), message("b"), message("c"), nothing().with(disposed.0, disposed.1)],
            "3",
        ),
        ("Zilla", vec![message("a"), message("b"), message("c"), nothing()], "3"),
        // Two workers, each of which ends its own stream.
        ("ZillaTwo", vec![message("a"), nothing(), message("b")], "2/2"),
    ];
    for (name, parts, count) in cases {
        let answer = answered(&gateway, &mut worker, &method(name), &[("grpc-timeout", "20S")], parts).await;
        let expected: &[&str] = if name == "ZillaTwo" { &["a", "b"] } else { &["a", "b", "c"] };
        assert_eq!(collected(&answer), expected, "{name}");
        assert_eq!(answer.said("antiphon-replies"), Some(count), "{name}");
        assert_eq!((answer.said("antiphon-outcome"), answer.said("antiphon-partial")), (Some("sent"), None));
    }
    // No element at all is an empty list.
    let none = answered(&gateway, &mut worker, ALL, &[], vec![nothing().last()]).await;
    assert_eq!((collected(&none).len(), none.said("antiphon-replies")), (0, Some("0")));
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_thousand_replies_are_one_message_and_headers_are_of_all() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let many: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
    let parts = many.iter().map(|text| message(text)).chain([nothing().last()]).collect();
    let answer = answered(&gateway, &mut worker, ALL, &[], parts).await;
    assert_eq!(collected(&answer), many);

    let parts =
        vec![message("a").with("x-cost", "1"), message("b").with("x-cost", "2").last().with("x-took", "3")];
    let answer = answered(&gateway, &mut worker, ALL, &[], parts).await;
    assert_eq!(answer.headers.get_all("x-cost").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(answer.said("x-took"), Some("3"));
    gateway.stop().await;
}

#[tokio::test]
async fn too_few_meet_the_deadline_or_are_a_part() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let two = || vec![message("a"), message("b")];
    let short = [("grpc-timeout", "700m")];
    let answer = answered(&gateway, &mut worker, THREE, &short, two()).await;
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    assert_eq!(answer.status().message(), "the deadline passed before the last reply; 2 came");
    assert_eq!(
        (answer.said("antiphon-replies"), answer.said("antiphon-outcome")),
        (Some("2/3"), Some("sent"))
    );
    let letters = format!("{}.DLQ", gateway.topic(TOPIC));
    assert_eq!(await_records(&gateway.cluster, &letters, 1).await.len(), 1);

    let answer = answered(&gateway, &mut worker, PARTIAL, &short, two()).await;
    assert_eq!(collected(&answer), ["a", "b"]);
    assert_eq!(
        (answer.said("antiphon-replies"), answer.said("antiphon-partial")),
        (Some("2/3"), Some("true"))
    );

    // Where nothing else ends it, the deadline cuts nothing short.
    let answer = answered(&gateway, &mut worker, GATHER, &short, two()).await;
    assert_eq!(collected(&answer), ["a", "b"]);
    assert_eq!((answer.said("antiphon-replies"), answer.said("antiphon-partial")), (Some("2"), None));

    // Nothing at all is no answer, and leaves a letter.
    let answer = answered(&gateway, &mut worker, PARTIAL, &[("grpc-timeout", "300m")], vec![]).await;
    assert_eq!((answer.code(), answer.said("antiphon-replies")), (Code::DeadlineExceeded, Some("0/3")));
    let found = await_records(&gateway.cluster, &letters, 2).await;
    assert_eq!(text(&found[1].1, "failure.class").as_deref(), Some("timeout"));
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn an_error_fails_the_call_unless_errors_are_left_out() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let with_error = || vec![message("a"), value("").error("9", "no%20funds"), message("c")];
    let answer = answered(&gateway, &mut worker, THREE, &[], with_error()).await;
    assert_eq!((answer.code(), answer.status().message()), (Code::FailedPrecondition, "no funds"));
    assert_eq!(answer.said("antiphon-replies"), Some("2/3"), "the second is the error");
    gateway.until("the third is late", || gateway.replies_of("late") == 1).await;

    let answer = answered(&gateway, &mut worker, SKIPPING, &[], with_error()).await;
    assert_eq!(collected(&answer), ["a", "c"]);
    assert_eq!(
        (answer.said("antiphon-replies"), answer.said("antiphon-replies-skipped")),
        (Some("3/3"), Some("1"))
    );
    gateway.stop().await;
}

#[tokio::test]
async fn each_bound_says_which_it_is() {
    let gateway = gateway().config(|config| config.grpc.message_bytes_max = 1_000).start().await;
    let mut worker = ByHand::new(&gateway).await;
    let four = ["a", "b", "c", "d"].map(message).to_vec();
    let answer = answered(&gateway, &mut worker, FEW, &[], four).await;
    assert_eq!(answer.code(), Code::ResourceExhausted);
    assert_eq!(
        answer.status().message(),
        "the replies to this call are more than replies_max (replies held for one call) allows, which is 3"
    );
    assert_eq!(answer.said("antiphon-outcome"), Some("sent"));
    // The worker may have more to say, and is told that nobody waits.
    let topic = gateway.topic(TOPIC);
    until_async("a cancel record", async || {
        all(&gateway.cluster, &topic)
            .await
            .iter()
            .any(|(_, record)| record.header("antiphon-cancel").is_some())
    })
    .await;

    let large = || message(&"x".repeat(400));
    let answer = answered(&gateway, &mut worker, ALL, &[], vec![large(), large(), large()]).await;
    assert_eq!(answer.code(), Code::ResourceExhausted);
    assert_eq!(
        answer.status().message(),
        "the replies to this call are more than grpc.message_bytes_max (bytes of one message) allows, which is 1000"
    );
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}

/// All replies count as one answer: kept for repeats, joined while they come.
#[tokio::test]
async fn a_key_keeps_the_collected_answer() {
    let gateway = gateway().start().await;
    let mut worker = ByHand::new(&gateway).await;
    let key = [("idempotency-key", "k-1")];
    let first = answered(&gateway, &mut worker, ALL, &key, vec![message("a"), message("b").last()]).await;
    assert_eq!(collected(&first), ["a", "b"]);
    let again = post(gateway.gateway().grpc_address(), ALL, &key, framed(HI)).await;
    assert_eq!((collected(&again), again.said("antiphon-idempotency")), (collected(&first), Some("kept")));
    assert_eq!(again.said("antiphon-replies"), Some("2"));

    // One that is only late is waited for, and kept.
    let late = [("idempotency-key", "k-2"), ("grpc-timeout", "500m")];
    let address = gateway.gateway().grpc_address();
    let (timed_out, request) = tokio::join!(post(address, ALL, &late, framed(HI)), async {
        let request = worker.request().await;
        worker.reply(&request, [message("a")]).await;
        request
    });
    assert_eq!(timed_out.code(), Code::DeadlineExceeded);
    worker.reply(&request, [message("b").last()]).await;
    until_async("the kept answer", async || {
        let repeat =
            post(address, ALL, &[("idempotency-key", "k-2"), ("grpc-timeout", "500m")], framed(HI)).await;
        repeat.code() == Code::Ok && collected(&repeat) == ["a", "b"]
    })
    .await;
    gateway.stop().await;
}

/// The calls are many and their replies come all mixed up.
#[tokio::test]
async fn no_reply_reaches_another_call() {
    let gateway = gateway().config(|config| config.shards = 2).start().await;
    let mut worker = ByHand::new(&gateway).await;
    let address = gateway.gateway().grpc_address();
    let calls = (0..60).map(|_| post(address, ALL, &[("grpc-timeout", "20S")], framed(HI)));
    let replying = async {
        let mut requests = Vec::new();
        for _ in 0..60 {
            requests.push(worker.request().await);
        }
        for round in 0..4 {
            for request in &requests {
                let part = message(&format!("{}-{round}", request.offset));
                worker.reply(request, [if round == 3 { part.last() } else { part }]).await;
            }
        }
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(calls), replying);
    let mut offsets = Vec::new();
    for answer in answers {
        let texts = collected(&answer);
        let (offset, _) = texts[0].split_once('-').unwrap();
        let expected: Vec<String> = (0..4).map(|round| format!("{offset}-{round}")).collect();
        assert_eq!(texts, expected);
        offsets.push(offset.to_owned());
    }
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len(), 60);
    gateway.until("nothing is held", || place_is_free(&gateway)).await;
    gateway.stop().await;
}
