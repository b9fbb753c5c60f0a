//! `antiphon bench` as its users run it, against `antiphon demo`.
//!
//! Both are processes: what is tested is the command line, the counts and the
//! exit codes.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

const ANTIPHON: &str = env!("CARGO_BIN_EXE_antiphon");
const PAY: &str = "payments.v1.PaymentService/Pay";
const ECHO: &str = "echo.v1.EchoService/Echo";

/// A server that ends with this.
struct Server {
    child: Child,
    address: String,
    /// What it prints later has to go somewhere.
    _output: BufReader<ChildStdout>,
}

impl Server {
    /// Somebody may take a free port between a look at it and its use.
    fn start(arguments: &[&str]) -> Self {
        const ATTEMPTS: u32 = 5;
        (0..ATTEMPTS).find_map(|_| Self::try_start(arguments)).expect("a server that is ready")
    }

    fn try_start(arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(ANTIPHON);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut ready).unwrap();
        let address = ready.split_whitespace().find_map(|word| word.strip_prefix("grpc="));
        let Some(address) = address.map(str::to_owned) else {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        };
        Some(Self { child, address, _output: output })
    }

    fn demo() -> Self {
        Self::start(&["demo", "--listen", "127.0.0.1:0"])
    }

    fn echo() -> Self {
        Self::start(&["bench", "echo-server", "--listen", "127.0.0.1:0"])
    }

    fn bench(&self, method: &str, arguments: &[&str]) -> Output {
        let pid = self.child.id().to_string();
        let mut all = vec!["bench", &self.address, method, "--json", "-", "--pid", &pid];
        all.extend(arguments);
        bench(&all)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(ANTIPHON).args(arguments).output().unwrap()
}

fn runs(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text:?}\n{}", String::from_utf8_lossy(&output.stderr));
    });
    document["runs"].as_array().unwrap().clone()
}

#[test]
fn every_call_is_counted_with_reflection_and_keys() {
    let demo = Server::demo();
    let data = r#"{"amount_minor":100,"currency":"EUR"}"#;
    let arguments = ["--data", data, "--key-field", "order_id", "--keys", "7", "--calls", "500"];
    let loads = ["--in-flight", "1,64", "--connections", "4", "--threads", "2", "--metadata", "x-a:b"];
    let output = demo.bench(PAY, &[&arguments[..], &loads[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let runs = runs(&output);
    assert_eq!(runs.len(), 2);
    for run in &runs {
        assert_eq!((&run["calls"], &run["ok"]), (&500.into(), &500.into()), "{run}");
        assert_eq!(run["calls_finished"], 500);
        assert!(run["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{run}");
        assert!(run["server"]["rss_peak_bytes"].as_u64().unwrap() > 0, "{run}");
    }
    assert_eq!([&runs[0]["connections"], &runs[1]["connections"]], [1, 4]);
    let table = String::from_utf8_lossy(&output.stderr);
    assert!(table.contains("64 in flight"), "{table}");
}

#[test]
fn calls_that_all_fail_fail_the_run() {
    let demo = Server::demo();
    let output = demo.bench(PAY, &["--data", r#"{"order_id":"a"}"#, "--calls", "50"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let run = &runs(&output)[0];
    assert_eq!((&run["ok"], &run["errors"]["INVALID_ARGUMENT"]), (&0.into(), &50.into()), "{run}");
    let table = String::from_utf8_lossy(&output.stderr);
    assert!(table.contains("it must be above zero"), "{table}");

    let output =
        demo.bench(ECHO, &["--data", "{}", "--timeout", "1ms", "--in-flight", "200", "--calls", "400"]);
    let run = &runs(&output)[0];
    assert_eq!(run["calls"], 400, "{run}");
}

#[test]
fn an_open_loop_makes_its_calls_at_its_rate() {
    let echo = Server::echo();
    let output = echo.bench(ECHO, &["--rate", "500", "--duration", "2s", "--warm-up", "0s"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let run = &runs(&output)[0];
    let made = run["calls"].as_u64().unwrap() + run["calls_unsent"].as_u64().unwrap();
    assert_eq!(made, 1_000, "{run}");
    let p50 = |name: &str| run[name]["p50"].as_f64().unwrap();
    assert!(p50("latency_us") >= p50("latency_from_sending_us"), "{run}");
}

/// Larger than a frame, a stream's window and the connection's together.
#[test]
fn a_large_message_arrives_whole() {
    let echo = Server::echo();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![b'x'; 3_000_000]).unwrap();
    let path = file.path().to_str().unwrap();
    let output = echo
        .bench(ECHO, &["--message-file", path, "--in-flight", "8", "--connections", "2", "--calls", "40"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(runs(&output)[0]["ok"], 40);
}

#[test]
fn what_can_not_be_run_is_told_from_wrong_usage() {
    let echo = Server::echo();
    let wrong: [(&[&str], i32); 6] = [
        (&["bench"], 64),
        (&["bench", "127.0.0.1:1"], 64),
        (&["bench", &echo.address, "no-method", "--calls", "1"], 64),
        (&["bench", &echo.address, ECHO, "--calls", "1", "--proto", "no/such.proto", "--data", "{}"], 64),
        // It has no reflection to encode JSON by.
        (&["bench", &echo.address, ECHO, "--calls", "1", "--data", "{}"], 69),
        (&["bench", "127.0.0.1:1", ECHO, "--calls", "1"], 69),
    ];
    for (arguments, code) in wrong {
        assert_eq!(bench(arguments).status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_signal_ends_a_run_with_what_was_measured() {
    let echo = Server::echo();
    let mut command = Command::new(ANTIPHON);
    command.args(["bench", &echo.address, ECHO, "--duration", "60s", "--warm-up", "0s", "--json", "-"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let run = &runs(&output)[0];
    assert!(run["interrupted"] == true && run["seconds"].as_f64().unwrap() < 50.0, "{run}");
    assert!(run["calls"].as_u64().unwrap() > 0, "{run}");
}
