//! Section `[reply]`: how replies come back, and what of it goes together.

use std::time::Duration;

use super::raw::Found;
use super::resolve::{Judge, value};
use super::sections::Reply;
use crate::exchange::config as exchange;
use crate::limits;
use crate::route::{TOPIC_HINT, check_topic, show_duration};
use crate::terms::ReplyRouting;

/// So many heartbeats may be lost before anybody acts on it.
const HEARTBEATS_PER_TTL: u32 = 3;

impl Judge<'_> {
    pub(super) fn reply(&mut self, shards: usize) -> exchange::ReplyConfig {
        let part = Reply::read(self.layers, self.mistakes);
        let default = exchange::ReplyConfig::default();
        self.check_names(&part);
        self.check_routing(&part);
        self.check_times(&part);
        let least = match part.routing.as_ref().map(|found| found.value.0) {
            Some(ReplyRouting::Shared) => 1,
            _ => i32::try_from(shards).unwrap_or(i32::MAX),
        };
        let most = limits::REPLY_PARTITIONS_MAX;
        exchange::ReplyConfig {
            routing: value(part.routing, |routing| routing.0, default.routing),
            topic: part.topic.map(|found| found.value),
            partitions: part.partitions.map(|found| self.within(Some(found), least, most, least)),
            ordinal: part.ordinal.map(|found| found.value.0),
            lease_ttl: value(part.lease_ttl, |t| t.0, default.lease_ttl),
            keep: part.keep.map(|found| found.value.0),
            orphan_after: value(part.orphan_after, |t| t.0, default.orphan_after),
            instances_max: self.within(
                part.instances_max,
                1,
                limits::INSTANCES_CEILING,
                default.instances_max,
            ),
            topic_prefix: value(part.topic_prefix, |prefix| prefix, default.topic_prefix),
            instance: part.instance.map(|found| found.value),
            replication_factor: self.replication_factor(part.replication_factor, default.replication_factor),
            fetch_wait: value(part.fetch_wait, |t| t.0, default.fetch_wait),
            heartbeat_interval: value(part.heartbeat_interval, |t| t.0, default.heartbeat_interval),
            start_timeout: value(part.start_timeout, |t| t.0, default.start_timeout),
        }
    }

    fn check_names(&mut self, part: &Reply) {
        if let Some(found) = &part.topic_prefix {
            let longest = limits::TOPIC_NAME_CHARS_MAX - 1 - limits::INSTANCE_CHARS_MAX;
            if let Err(error) = check_topic(&found.value) {
                self.mistakes.push(found.place.mistake(error.to_string()).hint(TOPIC_HINT));
            } else if found.value.len() > longest {
                let what =
                    format!("must be at most {longest} characters, to leave room for the instance's name");
                self.mistakes.push(found.place.mistake(what));
            }
        }
        if let Some(found) = &part.topic
            && let Err(error) = check_topic(&found.value)
        {
            self.mistakes.push(found.place.mistake(error.to_string()).hint(TOPIC_HINT));
        }
        if let Some(found) = &part.instance {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
            let most = limits::INSTANCE_CHARS_MAX;
            if !(1..=most).contains(&found.value.len()) || !found.value.chars().all(allowed) {
                let what = format!("{:?} can't name an instance", found.value);
                let hint = format!("1 to {most} of a-z, A-Z, 0-9, '_' and '-'");
                self.mistakes.push(found.place.mistake(what).hint(hint));
            }
        }
    }

    /// What belongs to a routing, and what does not.
    fn check_routing(&mut self, part: &Reply) {
        let routing = part.routing.as_ref().map_or(ReplyRouting::InstanceTopic, |found| found.value.0);
        match (&part.topic, &part.routing) {
            (None, Some(found))
                if routing != ReplyRouting::InstanceTopic && !self.is_set("reply", "topic") =>
            {
                let mistake = found.place.mistake(format!("{routing:} needs reply.topic"));
                self.mistakes.push(mistake.hint("name the reply topic that the instances share"));
            }
            (Some(found), _) if routing == ReplyRouting::InstanceTopic => {
                let mistake = found.place.mistake("is of no use with routing instance-topic");
                self.mistakes
                    .push(mistake.hint("set reply.routing to partition or shared, or reply.topic_prefix"));
            }
            _ => {}
        }
        if let Some(found) = part.ordinal.as_ref().filter(|_| routing != ReplyRouting::Partition) {
            let what = format!("is of no use with routing {routing}; only partition has ordinals");
            self.mistakes.push(found.place.mistake(what));
        }
    }

    fn check_times(&mut self, part: &Reply) {
        let default = exchange::ReplyConfig::default();
        let heartbeat_age_max = Duration::from_millis(limits::HEARTBEAT_AGE_MAX_MS);
        if let Some(found) =
            part.heartbeat_interval.as_ref().filter(|found| found.value.0 >= heartbeat_age_max)
        {
            let most = show_duration(heartbeat_age_max);
            let what = format!("must be shorter than {most}, the age at which a heartbeat counts as lost");
            self.mistakes.push(found.place.mistake(what));
        }
        let interval = part.heartbeat_interval.as_ref();
        let least = interval.map_or(default.heartbeat_interval, |found| found.value.0) * HEARTBEATS_PER_TTL;
        let limits = [
            ("reply.lease_ttl", &part.lease_ttl, default.lease_ttl),
            ("reply.orphan_after", &part.orphan_after, default.orphan_after),
        ];
        for (name, found, value) in limits {
            let (value, place) = match (found, interval) {
                (Some(found), _) => (found.value.0, &found.place),
                (None, Some(interval)) => (value, &interval.place),
                (None, None) => continue,
            };
            if value < least && interval.is_none_or(|found| found.value.0 < heartbeat_age_max) {
                let (value, least) = (show_duration(value), show_duration(least));
                let what = format!(
                    "{value} is shorter than {least}, {HEARTBEATS_PER_TTL} times reply.heartbeat_interval"
                );
                let what = match found {
                    Some(_) => what,
                    None => format!("{name}, {what}"),
                };
                self.mistakes.push(place.mistake(what));
            }
        }
    }

    fn replication_factor(&mut self, found: Option<Found<i64>>, default: i16) -> i16 {
        let Some(found) = found else { return default };
        match i16::try_from(found.value) {
            Ok(factor) if factor == -1 || factor >= 1 => factor,
            _ => {
                let what = format!("{} is not a replication factor", found.value);
                let hint = "1 or more, or -1 for the cluster's own";
                self.mistakes.push(found.place.mistake(what).hint(hint));
                default
            }
        }
    }
}
