//! Records in hand: a queue for each key, and how far each partition may be
//! committed. Pure: decides, and leaves the doing to the engine.
//!
//! A *lane* is the queue of one key in one partition. At most one record of a
//! lane is at work; lanes do not wait for each other.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::driver::PartitionId;
use super::watermark::Watermark;

/// What has to be handled one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum LaneName {
    /// The requests of one key.
    Key(Bytes),
    /// The requests of one idempotency key that have no other.
    Idempotency(Bytes),
    /// All of the partition.
    Partition,
    /// This record alone, by its offset.
    Alone(i64),
}

/// A record that was started and is not settled yet.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) partition: PartitionId,
    pub(super) offset: i64,
    /// Tells one assignment of a partition from the next.
    assignment: u64,
    lane: LaneName,
}

/// The records in hand.
#[derive(Debug)]
pub(super) struct Board<T> {
    partitions: HashMap<PartitionId, Assigned<T>>,
    /// Lanes whose first record may start.
    ready: VecDeque<(PartitionId, LaneName)>,
    assignments: u64,
    queued: usize,
    working: usize,
    /// Taken and not settled.
    held: usize,
}

#[derive(Debug)]
struct Assigned<T> {
    assignment: u64,
    watermark: Watermark,
    lanes: HashMap<LaneName, VecDeque<(i64, T)>>,
    /// Started and not settled.
    started: usize,
    committed: Option<i64>,
    /// Going away: nothing of it is taken or started any more.
    leaving: bool,
}

impl<T> Default for Board<T> {
    fn default() -> Self {
        Self {
            partitions: HashMap::new(),
            ready: VecDeque::new(),
            assignments: 0,
            queued: 0,
            working: 0,
            held: 0,
        }
    }
}

impl<T> Board<T> {
    /// A partition is this worker's from now on.
    pub(super) fn assign(&mut self, partition: PartitionId) {
        self.assignments += 1;
        let assigned = Assigned {
            assignment: self.assignments,
            watermark: Watermark::default(),
            lanes: HashMap::new(),
            started: 0,
            committed: None,
            leaving: false,
        };
        self.remove(&partition);
        self.partitions.insert(partition, assigned);
    }

    /// Takes a record in. `false` when it is not wanted: of a partition that is
    /// not ours, or in hand already.
    pub(super) fn take(&mut self, partition: &PartitionId, offset: i64, lane: LaneName, item: T) -> bool {
        let Some(assigned) = self.partitions.get_mut(partition) else { return false };
        if assigned.leaving || !assigned.watermark.take(offset) {
            return false;
        }
        self.queued += 1;
        self.held += 1;
        match assigned.lanes.entry(lane) {
            Entry::Occupied(mut lane) => lane.get_mut().push_back((offset, item)),
            Entry::Vacant(place) => {
                self.ready.push_back((partition.clone(), place.key().clone()));
                place.insert(VecDeque::from([(offset, item)]));
            }
        }
        true
    }

    /// A record that needs no work is taken and done with.
    pub(super) fn pass_over(&mut self, partition: &PartitionId, offset: i64) {
        if let Some(assigned) = self.partitions.get_mut(partition)
            && !assigned.leaving
            && assigned.watermark.take(offset)
        {
            assigned.watermark.finish(offset);
        }
    }

    /// The next record to work on, if any lane may go on.
    pub(super) fn start(&mut self) -> Option<(Ticket, T)> {
        while let Some((partition, lane)) = self.ready.pop_front() {
            let Some(assigned) = self.partitions.get_mut(&partition) else { continue };
            let Some((offset, item)) = assigned.lanes.get_mut(&lane).and_then(VecDeque::pop_front) else {
                continue;
            };
            assigned.started += 1;
            self.queued -= 1;
            self.working += 1;
            return Some((Ticket { partition, offset, assignment: assigned.assignment, lane }, item));
        }
        None
    }

    /// The work on a record is done: the next of its lane may start.
    pub(super) fn release(&mut self, ticket: &Ticket) {
        self.working -= 1;
        let Some(assigned) = self.of(ticket) else { return };
        let Some(lane) = assigned.lanes.get(&ticket.lane) else { return };
        if lane.is_empty() {
            assigned.lanes.remove(&ticket.lane);
        } else {
            self.ready.push_back((ticket.partition.clone(), ticket.lane.clone()));
        }
    }

    /// A record that was released is done with: it may be committed.
    pub(super) fn settle(&mut self, ticket: &Ticket) {
        let Some(assigned) = self.of(ticket) else { return };
        assigned.watermark.finish(ticket.offset);
        assigned.started -= 1;
        self.held -= 1;
    }

    fn of(&mut self, ticket: &Ticket) -> Option<&mut Assigned<T>> {
        self.partitions.get_mut(&ticket.partition).filter(|a| a.assignment == ticket.assignment)
    }

    /// A partition is about to go: what has not been started is dropped.
    pub(super) fn leave(&mut self, partition: &PartitionId) {
        let Some(assigned) = self.partitions.get_mut(partition) else { return };
        assigned.leaving = true;
        let dropped: usize = assigned.lanes.values().map(VecDeque::len).sum();
        assigned.lanes.clear();
        self.queued -= dropped;
        self.held -= dropped;
        self.ready.retain(|(ready, _)| ready != partition);
    }

    /// Whether nothing of a partition is at work.
    pub(super) fn is_still(&self, partition: &PartitionId) -> bool {
        self.partitions.get(partition).is_none_or(|assigned| assigned.started == 0)
    }

    /// A partition is gone; what is still at work counts no more. Returns its
    /// commit point.
    pub(super) fn remove(&mut self, partition: &PartitionId) -> Option<i64> {
        self.leave(partition);
        let assigned = self.partitions.remove(partition)?;
        self.held -= assigned.started;
        assigned.watermark.point()
    }

    /// Commit points that have moved since they were last asked for.
    pub(super) fn points(&mut self) -> Vec<(PartitionId, i64)> {
        let mut moved = Vec::new();
        for (partition, assigned) in &mut self.partitions {
            let point = assigned.watermark.point();
            if let Some(offset) = point
                && assigned.committed != point
            {
                assigned.committed = point;
                moved.push((partition.clone(), offset));
            }
        }
        moved
    }

    /// The commit point of every partition that has one.
    pub(super) fn all_points(&self) -> Vec<(PartitionId, i64)> {
        let point =
            |(id, assigned): (&PartitionId, &Assigned<T>)| Some((id.clone(), assigned.watermark.point()?));
        self.partitions.iter().filter_map(point).collect()
    }

    /// Partitions that are this worker's.
    pub(super) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// Handlers at work, of partitions that have gone, too.
    pub(super) fn working(&self) -> usize {
        self.working
    }

    /// Records taken and not settled.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Records that the watermarks remember.
    pub(super) fn remembered(&self) -> usize {
        self.partitions.values().map(|assigned| assigned.watermark.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Take { partition: i32, key: u8 },
        Start,
        Release(prop::sample::Index),
        Settle(prop::sample::Index),
        Revoke { partition: i32 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3, 0u8..4).prop_map(|(partition, key)| Step::Take { partition, key }),
            5 => Just(Step::Start),
            4 => any::<prop::sample::Index>().prop_map(Step::Release),
            4 => any::<prop::sample::Index>().prop_map(Step::Settle),
            1 => (0..3).prop_map(|partition| Step::Revoke { partition }),
        ]
    }

    fn id(partition: i32) -> PartitionId {
        PartitionId { topic: Arc::from("pay"), partition }
    }

    /// What must hold, kept in the plainest way.
    #[derive(Default)]
    struct Model {
        next: [i64; 3],
        begins: [i64; 3],
        unsettled: [Vec<i64>; 3],
        working: Vec<(Ticket, u8)>,
        released: Vec<Ticket>,
        last: HashMap<(i32, u8), i64>,
    }

    impl Model {
        fn apply(&mut self, board: &mut Board<u8>, step: Step) -> Result<(), TestCaseError> {
            match step {
                Step::Take { partition, key } => {
                    let at = usize::try_from(partition).unwrap();
                    let offset = self.next[at];
                    self.next[at] += 1;
                    let lane = LaneName::Key(Bytes::copy_from_slice(&[key]));
                    prop_assert!(board.take(&id(partition), offset, lane, key));
                    self.unsettled[at].push(offset);
                }
                Step::Start => {
                    let Some((ticket, key)) = board.start() else { return Ok(()) };
                    let partition = ticket.partition.partition;
                    let alone =
                        !self.working.iter().any(|(t, k)| t.partition == ticket.partition && *k == key);
                    prop_assert!(alone, "two of a key at work");
                    let last = self.last.insert((partition, key), ticket.offset);
                    prop_assert!(last.is_none_or(|last| last < ticket.offset), "a key's order");
                    self.working.push((ticket, key));
                }
                Step::Release(index) if !self.working.is_empty() => {
                    let (ticket, _) = self.working.remove(index.index(self.working.len()));
                    board.release(&ticket);
                    self.released.push(ticket);
                }
                Step::Settle(index) if !self.released.is_empty() => {
                    let ticket = self.released.remove(index.index(self.released.len()));
                    board.settle(&ticket);
                    let at = usize::try_from(ticket.partition.partition).unwrap();
                    self.unsettled[at].retain(|offset| *offset != ticket.offset);
                }
                Step::Revoke { partition } => self.revoke(board, partition)?,
                Step::Release(_) | Step::Settle(_) => {}
            }
            Ok(())
        }

        /// Those at work are cut off; the partition comes back at its commit point.
        fn revoke(&mut self, board: &mut Board<u8>, partition: i32) -> Result<(), TestCaseError> {
            let at = usize::try_from(partition).unwrap();
            board.leave(&id(partition));
            let (cut, kept) = std::mem::take(&mut self.working)
                .into_iter()
                .partition(|(t, _)| t.partition == id(partition));
            self.working = kept;
            for (ticket, _) in &cut as &Vec<(Ticket, u8)> {
                board.release(ticket);
            }
            let late: Vec<Ticket> =
                self.released.iter().filter(|t| t.partition == id(partition)).cloned().collect();
            self.released.retain(|t| t.partition != id(partition));
            let expected = self.unsettled[at].first().copied().unwrap_or(self.next[at]);
            let point = board.remove(&id(partition));
            if self.next[at] > self.begins[at] {
                prop_assert_eq!(point, Some(expected));
            }
            board.assign(id(partition));
            // What is heard too late changes nothing.
            late.iter().for_each(|ticket| board.settle(ticket));
            self.unsettled[at].clear();
            (self.next[at], self.begins[at]) = (expected, expected);
            self.last.retain(|(p, _), _| *p != partition);
            Ok(())
        }

        fn check(&self, board: &Board<u8>) -> Result<(), TestCaseError> {
            for (place, point) in board.all_points() {
                let at = usize::try_from(place.partition).unwrap();
                let expected = self.unsettled[at].first().copied().unwrap_or(self.next[at]);
                prop_assert_eq!(point, expected, "the commit point of {}", place);
            }
            prop_assert_eq!(board.working(), self.working.len());
            prop_assert_eq!(board.held(), self.unsettled.iter().map(Vec::len).sum::<usize>());
            Ok(())
        }
    }

    proptest! {
        /// Whatever comes when: one of a key at a time and in order, nothing
        /// committed that is not settled, nothing lost.
        #[test]
        fn keys_keep_their_order_and_commits_their_place(
            steps in proptest::collection::vec(step(), 1..200),
            last in any::<prop::sample::Index>(),
        ) {
            let mut board = Board::default();
            (0..3).for_each(|partition| board.assign(id(partition)));
            let mut model = Model::default();
            for step in steps {
                model.apply(&mut board, step)?;
                model.check(&board)?;
            }
            // To the end: everything that is left gets its turn.
            loop {
                while !model.working.is_empty() || !model.released.is_empty() {
                    model.apply(&mut board, Step::Release(last))?;
                    model.apply(&mut board, Step::Settle(last))?;
                }
                model.apply(&mut board, Step::Start)?;
                if model.working.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(board.held(), 0);
        }
    }
}
