//! `croft` and `croft serve`: the farm on this machine.

use std::io::Write;
use std::path::Path;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::error::{Context, Result};
use crate::server::Server;
use crate::store::TierSummary;
use crate::tasks::{self, Shutdown};
use crate::telemetry;

/// Threads for work that blocks: files and hashing. More would only queue at the disk, and each is a stack.
const BLOCKING_THREADS_MAX: usize = 64;

/// Files that the farm opens at most: connections, blobs on their way, and what is mapped.
const FILES_MAX: u64 = 1 << 18;

pub(super) fn run(file: Option<&Path>) -> Result<()> {
    let config = Config::load_checked(file)?;
    telemetry::start(&config.log)?;
    allow_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context(|| "start the runtime")?;
    runtime.block_on(serve(&config))
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

async fn serve(config: &Config) -> Result<()> {
    let shutdown = Shutdown::new();
    stop_on_signals(shutdown.clone())?;
    let server = Server::start(config, shutdown).await?;
    greet(&server)?;
    server.run().await
}

/// Ctrl-C and SIGTERM stop the farm cleanly; a second one ends it at once.
fn stop_on_signals(shutdown: Shutdown) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context(|| "listen for SIGTERM")?;
    tasks::spawn("signals", async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if shutdown.is_cancelled() {
                tracing::warn!("stopping at once");
                std::process::exit(130);
            }
            tracing::info!("stopping; once more to stop at once");
            shutdown.cancel();
        }
    });
    Ok(())
}

fn greet(server: &Server) -> Result<()> {
    let Server { public, admin, data, stack, slots, .. } = server;
    let text = format!(
        "\
croft {version} is ready.

  Remote Execution API   grpc://{public}   (cache and execution, for clients on this machine)
  metrics and health     http://{admin}/metrics  /livez  /readyz
  data                   {data}
  storage                {storage}
  worker                 {slots} actions at once, sandboxed, without a network

Paste into .bazelrc, or behind `bazel build`:

  build --remote_executor=grpc://{public}
  build --jobs=64

Ctrl-C stops the farm.
",
        version = env!("CARGO_PKG_VERSION"),
        data = data.display(),
        storage = storage(&stack.tiers),
    );
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(|| "print the greeting")
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
