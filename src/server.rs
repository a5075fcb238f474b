//! Builds everything in order: the system on one page.

use std::mem::take;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::access::Access;
use crate::audit::Auditor;
use crate::builds::{Builds, Logs};
use crate::config::{self, Config, Role};
use crate::credential::Credential;
use crate::error::{Context, Error, Result};
use crate::listen::Listener;
use crate::rpc::{Assets, Farm, Health, Instances, Offered, Owners, Settler, Stored, Uploads};
use crate::scheduler::Handle;
use crate::store::{ActionCache, AssetIndex, Cas, Stack, TierSummary};
use crate::systemd::{self, Sockets};
use crate::tasks::{self, Shutdown};
use crate::web::{History, Pages, Readiness, ScrubPass, ScrubReport, Storage, Tier, Unready};
use crate::worker::Worker;
use crate::worker::link::{self, Connection, Link, Stop};
use crate::{listen, reload, rpc, store, tls, web};

/// How long the parts may take to stop: more than the listeners give to requests that are under way.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How long pending writes get when everything else has stopped; the rest goes on at the next start.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// How long the admin listener gets after that.
const PAGES_STOP_MAX: Duration = Duration::from_secs(1);

/// A farm, or the part of one that the roles name, that serves.
pub struct Server {
    /// Where clients connect.
    pub public: Option<SocketAddr>,
    /// Where workers of other processes connect.
    pub workers: Option<SocketAddr>,
    /// Where operators look.
    pub admin: SocketAddr,
    /// Where the data is.
    pub data: PathBuf,
    /// Where blobs and results are kept.
    pub stack: Stack,
    parts: tasks::Group,
    /// Operators can look on until everything else has stopped.
    pages: tasks::Group,
    pages_stop: Shutdown,
    readiness: Readiness,
    /// One for each listener of services.
    healths: Vec<Health>,
    stop: Stop,
    access: Arc<Access>,
}

/// The sockets, bound and not served yet.
struct Listeners {
    public: Option<Listener>,
    workers: Option<Listener>,
    admin: Listener,
}

/// What all parts share: the two faces of the store, who audits what is in it, and the book of what builds do.
struct Faces {
    cas: Cas,
    action_cache: ActionCache,
    auditor: Arc<Auditor>,
    builds: Builds,
}

impl Server {
    /// Starts what the roles name: by default all of a farm, that is cache, scheduler and one worker. A listener whose name one of
    /// `sockets` has serves that, and the others what they bind.
    ///
    /// # Errors
    /// What is wrong with the machine or the configuration: an address that is taken, data that another farm uses, a kernel without
    /// what the sandbox needs.
    pub async fn start(config: &Config, sockets: Sockets, stop: Stop) -> Result<Self> {
        let data = config.data_directory()?;
        store::make_private_directory(&data)?;
        let access = Access::new(config.access.as_ref())?;
        let stack = Stack::open(&config.storage, &data).await?;
        let listeners = Listeners::bind(config, sockets)?;
        let mut server = Self {
            public: listeners.public.as_ref().map(Listener::address).transpose()?,
            workers: listeners.workers.as_ref().map(Listener::address).transpose()?,
            admin: listeners.admin.address()?,
            data,
            stack,
            parts: tasks::Group::default(),
            pages: tasks::Group::default(),
            pages_stop: Shutdown::new(),
            readiness: Readiness::default(),
            healths: Vec::new(),
            stop,
            access,
        };
        server.begin(config, listeners).await?;
        Ok(server)
    }

    async fn begin(&mut self, config: &Config, listeners: Listeners) -> Result<()> {
        let cas = Cas::with_pins(self.stack.store.clone(), self.stack.pins.clone());
        let action_cache = ActionCache::new(self.stack.store.clone(), cas.clone());
        let auditor = Arc::new(Auditor::new(config.audit, cas.clone(), action_cache.clone()));
        let faces = Faces { cas, action_cache, auditor, builds: Builds::default() };
        let farm = match &listeners.public {
            Some(_) => Some(self.assemble(config, &faces).await?),
            None => None,
        };
        let worker = self.start_worker(config, &faces).await?;
        let scheduling = farm.as_ref().filter(|farm| farm.offered.execution);
        if let Some(farm) = scheduling {
            let auditing = Arc::clone(&faces.auditor).run(Arc::new(farm.clone()), self.stop.now.clone());
            self.parts.spawn("auditor", auditing);
        }
        let pages = Pages {
            readiness: self.readiness.clone(),
            storage: Arc::new(storage(&faces.action_cache, &self.stack).at(self.places())),
            scheduler: scheduling.map(|farm| farm.scheduler.clone()),
            auditor: scheduling.map(|_| Arc::clone(&faces.auditor)),
            cas: faces.cas.clone(),
            builds: faces.builds.clone(),
            logs: farm.as_ref().map(|farm| farm.logs.clone()).unwrap_or_default(),
            history: History::default(),
            configuration: config.to_toml()?.into(),
            public_url: config.pages.address(),
            access: Arc::clone(&self.access),
        };
        self.parts.spawn("files", reload::watch(self.stop.now.clone()));
        self.pages.spawn("admin listener", web::serve(listeners.admin, pages, self.pages_stop.clone()));
        let mut connected = None;
        if let Some(worker) = worker {
            let link = self.link(config, farm.as_ref(), worker).await?;
            // The way to a scheduler in the same process is always there.
            connected = config.worker.scheduler.as_ref().map(|_| link.connected());
            self.parts.spawn("worker", link.run());
        }
        if let (Some(farm), Some(public)) = (&farm, listeners.public) {
            let (routes, health) = rpc::client_routes(farm).await?;
            let routes = self.access.guarded(routes);
            self.healths.push(health);
            self.parts.spawn("public listener", listen::serve(public, routes, self.stop.now.clone()));
        }
        if let (Some(farm), Some(workers)) = (&farm, listeners.workers) {
            let (routes, health) = rpc::worker_routes(farm).await;
            let routes = self.access.guarded(routes);
            self.healths.push(health);
            let serving = listen::serve_workers(workers, routes, self.stop.now.clone());
            self.parts.spawn("workers' listener", serving);
        }
        self.tell_readiness(connected).await;
        self.begin_watchdog(scheduling.map(|farm| farm.scheduler.clone()));
        Ok(())
    }

    /// Where this machine's disks keep something.
    fn places(&self) -> Vec<(String, PathBuf)> {
        let data = ("data".to_owned(), self.data.clone());
        std::iter::once(data).chain(self.stack.places.iter().cloned()).collect()
    }

    async fn assemble(&mut self, config: &Config, faces: &Faces) -> Result<Farm> {
        let Faces { cas, action_cache, .. } = faces;
        let stored = Stored { cas: cas.clone(), index: AssetIndex::new(self.stack.store.clone()) };
        let instances = Arc::new(Instances::new(config.instances.clone()));
        let fetches = self.data.join("fetch");
        let offered = Offered { cache: config.has(Role::Cas), execution: config.has(Role::Scheduler) };
        let scheduler = if offered.execution {
            self.start_scheduler(config, faces).await?
        } else {
            Handle::absent(config.scheduler.clone())
        };
        let owners = Owners::restored(scheduler.claims(), scheduler.config().reconnect_within);
        Ok(Farm {
            offered,
            assets: Assets::new(config.asset.clone(), stored, instances.clone(), fetches)?,
            scheduler,
            cas: cas.clone(),
            action_cache: action_cache.clone(),
            instances,
            config: Arc::new(config.execution.clone()),
            http: config.http,
            uploads: Uploads::default(),
            logs: Logs::default(),
            builds: faces.builds.clone(),
            pages: config.pages.address(),
            owners,
            stop: self.stop.now.clone(),
        })
    }

    async fn start_scheduler(&mut self, config: &Config, faces: &Faces) -> Result<Handle> {
        let Faces { cas, action_cache, auditor, builds } = faces;
        let settler = Settler::new(cas.clone(), action_cache.clone(), Arc::clone(auditor), builds.clone());
        let settler = Arc::new(settler);
        let (journal, stop) = (self.data.join("scheduler"), self.stop.now.clone());
        let (handle, running) = Handle::resume(config.scheduler.clone(), settler, journal, stop).await?;
        self.parts.spawn("scheduler", async move {
            let ended = running.await;
            ended.unwrap_or_else(|error| Err(Error::bug("the scheduler's task is gone").with_source(error)))
        });
        Ok(handle)
    }

    async fn start_worker(&self, config: &Config, faces: &Faces) -> Result<Option<Worker>> {
        if !config.has(Role::Worker) {
            return Ok(None);
        }
        let executable = std::env::current_exe().context(|| "find the program of this process")?;
        let directory = self.data.join("worker");
        Worker::start(config.offered_worker(), faces.cas.clone(), &directory, &executable).await.map(Some)
    }

    /// The worker speaks its own protocol even in one process, over a pipe in memory, so that there is one way to work.
    async fn link(&mut self, config: &Config, farm: Option<&Farm>, worker: Worker) -> Result<Link> {
        let mut renewals = Vec::new();
        let connect: link::Connect = match (&config.worker.scheduler, farm) {
            (None, Some(farm)) => {
                let (pipe, connections) = listen::pipe();
                // Nobody asks here whether it serves.
                let (routes, _) = rpc::worker_routes(farm).await;
                let routes = self.access.guarded(routes);
                let serving = listen::serve_pipe(connections, routes, self.stop.now.clone());
                self.parts.spawn("worker's pipe", serving);
                Arc::new(move || {
                    let pipe = pipe.clone();
                    Box::pin(async move { Ok(Credential::default().over(pipe.connect().await?)) })
                })
            }
            (scheduler, _) => {
                let scheduler = scheduler.clone().expect("checked: a worker has a scheduler");
                let tls = config.worker.scheduler_tls();
                let tls = tls.map(|tls| tls::Connector::new("worker", "worker.tls", &tls, Some(b"h2")));
                let tls = tls.transpose()?;
                let credential = Credential::new("worker", "worker", config.worker.token.as_deref())?;
                renewals.extend(tls.iter().map(|tls| tls.renewals()).chain(credential.renewals()));
                Arc::new(move || {
                    let (scheduler, tls, credential) = (scheduler.clone(), tls.clone(), credential.clone());
                    Box::pin(
                        async move { Ok(credential.over(listen::connect(&scheduler, tls.as_ref()).await?)) },
                    )
                })
            }
        };
        Ok(Link::new(worker, connect, self.stop.clone()).renewed_by(renewals))
    }

    /// The service manager's watchdog hears of us while the runtime, its blocking threads and the scheduler's driver get something done.
    fn begin_watchdog(&mut self, scheduler: Option<Handle>) {
        let progress = async move || {
            // That it comes to an end is what counts; while the process stops, both may refuse.
            let _ = tasks::blocking(|| Ok(())).await;
            if let Some(scheduler) = &scheduler {
                let _ = scheduler.list(None, 0).await;
            }
        };
        // Dropped with the runtime, so the stop is watched over, too.
        tasks::spawn("watchdog", systemd::watchdog(progress, Shutdown::new()));
    }

    /// Ready until the stop is asked for; a worker whose scheduler is elsewhere, only while it is connected. The services serve on
    /// meanwhile: what a process offers to clients does not depend on the worker beside it.
    async fn tell_readiness(&mut self, connected: Option<watch::Receiver<Connection>>) {
        let (readiness, stop, healths) = (self.readiness.clone(), self.stop.clone(), take(&mut self.healths));
        for health in &healths {
            health.set(true).await;
        }
        readiness.set(Unready::Disconnected, connected.is_some());
        readiness.set(Unready::Starting, false);
        tasks::spawn("readiness", async move {
            let follow = async {
                let Some(mut connected) = connected else { return std::future::pending().await };
                loop {
                    let connection = connected.borrow_and_update().clone();
                    systemd::status(connection.as_ref().map_or_else(String::as_str, |()| "ready"));
                    readiness.explain(Unready::Disconnected, connection.err());
                    if connected.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = follow => {}
                () = stop.asked() => {}
            }
            readiness.set(Unready::Stopping, true);
            for health in &healths {
                health.set(false).await;
            }
        });
    }

    /// Waits until the farm has stopped.
    ///
    /// # Errors
    /// That of the first part that failed; the others are stopped then.
    pub async fn run(mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some((name, ended)) = self.next_end().await {
            self.stop.now.cancel();
            tracing::debug!(part = name, "stopped");
            result = result.and(ended.context(|| name));
        }
        self.stack.drain(DRAIN_MAX).await;
        self.pages_stop.cancel();
        // Whoever still reads a page then does without the rest of it.
        let _ = tokio::time::timeout(PAGES_STOP_MAX, self.pages.join_next()).await;
        result
    }

    /// The next part that ends. After the stop was asked for, the rest get [`STOP_MAX`]; what still hangs then is left behind.
    async fn next_end(&mut self) -> Option<(&'static str, Result<()>)> {
        let late = async {
            self.stop.now.cancelled().await;
            tokio::time::sleep(STOP_MAX).await;
        };
        tokio::select! {
            ended = self.parts.join_next() => ended,
            Some(ended) = self.pages.join_next() => Some(ended),
            () = late => {
                tracing::warn!("some connections did not end in time");
                None
            }
        }
    }
}

impl Listeners {
    fn bind(config: &Config, mut sockets: Sockets) -> Result<Self> {
        let mut open = |name, listener: config::Listener| {
            let opened = match sockets.take(name) {
                Some(socket) => listen::adopt(name, socket, listener.tls.as_ref()),
                None => listen::bind(name, listener.listen, listener.tls.as_ref()),
            };
            opened.map(|opened| opened.with_connections_per_address(listener.connections_per_address))
        };
        Ok(Self {
            public: config.public_listener().map(|it| open("public", it)).transpose()?,
            workers: config.worker_listener().map(|it| open("workers", it)).transpose()?,
            admin: open("admin", config.admin.clone())?,
        })
    }
}

/// What operators see of the storage.
fn storage(action_cache: &ActionCache, stack: &Stack) -> Storage {
    let tier = |tier: &TierSummary| Tier { name: tier.name.clone(), kind: tier.kind };
    let tiers = stack.tiers.iter().map(tier).collect();
    Storage::new(tiers, action_cache.clone(), scrub_pass(stack))
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
