//! A leaf in Redis or Valkey: small blobs for a while, shared by several servers.
//!
//! No key is without an end: each is written with a time to live, and each use renews it.

mod config;
mod dial;
mod failure;
mod pool;
#[cfg(test)]
mod tests;

use std::ops::RangeFrom;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{Pipeline, Value};

pub use self::config::Config;
use self::pool::Pool;
use super::blob::past_the_end;
use super::name::{Family, Name};
use super::{Blob, Key, Store};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};

/// Keys that are asked for in one pipeline.
const KEYS_MAX: usize = 1_000;

/// Bytes of blobs in one pipeline, unless one alone has more: enough to hide the round trip, small enough that others get a turn.
const PIPELINE_BYTES_MAX: usize = 512 << 10;

/// What a blob costs in a pipeline beside its bytes: key and command.
const OVERHEAD_BYTES: usize = 100;

/// Pipelines of one call of ours that are under way at once, one for each connection.
const PIPELINES_MAX: usize = 4;

/// Removes a value only while it has the length that was seen: a right one may have replaced it since.
const REMOVE_IF_LENGTH: &str = "if redis.call('STRLEN', KEYS[1]) == tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end return 0";

/// Opens the tier; connections are made when they are needed and again when they break.
///
/// # Errors
/// `Invalid` when the configuration cannot be right; when the password's file or one of TLS cannot be used.
pub fn open(config: &Config) -> Result<Arc<dyn Store>> {
    let problems = config.check();
    if !problems.is_empty() {
        return Err(Error::invalid(problems.join("; ")));
    }
    Ok(Arc::new(Redis {
        pool: Pool::new(config)?,
        prefix: config.prefix.clone().into_bytes(),
        blob_max: config.blob_max.as_u64(),
        ttl_ms: u64::try_from(config.ttl.as_millis()).unwrap_or(u64::MAX),
    }))
}

/// Keeps blobs of up to `blob_max` bytes as values, each under the prefix and its name.
struct Redis {
    pool: Pool,
    prefix: Vec<u8>,
    blob_max: u64,
    ttl_ms: u64,
}

impl Redis {
    fn name(&self, key: &Key) -> Vec<u8> {
        [&self.prefix, Name::from(key).as_bytes()].concat()
    }

    /// Whether a blob of this size may be there at all.
    fn may_hold(&self, key: &Key) -> bool {
        key.size().is_none_or(|size| size <= self.blob_max)
    }

    fn set(&self, commands: &mut Pipeline, key: &Key, bytes: &[u8]) {
        commands.cmd("SET").arg(self.name(key)).arg(bytes).arg("PX").arg(self.ttl_ms);
    }

    /// The value, marked as used.
    async fn value(&self, name: &[u8]) -> Result<Option<Bytes>> {
        let mut commands = redis::pipe();
        commands.cmd("GETEX").arg(name).arg("PX").arg(self.ttl_ms);
        let [value] = self.answers(&mut commands).await?;
        bytes_of(value)
    }

    /// The value from `start`, marked as used; `None` unless it has `size` bytes in all.
    async fn part(&self, name: &[u8], start: u64, size: u64) -> Result<Option<Bytes>> {
        let mut commands = redis::pipe();
        commands.cmd("PEXPIRE").arg(name).arg(self.ttl_ms);
        commands.cmd("STRLEN").arg(name);
        commands.cmd("GETRANGE").arg(name).arg(start).arg(-1);
        let [renewed, length, part] = self.answers(&mut commands).await?;
        let is_there = number_of(&renewed)? == 1 && number_of(&length)? == size;
        let part = bytes_of(part)?.filter(|part| is_there && part.len() as u64 == size - start);
        Ok(part)
    }

    async fn blob(&self, digest: &Digest, start: u64) -> Result<Option<Bytes>> {
        let (size, name) = (digest.size(), self.name(&Key::Blob(*digest)));
        if start > size {
            return Err(past_the_end(start, size));
        }
        if size > self.blob_max {
            return Ok(None);
        }
        if start > 0
            && let Some(part) = self.part(&name, start, size).await?
        {
            return Ok(Some(part));
        }
        let Some(whole) = self.value(&name).await? else { return Ok(None) };
        if whole.len() as u64 == size {
            let start = usize::try_from(start).expect("it is at most the size of a blob in memory");
            return Ok(Some(whole.slice(start..)));
        }
        self.remove_damaged(digest, &name, &whole).await?;
        Ok(None)
    }

    /// Removes a value of the wrong length. The size is no part of the name: a digest with a right hash and a wrong size finds the
    /// right blob, which must stay.
    async fn remove_damaged(&self, digest: &Digest, name: &[u8], value: &Bytes) -> Result<()> {
        if digest.function().hash(value).hash() == digest.hash() {
            return Ok(());
        }
        tracing::warn!(blob = %digest, bytes = value.len(), "redis held a damaged blob; it is removed");
        let mut commands = redis::pipe();
        commands.cmd("EVAL").arg(REMOVE_IF_LENGTH).arg(1).arg(name).arg(value.len());
        let [_] = self.answers(&mut commands).await?;
        Ok(())
    }

    /// The answers to as many commands.
    async fn answers<const COUNT: usize>(&self, commands: &mut Pipeline) -> Result<[Value; COUNT]> {
        let answers: Vec<Value> = self.pool.run(commands).await?.into_iter().collect::<Result<_>>()?;
        answers.try_into().map_err(|_| not_understood())
    }

    /// The absent ones of at most [`KEYS_MAX`] keys.
    async fn missing_of(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let (asked, mut commands) = (keys.iter().filter(|key| self.may_hold(key)), redis::pipe());
        for key in asked {
            let name = self.name(key);
            commands.cmd("PEXPIRE").arg(&name).arg(self.ttl_ms);
            commands.cmd("STRLEN").arg(&name);
        }
        if commands.is_empty() {
            return Ok(keys.to_vec());
        }
        let mut answers = self.pool.run(&mut commands).await?.into_iter();
        let mut missing = Vec::new();
        for key in keys {
            if !self.may_hold(key) || !is_present(key, &mut answers)? {
                missing.push(key.clone());
            }
        }
        Ok(missing)
    }

    /// Refuses what is not to be stored, without looking at its bytes.
    fn check(&self, key: &Key, size: u64) -> Result<()> {
        if size > self.blob_max {
            let limit = self.blob_max;
            return Err(Error::new(
                Kind::Exhausted,
                format!("redis keeps blobs of up to {limit} bytes, not {size}"),
            ));
        }
        match key {
            Key::Blob(digest) if digest.size() != size => {
                Err(Error::invalid(format!("blob says {digest}, but its size is {size}")))
            }
            Key::Blob(_) | Key::Action(_) | Key::Asset(_) => Ok(()),
        }
    }

    /// Stores what is in `places` of `blobs` with one pipeline.
    async fn put_some(&self, blobs: &[(Key, Bytes)], places: Vec<usize>) -> Vec<(usize, Result<()>)> {
        let mut commands = redis::pipe();
        for place in &places {
            let (key, bytes) = &blobs[*place];
            self.set(&mut commands, key, bytes);
        }
        match self.pool.run(&mut commands).await {
            Ok(answers) => {
                let answers = answers.into_iter().map(|answer| answer.map(drop));
                let none = std::iter::repeat_with(|| Err(not_understood()));
                places.into_iter().zip(answers.chain(none)).collect()
            }
            Err(error) => {
                let fail = || Err(error.repeated());
                places.into_iter().map(|place| (place, fail())).collect()
            }
        }
    }
}

/// Reads two answers: that to `PEXPIRE`, which says whether the key is there, and that to `STRLEN`.
fn is_present(key: &Key, answers: &mut impl Iterator<Item = Result<Value>>) -> Result<bool> {
    let mut next = || number_of(&answers.next().unwrap_or_else(|| Err(not_understood()))?);
    let (renewed, length) = (next()?, next()?);
    Ok(renewed == 1 && key.fits(length))
}

fn bytes_of(value: Value) -> Result<Option<Bytes>> {
    redis::from_redis_value::<Option<Vec<u8>>>(value)
        .map(|bytes| bytes.map(Bytes::from))
        .map_err(|error| not_understood().with_source(error))
}

fn number_of(value: &Value) -> Result<u64> {
    redis::from_redis_value_ref(value).map_err(|error| not_understood().with_source(error))
}

fn not_understood() -> Error {
    Error::new(Kind::Unavailable, "redis answers what is not understood")
}

/// Places in `sizes`, in their order, in groups that make a pipeline each.
fn grouped(sizes: impl Iterator<Item = (usize, usize)>) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (place, size) in sizes {
        let cost = size + OVERHEAD_BYTES;
        match groups.last_mut() {
            Some(group) if cost <= room => {
                room -= cost;
                group.push(place);
            }
            Some(_) | None => {
                room = PIPELINE_BYTES_MAX.saturating_sub(cost);
                groups.push(vec![place]);
            }
        }
    }
    groups
}

#[async_trait]
impl Store for Redis {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        match key {
            Key::Blob(digest) => Ok(self.blob(digest, range.start).await?.map(Blob::Whole)),
            Key::Action(_) | Key::Asset(_) => {
                let value = self.value(&self.name(key)).await?;
                value.map(|value| Blob::Whole(value).starting_at(range.start)).transpose()
            }
        }
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.check(key, blob.size())?;
        let bytes = blob.into_bytes(self.blob_max).await?;
        let mut commands = redis::pipe();
        self.set(&mut commands, key, &bytes);
        let [_] = self.answers(&mut commands).await?;
        Ok(())
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let asked: Vec<_> = keys.chunks(KEYS_MAX).map(|chunk| self.missing_of(chunk)).collect();
        stream::iter(asked).buffered(PIPELINES_MAX).try_concat().await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let mut commands = redis::pipe();
        commands.cmd("DEL").arg(self.name(key));
        let [_] = self.answers(&mut commands).await?;
        Ok(())
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        let Some(name) = Name::new(Family::Blob(function), hash) else { return Ok(None) };
        let mut commands = redis::pipe();
        commands.cmd("STRLEN").arg([&self.prefix, name.as_bytes()].concat());
        let [length] = self.answers(&mut commands).await?;
        // What is not there has no length; the empty blob is never looked for.
        Ok(Some(number_of(&length)?).filter(|length| *length > 0))
    }

    async fn finds_by_hash(&self) -> bool {
        true
    }

    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> =
            blobs.iter().map(|(key, bytes)| self.check(key, bytes.len() as u64)).collect();
        let right = blobs.iter().enumerate().filter(|(place, _)| results[*place].is_ok());
        let groups = grouped(right.map(|(place, (_, bytes))| (place, bytes.len())));
        let puts = stream::iter(groups.into_iter().map(|places| self.put_some(&blobs, places)));
        let outcomes: Vec<_> = puts.buffer_unordered(PIPELINES_MAX).collect().await;
        outcomes.into_iter().flatten().for_each(|(place, outcome)| results[place] = outcome);
        results
    }
}
