//! The console within a gateway: its pages, and the thread that asks Kafka for
//! them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;

use super::{ShardPlan, StartError};
use crate::admin::Admin;
use crate::console::{Desk, DeskWork, Parts, Rates, pages};
use crate::ingress::Lifecycle;
use crate::kafka::KafkaCluster;
use crate::supervisor::Task;

/// A console that runs, or none.
#[derive(Default)]
pub(super) struct Opened {
    /// What the admin listener serves besides its own.
    pub(super) pages: Router,
    pub(super) task: Option<Task>,
    pub(super) thread: Option<JoinHandle<()>>,
}

/// Opens it, if it is wanted.
pub(super) fn open(plan: &ShardPlan, admin: &Admin, address: SocketAddr) -> Result<Opened, StartError> {
    if !plan.config.admin.console {
        return Ok(Opened::default());
    }
    let mut secret = [0; 32];
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut secret)
        .map_err(|error| StartError::Random(error.to_string()))?;
    let (desk, work) = Desk::new();
    let rates = Arc::new(Rates::default());
    let look = Arc::clone(&rates).watch(Arc::clone(&plan.instance));
    let parts = Parts {
        admin: admin.clone(),
        is_loopback: address.ip().is_loopback(),
        secret,
        routes: Arc::clone(&plan.routes),
        routing: plan.config.reply.routing,
        reply_prefix: plan.config.reply.topic_prefix.clone(),
        compression: plan.config.kafka.compression,
        desk,
        rates,
    };
    let thread = plan.clone();
    let thread = plan.supervisor.spawn_thread("console", move || work_at(work, thread));
    Ok(Opened {
        pages: pages(parts),
        task: Some(plan.supervisor.spawn("rates", look)),
        thread: Some(thread.map_err(StartError::Thread)?),
    })
}

/// On a thread, and with connections, of its own. The plan is dropped last, so
/// that a stop waits for it.
fn work_at(work: DeskWork, plan: ShardPlan) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the console could not start"),
    };
    let mut lifecycle = plan.lifecycle.clone();
    runtime.block_on(async {
        let kafka = Arc::new(KafkaCluster::new(&plan.config.kafka, Arc::clone(&plan.connector)));
        let closing = async move {
            let _ = lifecycle.wait_for(|now| matches!(now, Lifecycle::Closing)).await;
        };
        work.run(kafka, closing).await;
    });
}
