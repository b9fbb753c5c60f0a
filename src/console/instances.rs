//! Instances and the reply partitions they read, and the lanes of this one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use maud::{Markup, html};

use super::Console;
use super::page::{Tab, Visit, long, number, time};
use crate::exchange::{CircuitState, ReplyPlace};
use crate::metrics::LaneLoad;
use crate::terms::ReplyRouting;

/// Instances that are named.
const INSTANCES_SHOWN_MAX: usize = 200;
/// Lanes that are shown.
const LANES_SHOWN_MAX: usize = 200;

pub(super) async fn page(State(console): State<Console>, Extension(visit): Extension<Visit>) -> Markup {
    let content = html! {
        h1 { "Instances & lanes" }
        @if let Some(trouble) = console.instance().trouble() { p.notice.bad role="alert" { (trouble) } }
        (places(&console))
        (instances(&console))
        (lanes(&console))
    };
    visit.live_page(&console, "Instances & lanes", Tab::Instances, content)
}

fn places(console: &Console) -> Markup {
    let instance = console.instance();
    let places = instance.reply_places();
    html! {
        table.stack {
            caption { "Partitions of " code { (instance.reply_topic()) } " that this instance reads" }
            thead { tr {
                th.n scope="col" { "Partition" }
                th scope="col" { "Reader" }
                th scope="col" { "Requests name it" }
                th.n scope="col" { "Shard" }
                th.n scope="col" { "Heartbeat" }
                th.n scope="col" { "Next offset" }
                th.n scope="col" { "Lag" }
            } }
            tbody {
                @for place in &places { (place_row(console, place)) }
                @if places.is_empty() { tr { td.none colspan="7" { "None: no partition is held at the moment." } } }
            }
        }
    }
}

fn place_row(console: &Console, place: &ReplyPlace) -> Markup {
    let is_old = place.heartbeat_age.is_none_or(|age| age > console.instance().heartbeat_age_max());
    html! {
        tr {
            th.n scope="row" data-label="Partition" { (place.partition) }
            td data-label="Reader" {
                @if place.is_positioned { span.code.ok { "reading" } } @else { span.code.bad { "not in place" } }
            }
            td data-label="Requests name it" { @if place.is_named { "yes" } @else { span.dim { "no" } } }
            td.n data-label="Shard" { (place.shard) }
            td.n data-label="Heartbeat" {
                span class=(if is_old { "late" } else { "" }) {
                    @match place.heartbeat_age { Some(age) => { (time(age.as_secs_f64())) " ago" } None => "none yet" }
                }
            }
            td.n data-label="Next offset" { (number(u64::try_from(place.next_offset).unwrap_or_default())) }
            td.n data-label="Lag" {
                @match place.lag { Some(lag) => (number(u64::try_from(lag).unwrap_or_default())), None => "–" }
            }
        }
    }
}

/// Who else is there, and how that is known.
struct Other {
    name: String,
    what: String,
    how: &'static str,
}

fn others(console: &Console) -> Vec<Other> {
    let instance = console.instance();
    match console.routing {
        ReplyRouting::InstanceTopic => {
            let topics = instance.directory.snapshot();
            let prefix = format!("{}.", console.reply_prefix);
            let mut found: Vec<Other> = topics
                .iter()
                .filter(|(topic, _)| ***topic != **instance.reply_topic())
                .filter_map(|(topic, partitions)| {
                    let name = topic.strip_prefix(&prefix)?;
                    let what = format!("{topic}, {partitions} partitions");
                    Some(Other { name: name.to_owned(), what, how: "its reply topic exists" })
                })
                .collect();
            found.sort_by(|one, other| one.name.cmp(&other.name));
            found
        }
        ReplyRouting::Partition => {
            let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (partition, holder) in instance.other_holders() {
                by_name.entry(holder).or_default().push(partition.to_string());
            }
            let other = |(name, partitions): (String, Vec<String>)| {
                let what = format!("{}, partition {}", instance.reply_topic(), partitions.join(", "));
                Other { name, what, how: "it holds the lease" }
            };
            by_name.into_iter().map(other).collect()
        }
        ReplyRouting::Shared => Vec::new(),
    }
}

fn instances(console: &Console) -> Markup {
    let instance = console.instance();
    let others = others(console);
    let own = match console.routing {
        ReplyRouting::InstanceTopic => {
            format!("{}, {} partitions", instance.reply_topic(), instance.reply_partitions())
        }
        ReplyRouting::Partition | ReplyRouting::Shared => {
            let read: Vec<String> =
                instance.reply_places().iter().map(|place| place.partition.to_string()).collect();
            format!("{}, partition {}", instance.reply_topic(), read.join(", "))
        }
    };
    html! {
        table.stack {
            caption { "Instances, as far as this one knows" }
            thead { tr {
                th scope="col" { "Instance" } th scope="col" { "Where its replies come" } th scope="col" { "How it is known" }
            } }
            tbody {
                tr {
                    th.mono scope="row" { (instance.name()) }
                    td.mono data-label="Replies" { (own) }
                    td data-label="Known" { "this one" }
                }
                @for other in others.iter().take(INSTANCES_SHOWN_MAX) {
                    tr {
                        th.mono scope="row" { (other.name) }
                        td.mono data-label="Replies" { (other.what) }
                        td data-label="Known" { (other.how) }
                    }
                }
            }
        }
        @if others.len() > INSTANCES_SHOWN_MAX {
            p.hint { "and " (number((others.len() - INSTANCES_SHOWN_MAX) as u64)) " more" }
        }
        @if console.routing == ReplyRouting::Shared {
            p.hint { "With this routing instances do not tell each other that they are there." }
        }
    }
}

fn lanes(console: &Console) -> Markup {
    let mut lanes = console.instance().lanes();
    let circuits = console.instance().circuits();
    lanes.sort_by_key(|lane| {
        (std::cmp::Reverse((lane.calls, lane.records)), Arc::clone(&lane.topic), lane.partition)
    });
    let more = lanes.len().saturating_sub(LANES_SHOWN_MAX);
    lanes.truncate(LANES_SHOWN_MAX);
    html! {
        table.stack {
            caption { "Lanes: what goes to each partition of the request topics, the busiest first" }
            thead { tr {
                th scope="col" { "Topic" }
                th.n scope="col" { "Partition" }
                th.n scope="col" { "Queued" }
                th.n scope="col" { "Calls waiting" }
                th scope="col" { "Circuit" }
                th scope="col" { "Last error" }
            } }
            tbody {
                @for lane in &lanes { (lane_row(lane, circuits.get(&lane.topic))) }
                @if lanes.is_empty() { tr { td.none colspan="6" { "No request has been sent yet." } } }
            }
        }
        @if more > 0 { p.hint { "and " (number(more as u64)) " more" } }
    }
}

fn lane_row(lane: &LaneLoad, circuit: Option<&CircuitState>) -> Markup {
    html! {
        tr {
            th.mono scope="row" { (lane.topic) }
            td.n data-label="Partition" { (lane.partition) }
            td.n data-label="Queued" { (number(lane.records as u64)) }
            td.n data-label="Calls waiting" { (number(lane.calls.into())) }
            td data-label="Circuit" {
                @match circuit {
                    Some(CircuitState { open_for: Some(open_for), .. }) =>
                        span.code.bad { "open, next try in " (long(*open_for)) },
                    Some(state) => span.code.warn { (state.timeouts_in_a_row) " timed out in a row" },
                    None => span.dim { "closed" },
                }
            }
            td data-label="Last error" {
                @match &lane.last_error {
                    Some((at, error)) => { (error) span.sub { (long(at.elapsed())) " ago" } }
                    None => span.dim { "none" },
                }
            }
        }
    }
}
