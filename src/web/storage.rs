//! Storage as an operator sees it: what the tiers hold, a pass that verifies them, and one action result withdrawn.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::ActionResult;
use crate::store::{self, ActionCache, ActionKey};
use crate::{metrics, tasks};

use super::Pages;
use super::answer::{failed, json_or};

/// Verifies all that the tiers on this machine hold; one report a tier. When the future is dropped, the pass ends soon.
pub type ScrubPass = Arc<dyn Fn() -> BoxFuture<'static, Result<Vec<ScrubReport>>> + Send + Sync>;

/// The storage of one farm.
pub struct Storage {
    tiers: Vec<Tier>,
    action_cache: ActionCache,
    scrub: Option<ScrubPass>,
    is_scrubbing: AtomicBool,
    /// Where something is kept on this machine, by name.
    places: Arc<Vec<(String, PathBuf)>>,
    is_measuring: Arc<AtomicBool>,
}

/// How long a scrape waits for the file systems.
const MEASURE_MAX: Duration = Duration::from_secs(1);

/// One tier, as the configuration has it.
#[derive(Debug, Clone)]
pub struct Tier {
    /// The label in metrics and logs.
    pub name: String,
    pub kind: &'static str,
}

/// What the farm tells of its storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    /// The tiers, fast to slow.
    pub tiers: Vec<TierStatus>,
    /// Acknowledged writes that slower tiers lack, and their bytes; `None` where every write goes through.
    pub pending_writes: Option<u64>,
    pub pending_bytes: Option<u64>,
}

/// What the farm tells of one tier, since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStatus {
    pub name: String,
    pub kind: String,
    /// Bytes on the tier's medium; `None` for a tier that does not count them.
    pub used_bytes: Option<u64>,
    pub max_bytes: Option<u64>,
    pub hits: u64,
    pub misses: u64,
    pub errors: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// `None` for a tier that evicts nothing itself.
    pub evictions: Option<u64>,
    /// Bytes that scrubs have verified; `None` for a tier that is not scrubbed here.
    pub scrubbed_bytes: Option<u64>,
}

/// What a pass over one tier found and put right.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubReport {
    pub tier: String,
    #[serde(flatten)]
    pub found: store::ScrubReport,
}

impl ScrubReport {
    /// Whether something that was stored is gone.
    pub fn has_damage(&self) -> bool {
        self.found.damaged + self.found.lost > 0
    }
}

impl Storage {
    /// `scrub` is none when no tier keeps its blobs on this machine.
    pub fn new(tiers: Vec<Tier>, action_cache: ActionCache, scrub: Option<ScrubPass>) -> Self {
        Self {
            tiers,
            action_cache,
            scrub,
            is_scrubbing: AtomicBool::new(false),
            places: Arc::default(),
            is_measuring: Arc::default(),
        }
    }

    /// Tells of the file systems that have these directories, each under its name.
    pub fn at(self, places: Vec<(String, PathBuf)>) -> Self {
        Self { places: Arc::new(places), ..self }
    }

    /// Brings the gauges of the file systems up to date, for a scrape. One that does not answer keeps one thread, not one a scrape.
    pub(super) async fn measure(&self) {
        if self.is_measuring.swap(true, Ordering::AcqRel) {
            return;
        }
        let (places, is_measuring) = (Arc::clone(&self.places), Arc::clone(&self.is_measuring));
        let measuring = tasks::blocking(move || {
            places.iter().for_each(|(name, path)| measure(name, path));
            is_measuring.store(false, Ordering::Release);
            Ok(())
        });
        if !matches!(tokio::time::timeout(MEASURE_MAX, measuring).await, Ok(Ok(()))) {
            tracing::debug!("the gauges of the file systems are not up to date");
        }
    }

    pub(super) fn status(&self) -> StorageStatus {
        StorageStatus {
            tiers: self.tiers.iter().map(Tier::status).collect(),
            pending_writes: metrics::value("croft_store_pending_writes", &[]),
            pending_bytes: metrics::value("croft_store_pending_bytes", &[]),
        }
    }

    /// # Errors
    /// `Exists` when a pass that an operator asked for is under way, `Unsupported` when there is nothing to verify here.
    pub(super) async fn scrub(&self) -> Result<Vec<ScrubReport>> {
        let Some(pass) = &self.scrub else {
            let message =
                "no tier of this farm keeps its blobs on this machine, so there is nothing to scrub";
            return Err(Error::new(Kind::Unsupported, message));
        };
        if self.is_scrubbing.swap(true, Ordering::AcqRel) {
            return Err(Error::new(Kind::Exists, "a scrub is under way"));
        }
        let _turn = Turn(&self.is_scrubbing);
        pass().await
    }

    /// The result of an action, if there is one whose outputs are all there.
    ///
    /// # Errors
    /// What the store reports.
    pub(super) async fn result(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        self.action_cache.get(key).await
    }

    /// # Errors
    /// What the store reports. A result that is absent is no error.
    pub(super) async fn forget(&self, key: &ActionKey) -> Result<()> {
        self.action_cache.remove(key).await?;
        tracing::info!(instance = &*key.instance, action = %key.digest, "an operator withdrew an action result");
        Ok(())
    }
}

pub(super) fn routes() -> Router<Pages> {
    Router::new().route("/scrub", post(scrub))
}

/// Answers when the pass has ended; a client that goes away ends it.
async fn scrub(State(pages): State<Pages>) -> Response {
    json_or(pages.storage.scrub().await)
}

/// Forgets the result of an action: `/ac/{instance}/{function}/{hash}-{size}`, without the instance where it has no name.
pub(super) async fn forget(State(pages): State<Pages>, UrlPath(name): UrlPath<String>) -> Response {
    let forgotten = match parse_action(&name) {
        Ok(key) => pages.storage.forget(&key).await,
        Err(error) => Err(error),
    };
    match forgotten {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(&error),
    }
}

pub(super) fn parse_action(name: &str) -> Result<ActionKey> {
    let malformed = || Error::invalid("the path is not /ac/{instance}/{function}/{hash}-{size}");
    let (place, digest) = name.rsplit_once('/').ok_or_else(malformed)?;
    let (instance, function) = place.rsplit_once('/').unwrap_or(("", place));
    let function = Function::from_name(function).ok_or_else(malformed)?;
    let (hash, size) = digest.rsplit_once('-').ok_or_else(malformed)?;
    let digest = Digest::parse(function, hash, size.parse().map_err(|_| malformed())?)?;
    Ok(ActionKey { instance: instance.into(), digest })
}

fn measure(name: &str, path: &Path) {
    let Ok(of) = rustix::fs::statvfs(path) else { return };
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(of.f_frsize)).unwrap_or(i64::MAX);
    metrics::DISK_FREE.with_label_values(&[name]).set(bytes(of.f_bavail));
    metrics::DISK_SIZE.with_label_values(&[name]).set(bytes(of.f_blocks));
}

/// The one pass; its end, by whatever way, lets the next one begin.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Tier {
    fn status(&self) -> TierStatus {
        let name = self.name.as_str();
        let gets = |outcome| {
            let labels = [("store", name), ("operation", "get"), ("outcome", outcome)];
            metrics::value("croft_store_calls_total", &labels).unwrap_or(0)
        };
        let bytes = |direction| {
            metrics::value("croft_store_bytes_total", &[("store", name), ("direction", direction)])
                .unwrap_or(0)
        };
        TierStatus {
            name: self.name.clone(),
            kind: self.kind.to_owned(),
            used_bytes: metrics::value("nativelink_store_size_bytes", &[("tier", name)]),
            max_bytes: metrics::value("croft_store_max_bytes", &[("tier", name)]),
            hits: gets("hit"),
            misses: gets("miss"),
            errors: gets("error"),
            read_bytes: bytes("read"),
            written_bytes: bytes("written"),
            evictions: metrics::value("croft_store_evictions_total", &[("tier", name)]),
            scrubbed_bytes: metrics::value("croft_store_scrubbed_bytes_total", &[("tier", name)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::{Cas, Memory, Store};

    fn storage(scrub: Option<ScrubPass>) -> Storage {
        let store: Arc<dyn Store> = Arc::new(Memory::new(1 << 20));
        Storage::new(Vec::new(), ActionCache::new(store.clone(), Cas::new(store)), scrub)
    }

    #[tokio::test]
    async fn one_pass_runs_at_a_time_and_a_dropped_one_makes_room() {
        let endless = storage(Some(Arc::new(|| std::future::pending().boxed())));
        let mut first = endless.scrub().boxed();
        assert!(futures_util::poll!(&mut first).is_pending());
        assert_eq!(endless.scrub().await.unwrap_err().kind(), Kind::Exists);
        drop(first);
        assert!(endless.scrub().now_or_never().is_none());

        let clean = storage(Some(Arc::new(|| std::future::ready(Ok(vec![ScrubReport::default()])).boxed())));
        for _ in 0..2 {
            assert!(!clean.scrub().await.unwrap()[0].has_damage());
        }
        assert_eq!(storage(None).scrub().await.unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn what_is_counted_is_told() {
        let name = "storage-status-test";
        metrics::STORE_CALLS.with_label_values(&[name, "get", "hit"]).inc_by(3);
        metrics::STORE_CALLS.with_label_values(&[name, "get", "miss"]).inc();
        metrics::STORE_SIZE.with_label_values(&[name]).set(1 << 40);
        let status = Tier { name: name.into(), kind: "disk" }.status();
        assert_eq!((status.hits, status.misses, status.errors), (3, 1, 0));
        assert_eq!((status.used_bytes, status.max_bytes), (Some(1 << 40), None));
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
