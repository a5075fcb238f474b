//! The only place that spawns: every task and thread has a name, and a panic in one ends the process.
//!
//! A farm with a dead part looks alive and loses builds; systemd restarts a process that ended.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};

/// Told to all parts when the process is to end; every loop that waits also waits for it.
pub use tokio_util::sync::CancellationToken as Shutdown;

/// The exit code after a panic: EX_SOFTWARE of sysexits.h.
const EXIT_PANIC: i32 = 70;

/// Runs `future` as a task of its own.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(async move {
        match AssertUnwindSafe(future).catch_unwind().await {
            Ok(output) => output,
            Err(_) => {
                tracing::error!(task = name, "a task panicked; the process ends");
                std::process::exit(EXIT_PANIC);
            }
        }
    })
}

/// Runs `work` on a thread of its own: for what blocks as long as the process lives.
pub fn thread<F>(name: &'static str, work: F) -> std::io::Result<std::thread::JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!(thread = name, "a thread panicked; the process ends");
            std::process::exit(EXIT_PANIC);
        }
    })
}

/// Runs `work`, which blocks, on the pool of blocking threads (bounded by the runtime). It starts at once, before the future is
/// polled, and goes on when the future is dropped.
///
/// # Errors
/// What `work` returns; `Cancelled` if the runtime is ending.
pub fn blocking<T, F>(work: F) -> Blocking<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    Blocking { task: tokio::task::spawn_blocking(work) }
}

/// Work that runs on a blocking thread.
#[derive(Debug)]
pub struct Blocking<T> {
    task: JoinHandle<Result<T>>,
}

impl<T> Blocking<T> {
    /// Whether waiting for it would not wait.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl<T> Future for Blocking<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        Pin::new(&mut self.task).poll(context).map(|ended| match ended {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => {
                Err(Error::new(crate::error::Kind::Cancelled, "the farm is stopping").with_source(error))
            }
        })
    }
}

/// The long-running parts of a process: when one ends, its name and result are told.
#[derive(Debug, Default)]
pub struct Group {
    tasks: tokio::task::JoinSet<(&'static str, Result<()>)>,
}

impl Group {
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, part.await) });
    }

    /// The next part that ends, or `None` when all have.
    pub async fn join_next(&mut self) -> Option<(&'static str, Result<()>)> {
        match self.tasks.join_next().await? {
            Ok(ended) => Some(ended),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }
}
