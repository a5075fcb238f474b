//! `Push`: clients say what a URI stands for.

use std::collections::HashSet;
use std::time::SystemTime;

use futures_util::TryStreamExt;
use tonic::{Request, Response, Status};

use super::integrity::Integrity;
use super::{Assets, Qualifiers, check_uris, times};
use crate::access::{Demand, Right};
use crate::digest::{Digest, Function};
use crate::error::{Error, Result};
use crate::proto;
use crate::proto::asset::push_server::Push;
use crate::proto::asset::{
    PushBlobRequest, PushBlobResponse, PushDirectoryRequest, PushDirectoryResponse, Qualifier,
};
use crate::proto::rev2;
use crate::store::tree::Limits;
use crate::store::{Asset, AssetKind, AssetName};

/// Blobs and directories beside the asset that a push may refer to; each is looked for in the CAS.
const REFERENCES_MAX: usize = 10_000;

/// Who may say what a URI stands for: whoever may, decides what others build with, as with action results.
const PUSHING: Right = Right::CacheWrite;

/// A request of either method.
struct Pushed {
    instance: String,
    kind: AssetKind,
    function: i32,
    uris: Vec<String>,
    qualifiers: Vec<Qualifier>,
    expire_at: Option<proto::Timestamp>,
    digest: Option<rev2::Digest>,
    blobs: Vec<rev2::Digest>,
    directories: Vec<rev2::Digest>,
}

#[tonic::async_trait]
impl Push for Assets {
    async fn push_blob(
        &self,
        request: Request<PushBlobRequest>,
    ) -> Result<Response<PushBlobResponse>, Status> {
        let demand = Demand::of(request.extensions(), PUSHING);
        let request = request.into_inner();
        let pushed = Pushed {
            instance: request.instance_name,
            kind: AssetKind::Blob,
            function: request.digest_function,
            uris: request.uris,
            qualifiers: request.qualifiers,
            expire_at: request.expire_at,
            digest: request.blob_digest,
            blobs: request.references_blobs,
            directories: request.references_directories,
        };
        self.push(&demand, pushed).await?;
        Ok(Response::new(PushBlobResponse {}))
    }

    async fn push_directory(
        &self,
        request: Request<PushDirectoryRequest>,
    ) -> Result<Response<PushDirectoryResponse>, Status> {
        let demand = Demand::of(request.extensions(), PUSHING);
        let request = request.into_inner();
        let pushed = Pushed {
            instance: request.instance_name,
            kind: AssetKind::Directory,
            function: request.digest_function,
            uris: request.uris,
            qualifiers: request.qualifiers,
            expire_at: request.expire_at,
            digest: request.root_directory_digest,
            blobs: request.references_blobs,
            directories: request.references_directories,
        };
        self.push(&demand, pushed).await?;
        Ok(Response::new(PushDirectoryResponse {}))
    }
}

impl Assets {
    async fn push(&self, demand: &Demand, pushed: Pushed) -> Result<()> {
        self.parts.instances.admit(demand, &pushed.instance)?;
        check_uris(&pushed.uris)?;
        let function = Function::of_request(pushed.function, pushed.digest.as_ref())?;
        let digest = Digest::from_proto(function, pushed.digest.as_ref())?;
        let expires = pushed.expire_at.as_ref().map(times::point).transpose()?;
        let qualifiers = Qualifiers::parse(pushed.kind, pushed.qualifiers)?;
        self.check_present(pushed.kind, &digest, (pushed.blobs, pushed.directories)).await?;
        if let Some(integrity) = &qualifiers.integrity
            && pushed.kind == AssetKind::Blob
        {
            self.check_content(&digest, integrity).await?;
        }
        let asset = Asset { digest, since: SystemTime::now(), expires };
        for (place, uri) in pushed.uris.iter().enumerate() {
            let (instance, kind) = (pushed.instance.as_str(), pushed.kind);
            let name = AssetName { instance, kind, function, uri, qualifiers: &qualifiers.key(place) };
            self.parts.stored.index.put(&name, &asset).await?;
        }
        Ok(())
    }

    /// # Errors
    /// `MissingInput` with all that the CAS does not have.
    async fn check_present(
        &self,
        kind: AssetKind,
        digest: &Digest,
        (blobs, directories): (Vec<rev2::Digest>, Vec<rev2::Digest>),
    ) -> Result<()> {
        if blobs.len() + directories.len() > REFERENCES_MAX {
            return Err(Error::invalid(format!("there are more than {REFERENCES_MAX} references")));
        }
        let parse = |digests: &[rev2::Digest]| -> Result<Vec<Digest>> {
            digests.iter().map(|one| Ok(Digest::from_proto(digest.function(), Some(one))?)).collect()
        };
        let (mut left, mut walked) = (Limits::default(), HashSet::new());
        let mut absent = self.absent_within(kind, digest, &mut left).await?;
        absent.extend(self.parts.stored.cas.missing(&parse(&blobs)?).await?);
        for directory in parse(&directories)? {
            if walked.insert(directory) {
                absent.extend(self.absent_within(AssetKind::Directory, &directory, &mut left).await?);
            }
        }
        if absent.is_empty() { Ok(()) } else { Err(Error::missing_input(absent)) }
    }

    /// Content that is not what its checksum says would make every later build fail that trusts this farm.
    async fn check_content(&self, digest: &Digest, integrity: &Integrity) -> Result<()> {
        let Some(blob) = self.parts.stored.cas.open(digest, 0).await? else {
            return Err(Error::missing_input(vec![*digest]));
        };
        let (mut checker, mut chunks) = (integrity.checker(), blob.into_chunks());
        while let Some(chunk) = chunks.try_next().await? {
            checker.update(&chunk);
        }
        checker.finish().map_err(|error| Error::invalid(error.to_string()))
    }
}
