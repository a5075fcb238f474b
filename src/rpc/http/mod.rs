//! The cache over plain HTTP, for `bazel --remote_cache=http://…` and other simple clients: `/cas/{hash}` and `/ac/{hash}` with
//! GET, HEAD and PUT, both also below an instance's name.
//!
//! The function of a hash is the one that its length implies, so BLAKE3 is not to be had here. A name under `/ac/` has no size: its
//! result is kept under the digest of size 0, which no action has, and gRPC clients do not see it.

mod answer;
mod range;

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use http_body::Body;
use prost::Message;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::service::Routes;

use crate::access::{Demand, Right};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::listen;
use crate::proto::rev2::ActionResult;
use crate::store::{ActionKey, Blob, Chunks, RESULT_MAX};

use self::answer::Refusal;
use self::range::Range;
use super::{Farm, bytestream, cas};

/// The longest path: that of an instance's name and a hash is below.
const PATH_BYTES_MAX: usize = 1024;

/// Bytes of results that may come in at a time: eight of the largest, and thousands of usual ones.
const INCOMING_BYTES_MAX: usize = 8 * RESULT_MAX as usize;
static INCOMING: Semaphore = Semaphore::const_new(INCOMING_BYTES_MAX);

/// How long a result waits for its room.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a body may pause.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// The services and, for all that is not theirs, plain HTTP.
pub(super) fn beside(services: Routes, farm: Farm) -> Routes {
    let router = services.into_axum_router();
    Routes::from(router.fallback(move |request: Request| serve(farm, request)))
}

/// The services, for all but web pages.
pub(super) fn guarded(services: Routes) -> Routes {
    Routes::from(services.into_axum_router().layer(middleware::from_fn(refuse_web_pages)))
}

/// No client of ours is a web page. One that somebody beside the farm looks at could reach it under a name of its own that leads
/// here, and then neither the address nor the browser's rule of one origin would keep it out.
async fn refuse_web_pages(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return answer::refuse(Refusal::WebPage);
    }
    next.run(request).await
}

async fn serve(farm: Farm, request: Request) -> Response {
    if listen::is_grpc(request.headers()) {
        return tonic::Status::unimplemented("there is no such method").into_http();
    }
    farm.handle(request).await.unwrap_or_else(answer::refuse)
}

/// What a path names.
struct Name {
    instance: String,
    cache: Cache,
    hash: String,
}

enum Cache {
    Blobs,
    Results,
}

impl Name {
    /// Reads `/{instance/}cas/{hash}` and `/{instance/}ac/{hash}`.
    fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/').filter(|path| path.len() <= PATH_BYTES_MAX)?;
        let (rest, hash) = path.rsplit_once('/')?;
        let (instance, cache) = rest.rsplit_once('/').unwrap_or(("", rest));
        let cache = match cache {
            "cas" => Cache::Blobs,
            "ac" => Cache::Results,
            _ => return None,
        };
        Some(Self { instance: instance.to_owned(), cache, hash: hash.to_owned() })
    }

    /// What a method needs; one that is not served, what it takes to be told so.
    fn right(&self, method: &Method) -> Right {
        match (&self.cache, method == Method::PUT) {
            (Cache::Blobs | Cache::Results, false) => Right::Read,
            (Cache::Blobs, true) => Right::Write,
            (Cache::Results, true) => Right::CacheWrite,
        }
    }

    fn function(&self) -> Function {
        Function::of_length(self.hash.len())
    }

    fn digest(&self, size: u64) -> Result<Digest> {
        let size = i64::try_from(size).map_err(|_| Error::invalid("the content is too long"))?;
        Ok(Digest::parse(self.function(), &self.hash, size)?)
    }

    fn key(&self) -> Result<ActionKey> {
        Ok(ActionKey { instance: self.instance.as_str().into(), digest: self.digest(0)? })
    }
}

impl Farm {
    async fn handle(&self, request: Request) -> Result<Response, Refusal> {
        let name = Name::parse(request.uri().path()).ok_or(Refusal::NoSuchPath)?;
        let method = request.method().clone();
        let demand = Demand::of(request.extensions(), name.right(&method));
        self.instances.admit(&demand, &name.instance)?;
        match (&name.cache, method) {
            (Cache::Blobs, Method::GET) => self.get_blob(&name, request.headers()).await,
            (Cache::Blobs, Method::HEAD) => self.head_blob(&name).await,
            (Cache::Blobs, Method::PUT) => self.put_blob(&name, demand.caller.account(), request).await,
            (Cache::Results, Method::GET) => Ok(answer::whole(self.get_result(&name).await?)),
            (Cache::Results, Method::HEAD) => Ok(answer::head(self.get_result(&name).await?.len() as u64)),
            (Cache::Results, Method::PUT) => self.put_result(&name, request).await,
            (Cache::Blobs | Cache::Results, _) => Err(Refusal::Method),
        }
    }

    async fn get_blob(&self, name: &Name, headers: &HeaderMap) -> Result<Response, Refusal> {
        let digest = self.located(name).await?;
        let size = digest.size();
        let range = Range::parse(headers.get(header::RANGE), size);
        let (start, length) = match range {
            Range::All => (0, size),
            Range::Part { start, length } => (start, length),
            Range::Unsatisfiable => return Err(Refusal::Range(size)),
        };
        let blob = self.cas.open(&digest, start).await?.ok_or_else(|| cas::absent(&digest))?;
        let chunks = match range {
            Range::Part { .. } => bytestream::limited(blob.into_chunks(), length),
            Range::All | Range::Unsatisfiable => blob.into_chunks(),
        };
        Ok(answer::streamed(chunks, &range, size))
    }

    async fn head_blob(&self, name: &Name) -> Result<Response, Refusal> {
        let digest = self.located(name).await?;
        // Whoever asks relies on the answer, so the blob is looked at and kept for a while.
        if !self.cas.missing(&[digest]).await?.is_empty() {
            return Err(cas::absent(&digest).into());
        }
        Ok(answer::head(digest.size()))
    }

    async fn located(&self, name: &Name) -> Result<Digest> {
        if let Some(located) = self.cas.locate(name.function(), &name.hash).await? {
            return Ok(located);
        }
        self.check_storage().await?;
        Err(Error::new(Kind::NotFound, format!("blob {} is not in the CAS", name.hash)))
    }

    /// # Errors
    /// `Unsupported` when blobs are kept where only their whole digest finds them: what is put could not be read again.
    async fn check_storage(&self) -> Result<()> {
        if self.cas.finds_by_hash().await {
            return Ok(());
        }
        let message = "blobs are kept on another server that finds them only by hash and size, so there are none over plain HTTP; \
                       use gRPC";
        Err(Error::new(Kind::Unsupported, message))
    }

    async fn put_blob(&self, name: &Name, account: String, request: Request) -> Result<Response, Refusal> {
        let digest = name.digest(content_length(&request)?)?;
        self.check_storage().await?;
        let mut chunks = body(request);
        // What only a server has that finds it by hash and size is stored nearer, or it could not be read again.
        if self.cas.missing(&[digest]).await?.is_empty() && self.cas.finds(&digest).await? {
            // Clients of HTTP/1.1 take an answer before the end of their body for a failure.
            while chunks.try_next().await?.is_some() {}
        } else {
            let _place = self.uploads.place(account).map_err(Refusal::Busy)?;
            self.cas.put(&digest, Blob::Stream { size: digest.size(), chunks }).await?;
        }
        Ok(answer::stored())
    }

    async fn get_result(&self, name: &Name) -> Result<Bytes> {
        let key = name.key()?;
        let bytes = if self.http.validate_results {
            self.action_cache.get(&key).await?.map(|result| result.encode_to_vec().into())
        } else {
            self.action_cache.raw(&key).await?
        };
        let absent = || Error::new(Kind::NotFound, format!("no result of action {} is cached", name.hash));
        bytes.ok_or_else(absent)
    }

    async fn put_result(&self, name: &Name, request: Request) -> Result<Response, Refusal> {
        let key = name.key()?;
        let size = content_length(&request)?;
        if size > RESULT_MAX {
            return Err(Refusal::TooLarge(RESULT_MAX));
        }
        let _room = room(size).await.map_err(Refusal::Busy)?;
        let bytes = Blob::Stream { size, chunks: body(request) }.into_bytes(RESULT_MAX).await?;
        if self.http.validate_results {
            let result = ActionResult::decode(bytes)
                .map_err(|error| Error::invalid("the content is not an action result").with_source(error))?;
            self.action_cache.put(&key, &result).await?;
        } else {
            self.action_cache.put_raw(&key, bytes).await?;
        }
        Ok(answer::stored())
    }
}

/// The length must be known before the content comes: a digest has a size, and the store keeps room for it.
fn content_length(request: &Request) -> Result<u64, Refusal> {
    request.body().size_hint().exact().ok_or(Refusal::LengthRequired)
}

/// Room for a result that comes in; dropping it frees it.
async fn room(size: u64) -> Result<SemaphorePermit<'static>> {
    let bytes = u32::try_from(size).expect("a result is small");
    let room = tokio::time::timeout(ROOM_WAIT_MAX, INCOMING.acquire_many(bytes)).await;
    let busy =
        |_| Error::new(Kind::Exhausted, "as many results are coming in as the server takes; try again later");
    Ok(room.map_err(busy)?.expect("nobody closes it"))
}

/// The content as it comes; a client that falls silent ends it.
fn body(request: Request) -> Chunks {
    let broken = |error| Error::new(Kind::Cancelled, "the client's content broke off").with_source(error);
    let pieces = request.into_body().into_data_stream().map_err(broken).boxed();
    futures_util::stream::try_unfold(pieces, |mut pieces| async move {
        let silent =
            |_| Error::new(Kind::Cancelled, format!("the client sent nothing for {} s", IDLE_MAX.as_secs()));
        let piece: Option<Bytes> =
            tokio::time::timeout(IDLE_MAX, pieces.try_next()).await.map_err(silent)??;
        Ok(piece.map(|piece| (piece, pieces)))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_an_instance_a_cache_and_a_hash() {
        for (path, instance) in [("/cas/ab", ""), ("/main/ac/ab", "main"), ("/a/cas/b/cas/ab", "a/cas/b")] {
            let name = Name::parse(path).unwrap();
            assert_eq!((name.instance.as_str(), name.hash.as_str()), (instance, "ab"), "{path}");
            assert_eq!(matches!(name.cache, Cache::Results), path.contains("/ac/"));
        }
        for path in ["", "/", "/cas", "/cas/ab/more", "/favicon.ico", "cas/ab", "/x.Y/Method"] {
            assert!(Name::parse(path).is_none(), "{path}");
        }
        assert!(Name::parse(&format!("/{}/cas/ab", "a".repeat(PATH_BYTES_MAX))).is_none());
    }
}
