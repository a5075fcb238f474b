//! One server as a store: keys become calls of the Remote Execution API.

use std::collections::{HashMap, HashSet};
use std::ops::RangeFrom;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use prost::Message;

use super::Config;
use super::batch::{self, Batch, SMALL_BYTES_MAX};
use super::link::{Link, Shown, in_time};
use super::located::{self, Told};
use super::reusable::Reusable;
use super::transfer::Transfer;
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::action_cache_client::ActionCacheClient;
use crate::proto::rev2::content_addressable_storage_client::ContentAddressableStorageClient;
use crate::proto::rev2::{
    ActionResult, FindMissingBlobsRequest, GetActionResultRequest, UpdateActionResultRequest,
};
use crate::store::blob::past_the_end;
use crate::store::health::Health;
use crate::store::{ActionKey, Blob, Key, RESULT_MAX, Store};

/// Digests in one question: at 150 bytes for the longest hash it stays below the 4 MiB that servers take in one message.
const DIGESTS_MAX: usize = 10_000;

/// Batches, questions and large blobs of one call of ours that are under way at once.
const CALLS_MAX: usize = 4;

/// The same for calls that ask for one action result each.
const RESULT_CALLS_MAX: usize = 32;

/// Bytes of one message that we take: an action result at its largest.
const MESSAGE_BYTES_MAX: usize = RESULT_MAX as usize + (1 << 20);

/// One REv2 server.
///
/// The API has no way to remove anything and no place for assets, so removing does nothing here and assets are not kept. A server
/// that is away fails calls at once, until a probe finds it again.
pub(super) struct Peer {
    link: Link,
    instance: Arc<str>,
    /// It has told the size of a blob, so it is one of those that do.
    tells_sizes: AtomicBool,
}

/// The hash of a blob that nobody has.
const NOBODYS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

impl Peer {
    async fn told(&self, hash: &str) -> Result<Told> {
        let told = located::ask(&self.link, &self.instance, hash).await;
        told.map_err(|failure| failure.into_error("ask for the size of a blob"))
    }

    /// # Errors
    /// `Invalid` when the endpoint is no address.
    pub(super) fn new(endpoint: &str, config: &Config, shown: Shown) -> Result<Self> {
        let link = Link::new(endpoint, config, shown)?;
        Ok(Self { link, instance: config.instance.as_str().into(), tells_sizes: AtomicBool::new(false) })
    }

    pub(super) fn health(&self) -> &Arc<Health> {
        self.link.pulse().health()
    }

    fn transfer(&self, digest: Digest) -> Transfer {
        Transfer { digest, instance: Arc::clone(&self.instance), timeout: self.link.timeout }
    }

    async fn get_blob(&self, digest: Digest, offset: u64) -> Result<Option<Blob>> {
        if offset > digest.size() {
            return Err(past_the_end(offset, digest.size()));
        }
        let read = |channel| self.transfer(digest).download(channel, offset, self.link.pulse().clone());
        self.link.call(read).await.map_err(|failure| failure.into_error(&format!("read blob {digest}")))
    }

    async fn put_blob(&self, digest: Digest, blob: Blob) -> Result<()> {
        if blob.size() != digest.size() {
            return Err(Error::invalid(format!("blob says {digest}, but its size is {}", blob.size())));
        }
        if digest.size() <= SMALL_BYTES_MAX {
            let bytes = blob.into_bytes(SMALL_BYTES_MAX).await?;
            return self.update(&Batch::of(digest, bytes)).await.remove(0);
        }
        let send = |channel, blob: Blob| self.transfer(digest).upload(channel, blob.into_chunks());
        let stored = match Reusable::new(blob) {
            Ok(blob) => self.link.call(|channel| send(channel, blob.blob())).await,
            Err(blob) => self.link.call_once(|channel| send(channel, blob)).await,
        };
        stored.map_err(|failure| failure.into_error(&format!("store blob {digest}")))
    }

    async fn update(&self, batch: &Batch) -> Vec<Result<()>> {
        let request = batch.request(&self.instance);
        let call = |channel| {
            let request = request.clone();
            async move {
                let mut client = ContentAddressableStorageClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX);
                in_time(self.link.timeout, client.batch_update_blobs(request)).await
            }
        };
        match self.link.call(call).await {
            Ok(response) => batch.results(response.into_inner()),
            Err(failure) => batch.failed(&failure.into_error("store a batch")),
        }
    }

    /// The absent ones of at most [`DIGESTS_MAX`] digests of one function.
    async fn find_missing(&self, function: Function, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        let request = FindMissingBlobsRequest {
            instance_name: self.instance.to_string(),
            blob_digests: digests.iter().map(Digest::to_proto).collect(),
            digest_function: function.to_proto().into(),
        };
        let call = |channel| {
            let request = request.clone();
            async move {
                let mut client = ContentAddressableStorageClient::new(channel);
                in_time(self.link.timeout, client.find_missing_blobs(request)).await
            }
        };
        let response = self.link.call(call).await;
        let response = response.map_err(|failure| failure.into_error("ask which blobs are missing"))?;
        let missing = response.into_inner().missing_blob_digests;
        let missing = missing.iter().map(|digest| Digest::from_proto(function, Some(digest)));
        let confused = "a server of the farm tier names what is no digest";
        missing
            .collect::<Result<_, _>>()
            .map_err(|error| Error::new(Kind::Unavailable, confused).with_source(error))
    }

    async fn missing_blobs(&self, digests: Vec<Digest>) -> Result<HashSet<Digest>> {
        let mut groups: HashMap<Function, Vec<Digest>> = HashMap::new();
        for digest in digests {
            groups.entry(digest.function()).or_default().push(digest);
        }
        let mut questions = Vec::new();
        for (function, digests) in groups {
            questions.extend(digests.chunks(DIGESTS_MAX).map(|digests| (function, digests.to_vec())));
        }
        let answers = stream::iter(questions)
            .map(|(function, digests)| self.find_missing(function, digests))
            .buffer_unordered(CALLS_MAX);
        answers
            .try_fold(HashSet::new(), async |mut all, missing| {
                all.extend(missing);
                Ok(all)
            })
            .await
    }

    async fn get_result(&self, key: &ActionKey) -> Result<Option<Bytes>> {
        let request = GetActionResultRequest {
            instance_name: key.instance.to_string(),
            action_digest: Some(key.digest.to_proto()),
            digest_function: key.digest.function().to_proto().into(),
            ..GetActionResultRequest::default()
        };
        let call = |channel| {
            let request = request.clone();
            async move {
                let mut client = ActionCacheClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                match in_time(self.link.timeout, client.get_action_result(request)).await {
                    Ok(response) => Ok(Some(response.into_inner())),
                    Err(failure) if failure.is_not_found() => Ok(None),
                    Err(failure) => Err(failure),
                }
            }
        };
        let result = self.link.call(call).await;
        let result = result
            .map_err(|failure| failure.into_error(&format!("read the result of action {}", key.digest)))?;
        Ok(result.map(|result| Bytes::from(result.encode_to_vec())))
    }

    async fn put_result(&self, key: &ActionKey, bytes: Bytes) -> Result<()> {
        let result = ActionResult::decode(bytes).map_err(|error| {
            Error::invalid(format!("the result of action {} is no action result", key.digest))
                .with_source(error)
        })?;
        let request = UpdateActionResultRequest {
            instance_name: key.instance.to_string(),
            action_digest: Some(key.digest.to_proto()),
            action_result: Some(result),
            digest_function: key.digest.function().to_proto().into(),
            ..UpdateActionResultRequest::default()
        };
        let call = |channel| {
            let request = request.clone();
            async move {
                let mut client = ActionCacheClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                in_time(self.link.timeout, client.update_action_result(request)).await
            }
        };
        match self.link.call(call).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.into_error(&format!("store the result of action {}", key.digest))),
        }
    }

    async fn missing_results(&self, keys: Vec<&ActionKey>) -> Result<HashSet<Key>> {
        let asked = stream::iter(keys.into_iter().cloned())
            .map(async |key| Ok((self.get_result(&key).await?.is_none()).then_some(Key::Action(key))))
            .buffer_unordered(RESULT_CALLS_MAX);
        asked.try_filter_map(async |missing| Ok(missing)).try_collect().await
    }
}

#[async_trait]
impl Store for Peer {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        match key {
            Key::Blob(digest) => self.get_blob(*digest, range.start).await,
            Key::Action(action) => {
                let bytes = self.get_result(action).await?;
                bytes.map(|bytes| Blob::Whole(bytes).starting_at(range.start)).transpose()
            }
            Key::Asset(_) => Ok(None),
        }
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        match key {
            Key::Blob(digest) => self.put_blob(*digest, blob).await,
            Key::Action(action) => self.put_result(action, blob.into_bytes(RESULT_MAX).await?).await,
            Key::Asset(_) => Ok(()),
        }
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let (mut digests, mut actions) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                Key::Blob(digest) => digests.push(*digest),
                Key::Action(action) => actions.push(action),
                Key::Asset(_) => {}
            }
        }
        let (blobs, results) =
            futures_util::try_join!(self.missing_blobs(digests), self.missing_results(actions))?;
        let is_missing = |key: &&Key| match key {
            Key::Blob(digest) => blobs.contains(digest),
            Key::Action(_) => results.contains(*key),
            Key::Asset(_) => true,
        };
        Ok(keys.iter().filter(is_missing).cloned().collect())
    }

    async fn remove(&self, _: &Key) -> Result<()> {
        Ok(())
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        // Over plain HTTP the length of a hash is all that tells its function.
        if hash.len() != function.hash_bytes() || Function::of_length(2 * hash.len()) != function {
            return Ok(None);
        }
        let told = self.told(&hex::encode(hash)).await?;
        self.tells_sizes.fetch_or(matches!(told, Told::Size(_)), Ordering::Relaxed);
        Ok(match told {
            Told::Size(size) => Some(size),
            Told::Absent | Told::Nothing => None,
        })
    }

    /// It is asked for the empty blob, which every server has that serves plain HTTP, and then for one that it would have to look for.
    async fn finds_by_hash(&self) -> bool {
        if self.tells_sizes.load(Ordering::Relaxed) {
            return true;
        }
        match self.told(&Function::Sha256.hash(b"").hex()).await {
            Ok(Told::Size(_)) => !matches!(self.told(NOBODYS).await, Ok(Told::Nothing)),
            Ok(Told::Absent | Told::Nothing) => false,
            Err(_) => true,
        }
    }

    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let plan = batch::plan(&blobs);
        let batched = stream::iter(plan.batches)
            .map(async |(places, batch)| (places, self.update(&batch).await))
            .buffer_unordered(CALLS_MAX);
        let alone = stream::iter(plan.singles)
            .map(async |place: usize| {
                let (key, bytes) = &blobs[place];
                (vec![place], vec![self.put(key, Blob::Whole(bytes.clone())).await])
            })
            .buffer_unordered(CALLS_MAX);
        let outcomes: Vec<(Vec<usize>, Vec<Result<()>>)> = batched.chain(alone).collect().await;
        let mut results: Vec<Result<()>> = blobs.iter().map(|_| Ok(())).collect();
        for (place, outcome) in
            outcomes.into_iter().flat_map(|(places, outcomes)| places.into_iter().zip(outcomes))
        {
            results[place] = outcome;
        }
        results
    }
}
