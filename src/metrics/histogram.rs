//! Histograms for the way of a call: whoever counts has a cell of its own,
//! nothing is locked, and the cells are added up when somebody asks.
//!
//! The bounds of the buckets are powers of two, so that the bucket of a value
//! is a matter of one instruction.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

use super::reference::help;

/// What is measured, and how finely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Microseconds, shown as seconds: 64 µs to 134 s.
    Time,
    /// Records: 1 to 1,024.
    Records,
}

impl Scale {
    /// The binary logarithm of the first bound.
    const fn first(self) -> u32 {
        match self {
            Self::Time => 6,
            Self::Records => 0,
        }
    }

    /// Buckets with a bound; one more has none.
    const fn bounds(self) -> usize {
        match self {
            Self::Time => 22,
            Self::Records => 11,
        }
    }

    /// The bound of a bucket, as it is counted.
    fn bound(self, index: usize) -> f64 {
        2_f64.powi((self.first() as usize + index) as i32)
    }

    fn show(self, value: f64) -> f64 {
        match self {
            Self::Time => value / 1e6,
            Self::Records => value,
        }
    }
}

/// The cell of one that counts.
#[derive(Debug)]
pub struct Histogram {
    first: u32,
    sum: AtomicU64,
    buckets: Box<[AtomicU64]>,
}

impl Histogram {
    fn new(scale: Scale) -> Self {
        let buckets = (0..=scale.bounds()).map(|_| AtomicU64::new(0)).collect();
        Self { first: scale.first(), sum: AtomicU64::new(0), buckets }
    }

    /// Counts a value: microseconds, or records.
    pub fn observe(&self, value: u64) {
        // The first power of two that is not below it.
        let power = u64::BITS - value.saturating_sub(1).leading_zeros();
        let index = (power.saturating_sub(self.first) as usize).min(self.buckets.len() - 1);
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }
}

/// The cells of one set of labels, added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    sum: u64,
    /// How many values were counted.
    pub count: u64,
    buckets: Vec<u64>,
}

impl Sum {
    /// What has been counted since `earlier`, which is of the same labels.
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&earlier.buckets).map(|(now, then)| now.saturating_sub(*then));
        Self {
            sum: self.sum.wrapping_sub(earlier.sum),
            count: self.count.saturating_sub(earlier.count),
            buckets: buckets.collect(),
        }
    }

    /// Both together.
    pub fn and(&self, other: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&other.buckets).map(|(one, other)| one + other);
        Self {
            sum: self.sum.wrapping_add(other.sum),
            count: self.count + other.count,
            buckets: buckets.collect(),
        }
    }
}

/// Histograms by their labels.
pub struct Histograms<L> {
    scale: Scale,
    cells: Mutex<BTreeMap<L, Vec<Arc<Histogram>>>>,
}

impl<L> fmt::Debug for Histograms<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histograms").field("scale", &self.scale).finish_non_exhaustive()
    }
}

impl<L: Ord + Clone> Histograms<L> {
    pub(super) fn new(scale: Scale) -> Arc<Self> {
        Arc::new(Self { scale, cells: Mutex::default() })
    }

    /// A cell for one that counts often, and keeps it.
    pub fn own(&self, labels: &L) -> Arc<Histogram> {
        let cell = Arc::new(Histogram::new(self.scale));
        self.lock().entry(labels.clone()).or_default().push(Arc::clone(&cell));
        cell
    }

    /// Counts in the cell of those that count seldom.
    pub fn observe(&self, labels: &L, value: u64) {
        let mut cells = self.lock();
        match cells.get(labels).and_then(|cells| cells.first()) {
            Some(cell) => cell.observe(value),
            None => {
                let cell = Histogram::new(self.scale);
                cell.observe(value);
                cells.insert(labels.clone(), vec![Arc::new(cell)]);
            }
        }
    }

    /// The value below which the part `share` of those in `sum` lie, as far as
    /// the buckets tell: within one they are taken to lie evenly, as Prometheus
    /// does. In seconds where times are counted; `None` where nothing was.
    pub fn quantile(&self, sum: &Sum, share: f64) -> Option<f64> {
        let rank = share * sum.count as f64;
        let mut below = 0;
        for (index, count) in sum.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let upto = self.scale.bound(index.min(self.scale.bounds() - 1));
            if (below + count) as f64 >= rank {
                let from = if index == 0 { 0.0 } else { self.scale.bound(index - 1) };
                let part = (rank - below as f64) / *count as f64;
                return Some(self.scale.show(from + (upto - from).max(0.0) * part.clamp(0.0, 1.0)));
            }
            below += count;
        }
        None
    }

    /// How many values were counted.
    pub fn count(&self, labels: &L) -> u64 {
        self.sums().into_iter().find(|(found, _)| found == labels).map_or(0, |(_, sum)| sum.count)
    }

    /// All there is, by label.
    pub fn sums(&self) -> Vec<(L, Sum)> {
        let add = |cells: &Vec<Arc<Histogram>>| {
            let mut all = Sum { sum: 0, count: 0, buckets: vec![0; self.scale.bounds() + 1] };
            for cell in cells {
                all.sum = all.sum.wrapping_add(cell.sum.load(Ordering::Relaxed));
                for (sum, bucket) in all.buckets.iter_mut().zip(&cell.buckets) {
                    *sum += bucket.load(Ordering::Relaxed);
                }
            }
            all.count = all.buckets.iter().sum();
            all
        };
        self.lock().iter().map(|(labels, cells)| (labels.clone(), add(cells))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<L, Vec<Arc<Histogram>>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of the histograms is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    Whole,
    Count,
    Sum,
}

/// A metric that is read off histograms, under its name.
pub(super) struct View<L> {
    name: &'static str,
    help: &'static str,
    show: Show,
    labels: fn(&L) -> Pairs,
    of: Arc<Histograms<L>>,
}

/// Labels as they are shown.
pub(super) type Pairs = Vec<(&'static str, String)>;

impl<L> fmt::Debug for View<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<L> View<L> {
    /// The histogram itself.
    pub(super) fn whole(name: &'static str, of: &Arc<Histograms<L>>, labels: fn(&L) -> Pairs) -> Self {
        Self { name, help: help(name), show: Show::Whole, labels, of: Arc::clone(of) }
    }

    /// A counter of its values.
    pub(super) fn count(name: &'static str, of: &Arc<Histograms<L>>, labels: fn(&L) -> Pairs) -> Self {
        Self { show: Show::Count, ..Self::whole(name, of, labels) }
    }

    /// A counter of what they come to.
    pub(super) fn sum(name: &'static str, of: &Arc<Histograms<L>>, labels: fn(&L) -> Pairs) -> Self {
        Self { show: Show::Sum, ..Self::whole(name, of, labels) }
    }
}

impl<L> Collector for View<L>
where
    L: Ord + Clone + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let scale = self.of.scale;
        let unit = (scale == Scale::Time && self.show == Show::Whole).then_some(Unit::Seconds);
        let kind = if self.show == Show::Whole { MetricType::Histogram } else { MetricType::Counter };
        let name = self.name.strip_suffix("_seconds").unwrap_or(self.name);
        let mut metric = encoder.encode_descriptor(name, self.help, unit.as_ref(), kind)?;
        for (labels, all) in self.of.sums() {
            let labels = (self.labels)(&labels);
            let mut family = metric.encode_family(&labels)?;
            match self.show {
                Show::Count => ConstCounter::new(all.count).encode(family)?,
                Show::Sum => ConstCounter::new(all.sum).encode(family)?,
                Show::Whole => {
                    let bound = |index: usize| match index < scale.bounds() {
                        true => scale.show(scale.bound(index)),
                        false => f64::INFINITY,
                    };
                    let buckets: Vec<(f64, u64)> =
                        all.buckets.iter().enumerate().map(|(index, count)| (bound(index), *count)).collect();
                    family.encode_histogram::<Pairs>(
                        scale.show(all.sum as f64),
                        all.count,
                        &buckets,
                        None,
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() {
        for (scale, value, bucket) in [
            (Scale::Records, 0, 0),
            (Scale::Records, 1, 0),
            (Scale::Records, 2, 1),
            (Scale::Records, 3, 2),
            (Scale::Records, 1_024, 10),
            (Scale::Records, 1_025, 11),
            (Scale::Records, u64::MAX, 11),
            (Scale::Time, 64, 0),
            (Scale::Time, 65, 1),
            (Scale::Time, 1 << 27, 21),
            (Scale::Time, (1 << 27) + 1, 22),
        ] {
            let cell = Histogram::new(scale);
            cell.observe(value);
            let found = cell.buckets.iter().position(|count| count.load(Ordering::Relaxed) == 1);
            assert_eq!(found, Some(bucket), "{scale:?} {value}");
        }
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_of_its_value() {
        let all = Histograms::<&str>::new(Scale::Time);
        assert_eq!(all.quantile(&Sum { sum: 0, count: 0, buckets: vec![0; 23] }, 0.5), None);
        for _ in 0..99 {
            all.observe(&"a", 1_000);
        }
        let before = all.sums().remove(0).1;
        all.observe(&"a", 1_000_000);
        let sum = all.sums().remove(0).1;
        let (half, most) = (all.quantile(&sum, 0.5).unwrap(), all.quantile(&sum, 0.999).unwrap());
        assert!((0.000_512..=0.001_024).contains(&half), "{half}");
        assert!((0.524..=1.049).contains(&most), "{most}");
        let since = sum.since(&before);
        assert_eq!(since.count, 1);
        assert!(all.quantile(&since, 0.01).unwrap() > 0.5);
        assert_eq!(before.and(&since), sum);
        // Beyond the last bound nothing is known but that.
        all.observe(&"b", u64::MAX);
        let beyond = all.quantile(&all.sums()[1].1, 0.5).unwrap();
        assert!((134.0..135.0).contains(&beyond), "{beyond}");
    }

    #[test]
    fn cells_of_the_same_labels_are_added_up() {
        let all = Histograms::<&str>::new(Scale::Records);
        let (one, other) = (all.own(&"a"), all.own(&"a"));
        one.observe(1);
        other.observe(3);
        all.observe(&"a", 3);
        all.observe(&"b", 5);
        let sums = all.sums();
        assert_eq!((sums[0].1.count, sums[0].1.sum), (3, 7));
        assert_eq!((all.count(&"a"), all.count(&"b"), all.count(&"c")), (3, 1, 0));
        assert_eq!(all.lock()["a"].len(), 2, "what counts seldom makes no cells without end");
    }
}
