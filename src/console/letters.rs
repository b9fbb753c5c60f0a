//! Dead letters: the newest, those that a filter takes, and one of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use tokio::time::Instant;

use super::Console;
use super::overview::letters_on;
use super::page::{Problem, Tab, Visit, number};
use crate::dead_letters::show::{age, count, header_value, method_of, now_ms, status_name, timestamp};
use crate::dead_letters::{
    Begin, Beside, Collected, DeadLetterTopic, Entry, Filter, Keep, Letter, Original, Place, SUFFIXES,
    collect_from, fetch_one, parse_when,
};
use crate::terms::DeadLetterClass;
use crate::transport::Cluster;

/// Letters that are shown.
const LETTERS_SHOWN_MAX: usize = 100;
/// Records at the end of each partition that are looked at.
const RECORDS_LOOKED_AT_MAX: u64 = 20_000;
/// How long one look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);
/// Topics to choose from.
const TOPICS_SHOWN_MAX: usize = 200;
/// Characters of a filter's field.
const FIELD_CHARS_MAX: usize = 500;

/// The filter, as it was typed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    topic: String,
    which: String,
    class: String,
    method: String,
    key: String,
    since: String,
    until: String,
    partition: String,
}

impl Asked {
    fn filter(&self, now_ms: i64) -> Result<Filter, String> {
        let fields =
            [&self.which, &self.class, &self.method, &self.key, &self.since, &self.until, &self.partition];
        if fields.iter().any(|field| field.chars().count() > FIELD_CHARS_MAX) {
            return Err(format!("A field has at most {FIELD_CHARS_MAX} characters."));
        }
        let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let when = |text: &str| given(text).map(|text| parse_when(&text, now_ms)).transpose();
        let mut filter = Filter {
            since_ms: when(&self.since).map_err(|error| error.to_string())?,
            until_ms: when(&self.until).map_err(|error| error.to_string())?,
            key: given(&self.key),
            method: given(&self.method),
            ..Filter::default()
        };
        if let Some(class) = given(&self.class) {
            filter.classes = vec![class.parse::<DeadLetterClass>().map_err(|error| error.to_string())?];
        }
        if let Some(partition) = given(&self.partition) {
            let parsed = partition.parse::<i32>().ok().filter(|partition| *partition >= 0);
            filter.partition = Some(parsed.ok_or_else(|| format!("{partition:?} is no partition."))?);
        }
        for word in self.which.split([' ', ',']).filter(|word| !word.is_empty()) {
            match word.parse::<Place>() {
                Ok(place) => filter.places.push(place),
                Err(error) if word.contains('/') => return Err(error.to_string()),
                Err(_) => filter.correlation_ids.push(word.to_owned()),
            }
        }
        Ok(filter)
    }
}

/// The topics with dead letters, with their records where they are counted.
fn topics(console: &Console) -> Vec<(String, i32, Option<u64>)> {
    let known = console.instance().directory.snapshot();
    let of_routes: HashSet<&str> =
        console.routes.routes().iter().map(|route| &*route.dead_letter_topic).collect();
    let is_one =
        |topic: &str| SUFFIXES.iter().any(|suffix| topic.ends_with(suffix)) || of_routes.contains(topic);
    let mut found: Vec<_> = known
        .iter()
        .filter(|(topic, _)| is_one(topic))
        .map(|(topic, partitions)| {
            (topic.clone(), *partitions, letters_on(console, &Arc::from(topic.as_str())))
        })
        .collect();
    found.sort_by(|one, other| (other.2, &one.0).cmp(&(one.2, &other.0)));
    found.truncate(TOPICS_SHOWN_MAX);
    found
}

/// A topic that may be looked at: no other can be read from here.
pub(super) fn topic(console: &Console, name: &str) -> Result<DeadLetterTopic, Problem> {
    let found = topics(console).into_iter().find(|(topic, _, _)| topic == name);
    found.map(|(name, partitions, _)| DeadLetterTopic { name, partitions }).ok_or_else(|| {
        let what = format!("There is no dead-letter topic {name:?}, by the last look at the cluster.");
        Problem::new(StatusCode::NOT_FOUND, what)
    })
}

pub(super) async fn list(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Query(mut asked): Query<Asked>,
) -> Response {
    let topics = topics(&console);
    if asked.topic.is_empty() {
        asked.topic = topics.first().map(|(topic, _, _)| topic.clone()).unwrap_or_default();
    }
    let mut status = StatusCode::OK;
    let found = match asked.topic.is_empty() {
        true => html! { p.calm { "There is no dead-letter topic on the cluster." } },
        false => match look(&console, &asked).await {
            Ok(found) => table(&asked.topic, &found),
            Err(problem) => {
                status = problem.status;
                html! { p.notice.bad role="alert" { (problem.what) } }
            }
        },
    };
    let content = html! {
        h1 { "Dead letters" }
        (form(&asked, &topics))
        (found)
    };
    (status, visit.page(&console, "Dead letters", Tab::Letters, content)).into_response()
}

async fn look(console: &Console, asked: &Asked) -> Result<Collected, Problem> {
    let wrong = |what: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what);
    let filter = asked.filter(now_ms()).map_err(wrong)?;
    let topic = topic(console, &asked.topic)?;
    let found = console.desk.ask(move |kafka| async move {
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let (begin, keep) = (Begin::BeforeEnd(RECORDS_LOOKED_AT_MAX), Keep::Newest(LETTERS_SHOWN_MAX));
        collect_from(&*kafka, &topic, &filter, begin, keep, deadline).await
    });
    Ok(found.await??)
}

fn form(asked: &Asked, topics: &[(String, i32, Option<u64>)]) -> Markup {
    let field = |name: &str, label: &str, value: &str, hint: &str| {
        html! { label { (label) input name=(name) value=(value) placeholder=(hint) autocomplete="off" spellcheck="false"; } }
    };
    html! {
        form.filter role="search" aria-label="Dead letters" action="/console/letters" {
            label.wide {
                "Topic"
                select name="topic" {
                    @for (topic, _, records) in topics {
                        option value=(topic) selected[*topic == asked.topic] {
                            (topic) @if let Some(records) = records { " (" (number(*records)) ")" }
                        }
                    }
                }
            }
            (field("which", "Correlation id or place", &asked.which, "… or 2/41"))
            label {
                "Class"
                select name="class" {
                    option value="" { "requests of any class" }
                    @for class in DeadLetterClass::SPELLINGS {
                        option value=(class) selected[*class == asked.class] { (class) }
                    }
                }
            }
            (field("method", "Method", &asked.method, "pkg.Service/Method"))
            (field("key", "Key", &asked.key, ""))
            (field("since", "Since", &asked.since, "such as 10m, 2h"))
            (field("until", "Until", &asked.until, "a time in RFC 3339"))
            (field("partition", "Partition", &asked.partition, "any"))
            div.buttons {
                button.primary type="submit" { "Search" }
                a.button href={ "/console/letters?topic=" (asked.topic) } { "Clear" }
            }
        }
    }
}

fn table(topic: &str, found: &Collected) -> Markup {
    let now = now_ms();
    let scan = &found.scan;
    html! {
        table.stack {
            caption {
                (count(found.entries.len() as u64, "dead letter")) " on " code { (topic) } ", the newest first"
                @if found.more > 0 { "; " (number(found.more)) " more fit" }
            }
            thead { tr {
                th.n scope="col" { "Age" } th scope="col" { "Method" } th scope="col" { "Class" } th scope="col" { "Since then" }
                th scope="col" { "Place" } th scope="col" { "Key" } th scope="col" { "Reason" }
            } }
            tbody {
                @for entry in found.entries.iter().rev() { (row(topic, entry, now)) }
                @if found.entries.is_empty() { tr { td.none colspan="7" { "None fits." } } }
            }
        }
        p.hint {
            (count(scan.records, "record")) " read"
            @if scan.passed_over > 0 {
                "; " (number(scan.passed_over)) " older ones were not looked at: "
                code { "antiphon dlq list" } " looks at all of them"
            }
            @if scan.undecodable > 0 { "; " (number(scan.undecodable)) " cannot be decoded" }
        }
        @for (partition, why) in &scan.unfinished {
            p.notice.warn role="alert" { "Partition " (partition) " was not read to its end: " (why) }
        }
    }
}

fn row(topic: &str, Entry { letter, beside }: &Entry, now: i64) -> Markup {
    let at = letter.failed_at_ms();
    html! {
        tr {
            td.n data-label="Age" { time datetime=(timestamp(at)) title=(timestamp(at)) { (age(now - at)) } }
            th scope="row" { a href=(path(topic, letter.place)) { (method_of(letter)) } }
            td data-label="Class" { (class_of(letter)) }
            td data-label="Since then" { (beside_of(beside)) }
            td.mono data-label="Place" { (letter.place) }
            td.mono data-label="Key" { (letter.key().unwrap_or_else(|| "–".to_owned())) }
            td data-label="Reason" { (letter.reason().unwrap_or_else(|| "–".into())) }
        }
    }
}

/// The page of a letter.
pub(super) fn path(topic: &str, place: Place) -> String {
    format!("/console/letters/{topic}/{place}")
}

fn class_of(letter: &Letter) -> Markup {
    let class = letter.class().map_or("of another program", |class| class.as_str());
    html! { span.code.warn { (class) } }
}

/// What has happened to it since.
pub(super) fn beside_of(beside: &Beside) -> Markup {
    html! {
        @if let Some(late) = &beside.late_reply {
            span class=(if late.is_done() { "code ok" } else { "code warn" }) {
                @if late.is_done() { "done: " } @else { "late: " } (status_name(late))
            } " "
        }
        @if beside.replays > 0 { span.code { "replayed " (beside.replays) "×" } }
        @if beside.late_reply.is_none() && beside.replays == 0 { span.dim { "nothing" } }
    }
}

/// A letter, where it is asked for by its place.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct At {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl At {
    pub(super) const fn place(&self) -> Place {
        Place { partition: self.partition, offset: self.offset }
    }
}

/// A letter, whole, and what stands behind it; whether all behind it was read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) unfinished: Option<String>,
}

/// Reads the letter and all that is behind it, where its late reply and its
/// replays are.
pub(super) async fn find(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    place: Place,
) -> Result<Option<Found>, crate::dead_letters::Error> {
    let deadline = Instant::now() + LOOK_TIMEOUT;
    let Some(letter) = fetch_one(cluster, topic, place).await? else { return Ok(None) };
    let filter = Filter {
        partition: Some(place.partition),
        places: vec![place],
        classes: letter.class().filter(|_| !letter.is_request()).into_iter().collect(),
        ..Filter::default()
    };
    let mut found =
        collect_from(cluster, topic, &filter, Begin::At(place.offset), Keep::Oldest(1), deadline).await?;
    let beside = found.entries.pop().map(|entry| entry.beside).unwrap_or_default();
    let unfinished = found.scan.unfinished.pop().map(|(_, why)| why);
    Ok(Some(Found { entry: Entry { letter, beside }, unfinished }))
}

pub(super) async fn one(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Path(at): Path<At>,
) -> Response {
    match find_one(&console, &at).await {
        Ok(found) => {
            let title = format!("Dead letter {}", at.place());
            visit.page(&console, &title, Tab::Letters, show(&at, &found)).into_response()
        }
        Err(problem) => problem.page(&console, &visit, "Dead letter", Tab::Letters),
    }
}

async fn find_one(console: &Console, at: &At) -> Result<Found, Problem> {
    let (topic, place) = (topic(console, &at.topic)?, at.place());
    let found = console.desk.ask(move |kafka| async move { find(&*kafka, &topic, place).await }).await??;
    found.ok_or_else(|| gone(at))
}

pub(super) fn gone(at: &At) -> Problem {
    let what = format!("There is nothing at {}/{} any more, or not yet.", at.topic, at.place());
    Problem::new(StatusCode::NOT_FOUND, what)
}

fn show(at: &At, Found { entry: Entry { letter, beside }, unfinished }: &Found) -> Markup {
    let id = letter.correlation_id();
    html! {
        p.crumbs { a href={ "/console/letters?topic=" (at.topic) } { "Dead letters on " (at.topic) } }
        h1 { (method_of(letter)) " " (class_of(letter)) }
        @if let Some(reason) = letter.reason() { p.lead { (reason) } }
        @if let Some(why) = unfinished {
            p.notice.warn role="alert" { "What is behind it was not read to its end, so that a late reply or a replay may be missing here: " (why) }
        }
        (since_then(beside))
        @if letter.is_request() {
            p.actions {
                a.button.primary href={ (path(&at.topic, letter.place)) "/replay" } { "Replay…" }
                @if let Some(id) = &id { a.button href={ "/console/why?since=7d&name=" (id) } { "The call’s story" } }
            }
        }
        div.columns {
            section { h2 { "The letter" } (facts(at, letter)) }
            section { (headers(letter)) }
        }
    }
}

fn since_then(beside: &Beside) -> Markup {
    html! {
        @if let Some(late) = &beside.late_reply {
            p class=(if late.is_done() { "notice ok" } else { "notice warn" }) {
                "A reply came after the call had ended: " b { (status_name(late)) }
                @let message = late.status.as_ref().err().unwrap_or(&late.message);
                @if !message.is_empty() { ", “" (message) "”" }
                " (at " code { (late.place) } ")."
                @if late.is_done() { " A worker has carried the request out." }
            }
        }
        @if let Some(replay) = &beside.last_replay {
            p.notice {
                "Sent again " (count(beside.replays.into(), "time")) ", last on "
                time datetime=(timestamp(replay.at_ms)) { (timestamp(replay.at_ms)) }
                @if let Some(by) = &replay.by { " by " b { (by) } }
                @if let Some(to) = &replay.to { ", to " code { (original(to)) } }
                @if replay.outcome.as_deref() == Some("unknown") { ". Whether it arrived is not known" }
                "."
            }
        }
    }
}

/// `topic/partition/offset`, as far as it is known.
pub(super) fn original(at: &Original) -> String {
    let part = |number: Option<i64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    format!("{}/{}/{}", at.topic, part(at.partition.map(i64::from)), part(at.offset))
}

fn facts(at: &At, letter: &Letter) -> Markup {
    let failed = letter.failed_at_ms();
    html! {
        dl.facts {
            dt { "Place" } dd.mono { (at.topic) "/" (letter.place) }
            dt { "Failed" } dd {
                time datetime=(timestamp(failed)) { (timestamp(failed)) } " (" (age(now_ms() - failed)) " ago)"
            }
            @if let Some(outcome) = letter.outcome() { dt { "In the log" } dd { code { (outcome) } } }
            @if let Some(from) = letter.original() { dt { "Request" } dd.mono { (original(&from)) } }
            @if let Some(id) = letter.correlation_id() { dt { "Correlation id" } dd.mono { (id) } }
            @if let Some(key) = letter.key() { dt { "Key" } dd.mono { (key) } }
            dt { "Value" } dd {
                @match (letter.value_left_out(), letter.value_bytes) {
                    (Some(bytes), _) => { "too large to be kept, " (bytes) " bytes" }
                    (None, Some(bytes)) => { (count(bytes as u64, "byte")) "; " code { "antiphon dlq show" } " shows it" }
                    (None, None) => "none",
                }
            }
        }
    }
}

/// Names and values; nothing of credentials that were forwarded.
pub(super) fn headers(letter: &Letter) -> Markup {
    html! {
        table.headers {
            caption { "Headers" }
            thead { tr { th scope="col" { "Name" } th scope="col" { "Value" } } }
            tbody {
                @for (name, value) in &letter.record.headers {
                    tr { th.mono scope="row" { (name) } td.mono { (header_value(name, value)) } }
                }
            }
        }
    }
}
