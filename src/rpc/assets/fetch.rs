//! `Fetch`: what a URI stands for, from what is known or from its origin.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};

use super::flights::Since;
use super::{Assets, Failure, Qualifiers, Wanted, archive, check_uris, times};
use crate::access::{Demand, Right};
use crate::digest::Function;
use crate::error::{Error, Kind, Result};
use crate::proto;
use crate::proto::asset::fetch_server::Fetch;
use crate::proto::asset::{
    FetchBlobRequest, FetchBlobResponse, FetchDirectoryRequest, FetchDirectoryResponse, Qualifier,
};
use crate::status;
use crate::store::{Asset, AssetKind};

/// Who may have something fetched: the farm goes out and stores what it finds, so it is not for those who only read.
const FETCHING: [Right; 2] = [Right::Write, Right::Execute];

/// A request of either method, parsed.
struct Query {
    instance: Arc<str>,
    kind: AssetKind,
    function: Function,
    uris: Vec<String>,
    qualifiers: Arc<Qualifiers>,
    timeout: Duration,
    oldest: Option<SystemTime>,
}

/// The parts of a request that need parsing.
struct Terms {
    uris: Vec<String>,
    qualifiers: Vec<Qualifier>,
    timeout: Option<proto::Duration>,
    oldest: Option<proto::Timestamp>,
}

/// What is answered: the asset, or the fault that is not ours, and the URI that it came from.
struct Answer {
    uri: String,
    outcome: Result<Asset, Arc<Error>>,
}

#[tonic::async_trait]
impl Fetch for Assets {
    async fn fetch_blob(
        &self,
        request: Request<FetchBlobRequest>,
    ) -> Result<Response<FetchBlobResponse>, Status> {
        let demand = Demand::of(request.extensions(), FETCHING);
        let request = request.into_inner();
        let function = self.function(&demand, &request.instance_name, request.digest_function)?;
        let terms = Terms {
            uris: request.uris,
            qualifiers: request.qualifiers,
            timeout: request.timeout,
            oldest: request.oldest_content_accepted,
        };
        let query = self.query((request.instance_name.into(), AssetKind::Blob, function), terms)?;
        let answer = self.find(&query).await?;
        Ok(Response::new(FetchBlobResponse {
            status: Some(answer.status()),
            expires_at: answer.expires(),
            blob_digest: answer.digest(),
            uri: answer.uri,
            qualifiers: Vec::new(),
            digest_function: function.to_proto().into(),
        }))
    }

    async fn fetch_directory(
        &self,
        request: Request<FetchDirectoryRequest>,
    ) -> Result<Response<FetchDirectoryResponse>, Status> {
        let demand = Demand::of(request.extensions(), FETCHING);
        let request = request.into_inner();
        let function = self.function(&demand, &request.instance_name, request.digest_function)?;
        let terms = Terms {
            uris: request.uris,
            qualifiers: request.qualifiers,
            timeout: request.timeout,
            oldest: request.oldest_content_accepted,
        };
        let query = self.query((request.instance_name.into(), AssetKind::Directory, function), terms)?;
        let answer = self.find(&query).await?;
        Ok(Response::new(FetchDirectoryResponse {
            status: Some(answer.status()),
            expires_at: answer.expires(),
            root_directory_digest: answer.digest(),
            uri: answer.uri,
            qualifiers: Vec::new(),
            digest_function: function.to_proto().into(),
        }))
    }
}

impl Answer {
    fn status(&self) -> proto::Status {
        match &self.outcome {
            Ok(_) => status::ok(),
            Err(error) => status::message_of(error),
        }
    }

    fn digest(&self) -> Option<proto::rev2::Digest> {
        self.outcome.as_ref().ok().map(|asset| asset.digest.to_proto())
    }

    fn expires(&self) -> Option<proto::Timestamp> {
        self.outcome.as_ref().ok()?.expires.map(proto::timestamp)
    }
}

impl Query {
    fn wanted(&self, place: usize) -> Wanted {
        Wanted {
            instance: self.instance.clone(),
            kind: self.kind,
            function: self.function,
            uri: self.uris[place].as_str().into(),
            place,
            qualifiers: self.qualifiers.clone(),
            timeout: self.timeout,
        }
    }
}

impl Assets {
    fn query(
        &self,
        (instance, kind, function): (Arc<str>, AssetKind, Function),
        terms: Terms,
    ) -> Result<Query> {
        check_uris(&terms.uris)?;
        let timeout_max = self.parts.config.timeout_max;
        let timeout = terms.timeout.as_ref().map(times::span).transpose()?;
        Ok(Query {
            instance,
            kind,
            function,
            uris: terms.uris,
            qualifiers: Arc::new(Qualifiers::parse(kind, terms.qualifiers)?),
            timeout: timeout.map_or(timeout_max, |timeout| timeout.min(timeout_max)),
            oldest: terms.oldest.as_ref().map(times::point).transpose()?,
        })
    }

    /// The first URI that is known answers; else they are fetched in order until one can be.
    async fn find(&self, query: &Query) -> Result<Answer, Status> {
        for (place, uri) in query.uris.iter().enumerate() {
            if let Some(asset) = self.known(&query.wanted(place), query.oldest).await? {
                return Ok(Answer { uri: uri.clone(), outcome: Ok(asset) });
            }
        }
        query.qualifiers.refuse_unsupported()?;
        let mut answer = None;
        for (place, uri) in query.uris.iter().enumerate() {
            let outcome = match self.fetch(query.wanted(place), query.oldest).await {
                Err(failure) if failure.is_of_farm => return Err(status::from_error(&failure.error)),
                other => other.map_err(|failure| failure.error),
            };
            let is_found = outcome.is_ok();
            answer = Some(Answer { uri: uri.clone(), outcome });
            if is_found {
                break;
            }
        }
        Ok(answer.expect("a request has at least one URI"))
    }

    /// Fetches an asset, once for all who want it at this time.
    async fn fetch(&self, wanted: Wanted, oldest: Option<SystemTime>) -> Result<Asset, Failure> {
        match wanted.kind {
            AssetKind::Blob => self.join_blob(wanted, oldest).await,
            AssetKind::Directory => self.join_directory(wanted, oldest).await,
        }
    }

    async fn join_blob(&self, wanted: Wanted, oldest: Option<SystemTime>) -> Result<Asset, Failure> {
        let (since, assets) = (Since { now: SystemTime::now(), oldest }, self.clone());
        let key = flight_key(&wanted);
        self.parts.flights.join(key, since, async move { assets.fetch_blob(&wanted, since.now).await }).await
    }

    async fn join_directory(&self, wanted: Wanted, oldest: Option<SystemTime>) -> Result<Asset, Failure> {
        let (since, assets) = (Since { now: SystemTime::now(), oldest }, self.clone());
        let key = flight_key(&wanted);
        self.parts
            .flights
            .join(key, since, async move { assets.fetch_directory(&wanted, oldest).await })
            .await
    }

    async fn fetch_blob(&self, wanted: &Wanted, since: SystemTime) -> Result<Asset, Failure> {
        let fetching = async {
            let _permit = self.parts.fetches.acquire().await.expect("the semaphore is never closed");
            self.parts.origin.fetch(wanted).await
        };
        let fetched = tokio::time::timeout(wanted.timeout, fetching).await;
        let (digest, blob) = fetched.map_err(|_| too_slow())??;
        self.parts.stored.cas.put(&digest, blob).await.map_err(Failure::of_farm)?;
        let asset = Asset { digest, since, expires: None };
        self.remember(wanted, &asset).await.map_err(Failure::of_farm)?;
        Ok(asset)
    }

    /// Fetches the archive as a blob, unless it is known, and unpacks it.
    async fn fetch_directory(&self, wanted: &Wanted, oldest: Option<SystemTime>) -> Result<Asset, Failure> {
        let archived = Wanted {
            kind: AssetKind::Blob,
            qualifiers: Arc::new(wanted.qualifiers.of_archive()),
            ..wanted.clone()
        };
        let archive = match self.known(&archived, oldest).await.map_err(Failure::of_farm)? {
            Some(archive) => archive,
            None => self.join_blob(archived, oldest).await?,
        };
        let unpacking = async {
            let _permit = self.parts.unpackings.acquire().await.expect("the semaphore is never closed");
            archive::unpack(&self.parts, wanted, &archive.digest).await
        };
        let unpacked = tokio::time::timeout(wanted.timeout, unpacking).await;
        let root = unpacked.map_err(|_| too_slow())?.map_err(Failure::of_content)?;
        let asset = Asset { digest: root, ..archive };
        self.remember(wanted, &asset).await.map_err(Failure::of_farm)?;
        Ok(asset)
    }
}

/// Fetches are equal when all is that has an influence on their outcome.
fn flight_key(wanted: &Wanted) -> [u8; 32] {
    let mut key = wanted.qualifiers.key(wanted.place);
    key.extend(wanted.qualifiers.header_key(wanted.place));
    key.push(("timeout".to_owned(), wanted.timeout.as_nanos().to_string()));
    wanted.name(&key).hash()
}

fn too_slow() -> Failure {
    Failure::of_origin(Error::new(Kind::Timeout, "the fetch took longer than it may"))
}
