//! What `grpc.health.v1` says of the services of one listener.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

/// The word for the listener as a whole.
const WHOLE: &str = "";

/// Whether the services of one listener take requests; whoever watches is told of each change.
pub struct Health {
    reporter: HealthReporter,
    services: Vec<&'static str>,
}

impl Health {
    /// Of services with these full names, none of which serves yet; and the service that says so.
    pub(super) async fn of(services: Vec<&'static str>) -> (Self, HealthServer<impl health_server::Health>) {
        let (reporter, server) = health_reporter();
        let health = Self { reporter, services };
        health.set(false).await;
        (health, server)
    }

    /// Says that all of them serve, or that none does: what they need starts and stops as one.
    pub async fn set(&self, is_serving: bool) {
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in std::iter::once(&WHOLE).chain(&self.services) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
