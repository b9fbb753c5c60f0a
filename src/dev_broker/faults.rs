//! Faults for tests: errors, delays, cut connections, throttling, silence and
//! a broker that stands still. It knows APIs and topics by name and nothing of
//! how requests are answered; without a rule it costs one atomic load.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Api, FAULT_RULES_MAX, code, lock};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is refused with this code (see [`code`]) and has no effect.
    Error(i16),
    /// The request is held this long before it is looked at.
    Delay(Duration),
    /// The request takes effect at once, its answer is held this long.
    DelayAnswer(Duration),
    /// The connection is cut and the request has no effect.
    CutBefore,
    /// The request takes effect, then the connection is cut without an answer.
    CutAfter,
    /// The request has no effect; it and all that follow on its connection are
    /// read and never answered.
    Silence,
    /// The request takes effect; the answer says that a quota was exceeded
    /// (`throttle_time_ms`). Produce and Fetch only.
    Throttle(Duration),
}

/// A fault, and the requests that it meets: those that arrive after it was
/// injected, for this API, until it is used up, out of time or cleared.
#[derive(Clone, Debug)]
pub struct Rule {
    api: Api,
    fault: Fault,
    topic: Option<String>,
    times: Option<u32>,
    duration: Option<Duration>,
}

impl Rule {
    /// Meets every request of this API until cleared.
    pub fn new(api: Api, fault: Fault) -> Self {
        Self { api, fault, topic: None, times: None, duration: None }
    }

    /// Only requests that name this topic; an error touches only that topic.
    #[must_use]
    pub fn topic(mut self, name: impl Into<String>) -> Self {
        self.topic = Some(name.into());
        self
    }

    /// Only so many requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only for so long, from the injection on.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }
}

/// Counts the requests that a rule has met.
#[derive(Clone, Debug)]
pub struct Hits(Arc<AtomicU32>);

impl Hits {
    /// So many up to now.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    until: Option<Instant>,
    hits: Arc<AtomicU32>,
}

/// The faults of one broker.
#[derive(Debug)]
pub struct Faults {
    /// Rules in the list, so that a request need not lock to learn of none.
    count: AtomicUsize,
    rules: Mutex<Vec<Active>>,
    paused: watch::Sender<bool>,
    cuts: watch::Sender<u64>,
}

impl Faults {
    pub(super) fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            rules: Mutex::new(Vec::new()),
            paused: watch::Sender::new(false),
            cuts: watch::Sender::new(0),
        }
    }

    /// Puts a rule in force. Beyond 1,000 rules the oldest gives way.
    pub fn inject(&self, rule: Rule) -> Hits {
        let hits = Arc::new(AtomicU32::new(0));
        let until = rule.duration.map(|duration| Instant::now() + duration);
        let mut rules = lock(&self.rules);
        if rules.len() >= FAULT_RULES_MAX {
            rules.remove(0);
        }
        rules.push(Active { rule, until, hits: Arc::clone(&hits) });
        self.count.store(rules.len(), Ordering::Release);
        Hits(hits)
    }

    /// The leader of a topic's partitions is elsewhere for this long: Produce,
    /// Fetch and ListOffsets answer NOT_LEADER_OR_FOLLOWER.
    pub fn move_leader(&self, topic: &str, duration: Duration) {
        for api in [Api::Produce, Api::Fetch, Api::ListOffsets] {
            let fault = Fault::Error(code::NOT_LEADER_OR_FOLLOWER);
            self.inject(Rule::new(api, fault).topic(topic).lasting(duration));
        }
    }

    /// Withdraws every rule; a pause stays.
    pub fn clear(&self) {
        lock(&self.rules).clear();
        self.count.store(0, Ordering::Release);
    }

    /// Withdraws the rules of one API.
    pub fn clear_api(&self, api: Api) {
        let mut rules = lock(&self.rules);
        rules.retain(|active| active.rule.api != api);
        self.count.store(rules.len(), Ordering::Release);
    }

    /// The broker stands still: connections are accepted and nothing is
    /// answered, not even what is under way, until [`Faults::resume`].
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// The broker goes on where it stood.
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Closes every connection there is now. New ones are welcome.
    pub fn cut_connections(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub(super) async fn while_paused(&self) {
        if *self.paused.borrow() {
            // The sender is a field of self, so this ends only by resuming.
            let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
        }
    }

    pub(super) fn watch_cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// What befalls this request, counted as met.
    pub(super) fn meet<'a>(&self, api: Api, topics: impl FnOnce() -> Vec<&'a str>) -> Effects {
        let mut effects = Effects::default();
        if self.count.load(Ordering::Acquire) == 0 {
            return effects;
        }
        let (now, topics) = (Instant::now(), topics());
        let mut rules = lock(&self.rules);
        rules.retain_mut(|Active { rule, until, hits }| {
            if until.is_some_and(|until| until <= now) {
                return false;
            }
            let named = rule.topic.as_deref().is_none_or(|topic| topics.contains(&topic));
            if rule.api != api || !named {
                return true;
            }
            if rule.times == Some(0) {
                return false;
            }
            hits.fetch_add(1, Ordering::AcqRel);
            effects.add(rule);
            rule.times = rule.times.map(|times| times - 1);
            rule.times != Some(0)
        });
        self.count.store(rules.len(), Ordering::Release);
        effects
    }
}

/// The faults that one request meets, together.
#[derive(Debug, Default)]
pub(super) struct Effects {
    errors: Vec<(Option<String>, i16)>,
    pub(super) delay: Option<Duration>,
    pub(super) delay_answer: Option<Duration>,
    pub(super) cut_before: bool,
    pub(super) cut_after: bool,
    pub(super) silence: bool,
    pub(super) throttle_ms: i32,
}

impl Effects {
    fn add(&mut self, rule: &Rule) {
        match rule.fault {
            Fault::Error(code) => self.errors.push((rule.topic.clone(), code)),
            Fault::Delay(duration) => self.delay = Some(duration),
            Fault::DelayAnswer(duration) => self.delay_answer = Some(duration),
            Fault::CutBefore => self.cut_before = true,
            Fault::CutAfter => self.cut_after = true,
            Fault::Silence => self.silence = true,
            Fault::Throttle(duration) => {
                self.throttle_ms = i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
            }
        }
    }

    /// The code that this topic is refused with.
    pub(super) fn error_for(&self, topic: &str) -> Option<i16> {
        let meets = |name: &Option<String>| name.as_deref().is_none_or(|name| name == topic);
        self.errors.iter().find(|(name, _)| meets(name)).map(|(_, code)| *code)
    }

    /// The code that the request as a whole is refused with.
    pub(super) fn error(&self) -> Option<i16> {
        self.errors.iter().find(|(name, _)| name.is_none()).map(|(_, code)| *code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_meets_its_topic_so_many_times() {
        let faults = Faults::new();
        let hits = faults.inject(Rule::new(Api::Produce, Fault::Error(6)).topic("a").times(2));
        assert!(faults.meet(Api::Fetch, || vec!["a"]).error_for("a").is_none());
        assert!(faults.meet(Api::Produce, || vec!["b"]).error_for("b").is_none());
        for _ in 0..2 {
            let effects = faults.meet(Api::Produce, || vec!["b", "a"]);
            assert_eq!(
                (effects.error_for("a"), effects.error_for("b"), effects.error()),
                (Some(6), None, None)
            );
        }
        assert!(faults.meet(Api::Produce, || vec!["a"]).error_for("a").is_none());
        assert_eq!((hits.count(), faults.count.load(Ordering::Acquire)), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moved_leader_comes_back() {
        let faults = Faults::new();
        faults.move_leader("a", Duration::from_secs(1));
        assert_eq!(faults.meet(Api::Fetch, || vec!["a"]).error_for("a"), Some(code::NOT_LEADER_OR_FOLLOWER));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(faults.meet(Api::Fetch, || vec!["a"]).error_for("a").is_none());
    }

    #[test]
    fn rules_are_bounded_and_cleared() {
        let faults = Faults::new();
        for _ in 0..FAULT_RULES_MAX + 5 {
            faults.inject(Rule::new(Api::Produce, Fault::CutBefore));
        }
        assert_eq!(lock(&faults.rules).len(), FAULT_RULES_MAX);
        faults.clear_api(Api::Fetch);
        assert!(faults.meet(Api::Produce, Vec::new).cut_before);
        faults.clear();
        assert!(!faults.meet(Api::Produce, Vec::new).cut_before);
    }
}
