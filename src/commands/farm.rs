//! `croft` and `croft serve`: the farm on this machine.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Listener, Role};
use crate::error::{Context, Result};
use crate::server::Server;
use crate::store::TierSummary;
use crate::systemd::{self, Sockets};
use crate::tasks;
use crate::telemetry;
use crate::trace::Export;
use crate::worker::link::Stop;

/// Threads for work that blocks: files and hashing. More would only queue at the disk, and each is a stack.
const BLOCKING_THREADS_MAX: usize = 64;

/// Files that the farm opens at most: connections, blobs on their way, and what is mapped.
const FILES_MAX: u64 = 1 << 18;

pub(super) fn run(file: Option<&Path>) -> Result<()> {
    let sockets = Sockets::take_inherited()?;
    let config = Config::load_checked(file, &sockets)?;
    allow_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context(|| "start the runtime")?;
    runtime.block_on(traced(&config, sockets))
}

/// Shells and service managers allow 1,024 files for the sake of old programs; what the process may allow itself is far more.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(FILES_MAX, |maximum| maximum.min(FILES_MAX));
    if limit.current.is_some_and(|allowed| allowed < current) {
        // Without it the farm serves fewer connections: the listener goes by what is allowed.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit });
    }
}

/// Traces are exported from before the first line of the log to after the last part has stopped.
async fn traced(config: &Config, sockets: Sockets) -> Result<()> {
    let export = Export::start(&config.trace)?;
    telemetry::start(&config.log)?;
    let served = serve(config, sockets).await;
    export.stop().await;
    served
}

async fn serve(config: &Config, sockets: Sockets) -> Result<()> {
    let stop = Stop::default();
    stop_on_signals(stop.clone(), config.drain_timeout())?;
    let server = Server::start(config, sockets, stop).await?;
    greet(config, &server)?;
    systemd::ready("ready");
    server.run().await
}

/// Ctrl-C and SIGTERM stop the process cleanly, after what runs has ended if it gets any time for that; one more stops it sooner, and
/// the last one at once.
fn stop_on_signals(stop: Stop, drain_timeout: Duration) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context(|| "listen for SIGTERM")?;
    let mut asked = async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tasks::spawn("signals", async move {
        asked().await;
        if !drain_timeout.is_zero() {
            tracing::info!("stopping when what runs has ended; once more to stop without");
            systemd::stopping("stopping when what runs has ended");
            stop.drain.cancel();
            // Whoever asks twice, or has waited for long, does not want to wait.
            let _ = tokio::time::timeout(drain_timeout, asked()).await;
        }
        tracing::info!("stopping; once more to stop at once");
        systemd::stopping("stopping");
        stop.now.cancel();
        asked().await;
        tracing::warn!("stopping at once");
        std::process::exit(130);
    });
    Ok(())
}

fn greet(config: &Config, server: &Server) -> Result<()> {
    let Server { public, workers, admin, data, stack, .. } = server;
    let mut lines = Vec::new();
    let admin_s = if config.admin.tls.is_some() { "s" } else { "" };
    if let Some(public) = public {
        lines.push((
            "Remote Execution API",
            format!("{}://{public}   ({}, {})", scheme(&config.public), offer(config), for_whom(public)),
        ));
    }
    if let Some(workers) = workers {
        lines.push((
            "for workers",
            format!(
                "{}://{workers}   (as worker.scheduler of their configuration)",
                config.worker_listener().as_ref().map_or("grpc", scheme)
            ),
        ));
    }
    lines.push(("metrics and health", format!("http{admin_s}://{admin}/metrics  /livez  /readyz")));
    lines.push(("data", data.display().to_string()));
    lines.push(("storage", storage(&stack.tiers)));
    if config.has(Role::Worker) {
        let slots = config.worker.slots();
        lines.push(("worker", format!("{slots} actions at once, sandboxed, without a network")));
    }
    if let Some(scheduler) = &config.worker.scheduler {
        lines.push(("scheduler", scheduler.clone()));
    }
    let lines: String = lines.iter().map(|(what, which)| format!("  {what:<22} {which}\n")).collect();
    let version = env!("CARGO_PKG_VERSION");
    let flags = flags(config, public.as_ref());
    let text = format!("croft {version} is ready.\n\n{lines}{flags}\nCtrl-C stops the farm.\n");
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(|| "print the greeting")
}

/// How Bazel and workers write the way to a listener.
fn scheme(listener: &Listener) -> &'static str {
    if listener.tls.is_some() { "grpcs" } else { "grpc" }
}

fn for_whom(address: &SocketAddr) -> &'static str {
    if address.ip().is_loopback() { "for clients on this machine" } else { "for clients of the network" }
}

/// What clients find at the public address.
fn offer(config: &Config) -> &'static str {
    match (config.has(Role::Cas), config.has(Role::Scheduler)) {
        (true, true) => "cache and execution",
        (true, false) => "cache",
        (false, _) => "execution",
    }
}

/// What Bazel needs to be told.
fn flags(config: &Config, public: Option<&SocketAddr>) -> String {
    let Some(public) = public else { return String::new() };
    let scheme = scheme(&config.public);
    let flags = match (config.has(Role::Cas), config.has(Role::Scheduler)) {
        (true, true) => format!("  build --remote_executor={scheme}://{public}\n  build --jobs=64\n"),
        (true, false) => format!("  build --remote_cache={scheme}://{public}\n"),
        (false, _) => format!(
            "  build --remote_executor={scheme}://{public}\n  build --remote_cache={scheme}://…   (the farm's process with the role cas)\n"
        ),
    };
    format!("\nPaste into .bazelrc, or behind `bazel build`:\n\n{flags}")
}

/// The tiers from fast to slow, as in `memory (2.0 GiB), disk (200.0 GiB), s3`.
fn storage(tiers: &[TierSummary]) -> String {
    let tier = |TierSummary { name, kind, size_bytes }: &TierSummary| {
        let called = if name.starts_with(kind) { name.clone() } else { format!("{kind} {name}") };
        match size_bytes {
            Some(size) => format!("{called} (up to {})", ByteSize(*size).display().iec()),
            None => called,
        }
    };
    tiers.iter().map(tier).collect::<Vec<_>>().join(", ")
}
