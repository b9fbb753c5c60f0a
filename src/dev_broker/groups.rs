//! Consumer groups: who is in, which generation, which partitions, how far.
//! A state machine that is given the time; it never waits and owns no timer.
//! Whoever waits for a group (a join, a sync) is told what to wait for and
//! until when, and asks again: so the members themselves watch the clock.
//!
//! ```text
//! Empty ──join──► Joining ──all joined, or time up──► Syncing ──leader's sync──► Stable
//!   ▲                ▲                                  │                          │
//!   └──last leaves───┴──────────join, leave, silence────┴──────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    GROUPS_MAX, MEMBER_BYTES_MAX, MEMBERS_PER_GROUP_MAX, OFFSET_METADATA_BYTES_MAX, PROTOCOLS_PER_MEMBER_MAX,
    code,
};

/// How long an empty group waits for more members before its first generation;
/// Kafka takes three seconds, which a demo has no use for.
const FIRST_JOIN_DELAY: Duration = Duration::from_millis(100);
/// The longest session time-out, as Kafka has it by default.
const SESSION_TIMEOUT_MS_MAX: i32 = 30 * 60 * 1000;
/// The longest time that a rebalance waits for members.
const REBALANCE_TIMEOUT_MS_MAX: i32 = 30 * 60 * 1000;
/// How long to wait when nothing has a time.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

/// What came of asking.
pub(super) enum Step<T> {
    /// The answer.
    Ready(T),
    /// Ask again after a change, or at this time.
    Wait(watch::Receiver<u64>, Instant),
}

/// A join that was accepted; its answer comes with the round.
#[derive(Debug, Clone)]
pub(super) struct Joining {
    group: String,
    member: String,
    round: u64,
}

/// A sync that was accepted.
#[derive(Debug, Clone)]
pub(super) struct Syncing {
    group: String,
    member: String,
    generation: i32,
}

/// What a member says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) group: &'a str,
    pub(super) member: &'a str,
    pub(super) instance: Option<&'a str>,
    pub(super) generation: i32,
}

/// How far a group has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: StrBytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Empty,
    Joining,
    Syncing,
    Stable,
}

#[derive(Debug)]
struct Member {
    instance: Option<String>,
    session: Duration,
    rebalance: Duration,
    alive_until: Instant,
    protocols: Vec<(StrBytes, Bytes)>,
    joined: bool,
    synced: bool,
    assignment: Bytes,
}

#[derive(Debug)]
struct Group {
    phase: Phase,
    generation: i32,
    /// Rounds of joining begun, and the last one finished.
    round: u64,
    finished_round: u64,
    protocol_type: StrBytes,
    protocol: StrBytes,
    leader: String,
    members: BTreeMap<String, Member>,
    /// Ids handed out to members that have yet to join with them.
    promised: BTreeMap<String, Instant>,
    /// The current phase goes on without those who are late.
    phase_ends: Instant,
    /// The current round of joining does not end before.
    not_before: Instant,
    offsets: BTreeMap<(String, i32), Committed>,
    changed: watch::Sender<u64>,
}

/// Every group of the broker.
#[derive(Debug, Default)]
pub(super) struct Groups {
    by_id: HashMap<String, Group>,
    members_made: u64,
}

impl Groups {
    /// Accepts a join, or refuses it with a code and the member id to use.
    pub(super) fn join(
        &mut self,
        now: Instant,
        request: &JoinGroupRequest,
        version: i16,
    ) -> Result<Joining, (i16, String)> {
        let refuse = |code| Err((code, request.member_id.to_string()));
        if request.group_id.is_empty() {
            return refuse(code::INVALID_GROUP_ID);
        }
        if !(1..=SESSION_TIMEOUT_MS_MAX).contains(&request.session_timeout_ms) {
            return refuse(code::INVALID_SESSION_TIMEOUT);
        }
        let protocols = request.protocols.len();
        let bytes: usize = request.protocols.iter().map(|p| p.name.len() + p.metadata.len()).sum();
        if request.protocol_type.is_empty() || !(1..=PROTOCOLS_PER_MEMBER_MAX).contains(&protocols) {
            return refuse(code::INCONSISTENT_GROUP_PROTOCOL);
        }
        if bytes > MEMBER_BYTES_MAX {
            return refuse(code::INVALID_REQUEST);
        }
        if !self.by_id.contains_key(request.group_id.as_str()) && self.by_id.len() >= GROUPS_MAX {
            return refuse(code::COORDINATOR_NOT_AVAILABLE);
        }
        self.members_made += 1;
        let fresh_id = format!("member-{}", self.members_made);
        let id = request.group_id.to_string();
        let group = self.by_id.entry(id.clone()).or_insert_with(|| Group::new(now));
        group.tick(now);
        let member = group.admit(now, request, version, fresh_id)?;
        let round = group.enter(now, &member, request);
        group.tick(now);
        Ok(Joining { group: id, member, round })
    }

    /// The answer to a join, once its round is over.
    pub(super) fn joined(
        &mut self,
        now: Instant,
        joining: &Joining,
        version: i16,
    ) -> Step<JoinGroupResponse> {
        let refuse = |code| Step::Ready(refuse_join(code, &joining.member, version));
        let Some(group) = self.by_id.get_mut(&joining.group) else { return refuse(code::UNKNOWN_MEMBER_ID) };
        group.tick(now);
        if !group.members.contains_key(&joining.member) {
            return refuse(code::UNKNOWN_MEMBER_ID);
        }
        if group.finished_round < joining.round {
            return group.wait(now);
        }
        Step::Ready(group.join_answer(&joining.member, version))
    }

    /// Accepts a sync; the leader's brings everyone's assignment.
    pub(super) fn sync(&mut self, now: Instant, request: &SyncGroupRequest) -> Result<Syncing, i16> {
        let claim = Claim {
            group: request.group_id.as_str(),
            member: request.member_id.as_str(),
            instance: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        let group = self.member(now, claim)?;
        let differs = |said: &Option<StrBytes>, known| said.as_ref().is_some_and(|said| said != known);
        if differs(&request.protocol_type, &group.protocol_type)
            || differs(&request.protocol_name, &group.protocol)
        {
            return Err(code::INCONSISTENT_GROUP_PROTOCOL);
        }
        if group.phase == Phase::Joining {
            return Err(code::REBALANCE_IN_PROGRESS);
        }
        if let Some(member) = group.members.get_mut(claim.member) {
            member.synced = true;
        }
        if group.phase == Phase::Syncing && group.leader == claim.member {
            for given in &request.assignments {
                if let Some(member) = group.members.get_mut(given.member_id.as_str()) {
                    // A copy, not to keep the whole request.
                    member.assignment = Bytes::copy_from_slice(&given.assignment);
                }
            }
            group.phase = Phase::Stable;
            group.everyone_is_alive(now);
        }
        let (group, member) = (claim.group.to_owned(), claim.member.to_owned());
        Ok(Syncing { group, member, generation: claim.generation })
    }

    /// The answer to a sync: protocol type, protocol and assignment.
    pub(super) fn synced(
        &mut self,
        now: Instant,
        syncing: &Syncing,
    ) -> Step<Result<(StrBytes, StrBytes, Bytes), i16>> {
        let unknown = Step::Ready(Err(code::UNKNOWN_MEMBER_ID));
        let Some(group) = self.by_id.get_mut(&syncing.group) else { return unknown };
        group.tick(now);
        let Some(member) = group.members.get(&syncing.member) else { return unknown };
        match group.phase {
            Phase::Stable if group.generation == syncing.generation => {
                let assignment = member.assignment.clone();
                Step::Ready(Ok((group.protocol_type.clone(), group.protocol.clone(), assignment)))
            }
            Phase::Syncing if group.generation == syncing.generation => group.wait(now),
            _ => Step::Ready(Err(code::REBALANCE_IN_PROGRESS)),
        }
    }

    /// Notes a sign of life.
    pub(super) fn heartbeat(&mut self, now: Instant, claim: Claim<'_>) -> Result<(), i16> {
        let group = self.member(now, claim)?;
        group.is_alive(now, claim.member);
        if group.phase == Phase::Joining { Err(code::REBALANCE_IN_PROGRESS) } else { Ok(()) }
    }

    /// Lets one member go.
    pub(super) fn leave(&mut self, now: Instant, group: &str, who: &MemberIdentity) -> Result<(), i16> {
        let group = self.by_id.get_mut(group).ok_or(code::UNKNOWN_MEMBER_ID)?;
        group.tick(now);
        let given = who.member_id.as_str();
        let id = match who.group_instance_id.as_deref().and_then(|instance| group.holder(instance)) {
            Some(holder) if !given.is_empty() && holder != given => return Err(code::FENCED_INSTANCE_ID),
            Some(holder) => holder,
            None => given.to_owned(),
        };
        let promised = group.promised.remove(&id).is_some();
        if group.members.remove(&id).is_some() {
            group.lost_members(now);
        } else if !promised {
            return Err(code::UNKNOWN_MEMBER_ID);
        }
        group.tick(now);
        group.announce();
        Ok(())
    }

    /// Whether this member, or someone outside the group, may commit now.
    pub(super) fn may_commit(&mut self, now: Instant, claim: Claim<'_>) -> Result<(), i16> {
        if claim.group.is_empty() {
            return Err(code::INVALID_GROUP_ID);
        }
        if claim.generation < 0 && claim.member.is_empty() {
            if !self.by_id.contains_key(claim.group) && self.by_id.len() >= GROUPS_MAX {
                return Err(code::COORDINATOR_NOT_AVAILABLE);
            }
            let group = self.by_id.entry(claim.group.to_owned()).or_insert_with(|| Group::new(now));
            group.tick(now);
            return if group.phase == Phase::Empty { Ok(()) } else { Err(code::UNKNOWN_MEMBER_ID) };
        }
        let group = self.member(now, claim)?;
        group.is_alive(now, claim.member);
        if group.phase == Phase::Syncing { Err(code::REBALANCE_IN_PROGRESS) } else { Ok(()) }
    }

    /// Remembers an offset of a partition that exists; so there are never
    /// more of them than partitions.
    pub(super) fn commit(
        &mut self,
        group: &str,
        topic: &str,
        partition: i32,
        committed: Committed,
    ) -> Result<(), i16> {
        if committed.metadata.len() > OFFSET_METADATA_BYTES_MAX {
            return Err(code::OFFSET_METADATA_TOO_LARGE);
        }
        let group = self.by_id.get_mut(group).ok_or(code::UNKNOWN_MEMBER_ID)?;
        group.offsets.insert((topic.to_owned(), partition), committed);
        Ok(())
    }

    pub(super) fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        self.by_id.get(group)?.offsets.get(&(topic.to_owned(), partition)).cloned()
    }

    /// Every group, with its protocol type.
    pub(super) fn list(&self) -> Vec<(String, StrBytes)> {
        self.by_id.iter().map(|(id, group)| (id.clone(), group.protocol_type.clone())).collect()
    }

    /// What a group is at the moment; one that nobody knows is dead, as Kafka
    /// has it.
    pub(super) fn describe(&mut self, now: Instant, id: &str, version: i16) -> DescribedGroup {
        let described = DescribedGroup::default();
        let Some(group) = self.by_id.get_mut(id) else {
            return described.with_group_state(StrBytes::from_static_str("Dead"));
        };
        group.tick(now);
        let state = match group.phase {
            Phase::Empty => "Empty",
            Phase::Joining => "PreparingRebalance",
            Phase::Syncing => "CompletingRebalance",
            Phase::Stable => "Stable",
        };
        let member = |(id, member): (&String, &Member)| {
            let instance = member.instance.as_deref().filter(|_| version >= 4).map(text);
            DescribedGroupMember::default()
                .with_member_id(text(id))
                .with_group_instance_id(instance)
                .with_client_id(text(id))
                .with_member_assignment(member.assignment.clone())
        };
        described
            .with_group_state(StrBytes::from_static_str(state))
            .with_protocol_type(group.protocol_type.clone())
            .with_protocol_data(group.protocol.clone())
            .with_members(group.members.iter().map(member).collect())
    }

    /// Every partition that a group has an offset for.
    pub(super) fn committed_partitions(&self, group: &str) -> BTreeMap<String, Vec<i32>> {
        let mut topics = BTreeMap::<String, Vec<i32>>::new();
        for (topic, partition) in self.by_id.get(group).into_iter().flat_map(|group| group.offsets.keys()) {
            topics.entry(topic.clone()).or_default().push(*partition);
        }
        topics
    }

    pub(super) fn forget_topic(&mut self, topic: &str) {
        for group in self.by_id.values_mut() {
            group.offsets.retain(|(name, _), _| name != topic);
        }
    }

    /// The group, when the claim to be a member of this generation holds.
    fn member(&mut self, now: Instant, claim: Claim<'_>) -> Result<&mut Group, i16> {
        let group = self.by_id.get_mut(claim.group).ok_or(code::UNKNOWN_MEMBER_ID)?;
        group.tick(now);
        let holder = claim.instance.and_then(|instance| group.holder(instance));
        if holder.is_some_and(|holder| holder != claim.member) {
            return Err(code::FENCED_INSTANCE_ID);
        }
        if !group.members.contains_key(claim.member) {
            return Err(code::UNKNOWN_MEMBER_ID);
        }
        if group.generation != claim.generation {
            return Err(code::ILLEGAL_GENERATION);
        }
        Ok(group)
    }
}

impl Group {
    fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Empty,
            generation: 0,
            round: 0,
            finished_round: 0,
            protocol_type: StrBytes::new(),
            protocol: StrBytes::new(),
            leader: String::new(),
            members: BTreeMap::new(),
            promised: BTreeMap::new(),
            phase_ends: now,
            not_before: now,
            offsets: BTreeMap::new(),
            changed: watch::Sender::new(0),
        }
    }

    /// Decides whether and under which id someone may join.
    fn admit(
        &mut self,
        now: Instant,
        request: &JoinGroupRequest,
        version: i16,
        fresh_id: String,
    ) -> Result<String, (i16, String)> {
        let given = request.member_id.to_string();
        let holder = request.group_instance_id.as_deref().and_then(|instance| self.holder(instance));
        if !self.understands(request, holder.as_deref().unwrap_or(&given)) {
            return Err((code::INCONSISTENT_GROUP_PROTOCOL, given));
        }
        if !given.is_empty() {
            if holder.is_some_and(|holder| holder != given) {
                return Err((code::FENCED_INSTANCE_ID, given));
            }
            let known = self.promised.remove(&given).is_some() || self.members.contains_key(&given);
            return if known { Ok(given) } else { Err((code::UNKNOWN_MEMBER_ID, given)) };
        }
        if let Some(holder) = holder {
            // A static member that has started again takes its own place.
            if let Some(mut member) = self.members.remove(&holder) {
                member.synced = false;
                self.members.insert(fresh_id.clone(), member);
            }
            if self.leader == holder {
                self.leader.clone_from(&fresh_id);
            }
            return Ok(fresh_id);
        }
        if self.members.len() + self.promised.len() >= MEMBERS_PER_GROUP_MAX {
            return Err((code::GROUP_MAX_SIZE_REACHED, given));
        }
        if version >= 4 && request.group_instance_id.is_none() {
            let session = millis(request.session_timeout_ms, SESSION_TIMEOUT_MS_MAX);
            self.promised.insert(fresh_id.clone(), now + session);
            return Err((code::MEMBER_ID_REQUIRED, fresh_id));
        }
        Ok(fresh_id)
    }

    /// Whether all other members share a protocol with this request.
    fn understands(&self, request: &JoinGroupRequest, member: &str) -> bool {
        let mut others =
            self.members.iter().filter(|(id, _)| *id != member).map(|(_, other)| other).peekable();
        if others.peek().is_none() {
            return true;
        }
        let others: Vec<&Member> = others.collect();
        let shared =
            |name: &StrBytes| others.iter().all(|other| other.protocols.iter().any(|(n, _)| n == name));
        self.protocol_type == request.protocol_type && request.protocols.iter().any(|p| shared(&p.name))
    }

    /// Takes a member into the round of joining, which begins if need be. Tells
    /// the round whose end brings the answer.
    fn enter(&mut self, now: Instant, id: &str, request: &JoinGroupRequest) -> u64 {
        // Copies, not to keep the whole request.
        let copy = |p: &JoinGroupRequestProtocol| (text(&p.name), Bytes::copy_from_slice(&p.metadata));
        let protocols: Vec<_> = request.protocols.iter().map(copy).collect();
        let session = millis(request.session_timeout_ms, SESSION_TIMEOUT_MS_MAX);
        // Version 0 has no time-out for the rebalance.
        let rebalance = match request.rebalance_timeout_ms {
            ..1 => session,
            timeout => millis(timeout, REBALANCE_TIMEOUT_MS_MAX),
        };
        let unchanged = self.members.get(id).is_some_and(|member| member.protocols == protocols);
        let settled = match self.phase {
            Phase::Syncing => true,
            Phase::Stable => self.leader != id,
            Phase::Empty | Phase::Joining => false,
        };
        if unchanged && settled {
            // The answer to its last join was lost, or it only makes sure.
            self.is_alive(now, id);
            return self.finished_round;
        }
        let member = Member {
            instance: request.group_instance_id.as_deref().map(str::to_owned),
            session,
            rebalance,
            alive_until: now + session,
            protocols,
            joined: false,
            synced: false,
            assignment: Bytes::new(),
        };
        self.members.insert(id.to_owned(), member);
        self.protocol_type = text(&request.protocol_type);
        if self.phase != Phase::Joining {
            self.begin_round(now);
        }
        if let Some(member) = self.members.get_mut(id) {
            member.joined = true;
        }
        self.announce();
        self.round
    }

    fn begin_round(&mut self, now: Instant) {
        self.not_before = if self.phase == Phase::Empty { now + FIRST_JOIN_DELAY } else { now };
        self.phase = Phase::Joining;
        self.round += 1;
        self.phase_ends = now + self.longest_rebalance();
        for member in self.members.values_mut() {
            member.joined = false;
            member.synced = false;
        }
        self.announce();
    }

    /// Lets time have its effect. Every way in comes through here.
    fn tick(&mut self, now: Instant) {
        self.promised.retain(|_, until| *until > now);
        let phase = self.phase;
        let late = phase == Phase::Syncing && now >= self.phase_ends;
        let before = self.members.len();
        self.members.retain(|_, member| {
            let in_time = member.alive_until > now && (member.synced || !late);
            waits(phase, member) || in_time
        });
        if self.members.len() < before {
            self.lost_members(now);
        }
        if self.phase == Phase::Joining && self.round_is_over(now) {
            self.finish_round(now);
        }
    }

    fn round_is_over(&self, now: Instant) -> bool {
        let complete = self.promised.is_empty() && self.members.values().all(|member| member.joined);
        now >= self.phase_ends || (complete && now >= self.not_before)
    }

    fn finish_round(&mut self, now: Instant) {
        self.members.retain(|_, member| member.joined);
        if self.members.is_empty() {
            return self.lost_members(now);
        }
        self.finished_round = self.round;
        self.generation += 1;
        self.phase = Phase::Syncing;
        self.phase_ends = now + self.longest_rebalance();
        self.protocol = self.vote();
        if !self.members.contains_key(&self.leader) {
            self.leader = self.members.keys().next().cloned().unwrap_or_default();
        }
        for member in self.members.values_mut() {
            member.joined = false;
            member.assignment = Bytes::new();
        }
        self.everyone_is_alive(now);
    }

    /// The protocol that most members prefer among those that all have.
    fn vote(&self) -> StrBytes {
        let names =
            |member: &Member| member.protocols.iter().map(|(n, _)| n.clone()).collect::<BTreeSet<_>>();
        let shared = self.members.values().map(names).reduce(|a, b| &a & &b).unwrap_or_default();
        let mut votes = BTreeMap::<StrBytes, usize>::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| shared.contains(name)) {
                *votes.entry(name.clone()).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name).unwrap_or_default()
    }

    fn lost_members(&mut self, now: Instant) {
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.generation += 1;
            self.leader.clear();
            self.announce();
        } else if matches!(self.phase, Phase::Syncing | Phase::Stable) {
            self.begin_round(now);
        }
    }

    fn join_answer(&self, id: &str, version: i16) -> JoinGroupResponse {
        let mut members = Vec::new();
        if id == self.leader {
            for (id, member) in &self.members {
                let chosen = member.protocols.iter().find(|(name, _)| *name == self.protocol);
                let mut entry = JoinGroupResponseMember::default()
                    .with_member_id(text(id))
                    .with_metadata(chosen.map(|(_, metadata)| metadata.clone()).unwrap_or_default());
                if version >= 5 {
                    entry.group_instance_id = member.instance.as_deref().map(text);
                }
                members.push(entry);
            }
        }
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type((version >= 7).then(|| self.protocol_type.clone()))
            .with_protocol_name(Some(self.protocol.clone()))
            .with_leader(text(&self.leader))
            .with_member_id(text(id))
            .with_members(members)
    }

    fn holder(&self, instance: &str) -> Option<String> {
        let holds = |member: &Member| member.instance.as_deref() == Some(instance);
        self.members.iter().find(|(_, member)| holds(member)).map(|(id, _)| id.clone())
    }

    fn longest_rebalance(&self) -> Duration {
        self.members.values().map(|member| member.rebalance).max().unwrap_or_default()
    }

    fn is_alive(&mut self, now: Instant, id: &str) {
        if let Some(member) = self.members.get_mut(id) {
            member.alive_until = now + member.session;
        }
    }

    fn everyone_is_alive(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            member.alive_until = now + member.session;
        }
        self.announce();
    }

    fn announce(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn wait<T>(&self, now: Instant) -> Step<T> {
        let silent = self.members.values().filter(|member| !waits(self.phase, member));
        let phase = matches!(self.phase, Phase::Joining | Phase::Syncing).then_some(self.phase_ends);
        let times =
            silent.map(|member| member.alive_until).chain(self.promised.values().copied()).chain(phase);
        let due = times.chain((self.not_before > now).then_some(self.not_before)).min();
        Step::Wait(self.changed.subscribe(), due.unwrap_or(now + NOTHING_DUE))
    }
}

/// Whether a member is waiting for an answer, which is a sign of life.
fn waits(phase: Phase, member: &Member) -> bool {
    match phase {
        Phase::Joining => member.joined,
        Phase::Syncing => member.synced,
        Phase::Empty | Phase::Stable => false,
    }
}

/// The answer to a join that was refused.
pub(super) fn refuse_join(code: i16, member: &str, version: i16) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(code)
        .with_generation_id(-1)
        .with_protocol_name((version < 7).then(StrBytes::new))
        .with_member_id(text(member))
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn millis(ms: i32, ms_max: i32) -> Duration {
    Duration::from_millis(u64::from(ms.clamp(1, ms_max).unsigned_abs()))
}

#[cfg(test)]
mod tests;
