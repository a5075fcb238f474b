//! Runs actions: inputs, sandbox, outputs. Connects to a scheduler, takes leases, and answers each exactly once.

mod answer;
mod command;
mod config;
mod directory;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod inputs;
mod limits;
pub mod link;
mod machine;
mod outcome;
mod outputs;
mod persistent;
mod quota;
mod root;
mod run;
pub mod sandbox;
#[cfg(test)]
mod shelf;
mod warming;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use config::Config;
pub use limits::Limits;
pub use machine::Machine;
pub use root::Root;
pub use sandbox::Scratch;

use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::proto::rev2::platform::Property;
use crate::proto::worker::Start;
use crate::proto::worker::finished::Outcome;
use crate::store::Cas;
use crate::tasks::{self, Shutdown};
use command::Command;
use directory::Directory;
use inputs::Inputs;
use link::Reports;
use persistent::{Pool, Wish};
use run::Attempt;
use sandbox::{End, Launcher, Ownership, Spec, System};
use warming::Warming;

/// Directories that may wait for their deletion while all slots are in use. Deleting one takes a few times as long as
/// a command that does nothing, so without a bound a burst of those would fill the disk.
const DISCARDED_MAX: usize = 64;
/// The name of the action that tries the sandbox; no lease has it.
const PROBE: &str = "croft-probe";

/// A worker on this machine. Cheap to clone.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    name: String,
    /// What this life of the worker is called: 16 random bytes.
    id: Bytes,
    cas: Cas,
    launcher: Launcher,
    machine: Machine,
    inputs: Inputs,
    warming: Warming,
    /// The tools that stay running.
    pool: Pool,
    /// The worker's own.
    directory: PathBuf,
    slots: Arc<Semaphore>,
    slots_max: usize,
    /// One permit for each directory that exists.
    directories: Arc<Semaphore>,
    /// Keeps other workers from the directory.
    _lock: File,
}

/// A directory that counts against the bound until it is deleted.
struct Counted {
    directory: Directory,
    _permit: OwnedSemaphorePermit,
}

impl Worker {
    /// Makes a worker whose actions live in `directory` and whose sandbox is started by `executable`, this program. Nothing
    /// else may use `directory`; what is in it is deleted.
    ///
    /// # Errors
    /// `Unavailable` when the machine cannot do what the sandbox needs, with a sentence that says what to change.
    pub async fn start(mut config: Config, cas: Cas, directory: &Path, executable: &Path) -> Result<Self> {
        let slots = config.slots();
        let machine = Machine::measure();
        let groups = limits::claim(&config, &machine).await?;
        let sandbox = sandbox::Config {
            directory: directory.to_owned(),
            roots: systems(&config).await?,
            uid: config.uid,
            gid: config.gid,
            networks: slots + config.persistent_workers,
            scratch: config.scratch,
            groups,
        };
        let (served, executable) = (directory.to_owned(), executable.to_owned());
        let (store, size) = (cas.clone(), config.input_cache_size.as_u64());
        let (lock, launcher, inputs) = tasks::blocking(move || {
            let lock = directory::lock(&served)?;
            directory::sweep(&served)?;
            let launcher = Launcher::start(&executable, sandbox)?;
            let inputs = Inputs::open(store, &served, size, launcher.ownership())?;
            Ok((lock, launcher, inputs))
        })
        .await?;
        if config.scratch == Scratch::Disk {
            config.limits.disk = config.limits.disk.or_else(|| limits::disk_default(directory));
        }
        let worker = Self {
            shared: Arc::new(Shared {
                name: config.name(),
                id: Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes()),
                slots: Arc::new(Semaphore::new(slots as usize)),
                slots_max: slots as usize,
                directories: Arc::new(Semaphore::new(slots as usize + DISCARDED_MAX)),
                pool: Pool::new(config.persistent_workers, config.persistent_workers_idle),
                config,
                cas,
                launcher,
                machine,
                warming: Warming::start(inputs.clone()),
                inputs,
                directory: directory.to_owned(),
                _lock: lock,
            }),
        };
        worker.probe().await?;
        Ok(worker)
    }

    /// The worker's name for people.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How many actions it runs at once.
    pub(crate) fn slots(&self) -> u32 {
        self.shared.config.slots()
    }

    /// Runs one lease, which tells of itself through `reports`. Waits while all slots are taken. Cancelling `kill` ends it early.
    pub(crate) async fn run(&self, start: Start, kill: Shutdown, reports: Reports) -> Outcome {
        let slots = self.shared.slots.clone();
        let _slot = tokio::select! {
            slot = slots.acquire_owned() => slot.expect("nothing closes the semaphore"),
            () = kill.cancelled() => return Outcome::Killed(true),
        };
        Attempt::new(self.clone(), kill, reports).run(start).await
    }

    /// Has an input root staged of which an action may come.
    pub(crate) fn warm(&self, root: Digest) {
        self.shared.warming.add(root);
    }

    /// The input roots of its actions.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.shared.inputs
    }

    fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// What an action asks of a tool that stays running, if it does and may.
    fn wish(&self, instance: &str, properties: &[Property], command: &Command) -> Option<Wish> {
        (self.shared.config.persistent_workers > 0).then(|| Wish::of(instance, properties, command))?
    }

    fn cas(&self) -> &Cas {
        &self.shared.cas
    }

    fn launcher(&self) -> &Launcher {
        &self.shared.launcher
    }

    fn scratch(&self) -> Scratch {
        self.shared.config.scratch
    }

    /// What an action gets that demands `properties`.
    fn limits(&self, properties: &[Property]) -> sandbox::Limits {
        self.shared.config.limits.of_action(&self.shared.machine, properties)
    }

    /// Which root an action sees that demands `properties`.
    fn root(&self, properties: &[Property]) -> Result<usize> {
        self.shared.config.root_of(properties)
    }

    fn ownership(&self) -> Ownership {
        self.shared.launcher.ownership()
    }

    /// Tries the whole sandbox once with each root, so that a machine that lacks something refuses to start instead of failing every
    /// action.
    async fn probe(&self) -> Result<()> {
        for root in 0..=self.shared.config.images.len() {
            self.probe_root(root).await.context(|| "the sandbox cannot be set up")?;
        }
        Ok(())
    }

    async fn probe_root(&self, root: usize) -> Result<()> {
        let counted = self.make_directory(format!("{PROBE}-{root}")).await?;
        let spec = Spec {
            directory: counted.directory.name.clone(),
            layers: vec![counted.directory.layer()],
            arguments: vec![format!("/{PROBE}")],
            environment: Vec::new(),
            working_directory: String::new(),
            root,
            limits: self.limits(&[]),
        };
        let exit = self.launcher().run(spec).await?.wait().await;
        self.discard(counted);
        match exit?.end {
            // The program does not exist; that nothing but this went wrong is what we want to know.
            End::Exited(127) => Ok(()),
            end @ (End::Exited(_) | End::Signaled(_) | End::Killed) => {
                Err(Error::new(Kind::Unavailable, format!("the sandbox does not work: {end:?}")))
            }
        }
    }

    async fn make_directory(&self, name: String) -> Result<Counted> {
        let permit =
            self.shared.directories.clone().acquire_owned().await.expect("nothing closes the semaphore");
        let (served, kind) = (self.shared.directory.clone(), (self.ownership(), self.shared.config.scratch));
        let directory = tasks::blocking(move || Directory::create(&served, &name, kind)).await?;
        Ok(Counted { directory, _permit: permit })
    }

    /// Deletes a directory in the background.
    fn discard(&self, counted: Counted) {
        tasks::spawn("delete an action's directory", async move {
            let Counted { directory, _permit } = counted;
            let name = directory.name.clone();
            if let Err(error) = tasks::blocking(move || directory.remove()).await {
                tracing::warn!(directory = name, error = error.chain(), "an action's directory stays");
            }
        });
    }

    /// Waits until no tool runs any more and no directory of an action is left.
    async fn tidy(&self) {
        self.shared.pool.close().await;
        let all = self.shared.slots_max + DISCARDED_MAX;
        let all = u32::try_from(all).expect("slots are bounded");
        let _all = self.shared.directories.acquire_many(all).await.expect("nothing closes the semaphore");
    }
}

/// What the actions may see of a system, for the sandbox.
async fn systems(config: &Config) -> Result<Vec<System>> {
    let config = config.clone();
    tasks::blocking(move || {
        config.systems().into_iter().map(|system| system.map_err(Error::invalid)).collect()
    })
    .await
}
