//! The console as a browser and as an attacker meet it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use antiphon::route::Settings;
use antiphon::transport::Received;
use antiphon::worker::samples::payments;
use antiphon::worker::{Call, Handler};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::harness::{PATIENCE, PAY, TestGateway, TestGatewayBuilder, setting, trailer, until_async};
use crate::records::{await_records, call_with, text};

/// Everything about it is hostile to a page.
const HOSTILE: &str = "o-1<script>alert(1)</script>\"'&";

struct Page {
    code: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Page {
    fn form_secret(&self) -> &str {
        let after = self.body.split("name=\"form_secret\" value=\"").nth(1).expect("a form");
        after.split('"').next().unwrap()
    }
}

/// One request, as it is written here: no client adds or leaves out headers.
async fn ask(gateway: &TestGateway, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Page {
    let mut stream = tokio::net::TcpStream::connect(gateway.gateway().admin_address()).await.unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        request.push_str("host: 127.0.0.1\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" {
        request.push_str("content-type: application/x-www-form-urlencoded\r\n");
    }
    request.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Page { code: head.split(' ').nth(1).unwrap().parse().unwrap(), headers, body: body.to_owned() }
}

async fn get(gateway: &TestGateway, path: &str) -> Page {
    ask(gateway, "GET", path, &[], "").await
}

const OWN: [(&str, &str); 2] = [("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1")];

/// A worker that keeps what it gets and answers nothing.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<Vec<Received>>>);

#[async_trait::async_trait]
impl Handler for Silent {
    async fn handle(&self, call: Call<'_>) -> Option<Result<Bytes, antiphon::message::WorkerStatus>> {
        self.0.lock().unwrap().push(call.record.clone());
        None
    }
}

fn with_dead_letters(silent: &Silent) -> TestGatewayBuilder {
    let settings = Settings { dead_letter_on: setting(vec!["timeout".to_owned()]), ..Settings::default() };
    TestGateway::build()
        .config(|config| {
            config.grpc.metadata_forward =
                ["authorization", "x-tenant"].map(str::to_owned).map(Into::into).to_vec();
        })
        .method("payments.v1.PaymentService/Pay", settings)
        .handler(silent.clone())
}

async fn time_out(gateway: &TestGateway) -> String {
    let payment =
        payments::PayRequest { order_id: HOSTILE.to_owned(), amount_minor: 5, currency: "EUR".to_owned() };
    let headers = [
        ("grpc-timeout", "400m"),
        ("authorization", "Bearer of-the-caller"),
        ("x-tenant", "<img src=x onerror=alert(1)>"),
    ];
    let status = call_with(gateway, PAY, payment, &headers).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    trailer(status.metadata(), "antiphon-correlation-id").unwrap()
}

#[tokio::test]
async fn every_page_keeps_to_its_policy_and_escapes_what_comes_from_outside() {
    let silent = Silent::default();
    let gateway = with_dead_letters(&silent).start().await;
    let id = time_out(&gateway).await;
    let letters = gateway.topic("payment_request") + ".DLQ";
    await_records(&gateway.cluster, &letters, 1).await;
    gateway.gateway().instance().directory.refresh(&*gateway.cluster).await.unwrap();

    let listed = get(&gateway, &format!("/console/letters?topic={letters}")).await;
    let link =
        listed.body.split("href=\"").find(|part| part.starts_with("/console/letters/")).expect("a letter");
    let letter = link.split('"').next().unwrap().to_owned();
    let paths = [
        "/console".to_owned(),
        "/console/routes".to_owned(),
        "/console/calls".to_owned(),
        "/console/instances".to_owned(),
        format!("/console/letters?topic={letters}"),
        letter.clone(),
        format!("{letter}/replay"),
        format!("/console/why?name={id}"),
        "/console/why?name=%3Cscript%3Ealert(1)%3C/script%3E".to_owned(),
        "/console/letters?since=%22%3E%3Cscript%3Ealert(1)%3C/script%3E".to_owned(),
        "/console/console.css".to_owned(),
        "/console/console.js".to_owned(),
        "/console/icon.svg".to_owned(),
    ];
    for path in &paths {
        let page = get(&gateway, path).await;
        assert!(page.code == 200 || path.contains("since="), "{path}: {}", page.code);
        let policy = &page.headers["content-security-policy"];
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(
            (&*page.headers["x-content-type-options"], &*page.headers["x-frame-options"]),
            ("nosniff", "DENY")
        );
        if !path.ends_with("js") {
            assert!(!page.body.contains("<script>") && !page.body.contains("<img"), "{path}: {}", page.body);
        }
        assert!(!page.body.contains(" style=") && !page.body.contains("onclick"), "{path}");
        assert!(!page.body.contains("of-the-caller"), "{path} shows a credential");
        assert!(
            !page.body.contains("http://") || path.ends_with("svg"),
            "{path} asks for something from elsewhere"
        );
    }
    let page = get(&gateway, &letter).await;
    assert!(page.body.contains("o-1&lt;script&gt;alert(1)"), "{}", page.body);
    assert!(page.body.contains("authorization") && page.body.contains("(hidden)"), "{}", page.body);
    let story = get(&gateway, &format!("/console/why?name={id}")).await;
    assert!(
        story.body.contains("class=\"verdict warn\"") && story.body.contains("dead letter"),
        "{}",
        story.body
    );
    // What changes, without its frame.
    let live = ask(&gateway, "GET", "/console/routes", &[("x-console-live", "1")], "").await;
    assert!(
        live.body.starts_with("<div id=\"live\"") && live.body.contains("DEADLINE_EXCEEDED <b>1</b>"),
        "{}",
        live.body
    );
    // Topics that hold no dead letters can't be read from here.
    for path in [
        format!("/console/letters?topic={}", gateway.topic("payment_request")),
        format!("/console/letters/{}/0/0", gateway.topic("payment_request")),
        format!("/console/letters/{letters}/0/99"),
        format!("/console/letters/{letters}/99/0"),
    ] {
        assert_eq!(get(&gateway, &path).await.code, 404, "{path}");
    }
    for (query, expected) in [
        ("key=o-2", 0),
        ("class=late-reply", 0),
        ("class=timeout", 1),
        ("method=payments.v1.PaymentService/Pay", 1),
    ] {
        let page = get(&gateway, &format!("/console/letters?topic={letters}&{query}")).await;
        let rows = page.body.matches("href=\"/console/letters/").count();
        assert_eq!(rows, expected, "{query}");
    }
    for wrong in ["since=yesterday", "class=nonsense", "partition=-1", "which=a/b"] {
        assert_eq!(
            get(&gateway, &format!("/console/letters?topic={letters}&{wrong}")).await.code,
            422,
            "{wrong}"
        );
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_call_in_flight_is_shown_and_what_is_in_it_is_not() {
    let silent = Silent::default();
    let gateway = with_dead_letters(&silent).start().await;
    let payment =
        payments::PayRequest { order_id: HOSTILE.to_owned(), amount_minor: 5, currency: "EUR".to_owned() };
    let headers = [("grpc-timeout", "3S")];
    let call = call_with(&gateway, PAY, payment, &headers);
    let look = async {
        let shown = async || {
            let page = get(&gateway, "/console/calls").await.body;
            page.contains("1 call waits")
                && page.contains("the worker’s reply")
                && page.contains("payments.v1.PaymentService")
        };
        until_async("the call is shown", shown).await;
        let page = get(&gateway, "/console/calls").await.body;
        let id = gateway.gateway().instance().oldest_calls(1).calls[0].id.to_string();
        assert!(page.contains(&id) && !page.contains("o-1"), "{page}");
    };
    let (called, ()) = tokio::join!(call, look);
    assert_eq!(called.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(get(&gateway, "/console/calls").await.body.contains("No call is in flight"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_replay_is_confirmed_by_somebody_and_done_once() {
    let silent = Silent::default();
    let gateway = with_dead_letters(&silent).start().await;
    let id = time_out(&gateway).await;
    let letters = gateway.topic("payment_request") + ".DLQ";
    await_records(&gateway.cluster, &letters, 1).await;
    gateway.gateway().instance().directory.refresh(&*gateway.cluster).await.unwrap();
    let listed = get(&gateway, &format!("/console/letters?topic={letters}")).await;
    let letter = listed.body.split("href=\"").find(|part| part.starts_with("/console/letters/")).unwrap();
    let letter = letter.split('"').next().unwrap().to_owned();
    let path = format!("{letter}/replay");
    let asked = get(&gateway, &path).await;
    let secret = asked.form_secret().to_owned();
    let good = format!("form_secret={secret}&operator=Ana+M&confirmed=on");
    let seen = || silent.0.lock().unwrap().len();
    assert_eq!(seen(), 1, "asking sends nothing");

    // From elsewhere, without the secret, without a name, without a tick: nothing is sent.
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Headers<'_>, &str, u16); 8] = [
        (&[], &good, 403),
        (&[("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")], &good, 403),
        (&[("origin", "null")], &good, 403),
        (&[("sec-fetch-site", "same-site")], &good, 403),
        (&OWN, "form_secret=0&operator=Ana&confirmed=on", 403),
        (&OWN, &format!("form_secret={secret}&operator=&confirmed=on"), 422),
        (&OWN, &format!("form_secret={secret}&operator=a%0Ab&confirmed=on"), 422),
        (&OWN, &format!("form_secret={secret}&operator=Ana"), 422),
    ];
    for (headers, body, expected) in cases {
        assert_eq!(ask(&gateway, "POST", &path, headers, body).await.code, expected, "{headers:?} {body}");
    }
    let evil =
        [("host", "evil.example"), ("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")];
    assert_eq!(
        ask(&gateway, "POST", &path, &evil, &good).await.code,
        403,
        "a name that was bent to this host"
    );
    let long = format!("{good}&x={}", "y".repeat(20_000));
    assert_eq!(ask(&gateway, "POST", &path, &OWN, &long).await.code, 413);
    assert_eq!(seen(), 1);

    // Two at once, as by two operators: one is sent.
    let (one, other) =
        tokio::join!(ask(&gateway, "POST", &path, &OWN, &good), ask(&gateway, "POST", &path, &OWN, &good));
    let mut codes = [one.code, other.code];
    codes.sort_unstable();
    assert_eq!(codes, [303, 409]);
    gateway.until("the worker has it again", || seen() == 2).await;
    let again = silent.0.lock().unwrap()[1].clone();
    assert_eq!(text(&again, "antiphon-replayed-by").as_deref(), Some("Ana M"));
    assert_eq!(text(&again, "antiphon-replay").as_deref(), Some("1"));
    assert_eq!(text(&again, "kafka_correlationId").as_deref(), Some(id.as_str()));

    let page = get(&gateway, &letter).await;
    assert!(page.body.contains("Sent again 1 time") && page.body.contains("<b>Ana M</b>"), "{}", page.body);
    let asked = get(&gateway, &path).await;
    assert!(
        asked.body.contains("It was sent again before") && !asked.body.contains("Send it again"),
        "{}",
        asked.body
    );
    let insisted = get(&gateway, &format!("{path}?again=on")).await;
    assert!(insisted.body.contains("number 2"), "{}", insisted.body);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(seen(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn the_console_asks_for_the_token_once_and_forgets_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "open-sesame\n").unwrap();
    let token_file = file.clone();
    let gateway =
        TestGateway::build().config(|config| config.admin.token_file = Some(token_file)).start().await;
    let named = [("host", "gateway.example:9464")];
    let refused = ask(&gateway, "GET", "/console/routes?a=1", &named, "").await;
    assert_eq!(
        (refused.code, &*refused.headers["location"]),
        (303, "/console/login?next=%2Fconsole%2Froutes%3Fa%3D1")
    );
    assert_eq!(ask(&gateway, "GET", "/console/login", &named, "").await.code, 200);
    let bearer = [("host", "x"), ("authorization", "Bearer open-sesame")];
    assert_eq!(ask(&gateway, "GET", "/console", &bearer, "").await.code, 200);

    let sign_in = async |body: &str| ask(&gateway, "POST", "/console/login", &OWN, body).await;
    assert_eq!(sign_in("token=guess&operator=Ana").await.code, 401);
    assert_eq!(sign_in("token=open-sesame&operator=").await.code, 422);
    let elsewhere = [("origin", "http://evil.example")];
    let posted = ask(&gateway, "POST", "/console/login", &elsewhere, "token=open-sesame&operator=Ana").await;
    assert_eq!(posted.code, 403);
    let signed_in = sign_in("token=open-sesame&operator=Ana&next=//evil.example").await;
    assert_eq!((signed_in.code, &*signed_in.headers["location"]), (303, "/console"));
    let cookie = &signed_in.headers["set-cookie"];
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains("sesame"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();

    let with_cookie = [("cookie", cookie.as_str())];
    let page = ask(&gateway, "GET", "/console", &with_cookie, "").await;
    assert!(page.code == 200 && page.body.contains("Signed in as Ana"), "{}", page.body);
    assert_eq!(ask(&gateway, "GET", "/metrics", &with_cookie, "").await.code, 401, "for the console only");
    assert_eq!(ask(&gateway, "GET", "/console", &[("cookie", "antiphon_console=0")], "").await.code, 303);

    // Signing out needs the form, too; then the cookie is worth nothing.
    let own = [OWN[0], OWN[1], ("cookie", cookie.as_str())];
    assert_eq!(ask(&gateway, "POST", "/console/logout", &own, "form_secret=0").await.code, 403);
    let secret = format!("form_secret={}", page.form_secret());
    assert_eq!(ask(&gateway, "POST", "/console/logout", &own, &secret).await.code, 303);
    assert_eq!(ask(&gateway, "GET", "/console", &with_cookie, "").await.code, 303);

    // Another token ends what the one before had opened.
    let signed_in = sign_in("token=open-sesame&operator=Ana").await;
    let cookie = signed_in.headers["set-cookie"].split(';').next().unwrap().to_owned();
    std::fs::write(&file, "changed").unwrap();
    assert_eq!(ask(&gateway, "GET", "/console", &[("cookie", &cookie)], "").await.code, 303);
    gateway.stop().await;
}

#[tokio::test]
async fn the_console_is_closed_where_strangers_could_come_in_or_where_it_is_not_wanted() {
    let open_to_all = TestGateway::build().config(|config| config.admin.listen = ([0, 0, 0, 0], 0).into());
    let gateway = open_to_all.start().await;
    let page = get(&gateway, "/console/letters").await;
    assert!(page.code == 403 && page.body.contains("admin.token_file"), "{}", page.body);
    assert_eq!(get(&gateway, "/metrics").await.code, 200);
    gateway.stop().await;

    let gateway = TestGateway::build().start().await;
    let bent = ask(&gateway, "GET", "/console", &[("host", "evil.example:9464")], "").await;
    assert_eq!(bent.code, 403);
    gateway.stop().await;

    let gateway = TestGateway::build().config(|config| config.admin.console = false).start().await;
    assert_eq!(get(&gateway, "/console").await.code, 404);
    gateway.stop().await;
}
