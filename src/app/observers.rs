//! What tells of calls: the access log.

use std::sync::Arc;
use std::time::Duration;

use super::{Config, StartError};
use crate::access_log::AccessLog;
use crate::exchange::Instance;
use crate::limits;
use crate::supervisor::Supervisor;

/// Shared by all shards.
#[derive(Debug, Clone)]
pub(super) struct Observers {
    pub(super) access_log: Option<Arc<AccessLog>>,
}

impl Observers {
    pub(super) fn open(
        config: &Config,
        instance: &Instance,
        supervisor: &Supervisor,
    ) -> Result<Self, StartError> {
        let dropped = instance.metrics.access_log_dropped.clone();
        let access_log = AccessLog::open(&config.access_log, supervisor, dropped)?;
        Ok(Self { access_log: access_log.map(Arc::new) })
    }

    /// Waits for what is still to be written. Blocks: nothing else is left to do.
    pub(super) fn flush(&self) {
        let limit = Duration::from_millis(limits::OBSERVERS_FLUSH_TIMEOUT_MS);
        if let Some(log) = &self.access_log {
            log.flush(limit);
        }
    }
}
