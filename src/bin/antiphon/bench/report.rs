//! Results, for people and for programs.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this command is for")]

use std::io::{self, Write as _};
use std::path::Path;

use hdrhistogram::Histogram;
use percent_encoding::percent_decode;
use serde_json::{Value, json};

use super::http2::Outcome;
use super::run::{Run, Used};
use super::schedule::Pace;

const HEAD: [&str; 12] = [
    "LOAD", "CONNS", "CALLS", "CALLS/S", "P50", "P90", "P99", "P99.9", "MAX", "ERRORS", "CPU/CALL",
    "RSS PEAK",
];

/// Prints the table, and writes the JSON where it is wanted.
pub(super) fn print(what: &Value, runs: &[Run], json: Option<&Path>) -> io::Result<()> {
    let table = render(runs);
    match json {
        Some(path) if path.to_str() == Some("-") => {
            eprint!("{table}");
            writeln!(io::stdout(), "{:#}", document(what, runs))
        }
        Some(path) => {
            print!("{table}");
            std::fs::write(path, format!("{:#}\n", document(what, runs)))
        }
        None => {
            // A reader that has gone, as in `bench ... | head`, is no failure.
            let _ = io::stdout().write_all(table.as_bytes());
            Ok(())
        }
    }
}

fn render(runs: &[Run]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for run in runs {
        rows.push(row(run, load(run), &run.tally.latency));
        if let Pace::Rate(..) = run.pace {
            rows.push(row(run, "  from sending".to_owned(), &run.tally.service));
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(n, (cell, width))| match n {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    for run in runs {
        for note in notes(run) {
            text.push_str(&format!("{}: {note}\n", load(run)));
        }
    }
    text
}

fn load(run: &Run) -> String {
    match run.pace {
        Pace::InFlight(calls) => format!("{calls} in flight"),
        Pace::Rate(rate, _) => format!("{rate} a second"),
    }
}

fn row(run: &Run, load: String, latency: &Histogram<u64>) -> [String; 12] {
    let at = |quantile| milliseconds(latency.value_at_quantile(quantile));
    [
        load,
        run.connections.to_string(),
        run.tally.calls().to_string(),
        format!("{:.0}", rate(run)),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        milliseconds(latency.max()),
        (run.tally.calls() - run.tally.ok()).to_string(),
        cpu_us(run.server, run).map_or_else(|| "-".to_owned(), |us| format!("{us:.1} us")),
        run.server.map_or_else(
            || "-".to_owned(),
            |used| format!("{:.1} MiB", used.at_end.rss_peak_bytes as f64 / 1_048_576.0),
        ),
    ]
}

/// What the table does not show and the reader has to know.
fn notes(run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    for (outcome, calls) in run.tally.outcomes.iter().filter(|(outcome, _)| **outcome != Outcome::OK) {
        let message = run.tally.messages.get(outcome).map(|text| percent_decode(text).decode_utf8_lossy());
        notes.push(match message {
            Some(message) => format!("{calls} calls: {outcome} ({message})"),
            None => format!("{calls} calls: {outcome}"),
        });
    }
    if run.tally.lost > 0 {
        let why = run.tally.lost_because.as_deref().unwrap_or("unknown");
        notes.push(format!("connections lost {} times, last because: {why}", run.tally.lost));
    }
    let (calls_max, connections) = (u64::from(run.calls_max), u64::from(run.connections));
    if calls_max * connections < u64::from(run.pace.in_flight_max()) && matches!(run.pace, Pace::InFlight(_))
    {
        let most = calls_max * connections;
        notes.push(format!("the server allows {calls_max} calls on a connection, so {most} were in flight; use more --connections"));
    }
    if run.tally.unsent > 0 {
        let unsent = run.tally.unsent;
        notes.push(format!("{unsent} calls were due and not sent before the end, so the server (or this client) could not keep up and the times above are too short"));
    }
    if run.interrupted {
        notes.push("interrupted: this is what was measured until then".to_owned());
    }
    notes
}

fn rate(run: &Run) -> f64 {
    if run.seconds > 0.0 { run.finished as f64 / run.seconds } else { 0.0 }
}

fn cpu_us(used: Option<Used>, run: &Run) -> Option<f64> {
    let used = used?;
    (run.finished > 0).then(|| used.cpu.as_secs_f64() * 1e6 / run.finished as f64)
}

fn milliseconds(nanoseconds: u64) -> String {
    let ms = nanoseconds as f64 / 1e6;
    match ms {
        ..10.0 => format!("{ms:.3} ms"),
        ..100.0 => format!("{ms:.2} ms"),
        _ => format!("{ms:.1} ms"),
    }
}

fn document(what: &Value, runs: &[Run]) -> Value {
    let mut document = what.clone();
    document["runs"] = runs.iter().map(run_document).collect();
    document
}

fn run_document(run: &Run) -> Value {
    let (in_flight, wanted) = match run.pace {
        Pace::InFlight(calls) => (calls, Value::Null),
        Pace::Rate(rate, calls) => (calls, rate.into()),
    };
    let errors = run.tally.outcomes.iter().filter(|(outcome, _)| **outcome != Outcome::OK);
    let errors: serde_json::Map<_, _> =
        errors.map(|(outcome, calls)| (outcome.to_string(), (*calls).into())).collect();
    let mut document = json!({
        "in_flight": in_flight,
        "rate_wanted": wanted,
        "connections": run.connections,
        "threads": run.threads,
        "seconds": run.seconds,
        "calls": run.tally.calls(),
        "ok": run.tally.ok(),
        "errors": errors,
        "calls_finished": run.finished,
        "calls_per_second": rate(run),
        "latency_us": times(&run.tally.latency),
        "calls_unsent": run.tally.unsent,
        "connections_lost": run.tally.lost,
        "server": usage(run.server, run),
        "client": usage(run.client, run),
        "interrupted": run.interrupted,
    });
    if !run.tally.failure.is_empty() {
        document["failures_from_sending_us"] = times(&run.tally.failure);
    }
    if let Pace::Rate(..) = run.pace {
        document["latency_from_sending_us"] = times(&run.tally.service);
    }
    document
}

fn times(histogram: &Histogram<u64>) -> Value {
    let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let at = |quantile| us(histogram.value_at_quantile(quantile));
    json!({
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
        "max": us(histogram.max()), "mean": histogram.mean() / 1e3,
    })
}

fn usage(used: Option<Used>, run: &Run) -> Value {
    let Some(spent) = used else { return Value::Null };
    json!({
        "cpu_seconds": spent.cpu.as_secs_f64(),
        "cpu_us_per_call": cpu_us(used, run),
        "rss_bytes": spent.at_end.rss_bytes,
        "rss_peak_bytes": spent.at_end.rss_peak_bytes,
    })
}
