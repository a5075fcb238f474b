//! What an operator says about storage: an ordered list of tiers, fast to slow.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::{farm, object, redis};
use crate::credential;

/// Below this the index alone would fill the store.
const SIZE_MIN: ByteSize = ByteSize::mib(64);

/// Below this a memory tier would hold next to nothing.
const MEMORY_MIN: ByteSize = ByteSize::mib(1);

/// The longest name of a tier, in bytes: it is a label and the name of a directory.
const NAME_MAX: usize = 64;

/// Where blobs are kept and how many.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory of the one disk tier when no tier is listed; by default `cas` in the farm's state directory.
    pub path: Option<PathBuf>,
    /// The bytes that it may take on the disk; by default half of what the disk has to give.
    pub size: Option<ByteSize>,
    /// How long a blob stays that was reported present, in the last durable tier when that is a disk. Disks above keep it for some minutes.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// When a write is acknowledged: `through` when it is in every durable tier, `back` when it is in the first.
    pub write: Write,
    /// The tiers, fast to slow; none means one disk. Disks, buckets and other farms are durable, memory and Redis are caches.
    #[serde(rename = "tier")]
    pub tiers: Vec<Tier>,
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// When it is in every durable tier.
    #[default]
    Through,
    /// When it is in the first durable tier; a journal that survives a crash brings it to the others.
    Back,
}

/// One tier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Tier {
    Memory(Memory),
    Disk(Disk),
    Redis(redis::Config),
    S3(object::S3),
    Gcs(object::Gcs),
    Azure(object::Azure),
    Fs(object::Fs),
    Farm(farm::Config),
}

/// A tier in memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The tier's label in metrics and logs.
    #[serde(default)]
    pub name: Option<String>,
    /// The bytes that it may hold.
    pub size: ByteSize,
}

/// A tier on the local disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// The tier's label in metrics and logs.
    pub name: Option<String>,
    /// The directory of the blobs; by default `cas` in the farm's state directory.
    pub path: Option<PathBuf>,
    /// The bytes that it may take on the disk; by default half of what the disk has to give.
    pub size: Option<ByteSize>,
    /// Whether blobs are compressed where that saves space.
    pub compression: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: None,
            size: None,
            lease: Duration::from_secs(3 * 3600),
            write: Write::default(),
            tiers: Vec::new(),
        }
    }
}

impl Config {
    /// Every problem of the configuration, as sentences for the operator.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.tiers.is_empty() && (self.path.is_some() || self.size.is_some()) {
            problems.push(
                "storage.path and storage.size belong to the disk tier when tiers are listed".to_owned(),
            );
        }
        let tiers = self.effective_tiers();
        for (name, tier) in names(&tiers).iter().zip(&tiers) {
            let whose =
                if self.tiers.is_empty() { "storage".to_owned() } else { format!("storage.tier {name}") };
            tier.check(&whose, &mut problems);
        }
        self.check_list(&mut problems);
        problems
    }

    /// What is wrong with the files that tiers name for TLS and tokens, as sentences for the operator.
    pub fn file_problems(&self) -> Vec<String> {
        let tiers = names(&self.tiers).into_iter().zip(&self.tiers);
        let of_tier = |(name, tier): (String, &Tier)| {
            let tls = match tier {
                Tier::Redis(redis) => redis.effective_tls(),
                Tier::Farm(farm) => farm.effective_tls(),
                Tier::Memory(_)
                | Tier::Disk(_)
                | Tier::S3(_)
                | Tier::Gcs(_)
                | Tier::Azure(_)
                | Tier::Fs(_) => None,
            };
            let tls = tls.and_then(|tls| tls.file_problem(&format!("storage.tier {name}: tls")));
            let token = if let Tier::Farm(farm) = tier { farm.token.as_deref() } else { None };
            let token =
                token.and_then(|token| credential::file_problem(&format!("storage.tier {name}"), token));
            tls.into_iter().chain(token)
        };
        tiers.flat_map(of_tier).collect()
    }

    /// The tiers in object storage.
    pub fn object_tiers(&self) -> Vec<object::Provider<'_>> {
        let provider = |tier| match tier {
            &Tier::Memory(_) | &Tier::Disk(_) | &Tier::Redis(_) | &Tier::Farm(_) => None,
            Tier::S3(config) => Some(object::Provider::S3(config)),
            Tier::Gcs(config) => Some(object::Provider::Gcs(config)),
            Tier::Azure(config) => Some(object::Provider::Azure(config)),
            Tier::Fs(config) => Some(object::Provider::Fs(config)),
        };
        self.tiers.iter().filter_map(provider).collect()
    }

    /// What is wrong when another process is the CAS of the farm: all processes must see what one of them writes.
    pub fn problems_beside_a_cas(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.tiers.iter().any(Tier::is_shared) {
            problems.push(
                "storage.tier: without the role cas this needs a tier that all processes of the farm reach (farm, s3, gcs, azure or fs)"
                    .to_owned(),
            );
        } else if self.write == Write::Back {
            let why = "other processes read at once what this one writes";
            problems.push(format!("storage.write: without the role cas it must be \"through\": {why}"));
        }
        problems
    }

    fn check_list(&self, problems: &mut Vec<String>) {
        let is_memory = |tier: &Tier| matches!(tier, Tier::Memory(_));
        let has_durable = self.effective_tiers().iter().any(Tier::is_durable);
        if !has_durable && !self.tiers.iter().all(is_memory) {
            let why = "memory and redis may lose what they acknowledged";
            problems
                .push(format!("storage.tier needs a durable tier (disk, s3, gcs, azure, fs or farm): {why}"));
        }
        if !has_durable && self.write == Write::Back {
            problems.push("storage.write = \"back\" needs a durable tier to write to first".to_owned());
        }
        let mut seen = HashSet::new();
        for name in self.tiers.iter().filter_map(Tier::name) {
            if !seen.insert(name) {
                problems.push(format!("storage.tier {name}: another tier has the same name"));
            }
        }
        let mut seen = HashSet::new();
        for path in self.tiers.iter().filter_map(Tier::disk_path) {
            if !seen.insert(path) {
                let shown = path.map_or("the default".to_owned(), |path| path.display().to_string());
                problems.push(format!("storage.tier: two disks have the same path ({shown})"));
            }
        }
    }

    /// The tiers that are listed, or the one disk that stands for none.
    pub(super) fn effective_tiers(&self) -> Vec<Tier> {
        if !self.tiers.is_empty() {
            return self.tiers.clone();
        }
        vec![Tier::Disk(Disk { path: self.path.clone(), size: self.size, ..Disk::default() })]
    }
}

impl Tier {
    fn name(&self) -> Option<&str> {
        let name = match self {
            Self::Memory(memory) => &memory.name,
            Self::Disk(disk) => &disk.name,
            Self::Redis(redis) => &redis.name,
            Self::S3(s3) => &s3.name,
            Self::Gcs(gcs) => &gcs.name,
            Self::Azure(azure) => &azure.name,
            Self::Fs(fs) => &fs.name,
            Self::Farm(farm) => &farm.name,
        };
        name.as_deref()
    }

    /// As it stands in the configuration.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Disk(_) => "disk",
            Self::Redis(_) => "redis",
            Self::S3(_) => "s3",
            Self::Gcs(_) => "gcs",
            Self::Azure(_) => "azure",
            Self::Fs(_) => "fs",
            Self::Farm(_) => "farm",
        }
    }

    /// Whether what it acknowledged stays.
    pub(super) fn is_durable(&self) -> bool {
        match self {
            Self::Memory(_) | Self::Redis(_) => false,
            Self::Disk(_) | Self::S3(_) | Self::Gcs(_) | Self::Azure(_) | Self::Fs(_) | Self::Farm(_) => true,
        }
    }

    /// Whether other processes may have the same tier.
    fn is_shared(&self) -> bool {
        match self {
            Self::Memory(_) | Self::Disk(_) | Self::Redis(_) => false,
            Self::S3(_) | Self::Gcs(_) | Self::Azure(_) | Self::Fs(_) | Self::Farm(_) => true,
        }
    }

    /// The path of a disk, which may be unset; `None` for other kinds.
    fn disk_path(&self) -> Option<Option<&Path>> {
        match self {
            Self::Disk(disk) => Some(disk.path.as_deref()),
            Self::Memory(_)
            | Self::Redis(_)
            | Self::S3(_)
            | Self::Gcs(_)
            | Self::Azure(_)
            | Self::Fs(_)
            | Self::Farm(_) => None,
        }
    }

    fn check(&self, whose: &str, problems: &mut Vec<String>) {
        if self.name().is_some_and(|name| !is_name(name)) {
            let what = format!("1 to {NAME_MAX} letters, digits, `-` and `_`");
            problems.push(format!("{whose}: a name has {what}"));
        }
        if self.disk_path().flatten().is_some_and(|path| !path.is_absolute()) {
            problems.push(format!("{whose}.path must be an absolute path"));
        }
        let (size, min) = match self {
            Self::Memory(memory) => (Some(memory.size), MEMORY_MIN),
            Self::Disk(disk) => (disk.size, SIZE_MIN),
            Self::Redis(_) | Self::S3(_) | Self::Gcs(_) | Self::Azure(_) | Self::Fs(_) | Self::Farm(_) => {
                (None, SIZE_MIN)
            }
        };
        if size.is_some_and(|size| size < min) {
            problems.push(format!("{whose}.size must be at least {min}"));
        }
        problems.extend(self.own_problems().into_iter().map(|problem| format!("{whose}: {problem}")));
    }
}

impl Tier {
    /// What the parts that know the kind find.
    fn own_problems(&self) -> Vec<String> {
        match self {
            Self::Memory(_) | Self::Disk(_) => Vec::new(),
            Self::Redis(redis) => redis.check(),
            Self::S3(s3) => s3.check(),
            Self::Gcs(gcs) => gcs.check(),
            Self::Azure(azure) => azure.check(),
            Self::Fs(fs) => fs.check(),
            Self::Farm(farm) => farm.check(),
        }
    }
}

/// The names of tiers: the configured ones, else the kind, with a number when it is taken.
pub(super) fn names(tiers: &[Tier]) -> Vec<String> {
    let mut taken: HashSet<String> = tiers.iter().filter_map(Tier::name).map(str::to_owned).collect();
    let name = |tier: &Tier| {
        if let Some(name) = tier.name() {
            return name.to_owned();
        }
        let numbered = (2..).map(|number| format!("{}-{number}", tier.kind()));
        let mut free = std::iter::once(tier.kind().to_owned()).chain(numbered);
        let name = free.find(|name| !taken.contains(name)).expect("numbers do not end");
        taken.insert(name.clone());
        name
    };
    tiers.iter().map(name).collect()
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> Config {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let config = Config { path: Some("cas".into()), size: Some(ByteSize::kib(1)), ..Config::default() };
        assert_eq!(config.check().len(), 2);
        assert_eq!(Config::default().check(), Vec::<String>::new());
    }

    #[test]
    fn every_wrong_list_is_told() {
        let wrong = [
            ("size = \"1 GiB\"\n[[tier]]\nkind = \"disk\"", "belong to the disk tier"),
            (
                "[[tier]]\nkind = \"memory\"\nsize = \"1 GiB\"\n[[tier]]\nkind = \"redis\"\nurl = \"redis://h\"",
                "durable",
            ),
            ("write = \"back\"\n[[tier]]\nkind = \"memory\"\nsize = \"1 GiB\"", "to write to first"),
            ("[[tier]]\nkind = \"disk\"\n[[tier]]\nkind = \"disk\"", "same path"),
            (
                "[[tier]]\nkind = \"disk\"\nname = \"a\"\n[[tier]]\nkind = \"disk\"\npath = \"/x\"\nname = \"a\"",
                "same name",
            ),
            ("[[tier]]\nkind = \"disk\"\nname = \"a/b\"", "letters"),
            ("[[tier]]\nkind = \"disk\"\npath = \"x\"", "absolute"),
            ("[[tier]]\nkind = \"memory\"\nsize = \"1 KiB\"", "at least"),
            ("[[tier]]\nkind = \"disk\"\nsize = \"1 MiB\"", "at least"),
        ];
        for (toml, expected) in wrong {
            let problems = config(toml).check();
            assert!(problems.len() == 1 && problems[0].contains(expected), "{toml}: {problems:?}");
        }
    }

    #[test]
    fn a_cache_in_memory_alone_and_an_odd_order_are_allowed() {
        let memory = "[[tier]]\nkind = \"memory\"\nsize = \"1 GiB\"\n";
        for toml in [memory.to_owned(), format!("[[tier]]\nkind = \"disk\"\n{memory}")] {
            assert_eq!(config(&toml).check(), Vec::<String>::new(), "{toml}");
        }
    }

    #[test]
    fn tiers_without_a_name_have_their_kind_and_a_number() {
        let config = config(
            "[[tier]]\nkind = \"disk\"\n[[tier]]\nkind = \"disk\"\nname = \"disk-2\"\n[[tier]]\nkind = \"disk\"",
        );
        assert_eq!(names(&config.tiers), ["disk", "disk-2", "disk-3"]);
    }
}
