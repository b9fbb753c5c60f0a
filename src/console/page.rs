//! What all pages have in common: their frame, their policy, and how numbers
//! are written.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::Console;
use super::desk::NoAnswer;
use crate::exchange::Phase;

/// No script but ours, no style but ours, nothing from elsewhere, no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Whoever looks, as the door has let them in.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    /// What a form must carry.
    pub(super) form_secret: String,
    /// As they called themselves when they signed in.
    pub(super) operator: String,
    /// By a cookie, which can be given back.
    pub(super) signed_in: bool,
    /// Only what changes is asked for.
    pub(super) is_live: bool,
}

/// The pages that can be chosen from everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Routes,
    Calls,
    Instances,
    Letters,
    Story,
}

impl Tab {
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Overview, "/console", "Overview"),
        (Self::Routes, "/console/routes", "Routes"),
        (Self::Calls, "/console/calls", "In flight"),
        (Self::Instances, "/console/instances", "Instances & lanes"),
        (Self::Letters, "/console/letters", "Dead letters"),
        (Self::Story, "/console/why", "A call’s story"),
    ];
}

impl Visit {
    /// Whether a form carries what our pages have put into it.
    pub(super) fn has_sent(&self, secret: &str) -> bool {
        let (ours, theirs) = (self.form_secret.as_bytes(), secret.as_bytes());
        let difference = ours.iter().zip(theirs).fold(0, |seen, (one, other)| seen | (one ^ other));
        ours.len() == theirs.len() && difference == 0
    }

    /// The hidden field for it.
    pub(super) fn form_secret(&self) -> Markup {
        html! { input type="hidden" name="form_secret" value=(self.form_secret); }
    }

    /// A page that stays as it is.
    pub(super) fn page(&self, console: &Console, title: &str, tab: Tab, content: Markup) -> Markup {
        self.frame(console, title, tab, content)
    }

    /// A page that is fetched again and again.
    pub(super) fn live_page(&self, console: &Console, title: &str, tab: Tab, content: Markup) -> Markup {
        let (class, word) = phase(console);
        let live = html! { div #live data-phase=(class) data-word=(word) { (content) } };
        if self.is_live { live } else { self.frame(console, title, tab, live) }
    }

    fn frame(&self, console: &Console, title: &str, tab: Tab, content: Markup) -> Markup {
        let (class, word) = phase(console);
        html! {
            (head(&format!("{title} · {}", console.instance().name())))
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="/console" { (mark()) span { "Antiphon" } }
                    span #phase class={ "pill " (class) } { (word) }
                    span.instance title="This instance" { (console.instance().name()) }
                    form.find role="search" action="/console/why" {
                        label.hidden for="find" { "Find a call" }
                        input #find type="search" name="name" autocomplete="off" spellcheck="false"
                            placeholder="Correlation id, idempotency key, trace id" aria-keyshortcuts="/";
                        kbd aria-hidden="true" { "/" }
                    }
                    @if self.signed_in {
                        form.out method="post" action="/console/logout" {
                            (self.form_secret())
                            button.quiet type="submit" title={ "Signed in as " (self.operator) } { "Sign out" }
                        }
                    }
                }
                nav.tabs aria-label="Pages" {
                    @for (which, path, name) in Tab::ALL {
                        a href=(path) aria-current=[(which == tab).then_some("page")] { (name) }
                    }
                }
                main #main tabindex="-1" { (content) }
                footer {
                    p #updates.hidden aria-live="off" {}
                    p { "Antiphon " (env!("CARGO_PKG_VERSION")) " · times are UTC · "
                        kbd { "/" } " finds a call, " kbd { "p" } " pauses updates" }
                }
            }
        }
    }
}

/// The state of the instance, as a class and as a word.
fn phase(console: &Console) -> (&'static str, &'static str) {
    match console.instance().phase() {
        Phase::Ready => ("ok", "Ready"),
        Phase::NotReady => ("bad", "Not ready"),
        Phase::Leaving => ("warn", "Leaving"),
        Phase::Draining => ("warn", "Draining"),
    }
}

fn head(title: &str) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en";
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · Antiphon" }
            link rel="stylesheet" href="/console/console.css";
            link rel="icon" href="/console/icon.svg" type="image/svg+xml";
            script src="/console/console.js" defer {}
        }
    }
}

/// A call, and the response that answers it.
fn mark() -> Markup {
    html! {
        svg.mark viewBox="0 0 24 24" width="22" height="22" aria-hidden="true" {
            path d="M4 15a8 8 0 0 1 16 0" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round" {}
            path d="M8 16.5a4 4 0 0 0 8 0" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round" {}
        }
    }
}

/// A page without the tabs: nobody is in yet.
pub(super) fn bare(title: &str, content: Markup) -> Markup {
    html! {
        (head(title))
        body.bare { main #main { p.brand { (mark()) span { "Antiphon" } } (content) } }
    }
}

/// Why somebody does not come in.
pub(super) fn refusal(status: StatusCode, title: &str, what: &str) -> Response {
    let content = html! { h1 { (title) } p { (what) } p { a href="/console" { "To the console" } } };
    (status, bare(title, content)).into_response()
}

/// A form from before this process was started, or from elsewhere.
pub(super) fn stale_form() -> Response {
    refusal(
        StatusCode::FORBIDDEN,
        "Not taken",
        "This form is out of date. Load its page again, and send it once more.",
    )
}

/// What could not be shown.
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) what: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, what: impl Into<String>) -> Self {
        Self { status, what: what.into() }
    }

    /// The page that says so.
    pub(super) fn page(&self, console: &Console, visit: &Visit, title: &str, tab: Tab) -> Response {
        let content = html! { h1 { (title) } p.notice.bad role="alert" { (self.what) } };
        (self.status, visit.page(console, title, tab, content)).into_response()
    }
}

impl From<NoAnswer> for Problem {
    fn from(error: NoAnswer) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<crate::dead_letters::Error> for Problem {
    fn from(error: crate::dead_letters::Error) -> Self {
        use crate::dead_letters::Error as E;
        let status = match error {
            E::Cluster(_) | E::Fetch { .. } => StatusCode::BAD_GATEWAY,
            E::NoTopic(_) | E::NoPartition { .. } | E::WhichPartition { .. } => StatusCode::NOT_FOUND,
        };
        Self::new(status, error.to_string())
    }
}

/// What browsers must hold every answer to.
pub(super) async fn with_policy(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // No further: an id in a path is nobody else's business. With none at
        // all, forms would come without their origin.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// `12,345`.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Something a second.
pub(super) fn per_second(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        small if small < 9.95 => format!("{small:.1}"),
        _ => number(rate.round() as u64),
    }
}

/// A time in the unit that fits, with two digits that mean something.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s => long(Duration::from_secs_f64(s)),
    }
}

/// A time that may be days.
pub(super) fn long(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// In the unit that fits.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [number(0), number(999), number(1_000), number(12_345_678)],
            ["0", "999", "1,000", "12,345,678"]
        );
        assert_eq!([per_second(0.0), per_second(0.25), per_second(1_234.5)], ["0", "0.2", "1,235"]);
        assert_eq!(
            [time(0.000_35), time(0.001_24), time(0.45), time(2.34), time(75.0)],
            ["350 µs", "1.2 ms", "450 ms", "2.3 s", "1 min 15 s"]
        );
        assert_eq!(long(Duration::from_secs(90_000)), "1 d 1 h");
        assert_eq!([bytes(10), bytes(1_536), bytes(3 << 20)], ["10 B", "1.5 KiB", "3.0 MiB"]);
    }
}
