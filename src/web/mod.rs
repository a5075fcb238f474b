//! The admin listener, over HTTP: metrics, liveness, readiness, and what an operator asks of the storage and of the scheduler.

mod audit;
mod scheduler;
mod storage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde::{Deserialize, Serialize};
use tonic::service::Routes;

pub use self::audit::{AuditNumbers, AuditRequest};
pub use self::scheduler::MarkRequest;
pub use self::storage::{ScrubPass, ScrubReport, Storage, StorageStatus, Tier, TierStatus};
use crate::access::{Access, Caller, Right};
use crate::audit::Auditor;
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::listen::{self, Listener};
use crate::metrics;
use crate::scheduler::{Handle, Overview};
use crate::store::ActionKey;
use crate::tasks::Shutdown;

/// The header that a request must have that changes something. A page of another origin cannot send it without our consent, which
/// we never give; so no web page that an operator looks at can make the browser do what only the operator may.
pub const ADMIN_HEADER: &str = "croft-admin";

/// What anybody may ask, since supervisors have no credentials.
const OPEN: [&str; 2] = ["/livez", "/readyz"];

/// Why the farm does not take requests, if it does not; shared by those who know and the page that says so.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<BTreeMap<Unready, String>>>);

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unready {
    Starting,
    /// It was asked to stop, and finishes what runs.
    Stopping,
    /// It has a worker whose scheduler is elsewhere and does not hear it.
    Disconnected,
}

impl Unready {
    const fn sentence(self) -> &'static str {
        match self {
            Self::Starting => "it is starting",
            Self::Stopping => "it is stopping",
            Self::Disconnected => "the worker is not connected to its scheduler",
        }
    }
}

impl Default for Readiness {
    fn default() -> Self {
        let starting = (Unready::Starting, Unready::Starting.sentence().to_owned());
        Self(Arc::new(Mutex::new(BTreeMap::from([starting]))))
    }
}

impl Readiness {
    /// Says whether `reason` holds.
    pub fn set(&self, reason: Unready, holds: bool) {
        self.explain(reason, holds.then(|| reason.sentence().to_owned()));
    }

    /// Says why `reason` holds, if it does, in a sentence for operators.
    pub fn explain(&self, reason: Unready, why: Option<String>) {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => reasons.insert(reason, why),
            None => reasons.remove(&reason),
        };
    }

    /// One line for each reason; empty when there is none.
    fn reasons(&self) -> String {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.values().map(|why| format!("{why}\n")).collect()
    }
}

/// What the pages tell of and work on.
#[derive(Clone)]
pub struct Pages {
    pub readiness: Readiness,
    pub storage: Arc<Storage>,
    /// None where this process schedules nothing.
    pub scheduler: Option<Handle>,
    /// None there, too.
    pub auditor: Option<Arc<Auditor>>,
    /// Who may look and who may change something.
    pub access: Arc<Access>,
}

/// The page `/status.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub storage: StorageStatus,
    /// None where this process schedules nothing.
    pub scheduler: Option<Overview>,
}

/// Serves the admin pages until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: Listener, pages: Pages, shutdown: Shutdown) -> Result<()> {
    let routes = Router::new()
        .route("/metrics", get(render_metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/status.json", get(status))
        .route("/scrub", post(scrub))
        .route("/ac/{*name}", delete(forget))
        .merge(scheduler::routes())
        .merge(audit::routes())
        .layer(middleware::from_fn(admit))
        .layer(middleware::from_fn(refuse_other_origins))
        .layer(pages.access.guard())
        .with_state(pages);
    listen::serve_pages(listener, Routes::from(routes), shutdown).await
}

/// Pages tell of all instances: whoever may read everything may look at them. To change something is for operators.
async fn admit(request: Request, next: Next) -> Response {
    let caller = Caller::of(request.extensions());
    let admitted = if OPEN.contains(&request.uri().path()) {
        Ok(())
    } else if is_only_read(&request) {
        caller.demand_everywhere(Right::Read | Right::Admin)
    } else {
        caller.demand_everywhere(Right::Admin).inspect(|()| caller.record_administration(""))
    };
    match admitted {
        Ok(()) => next.run(request).await,
        Err(error) => failed(&error),
    }
}

fn is_only_read(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

async fn refuse_other_origins(request: Request, next: Next) -> Response {
    let headers = request.headers();
    if is_only_read(&request) || (headers.contains_key(ADMIN_HEADER) && !headers.contains_key(header::ORIGIN))
    {
        return next.run(request).await;
    }
    let message = format!("this needs the header `{ADMIN_HEADER}: 1` and is not for web pages\n");
    (StatusCode::FORBIDDEN, message).into_response()
}

async fn render_metrics(State(pages): State<Pages>) -> impl IntoResponse {
    tokio::join!(scheduler::measure(&pages), pages.storage.measure());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
}

async fn ready(State(pages): State<Pages>) -> (StatusCode, String) {
    let reasons = pages.readiness.reasons();
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons)
}

async fn status(State(pages): State<Pages>) -> Response {
    match scheduler::overview(&pages).await {
        Ok(scheduler) => {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            json(&Status { version, storage: pages.storage.status(), scheduler })
        }
        Err(error) => failed(&error),
    }
}

/// Answers when the pass has ended; a client that goes away ends it.
async fn scrub(State(pages): State<Pages>) -> Response {
    match pages.storage.scrub().await {
        Ok(reports) => json(&reports),
        Err(error) => failed(&error),
    }
}

/// Forgets the result of an action: `/ac/{instance}/{function}/{hash}-{size}`, without the instance where it has no name.
async fn forget(State(pages): State<Pages>, Path(name): Path<String>) -> Response {
    let forgotten = match parse_action(&name) {
        Ok(key) => pages.storage.forget(&key).await,
        Err(error) => Err(error),
    };
    match forgotten {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(&error),
    }
}

fn parse_action(name: &str) -> Result<ActionKey> {
    let malformed = || Error::invalid("the path is not /ac/{instance}/{function}/{hash}-{size}");
    let (place, digest) = name.rsplit_once('/').ok_or_else(malformed)?;
    let (instance, function) = place.rsplit_once('/').unwrap_or(("", place));
    let function = Function::from_name(function).ok_or_else(malformed)?;
    let (hash, size) = digest.rsplit_once('-').ok_or_else(malformed)?;
    let digest = Digest::parse(function, hash, size.parse().map_err(|_| malformed())?)?;
    Ok(ActionKey { instance: instance.into(), digest })
}

fn json(value: &impl Serialize) -> Response {
    let text =
        serde_json::to_string_pretty(value).expect("our own types have text keys and no infinite numbers");
    ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

/// Why this process knows nothing of what only a scheduler knows.
fn elsewhere() -> Error {
    let message = "this process schedules nothing; ask the admin listener of the one that does";
    Error::new(Kind::Unsupported, message)
}

/// The log gets the whole chain when the fault is ours, the operator our own sentences.
fn failed(error: &Error) -> Response {
    if matches!(error.kind(), Kind::Bug | Kind::Corrupt) {
        tracing::error!(error = error.chain(), "a request of an operator failed by our fault");
    }
    (code_of(error.kind()), error.public_message() + "\n").into_response()
}

fn code_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid | Kind::OutOfRange => StatusCode::BAD_REQUEST,
        Kind::Precondition | Kind::MissingInput => StatusCode::PRECONDITION_FAILED,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Denied => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Exists | Kind::Aborted => StatusCode::CONFLICT,
        Kind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable | Kind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Kind::Corrupt | Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_a_line_until_none_holds() {
        let readiness = Readiness::default();
        assert_eq!(readiness.reasons(), "it is starting\n");
        readiness.set(Unready::Disconnected, true);
        readiness.set(Unready::Stopping, true);
        assert_eq!(readiness.reasons().lines().count(), 3);
        for reason in [Unready::Starting, Unready::Disconnected, Unready::Stopping, Unready::Stopping] {
            readiness.set(reason, false);
        }
        assert_eq!(readiness.reasons(), "");
    }

    #[test]
    fn the_name_of_a_result_is_read_from_its_end() {
        let digest = Function::Blake3.hash(b"action");
        for (instance, place) in [("", "blake3"), ("main", "main/BLAKE3"), ("a/b", "a/b/blake3")] {
            let name = format!("{place}/{}-{}", digest.hex(), digest.size());
            let key = parse_action(&name).unwrap();
            assert_eq!((&*key.instance, key.digest), (instance, digest));
        }
        let hash = digest.hex();
        for name in [
            "",
            "blake3",
            &format!("blake3/{hash}"),
            &format!("md4/{hash}-1"),
            &format!("blake3/{hash}-x"),
            "blake3/1-1",
        ] {
            assert_eq!(parse_action(name).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
    }
}
