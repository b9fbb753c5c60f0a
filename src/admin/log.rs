//! `/log`: what is logged, shown and changed.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use crate::route::parse_duration;
use crate::telemetry::{self, Filter, FilterError};

/// Shows the filter.
pub(super) async fn show() -> Response {
    with(|filter| Ok(shown(filter)))
}

/// Sets the filter to the request's body, for as long as `?for=` says.
pub(super) async fn set(uri: Uri, body: Bytes) -> Response {
    let lasts = match lasts(uri.query().unwrap_or_default()) {
        Ok(lasts) => lasts,
        Err(why) => return (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    };
    let text = String::from_utf8_lossy(&body);
    with(|filter| filter.set(&text, lasts).map(|()| shown(filter)))
}

/// Back to what is configured.
pub(super) async fn reset() -> Response {
    with(|filter| filter.reset().map(|()| shown(filter)))
}

fn lasts(query: &str) -> Result<Option<Duration>, String> {
    let Some(text) = query.strip_prefix("for=") else {
        return match query {
            "" => Ok(None),
            _ => Err(format!("{query:?} is not known; expected ?for=TIME, such as ?for=10m")),
        };
    };
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("for: must be more than zero".to_owned()),
        Ok(lasts) => Ok(Some(lasts)),
        Err(error) => Err(format!("for: {error}; such as ?for=10m")),
    }
}

fn with(act: impl FnOnce(&Filter) -> Result<Response, FilterError>) -> Response {
    let Some(filter) = telemetry::filter() else {
        let text = "this process's log was not set up by Antiphon\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    match act(filter) {
        Ok(response) => response,
        Err(error @ FilterError::Gone(_)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

fn shown(filter: &Filter) -> Response {
    let now = filter.show();
    let back_in = now.back_in.map(|left| left.as_secs_f64().round());
    let text =
        json!({ "filter": now.filter, "configured": now.configured, "configured_in_seconds": back_in });
    ([(header::CONTENT_TYPE, "application/json")], format!("{text}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_it_lasts_is_read() {
        assert_eq!(lasts(""), Ok(None));
        assert_eq!(lasts("for=10m"), Ok(Some(Duration::from_secs(600))));
        for wrong in ["for=", "for=0s", "for=soon", "four=10m", "for=10m&for=1s"] {
            assert!(lasts(wrong).is_err(), "{wrong}");
        }
    }
}
