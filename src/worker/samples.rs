//! The sample services of `proto/`, as `antiphon demo` answers them.

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;

use super::{Call, Handler};
use crate::message::WorkerStatus;

/// `payments.v1`.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod payments {
    include!(concat!(env!("OUT_DIR"), "/payments.v1.rs"));
}

/// `delivery.v1`.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod delivery {
    include!(concat!(env!("OUT_DIR"), "/delivery.v1.rs"));
}

/// `echo.v1`.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod echo {
    include!(concat!(env!("OUT_DIR"), "/echo.v1.rs"));
}

const INVALID_ARGUMENT: u8 = 3;
const UNIMPLEMENTED: u8 = 12;

/// Request topics of the sample services.
pub const TOPICS: [&str; 3] = ["payment_request", "delivery_radius_request", "echo.v1.EchoService"];

/// Answers all sample services. Keeps no state but the radius of each shop
/// that it has seen, at most [`SHOPS_MAX`].
#[derive(Debug, Default)]
pub struct Samples {
    radius_m: std::sync::Mutex<std::collections::HashMap<u64, u32>>,
}

/// Shops whose radius the sample worker remembers.
pub const SHOPS_MAX: usize = 100_000;

/// Echoes that one request gets from `EchoMany`.
const ECHOES: usize = 3;

#[async_trait]
impl Handler for Samples {
    async fn handle_many(&self, call: &Call<'_>) -> Option<Vec<Bytes>> {
        // What is echoed is the request itself: both messages are one field.
        (call.method == "/echo.v1.EchoService/EchoMany").then(|| vec![call.message.clone(); ECHOES])
    }

    async fn handle(&self, call: Call<'_>) -> Option<Result<Bytes, WorkerStatus>> {
        let message = call.message.clone();
        Some(match call.method {
            "/payments.v1.PaymentService/Pay" => typed(message, |request| pay(request, &call)),
            "/payments.v1.PaymentService/Refund" => typed(message, refund),
            "/delivery.v1.DeliveryRadiusService/SetRadius" => {
                typed(message, |request| self.set_radius(&request))
            }
            "/echo.v1.EchoService/Echo" => {
                typed(message, |echo::EchoRequest { payload }| Ok(echo::EchoReply { payload }))
            }
            other => Err(status(UNIMPLEMENTED, format!("this worker does not know {other:?}"))),
        })
    }
}

fn typed<Q, R>(
    message: Bytes,
    handle: impl FnOnce(Q) -> Result<R, WorkerStatus>,
) -> Result<Bytes, WorkerStatus>
where
    Q: Message + Default,
    R: Message,
{
    let request = Q::decode(message).map_err(|error| status(INVALID_ARGUMENT, error.to_string()))?;
    handle(request).map(|reply| Bytes::from(reply.encode_to_vec()))
}

fn status(code: u8, message: impl Into<String>) -> WorkerStatus {
    WorkerStatus { code, message: message.into(), details: Bytes::new() }
}

fn check_amount(amount_minor: i64) -> Result<(), WorkerStatus> {
    if amount_minor > 0 {
        return Ok(());
    }
    Err(status(INVALID_ARGUMENT, format!("amount_minor is {amount_minor}; it must be above zero")))
}

fn pay(request: payments::PayRequest, call: &Call<'_>) -> Result<payments::PayReply, WorkerStatus> {
    check_amount(request.amount_minor)?;
    let state = if request.order_id.starts_with("declined-") {
        payments::PaymentState::Declined
    } else {
        payments::PaymentState::Approved
    };
    // The record's place names the payment: no two requests share one.
    let payment_id = format!("pay-{}-{}", request.order_id, call.record.offset);
    Ok(payments::PayReply { order_id: request.order_id, payment_id, state: state.into() })
}

fn refund(request: payments::RefundRequest) -> Result<payments::RefundReply, WorkerStatus> {
    check_amount(request.amount_minor)?;
    Ok(payments::RefundReply {
        order_id: request.order_id,
        payment_id: request.payment_id,
        state: payments::PaymentState::Refunded.into(),
    })
}

impl Samples {
    fn set_radius(
        &self,
        request: &delivery::SetRadiusRequest,
    ) -> Result<delivery::SetRadiusReply, WorkerStatus> {
        let mut shops = self.radius_m.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shops.len() >= SHOPS_MAX && !shops.contains_key(&request.shop_id) {
            shops.clear();
        }
        let previous_radius_m = shops.insert(request.shop_id, request.radius_m).unwrap_or_default();
        Ok(delivery::SetRadiusReply {
            shop_id: request.shop_id,
            radius_m: request.radius_m,
            previous_radius_m,
        })
    }
}
