//! The admin listener, over HTTP: metrics, liveness, readiness, and what an operator asks of the storage and of the scheduler, as JSON
//! for programs and as pages for people.
//!
//! A page is made here as a whole and needs no script to be read. What clients, commands and workers have written gets into it as text
//! only: `maud` escapes whatever it is given, and the policy of [`admission`] lets a browser run nothing but our own script.

mod action;
mod admission;
mod answer;
mod assets;
mod audit;
mod blobs;
mod chart;
mod config;
mod configuration;
mod content;
mod folder;
mod history;
mod invocation;
mod invocations;
mod missed;
mod operation;
mod operations;
mod overview;
mod page;
mod printed;
mod query;
mod queue;
mod readiness;
mod results;
mod scheduler;
mod storage;
mod terminal;
mod text;
mod tiers;
mod timeline;
mod told;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::get;
use tonic::service::Routes;

pub use self::admission::ADMIN_HEADER;
pub use self::audit::{AuditNumbers, AuditRequest};
pub use self::config::Config;
pub use self::configuration::without_secrets;
pub use self::history::{History, Lately};
pub use self::overview::Status;
use self::page::Section;
pub use self::readiness::{Readiness, Unready};
pub use self::scheduler::MarkRequest;
pub use self::storage::{ScrubPass, ScrubReport, Storage, StorageStatus, Tier, TierStatus};
use crate::access::Access;
use crate::audit::Auditor;
use crate::builds::{Builds, Logs};
use crate::error::{Error, Kind, Result};
use crate::listen::{self, Listener};
use crate::metrics;
use crate::scheduler::Handle;
use crate::store::Cas;
use crate::tasks::{self, Shutdown};

/// What the pages tell of and work on.
#[derive(Clone)]
pub struct Pages {
    pub readiness: Readiness,
    pub storage: Arc<Storage>,
    /// None where this process schedules nothing.
    pub scheduler: Option<Handle>,
    /// None there, too.
    pub auditor: Option<Arc<Auditor>>,
    /// The inputs and outputs of actions.
    pub cas: Cas,
    pub builds: Builds,
    pub logs: Logs,
    pub history: History,
    /// What is in force, as TOML.
    pub configuration: Arc<str>,
    /// Where people reach these pages, if the configuration says so.
    pub public_url: Option<Arc<str>>,
    /// Who may look and who may change something.
    pub access: Arc<Access>,
}

/// Serves the admin pages until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: Listener, pages: Pages, shutdown: Shutdown) -> Result<()> {
    let guard = pages.access.guard();
    tasks::spawn("history of the pages", history::keep(pages.clone(), shutdown.clone()));
    let routes = routes()
        .layer(middleware::from_fn(admission::admit))
        .layer(middleware::from_fn_with_state(pages.clone(), admission::refuse_other_origins))
        .layer(guard)
        .layer(middleware::from_fn(admission::protect))
        .with_state(pages);
    listen::serve_pages(listener, Routes::from(routes), shutdown).await
}

fn routes() -> Router<Pages> {
    Router::new()
        .route("/", get(overview::show))
        .route("/workers", get(workers::show))
        .route("/queue", get(queue::show))
        .route("/operations", get(operations::show))
        .route("/operations/{*name}", get(operation::show))
        .route("/invocations", get(invocations::show))
        .route("/invocations/{id}", get(invocation::show))
        .route("/blobs/{*name}", get(blobs::show))
        .route("/ac", get(results::ask))
        .route("/ac/{*name}", get(results::show).delete(storage::forget))
        .route("/storage", get(tiers::show))
        .route("/configuration", get(configuration::show))
        .route("/assets/style.css", get(assets::style))
        .route("/assets/pages.js", get(assets::script))
        .route("/metrics", get(render_metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness::ready))
        .route("/status.json", get(overview::status))
        .merge(scheduler::routes())
        .merge(storage::routes())
        .merge(audit::routes())
        .fallback(async || {
            let error = Error::new(Kind::NotFound, "there is no page of this address");
            answer::refused(Section::Overview, &error)
        })
}

async fn render_metrics(State(pages): State<Pages>) -> impl IntoResponse {
    tokio::join!(scheduler::measure(&pages), pages.storage.measure());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
}
