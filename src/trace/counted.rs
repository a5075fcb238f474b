//! How many spans wait to be sent, are sent, and are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};

use crate::metrics::{Counter, TRACE_SPANS};

/// The spans between their end and the collector.
#[derive(Debug)]
pub(super) struct Waiting {
    count: AtomicUsize,
    most: usize,
    lost: Counter,
    is_full: AtomicBool,
}

impl Waiting {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let lost = TRACE_SPANS.with_label_values(&["lost"]);
        Arc::new(Self { count: AtomicUsize::new(0), most, lost, is_full: AtomicBool::new(false) })
    }

    /// Whether there is room for one more.
    fn enter(&self) -> bool {
        let take = |count: usize| (count < self.most).then_some(count + 1);
        let has_room = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if !has_room {
            self.lost.inc();
            if !self.is_full.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    waiting = self.most,
                    "spans come faster than they are taken; the newest are lost"
                );
            }
        }
        has_room
    }

    /// It is told once more that there is no room only when there has been plenty meanwhile.
    fn leave(&self, spans: usize) {
        let before = self.count.fetch_sub(spans, Ordering::Relaxed);
        if before - spans < self.most / 2 {
            self.is_full.store(false, Ordering::Relaxed);
        }
    }
}

/// Hands on as many spans as may wait; what is beyond is counted as lost, which the SDK's own queue would lose without a word.
#[derive(Debug)]
pub(super) struct Bounded<P> {
    pub(super) batched: P,
    pub(super) waiting: Arc<Waiting>,
}

impl<P: SpanProcessor> SpanProcessor for Bounded<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batched.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.enter() {
            self.batched.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batched.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batched.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batched.set_resource(resource);
    }
}

/// A batch on its way. It is lost when the SDK waits no longer and drops it.
struct Leaving<'a> {
    waiting: &'a Waiting,
    spans: usize,
    are_lost: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.waiting.leave(self.spans);
        if self.are_lost {
            self.waiting.lost.inc_by(self.spans as u64);
        }
    }
}

/// Counts what is sent and what is not, and tells the log when that begins and ends.
#[derive(Debug)]
pub(super) struct Counted<E> {
    inner: E,
    waiting: Arc<Waiting>,
    sent: Counter,
    is_failing: AtomicBool,
}

impl<E> Counted<E> {
    pub(super) fn new(inner: E, waiting: Arc<Waiting>) -> Self {
        let sent = TRACE_SPANS.with_label_values(&["sent"]);
        Self { inner, waiting, sent, is_failing: AtomicBool::new(false) }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut leaving = Leaving { waiting: &self.waiting, spans: batch.len(), are_lost: true };
        let result = self.inner.export(batch).await;
        match &result {
            Ok(()) => {
                leaving.are_lost = false;
                self.sent.inc_by(leaving.spans as u64);
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("traces are taken again");
                }
            }
            Err(error) => {
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "traces are not taken; they are lost until they are");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
