//! The calls in flight that began first, and what each waits for. Never what is
//! in them: neither messages nor keys.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use maud::{Markup, html};
use tokio::time::Instant;

use super::Console;
use super::page::{Tab, Visit, number, time};
use crate::pending::{InFlight, Progress, WaitFor};

/// Calls that are shown.
const CALLS_SHOWN_MAX: usize = 200;
/// A call with less of its time left than this part is marked.
const NEARLY_OVER: f64 = 0.2;

pub(super) async fn page(State(console): State<Console>, Extension(visit): Extension<Visit>) -> Markup {
    let found = console.instance().oldest_calls(CALLS_SHOWN_MAX);
    let now = Instant::now();
    let more = found.total.saturating_sub(found.calls.len());
    let content = html! {
        h1 { "In flight" }
        table.stack {
            caption {
                (number(found.total as u64)) @if found.total == 1 { " call waits" } @else { " calls wait" }
                @if more > 0 { "; the oldest " (found.calls.len()) " of them" } @else { ", the oldest first" }
            }
            thead { tr {
                th.n scope="col" { "Age" }
                th scope="col" { "Method" }
                th scope="col" { "Waits for" }
                th scope="col" { "Request record" }
                th.n scope="col" { "Time left" }
                th scope="col" { "Correlation id" }
            } }
            tbody {
                @for call in &found.calls { (row(&console, call, now)) }
                @if found.calls.is_empty() { tr { td.none colspan="6" { "No call is in flight." } } }
            }
        }
    };
    visit.live_page(&console, "In flight", Tab::Calls, content)
}

fn row(console: &Console, call: &InFlight, now: Instant) -> Markup {
    let about = call.about;
    let route = usize::try_from(about.route).ok().and_then(|index| console.routes.routes().get(index));
    let age = now.saturating_duration_since(about.began);
    let left = about.deadline.saturating_duration_since(now);
    let whole = about.deadline.saturating_duration_since(about.began);
    let is_short = left.as_secs_f64() < whole.as_secs_f64() * NEARLY_OVER;
    let (class, phase, why) = phase(call);
    let id = call.id.to_string();
    let place = match (route, &call.progress) {
        (Some(route), Progress::Appended(at)) => {
            let offset = at.offset.map_or_else(|| "?".to_owned(), |offset| offset.to_string());
            format!("{}/{}/{offset}", route.request_topic, at.partition)
        }
        (Some(route), _) => format!("{}/{}", route.request_topic, about.partition),
        (None, _) => about.partition.to_string(),
    };
    html! {
        tr {
            td.n data-label="Age" { b { (time(age.as_secs_f64())) } }
            th scope="row" data-label="Method" {
                @match route {
                    Some(route) => { span.method { (route.method) } span.sub { (route.service) } }
                    None => "unknown",
                }
            }
            td data-label="Waits for" {
                span class={ "code " (class) } { (phase) }
                @if let Some(why) = why { span.sub { (why) } }
            }
            td.mono data-label="Request record" { (place) }
            td.n data-label="Time left" {
                span class=(if is_short { "late" } else { "" }) {
                    @if left == Duration::ZERO { "over" } @else { (time(left.as_secs_f64())) }
                }
            }
            td.mono.id data-label="Correlation id" {
                a href={ "/console/why?since=1h&name=" (id) } { (id) }
            }
        }
    }
}

/// What it waits for: a class, a word, and what stands in the way.
fn phase(call: &InFlight) -> (&'static str, &'static str, Option<&str>) {
    match (&call.progress, call.wait_for) {
        (_, None) => ("ok", "its answer is on its way", None),
        (Progress::Queued, _) => ("warn", "its lane", None),
        (Progress::NotSent(why), _) => ("bad", "Kafka: not sent yet", Some(why)),
        (Progress::Sending, _) => ("", "Kafka’s acknowledgement", None),
        (Progress::Unknown(why), _) => ("bad", "a reply; sent perhaps", Some(why)),
        (Progress::Appended(_), Some(WaitFor::Acknowledgement)) => ("ok", "its answer is on its way", None),
        (Progress::Appended(_), Some(WaitFor::Reply)) => ("", "the worker’s reply", None),
        (Progress::Appended(_), Some(WaitFor::Replies)) => ("", "the worker’s replies", None),
    }
}
