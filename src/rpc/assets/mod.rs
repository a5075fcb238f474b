//! The Remote Asset API: digests of content by URI, pushed by clients or fetched from the origins that the operator allows.

mod address;
mod archive;
mod config;
mod fetch;
mod flights;
mod integrity;
mod known;
mod origin;
mod origins;
mod push;
mod qualifiers;
mod spool;
mod times;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use self::config::Config;
use self::flights::Flights;
use self::origin::Origin;
use self::qualifiers::Qualifiers;
use self::spool::Spools;
use super::Instances;
use crate::access::Demand;
use crate::digest::Function;
use crate::error::{Error, Kind, Result};
use crate::store::{AssetIndex, AssetKind, AssetName, Cas};

/// URIs of one request: mirrors of one file are a handful.
const URIS_MAX: usize = 64;

/// Bytes of one URI: what browsers and servers take at most.
const URI_BYTES_MAX: usize = 8 * 1024;

/// Archives that are unpacked at the same time: each keeps a blocking thread and some MiB.
const UNPACKINGS_MAX: usize = 4;

/// The services `Fetch` and `Push` of one farm. Cheap to clone.
#[derive(Clone)]
pub struct Assets {
    parts: Arc<Parts>,
}

struct Parts {
    stored: Stored,
    instances: Arc<Instances>,
    origin: Origin,
    flights: Flights,
    /// One permit per fetch from an origin, and per archive that is unpacked.
    fetches: Semaphore,
    unpackings: Semaphore,
    config: Config,
}

/// Where assets are kept.
#[derive(Clone)]
pub struct Stored {
    pub cas: Cas,
    pub index: AssetIndex,
}

impl Assets {
    /// `directory` is for content on its way to the store; what is in it is deleted.
    ///
    /// # Errors
    /// `Invalid` when the configuration is wrong, and what the file system reports.
    pub fn new(
        config: Config,
        stored: Stored,
        instances: Arc<Instances>,
        directory: PathBuf,
    ) -> Result<Self> {
        let parts = Parts {
            stored,
            instances,
            origin: Origin::new(&config, Spools::open(directory)?)?,
            flights: Flights::default(),
            fetches: Semaphore::new(config.concurrency),
            unpackings: Semaphore::new(UNPACKINGS_MAX),
            config,
        };
        Ok(Self { parts: Arc::new(parts) })
    }

    fn function(&self, demand: &Demand, instance: &str, function: i32) -> Result<Function> {
        self.parts.instances.admit(demand, instance)?;
        Ok(Function::of_request(function, None)?)
    }
}

/// One asset that somebody wants: a URI of a request and all that belongs to it.
#[derive(Clone)]
struct Wanted {
    instance: Arc<str>,
    kind: AssetKind,
    function: Function,
    uri: Arc<str>,
    /// The place of the URI among those of the request.
    place: usize,
    qualifiers: Arc<Qualifiers>,
    timeout: Duration,
}

impl Wanted {
    /// The hash that names the asset with `qualifiers`.
    fn name<'a>(&'a self, qualifiers: &'a [(String, String)]) -> AssetName<'a> {
        let Self { instance, kind, function, uri, .. } = self;
        AssetName { instance, kind: *kind, function: *function, uri, qualifiers }
    }
}

/// Why an asset was not fetched. Cheap to clone: all who waited for one fetch get it.
#[derive(Debug, Clone)]
struct Failure {
    error: Arc<Error>,
    /// Whether it is the farm that failed, and not the origin or the content.
    is_of_farm: bool,
}

impl Failure {
    fn of_farm(error: Error) -> Self {
        Self { error: Arc::new(error), is_of_farm: true }
    }

    fn of_origin(error: Error) -> Self {
        let is_of_farm = matches!(error.kind(), Kind::Bug | Kind::Corrupt | Kind::Cancelled);
        Self { error: Arc::new(error), is_of_farm }
    }

    /// Content that is too large or not what it should be is the origin's fault, and all else that can happen on its way to the
    /// store is the farm's.
    fn of_content(error: Error) -> Self {
        let is_of_farm = !matches!(error.kind(), Kind::Aborted | Kind::Exhausted | Kind::NotFound);
        Self { error: Arc::new(error), is_of_farm }
    }
}

/// # Errors
/// `Invalid` when there are none, too many, or one is empty or too long.
fn check_uris(uris: &[String]) -> Result<()> {
    if uris.is_empty() || uris.len() > URIS_MAX {
        return Err(Error::invalid(format!("there are {} URIs; from 1 to {URIS_MAX} are taken", uris.len())));
    }
    if uris.iter().any(|uri| uri.is_empty() || uri.len() > URI_BYTES_MAX) {
        return Err(Error::invalid(format!("a URI is empty or longer than {URI_BYTES_MAX} bytes")));
    }
    Ok(())
}
