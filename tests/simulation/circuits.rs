//! What circuits must do, as a model of its own: the calls of a topic pass by
//! it in the order in which the run has seen them.
//!
//! ```text
//! closed ── timeouts_max in a row ──► open for open_for ──► one call tries
//!   ▲                                       ▲                 │
//!   └──────────── it is answered ───────────┴─ it times out ◄─┘
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon::exchange::{Failure, Outcome, Why};

use crate::faults::Plan;
use crate::history::{CallEntry, End, History, Passage};

#[derive(Default)]
struct Circuit {
    in_a_row: u32,
    open_until: Option<Duration>,
    /// The call that tries.
    tries: Option<usize>,
}

/// What a call tells the circuit when it ends.
enum Tells {
    Answered,
    TimedOut,
    Nothing,
    /// It was refused by the circuit itself.
    Refused(Duration),
}

/// What is wrong, if anything.
pub(crate) fn check(history: &History, plan: &Plan) -> Vec<String> {
    if plan.circuit.timeouts_max == 0 {
        let refused = history.calls.iter().filter(|call| matches!(tells(call), Tells::Refused(_)));
        return refused
            .map(|call| format!("refused by a circuit that is switched off: {}", call.route.path))
            .collect();
    }
    let mut circuits: BTreeMap<&str, Circuit> = BTreeMap::new();
    let mut wrong = Vec::new();
    for passage in &history.passages {
        let call = &history.calls[passage.call];
        let circuit = circuits.entry(&call.route.request_topic).or_default();
        if let Err(why) = circuit.pass(passage, call, plan) {
            wrong.push(format!("call {} ({}) at {:?}: {why}", passage.call, call.route.path, passage.at));
        }
    }
    wrong
}

/// How often a call was let through to try.
pub(crate) fn tries(history: &History) -> usize {
    let refused: Vec<_> = history
        .passages
        .iter()
        .enumerate()
        .filter_map(|(n, passage)| {
            let call = &history.calls[passage.call];
            matches!(tells(call), Tells::Refused(_)).then_some((n, &*call.route.request_topic))
        })
        .collect();
    // The first on a topic after one that was refused.
    refused
        .windows(2)
        .filter(|two| {
            let between = &history.passages[two[0].0..two[1].0];
            two[0].1 == two[1].1
                && between.iter().any(|p| !p.ends && &*history.calls[p.call].route.request_topic == two[0].1)
        })
        .count()
}

impl Circuit {
    fn pass(&mut self, passage: &Passage, call: &CallEntry, plan: &Plan) -> Result<(), String> {
        if !passage.ends {
            return self.admit(passage);
        }
        let entered = call.entered.is_some();
        let tried = entered && self.tries == Some(passage.call);
        if tried {
            self.tries = None;
        }
        match tells(call) {
            Tells::Refused(retry_after) => self.refuse(passage.at, retry_after, plan.circuit.open_for),
            Tells::Answered if entered => {
                *self = Self::default();
                Ok(())
            }
            Tells::TimedOut if entered => {
                self.in_a_row += 1;
                let enough = self.open_until.is_none() && self.in_a_row >= plan.circuit.timeouts_max;
                if tried || enough {
                    self.open_until = Some(passage.at + plan.circuit.open_for);
                }
                Ok(())
            }
            Tells::Answered | Tells::TimedOut | Tells::Nothing => Ok(()),
        }
    }

    fn admit(&mut self, passage: &Passage) -> Result<(), String> {
        match (self.open_until, self.tries) {
            (None, _) => Ok(()),
            (Some(until), _) if passage.at < until => {
                Err(format!("was let through; the circuit is open until {until:?}"))
            }
            (Some(_), Some(other)) => Err(format!("was let through, and call {other} tries already")),
            (Some(_), None) => {
                self.tries = Some(passage.call);
                Ok(())
            }
        }
    }

    fn refuse(&self, at: Duration, retry_after: Duration, open_for: Duration) -> Result<(), String> {
        match (self.open_until, self.tries) {
            (None, _) => Err("was refused; the circuit is closed".to_owned()),
            (Some(until), _) if at < until && retry_after == until - at => Ok(()),
            (Some(until), Some(_)) if at >= until && retry_after == open_for => Ok(()),
            (Some(until), None) if at >= until => Err("was refused, and nobody tries".to_owned()),
            (until, _) => Err(format!("was told to come back after {retry_after:?}; open until {until:?}")),
        }
    }
}

fn tells(call: &CallEntry) -> Tells {
    match &call.ended {
        Some((_, End::Answered(_))) => Tells::Answered,
        Some((_, End::Failed(Failure { why, trace }))) => match **why {
            Why::CircuitOpen { retry_after, .. } => Tells::Refused(retry_after),
            Why::BadReply { .. } => Tells::Answered,
            Why::TimedOut if trace.outcome != Outcome::NotSent => Tells::TimedOut,
            _ => Tells::Nothing,
        },
        // Not as its deadline passes: see `callers`.
        Some((_, End::Cancelled)) | None => Tells::Nothing,
    }
}
