//! The service manager, where there is one: what it is told, by the protocol of `Type=notify-reload` and of the watchdog (sd_notify),
//! and the sockets that it hands over.

use std::time::Duration;

use sd_notify::{NotifyState, notify};
use tokio::time::timeout;

use crate::tasks::Shutdown;

mod sockets;

pub use sockets::Sockets;

/// Pings within the time after which the service manager takes the process for dead: one may be late.
const PINGS_PER_TIMEOUT: u32 = 3;

/// What serves is up. `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows from now on.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// SIGHUP has come, and the files are looked at. [`reloaded`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager is not told of a reload"),
    }
}

/// The files have been looked at.
pub fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// The process is about to end.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Pings the watchdog, if the service manager has set one, as long as `progress` comes to its end in time; until `shutdown`. A ping says
/// more than that a task runs: so the service manager ends a process that looks alive and does nothing.
pub async fn watchdog(progress: impl AsyncFn(), shutdown: Shutdown) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let ping = || tell(&[NotifyState::Watchdog]);
    tokio::select! {
        () = ping_while(patience, progress, ping) => {}
        () = shutdown.cancelled() => {}
    }
}

async fn ping_while(patience: Duration, progress: impl AsyncFn(), ping: impl Fn()) {
    let pause = patience / PINGS_PER_TIMEOUT;
    loop {
        match timeout(patience, progress()).await {
            Ok(()) => ping(),
            Err(_) => tracing::error!("a part of the process makes no progress; the watchdog is not pinged"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Without a service manager there is nobody to tell, which is no error; and one that does not listen is none of ours.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Runs until there were five looks at the progress, and gives the number of pings until then.
    async fn pings(makes_progress: bool) -> u32 {
        let (looks, pings) = (AtomicU32::new(0), AtomicU32::new(0));
        let (enough, mut is_enough) = tokio::sync::watch::channel(false);
        let progress = async || {
            if looks.fetch_add(1, Ordering::Relaxed) == 5 {
                enough.send_replace(true);
            }
            if !makes_progress {
                std::future::pending().await
            }
        };
        let ping = || {
            pings.fetch_add(1, Ordering::Relaxed);
        };
        tokio::select! {
            () = ping_while(Duration::from_millis(2), progress, ping) => {}
            looked = is_enough.wait_for(|is_enough| *is_enough) => drop(looked.unwrap()),
        }
        pings.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn the_watchdog_is_pinged_only_while_there_is_progress() {
        assert!(pings(true).await >= 5);
        assert_eq!(pings(false).await, 0);
    }
}
