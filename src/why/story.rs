//! Everything that was found of one call, and the facts in it.

use super::verdict::{Answered, Appended, DeadLetter, Facts, Hands, Replays};
use super::{Error, Question};
use crate::dead_letters::{LateReply, Letter};
use crate::message::dialect::reply_topic_of;
use crate::message::{CANCEL, GRPC_DEADLINE, REPLAY};
use crate::terms::DeadLetterClass;
use crate::transport::{Cluster, GroupProgress, Groups};

/// Records that one story holds; what goes beyond is left out.
const SIGHTINGS_MAX: usize = 200;

/// A record and the topic on which it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The topic.
    pub topic: String,
    /// The record.
    pub letter: Letter,
}

/// What is left of the reply topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReplyLog {
    /// No record names one.
    #[default]
    NotNamed,
    /// It is there with all that it had when the request was made.
    Whole,
    /// Gateways drop what they have read: a reply may have been there.
    Trimmed,
    /// It does not exist any more: its instance has stopped.
    Gone,
}

/// What is known of the consumer groups of the request's partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Asked {
    /// There was nothing to ask about.
    #[default]
    No,
    /// The groups that read it, and its end offset.
    Groups(Vec<GroupProgress>, i64),
    /// The brokers do not tell, and why.
    Failed(String),
}

/// One call.
#[derive(Debug, Default)]
pub struct Story {
    /// Its correlation id.
    pub id: Option<String>,
    /// Its request; more than one if it was sent again.
    pub requests: Vec<Sighting>,
    /// Requests that were sent again from the dead letters.
    pub resent: Vec<Sighting>,
    /// Records that tell the worker that the caller has gone.
    pub cancels: Vec<Sighting>,
    /// Replies on the reply topic.
    pub replies: Vec<Sighting>,
    /// Its request as a dead letter.
    pub letters: Vec<Sighting>,
    /// Late replies, as they were recorded beside it.
    pub late_replies: Vec<Sighting>,
    /// Notes of replays.
    pub replays: Vec<Sighting>,
    /// The topic that its reply was asked to.
    pub reply_topic: Option<String>,
    /// What is left of that.
    pub reply_log: ReplyLog,
    /// Who reads the request's partition.
    pub groups: Asked,
}

impl Story {
    /// Every record, in no order.
    pub fn sightings(&self) -> impl Iterator<Item = (&'static str, &Sighting)> {
        let named = |name: &'static str, list: &'_ Vec<Sighting>| -> Vec<(&'static str, usize)> {
            (0..list.len()).map(|n| (name, n)).collect()
        };
        let lists: [(&'static str, &Vec<Sighting>); 7] = [
            ("request", &self.requests),
            ("cancel record", &self.cancels),
            ("reply", &self.replies),
            ("dead letter", &self.letters),
            ("late reply", &self.late_replies),
            ("note of a replay", &self.replays),
            ("replayed request", &self.resent),
        ];
        lists.into_iter().flat_map(move |(name, list)| {
            named(name, list).into_iter().map(move |(name, n)| (name, &list[n]))
        })
    }

    /// The time of its oldest record.
    pub fn began_ms(&self) -> i64 {
        self.sightings().map(|(_, seen)| seen.letter.record.timestamp_ms).min().unwrap_or_default()
    }

    /// What the call asked for: its request, or the copy that is a dead letter.
    pub fn request(&self) -> Option<&Sighting> {
        self.requests.first().or_else(|| self.letters.first())
    }

    /// When the caller gave up, by its own clock; milliseconds since 1970.
    pub fn deadline_ms(&self) -> Option<i64> {
        self.request()?.letter.text(GRPC_DEADLINE)?.parse().ok()
    }

    /// The instance that made the call, as its reply topic has it.
    pub fn instance<'a>(&'a self, reply_prefix: &str) -> Option<&'a str> {
        self.reply_topic.as_deref()?.strip_prefix(reply_prefix)?.strip_prefix('.')
    }

    /// Takes a record in, once.
    pub(super) fn add(&mut self, sighting: Sighting, question: &Question) {
        let list = match self.list_for(&sighting, question) {
            Some(list) if list.len() < SIGHTINGS_MAX => list,
            _ => return,
        };
        let known =
            |seen: &Sighting| (&seen.topic, seen.letter.place) == (&sighting.topic, sighting.letter.place);
        if !list.iter().any(known) {
            list.push(sighting);
            list.sort_by_key(|seen| (seen.letter.record.timestamp_ms, seen.letter.place));
        }
    }

    fn list_for(&mut self, sighting: &Sighting, question: &Question) -> Option<&mut Vec<Sighting>> {
        let Sighting { topic, letter } = sighting;
        let asks = reply_topic_of(&letter.record, question.custom.as_deref()).is_some();
        if question.dead_letter_topics.contains(topic) {
            return Some(match letter.class() {
                Some(DeadLetterClass::LateReply) => &mut self.late_replies,
                Some(DeadLetterClass::Replayed) => &mut self.replays,
                _ => &mut self.letters,
            });
        }
        let is_reply_topic =
            topic.starts_with(&question.reply_prefix) || self.reply_topic.as_ref() == Some(topic);
        if is_reply_topic {
            // A request that went astray is no answer.
            return (!asks).then_some(&mut self.replies);
        }
        if letter.record.header(CANCEL).is_some() {
            return Some(&mut self.cancels);
        }
        if letter.record.header(REPLAY).is_some() {
            return Some(&mut self.resent);
        }
        // The end of a request that is a stream stands behind its message.
        let is_end = letter.record.value.is_none() && !self.requests.is_empty();
        (!is_end).then_some(&mut self.requests)
    }

    /// Who reads the partition of the request.
    pub(super) async fn ask_groups(&mut self, cluster: &dyn Cluster, groups: &dyn Groups) {
        let Some(request) = self.requests.first() else { return };
        let (topic, partition) = (request.topic.clone(), request.letter.place.partition);
        let asked = async {
            let end = cluster.reader(&topic, partition).await?.end_offset().await;
            let end = end.map_err(|source| Error::Fetch { topic: topic.clone(), partition, source })?;
            Ok::<_, Error>((groups.groups_on(&topic, partition).await?, end))
        };
        self.groups = match asked.await {
            Ok((found, end)) => Asked::Groups(found, end),
            Err(error) => Asked::Failed(error.to_string()),
        };
    }

    /// The facts, for a verdict.
    pub fn facts(&self, now_ms: i64, complete: bool) -> Facts {
        let request = self.requests.first().map(|seen| Appended {
            at_ms: seen.letter.record.timestamp_ms,
            repeats: self.requests.len() - 1,
        });
        let letter = self.letters.first().map(|seen| DeadLetter {
            class: seen.letter.class(),
            reason: seen.letter.reason().unwrap_or_default().into_owned(),
            outcome: seen.letter.outcome().unwrap_or_default().into_owned(),
        });
        let asked = self.request();
        Facts {
            now_ms,
            complete,
            request,
            deadline_ms: self.deadline_ms(),
            wants_reply: asked.is_none() || self.reply_topic.is_some(),
            answers: self.answers(),
            cancelled_ms: self.cancels.first().map(|seen| seen.letter.record.timestamp_ms),
            letter,
            replays: self.replays(),
            reply_log: self.reply_log,
            hands: self.hands(),
        }
    }

    /// Replies, wherever they were seen, in order of time.
    fn answers(&self) -> Vec<Answered> {
        let answer = |at_ms: i64, letter: &Letter| {
            let LateReply { status, message, .. } = LateReply::of(letter);
            Answered { at_ms, status, message }
        };
        let mut answers: Vec<Answered> =
            self.replies.iter().map(|seen| answer(seen.letter.record.timestamp_ms, &seen.letter)).collect();
        // The same record, if the reply topic still has it.
        let is_seen = |letter: &Letter| {
            let original = letter.original();
            self.replies.iter().any(|reply| {
                original.as_ref().is_some_and(|at| {
                    at.topic == reply.topic
                        && at.partition == Some(reply.letter.place.partition)
                        && at.offset == Some(reply.letter.place.offset)
                })
            })
        };
        let late = self.late_replies.iter().filter(|seen| !is_seen(&seen.letter));
        answers.extend(late.map(|seen| answer(seen.letter.failed_at_ms(), &seen.letter)));
        answers.sort_by_key(|answer| answer.at_ms);
        answers
    }

    fn replays(&self) -> Option<Replays> {
        let times = self.replays.iter().chain(&self.resent).map(|seen| seen.letter.failed_at_ms());
        let last_ms = times.max()?;
        Some(Replays { count: self.replays.len().max(self.resent.len()), last_ms })
    }

    fn hands(&self) -> Hands {
        let (groups, end) = match &self.groups {
            Asked::Groups(groups, end) => (groups, *end),
            Asked::Failed(why) => return Hands::Unknown(why.clone()),
            Asked::No => return Hands::Unknown("there is no request to ask about".to_owned()),
        };
        let Some(request) = self.requests.first() else {
            return Hands::Unknown("there is no request to ask about".to_owned());
        };
        let offset = request.letter.place.offset;
        let on = format!("{}/{}", request.topic, request.letter.place.partition);
        // The one that has come furthest: it had the request first.
        let Some(group) = groups.iter().max_by_key(|group| group.committed.unwrap_or(-1)) else {
            return Hands::NoGroup { on };
        };
        let name = group.group.clone();
        match group.committed {
            Some(committed) if committed > offset => Hands::Passed { group: name },
            committed => Hands::NotReached {
                group: name,
                // Those in front of it, and itself.
                records: committed.map(|committed| offset - committed + 1),
                behind: committed.map(|committed| end - committed),
                has_members: group.members.map(|members| members > 0),
                holder: group.holder.clone(),
            },
        }
    }
}
