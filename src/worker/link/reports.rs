//! What a lease tells while it runs: how far it is, and what its command prints.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::proto::rev2::ExecutedActionMetadata;
use crate::proto::worker::output::Stream;
use crate::proto::worker::worker_message::Message as FromWorker;
use crate::proto::worker::{Lease, Output, Progress};

/// The time before the first word about how far a lease is, and between two of them. What runs a shorter time tells nothing but its
/// end: nobody could follow it, and it would cost more than it is worth.
pub(super) const PACE: Duration = Duration::from_secs(1);

/// The way for one lease to tell of itself while it runs. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    lease: Lease,
    latest: watch::Sender<Option<ExecutedActionMetadata>>,
    outgoing: mpsc::Sender<FromWorker>,
}

impl Reports {
    pub(super) fn new(lease: Lease, outgoing: mpsc::Sender<FromWorker>) -> Self {
        Self { lease, latest: watch::Sender::new(None), outgoing }
    }

    /// Says how far the attempt is: the timestamps of all that has begun and ended so far. It goes out with the next one that is due.
    pub(crate) fn progress(&self, metadata: ExecutedActionMetadata) {
        self.latest.send_replace(Some(metadata));
    }

    /// Passes on what the command has printed; `offset` is where in the stream `data` begins. Waits while much is on its way, and as
    /// long as the scheduler is not connected; dropping the future sends nothing.
    pub(crate) async fn output(&self, stream: Stream, offset: u64, data: Bytes) {
        let lease = Some(self.lease.clone());
        let output = Output { lease, stream: stream.into(), offset, data };
        // The receiver is gone only when the worker ends, and then nobody reads on.
        let _ = self.outgoing.send(FromWorker::Output(output)).await;
    }

    /// Sends what [`Reports::progress`] says, one word each `pace` at most, for as long as it is polled.
    pub(super) async fn follow(&self, pace: Duration) -> Infallible {
        let mut latest = self.latest.subscribe();
        sleep(pace).await;
        loop {
            let metadata = latest.borrow_and_update().clone();
            if metadata.is_some() {
                let progress = Progress { lease: Some(self.lease.clone()), metadata };
                let _ = self.outgoing.send(FromWorker::Progress(progress)).await;
            }
            latest.changed().await.expect("its sender is here");
            sleep(pace).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn reports() -> (Reports, mpsc::Receiver<FromWorker>) {
        let (outgoing, sent) = mpsc::channel(8);
        (Reports::new(Lease::default(), outgoing), sent)
    }

    fn named(worker: &str) -> ExecutedActionMetadata {
        ExecutedActionMetadata { worker: worker.to_owned(), ..ExecutedActionMetadata::default() }
    }

    fn progress(message: FromWorker) -> String {
        let FromWorker::Progress(progress) = message else { panic!("{message:?}") };
        progress.metadata.expect("metadata").worker
    }

    #[tokio::test]
    async fn only_the_latest_state_is_told_and_not_at_once() {
        let (reports, mut sent) = reports();
        let mut following = Box::pin(reports.follow(Duration::from_millis(20)));
        for round in ["a", "b"] {
            reports.progress(named("outdated"));
            reports.progress(named(round));
            assert!(futures_util::poll!(&mut following).is_pending());
            assert!(sent.recv().now_or_never().is_none());
            let told = tokio::select! {
                told = sent.recv() => told,
                never = &mut following => match never {},
            };
            assert_eq!(progress(told.expect("sent")), round);
        }
    }

    #[tokio::test]
    async fn what_is_printed_waits_for_room() {
        let (outgoing, mut sent) = mpsc::channel(1);
        let reports = Reports::new(Lease::default(), outgoing);
        reports.output(Stream::Stdout, 0, Bytes::from_static(b"a")).await;
        let second = reports.output(Stream::Stderr, 7, Bytes::from_static(b"b"));
        let mut second = Box::pin(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(matches!(sent.recv().await, Some(FromWorker::Output(output)) if output.offset == 0));
        second.await;
        assert!(matches!(sent.recv().await, Some(FromWorker::Output(output)) if output.offset == 7));
    }
}
