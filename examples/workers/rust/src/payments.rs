//! The service. It knows nothing of Kafka.

use std::time::Duration;

use antiphon::worker::{Code, Context, ErrorInfo, WorkerError};

/// Generated from `payments.proto`.
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/payments.v1.rs"));
}

use v1::{PayReply, PayRequest, PaymentState, RefundReply, RefundRequest};

const SLOW: Duration = Duration::from_secs(3);
const DOMAIN: &str = "payments.example";

/// Takes a payment for an order.
pub async fn pay(call: Context, request: PayRequest) -> Result<PayReply, WorkerError> {
    return_metadata(&call);
    let PayRequest { order_id, amount_minor, currency } = request;
    // A handler of a typed method has no null to return.
    if order_id.starts_with("empty-") || order_id.starts_with("null-") {
        return Ok(PayReply::default());
    }
    let state = decide(&call, &order_id, amount_minor, &currency, PaymentState::Approved).await?;
    let payment_id =
        if order_id.starts_with("echo-") { currency } else { format!("pay-{order_id}-{amount_minor}") };
    Ok(PayReply { order_id, payment_id, state: state.into() })
}

/// Gives back all or part of a payment.
pub async fn refund(call: Context, request: RefundRequest) -> Result<RefundReply, WorkerError> {
    return_metadata(&call);
    let RefundRequest { order_id, payment_id, amount_minor, currency } = request;
    let state = decide(&call, &order_id, amount_minor, &currency, PaymentState::Refunded).await?;
    Ok(RefundReply { order_id, payment_id, state: state.into() })
}

/// The sample's rules: `examples/workers/README.md` lists them.
async fn decide(
    call: &Context,
    order_id: &str,
    amount_minor: i64,
    currency: &str,
    granted: PaymentState,
) -> Result<PaymentState, WorkerError> {
    // ANCHOR: errors
    if amount_minor <= 0 {
        let info = error_info("FIELD_INVALID", "field", "amount_minor");
        return Err(WorkerError::invalid("amount_minor", "must be above zero").with_detail(&info));
    }
    // ANCHOR_END: errors
    if currency == "XXX" {
        let info = error_info("CURRENCY_NOT_SUPPORTED", "currency", currency);
        let text = format!("currency {currency} is not supported");
        return Err(WorkerError::rejected(Code::FailedPrecondition, text).with_detail(&info));
    }
    if order_id.starts_with("slow-") {
        // The caller's deadline ends the work, too.
        tokio::select! {
            () = tokio::time::sleep(SLOW) => {}
            () = call.ended() => return Err(WorkerError::ended()),
        }
    }
    assert!(!order_id.starts_with("crash-"), "the handler broke on order {order_id}");
    let declined = order_id.starts_with("declined-");
    Ok(if declined { PaymentState::Declined } else { granted })
}

fn error_info(reason: &str, name: &str, value: &str) -> ErrorInfo {
    ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: [(name.to_owned(), value.to_owned())].into(),
    }
}

/// Headers whose names begin with `x-` go back to the caller.
fn return_metadata(call: &Context) {
    for (name, value) in &call.record().headers {
        if name.starts_with("x-") {
            call.reply_header(name.clone(), value.clone());
        }
    }
}
