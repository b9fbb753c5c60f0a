//! What tells of calls: the access log, and traces.

use std::sync::Arc;
use std::time::Duration;

use super::{Config, StartError};
use crate::access_log::AccessLog;
use crate::exchange::Instance;
use crate::ingress::Ear;
use crate::limits;
use crate::supervisor::{Supervisor, Task};
use crate::traces::Tracer;

/// Shared by all shards.
#[derive(Debug, Clone)]
pub(super) struct Observers {
    pub(super) ear: Ear,
    _exporter: Option<Arc<Task>>,
}

impl Observers {
    /// Must be called on the control thread's runtime, which exports spans.
    pub(super) fn open(
        config: &Config,
        instance: &Instance,
        supervisor: &Supervisor,
    ) -> Result<Self, StartError> {
        let metrics = &instance.metrics;
        let dropped = metrics.access_log_dropped.clone();
        let access_log = AccessLog::open(&config.access_log, supervisor, dropped)?.map(Arc::new);
        let Some(traces) = &config.traces else {
            return Ok(Self { ear: Ear { access_log, tracer: None }, _exporter: None });
        };
        let counters = (metrics.spans_exported.clone(), metrics.spans_dropped.clone());
        let (tracer, exporter) =
            Tracer::new(traces, instance.name(), counters.0, counters.1).map_err(StartError::Traces)?;
        let task = supervisor.spawn("span exporter", exporter.run());
        let ear = Ear { access_log, tracer: Some(Arc::new(tracer)) };
        Ok(Self { ear, _exporter: Some(Arc::new(task)) })
    }

    /// Waits for what is still to be written and sent.
    pub(super) async fn flush(&self) {
        let limit = Duration::from_millis(limits::OBSERVERS_FLUSH_TIMEOUT_MS);
        if let Some(tracer) = &self.ear.tracer {
            tracer.flush(limit).await;
        }
        // Blocks: nothing else is left to do.
        if let Some(log) = &self.ear.access_log {
            log.flush(limit);
        }
    }
}
