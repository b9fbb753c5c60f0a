//! Every method, and how its calls fare.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use maud::{Markup, html};

use super::Console;
use super::page::{Tab, Visit, number, per_second, time};
use super::rates::Traffic;
use crate::route::Route;
use crate::terms::Mode;

/// As `ingress` counts calls of methods that are not served.
const OTHER: &str = "_OTHER";

pub(super) async fn page(State(console): State<Console>, Extension(visit): Extension<Visit>) -> Markup {
    let mut traffic = console.rates.traffic(console.instance());
    let routes = console.routes.routes();
    let content = html! {
        h1 { "Routes" }
        p.lead { "Rates and latencies are those of the last ten seconds; calls and errors are counted since the start." }
        table.stack {
            caption { (number(routes.len() as u64)) " methods that are served" }
            thead { tr {
                th scope="col" { "Method" }
                th scope="col" { "Request topic" }
                th scope="col" { "Framework, format" }
                th.n scope="col" { "Calls/s" }
                th.n scope="col" { "p50" }
                th.n scope="col" { "p99" }
                th.n scope="col" { "Calls" }
                th scope="col" { "Errors" }
            } }
            tbody {
                @for route in routes { (row(route, &traffic.remove(&Some(Arc::clone(&route.path))).unwrap_or_default())) }
                @if routes.is_empty() { tr { td.none colspan="8" { "No method is served." } } }
            }
        }
        @if let Some(other) = traffic.remove(&Some(Arc::from(OTHER))) {
            p.hint {
                "Calls of methods that are not served: " (number(other.calls()))
                @for (code, count) in other.failed() { ", " (code) " " (number(count)) }
            }
        }
        @let streaming = console.routes.not_served();
        @if !streaming.is_empty() {
            section {
                h2 { "Not served" }
                p { "Their callers send a stream, and a request is one record." }
                ul.plain { @for path in streaming { li.mono { (path) } } }
            }
        }
    };
    visit.live_page(&console, "Routes", Tab::Routes, content)
}

fn row(route: &Route, traffic: &Traffic) -> Markup {
    let latency = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), time);
    let kind = match (route.mode, &route.replies) {
        (Mode::OneWay, _) => Some("one-way"),
        (_, Some(_)) if route.is_stream() => Some("stream"),
        (_, Some(_)) => Some("several replies"),
        _ => None,
    };
    html! {
        tr {
            th scope="row" {
                span.method { (route.method) }
                @if let Some(kind) = kind { " " span.tag { (kind) } }
                span.sub { (route.service) }
            }
            td.mono data-label="Request topic" { (route.request_topic) }
            td data-label="Framework, format" { (route.dialect.name()) " · " (route.format.name()) }
            td.n data-label="Calls/s" { (per_second(traffic.rate)) }
            td.n data-label="p50" { (latency(traffic.p50)) }
            td.n data-label="p99" { (latency(traffic.p99)) }
            td.n data-label="Calls" { (number(traffic.calls())) }
            td data-label="Errors" {
                @for (code, count) in traffic.failed() {
                    span.code.bad { (code) " " b { (number(count)) } } " "
                }
                @if traffic.failed().next().is_none() { span.dim { "none" } }
            }
        }
    }
}
