//! What the lanes have given up, heard from what they log: an operator has no
//! other account of it by call.
//!
//! One subscriber for the process; each run is on one thread and has its own
//! list.

use std::cell::RefCell;
use std::fmt;
use std::sync::Once;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::history::{Kind, Loss};

thread_local! {
    static HEARD: RefCell<Option<(Instant, Vec<Loss>)>> = const { RefCell::new(None) };
}

/// Begins a new list; times count from now. Must be called on the run's clock.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Should another one be there, the counts do not agree, and seeds fail.
        let _ = tracing::subscriber::set_global_default(Listener);
    });
    HEARD.set(Some((Instant::now(), Vec::new())));
}

/// What was lost by now.
pub(crate) fn heard() -> Vec<Loss> {
    HEARD.with_borrow(|heard| heard.as_ref().map(|(_, losses)| losses.clone()).unwrap_or_default())
}

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.target().starts_with("antiphon::exchange")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        let mut told = Told::default();
        event.record(&mut told);
        let kind = match told.what.as_str() {
            "dead letter" => Kind::DeadLetter,
            "late reply" => Kind::LateReply,
            "cancel record" => Kind::Cancel,
            _ => return,
        };
        HEARD.with_borrow_mut(|heard| {
            if let Some((began, losses)) = heard {
                losses.push(Loss { kind, id: told.id, topic: told.topic, at: began.elapsed() });
            }
        });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Told {
    what: String,
    id: String,
    topic: String,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let place = match field.name() {
            "what" => &mut self.what,
            "correlation_id" => &mut self.id,
            "topic" => &mut self.topic,
            _ => return,
        };
        *place = format!("{value:?}");
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
