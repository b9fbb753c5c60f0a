//! Sends the request of a dead letter again: shown first, confirmed by
//! somebody with a name, noted in the record, beside the letter and in the log.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use maud::{Markup, html};
use serde::Deserialize;

use super::desk::{Kafka, NoAnswer};
use super::letters::{At, Found, find, gone, path};
use super::page::{self, Problem, Tab, Visit};
use super::{Console, letters};
use crate::dead_letters::show::method_of;
use crate::dead_letters::{
    self, DeadLetterTopic, Letter, Place, Prepared, Refusal, ReplayOptions, Replayer, Sent, operator,
};

/// What somebody may insist on.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Insists {
    #[serde(deserialize_with = "ticked")]
    again: bool,
    #[serde(deserialize_with = "ticked")]
    even_if_done: bool,
}

/// A box that is ticked is there, whatever it says.
fn ticked<'de, D: serde::Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Option::<String>::deserialize(value).map(|found| found.is_some())
}

/// What the page before told of, and who confirms it.
#[derive(Deserialize)]
pub(super) struct Confirmed {
    form_secret: String,
    #[serde(default)]
    operator: String,
    #[serde(default, deserialize_with = "ticked")]
    confirmed: bool,
    #[serde(default, deserialize_with = "ticked")]
    again: bool,
    #[serde(default, deserialize_with = "ticked")]
    even_if_done: bool,
}

impl Insists {
    fn options(self, console: &Console, by: Option<String>) -> ReplayOptions {
        let Self { again, even_if_done } = self;
        let compression = Some(console.compression);
        ReplayOptions { even_if_done, again, by, compression, deadline: None }
    }
}

/// What would be sent, or why not.
type Plan = Result<Prepared, Refusal>;

/// Why a request was not sent.
enum Stopped {
    Problem(Problem),
    Refused(Refusal),
}

impl<E: Into<Problem>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Problem(error.into())
    }
}

/// The page that asks whether it is really meant.
pub(super) async fn ask(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Path(at): Path<At>,
    Query(insists): Query<Insists>,
) -> Response {
    match plan(&console, &at, insists).await {
        Ok((found, plan)) => {
            let content = confirmation(&visit, &at, &found, &plan, insists);
            visit.page(&console, &format!("Replay {}", at.place()), Tab::Letters, content).into_response()
        }
        Err(problem) => problem.page(&console, &visit, "Replay", Tab::Letters),
    }
}

async fn plan(console: &Console, at: &At, insists: Insists) -> Result<(Found, Plan), Problem> {
    let (topic, place, options) =
        (letters::topic(console, &at.topic)?, at.place(), insists.options(console, None));
    let planned = console.desk.ask(move |kafka| async move {
        let Some(found) = find(&*kafka, &topic, place).await? else { return Ok(None) };
        let topics = dead_letters::topics(&*kafka).await?;
        let plan = Replayer::new(&*kafka, &topics, options).prepare(&found.entry.letter, &found.entry.beside);
        Ok::<_, dead_letters::Error>(Some((found, plan)))
    });
    let (found, plan) = planned.await??.ok_or_else(|| gone(at))?;
    whole(&found)?;
    Ok((found, plan))
}

/// What was not read may tell that a request was carried out.
fn whole(found: &Found) -> Result<(), Problem> {
    let Some(why) = &found.unfinished else { return Ok(()) };
    let what = format!(
        "What is behind the letter was not read to its end ({why}), and may tell that the request was carried \
         out. Nothing is sent from here; antiphon dlq replay takes more time (--timeout)."
    );
    Err(Problem::new(StatusCode::CONFLICT, what))
}

fn confirmation(visit: &Visit, at: &At, found: &Found, plan: &Plan, insists: Insists) -> Markup {
    let letter = &found.entry.letter;
    html! {
        p.crumbs { a href=(path(&at.topic, letter.place)) { "Dead letter " (at.topic) "/" (letter.place) } }
        h1 { "Send this request again?" }
        p.lead { (method_of(letter)) }
        @match plan {
            Ok(prepared) => (what_is_sent(visit, at, letter, prepared, insists)),
            Err(refusal) => (refused(at, letter.place, refusal, insists)),
        }
    }
}

fn what_is_sent(visit: &Visit, at: &At, letter: &Letter, prepared: &Prepared, insists: Insists) -> Markup {
    html! {
        dl.facts {
            dt { "To" } dd.mono { (prepared.topic) "/" (prepared.partition) }
            dt { "Correlation id" } dd.mono { (letter.correlation_id().unwrap_or_else(|| "none".to_owned())) }
            dt { "Key" } dd.mono { (letter.key().unwrap_or_else(|| "none".to_owned())) }
            dt { "Replay" } dd { "number " (prepared.count) }
            dt { "Changes" } dd {
                @if prepared.changes.is_empty() { "none" } @else { (prepared.changes.join(", ")) }
            }
        }
        p { "A worker will carry it out as if it had just been made. Its caller has its answer already, and will not hear of it." }
        form.stack method="post" action={ (path(&at.topic, letter.place)) "/replay" } {
            (visit.form_secret())
            @if insists.again { input type="hidden" name="again" value="on"; }
            @if insists.even_if_done { input type="hidden" name="even_if_done" value="on"; }
            label { "Your name" input name="operator" required maxlength="64" autocomplete="username" value=(visit.operator); }
            label.tick { input type="checkbox" name="confirmed" required; " I want this request to be carried out" }
            div.buttons {
                button.primary.danger type="submit" { "Send it again" }
                a.button href=(path(&at.topic, letter.place)) { "Leave it" }
            }
            p.hint { "Your name goes into the record, into the note beside the letter, and into the log." }
        }
    }
}

fn refused(at: &At, place: Place, refusal: &Refusal, insists: Insists) -> Markup {
    let label = match refusal {
        Refusal::Done(_) => Some(("even_if_done", "Send it even so: it may be carried out twice")),
        Refusal::Replayed(_) => Some(("again", "Send it once more: it may be carried out twice")),
        _ => None,
    };
    html! {
        p.notice.warn role="alert" { (why(refusal)) }
        @if let Some((name, label)) = label {
            form.stack action={ (path(&at.topic, place)) "/replay" } {
                @if insists.again { input type="hidden" name="again" value="on"; }
                @if insists.even_if_done { input type="hidden" name="even_if_done" value="on"; }
                label.tick { input type="checkbox" name=(name) required; " " (label) }
                div.buttons {
                    button type="submit" { "Go on" }
                    a.button href=(path(&at.topic, place)) { "Leave it" }
                }
            }
        } @else {
            p { a.button href=(path(&at.topic, place)) { "Back to the letter" } }
        }
    }
}

/// Without the flags of the command line.
fn why(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Done(how) => format!("It was carried out: {how}."),
        Refusal::Replayed(1) => "It was sent again before.".to_owned(),
        Refusal::Replayed(times) => format!("It was sent again {times} times before."),
        other => format!("It cannot be sent: {other}."),
    }
}

/// Sends what was confirmed.
pub(super) async fn send(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Path(at): Path<At>,
    Form(form): Form<Confirmed>,
) -> Response {
    if !visit.has_sent(&form.form_secret) {
        return page::stale_form();
    }
    let unusable = |what: &str| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what).page(&console, &visit, "Replay", Tab::Letters)
    };
    let by = match operator(&form.operator) {
        Ok(by) => by,
        Err(error) => return unusable(&format!("Who are you? {error}.")),
    };
    if !form.confirmed {
        return unusable("It was not confirmed, and nothing was sent.");
    }
    let insists = Insists { again: form.again, even_if_done: form.even_if_done };
    match carry_out(&console, &at, insists, by).await {
        Ok(()) => Redirect::to(&path(&at.topic, at.place())).into_response(),
        Err(Stopped::Problem(problem)) => problem.page(&console, &visit, "Replay", Tab::Letters),
        Err(Stopped::Refused(refusal)) => {
            let content = html! { h1 { "Nothing was sent" } (refused(&at, at.place(), &refusal, insists)) };
            (StatusCode::CONFLICT, visit.page(&console, "Replay", Tab::Letters, content)).into_response()
        }
    }
}

async fn carry_out(console: &Console, at: &At, insists: Insists, by: String) -> Result<(), Stopped> {
    let (topic, at) = (letters::topic(console, &at.topic)?, at.clone());
    let options = insists.options(console, Some(by.clone()));
    let console = console.clone();
    let desk = console.desk.clone();
    desk.order(move |kafka| async move {
        let _alone = console.replaying.lock().await;
        replay(kafka, &topic, &at, options, &by).await
    })
    .await
    .map_err(unknown)?
}

/// It goes on when nobody waits for it any more.
fn unknown(error: NoAnswer) -> Problem {
    match error {
        NoAnswer::Busy => error.into(),
        NoAnswer::TooLate | NoAnswer::Closed => Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "Whether it was sent is not known: {error}. Look at the letter again before you send it once more."
            ),
        ),
    }
}

async fn replay(
    kafka: Arc<dyn Kafka>,
    topic: &DeadLetterTopic,
    at: &At,
    options: ReplayOptions,
    by: &str,
) -> Result<(), Stopped> {
    let found = find(&*kafka, topic, at.place()).await?.ok_or_else(|| gone(at))?;
    whole(&found)?;
    let topics = dead_letters::topics(&*kafka).await?;
    let (letter, beside) = (&found.entry.letter, &found.entry.beside);
    let mut replayer = Replayer::new(&*kafka, &topics, options);
    let prepared = replayer.prepare(letter, beside).map_err(Stopped::Refused)?;
    let sent = replayer.send(&prepared).await;
    audit(by, topic, letter, &prepared, &sent);
    if let Sent::NotSent(why) = &sent {
        let what = format!("It was not sent, and is certainly not in the log: {why}");
        return Err(Problem::new(StatusCode::BAD_GATEWAY, what).into());
    }
    let noted = replayer.note(topic, letter, &prepared, &sent).await;
    if let Sent::NotSent(why) | Sent::Unknown(why) = noted {
        tracing::error!(target: "antiphon::audit", letter = %letter.place, why, "console: a replay could not be noted beside its letter");
        let what = format!(
            "It was sent again, but that could not be noted beside it, so that others may send it once more: {why}"
        );
        return Err(Problem::new(StatusCode::BAD_GATEWAY, what).into());
    }
    if let Sent::Unknown(why) = sent {
        let what = format!("It may be in the log, and was not repeated: {why}");
        return Err(Problem::new(StatusCode::BAD_GATEWAY, what).into());
    }
    Ok(())
}

/// One line in the log: who has done what, and what came of it.
fn audit(by: &str, topic: &DeadLetterTopic, letter: &Letter, prepared: &Prepared, sent: &Sent) {
    let (outcome, offset, why) = match sent {
        Sent::Sent(offset) => ("sent", *offset, ""),
        Sent::Unknown(why) => ("unknown", None, why.as_str()),
        Sent::NotSent(why) => ("not-sent", None, why.as_str()),
    };
    tracing::info!(
        target: "antiphon::audit",
        operator = by,
        letter = %format_args!("{}/{}", topic.name, letter.place),
        correlation_id = letter.correlation_id(),
        to = %format_args!("{}/{}", prepared.topic, prepared.partition),
        offset,
        replay = prepared.count,
        outcome,
        why,
        "console: a dead letter was replayed"
    );
}
