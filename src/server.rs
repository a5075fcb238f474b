//! Builds everything in order: the system on one page.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::config::Config;
use crate::error::{Context, Result};
use crate::rpc::{Assets, Farm, Instances, Settler, Stored, Uploads};
use crate::scheduler::Handle;
use crate::store::{ActionCache, AssetIndex, Cas, Stack, TierSummary};
use crate::tasks::{self, Shutdown};
use crate::web::{Pages, Readiness, ScrubPass, ScrubReport, Storage, Tier};
use crate::worker::{Worker, link};
use crate::{listen, rpc, store, web};

/// How long the parts may take to stop: more than the listeners give to requests that are under way.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How long pending writes get when everything else has stopped; the rest goes on at the next start.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// A farm that serves.
pub struct Server {
    /// Where clients connect.
    pub public: SocketAddr,
    /// Where operators look.
    pub admin: SocketAddr,
    /// Where the data is.
    pub data: PathBuf,
    /// Where blobs and results are kept.
    pub stack: Stack,
    /// Actions that run at once.
    pub slots: u32,
    parts: tasks::Group,
    readiness: Readiness,
    shutdown: Shutdown,
}

impl Server {
    /// Starts the farm on this machine: cache, scheduler and one worker.
    ///
    /// # Errors
    /// What is wrong with the machine or the configuration: an address that is taken, data that another farm uses, a kernel without
    /// what the sandbox needs.
    pub async fn start(config: &Config, shutdown: Shutdown) -> Result<Self> {
        let data = config.data_directory()?;
        store::make_private_directory(&data)?;
        let stack = Stack::open(&config.storage, &data).await?;
        let public = listen::bind("public", config.public.listen).await?;
        let admin = listen::bind("admin", config.admin.listen).await?;
        let farm = assemble(config, &stack, data.join("fetch"), shutdown.clone())?;
        let executable = std::env::current_exe().context(|| "find the program of this process")?;
        let directory = data.join("worker");
        let worker = Worker::start(config.worker.clone(), farm.cas.clone(), &directory, &executable).await?;
        let mut server = Self {
            public: public.local_addr().context(|| "read the public address")?,
            admin: admin.local_addr().context(|| "read the admin address")?,
            data,
            stack,
            slots: config.worker.slots(),
            parts: tasks::Group::default(),
            readiness: Readiness::default(),
            shutdown,
        };
        server.serve(&farm, public, admin).await?;
        server.work(&farm, worker);
        server.readiness.set(true);
        Ok(server)
    }

    async fn serve(&mut self, farm: &Farm, public: TcpListener, admin: TcpListener) -> Result<()> {
        let routes = rpc::client_routes(farm).await?;
        let pages =
            Pages { readiness: self.readiness.clone(), storage: Arc::new(storage(farm, &self.stack)) };
        self.parts.spawn("public listener", listen::serve(public, routes, self.shutdown.clone()));
        self.parts.spawn("admin listener", web::serve(admin, pages, self.shutdown.clone()));
        Ok(())
    }

    /// The worker speaks its own protocol even in one process, over a pipe in memory, so that there is one way to work.
    fn work(&mut self, farm: &Farm, worker: Worker) {
        let (pipe, connections) = listen::pipe();
        let routes = rpc::worker_routes(farm);
        self.parts.spawn("worker listener", listen::serve_pipe(connections, routes, self.shutdown.clone()));
        let connect: link::Connect = Arc::new(move || {
            let pipe = pipe.clone();
            Box::pin(async move { pipe.connect().await })
        });
        self.parts.spawn("worker", link::run(worker, connect, self.shutdown.clone()));
    }

    /// Waits until the farm has stopped.
    ///
    /// # Errors
    /// That of the first part that failed; the others are stopped then.
    pub async fn run(mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some((name, ended)) = self.next_end().await {
            self.readiness.set(false);
            self.shutdown.cancel();
            tracing::debug!(part = name, "stopped");
            result = result.and(ended.context(|| name));
        }
        self.stack.drain(DRAIN_MAX).await;
        result
    }

    /// The next part that ends. After the stop was asked for, the rest get [`STOP_MAX`]; what still hangs then is left behind.
    async fn next_end(&mut self) -> Option<(&'static str, Result<()>)> {
        let late = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(STOP_MAX).await;
        };
        tokio::select! {
            ended = self.parts.join_next() => ended,
            () = late => {
                tracing::warn!("some connections did not end in time");
                None
            }
        }
    }
}

fn assemble(config: &Config, stack: &Stack, fetches: PathBuf, shutdown: Shutdown) -> Result<Farm> {
    let cas = Cas::with_pins(stack.store.clone(), stack.pins.clone());
    let stored = Stored { cas: cas.clone(), index: AssetIndex::new(stack.store.clone()) };
    let action_cache = ActionCache::new(stack.store.clone(), cas.clone());
    let instances = Arc::new(Instances::new(config.instances.clone()));
    let settler = Arc::new(Settler::new(cas.clone(), action_cache.clone()));
    Ok(Farm {
        assets: Assets::new(config.asset.clone(), stored, instances.clone(), fetches)?,
        scheduler: Handle::start(config.scheduler.clone(), settler, shutdown),
        cas,
        action_cache,
        instances,
        config: Arc::new(config.execution.clone()),
        http: config.http,
        uploads: Uploads::default(),
    })
}

/// What operators see of the storage.
fn storage(farm: &Farm, stack: &Stack) -> Storage {
    let tier = |tier: &TierSummary| Tier { name: tier.name.clone(), kind: tier.kind };
    let tiers = stack.tiers.iter().map(tier).collect();
    Storage::new(tiers, farm.action_cache.clone(), scrub_pass(stack))
}

/// A pass over each disk, one after the other.
fn scrub_pass(stack: &Stack) -> Option<ScrubPass> {
    let disks = stack.disks.clone();
    if disks.is_empty() {
        return None;
    }
    Some(Arc::new(move || {
        let disks = disks.clone();
        Box::pin(async move {
            let mut reports = Vec::new();
            for (tier, disk) in disks {
                reports.push(ScrubReport { tier, found: disk.scrub(None).await? });
            }
            Ok(reports)
        })
    }))
}
