//! The first page: is it well, what is it doing, and what needs attention.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use maud::{Markup, html};

use super::Console;
use super::page::{Tab, Visit, bytes, long, number, per_second, time};
use super::rates::Traffic;
use crate::exchange::Phase;
use crate::metrics::TopicLabels;
use crate::terms::ReplyRouting;

/// Lanes in trouble that are named.
const LANES_NAMED_MAX: usize = 5;
/// A failed produce is of interest for so long, in seconds.
const ERROR_INTERESTS_SECONDS: u64 = 600;

pub(super) async fn page(State(console): State<Console>, Extension(visit): Extension<Visit>) -> Markup {
    let mut traffic = console.rates.traffic(console.instance());
    let all = traffic.remove(&None).unwrap_or_default();
    let content = html! {
        h1 { "Overview" }
        (attention(&console))
        (tiles(&console, &all))
        div.columns {
            (endings(&all))
            (identity(&console))
        }
    };
    visit.live_page(&console, "Overview", Tab::Overview, content)
}

/// One thing that an operator should look at, and where.
struct Matter {
    class: &'static str,
    text: String,
    link: &'static str,
}

fn matters(console: &Console) -> Vec<Matter> {
    let instance = console.instance();
    let mut found = Vec::new();
    let mut put = |class, text: String, link| found.push(Matter { class, text, link });
    if instance.phase() == Phase::NotReady {
        let why = instance.trouble().map_or_else(
            || "no heartbeat has come back from the reply topic lately".to_owned(),
            |trouble| trouble.to_string(),
        );
        put("bad", format!("Calls are refused: {why}"), "/console/instances");
    }
    if instance.has_rival() {
        let text = "Another process writes heartbeats to the same reply topic: two instances with one name";
        put("bad", text.to_owned(), "/console/instances");
    }
    for (topic, state) in instance.circuits() {
        if let Some(open_for) = state.open_for {
            let text = format!(
                "{topic} fails fast: its workers do not answer; the next try is in {}",
                long(open_for)
            );
            put("bad", text, "/console/instances");
        } else if state.timeouts_in_a_row > 1 {
            let text = format!("{topic}: the last {} calls timed out", state.timeouts_in_a_row);
            put("warn", text, "/console/instances");
        }
    }
    let lanes = instance.lanes().into_iter().filter_map(|lane| {
        let (at, error) = lane.last_error?;
        (at.elapsed().as_secs() < ERROR_INTERESTS_SECONDS).then_some((lane.topic, lane.partition, at, error))
    });
    for (topic, partition, at, error) in lanes.take(LANES_NAMED_MAX) {
        put(
            "warn",
            format!("{topic}/{partition}: {error}, {} ago", long(at.elapsed())),
            "/console/instances",
        );
    }
    let letters = dead_letters(console);
    if letters > 0 {
        let (are, them) = if letters == 1 { ("is 1 record", "it") } else { ("are records", "them") };
        let text = match letters {
            1 => format!("There {are} on the dead-letter topics; look at {them}"),
            _ => format!("There are {} records on the dead-letter topics", number(letters)),
        };
        put("warn", text, "/console/letters");
    }
    found
}

fn attention(console: &Console) -> Markup {
    let matters = matters(console);
    html! {
        section.attention aria-label="Needs attention" {
            @if matters.is_empty() {
                p.calm { "Nothing needs attention." }
            } @else {
                ul {
                    @for matter in matters {
                        li class=(matter.class) { a href=(matter.link) { (matter.text) } }
                    }
                }
            }
        }
    }
}

/// Records on the dead-letter topics of the routes, by the last look.
fn dead_letters(console: &Console) -> u64 {
    let mut topics: Vec<&Arc<str>> =
        console.routes.routes().iter().map(|route| &route.dead_letter_topic).collect();
    topics.sort_unstable();
    topics.dedup();
    topics.into_iter().map(|topic| letters_on(console, topic).unwrap_or_default()).sum()
}

/// Records on one of them, by the last look.
pub(super) fn letters_on(console: &Console, topic: &Arc<str>) -> Option<u64> {
    let labels = TopicLabels { messaging_destination_name: Arc::clone(topic) };
    let gauge = console.instance().metrics.dead_letter_records.get(&labels)?;
    u64::try_from(gauge.get()).ok()
}

fn tiles(console: &Console, all: &Traffic) -> Markup {
    let instance = console.instance();
    let latency = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), time);
    let tile = |name: &str, value: String, unit: &str, class: &str| {
        html! {
            div class={ "tile " (class) } { dt { (name) } dd { (value) @if !unit.is_empty() { " " small { (unit) } } } }
        }
    };
    let queued: usize = instance.lanes().iter().map(|lane| lane.records).sum();
    let failing = if all.errors > 0.0 { "bad" } else { "" };
    html! {
        dl.tiles aria-label="Now" {
            div.tile.wide {
                dt { "Calls, last 3 minutes" }
                dd { (per_second(all.rate)) " " small { "/s" } }
                dd.picture { (picture(&console.rates.picture())) }
            }
            (tile("In flight", number(instance.pending_calls() as u64), "", ""))
            (tile("Queued", number(queued as u64), "", ""))
            (tile("Errors", per_second(all.errors), "/s", failing))
            (tile("p50", latency(all.p50), "", ""))
            (tile("p99", latency(all.p99), "", ""))
            (tile("Connections", number(console.admin.acceptor.open().into()), "", ""))
            (tile("Held", bytes(instance.budget.bytes()), "", ""))
            (tile("Dead letters", number(dead_letters(console)), "", ""))
        }
    }
}

/// A line of calls a second. Geometry in attributes: the policy allows no
/// styles here.
fn picture(rates: &[f64]) -> Markup {
    const WIDTH: f64 = 270.0;
    const HEIGHT: f64 = 40.0;
    const POINTS: f64 = 90.0;
    let top = rates.iter().copied().fold(1.0, f64::max);
    let from = POINTS - rates.len() as f64;
    let point = |(n, rate): (usize, &f64)| {
        let x = (from + n as f64) * WIDTH / (POINTS - 1.0);
        format!("{x:.1},{:.1}", HEIGHT - 2.0 - rate / top * (HEIGHT - 6.0))
    };
    let points: Vec<String> = rates.iter().enumerate().map(point).collect();
    let label = format!("Calls a second over the last three minutes, at most {}", per_second(top));
    let area = points.first().zip(points.last()).map(|(first, last)| {
        let (left, right) = (first.split(',').next().unwrap_or("0"), last.split(',').next().unwrap_or("0"));
        format!("{left},{HEIGHT} {} {right},{HEIGHT}", points.join(" "))
    });
    html! {
        svg.spark viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
            @if let Some(area) = area { polygon points=(area) {} }
            polyline points=(points.join(" ")) {}
        }
    }
}

fn endings(all: &Traffic) -> Markup {
    let calls = all.calls();
    html! {
        section {
            table {
                caption { "How calls ended, since the start" }
                thead { tr { th scope="col" { "Status" } th.n scope="col" { "Calls" } th.n scope="col" { "Share" } } }
                tbody {
                    @for (code, count) in &all.by_code {
                        tr {
                            th scope="row" { span class=(if *code == "OK" { "code ok" } else { "code bad" }) { (code) } }
                            td.n data-label="Calls" { (number(*count)) }
                            td.n data-label="Share" { (format!("{:.1} %", *count as f64 * 100.0 / calls.max(1) as f64)) }
                        }
                    }
                    @if all.by_code.is_empty() { tr { td.none colspan="3" { "No call has ended yet." } } }
                }
            }
        }
    }
}

fn identity(console: &Console) -> Markup {
    let instance = console.instance();
    let routing = match console.routing {
        ReplyRouting::InstanceTopic => "a topic of its own",
        ReplyRouting::Partition => "leased partitions of a shared topic",
        ReplyRouting::Shared => "a shared topic that all instances read",
    };
    html! {
        section {
            h2 { "This instance" }
            dl.facts {
                dt { "Name" } dd.mono { (instance.name()) }
                dt { "Version" } dd { (env!("CARGO_PKG_VERSION")) }
                dt { "Up for" } dd { (long(instance.started().elapsed())) }
                dt { "Reply topic" } dd.mono { (instance.reply_topic()) }
                dt { "Replies" } dd { (routing) " (" code { (console.routing) } ")" }
                dt { "Shards" } dd { (instance.shards().len()) }
                dt { "Routes" } dd { (console.routes.routes().len()) }
            }
        }
    }
}
