//! The life of a group, with the time given.

use super::*;

use kafka_protocol::messages::GroupId;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;

const SESSION: Duration = Duration::from_secs(10);
const VERSION: i16 = 7;

fn request(member: &str, protocols: &[&str]) -> JoinGroupRequest {
    let protocol = |name: &&str| JoinGroupRequestProtocol::default().with_name(text(name));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(20_000)
        .with_member_id(text(member))
        .with_protocol_type(text("consumer"))
        .with_protocols(protocols.iter().map(protocol).collect())
}

/// Joins as clients do: refused once, then with the id promised.
fn join(groups: &mut Groups, now: Instant) -> Joining {
    let (code, id) = groups.join(now, &request("", &["range"]), VERSION).unwrap_err();
    assert_eq!(code, code::MEMBER_ID_REQUIRED);
    groups.join(now, &request(&id, &["range"]), VERSION).unwrap()
}

fn ready<T>(step: Step<T>) -> T {
    match step {
        Step::Ready(answer) => answer,
        Step::Wait(..) => panic!("not ready"),
    }
}

fn waits_until<T>(step: Step<T>) -> Instant {
    match step {
        Step::Ready(_) => panic!("ready already"),
        Step::Wait(_, due) => due,
    }
}

fn claim(member: &str, generation: i32) -> Claim<'_> {
    Claim { group: "g", member, instance: None, generation }
}

fn sync(
    groups: &mut Groups,
    now: Instant,
    member: &str,
    generation: i32,
    given: &[&str],
) -> Result<Syncing, i16> {
    let give = |id: &&str| {
        let assignment = Bytes::from(format!("for {id}"));
        SyncGroupRequestAssignment::default().with_member_id(text(id)).with_assignment(assignment)
    };
    let request = SyncGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(text(member))
        .with_generation_id(generation)
        .with_assignments(given.iter().map(give).collect());
    groups.sync(now, &request)
}

/// A stable group of two: leader, follower, generation.
fn pair(groups: &mut Groups, now: Instant) -> (String, String, i32) {
    let (a, b) = (join(groups, now), join(groups, now));
    let now = now + FIRST_JOIN_DELAY;
    let (at_a, at_b) = (ready(groups.joined(now, &a, VERSION)), ready(groups.joined(now, &b, VERSION)));
    assert_eq!((at_a.leader.as_str(), at_a.members.len(), at_b.members.len()), (a.member.as_str(), 2, 0));
    let generation = at_a.generation_id;
    let waiting = sync(groups, now, &b.member, generation, &[]).unwrap();
    assert!(matches!(groups.synced(now, &waiting), Step::Wait(..)));
    let led = sync(groups, now, &a.member, generation, &[&a.member, &b.member]).unwrap();
    for syncing in [led, waiting] {
        let (.., assignment) = ready(groups.synced(now, &syncing)).unwrap();
        assert_eq!(assignment, format!("for {}", syncing.member));
    }
    (a.member, b.member, generation)
}

#[tokio::test]
async fn two_members_join_sync_and_beat() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let (a, b, generation) = pair(&mut groups, now);
    assert_eq!(groups.heartbeat(now, claim(&a, generation)), Ok(()));
    assert_eq!(groups.heartbeat(now, claim(&b, generation - 1)), Err(code::ILLEGAL_GENERATION));
    assert_eq!(groups.heartbeat(now, claim("who", generation)), Err(code::UNKNOWN_MEMBER_ID));
    // A follower that joins again unchanged disturbs nobody.
    let again = groups.join(now, &request(&b, &["range"]), VERSION).unwrap();
    assert_eq!(ready(groups.joined(now, &again, VERSION)).generation_id, generation);
    assert_eq!(groups.heartbeat(now, claim(&a, generation)), Ok(()));
}

#[tokio::test]
async fn a_third_member_makes_the_others_join_again() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let (a, b, generation) = pair(&mut groups, now);
    let third = join(&mut groups, now);
    assert!(matches!(groups.joined(now, &third, VERSION), Step::Wait(..)));
    assert_eq!(groups.heartbeat(now, claim(&a, generation)), Err(code::REBALANCE_IN_PROGRESS));
    assert_eq!(sync(&mut groups, now, &a, generation, &[]).unwrap_err(), code::REBALANCE_IN_PROGRESS);
    groups.join(now, &request(&a, &["range"]), VERSION).unwrap();
    groups.join(now, &request(&b, &["range"]), VERSION).unwrap();
    assert_eq!(ready(groups.joined(now, &third, VERSION)).generation_id, generation + 1);
}

#[tokio::test]
async fn a_silent_member_is_given_up_after_its_session() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let (a, b, generation) = pair(&mut groups, now);
    let later = now + SESSION - Duration::from_secs(1);
    assert_eq!(groups.heartbeat(later, claim(&a, generation)), Ok(()));
    let late = now + SESSION + FIRST_JOIN_DELAY;
    assert_eq!(groups.heartbeat(late, claim(&a, generation)), Err(code::REBALANCE_IN_PROGRESS));
    assert_eq!(groups.heartbeat(late, claim(&b, generation)), Err(code::UNKNOWN_MEMBER_ID));
    let alone = groups.join(late, &request(&a, &["range"]), VERSION).unwrap();
    assert_eq!(ready(groups.joined(late, &alone, VERSION)).members.len(), 1);
}

#[tokio::test]
async fn a_round_goes_on_without_those_who_only_beat() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let (a, _, generation) = pair(&mut groups, now);
    let third = join(&mut groups, now);
    let mut time = now;
    let due = now + Duration::from_secs(20);
    while time + SESSION / 2 < due {
        time += SESSION / 2;
        assert_eq!(groups.heartbeat(time, claim(&a, generation)), Err(code::REBALANCE_IN_PROGRESS));
    }
    assert_eq!(waits_until(groups.joined(time, &third, VERSION)), due);
    let answer = ready(groups.joined(due, &third, VERSION));
    assert_eq!((answer.leader.as_str(), answer.members.len()), (third.member.as_str(), 1));
}

#[tokio::test]
async fn who_does_not_sync_in_time_is_given_up() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let (a, b) = (join(&mut groups, now), join(&mut groups, now));
    let now = now + FIRST_JOIN_DELAY;
    let generation = ready(groups.joined(now, &a, VERSION)).generation_id;
    let waiting = sync(&mut groups, now, &b.member, generation, &[]).unwrap();
    // The leader beats and never hands out assignments.
    let half = now + SESSION - Duration::from_secs(1);
    assert_eq!(groups.heartbeat(half, claim(&a.member, generation)), Ok(()));
    let most = half + SESSION - Duration::from_secs(1);
    assert_eq!(groups.heartbeat(most, claim(&a.member, generation)), Ok(()));
    let answer = ready(groups.synced(now + Duration::from_secs(20), &waiting));
    assert_eq!(answer.unwrap_err(), code::REBALANCE_IN_PROGRESS);
}

#[tokio::test]
async fn leaving_empties_the_group_and_keeps_its_offsets() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let (a, b, generation) = pair(&mut groups, now);
    let committed = Committed { offset: 5, leader_epoch: 0, metadata: StrBytes::new() };
    groups.may_commit(now, claim(&a, generation)).unwrap();
    groups.commit("g", "t", 0, committed.clone()).unwrap();
    assert_eq!(groups.may_commit(now, claim("", -1)), Err(code::UNKNOWN_MEMBER_ID));
    let who = |id: &str| MemberIdentity::default().with_member_id(text(id));
    assert_eq!(groups.leave(now, "g", &who(&a)), Ok(()));
    assert_eq!(groups.leave(now, "g", &who(&a)), Err(code::UNKNOWN_MEMBER_ID));
    assert_eq!(groups.heartbeat(now, claim(&b, generation)), Err(code::REBALANCE_IN_PROGRESS));
    assert_eq!(groups.leave(now, "g", &who(&b)), Ok(()));
    assert_eq!(groups.by_id["g"].phase, Phase::Empty);
    assert_eq!(groups.may_commit(now, claim("", -1)), Ok(()));
    assert_eq!(groups.committed("g", "t", 0), Some(committed));
    groups.forget_topic("t");
    assert_eq!(groups.committed("g", "t", 0), None);
}

#[tokio::test]
async fn a_static_member_takes_its_place_again() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let fixed = request("", &["range"]).with_group_instance_id(Some(text("fixed")));
    let first = groups.join(now, &fixed, VERSION).unwrap();
    let now = now + FIRST_JOIN_DELAY;
    let generation = ready(groups.joined(now, &first, VERSION)).generation_id;
    let second = groups.join(now, &fixed, VERSION).unwrap();
    let answer = ready(groups.joined(now, &second, VERSION));
    assert_eq!((answer.generation_id, answer.members.len()), (generation, 1));
    let old = Claim { instance: Some("fixed"), ..claim(&first.member, generation) };
    assert_eq!(groups.heartbeat(now, old), Err(code::FENCED_INSTANCE_ID));
}

#[tokio::test]
async fn joins_that_cannot_be_are_refused() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let mut refused = |request: JoinGroupRequest| groups.join(now, &request, VERSION).unwrap_err().0;
    let fine = || request("", &["range"]);
    assert_eq!(refused(fine().with_group_id(GroupId::default())), code::INVALID_GROUP_ID);
    assert_eq!(refused(fine().with_session_timeout_ms(0)), code::INVALID_SESSION_TIMEOUT);
    assert_eq!(refused(request("", &[])), code::INCONSISTENT_GROUP_PROTOCOL);
    assert_eq!(refused(request("nobody", &["range"])), code::UNKNOWN_MEMBER_ID);
    pair(&mut groups, now);
    let other = groups.join(now, &request("", &["sticky"]), VERSION).unwrap_err();
    assert_eq!(other.0, code::INCONSISTENT_GROUP_PROTOCOL);
}

#[tokio::test]
async fn members_vote_for_a_protocol_that_all_have() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    let mut joining = Vec::new();
    for protocols in [&["a", "b", "c"][..], &["c", "b"], &["c", "b", "x"]] {
        // Version 3 needs no promised id.
        joining.push(groups.join(now, &request("", protocols), 3).unwrap());
    }
    let answer = ready(groups.joined(now + FIRST_JOIN_DELAY, &joining[0], VERSION));
    assert_eq!(answer.protocol_name.as_deref(), Some("c"));
}

#[tokio::test]
async fn members_and_promises_are_bounded() {
    let (mut groups, now) = (Groups::default(), Instant::now());
    for _ in 0..MEMBERS_PER_GROUP_MAX {
        groups.join(now, &request("", &["range"]), VERSION).unwrap_err();
    }
    let one_more = groups.join(now, &request("", &["range"]), VERSION).unwrap_err();
    assert_eq!(one_more.0, code::GROUP_MAX_SIZE_REACHED);
    // Promises that nobody comes back for are forgotten.
    let later = now + SESSION;
    assert_eq!(
        groups.join(later, &request("", &["range"]), VERSION).unwrap_err().0,
        code::MEMBER_ID_REQUIRED
    );
}
