//! Judges what is set about methods whose calls have several replies.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::compile::{Judge, path_of};
use super::mistake::did_you_mean;
use super::settings::{Settings, Sourced};
use super::table::{Delivery, Replies};
use crate::limits;
use crate::message::dialect::Dialect;
use crate::terms::Mode;

const CEILING: u32 = limits::REPLIES_PER_CALL_CEILING;
/// What says when all replies are there.
const ENDS: &str = "replies, until_last or partial_on_timeout";

impl Judge<'_> {
    /// How several replies answer a call; `None` for methods that have one.
    pub(super) fn replies(
        &mut self,
        output: &MessageDescriptor,
        mode: Mode,
        dialect: &Dialect,
    ) -> Option<Replies> {
        let streams = self.method.is_server_streaming();
        let count = self.count("replies", |s| &s.replies);
        let until_last = self.flag(|s| &s.until_last).unwrap_or(streams);
        let partial_on_timeout = self.flag(|s| &s.partial_on_timeout).unwrap_or(false);
        let ends = count.is_some() || until_last || partial_on_timeout;
        if !streams && !ends {
            self.refuse_what_needs_several();
            return None;
        }
        if mode == Mode::OneWay {
            let method = path_of(self.method);
            let what = format!("mode: {method} is one-way, and yet waits for several replies");
            let place = self.layers.pick(|s| &s.mode).map_or(&self.origin, |mode| &mode.origin);
            self.mistakes.push(place.mistake(what).hint(format!("take {ENDS} away, or the mode")));
        }
        if !ends {
            let place = self.layers.pick(|s| &s.until_last).map_or(&self.origin, |written| &written.origin);
            let what = format!("until_last: nothing ends the replies of {}", path_of(self.method));
            self.mistakes.push(place.mistake(what).hint(format!("set one of {ENDS}")));
        }
        Some(Replies {
            count,
            until_last,
            partial_on_timeout,
            skip_errors: self.skips_errors(dialect),
            held_max: self.held_max(count, streams),
            delivery: if streams { self.stream() } else { self.repeated_field(output) },
        })
    }

    fn flag(&self, get: impl Fn(&Settings) -> &Option<Sourced<bool>>) -> Option<bool> {
        self.layers.pick(get).map(|written| written.value)
    }

    fn count(&mut self, name: &str, get: impl Fn(&Settings) -> &Option<Sourced<i64>>) -> Option<u32> {
        let written = self.layers.pick(get)?;
        let count = u32::try_from(written.value).ok().filter(|count| (1..=CEILING).contains(count));
        if count.is_none() {
            let what = format!("{name}: {} is not within 1 to {CEILING}", written.value);
            self.mistakes.push(written.mistake(what));
        }
        count
    }

    /// What has no effect on a method whose calls have one reply.
    fn refuse_what_needs_several(&mut self) {
        let places = [
            ("replies_field", self.layers.pick(|s| &s.replies_field).map(|written| &written.origin)),
            ("skip_errors", self.layers.pick(|s| &s.skip_errors).filter(|yes| yes.value).map(|w| &w.origin)),
            ("replies_max", self.layers.pick(|s| &s.replies_max).map(|written| &written.origin)),
        ];
        for (name, place) in places {
            let Some(place) = place else { continue };
            let what = format!("{name}: a call of {} has one reply", path_of(self.method));
            self.mistakes.push(place.mistake(what).hint(format!("set one of {ENDS}, too")));
        }
    }

    fn skips_errors(&mut self, dialect: &Dialect) -> bool {
        let Some(written) = self.layers.pick(|s| &s.skip_errors).filter(|yes| yes.value) else {
            return false;
        };
        if *dialect == Dialect::Zilla {
            let what = "skip_errors: an error is the end of all replies in the dialect zilla";
            self.mistakes.push(written.mistake(what));
        }
        true
    }

    /// A stream holds only what its caller has not taken yet, so it may have more
    /// replies than that.
    fn held_max(&mut self, count: Option<u32>, streams: bool) -> u32 {
        let written = self.count("replies_max", |s| &s.replies_max);
        let max = written.unwrap_or(limits::REPLIES_PER_CALL_MAX);
        match count {
            Some(count) if count > max && !streams && written.is_none() => count,
            Some(count) if count > max && !streams => {
                let place = self.layers.pick(|s| &s.replies).map_or(&self.origin, |written| &written.origin);
                let what = format!("replies: {count} are more than replies_max, {max}");
                self.mistakes.push(place.mistake(what));
                max
            }
            _ => max,
        }
    }

    fn stream(&mut self) -> Delivery {
        if let Some(written) = self.layers.pick(|s| &s.replies_field) {
            let method = path_of(self.method);
            let what = format!("replies_field: {method} streams, and each reply is a message of its own");
            self.mistakes.push(written.mistake(what));
        }
        Delivery::Stream
    }

    fn repeated_field(&mut self, output: &MessageDescriptor) -> Delivery {
        let fits = |field: &FieldDescriptor| element_of(field).is_some();
        let found = match self.layers.pick(|s| &s.replies_field) {
            Some(written) => self.named_field(written, output),
            None => {
                let mut fitting = output.fields().filter(fits);
                let (first, second) = (fitting.next(), fitting.next());
                if first.is_none() || second.is_some() {
                    let name = output.full_name();
                    let (what, hint) = match &second {
                        None => (
                            format!("{name} has no repeated message field to put the replies in"),
                            "return a message that has one, or a stream".to_owned(),
                        ),
                        Some(_) => (
                            format!("{name} has several repeated message fields to put the replies in"),
                            "name one with replies_field".to_owned(),
                        ),
                    };
                    let what = format!("{}: {what}", path_of(self.method));
                    let place = self.what_asks_for_several();
                    self.mistakes.push(place.mistake(what).hint(hint));
                }
                first
            }
        };
        let field = found.and_then(|field| Some((field.number(), element_of(&field)?)));
        match field {
            Some((number, element)) => Delivery::Field { number, element },
            // A mistake has been noted, so that no call will see it.
            None => Delivery::Stream,
        }
    }

    fn named_field(
        &mut self,
        written: &Sourced<String>,
        output: &MessageDescriptor,
    ) -> Option<FieldDescriptor> {
        let (name, of) = (written.value.as_str(), output.full_name());
        let fitting: Vec<FieldDescriptor> =
            output.fields().filter(|field| element_of(field).is_some()).collect();
        let Some(field) = output.get_field_by_name(name) else {
            let hint = did_you_mean(name, fitting.iter().map(FieldDescriptor::name));
            let what = format!("replies_field: {of} has no field {name:?}");
            self.mistakes.push(written.mistake(what).maybe_hint(hint));
            return None;
        };
        if element_of(&field).is_none() {
            let what = format!("replies_field: field {name:?} of {of} is not a repeated message");
            self.mistakes.push(written.mistake(what));
        }
        Some(field)
    }

    /// The nearest setting that makes a call have several replies.
    fn what_asks_for_several(&self) -> &super::Origin {
        let count = self.layers.pick(|s| &s.replies).map(|written| &written.origin);
        let flags = [self.layers.pick(|s| &s.until_last), self.layers.pick(|s| &s.partial_on_timeout)];
        let flags =
            flags.into_iter().flatten().filter(|written| written.value).map(|written| &written.origin);
        count.into_iter().chain(flags).next().unwrap_or(&self.origin)
    }
}

/// The type of the elements of a field that can hold replies: messages with a
/// length in front of them, which a group has not.
fn element_of(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(element) if field.is_list() && !field.is_group() => Some(element),
        _ => None,
    }
}
