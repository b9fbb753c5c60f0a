//! What goes wrong in one run, and when. Everything follows from the seed.
//!
//! A plan has two parts: noise, small chances that hold all the time, and
//! windows, in which one thing goes wrong with one topic for a while. Each seed
//! has some of them and not others, so that rare ones meet without drowning in
//! the frequent ones.

use std::ops::Range;
use std::time::Duration;

use antiphon::exchange::config::{CircuitConfig, IdempotencyConfig};
use fastrand::Rng;

use crate::cluster::{LETTER_TOPICS, REPLIES, REQUEST_TOPICS};

/// What can be wrong with a topic for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nobody accepts connections.
    ConnectRefused,
    /// Connecting takes until its time-out.
    ConnectHangs,
    /// Produces fail before anything is appended, and say so.
    NotSent,
    /// Produces fail before anything is appended, and nobody can tell.
    Vanishes,
    /// Produces are appended, and their answers are lost.
    AnswerLost,
    /// Produces are answered by nobody, and appended at some other time.
    Delayed,
    /// The broker appends and throttles.
    Throttled,
    /// The broker refuses everything, as it does after a change of rights; in
    /// half of the cases after another one has become the leader, so that who
    /// wants to send has to connect first.
    Forbidden,
    /// The broker denies knowing the topic, which is there.
    Denied,
    /// The topic is deleted, and created again at the end.
    Deleted,
    /// The topic is deleted and created again at once.
    Recreated,
    /// Another broker leads the partitions.
    LeaderMoves,
    /// Topics can't be listed.
    ListFails,
    /// Fetches fail.
    FetchFails,
    /// Fetches take long.
    FetchSlow,
    /// Retention drops everything in the log.
    Trimmed,
    /// The broker takes what is under way, and dies before it answers; neither
    /// workers nor we reach the partition until the end.
    BrokerDies,
    /// Workers are silent; some answer later.
    Silent,
}

impl Trouble {
    const ALL: [Self; 18] = [
        Self::ConnectRefused,
        Self::ConnectHangs,
        Self::NotSent,
        Self::Vanishes,
        Self::AnswerLost,
        Self::Delayed,
        Self::Throttled,
        Self::Forbidden,
        Self::Denied,
        Self::Deleted,
        Self::Recreated,
        Self::LeaderMoves,
        Self::ListFails,
        Self::FetchFails,
        Self::FetchSlow,
        Self::Trimmed,
        Self::BrokerDies,
        Self::Silent,
    ];
}

/// One trouble of one topic.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) time: Range<Duration>,
    pub(crate) topic: &'static str,
    pub(crate) trouble: Trouble,
}

/// Chances in percent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noise {
    pub(crate) not_sent: u8,
    pub(crate) vanishes: u8,
    pub(crate) answer_lost: u8,
    pub(crate) delayed: u8,
    pub(crate) throttled: u8,
    pub(crate) connect: u8,
    pub(crate) fetch: u8,
    /// Records on the reply topic that can't be decoded.
    pub(crate) poison: u8,
    /// Acknowledged without an offset.
    pub(crate) no_offset: u8,
    /// What workers do wrong.
    pub(crate) workers: u8,
    /// Callers that go away.
    pub(crate) cancels: u8,
    /// Calls that carry an idempotency key.
    pub(crate) keys: u8,
}

/// What goes wrong in one run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) noise: Noise,
    pub(crate) windows: Vec<Window>,
    /// A broker takes no batch of more bytes.
    pub(crate) batch_bytes_max: usize,
    /// Longest way to a broker, or back.
    pub(crate) latency_max: Duration,
    /// How the instance is set up for circuits and idempotency keys. With
    /// circuits no call has a key: a call that is carried on ends when nobody
    /// looks, and so does what its circuit counts.
    pub(crate) circuit: CircuitConfig,
    pub(crate) idempotency: IdempotencyConfig,
}

impl Plan {
    /// After this nothing new goes wrong.
    pub(crate) const HORIZON: Duration = Duration::from_secs(30);

    pub(crate) fn new(rng: &mut Rng) -> Self {
        let mut chance = |max: u8| if rng.bool() { 0 } else { rng.u8(1..=max) };
        let noise = Noise {
            not_sent: chance(20),
            vanishes: chance(10),
            answer_lost: chance(15),
            delayed: chance(10),
            throttled: chance(5),
            connect: chance(5),
            fetch: chance(5),
            poison: chance(10),
            no_offset: chance(20),
            workers: chance(60),
            cancels: chance(40),
            keys: chance(60),
        };
        let circuit = match rng.u8(..5) {
            0 | 1 => CircuitConfig {
                timeouts_max: rng.u32(1..5),
                open_for: Duration::from_millis(rng.u64(100..2_500)),
            },
            _ => CircuitConfig::default(),
        };
        let noise = if circuit.timeouts_max > 0 { Noise { keys: 0, ..noise } } else { noise };
        let window = Duration::from_millis(rng.u64(1_000..15_000));
        let windows = (0..rng.usize(0..8)).map(|_| Window::new(rng)).collect();
        Self {
            noise,
            windows,
            batch_bytes_max: rng.usize(1_500..20_000),
            latency_max: Duration::from_millis(rng.u64(1..40)),
            circuit,
            idempotency: IdempotencyConfig { window, ..IdempotencyConfig::default() },
        }
    }

    /// Nothing goes wrong.
    pub(crate) fn calm() -> Self {
        Self {
            noise: Noise::default(),
            windows: Vec::new(),
            batch_bytes_max: usize::MAX,
            latency_max: Duration::from_millis(20),
            circuit: CircuitConfig::default(),
            idempotency: IdempotencyConfig::default(),
        }
    }

    /// Until when this trouble lasts, if it is there.
    pub(crate) fn until(&self, now: Duration, topic: &str, trouble: Trouble) -> Option<Duration> {
        let hit = |w: &&Window| w.trouble == trouble && w.topic == topic && w.time.contains(&now);
        self.windows.iter().filter(hit).map(|window| window.time.end).max()
    }

    /// Whether the broker refuses everything for this topic at some time
    /// between the two.
    pub(crate) fn forbids(&self, topic: &str, from: Duration, to: Duration) -> bool {
        let hit = |w: &Window| {
            w.trouble == Trouble::Forbidden && w.topic == topic && w.time.start <= to && from <= w.time.end
        };
        self.windows.iter().any(hit)
    }

    /// The first moment from `from` on with `calm` of undisturbed reading of
    /// replies behind it.
    pub(crate) fn replies_readable(&self, from: Duration, calm: Duration) -> Duration {
        let mut from = from;
        loop {
            let disturbing = self.windows.iter().filter(|w| w.topic == REPLIES);
            let mut disturbing = disturbing.filter_map(|window| window.disturbs_reading());
            match disturbing.find(|time| time.start <= from + calm && from < time.end) {
                Some(time) => from = time.end,
                None => return from,
            }
        }
    }
}

impl Window {
    /// When it can keep a reply that is in the log from being read.
    fn disturbs_reading(&self) -> Option<Range<Duration>> {
        let Range { start, end } = self.time;
        match self.trouble {
            Trouble::ConnectRefused
            | Trouble::ConnectHangs
            | Trouble::Forbidden
            | Trouble::Denied
            | Trouble::FetchFails
            | Trouble::FetchSlow
            | Trouble::BrokerDies => Some(start..end),
            // Done in a moment, and then it is the reader's to recover.
            Trouble::Deleted | Trouble::Recreated | Trouble::LeaderMoves | Trouble::Trimmed => {
                Some(start..start + Duration::from_millis(1))
            }
            Trouble::NotSent
            | Trouble::Vanishes
            | Trouble::AnswerLost
            | Trouble::Delayed
            | Trouble::Throttled
            | Trouble::ListFails
            | Trouble::Silent => None,
        }
    }

    fn new(rng: &mut Rng) -> Self {
        // The frequent ones among real ones, too.
        let trouble = match rng.u8(..12) {
            0 => Trouble::BrokerDies,
            1 => Trouble::Silent,
            2 => Trouble::Forbidden,
            _ => Trouble::ALL[rng.usize(..Trouble::ALL.len())],
        };
        let topics = [
            REQUEST_TOPICS[0].0,
            REQUEST_TOPICS[0].0,
            REQUEST_TOPICS[0].0,
            REQUEST_TOPICS[1].0,
            REQUEST_TOPICS[1].0,
            LETTER_TOPICS[rng.usize(..LETTER_TOPICS.len())].0,
            REPLIES,
            REPLIES,
        ];
        let start = Duration::from_millis(rng.u64(..20_000));
        // A broker does not die for a moment.
        let short = trouble != Trouble::BrokerDies && rng.bool();
        let length = Duration::from_millis(if short { rng.u64(20..1_000) } else { rng.u64(1_000..8_000) });
        Self { time: start..start + length, topic: topics[rng.usize(..topics.len())], trouble }
    }
}
