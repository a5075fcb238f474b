//! Whether a remote part is worth a call. After a failure no call waits for it again until a probe in the background has
//! found that it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::tasks;

/// The pause before the first probe; it doubles up to the longest, within which a part that is back is used again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is known of a remote part, shared by all calls of this process.
#[derive(Debug, Default)]
pub(super) struct Health {
    is_down: AtomicBool,
}

impl Health {
    pub(super) fn is_up(&self) -> bool {
        !self.is_down.load(Ordering::Relaxed)
    }

    /// The part did not answer. Of many calls that find that out only the first starts to probe; the probes end when one of them
    /// finds the part, or when nobody else holds this any more.
    pub(super) fn failed<Answered>(self: &Arc<Self>, probe: impl Fn() -> Answered + Send + Sync + 'static)
    where
        Answered: Future<Output = bool> + Send,
    {
        if self.is_down.swap(true, Ordering::Relaxed) {
            return;
        }
        let health = Arc::downgrade(self);
        tasks::spawn("probe a remote store", async move {
            let mut pause = PAUSE_MIN;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
                if health.strong_count() == 0 {
                    return;
                }
                let is_back = probe().await;
                let Some(health) = health.upgrade() else { return };
                if is_back {
                    health.is_down.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    use super::*;

    /// Far more than the pauses take on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn wait_until(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_part_that_failed_is_down_until_one_probe_finds_it() {
        let (health, probes) = (Arc::new(Health::default()), Arc::new(AtomicUsize::new(0)));
        for outage in 1..=2 {
            assert!(health.is_up());
            for _ in 0..20 {
                let probes = Arc::clone(&probes);
                health.failed(move || {
                    let count = probes.fetch_add(1, Ordering::SeqCst) + 1;
                    async move { count.is_multiple_of(2) }
                });
            }
            assert!(!health.is_up());
            wait_until(|| health.is_up()).await;
            assert_eq!(probes.load(Ordering::SeqCst), 2 * outage);
        }
    }

    #[tokio::test]
    async fn nobody_is_probed_for_a_store_that_is_gone() {
        let (health, held) = (Arc::new(Health::default()), Arc::new(()));
        let holder = Arc::clone(&held);
        health.failed(move || {
            let _ = &holder;
            std::future::ready(false)
        });
        drop(health);
        wait_until(|| Arc::strong_count(&held) == 1).await;
    }
}
