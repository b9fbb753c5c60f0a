//! When a reply topic counts as an orphan.
//!
//! The one who looks compares nothing but his own clock with itself. Silence
//! counts from when an answer that showed life had come, to when a question was
//! asked whose answer shows none: so much time certainly lies between the two
//! states of the log, however long question, answer or the one who looks were
//! held up. An instance that writes a heartbeat more often than `after` is
//! therefore never taken for dead, whoever else is slow.

use std::time::Duration;

/// What a look at a topic showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// A heartbeat that is new, or so much else that there may be one in it.
    Life,
    /// No heartbeat since the look before.
    Silence,
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its instance lives.
    Living,
    /// Not enough is known.
    Unknown,
    /// Its instance is dead, or has been stopped for longer than it may.
    Orphan,
}

/// What one who looks knows of one topic. Times are those of his own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watch {
    silent_since: Duration,
    after: Duration,
}

impl Watch {
    /// From a first look, whose answer came at `answered`.
    pub(super) const fn new(answered: Duration, after: Duration) -> Self {
        Self { silent_since: answered, after }
    }

    /// Takes in what a look showed that was asked for at `asked` and answered at
    /// `answered`.
    pub(super) fn look(&mut self, asked: Duration, answered: Duration, sign: Sign) -> Verdict {
        match sign {
            Sign::Life => {
                self.silent_since = answered;
                Verdict::Living
            }
            Sign::Silence if asked.saturating_sub(self.silent_since) >= self.after => Verdict::Orphan,
            Sign::Silence => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AFTER: Duration = ms(30_000);

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A look: paused before, held up on the way to the broker, on the way back,
    /// and before the answer is dealt with.
    #[derive(Debug, Clone)]
    struct Look {
        pause: u64,
        there: u64,
        back: u64,
        held: u64,
    }

    /// Pauses are short mostly, and at times longer than any limit.
    fn delay() -> impl Strategy<Value = u64> {
        prop_oneof![8 => 0u64..50, 2 => 0u64..8_000, 1 => 20_000u64..200_000]
    }

    fn looks() -> impl Strategy<Value = Vec<Look>> {
        let look = (0u64..8_000, delay(), delay(), delay(), delay());
        let look =
            look.prop_map(|(gap, pause, there, back, held)| Look { pause: gap + pause, there, back, held });
        proptest::collection::vec(look, 1..60)
    }

    /// What one janitor finds, whose clock is `skew` ahead: when the broker
    /// answered, and its verdict.
    fn verdicts(beats: &[u64], looks: &[Look], skew: u64, naive: bool) -> Vec<(u64, Verdict)> {
        let landed = |at: u64| beats.iter().filter(|beat| **beat <= at).count();
        let mut now = 0;
        let mut known: Option<(usize, Watch)> = None;
        let mut found = Vec::new();
        for look in looks {
            now += look.pause;
            let asked = now;
            let at_broker = asked + look.there;
            now = at_broker + look.back + look.held;
            let (count, answered) = (landed(at_broker), ms(now + skew));
            // As if silence lasted until the answer had been dealt with.
            let asked = if naive { answered } else { ms(asked + skew) };
            match &mut known {
                None => known = Some((count, Watch::new(answered, AFTER))),
                Some((before, watch)) => {
                    let sign = if count > *before { Sign::Life } else { Sign::Silence };
                    *before = count;
                    found.push((at_broker, watch.look(asked, answered, sign)));
                }
            }
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// A living instance may be slow: its heartbeats land up to a moment less
        /// than the limit apart. Two janitors with clocks of their own look at
        /// it, and are held up anywhere.
        #[test]
        fn a_living_instances_topic_is_never_an_orphan(
            gaps in proptest::collection::vec(prop_oneof![3 => 2_000u64..4_000, 1 => 0u64..30_000], 100),
            janitors in proptest::collection::vec((looks(), any::<u32>()), 2),
        ) {
            let beats: Vec<u64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let end = beats.last().copied().unwrap_or_default();
            for (looks, skew) in &janitors {
                for (at, verdict) in verdicts(&beats, looks, (*skew).into(), false) {
                    prop_assert!(at >= end || verdict != Verdict::Orphan, "at {at}");
                }
            }
        }

        /// One that has died is found, however long it has lived.
        #[test]
        fn a_dead_instances_topic_is_found(
            beats in proptest::collection::vec(0u64..100_000, 0..40),
            skew: u32,
        ) {
            let died = beats.iter().max().copied().unwrap_or_default();
            let calm = vec![Look { pause: 6_000, there: 1, back: 1, held: 0 }; 30];
            let found = verdicts(&beats, &calm, skew.into(), false);
            let orphan = found.iter().find(|(_, verdict)| *verdict == Verdict::Orphan);
            // The limit, one look for its beginning and one for its end.
            prop_assert!(orphan.is_some_and(|(at, _)| *at <= died + 30_000 + 2 * 6_010), "{orphan:?}");
        }
    }

    /// That the times are taken around the question is what does it.
    #[test]
    fn one_who_is_held_up_does_not_mistake_that_for_silence() {
        let beats: Vec<u64> = (0..100).map(|beat| beat * 3_000).collect();
        // The third is asked a moment after the second, and the pause is after it.
        let look = |pause, held| Look { pause, there: 1, back: 1, held };
        let looks = [look(1_000, 0), look(3_000, 0), look(10, 60_000)];
        let orphan = |naive| verdicts(&beats, &looks, 0, naive).iter().any(|(_, v)| *v == Verdict::Orphan);
        assert!(!orphan(false));
        assert!(orphan(true));
    }
}
