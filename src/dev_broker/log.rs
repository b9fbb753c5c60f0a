//! One partition's log, in memory: appending, reading, retention, and waking
//! whoever waits for more. It knows the layout of a record batch and nothing
//! of requests. Nothing is ever written to a disk or to another broker.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::Notify;

use super::{PRODUCERS_PER_PARTITION_MAX, code};

/// Bytes of a record batch before its first record.
const BATCH_HEADER_BYTES: usize = 61;
/// Bytes of a batch that its own length field does not count.
const BATCH_PREFIX_BYTES: usize = 12;
/// Where the part of a batch begins that its checksum covers.
const CRC_COVERS_FROM: usize = 21;
/// Attribute bits that say a batch belongs to a transaction, or marks its end.
const TRANSACTIONAL_OR_CONTROL: i16 = 0x10 | 0x20;
/// Batches per producer remembered to recognise one sent again, as Kafka does.
const RECENT_BATCHES_MAX: usize = 5;

#[derive(Debug)]
struct Batch {
    base: i64,
    last: i64,
    max_timestamp: i64,
    bytes: Bytes,
}

impl Batch {
    /// What it counts against the retention, the entry itself included: many
    /// tiny batches would otherwise hold more than they seem to.
    fn weight(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }
}

/// What an idempotent producer has sent last.
#[derive(Debug)]
struct Producer {
    epoch: i16,
    recent: VecDeque<(i32, i32, i64)>,
}

/// What of a batch's header matters here.
#[derive(Debug)]
struct Header {
    last_delta: i32,
    max_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

/// Batches from a log, to be sent one after the other.
#[derive(Debug, Default)]
pub(super) struct Slice {
    pub(super) batches: Vec<Bytes>,
    pub(super) bytes: usize,
}

/// The log of one partition.
#[derive(Debug)]
pub(super) struct Log {
    batches: VecDeque<Batch>,
    weight: usize,
    start: i64,
    end: i64,
    retention_bytes: usize,
    batch_bytes_max: usize,
    producers: HashMap<i64, Producer>,
    /// Fetches that found nothing. One per connection at most, so bounded by
    /// the bound on connections.
    waiters: Vec<Weak<Notify>>,
}

impl Log {
    pub(super) fn new(retention_bytes: usize, batch_bytes_max: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            weight: 0,
            start: 0,
            end: 0,
            retention_bytes,
            batch_bytes_max,
            producers: HashMap::new(),
            waiters: Vec::new(),
        }
    }

    pub(super) fn start(&self) -> i64 {
        self.start
    }

    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// Appends one batch and tells its base offset. A batch that an idempotent
    /// producer sends again is not appended again.
    pub(super) fn append(&mut self, batch: &[u8]) -> Result<i64, i16> {
        if batch.len() > self.batch_bytes_max {
            return Err(code::MESSAGE_TOO_LARGE);
        }
        let header = check(batch)?;
        if let Some(base) = self.sent_before(&header)? {
            return Ok(base);
        }
        let base = self.end;
        self.remember(&header, base);
        self.end += i64::from(header.last_delta) + 1;
        // Base offset and leader epoch are not covered by the checksum, so all
        // else passes through as the producer wrote it.
        let mut bytes = BytesMut::from(batch);
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes[12..16].copy_from_slice(&0_i32.to_be_bytes());
        let batch =
            Batch { base, last: self.end - 1, max_timestamp: header.max_timestamp, bytes: bytes.freeze() };
        self.weight += batch.weight();
        self.batches.push_back(batch);
        while self.weight > self.retention_bytes && self.batches.len() > 1 {
            self.drop_first();
        }
        self.wake();
        Ok(base)
    }

    fn drop_first(&mut self) {
        if let Some(batch) = self.batches.pop_front() {
            self.weight -= batch.weight();
            self.start = self.start.max(batch.last + 1);
        }
    }

    fn sent_before(&self, header: &Header) -> Result<Option<i64>, i16> {
        let Some(producer) = self.producers.get(&header.producer_id) else { return Ok(None) };
        if header.producer_epoch < producer.epoch {
            return Err(code::INVALID_PRODUCER_EPOCH);
        }
        let first = header.base_sequence;
        if header.producer_epoch > producer.epoch {
            return if first == 0 { Ok(None) } else { Err(code::OUT_OF_ORDER_SEQUENCE_NUMBER) };
        }
        let last = sequence_after(first, header.last_delta);
        if let Some((.., base)) = producer.recent.iter().find(|(f, l, _)| (*f, *l) == (first, last)) {
            return Ok(Some(*base));
        }
        match producer.recent.back() {
            Some((_, previous, _)) if sequence_after(*previous, 1) != first => {
                Err(code::OUT_OF_ORDER_SEQUENCE_NUMBER)
            }
            _ => Ok(None),
        }
    }

    fn remember(&mut self, header: &Header, base: i64) {
        if header.producer_id < 0 {
            return;
        }
        if self.producers.len() >= PRODUCERS_PER_PARTITION_MAX
            && !self.producers.contains_key(&header.producer_id)
        {
            let last_base = |producer: &Producer| producer.recent.back().map(|(.., base)| *base);
            let oldest = self.producers.iter().min_by_key(|(_, producer)| last_base(producer));
            if let Some(id) = oldest.map(|(id, _)| *id) {
                self.producers.remove(&id);
            }
        }
        let fresh = || Producer { epoch: header.producer_epoch, recent: VecDeque::new() };
        let producer = self.producers.entry(header.producer_id).or_insert_with(fresh);
        if producer.epoch != header.producer_epoch {
            *producer = fresh();
        }
        if producer.recent.len() == RECENT_BATCHES_MAX {
            producer.recent.pop_front();
        }
        let last = sequence_after(header.base_sequence, header.last_delta);
        producer.recent.push_back((header.base_sequence, last, base));
    }

    /// Batches from the one that holds `offset` on, as many as fit; with
    /// `one_at_least` the first comes even if it does not fit.
    pub(super) fn read(&self, offset: i64, bytes_max: usize, one_at_least: bool) -> Result<Slice, i16> {
        if offset < self.start || offset > self.end {
            return Err(code::OFFSET_OUT_OF_RANGE);
        }
        let mut slice = Slice::default();
        let first = self.batches.partition_point(|batch| batch.last < offset);
        for batch in self.batches.range(first..) {
            let must = one_at_least && slice.batches.is_empty();
            if slice.bytes + batch.bytes.len() > bytes_max && !must {
                break;
            }
            slice.bytes += batch.bytes.len();
            slice.batches.push(batch.bytes.clone());
        }
        Ok(slice)
    }

    /// Where the first batch begins that has a record of this time or later,
    /// and that batch's latest time. Batches are not looked into.
    pub(super) fn offset_at(&self, timestamp: i64) -> Option<(i64, i64)> {
        let batch = self.batches.iter().find(|batch| batch.max_timestamp >= timestamp)?;
        Some((batch.base.max(self.start), batch.max_timestamp))
    }

    /// Forgets all before `offset` (-1: everything); tells the new start.
    pub(super) fn delete_before(&mut self, offset: i64) -> Result<i64, i16> {
        let offset = if offset == -1 { self.end } else { offset };
        if !(0..=self.end).contains(&offset) {
            return Err(code::OFFSET_OUT_OF_RANGE);
        }
        self.start = self.start.max(offset);
        while self.batches.front().is_some_and(|batch| batch.last < self.start) {
            self.drop_first();
        }
        Ok(self.start)
    }

    /// Has `waiter` woken by the next append. To be called under the same lock
    /// as the read that found nothing, so that no append comes in between.
    pub(super) fn wake_me(&mut self, waiter: &Arc<Notify>) {
        self.waiters.retain(|other| other.strong_count() > 0);
        let weak = Arc::downgrade(waiter);
        if !self.waiters.iter().any(|other| other.ptr_eq(&weak)) {
            self.waiters.push(weak);
        }
    }

    /// Wakes whoever waits; a wake-up that comes before the waiting is kept.
    pub(super) fn wake(&mut self) {
        for waiter in self.waiters.drain(..) {
            if let Some(waiter) = waiter.upgrade() {
                waiter.notify_one();
            }
        }
    }
}

/// Sequence numbers go on at 0 after the largest.
fn sequence_after(sequence: i32, steps: i32) -> i32 {
    sequence.wrapping_add(steps) & i32::MAX
}

/// Checks that these bytes are one whole batch, as Kafka does.
fn check(batch: &[u8]) -> Result<Header, i16> {
    if batch.is_empty() {
        return Err(code::INVALID_RECORD);
    }
    if batch.len() < BATCH_HEADER_BYTES {
        return Err(code::CORRUPT_MESSAGE);
    }
    let mut rest = &batch[8..];
    let length = usize::try_from(rest.get_i32()).unwrap_or(usize::MAX);
    rest.advance(4);
    let magic = rest.get_i8();
    let crc = rest.get_u32();
    if magic != 2 {
        return Err(code::INVALID_RECORD);
    }
    if length < BATCH_HEADER_BYTES - BATCH_PREFIX_BYTES || length > batch.len() - BATCH_PREFIX_BYTES {
        return Err(code::CORRUPT_MESSAGE);
    }
    if length < batch.len() - BATCH_PREFIX_BYTES {
        // Something follows: Kafka takes exactly one batch per partition.
        return Err(code::INVALID_RECORD);
    }
    if crc32c::crc32c(&batch[CRC_COVERS_FROM..]) != crc {
        return Err(code::CORRUPT_MESSAGE);
    }
    let attributes = rest.get_i16();
    let last_delta = rest.get_i32();
    let _base_timestamp = rest.get_i64();
    let header = Header {
        last_delta,
        max_timestamp: rest.get_i64(),
        producer_id: rest.get_i64(),
        producer_epoch: rest.get_i16(),
        base_sequence: rest.get_i32(),
    };
    let records = rest.get_i32();
    if attributes & TRANSACTIONAL_OR_CONTROL != 0 || records < 1 || last_delta != records - 1 {
        return Err(code::INVALID_RECORD);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;

    /// A batch whose records are just so many bytes: the log does not look.
    fn batch(records: i32, payload: usize, timestamp: i64, producer: (i64, i16, i32)) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_i64(999);
        out.put_i32(i32::try_from(BATCH_HEADER_BYTES - BATCH_PREFIX_BYTES + payload).unwrap());
        out.put_i32(-1);
        out.put_i8(2);
        out.put_u32(0);
        out.put_i16(0);
        out.put_i32(records - 1);
        out.put_i64(timestamp);
        out.put_i64(timestamp);
        out.put_i64(producer.0);
        out.put_i16(producer.1);
        out.put_i32(producer.2);
        out.put_i32(records);
        out.put_bytes(b'x', payload);
        seal(&mut out);
        out
    }

    fn seal(batch: &mut [u8]) {
        let crc = crc32c::crc32c(&batch[CRC_COVERS_FROM..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }

    fn plain(records: i32, payload: usize) -> Vec<u8> {
        batch(records, payload, 5, (-1, -1, -1))
    }

    #[test]
    fn appends_rewrite_the_base_offset_and_nothing_that_the_checksum_covers() {
        let mut log = Log::new(1 << 20, 1 << 20);
        assert_eq!(log.append(&plain(3, 10)), Ok(0));
        assert_eq!(log.append(&plain(2, 10)), Ok(3));
        assert_eq!(log.end(), 5);
        let slice = log.read(1, usize::MAX, false).unwrap();
        assert_eq!(slice.batches.len(), 2);
        assert_eq!(slice.batches[1][..8], 3_i64.to_be_bytes());
        assert_eq!(slice.batches[1][CRC_COVERS_FROM..], plain(2, 10)[CRC_COVERS_FROM..]);
    }

    #[test]
    fn what_is_not_one_whole_batch_is_refused() {
        let mut log = Log::new(1 << 20, 1_000);
        let refused = |log: &mut Log, change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = plain(1, 10);
            change(&mut bytes);
            log.append(&bytes).unwrap_err()
        };
        assert_eq!(log.append(&[]), Err(code::INVALID_RECORD));
        assert_eq!(log.append(&plain(1, 1_000)), Err(code::MESSAGE_TOO_LARGE));
        assert_eq!(refused(&mut log, &|b| b[65] ^= 1), code::CORRUPT_MESSAGE);
        assert_eq!(refused(&mut log, &|b| b.truncate(70)), code::CORRUPT_MESSAGE);
        assert_eq!(refused(&mut log, &|b| b.truncate(20)), code::CORRUPT_MESSAGE);
        assert_eq!(refused(&mut log, &|b| b[8] = 0xff), code::CORRUPT_MESSAGE);
        assert_eq!(refused(&mut log, &|b| b[16] = 1), code::INVALID_RECORD);
        assert_eq!(refused(&mut log, &|b| b.extend(plain(1, 1))), code::INVALID_RECORD);
        let more_records_than_offsets = |b: &mut Vec<u8>| {
            b[60] = 9;
            seal(b);
        };
        assert_eq!(refused(&mut log, &more_records_than_offsets), code::INVALID_RECORD);
        assert_eq!(log.end(), 0);
    }

    #[test]
    fn retention_moves_the_start_and_the_newest_batch_always_stays() {
        let mut log = Log::new(10_000, 1 << 20);
        for _ in 0..100 {
            log.append(&plain(1, 900)).unwrap();
            assert!(log.weight <= 10_000);
        }
        assert!(log.start() > 80 && log.end() == 100);
        assert_eq!(log.read(0, 1, true).unwrap_err(), code::OFFSET_OUT_OF_RANGE);
        log.append(&plain(1, 50_000)).unwrap();
        assert_eq!((log.start(), log.end(), log.batches.len()), (100, 101, 1));
        assert_eq!(log.read(102, 1, true).unwrap_err(), code::OFFSET_OUT_OF_RANGE);
        assert_eq!(log.read(101, 1, true).unwrap().bytes, 0);
    }

    #[test]
    fn reading_keeps_to_its_bytes_but_for_the_first_batch() {
        let mut log = Log::new(1 << 20, 1 << 20);
        for _ in 0..4 {
            log.append(&plain(1, 39)).unwrap();
        }
        assert_eq!(log.read(0, 250, true).unwrap().batches.len(), 2);
        assert_eq!(log.read(0, 50, true).unwrap().batches.len(), 1);
        assert_eq!(log.read(0, 50, false).unwrap().batches.len(), 0);
    }

    #[test]
    fn deleting_records_moves_the_start_only_forward() {
        let mut log = Log::new(1 << 20, 1 << 20);
        for _ in 0..3 {
            log.append(&plain(2, 10)).unwrap();
        }
        assert_eq!(log.delete_before(3), Ok(3));
        assert_eq!(log.batches.len(), 2);
        assert_eq!(log.delete_before(1), Ok(3));
        assert_eq!(log.delete_before(7), Err(code::OFFSET_OUT_OF_RANGE));
        assert_eq!(log.delete_before(-2), Err(code::OFFSET_OUT_OF_RANGE));
        assert_eq!(log.delete_before(-1), Ok(6));
        assert_eq!((log.batches.len(), log.weight), (0, 0));
        assert_eq!(log.append(&plain(1, 10)), Ok(6));
    }

    #[test]
    fn a_batch_of_an_idempotent_producer_is_appended_once() {
        let mut log = Log::new(1 << 20, 1 << 20);
        let send = |log: &mut Log, epoch, sequence| log.append(&batch(2, 10, 5, (77, epoch, sequence)));
        assert_eq!(send(&mut log, 0, 0), Ok(0));
        assert_eq!(send(&mut log, 0, 2), Ok(2));
        assert_eq!(send(&mut log, 0, 0), Ok(0));
        assert_eq!(log.end(), 4);
        assert_eq!(send(&mut log, 0, 6), Err(code::OUT_OF_ORDER_SEQUENCE_NUMBER));
        assert_eq!(send(&mut log, 1, 2), Err(code::OUT_OF_ORDER_SEQUENCE_NUMBER));
        assert_eq!(send(&mut log, 1, 0), Ok(4));
        assert_eq!(send(&mut log, 0, 4), Err(code::INVALID_PRODUCER_EPOCH));
        assert_eq!(sequence_after(i32::MAX, 1), 0);
    }

    #[test]
    fn producers_remembered_are_bounded() {
        let mut log = Log::new(1 << 20, 1 << 20);
        for id in 0..=PRODUCERS_PER_PARTITION_MAX as i64 {
            log.append(&batch(1, 1, 5, (id, 0, 0))).unwrap();
        }
        assert_eq!(log.producers.len(), PRODUCERS_PER_PARTITION_MAX);
        assert!(!log.producers.contains_key(&0));
    }

    #[test]
    fn offsets_are_found_by_time() {
        let mut log = Log::new(1 << 20, 1 << 20);
        for time in [10, 20, 30] {
            log.append(&batch(2, 1, time, (-1, -1, -1))).unwrap();
        }
        assert_eq!(log.offset_at(11), Some((2, 20)));
        assert_eq!(log.offset_at(31), None);
    }

    #[tokio::test]
    async fn an_append_between_looking_and_waiting_is_not_missed() {
        let mut log = Log::new(1 << 20, 1 << 20);
        let waiter = Arc::new(Notify::new());
        log.wake_me(&waiter);
        log.wake_me(&waiter);
        assert_eq!(log.waiters.len(), 1);
        log.append(&plain(1, 1)).unwrap();
        waiter.notified().await;
        log.wake_me(&waiter);
        drop(waiter);
        log.wake_me(&Arc::new(Notify::new()));
        assert_eq!(log.waiters.len(), 1);
    }
}
