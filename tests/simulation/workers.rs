//! Workers that answer, and that do what real ones do wrong: late, twice, not
//! at all, out of order, with garbage, under ids that are not theirs.

use std::time::Duration;

use antiphon::correlation::{CorrelationId, Minter};
use antiphon::message::{CANCEL, WorkerStatus};
use antiphon::transport::{HeaderName, Received, Record};
use bytes::Bytes;
use fastrand::Rng;
use prost::Message as _;
use tokio::time::sleep;

use crate::cluster::SimCluster;
use crate::messages;

/// Header of every reply: the call that its worker has worked on. A caller
/// that gets another one's has a stranger's answer.
pub(crate) const WORKED_ON: &str = "sim-call";

const CORRELATION_ID: &str = "kafka_correlationId";
const REPLY_TOPIC: &str = "kafka_replyTopic";

/// Reads one partition of a request topic, for ever.
pub(crate) struct Worker {
    pub(crate) cluster: SimCluster,
    pub(crate) topic: &'static str,
    pub(crate) partition: i32,
    pub(crate) shards: usize,
    pub(crate) rng: Rng,
    /// Gives out ids of another instance.
    pub(crate) foreign: Minter,
}

/// One request, as far as a worker understands it.
struct Job {
    call: usize,
    id: CorrelationId,
    message: Bytes,
    reply_to: Option<i32>,
}

impl Worker {
    pub(crate) async fn run(mut self) {
        let mut next = (0, 0);
        loop {
            for request in self.cluster.requests(self.topic, self.partition, &mut next) {
                self.take(&request);
            }
            self.cluster.changed().await;
        }
    }

    fn take(&mut self, request: &Received) {
        if request.header(CANCEL).is_some() {
            if request.value.is_some() || request.header(REPLY_TOPIC).is_some() {
                self.cluster
                    .state()
                    .history
                    .violated(format!("no worker would tell this from a request: {request:?}"));
            }
            return;
        }
        let Some(job) = Job::read(request) else {
            self.cluster.state().history.violated("a worker was sent something that it can't read");
            return;
        };
        let silent = self.cluster.silent(self.topic);
        if let Some(left) = silent {
            if self.rng.bool() {
                let record = job.reply(job.id, Some(job.message.clone()));
                self.send(left, job.reply_to.unwrap_or_default(), record, Some(&job));
            }
            return;
        }
        let naughty = self.cluster.state().plan().noise.workers;
        if naughty > 0 && self.rng.u8(..100) < naughty {
            self.misbehave(&job);
        } else if let Some(partition) = job.reply_to {
            let record = job.reply(job.id, Some(job.message.clone()));
            let after = Duration::from_millis(self.rng.u64(1..60));
            self.send(after, partition, record, Some(&job));
        }
    }

    fn misbehave(&mut self, job: &Job) {
        let soon = Duration::from_millis(self.rng.u64(..100));
        let late = Duration::from_millis(self.rng.u64(300..9_000));
        // Nobody has asked for a reply to a one-way call; it comes all the same.
        let partition = job.reply_to.unwrap_or_default();
        let proper = job.reply(job.id, Some(job.message.clone()));
        let mine = Some(job);
        let any_time = if self.rng.bool() { late } else { soon };
        match self.rng.u8(..14) {
            0 => {}
            1 | 2 => self.send(late, partition, proper, mine),
            3 => {
                self.send(soon, partition, proper.clone(), mine);
                self.send(late, partition, proper, mine);
            }
            4 => {
                let elsewhere = self.rng.usize(..self.shards) as i32;
                self.send(soon, elsewhere, proper, mine);
            }
            5 => {
                let code = [9, 14][self.rng.usize(..2)];
                self.send(any_time, partition, job.status(code), mine);
            }
            6 => {
                let mut record = job.reply(job.id, Some(job.message.clone()));
                record.headers.push((HeaderName::Borrowed("grpc-status"), Bytes::from_static(b"99")));
                self.send(any_time, partition, record, mine);
            }
            7 => self.send(any_time, partition, job.reply(job.id, None), mine),
            8 => {
                let mut record = proper;
                record.headers[0].1 = Bytes::copy_from_slice(&job.id.to_bytes());
                self.send(soon, partition, record, mine);
            }
            _ => {
                // First something that is nobody's, then the reply.
                let stray = self.stray(job);
                self.send(soon / 2, partition, stray, None);
                self.send(soon, partition, proper, mine);
            }
        }
    }

    /// A record that must end no call.
    fn stray(&mut self, job: &Job) -> Record {
        let mut record = self.nobodys(job);
        if let Some((_, worked_on)) = record.headers.iter_mut().find(|(name, _)| name == WORKED_ON) {
            *worked_on = Bytes::from_static(b"stray");
        }
        record
    }

    fn nobodys(&mut self, job: &Job) -> Record {
        match self.rng.u8(..6) {
            0 => Record { value: Some(job.message.clone()), ..Record::default() },
            1 => {
                let mut record = job.reply(job.id, Some(job.message.clone()));
                record.headers[0].1 = Bytes::from_static(b"no id at all");
                record
            }
            2 => job.reply(self.foreign.mint(job.id.slot()), Some(job.message.clone())),
            3 => {
                let mut bytes = job.id.to_bytes();
                bytes[self.rng.usize(..16)] ^= 1 << self.rng.u8(..8);
                // 16 bytes are always an id.
                job.reply(CorrelationId::parse(&bytes).unwrap_or(job.id), None)
            }
            4 => {
                let mut record = job.reply(job.id, Some(job.message.clone()));
                record.headers.push((HeaderName::Borrowed(REPLY_TOPIC), Bytes::from_static(b"elsewhere")));
                record
            }
            _ => self.stale(job),
        }
    }

    /// A reply under the id of a call that has ended, where there is one.
    fn stale(&mut self, job: &Job) -> Record {
        let state = self.cluster.state();
        let history = &state.history;
        // One with a key is carried on after its callers have gone.
        let over = |call| !history.is_live(call) && history.calls[call].idempotency_key.is_none();
        let ended = || history.appends.iter().filter(|append| over(append.call));
        let id = match ended().count() {
            0 => self.foreign.mint(0),
            count => ended().nth(self.rng.usize(..count)).map_or(job.id, |append| append.id),
        };
        drop(state);
        job.reply(id, Some(job.message.clone()))
    }

    /// `ends`: the job that the record is the end of.
    fn send(&self, after: Duration, partition: i32, record: Record, ends: Option<&Job>) {
        let cluster = self.cluster.clone();
        let ends = ends.map(|job| (job.call, job.id));
        drop(tokio::spawn(async move {
            sleep(after).await;
            cluster.reply(partition, record, ends);
        }));
    }
}

impl Job {
    fn read(request: &Received) -> Option<Self> {
        let message = request.value.clone()?;
        let call = messages::Request::decode(message.clone()).ok()?.call as usize;
        let id = CorrelationId::parse(request.header(CORRELATION_ID)?)?;
        let reply_to = match request.header(REPLY_TOPIC) {
            Some(_) => Some(i32::from_be_bytes(request.header("kafka_replyPartition")?[..].try_into().ok()?)),
            None => None,
        };
        Some(Self { call, id, message, reply_to })
    }

    /// The id's header is the first.
    fn reply(&self, id: CorrelationId, value: Option<Bytes>) -> Record {
        let headers = vec![
            (HeaderName::Borrowed(CORRELATION_ID), Bytes::copy_from_slice(&id.to_text())),
            (HeaderName::Borrowed(WORKED_ON), Bytes::from(self.call.to_string())),
        ];
        Record { key: None, value, headers }
    }

    fn status(&self, code: u8) -> Record {
        let status = WorkerStatus { code, message: format!("no: {}", self.call), details: Bytes::new() };
        let mut record = self.reply(self.id, None);
        record.headers.extend(antiphon::message::reply_headers(&status));
        record
    }
}
