//! Calls payments.v1.PaymentService through Antiphon with tonic.
//!
//!     cargo run -- [--json] [HOST:PORT]
//!
//! To the caller it is a gRPC server like any other; nothing here knows of
//! Kafka but the names of the `antiphon-*` trailers.

use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, TimeoutExpired};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::{ErrorDetail, StatusExt as _};

use payments::payment_service_client::PaymentServiceClient;
use payments::{PayReply, PayRequest, PaymentState};

mod payments {
    tonic::include_proto!("payments.v1");
}

type Answer = Result<Value, Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(20);
const PARALLEL_CALLS: i64 = 100;

struct Client {
    channel: Channel,
    payments: PaymentServiceClient<Channel>,
    /// Sets this run's orders apart from those of earlier ones.
    run: String,
}

impl Client {
    /// A call with a deadline, which the server is told of, too.
    fn order(&self, kind: &str) -> Request<PayRequest> {
        let order_id = format!("{kind}-{}", self.run);
        let mut request =
            Request::new(PayRequest { order_id, amount_minor: 1250, currency: "EUR".to_owned() });
        request.set_timeout(PATIENCE);
        request
    }

    /// A call, its reply and its trailers.
    async fn pay(&mut self) -> Answer {
        let response = self.payments.pay(self.order("order")).await?;
        // tonic puts the trailers of a unary call beside its headers.
        let trailers = antiphon_trailers(response.metadata());
        let PayReply { order_id, payment_id, state } = response.into_inner();
        let state = PaymentState::try_from(state)?.as_str_name();
        Ok(json!({ "order_id": order_id, "payment_id": payment_id, "state": state, "trailers": trailers }))
    }

    /// An error of the business, with its google.rpc details.
    async fn refused(&mut self, request: Request<PayRequest>) -> Answer {
        let status = self.payments.pay(request).await.err().ok_or("the payment was taken")?;
        // To act on one kind: status.get_details_error_info().
        let details: Result<Vec<Value>, String> =
            status.check_error_details_vec()?.into_iter().map(fields).collect();
        Ok(json!({ "code": name(status.code())?, "message": status.message(), "details": details? }))
    }

    /// The same call twice: executed once, and the second says so.
    async fn idempotency(&mut self) -> Answer {
        let mut requests = [self.order("once"), self.order("once")];
        for request in &mut requests {
            request.metadata_mut().insert("idempotency-key", format!("key-{}", self.run).parse()?);
        }
        let [first, second] = requests;
        let first = self.payments.pay(first).await?.into_inner();
        let second = self.payments.pay(second).await?;
        let answered = antiphon_trailers(second.metadata())["antiphon-idempotency"].clone();
        Ok(json!({
            "first": first.payment_id,
            "second": second.into_inner().payment_id,
            "answered": answered,
        }))
    }

    /// Many calls at once over one connection.
    async fn parallel(&self) -> Answer {
        let mut calls = JoinSet::new();
        for number in 1..=PARALLEL_CALLS {
            let mut request = self.order(&format!("parallel-{number}"));
            request.get_mut().amount_minor = number;
            // A clone shares the connection.
            let mut payments = self.payments.clone();
            calls.spawn(async move {
                let asked = request.get_ref().order_id.clone();
                let PayReply { order_id, payment_id, .. } = payments.pay(request).await?.into_inner();
                Ok::<_, Status>(json!({ "asked": asked, "order_id": order_id, "payment_id": payment_id }))
            });
        }
        let replies: Result<Vec<Value>, Status> = calls.join_all().await.into_iter().collect();
        Ok(json!({ "replies": replies? }))
    }

    /// The services, asked of the server itself.
    async fn reflection(&self) -> Answer {
        let list = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut reflection = ServerReflectionClient::new(self.channel.clone());
        let answers = reflection.server_reflection_info(tokio_stream::once(list)).await?;
        let answer = answers.into_inner().message().await?.and_then(|answer| answer.message_response);
        let Some(MessageResponse::ListServicesResponse(list)) = answer else {
            return Err(format!("reflection answered {answer:?}").into());
        };
        let services: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        Ok(json!({ "services": services }))
    }

    /// The sample worker takes 3 s for this order.
    async fn deadline(&mut self) -> Answer {
        let allowed = Duration::from_millis(500);
        let mut request = self.order("slow");
        request.set_timeout(allowed);
        let started = Instant::now();
        let ended = self.payments.pay(request).await;
        let ms = started.elapsed().as_millis();
        let status = ended.err().ok_or("the payment was taken in time")?;
        Ok(json!({
            "code": name(code_of(&status))?,
            "said_by_the_library": format!("{:?}", status.code()),
            "deadline_ms": allowed.as_millis(),
            "ms": ms,
            "trailers": antiphon_trailers(status.metadata()),
        }))
    }
}

/// What is known of the request: whether it was sent, and where it is.
fn antiphon_trailers(metadata: &MetadataMap) -> Value {
    let headers = metadata.as_ref().iter().filter(|(name, _)| name.as_str().starts_with("antiphon-"));
    headers
        .map(|(name, value)| (name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes()))))
        .collect()
}

/// The kinds of details that the sample worker sends.
fn fields(detail: ErrorDetail) -> Result<Value, String> {
    Ok(match detail {
        ErrorDetail::ErrorInfo(info) => json!({
            "type": "google.rpc.ErrorInfo",
            "reason": info.reason,
            "domain": info.domain,
            "metadata": info.metadata,
        }),
        ErrorDetail::LocalizedMessage(text) => json!({
            "type": "google.rpc.LocalizedMessage",
            "locale": text.locale,
            "message": text.message,
        }),
        other => return Err(format!("a detail of another kind: {other:?}")),
    })
}

/// The call's code. When its own timer is first, tonic says `CANCELLED` where
/// every other client says `DEADLINE_EXCEEDED`; the cause tells them apart.
fn code_of(status: &Status) -> Code {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return Code::DeadlineExceeded;
        }
        cause = error.source();
    }
    status.code()
}

/// The code as the gRPC specification writes it.
fn name(code: Code) -> Result<&'static str, String> {
    match code {
        Code::DeadlineExceeded => Ok("DEADLINE_EXCEEDED"),
        Code::FailedPrecondition => Ok("FAILED_PRECONDITION"),
        other => Err(format!("the call ended with {other:?}")),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (flags, places): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let as_json = flags.iter().any(|flag| flag == "--json");
    let address = places.first().map_or("127.0.0.1:50051", String::as_str);

    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let run = format!("{:x}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
    let mut client = Client { payments: PaymentServiceClient::new(channel.clone()), channel, run };

    let show = |case: &str, mut result: Value| {
        if as_json {
            result["case"] = case.into();
            println!("{result}");
        } else {
            println!("{case}: {result:#}");
        }
    };
    show("pay", client.pay().await?);
    let mut in_no_currency = client.order("order");
    in_no_currency.get_mut().currency = "XXX".to_owned();
    show("error", client.refused(in_no_currency).await?);
    show("non_ascii", client.refused(client.order("refused")).await?);
    show("idempotency", client.idempotency().await?);
    show("reflection", client.reflection().await?);
    show("parallel", client.parallel().await?);
    // Last: the sample worker does one thing after the other.
    show("deadline", client.deadline().await?);
    Ok(())
}
