//! A simulation of the flow of calls: the real exchange, pending calls, lanes
//! and reply readers, over a Kafka cluster in memory that is as unkind as a
//! seed makes it, on a clock that jumps from event to event.
//!
//! ```text
//! callers ──► Exchange::call ──► lanes ──► SimCluster ──► workers
//!    ▲                                         │             │
//!    └────────── reply readers ◄───────────────┴─────────────┘
//! ```
//!
//! Each seed is one run of a minute or more in simulated time: faults, workers
//! and callers misbehave by its plan (`faults`), everybody writes down what
//! happens (`history`), and at the end all trouble stops and the books are
//! checked (`invariants`). The same seed gives the same run.
//!
//! ```text
//! cargo test --test simulation                                    a few seeds
//! SIM_SEED=17 cargo test --test simulation                        one, with its plan
//! SIM_SEEDS=10000 cargo test --release --test simulation          many
//! SIM_FIRST=10000 SIM_SEEDS=10000 cargo test ...                  others
//! SIM_FAILURES_MAX=5 cargo test ...                               until five have failed
//! tests/simulation/mutants.sh                                     does it notice?
//! ```

mod aftermath;
mod callers;
mod census;
mod circuits;
mod cluster;
mod faults;
mod history;
mod invariants;
mod keys;
mod losses;
mod messages;
mod run;
mod workers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use census::Census;
use run::Report;

/// Seeds of an ordinary test run.
const SEEDS: u64 = 1_000;
/// A failing change fails many seeds alike; a few tell enough.
const FAILURES_SHOWN_MAX: usize = 3;
const VIOLATIONS_SHOWN_MAX: usize = 8;

#[test]
fn invariants_hold_for_every_seed() {
    if let Some(seed) = number("SIM_SEED") {
        let report = run::run(seed);
        eprintln!("{:#?}", report.plan);
        assert!(report.violations.is_empty(), "{}", show(&report));
        return;
    }
    let first = number("SIM_FIRST").unwrap_or(0);
    let began = Instant::now();
    let seeds = first..first + number("SIM_SEEDS").unwrap_or(SEEDS);
    let reports = run_all(seeds, number("SIM_FAILURES_MAX").unwrap_or(u64::MAX));
    let calls: usize = reports.iter().map(|report| report.calls).sum();
    let mut census = Census::new();
    for (what, times) in reports.iter().flat_map(|report| &report.census) {
        *census.entry(what).or_default() += times;
    }
    eprintln!("{} seeds from {first}, {calls} calls, in {:.1?}: {census:#?}", reports.len(), began.elapsed());
    let failed: Vec<_> = reports.iter().filter(|report| !report.violations.is_empty()).collect();
    let shown: Vec<_> = failed.iter().take(FAILURES_SHOWN_MAX).map(|report| show(report)).collect();
    assert!(failed.is_empty(), "{} of {} seeds fail\n{}", failed.len(), reports.len(), shown.join("\n"));
    let missed = census::EXPECTED.iter().filter(|what| !census.contains_key(*what));
    let missed: Vec<_> = missed.collect();
    assert!(reports.len() < SEEDS as usize || missed.is_empty(), "never met: {missed:?}");
}

/// Without this no seed could be run again.
#[test]
fn a_seed_always_gives_the_same_run() {
    for seed in 0..50 {
        assert_eq!(run::run(seed).digest, run::run(seed).digest, "seed {seed}");
    }
}

/// Runs are independent of each other, each on one thread. Ends when enough of
/// them have failed.
fn run_all(seeds: std::ops::Range<u64>, failures_max: u64) -> Vec<Report> {
    let (next, failures) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let work = || {
        let mine = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let more = |seed: &u64| *seed < seeds.end && failures.load(Ordering::Relaxed) < failures_max;
        let run = |seed| {
            let report = run::run(seed);
            failures.fetch_add(u64::from(!report.violations.is_empty()), Ordering::Relaxed);
            report
        };
        mine.take_while(more).map(run).collect::<Vec<_>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut reports: Vec<Report> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.flat_map(|ran| ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    reports.sort_by_key(|report| report.seed);
    reports
}

fn show(report: &Report) -> String {
    let Report { seed, violations, .. } = report;
    let shown: Vec<_> = violations.iter().take(VIOLATIONS_SHOWN_MAX).map(|v| format!("  {v}")).collect();
    format!(
        "seed {seed}: {} violations\n{}\n  again: SIM_SEED={seed} cargo test --test simulation invariants",
        violations.len(),
        shown.join("\n"),
    )
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{variable} is {text:?}; expected a number"),
    }
}
