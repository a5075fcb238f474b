//! Our gRPC services, one file each: translate, check, call, translate back.

use std::sync::Arc;

use crate::builds::{Builds, Logs};
use crate::scheduler::Handle;
use crate::store::{ActionCache, Cas};
use crate::tasks::Shutdown;

pub mod instance;
pub mod resource;

pub mod assets;

mod action_cache;
mod build_events;
mod bytestream;
mod capabilities;
mod cas;
mod config;
mod execution;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod http;
mod inline;
mod logs;
mod lookups;
mod names;
mod operations;
mod owners;
mod rerun;
mod routes;
mod scaler;
mod settle;
mod split;
mod uploads;
mod workers;

pub use assets::{Assets, Stored};
pub use config::{Config, Http};
pub use health::Health;
pub use instance::Instances;
pub use owners::Owners;
pub use routes::{client_routes, worker_routes};
pub use settle::Settler;
pub use uploads::Uploads;

/// What this process offers to clients; the rest of the farm is in other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    /// Blobs, action results and assets.
    pub cache: bool,
    /// Execution of actions.
    pub execution: bool,
}

/// What the services of one farm work on. Cheap to clone.
#[derive(Clone)]
pub struct Farm {
    pub offered: Offered,
    pub cas: Cas,
    pub action_cache: ActionCache,
    pub scheduler: Handle,
    pub instances: Arc<Instances>,
    pub config: Arc<Config>,
    pub http: Http,
    pub uploads: Uploads,
    pub logs: Logs,
    pub builds: Builds,
    /// Where people find the pages of operations; none where that is not configured.
    pub pages: Option<Arc<str>>,
    pub owners: Owners,
    pub assets: Assets,
    /// Ends streams that would last as long as their clients like.
    pub stop: Shutdown,
}
