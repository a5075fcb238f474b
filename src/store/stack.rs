//! Opens what the configuration lists, and makes one store of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::config::{self, Config, Tier as Listed, Write};
use super::object::{self, Provider};
use super::tiered::{Patience, Tier, Tiered, Traits, WriteBack};
use super::{Disk, DiskOptions, Memory, Metered, Pins, Store, Verified, default_size, farm, redis};
use crate::error::{Context, Result};
use crate::tasks;

/// How long a disk keeps what was reported present when a slower durable tier has it too: only until a client that was told so has
/// begun to read.
const SHORT_LEASE: Duration = Duration::from_secs(5 * 60);

/// The part of the memory that one blob may take, and the largest that is kept there at all: one blob must not flush it.
const MEMORY_PART: u64 = 16;
const MEMORY_BLOB_MAX: u64 = 16 * 1024 * 1024;

/// The part of the first durable disk that may be pinned because it is pending, and the most when that tier is no disk.
const PENDING_PART: u64 = 2;
const PENDING_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// All storage of a farm, opened.
pub struct Stack {
    /// For the CAS and the action cache. Verifies what it is given and what it gives.
    pub store: Arc<dyn Store>,
    /// What no disk tier evicts.
    pub pins: Pins,
    /// What there is, fast to slow.
    pub tiers: Vec<TierSummary>,
    /// The disk tiers, fast to slow.
    /// With their names.
    pub disks: Vec<(String, Arc<Disk>)>,
    /// Their directories, too.
    pub places: Vec<(String, PathBuf)>,
    tiered: Option<Arc<Tiered>>,
}

/// A tier, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierSummary {
    /// The tier's label in metrics and logs.
    pub name: String,
    /// As in the configuration.
    pub kind: &'static str,
    /// The bytes that it may hold, where it is us who decide.
    pub size_bytes: Option<u64>,
}

/// What is opened so far.
struct Opening<'a> {
    config: &'a Config,
    /// Where tiers keep what they are not told a place for.
    data: &'a Path,
    pins: Pins,
    disks: Vec<(String, Arc<Disk>)>,
    places: Vec<(String, PathBuf)>,
    summaries: Vec<TierSummary>,
}

/// A leaf, and what it is good for.
struct Leaf {
    store: Arc<dyn Store>,
    traits: Traits,
    size_bytes: Option<u64>,
}

impl Stack {
    /// Opens all tiers of `config`; what they keep has its place below `data` unless the configuration says another.
    ///
    /// # Errors
    /// What is wrong with a tier: a directory that another process uses, an address that cannot be right.
    pub async fn open(config: &Config, data: &Path) -> Result<Self> {
        let (config, data) = (config.clone(), data.to_owned());
        tasks::blocking(move || Self::open_blocking(&config, &data)).await
    }

    fn open_blocking(config: &Config, data: &Path) -> Result<Self> {
        let listed = config.effective_tiers();
        let mut opening = Opening {
            config,
            data,
            pins: Pins::default(),
            disks: Vec::new(),
            places: Vec::new(),
            summaries: Vec::new(),
        };
        // Clients are told that a blob is there when this one has it.
        let last = listed.iter().rposition(Listed::is_durable).unwrap_or(listed.len().saturating_sub(1));
        let mut tiers = Vec::new();
        for (place, (name, tier)) in config::names(&listed).into_iter().zip(&listed).enumerate() {
            tiers.push(opening.tier(&name, tier, place == last).context(|| format!("open tier {name}"))?);
        }
        opening.put_together(tiers)
    }

    /// Brings pending writes to the slower tiers, until there is none or `deadline` is over.
    pub async fn drain(&self, deadline: Duration) {
        if let Some(tiered) = &self.tiered {
            tiered.drain(deadline).await;
        }
    }
}

impl Opening<'_> {
    fn tier(&mut self, name: &str, tier: &Listed, is_last: bool) -> Result<(String, Leaf)> {
        let leaf = self.leaf(name, tier, is_last)?;
        let (name, size_bytes) = (name.to_owned(), leaf.size_bytes);
        self.summaries.push(TierSummary { name: name.clone(), kind: tier.kind(), size_bytes });
        Ok((name, leaf))
    }

    fn leaf(&mut self, name: &str, tier: &Listed, is_last: bool) -> Result<Leaf> {
        let durable = |store| remote(store, u64::MAX, true);
        Ok(match tier {
            Listed::Memory(memory) => {
                let size = memory.size.as_u64();
                let traits = Traits {
                    blob_max: (size / MEMORY_PART).min(MEMORY_BLOB_MAX),
                    is_durable: false,
                    is_local: true,
                };
                let memory = Memory::named(name, size);
                let memory = if is_last { memory.with_lease(name, self.config.lease) } else { memory };
                Leaf { store: Arc::new(memory), traits, size_bytes: Some(size) }
            }
            Listed::Disk(disk) => self.disk(name, disk, is_last)?,
            Listed::Redis(redis) => remote(redis::open(redis)?, redis.blob_max.as_u64(), false),
            Listed::S3(s3) => durable(object::open(Provider::S3(s3), &self.state(name)?)?),
            Listed::Gcs(gcs) => durable(object::open(Provider::Gcs(gcs), &self.state(name)?)?),
            Listed::Azure(azure) => durable(object::open(Provider::Azure(azure), &self.state(name)?)?),
            Listed::Fs(fs) => durable(object::open(Provider::Fs(fs), &self.state(name)?)?),
            Listed::Farm(farm) => durable(farm::open(farm)?),
        })
    }

    fn disk(&mut self, name: &str, disk: &config::Disk, is_last: bool) -> Result<Leaf> {
        let path = disk.path.clone().unwrap_or_else(|| self.data.join("cas"));
        make_private_directory(&path)?;
        let size = match disk.size {
            Some(size) => size.as_u64(),
            None => default_size(&path)?,
        };
        let options = DiskOptions {
            lease: if is_last { self.config.lease } else { SHORT_LEASE.min(self.config.lease) },
            compression: disk.compression,
            pins: self.pins.clone(),
            name: name.to_owned(),
            ..DiskOptions::new(size)
        };
        let disk = Arc::new(Disk::open(&path, options)?);
        self.disks.push((name.to_owned(), disk.clone()));
        self.places.push((name.to_owned(), path));
        let traits = Traits { blob_max: size, is_durable: true, is_local: true };
        Ok(Leaf { store: disk, traits, size_bytes: Some(size) })
    }

    /// A directory for what a tier remembers.
    fn state(&self, name: &str) -> Result<PathBuf> {
        let path = self.data.join("tiers").join(name);
        make_private_directory(&path)?;
        Ok(path)
    }

    fn put_together(self, mut tiers: Vec<(String, Leaf)>) -> Result<Stack> {
        let metered = |name: &str, leaf: &Leaf| Arc::new(Metered::new(name, leaf.store.clone()));
        if let [(name, leaf)] = &mut tiers[..]
            && leaf.traits.is_local
        {
            // A list of one would only be in the way. What is remote needs its limits and its look at each stream.
            let store = Arc::new(Verified::new(metered(name, leaf)));
            let Self { pins, disks, places, summaries, .. } = self;
            return Ok(Stack { store, pins, tiers: summaries, disks, places, tiered: None });
        }
        let first_durable = tiers.iter().find(|(_, leaf)| leaf.traits.is_durable);
        let bytes_max = first_durable.and_then(|(_, leaf)| leaf.size_bytes).map(|size| size / PENDING_PART);
        let journal = self.data.join("journal");
        let write_back = match self.config.write {
            // What is pending since writes went back goes on; nothing new is queued.
            Write::Through if journal.is_dir() => Some(WriteBack { journal: &journal, bytes_max: 0 }),
            Write::Through => None,
            Write::Back => {
                make_private_directory(self.data)?;
                Some(WriteBack { journal: &journal, bytes_max: bytes_max.unwrap_or(PENDING_BYTES_MAX) })
            }
        };
        let tiers =
            tiers.iter().map(|(name, leaf)| Tier::new(name, metered(name, leaf), leaf.traits)).collect();
        let tiered = Arc::new(Tiered::open(tiers, write_back, self.pins.clone(), Patience::default())?);
        let store = Arc::new(Verified::on_the_way_in(tiered.clone()));
        let Self { pins, disks, places, summaries, .. } = self;
        Ok(Stack { store, pins, tiers: summaries, disks, places, tiered: Some(tiered) })
    }
}

fn remote(store: Arc<dyn Store>, blob_max: u64, is_durable: bool) -> Leaf {
    Leaf { store, traits: Traits { blob_max, is_durable, is_local: false }, size_bytes: None }
}

/// Makes a directory that only this user reads: it holds what is built.
///
/// # Errors
/// What the file system reports.
pub fn make_private_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.context(|| format!("make the data directory {}", path.display()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use bytesize::ByteSize;

    use super::super::{Blob, Key};
    use super::*;
    use crate::digest::Function;
    use crate::metrics;

    fn disk(path: PathBuf) -> Listed {
        Listed::Disk(config::Disk {
            path: Some(path),
            size: Some(ByteSize::gib(1)),
            ..config::Disk::default()
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_list_of_tiers_is_one_store() {
        let directory = tempfile::TempDir::new().unwrap();
        let memory = Listed::Memory(config::Memory { name: None, size: ByteSize::mib(64) });
        for write in [Write::Through, Write::Back] {
            let place = directory.path().join(format!("{write:?}"));
            let tiers = vec![memory.clone(), disk(place.join("fast")), disk(place.join("slow"))];
            let config = Config { tiers, write, ..Config::default() };
            assert_eq!(config.check(), Vec::<String>::new());
            let stack = Stack::open(&config, &place).await.unwrap();
            let names: Vec<&str> = stack.tiers.iter().map(|tier| tier.name.as_str()).collect();
            assert_eq!(names, ["memory", "disk", "disk-2"]);
            let bytes = Bytes::from_static(b"in all of them");
            let key = Key::Blob(Function::Sha256.hash(&bytes));
            stack.store.put(&key, Blob::Whole(bytes)).await.unwrap();
            stack.drain(Duration::from_secs(60)).await;
            for (_, disk) in &stack.disks {
                assert_eq!(disk.missing(std::slice::from_ref(&key)).await.unwrap(), []);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_remote_tier_alone_serves_nothing_damaged() {
        let directory = tempfile::TempDir::new().unwrap();
        let objects = directory.path().join("objects");
        let fs = super::super::object::Fs { path: objects.clone(), ..Default::default() };
        let config = Config { tiers: vec![Listed::Fs(fs)], ..Config::default() };
        let stack = Stack::open(&config, directory.path()).await.unwrap();
        let bytes = Bytes::from(vec![7; 3_000_000]);
        let digest = Function::Sha256.hash(&bytes);
        let key = Key::Blob(digest);
        stack.store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
        let hex = hex::encode(digest.hash());
        let object = objects.join("blobs/sha256").join(&hex[..2]).join(&hex);
        std::fs::write(&object, vec![8; 3_000_000]).unwrap();
        let blob = stack.store.get(&key, 0..).await.unwrap().unwrap();
        let error = blob.into_bytes(1 << 30).await.unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Corrupt);
        // It is gone, so that whoever has the right one is asked for it.
        let missing = stack.store.missing(std::slice::from_ref(&key)).await.unwrap();
        assert_eq!(missing, std::slice::from_ref(&key));
        stack.store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
        let blob = stack.store.get(&key, 0..).await.unwrap().unwrap();
        assert!(blob.into_bytes(1 << 30).await.unwrap() == bytes);
    }

    /// What the stack before it still does in the background holds its directories for a moment.
    async fn reopened(config: &Config, place: &Path) -> Stack {
        for _ in 0..1000 {
            match Stack::open(config, place).await {
                Ok(stack) => return stack,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("the directories are not let go");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_pending_arrives_although_writes_go_through_now() {
        let directory = tempfile::TempDir::new().unwrap();
        let place = directory.path();
        let bytes = Bytes::from_static(b"written back");
        let key = Key::Blob(Function::Sha256.hash(&bytes));
        let tiers = vec![disk(place.join("fast")), disk(place.join("slow"))];
        for write in [Write::Back, Write::Through] {
            let config = Config { tiers: tiers.clone(), write, ..Config::default() };
            let stack = reopened(&config, place).await;
            if write == Write::Back {
                stack.store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
            } else {
                let other = Bytes::from_static(b"written through");
                let other_key = Key::Blob(Function::Sha256.hash(&other));
                stack.store.put(&other_key, Blob::Whole(other)).await.unwrap();
                stack.drain(Duration::from_secs(60)).await;
                let slow = &stack.disks[1].1;
                assert_eq!(slow.missing(&[key.clone(), other_key]).await.unwrap(), []);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_memory_tells_of_broken_leases_where_it_is_the_last_tier() {
        let directory = tempfile::TempDir::new().unwrap();
        let memory =
            |name: &str| Listed::Memory(config::Memory { name: Some(name.into()), size: ByteSize::mib(1) });
        for (tiers, told) in [
            (vec![memory("alone")], &[("alone", true)][..]),
            (vec![memory("first"), memory("second")], &[("first", false), ("second", true)]),
            (
                vec![memory("in front"), disk(directory.path().join("cas"))],
                &[("in front", false), ("disk", true)],
            ),
        ] {
            let config = Config { tiers, ..Config::default() };
            let _stack = Stack::open(&config, directory.path()).await.unwrap();
            for (name, is_told) in told {
                let breaks = metrics::value("croft_store_lease_breaks_total", &[("tier", name)]);
                assert_eq!(breaks.is_some(), *is_told, "{name}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_list_there_is_one_disk() {
        let directory = tempfile::TempDir::new().unwrap();
        let config = Config { size: Some(ByteSize::gib(1)), ..Config::default() };
        let stack = Stack::open(&config, directory.path()).await.unwrap();
        let size_bytes = Some(ByteSize::gib(1).as_u64());
        assert_eq!(stack.tiers, [TierSummary { name: "disk".into(), kind: "disk", size_bytes }]);
        assert!(stack.tiered.is_none());
        assert!(directory.path().join("cas").is_dir());
    }
}
