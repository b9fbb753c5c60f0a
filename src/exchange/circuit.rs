//! Failing fast: when the workers of a topic do not answer, further calls
//! would only queue up behind those that time out.
//!
//! ```text
//! closed ── so many time-outs in a row ──► open ── open_for passes ──► one call tries
//!   ▲                                       ▲                            │
//!   └──────────── it is answered ───────────┴──────── it times out ◄─────┘
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::config::CircuitConfig;

/// The circuits of all request topics; at most one for each route.
#[derive(Debug)]
pub(super) struct Circuits {
    config: CircuitConfig,
    by_topic: Mutex<HashMap<Arc<str>, Circuit>>,
    probes: AtomicU64,
}

#[derive(Debug, Default)]
struct Circuit {
    timeouts_in_a_row: u32,
    open_until: Option<Instant>,
    /// Number of the call that tries.
    probe: Option<u64>,
}

/// What the circuit of a topic looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitState {
    /// Calls that timed out since the last answer.
    pub timeouts_in_a_row: u32,
    /// It is open, for so long; zero: the next call tries.
    pub open_for: Option<Duration>,
}

/// What a call that was let through came to, as far as circuits care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// A worker answered, whatever it said.
    Answered,
    /// Nobody answered in time.
    TimedOut,
    /// Neither: the caller went away, or the request was never sent.
    Neither,
}

/// A call may go; its number if it is the one that tries an open circuit. An
/// answer to another may close the circuit meanwhile, and it may open again
/// and be tried by a third, with which this one has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    probe: Option<u64>,
}

impl Circuits {
    pub(super) fn new(config: CircuitConfig) -> Self {
        Self { config, by_topic: Mutex::default(), probes: AtomicU64::new(0) }
    }

    /// Lets a call through, or says when to come back. Every pass must be
    /// given back to [`Circuits::settle`].
    pub(super) fn admit(&self, topic: &Arc<str>) -> Result<Pass, Duration> {
        if self.config.timeouts_max == 0 {
            return Ok(Pass { probe: None });
        }
        let mut by_topic = self.lock();
        let Some(circuit) = by_topic.get_mut(topic) else { return Ok(Pass { probe: None }) };
        let Some(open_until) = circuit.open_until else { return Ok(Pass { probe: None }) };
        let left = open_until.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            Err(left)
        } else if circuit.probe.is_some() {
            Err(self.config.open_for)
        } else {
            circuit.probe = Some(self.probes.fetch_add(1, Ordering::Relaxed));
            Ok(Pass { probe: circuit.probe })
        }
    }

    /// Notes how a call ended. `true`: its circuit has just opened.
    pub(super) fn settle(&self, topic: &Arc<str>, pass: Pass, ending: Ending) -> bool {
        if self.config.timeouts_max == 0 {
            return false;
        }
        let mut by_topic = self.lock();
        let circuit = by_topic.entry(Arc::clone(topic)).or_default();
        let probes = pass.probe.is_some() && pass.probe == circuit.probe;
        if probes {
            circuit.probe = None;
        }
        match ending {
            Ending::Neither => false,
            Ending::Answered => {
                *circuit = Circuit::default();
                false
            }
            Ending::TimedOut => {
                circuit.timeouts_in_a_row = circuit.timeouts_in_a_row.saturating_add(1);
                let opens = probes
                    || (circuit.open_until.is_none()
                        && circuit.timeouts_in_a_row >= self.config.timeouts_max);
                if opens {
                    circuit.open_until = Some(Instant::now() + self.config.open_for);
                }
                opens
            }
        }
    }

    /// The circuits that are not simply closed, by topic.
    pub(super) fn states(&self) -> BTreeMap<Arc<str>, CircuitState> {
        let now = Instant::now();
        let state = |circuit: &Circuit| CircuitState {
            timeouts_in_a_row: circuit.timeouts_in_a_row,
            open_for: circuit.open_until.map(|until| until.saturating_duration_since(now)),
        };
        let by_topic = self.lock();
        let known = by_topic.iter().map(|(topic, circuit)| (Arc::clone(topic), state(circuit)));
        known.filter(|(_, state)| state.timeouts_in_a_row > 0 || state.open_for.is_some()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Circuit>> {
        self.by_topic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(10);

    fn circuits(timeouts_max: u32) -> (Circuits, Arc<str>) {
        (Circuits::new(CircuitConfig { timeouts_max, open_for: OPEN_FOR }), "t".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_of_timeouts_opens_it_and_one_answer_closes_it() {
        let (circuits, topic) = circuits(3);
        for opened in [false, false, true] {
            let pass = circuits.admit(&topic).unwrap();
            assert_eq!(circuits.settle(&topic, pass, Ending::TimedOut), opened);
        }
        assert_eq!(circuits.admit(&topic), Err(OPEN_FOR));
        assert!(circuits.admit(&"other".into()).is_ok());

        tokio::time::advance(OPEN_FOR).await;
        let probe = circuits.admit(&topic).unwrap();
        assert!(probe.probe.is_some());
        assert!(circuits.admit(&topic).is_err(), "one probe at a time");
        assert!(circuits.settle(&topic, probe, Ending::TimedOut));
        assert!(circuits.admit(&topic).is_err());

        tokio::time::advance(OPEN_FOR).await;
        let probe = circuits.admit(&topic).unwrap();
        circuits.settle(&topic, probe, Ending::Answered);
        assert_eq!(circuits.admit(&topic), Ok(Pass { probe: None }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_goes_away_leaves_room_for_another() {
        let (circuits, topic) = circuits(1);
        let pass = circuits.admit(&topic).unwrap();
        circuits.settle(&topic, pass, Ending::TimedOut);
        tokio::time::advance(OPEN_FOR).await;
        let probe = circuits.admit(&topic).unwrap();
        circuits.settle(&topic, probe, Ending::Neither);
        assert!(circuits.admit(&topic).unwrap().probe.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_was_overtaken_leaves_the_next_one_alone() {
        let (circuits, topic) = circuits(1);
        let slow = circuits.admit(&topic).unwrap();
        let pass = circuits.admit(&topic).unwrap();
        circuits.settle(&topic, pass, Ending::TimedOut);
        tokio::time::advance(OPEN_FOR).await;
        let first = circuits.admit(&topic).unwrap();
        circuits.settle(&topic, slow, Ending::Answered);
        let pass = circuits.admit(&topic).unwrap();
        circuits.settle(&topic, pass, Ending::TimedOut);
        tokio::time::advance(OPEN_FOR).await;
        let second = circuits.admit(&topic).unwrap();
        assert!(!circuits.settle(&topic, first, Ending::TimedOut));
        assert_eq!(circuits.admit(&topic), Err(OPEN_FOR), "the second still tries");
        assert!(circuits.settle(&topic, second, Ending::TimedOut));
    }

    #[tokio::test]
    async fn an_answer_in_between_starts_the_count_again_and_zero_is_off() {
        let (counting, topic) = circuits(2);
        for ending in [Ending::TimedOut, Ending::Answered, Ending::TimedOut] {
            let pass = counting.admit(&topic).unwrap();
            assert!(!counting.settle(&topic, pass, ending));
        }
        let (off, topic) = circuits(0);
        for _ in 0..10 {
            let pass = off.admit(&topic).unwrap();
            assert!(!off.settle(&topic, pass, Ending::TimedOut));
        }
    }
}
