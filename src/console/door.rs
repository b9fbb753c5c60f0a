//! Who may come in, and whose forms are taken.
//!
//! | admin.token_file | listener | who sees the pages |
//! |---|---|---|
//! | set | any | who shows the token, as `authorization: Bearer` or once in the form, which sets a cookie |
//! | not set | loopback | who is on this host and calls it by a loopback name, so that no page from elsewhere gets in through a name of its own (DNS rebinding) |
//! | not set | other | nobody |
//!
//! A form is taken from our own pages only: the browser must say so
//! (`Sec-Fetch-Site`, `Origin`), and the form must carry a secret that only our
//! pages have.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Form;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Console;
use super::page::{self, Visit};
use crate::admin::Token;
use crate::dead_letters::operator;

const COOKIE: &str = "antiphon_console";
/// Signed-in browsers; the oldest goes when there are more.
const SESSIONS_MAX: usize = 64;
/// How long one stays signed in.
const SESSION_SECONDS: u64 = 12 * 3_600;
/// Attempts to sign in that are looked at together.
const ATTEMPTS_AT_ONCE_MAX: usize = 4;
/// What a wrong token costs whoever tries it.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(500);

/// Decides who comes in.
pub(super) struct Door {
    token: Token,
    is_loopback: bool,
    secret: String,
    sessions: Mutex<HashMap<String, Session>>,
    attempts: Semaphore,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("is_loopback", &self.is_loopback).finish_non_exhaustive()
    }
}

struct Session {
    /// The token as it was shown: when it changes, the session ends.
    shown: String,
    form_secret: String,
    operator: String,
    began: Instant,
}

/// Why somebody does not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    SignIn,
    NotHere,
    WrongName,
}

impl Door {
    pub(super) fn new(token: Token, is_loopback: bool, secret: [u8; 32]) -> Self {
        let (sessions, attempts) = (Mutex::default(), Semaphore::new(ATTEMPTS_AT_ONCE_MAX));
        Self { token, is_loopback, secret: hex(&secret), sessions, attempts }
    }

    fn look(&self, headers: &HeaderMap) -> Result<Visit, Refused> {
        let is_live = headers.contains_key("x-console-live");
        let visit = |form_secret: &str, operator: &str, signed_in: bool| Visit {
            form_secret: form_secret.to_owned(),
            operator: operator.to_owned(),
            signed_in,
            is_live,
        };
        if !self.token.is_asked_for() {
            if !self.is_loopback {
                return Err(Refused::NotHere);
            }
            return if is_local(headers) {
                Ok(visit(&self.secret, "", false))
            } else {
                Err(Refused::WrongName)
            };
        }
        if self.token.is_in(headers) {
            return Ok(visit(&self.secret, "", false));
        }
        let id = cookie(headers).ok_or(Refused::SignIn)?;
        let mut sessions = self.lock();
        let session = sessions.get(id).ok_or(Refused::SignIn)?;
        if session.began.elapsed().as_secs() >= SESSION_SECONDS || !self.token.is(session.shown.as_bytes()) {
            sessions.remove(id);
            return Err(Refused::SignIn);
        }
        Ok(visit(&session.form_secret, &session.operator, true))
    }

    /// Whether a form comes from one of our pages, as far as the browser says.
    /// A program that shows the token itself is no browser somebody could abuse.
    fn is_own_form(&self, headers: &HeaderMap) -> bool {
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let site = text(HeaderName::from_static("sec-fetch-site"));
        let (origin, host) = (text(header::ORIGIN), text(header::HOST));
        let is_same = |origin: &str| {
            let bare = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            bare.is_some() && bare == host
        };
        let shows_token = self.token.is_asked_for() && self.token.is_in(headers);
        site.is_none_or(|site| site == "same-origin")
            && origin.is_none_or(is_same)
            && (site.is_some() || origin.is_some() || shows_token)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session for who has shown the token; its id. `None`: no random bytes.
    fn open(&self, shown: String, operator: String) -> Option<String> {
        let (id, form_secret) = (random()?, random()?);
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.began.elapsed().as_secs() < SESSION_SECONDS);
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.began).map(|(id, _)| id.clone());
            oldest.and_then(|oldest| sessions.remove(&oldest));
        }
        sessions.insert(id.clone(), Session { shown, form_secret, operator, began: Instant::now() });
        Some(id)
    }
}

fn random() -> Option<String> {
    let mut bytes = [0; 32];
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut bytes).ok()?;
    Some(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the host is called by a name that only it can have.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, id)| id)
}

/// Lets a request through whose sender may come in.
pub(super) async fn guard(State(console): State<Console>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if request.method() == Method::POST && !console.door.is_own_form(request.headers()) {
        let what = "This form does not come from a page of this console.";
        return page::refusal(StatusCode::FORBIDDEN, "Not taken", what);
    }
    match console.door.look(request.headers()) {
        Ok(visit) => {
            request.extensions_mut().insert(visit);
            next.run(request).await
        }
        Err(Refused::SignIn) if path == "/console/login" => next.run(request).await,
        Err(Refused::SignIn) if request.method() == Method::GET => {
            let wanted = request.uri().path_and_query().map_or("/console", |wanted| wanted.as_str());
            let wanted = utf8_percent_encode(wanted, NON_ALPHANUMERIC);
            Redirect::to(&format!("/console/login?next={wanted}")).into_response()
        }
        Err(Refused::SignIn) => page::refusal(
            StatusCode::UNAUTHORIZED,
            "Not signed in",
            "Sign in again, and send the form once more.",
        ),
        Err(Refused::NotHere) => page::refusal(
            StatusCode::FORBIDDEN,
            "The console is closed",
            "This listener can be reached from other hosts and asks for no token. Set admin.token_file, or put \
             admin.listen on a loopback address.",
        ),
        Err(Refused::WrongName) => page::refusal(
            StatusCode::FORBIDDEN,
            "The console is closed",
            "Without admin.token_file it is shown only to those who call it localhost, 127.0.0.1 or [::1].",
        ),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    next: String,
}

/// Where to go after signing in: within the console only.
fn within(next: &str) -> &str {
    let is_ours = next == "/console" || next.starts_with("/console/") || next.starts_with("/console?");
    let is_plain = next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_ours && is_plain { next } else { "/console" }
}

/// The form that asks for the token.
pub(super) async fn form(Query(Wanted { next }): Query<Wanted>) -> Markup {
    sign_in_page(within(&next), "", None)
}

fn sign_in_page(next: &str, name: &str, wrong: Option<&str>) -> Markup {
    page::bare(
        "Sign in",
        html! {
            h1 { "Sign in" }
            p { "This console asks for the token of " code { "admin.token_file" } "." }
            @if let Some(wrong) = wrong { p.notice.bad role="alert" { (wrong) } }
            form.stack method="post" action="/console/login" {
                input type="hidden" name="next" value=(next);
                label { "Your name" input name="operator" autocomplete="username" required maxlength="64" value=(name); }
                label { "Token" input type="password" name="token" autocomplete="current-password" required autofocus; }
                p.hint { "Your name goes into the log, and into each request that you send again." }
                button.primary type="submit" { "Sign in" }
            }
        },
    )
}

#[derive(Deserialize)]
pub(super) struct SignIn {
    token: String,
    operator: String,
    #[serde(default)]
    next: String,
}

/// Takes the token, and gives a cookie for it.
pub(super) async fn sign_in(State(console): State<Console>, Form(form): Form<SignIn>) -> Response {
    let next = within(&form.next);
    let again = |status: StatusCode, wrong: &str| {
        (status, sign_in_page(next, &form.operator, Some(wrong))).into_response()
    };
    let name = match operator(&form.operator) {
        Ok(name) => name,
        Err(error) => return again(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
    };
    let Ok(_attempt) = console.door.attempts.try_acquire() else {
        return again(StatusCode::TOO_MANY_REQUESTS, "Too many attempts at once; try again in a moment.");
    };
    if !console.door.token.is(form.token.as_bytes()) {
        tracing::warn!(target: "antiphon::audit", operator = name, "console: a wrong token was tried");
        tokio::time::sleep(WRONG_TOKEN_PAUSE).await;
        return again(StatusCode::UNAUTHORIZED, "This is not the token.");
    }
    let Some(id) = console.door.open(form.token, name.clone()) else {
        return again(StatusCode::INTERNAL_SERVER_ERROR, "The operating system gives no random bytes.");
    };
    tracing::info!(target: "antiphon::audit", operator = name, "console: signed in");
    let cookie =
        format!("{COOKIE}={id}; Path=/console; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS}");
    ([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response()
}

#[derive(Deserialize)]
pub(super) struct SignOut {
    form_secret: String,
}

/// Forgets the cookie.
pub(super) async fn sign_out(
    State(console): State<Console>,
    axum::Extension(visit): axum::Extension<Visit>,
    headers: HeaderMap,
    Form(form): Form<SignOut>,
) -> Response {
    if !visit.has_sent(&form.form_secret) {
        return page::stale_form();
    }
    cookie(&headers).and_then(|id| console.door.lock().remove(id));
    let cookie = format!("{COOKIE}=; Path=/console; HttpOnly; SameSite=Strict; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/console/login")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_a_loopback_name_is_local() {
        for (host, expected) in [
            ("localhost", true),
            ("LOCALHOST:9464", true),
            ("127.0.0.1:9464", true),
            ("127.8.9.1", true),
            ("[::1]:9464", true),
            ("[::1]", true),
            ("localhost.evil.example:9464", false),
            ("evil.example", false),
            ("10.0.0.7:9464", false),
            ("127.0.0.1.nip.io:9464", false),
            ("", false),
        ] {
            assert_eq!(is_local(&headers(&[("host", host)])), expected, "{host:?}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    #[test]
    fn a_form_is_taken_from_our_own_pages_only() {
        let door = Door::new(Token::default(), true, [7; 32]);
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: [(Pairs, bool); 9] = [
            (&[("host", "h:1"), ("origin", "http://h:1"), ("sec-fetch-site", "same-origin")], true),
            (&[("host", "h:1"), ("origin", "http://h:1")], true),
            (&[("host", "h:1"), ("sec-fetch-site", "same-origin")], true),
            (&[("host", "h:1")], false),
            (&[("host", "h:1"), ("origin", "http://h:2")], false),
            (&[("host", "h:1"), ("origin", "null")], false),
            (&[("host", "h:1"), ("origin", "http://h:1"), ("sec-fetch-site", "same-site")], false),
            (&[("host", "h:1"), ("origin", "http://h:1"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "h:1"), ("sec-fetch-site", "none")], false),
        ];
        for (pairs, expected) in cases {
            assert_eq!(door.is_own_form(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn after_signing_in_one_stays_within_the_console() {
        for (next, expected) in [
            ("/console/routes?x=1", "/console/routes?x=1"),
            ("/console", "/console"),
            ("//evil.example", "/console"),
            ("https://evil.example/console", "/console"),
            ("/consoles", "/console"),
            ("/console/\\evil", "/console"),
            ("/console/\r\nset-cookie: x", "/console"),
        ] {
            assert_eq!(within(next), expected, "{next}");
        }
    }

    #[test]
    fn there_are_no_more_sessions_than_may_be_and_the_first_goes_first() {
        let door = Door::new(Token::default(), true, [7; 32]);
        let ids: Vec<String> =
            (0..=SESSIONS_MAX).map(|_| door.open("t".to_owned(), "ana".to_owned()).unwrap()).collect();
        let sessions = door.lock();
        assert_eq!(sessions.len(), SESSIONS_MAX);
        assert!(!sessions.contains_key(&ids[0]) && sessions.contains_key(&ids[SESSIONS_MAX]));
    }
}
