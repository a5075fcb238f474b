//! What an operator may say about a worker.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use http::Uri;
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::machine::Machine;
use super::root::Root;
use super::sandbox::{Scratch, System};
use crate::credential;
use crate::error::{Error, Result};
use crate::proto::rev2::platform::Property;
use crate::proto::worker::{CORES, IMAGE, MEMORY};
use crate::tls;

/// Slots that one worker may have: each holds some descriptors and a network namespace.
const SLOTS_MAX: u32 = 1024;
/// Some dozen toolchains, and a small part of the disks that builds are done on.
const INPUT_CACHE_SIZE: ByteSize = ByteSize::gib(20);
/// A cache that holds less than a small project's sources is a mistake.
const INPUT_CACHE_MIN: ByteSize = ByteSize::mib(16);
/// The scheduler takes a hundred properties of a worker, and each image is one.
const IMAGES_MAX: usize = 64;
/// From one build of a developer to the next, and not until after lunch.
const PERSISTENT_IDLE: Duration = Duration::from_secs(5 * 60);
/// `nobody`: on every Linux system, and nothing of importance belongs to it.
const NOBODY: u32 = 65534;

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A name for people, in the metadata of every action that it runs. By default the machine's host name.
    pub name: Option<String>,
    /// How many actions run at a time. By default one for each core.
    pub slots: Option<NonZeroU32>,
    /// What actions see of a system: `"host"` for the machine's own `/usr` (read-only), the absolute path of an unpacked root file
    /// system, or `{ closure = "/path/of/a/list", links = { "/bin/sh" = "/nix/store/…" } }` for nothing but listed paths.
    pub root: Root,
    /// The images that actions may ask for by the platform property `container-image`, and the root that each stands for. Nothing is
    /// fetched; the worker offers these images.
    pub images: BTreeMap<String, Root>,
    /// The user on the host that actions run under, when the worker runs as root. Inside, they are always user 1000.
    pub uid: u32,
    /// The group on the host that actions run under, when the worker runs as root.
    pub gid: u32,
    /// Where what an action writes is kept until its outputs are uploaded: `"memory"` or `"disk"`, which is slower and has room for
    /// more. How much that may be is in `limits.disk`.
    pub scratch: Scratch,
    /// What one action may use.
    pub limits: Limits,
    /// What the cache of input trees may take on the disk. Files that are shared with the store count in full, since they stay when
    /// the store lets them go, and every file and directory counts for at least 4 KiB.
    pub input_cache_size: ByteSize,
    /// Where the scheduler listens for workers, as in `grpc://127.0.0.1:50061`, or `grpcs://` with TLS; unset, it is in the same process.
    pub scheduler: Option<String>,
    /// Whether the way to a scheduler on another machine may be without TLS: for networks that encrypt by themselves.
    pub insecure: bool,
    /// How long actions may go on when the worker is asked to stop; then they are killed. By default 10 minutes for a process that
    /// is only a worker, and none else.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Option<Duration>,
    /// How many processes of tools may stay running to answer one action after the other (Bazel's persistent workers), beside the
    /// actions. 0: none, such actions run the ordinary way. What a tool keeps in memory can get into what it makes.
    pub persistent_workers: u32,
    /// How long such a process waits for its next action until it ends.
    #[serde(with = "humantime_serde")]
    pub persistent_workers_idle: Duration,
    /// The platform properties that the worker offers, with all values of each.
    pub properties: BTreeMap<String, Vec<String>>,
    /// TLS to a scheduler at `grpcs://`. Unset: the authorities of the system, and no certificate of its own.
    pub tls: Option<tls::Client>,
    /// The file of the token that the scheduler is shown, for schedulers that know workers by tokens.
    pub token: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let property = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
        let properties = [property("OSFamily", "linux"), property("ISA", isa())];
        Self {
            name: None,
            slots: None,
            root: Root::Host,
            images: BTreeMap::new(),
            uid: NOBODY,
            gid: NOBODY,
            scratch: Scratch::default(),
            limits: Limits::default(),
            input_cache_size: INPUT_CACHE_SIZE,
            scheduler: None,
            insecure: false,
            drain_timeout: None,
            persistent_workers: 0,
            persistent_workers_idle: PERSISTENT_IDLE,
            properties: properties.into(),
            tls: None,
            token: None,
        }
    }
}

/// The machine's instruction set in the words of REv2's platform lexicon.
fn isa() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x86-64",
        "aarch64" => "arm-a64",
        "riscv64" => "rv64g",
        other => other,
    }
}

impl Config {
    /// All that is wrong with this configuration, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.slots.is_some_and(|slots| slots.get() > SLOTS_MAX) {
            problems.push(format!("worker.slots: at most {SLOTS_MAX} are possible"));
        }
        if self.uid == 0 || self.gid == 0 {
            problems.push("worker.uid, worker.gid: actions cannot run as root (0)".to_owned());
        }
        if self.input_cache_size < INPUT_CACHE_MIN {
            problems.push(format!("worker.input_cache_size: at least {INPUT_CACHE_MIN} are needed"));
        }
        problems.extend(self.systems().into_iter().filter_map(std::result::Result::err));
        problems.extend(self.image_problems());
        problems.extend(self.limits.check());
        problems.extend(self.persistent_problems());
        problems.extend(self.scheduler_problem());
        problems.extend(self.tls.iter().flat_map(|tls| tls.check("worker.tls")));
        problems.extend(self.token_problems());
        for (name, values) in &self.properties {
            if name.is_empty() || values.is_empty() {
                problems.push(format!("worker.properties: property `{name}` needs a name and a value"));
            }
        }
        problems
    }

    /// How the scheduler at `grpcs://` is connected to; none where the way to it is without TLS.
    pub fn scheduler_tls(&self) -> Option<tls::Client> {
        let is_tls = self.scheduler.as_deref().is_some_and(|text| text.starts_with("grpcs://"));
        is_tls.then(|| self.tls.clone().unwrap_or_default())
    }

    /// What is wrong with the files of its certificate and its token.
    pub fn file_problems(&self) -> Vec<String> {
        let certificate = self.scheduler_tls().and_then(|tls| tls.file_problem("worker.tls"));
        let token = self.token.as_deref().and_then(|token| credential::file_problem("worker", token));
        certificate.into_iter().chain(token).collect()
    }

    fn token_problems(&self) -> Vec<String> {
        let Some(token) = &self.token else { return Vec::new() };
        let Some(scheduler) = &self.scheduler else {
            return vec![
                "worker.token: the scheduler is in the same process and asks for no token".to_owned(),
            ];
        };
        let uri: Option<Uri> = scheduler.parse().ok();
        let plain = uri.as_ref().filter(|uri| uri.scheme_str() == Some("grpc")).and_then(Uri::host);
        credential::problems("worker", token, plain)
    }

    fn scheduler_problem(&self) -> Option<String> {
        let text = self.scheduler.as_deref()?;
        let uri: Option<Uri> = text.parse().ok();
        let is_right = uri.as_ref().is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("grpc" | "grpcs"))
                && uri.port_u16().is_some()
                && uri.path() == "/"
                && uri.query().is_none()
        });
        if !is_right {
            return Some(format!(
                "worker.scheduler: `{text}` is not of the form grpc://host:port or grpcs://host:port"
            ));
        }
        if text.starts_with("grpcs://") {
            return None;
        }
        if self.tls.is_some() {
            return Some(format!(
                "worker.tls: `{text}` is without TLS; worker.scheduler begins with grpcs:// for it"
            ));
        }
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        let is_loopback = credential::is_loopback(host);
        let reason = "beyond loopback, anyone on the way can read and change what is sent";
        let remedy = "use grpcs://, or worker.insecure = true if something else protects the way";
        (!is_loopback && !self.insecure).then(|| format!("worker.scheduler: {host}: {reason}; {remedy}"))
    }

    /// How many actions run at a time.
    pub fn slots(&self) -> u32 {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.slots.map_or_else(|| u32::try_from(cores()).unwrap_or(SLOTS_MAX).min(SLOTS_MAX), NonZeroU32::get)
    }

    /// The amounts that the worker has on `machine`, by the names of the platform properties that demand them. Who asks for more
    /// slots than there are cores wants that many actions at once.
    pub fn amounts(&self, machine: &Machine) -> [(&'static str, u64); 2] {
        let cores = machine.cores.max(u64::from(self.slots()));
        [(CORES, cores), (MEMORY, machine.memory_of_actions())]
    }

    /// The worker's name for people.
    pub fn name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.name.clone().unwrap_or_else(host)
    }

    /// What actions see by default, then for each image, in the order of [`Config::root_of`]; a sentence for each that cannot be had.
    /// Blocks.
    pub(super) fn systems(&self) -> Vec<std::result::Result<System, String>> {
        let default = self.root.system().map_err(|why| format!("worker.root: {why}"));
        let images = self.images.iter().map(|(image, root)| {
            root.system().map_err(|why| format!("worker.images: image `{}`: {why}", image.escape_default()))
        });
        std::iter::once(default).chain(images).collect()
    }

    /// Which of [`Config::systems`] an action gets that demands `properties`. An image that is no key of `images` decides nothing: the
    /// worker got the action because `properties` offers the image or the scheduler takes any.
    ///
    /// # Errors
    /// `Invalid` for more than one image.
    pub(super) fn root_of(&self, properties: &[Property]) -> Result<usize> {
        let mut demanded = properties.iter().filter(|property| property.name == IMAGE);
        let Some(first) = demanded.next() else { return Ok(0) };
        if demanded.any(|property| property.value != first.value) {
            return Err(Error::invalid(format!("the action demands more than one {IMAGE}")));
        }
        let position = self.images.keys().position(|image| *image == first.value);
        Ok(position.map_or(0, |position| position + 1))
    }

    fn image_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.images.len() > IMAGES_MAX {
            problems.push(format!("worker.images: at most {IMAGES_MAX} are possible"));
        }
        let offered = self.properties.get(IMAGE).into_iter().flatten();
        for image in offered.filter(|image| self.images.contains_key(*image)) {
            let image = image.escape_default();
            problems.push(format!("worker.properties: image `{image}` is in worker.images, too"));
        }
        problems
    }

    fn persistent_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.persistent_workers > SLOTS_MAX {
            problems.push(format!("worker.persistent_workers: at most {SLOTS_MAX} are possible"));
        }
        // Only the kernel bounds what such a process writes while it has no action, and only in memory.
        if self.persistent_workers > 0 && self.scratch != Scratch::Memory {
            problems.push("worker.persistent_workers: they need worker.scratch = \"memory\"".to_owned());
        }
        if self.persistent_workers_idle.is_zero() {
            problems.push("worker.persistent_workers_idle: it must be longer than 0".to_owned());
        }
        problems
    }

    /// The properties as the scheduler gets them: one entry for each value.
    pub(super) fn offers(&self) -> Vec<Property> {
        let pairs = self
            .properties
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| (name.as_str(), value)));
        let images = self.images.keys().map(|image| (IMAGE, image));
        pairs
            .chain(images)
            .map(|(name, value)| Property { name: name.to_owned(), value: value.clone() })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn the_default_is_good_and_offers_this_machine() {
        let config = read("").expect("readable");
        assert_eq!(config, Config::default());
        assert!(config.check().is_empty() && config.slots() >= 1 && !config.name().is_empty());
        assert!(
            config.offers().iter().any(|property| property.name == "OSFamily" && property.value == "linux")
        );
    }

    #[test]
    fn a_root_is_the_hosts_or_a_path_or_a_closure() {
        assert_eq!(read("root = \"host\"").expect("readable").root, Root::Host);
        let root = read("root = \"/srv/x\"").expect("readable").root;
        assert_eq!(root, Root::Unpacked("/srv/x".into()));
        assert_eq!(read("root = \"guest\"").expect("readable").check().len(), 1);
        assert!(read("rot = \"host\"").is_err());
        let text = "root = { closure = \"/x/store-paths\", links = { \"/bin/sh\" = \"/x/sh\" } }";
        assert!(matches!(read(text).expect("readable").root, Root::Closure(_)));
        for bad in ["root = { closures = \"/x\" }", "root = { links = {} }", "root = 5"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn roots_come_back_from_what_is_printed() {
        let text = "root = { closure = \"/x/store-paths\", links = { \"/bin/sh\" = \"/x/sh\" } }
            [images]
            \"docker://x@sha256:0\" = \"/srv/x\"
            y = { closure = \"/y\" }
            z = \"host\"";
        let config = read(text).expect("readable");
        let printed = toml::to_string(&config).expect("printable");
        assert_eq!(read(&printed).expect("readable"), config, "{printed}");
    }

    #[test]
    fn an_image_is_offered_and_stands_for_its_root() {
        let mut config = read("[images]\na = \"host\"\nb = \"host\"").expect("readable");
        let image = |value: &str| Property { name: IMAGE.to_owned(), value: value.to_owned() };
        let offers = config.offers();
        assert!(
            offers.contains(&image("a")) && offers.contains(&image("b")) && !offers.contains(&image("c"))
        );
        let of = |images: &[&str]| config.root_of(&images.iter().map(|name| image(name)).collect::<Vec<_>>());
        assert_eq!(of(&[]).expect("the default"), 0);
        assert_eq!((of(&["a"]).expect("an image"), of(&["b", "b"]).expect("an image")), (1, 2));
        assert_eq!(of(&["c"]).expect("another worker's, or any"), 0);
        assert!(of(&["a", "b"]).is_err());
        assert!(config.check().is_empty() && config.systems().len() == 3);
        config.properties.insert(IMAGE.to_owned(), vec!["b".to_owned()]);
        assert_eq!(config.check().len(), 1, "{:?}", config.check());
    }

    #[test]
    fn every_problem_is_told() {
        let config = read(
            "slots = 5000\nuid = 0\nscratch = \"disk\"\npersistent_workers = 2000\nroot = \"/nowhere\"\n[properties]\nx = []\n[images]\ny = \"/nowhere\"",
        )
        .expect("readable");
        assert_eq!(config.check().len(), 7, "{:?}", config.check());
    }
}
