//! What was counted lately: rates and latencies of the last seconds, and the
//! calls of the last minutes for a picture.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::exchange::Instance;
use crate::metrics::{CallLabels, Sum};

/// Between two looks at the counters.
const INTERVAL: Duration = Duration::from_secs(2);
/// Looks that rates are made from: the last ten seconds.
const LOOKS: usize = 6;
/// Looks in the picture: three minutes.
const PICTURE_LOOKS: usize = 90;

/// Looks at the counters, the oldest first.
#[derive(Debug, Default)]
pub struct Rates {
    looks: Mutex<Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    last: VecDeque<Look>,
    picture: VecDeque<f64>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    calls: BTreeMap<CallLabels, Sum>,
}

/// The calls of one method, or of all.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Traffic {
    /// Calls a second, lately.
    pub(super) rate: f64,
    /// Calls a second that failed, lately.
    pub(super) errors: f64,
    /// Half of the calls took at most this, lately; in seconds.
    pub(super) p50: Option<f64>,
    /// 99 of 100 calls took at most this, lately.
    pub(super) p99: Option<f64>,
    /// Calls since the start, by status.
    pub(super) by_code: BTreeMap<&'static str, u64>,
}

impl Traffic {
    /// Calls since the start.
    pub(super) fn calls(&self) -> u64 {
        self.by_code.values().sum()
    }

    /// Those that failed, by status.
    pub(super) fn failed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.by_code.iter().filter(|(code, _)| **code != "OK").map(|(code, calls)| (*code, *calls))
    }
}

impl Rates {
    /// Looks again and again. Never ends.
    pub async fn watch(self: Arc<Self>, instance: Arc<Instance>) {
        loop {
            self.look(&instance);
            sleep(INTERVAL).await;
        }
    }

    fn look(&self, instance: &Instance) {
        let look = Look { at: Instant::now(), calls: instance.metrics.calls.sums().into_iter().collect() };
        let mut looks = self.lock();
        if let Some(before) = looks.last.back() {
            let count = |look: &Look| look.calls.values().map(|sum| sum.count).sum::<u64>();
            let new = count(&look).saturating_sub(count(before));
            let rate = new as f64 / (look.at - before.at).as_secs_f64().max(0.001);
            looks.picture.push_back(rate);
        }
        looks.last.push_back(look);
        while looks.last.len() > LOOKS {
            looks.last.pop_front();
        }
        while looks.picture.len() > PICTURE_LOOKS {
            looks.picture.pop_front();
        }
    }

    /// Calls a second at each look, the oldest first.
    pub(super) fn picture(&self) -> Vec<f64> {
        self.lock().picture.iter().copied().collect()
    }

    /// By method; `None` has all methods together.
    pub(super) fn traffic(&self, instance: &Instance) -> BTreeMap<Option<Arc<str>>, Traffic> {
        let calls = &instance.metrics.calls;
        let looks = self.lock();
        let Some(oldest) = looks.last.front() else { return BTreeMap::new() };
        let over = oldest.at.elapsed().as_secs_f64().max(0.1);
        let mut found: BTreeMap<Option<Arc<str>>, (Traffic, Option<Sum>)> = BTreeMap::new();
        for (labels, sum) in calls.sums() {
            let lately = oldest.calls.get(&labels).map_or_else(|| sum.clone(), |then| sum.since(then));
            for method in [Some(Arc::clone(&labels.method)), None] {
                let (traffic, all) = found.entry(method).or_default();
                let rate = lately.count as f64 / over;
                traffic.rate += rate;
                traffic.errors += if labels.code == "OK" { 0.0 } else { rate };
                *traffic.by_code.entry(labels.code).or_default() += sum.count;
                *all = Some(all.as_ref().map_or_else(|| lately.clone(), |all| all.and(&lately)));
            }
        }
        let with_quantiles = |(method, (mut traffic, all)): (_, (Traffic, Option<Sum>))| {
            let quantile = |share| calls.quantile(all.as_ref()?, share);
            (traffic.p50, traffic.p99) = (quantile(0.5), quantile(0.99));
            (method, traffic)
        };
        found.into_iter().map(with_quantiles).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
