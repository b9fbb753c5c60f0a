//! `grpc.health.v1`, kept in step with the instance's phase.

use std::sync::Arc;

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::exchange::{Instance, Phase};
use crate::route::RouteTable;

/// The whole server, in the health protocol's words.
const OVERALL: &str = "";

/// Health of the server and of each of its services. They share one reply
/// path, so they share one state.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Knows of no service yet.
    pub fn new() -> Self {
        Self { reporter: HealthReporter::new() }
    }

    /// The service to mount.
    pub(super) fn server(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Tells every service's state.
    pub async fn set(&self, routes: &RouteTable, phase: Phase) {
        let status = match phase {
            Phase::Ready => ServingStatus::Serving,
            Phase::NotReady | Phase::Leaving | Phase::Draining => ServingStatus::NotServing,
        };
        for service in std::iter::once(OVERALL).chain(routes.services()) {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Follows the instance's phase. Ends when the instance is gone.
    pub async fn follow(self, routes: Arc<RouteTable>, instance: Arc<Instance>) {
        let mut phase = instance.watch_phase();
        drop(instance);
        loop {
            let now = *phase.borrow_and_update();
            self.set(&routes, now).await;
            if phase.changed().await.is_err() {
                return;
            }
        }
    }
}
