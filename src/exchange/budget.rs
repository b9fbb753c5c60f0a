//! Bounds on what calls in flight may hold, process-wide.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Why;
use super::config::LimitsConfig;
use super::journey::Journey;
use crate::pending::Room;
use crate::route::{Route, RouteTable};

/// When a refused caller should come back.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Counts calls and bytes; shared by all shards.
#[derive(Debug)]
pub struct Budget {
    calls: AtomicU32,
    calls_max: u32,
    bytes: AtomicU64,
    bytes_max: u64,
    /// By `Route::index`: calls in flight of that method.
    by_route: Box<[AtomicU32]>,
}

impl Budget {
    /// For these limits and routes.
    pub fn new(config: &LimitsConfig, routes: &RouteTable) -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicU32::new(0),
            calls_max: config.in_flight_max,
            bytes: AtomicU64::new(0),
            bytes_max: config.bytes_held_max,
            by_route: routes.routes().iter().map(|_| AtomicU32::new(0)).collect(),
        })
    }

    /// The most that may be held of them.
    pub(super) const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Calls in flight.
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Bytes of their request messages, and of replies that wait: for others, or
    /// to be taken.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Makes room for a call, or says which bound is in the way. The room is
    /// given back when the [`Permit`] is dropped.
    pub fn admit(self: &Arc<Self>, route: &Route) -> Result<Permit, Why> {
        // From here on the permit undoes what has been counted.
        let mut permit = Permit { budget: Arc::clone(self), route: None };
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.calls_max {
            return Err(refused("limits.in_flight_max (calls in flight)", self.calls_max.into()));
        }
        if let Some(max) = route.in_flight_max {
            permit.route = Some(route.index);
            if self.by_route[route.index].fetch_add(1, Ordering::Relaxed) >= max {
                return Err(refused("in_flight_max of this method", max.into()));
            }
        }
        Ok(permit)
    }

    /// How many routes there are.
    pub(super) fn routes(&self) -> usize {
        self.by_route.len()
    }

    /// Room of which nothing is taken yet.
    pub fn no_bytes(self: &Arc<Self>) -> BytesHeld {
        BytesHeld { budget: Arc::clone(self), bytes: 0, journey: None }
    }

    /// The same for the message of a call.
    pub(super) fn no_bytes_of(self: &Arc<Self>, journey: Arc<Journey>) -> BytesHeld {
        BytesHeld { budget: Arc::clone(self), bytes: 0, journey: Some(journey) }
    }
}

fn refused(what: &'static str, limit: u64) -> Why {
    Why::Overloaded { what, limit, retry_after: RETRY_AFTER }
}

/// Room for one call.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    route: Option<usize>,
}

/// Room for a message, for as long as somebody has it: it may lie in its lane
/// for longer than its call waits. As call and lane both have it, it leads the
/// lane to where it notes how far the call has come.
#[derive(Debug)]
pub struct BytesHeld {
    budget: Arc<Budget>,
    bytes: u64,
    journey: Option<Arc<Journey>>,
}

impl BytesHeld {
    /// The way of the call whose message it is.
    pub(super) const fn journey(&self) -> Option<&Arc<Journey>> {
        self.journey.as_ref()
    }

    /// Makes room for `more` bytes, or says that there is none.
    pub fn grow(&mut self, more: usize) -> Result<(), Why> {
        let more = more as u64;
        self.bytes += more;
        let max = self.budget.bytes_max;
        if self.budget.bytes.fetch_add(more, Ordering::Relaxed) + more > max {
            return Err(refused("limits.bytes_held_max (bytes of calls in flight)", max));
        }
        Ok(())
    }
}

impl Room for BytesHeld {
    fn take(&mut self, bytes: usize) -> bool {
        let taken = self.grow(bytes).is_ok();
        if !taken {
            self.give_back(bytes);
        }
        taken
    }

    fn give_back(&mut self, bytes: usize) {
        let bytes = (bytes as u64).min(self.bytes);
        self.bytes -= bytes;
        self.budget.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl BytesHeld {
    /// Counts `more` bytes that are here already and can't be refused.
    pub fn count(&mut self, more: u64) {
        self.bytes += more;
        self.budget.bytes.fetch_add(more, Ordering::Relaxed);
    }

    /// Room for some of the bytes, to be given back by itself.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let budget = Arc::clone(&self.budget);
        Self { budget, bytes, journey: None }
    }
}

impl Drop for BytesHeld {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.calls.fetch_sub(1, Ordering::Relaxed);
        if let Some(route) = self.route {
            self.budget.by_route[route].fetch_sub(1, Ordering::Relaxed);
        }
    }
}
