//! A call's story, as `antiphon why` tells it, within a few seconds.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use tokio::time::Instant;

use super::Console;
use super::letters::headers;
use super::page::{Problem, Tab, Visit, bytes, number};
use crate::dead_letters::show::{count, method_of, now_ms, timestamp};
use crate::dead_letters::{Place, parse_when};
use crate::why::show::{events, groups_text, log_text};
use crate::why::{Cause, Error, Found, Limits, Name, Question, Story, investigate, judge, scope};

/// How long a search may take.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(20);
/// What a search may read; the command line may read more.
const LIMITS: Limits = Limits { records_max: 500_000, bytes_max: 512 << 20 };
/// Characters of a name.
const NAME_CHARS_MAX: usize = 500;
/// Searches begin so long ago, unless they are told otherwise.
const SINCE: &str = "1h";

/// Which call, as it was typed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    name: String,
    since: String,
    record: String,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::NoTopic(_) => StatusCode::NOT_FOUND,
            Error::Cluster(_) | Error::Fetch { .. } => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string())
    }
}

pub(super) async fn page(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Query(asked): Query<Asked>,
) -> Response {
    let is_asked = !(asked.name.trim().is_empty() && asked.record.trim().is_empty());
    let mut status = StatusCode::OK;
    let answer = match is_asked {
        false => html! {
            p.lead {
                "What became of one call, from Kafka itself: its request, who had it, its reply or dead letter, \
                 and the verdict in one sentence."
            }
        },
        true => match search(&console, &asked).await {
            Ok((question, found)) => stories(&question, &found),
            Err(problem) => {
                status = problem.status;
                html! { p.notice.bad role="alert" { (problem.what) } }
            }
        },
    };
    let content = html! {
        h1 { "A call’s story" }
        (form(&asked))
        div #answer aria-live="polite" { (answer) }
    };
    (status, visit.page(&console, "A call’s story", Tab::Story, content)).into_response()
}

fn form(asked: &Asked) -> Markup {
    let since = if asked.since.trim().is_empty() { SINCE } else { &asked.since };
    html! {
        form.filter.story role="search" aria-label="A call" action="/console/why"
            data-busy="Searching Kafka, for at most 20 seconds…" {
            label.wide {
                "Correlation id, idempotency key or trace id"
                input name="name" value=(asked.name) autocomplete="off" spellcheck="false";
            }
            label { "Made since" input name="since" value=(since) placeholder="such as 10m, 2h" autocomplete="off"; }
            label {
                "Or its record"
                input name="record" value=(asked.record) placeholder="topic/partition/offset" autocomplete="off" spellcheck="false";
            }
            div.buttons { button.primary type="submit" { "Search" } }
        }
    }
}

/// `topic/partition/offset`, as the trailer `antiphon-record` says it.
fn record(text: &str) -> Result<Option<(String, i32, i64)>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let parse = || {
        let (topic, place) = text.split_once('/')?;
        let place: Place = place.parse().ok()?;
        (!topic.is_empty()).then(|| (topic.to_owned(), place.partition, place.offset))
    };
    parse().map(Some).ok_or_else(|| format!("{text:?} is no record; expected TOPIC/PARTITION/OFFSET"))
}

async fn search(console: &Console, asked: &Asked) -> Result<(Question, Found), Problem> {
    let wrong = |what: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what);
    if asked.name.chars().count() > NAME_CHARS_MAX {
        return Err(wrong(format!("A name has at most {NAME_CHARS_MAX} characters.")));
    }
    let now_ms = now_ms();
    let since = Some(asked.since.trim()).filter(|since| !since.is_empty()).unwrap_or(SINCE);
    let since_ms = parse_when(since, now_ms).map_err(|error| wrong(error.to_string()))?;
    let record = record(&asked.record).map_err(wrong)?;
    let name = Some(asked.name.trim()).filter(|name| !name.is_empty()).map(Name::new);
    let (routes, reply_prefix) = (console.routes.clone(), console.reply_prefix.clone());
    let existing: BTreeSet<String> = console.instance().directory.snapshot().keys().cloned().collect();
    if let Some((topic, ..)) = record.as_ref().filter(|(topic, ..)| !existing.contains(topic)) {
        return Err(Error::NoTopic(topic.clone()).into());
    }
    let of_record = record.iter().map(|(topic, ..)| topic.clone());
    let scope = scope(Some(&routes), &existing, &reply_prefix, BTreeSet::new(), of_record)?;
    let question = Question {
        name,
        record,
        since_ms,
        until_ms: None,
        request_topics: scope.request_topics,
        dead_letter_topics: scope.dead_letter_topics,
        reply_prefix,
        custom: routes.custom_dialect().cloned(),
        limits: LIMITS,
        deadline: Instant::now(),
        now_ms,
    };
    let answer = console.desk.ask(move |kafka| async move {
        // From its turn on.
        let question = Question { deadline: Instant::now() + SEARCH_TIMEOUT, ..question };
        let found = investigate(&*kafka, &*kafka, &question, &mut |_| {}).await?;
        Ok::<_, Error>((question, found))
    });
    Ok(answer.await??)
}

fn stories(question: &Question, found: &Found) -> Markup {
    let searched = &found.searched;
    html! {
        @for story in &found.stories { (one(question, found, story)) }
        @if found.stories.is_empty() {
            @let verdict = judge(&Story::default().facts(question.now_ms, searched.is_complete()));
            p.verdict.warn { (verdict) }
        }
        @if found.more > 0 { p.hint { (count(found.more as u64, "more call")) " have the same name" } }
        p.hint {
            (count(searched.records, "record")) " read in " (count(searched.partitions, "partition"))
            " (" (bytes(searched.bytes)) ")"
            @if question.record.is_none() { ", from " (timestamp(question.since_ms)) " on" }
            @if searched.undecodable > 0 { "; " (number(searched.undecodable)) " cannot be decoded" }
        }
        @for why in &searched.unfinished {
            p.notice.warn role="alert" {
                "Not read to its end: " (why) ". " code { "antiphon why" } " may take more time."
            }
        }
    }
}

fn one(question: &Question, found: &Found, story: &Story) -> Markup {
    let verdict = judge(&story.facts(question.now_ms, found.searched.is_complete()));
    let class = match verdict.cause {
        Cause::Answered { .. } | Cause::OneWay(_) => "ok",
        _ => "warn",
    };
    let request = story.request().map(|seen| &seen.letter);
    html! {
        article.story {
            p class={ "verdict " (class) } { (verdict) }
            dl.facts {
                @if let Some(id) = &story.id { dt { "Call" } dd.mono { (id) } }
                @if let Some(letter) = request {
                    dt { "Method" } dd { (method_of(letter)) }
                    @if let Some(key) = letter.key() { dt { "Key" } dd.mono { (key) } }
                    @if let Some(key) = letter.text("idempotency-key") { dt { "Idempotency key" } dd.mono { (key) } }
                }
                @if let Some(name) = story.instance(&question.reply_prefix) { dt { "Instance" } dd.mono { (name) } }
                @if let Some(topic) = &story.reply_topic {
                    dt { "Reply topic" } dd { span.mono { (topic) } (log_text(story.reply_log)) }
                }
                @if let Some(groups) = groups_text(&story.groups) { dt { "Read by" } dd { (groups) } }
            }
            (timeline(story))
            @if let Some(letter) = request {
                details { summary { "Headers of the request" } (headers(letter)) }
            }
        }
    }
}

fn timeline(story: &Story) -> Markup {
    html! {
        table.stack {
            caption { "What happened" }
            thead { tr {
                th.n scope="col" { "After" } th scope="col" { "What" } th scope="col" { "Note" }
                th scope="col" { "Record" } th scope="col" { "At" }
            } }
            tbody {
                @for event in events(story) {
                    tr {
                        td.n data-label="After" { (event.after()) }
                        th scope="row" { (event.what) }
                        td data-label="Note" { (event.note()) }
                        td.mono data-label="Record" { (event.place().unwrap_or_default()) }
                        td.mono data-label="At" { time datetime=(timestamp(event.at_ms)) { (timestamp(event.at_ms)) } }
                    }
                }
            }
        }
    }
}
