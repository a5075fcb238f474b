//! The only place that spawns: every task and thread has a name, and a panic in one ends the process.
//!
//! A farm with a dead part looks alive and loses builds; systemd restarts a process that ended.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use tokio::sync::Semaphore;
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

/// Runs `work`, which nearly always takes microseconds but can wait for a disk: in place, because handing it to another thread
/// costs several times as much, or on the pool when half of the runtime's threads are in such work already. So a disk that hangs
/// leaves the other half to everybody else.
///
/// # Errors
/// As for [`blocking`].
pub async fn brief<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let Ok(permit) = IN_PLACE.try_acquire() else { return blocking(work).await };
    let result = work();
    drop(permit);
    result
}

/// What may run in place at once: half of the threads that a runtime has by default. With one thread nothing may.
static IN_PLACE: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(0, usize::from) / 2));

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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_hangs_leaves_threads_to_the_others() {
        let threads = std::thread::available_parallelism().unwrap().get();
        let hang = |_| {
            let (release, hung) = mpsc::channel::<()>();
            let work = brief(move || Ok(hung.recv().is_err()));
            (release, spawn("hung", work))
        };
        let (releases, works): (Vec<_>, Vec<_>) = (0..2 * threads).map(hang).unzip();
        let other = spawn("other", async {});
        tokio::time::timeout(Duration::from_secs(30), other).await.unwrap().unwrap();
        drop(releases);
        for work in works {
            assert!(work.await.unwrap().unwrap());
        }
    }
}
