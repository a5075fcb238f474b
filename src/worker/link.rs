//! The worker's side of its stream to the scheduler: says hello, takes leases, answers each once, reconnects.

use std::collections::HashMap;
use std::future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Worker, answer};
use crate::error::{Error, Kind, Result};
use crate::proto::worker::scheduler_message::Message as FromScheduler;
use crate::proto::worker::worker_message::Message as FromWorker;
use crate::proto::worker::workers_client::WorkersClient;
use crate::proto::worker::{
    Finished, Heartbeat, Hello, Kill, Lease, SchedulerMessage, Start, Welcome, WorkerMessage,
    finished::Outcome,
};
use crate::tasks::{self, Shutdown};

/// Makes a channel to a scheduler; called for every attempt to connect.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<Channel>> + Send + Sync>;

/// How long a scheduler may take to welcome a worker, or to take a message from it, before the connection counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause before the first attempt to connect again; it doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The shortest and the longest time between heartbeats that a worker lets a scheduler ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// Bytes of one message of the scheduler; an action has 1 MiB at most.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Messages on their way to the scheduler; more than these wait in the tasks that made them.
const OUTBOX_MESSAGES: usize = 64;

/// Keeps `worker` connected until `shutdown`; then kills what runs, tells the scheduler, cleans up and ends.
///
/// # Errors
/// None at present: a connection that cannot be made is tried again for ever.
pub async fn run(worker: Worker, connect: Connect, shutdown: Shutdown) -> Result<()> {
    let mut pause = PAUSE_MIN;
    while !shutdown.is_cancelled() {
        let begin = Instant::now();
        match Session::open(&worker, &connect, &shutdown).await {
            Ok(Some(session)) => {
                session.serve(&shutdown).await;
                // A connection that held was a good one: its loss says nothing about the next.
                if begin.elapsed() > pause {
                    pause = PAUSE_MIN;
                }
            }
            Ok(None) => break,
            Err(error) => tracing::warn!(error = error.chain(), "the worker cannot connect to its scheduler"),
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = shutdown.cancelled() => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    worker.tidy().await;
    Ok(())
}

/// Between a half and the whole of `pause`, so that workers that lost their scheduler together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 1000;
    let share = u32::try_from(random).expect("below 1000");
    pause / 2 + pause / 2 * share / 1000
}

/// One connection to the scheduler and the leases that came through it.
struct Session {
    worker: Worker,
    outbox: mpsc::Sender<WorkerMessage>,
    inbox: Streaming<SchedulerMessage>,
    heartbeat: Interval,
    /// What cancels each running lease.
    running: HashMap<Key, Shutdown>,
    ends: FuturesUnordered<JoinHandle<End>>,
}

/// A lease as a key.
type Key = (bytes::Bytes, u32);

/// The end of a lease; boxed, because a result can be large.
type End = Box<(Lease, Outcome)>;

/// What a session waits for.
enum Event {
    Message(Box<FromScheduler>),
    Ended(End),
    Heartbeat,
    Shutdown,
    Lost(Option<tonic::Status>),
}

impl Session {
    /// Connects and introduces the worker; `None` when the farm ends meanwhile.
    async fn open(worker: &Worker, connect: &Connect, shutdown: &Shutdown) -> Result<Option<Self>> {
        tokio::select! {
            session = timeout(PATIENCE, Self::greet(worker.clone(), connect)) => {
                let late = || Error::new(Kind::Timeout, "the scheduler does not answer");
                session.map_err(|_| late())?.map(Some)
            }
            () = shutdown.cancelled() => Ok(None),
        }
    }

    async fn greet(worker: Worker, connect: &Connect) -> Result<Self> {
        let channel = connect().await?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let hello = FromWorker::Hello(Hello {
            name: worker.name().to_owned(),
            slots: worker.shared.config.slots(),
            properties: worker.shared.config.offers(),
            worker: worker.shared.id.clone(),
            leases: Vec::new(),
        });
        // The scheduler answers the call only after it has heard from us, so this must be in the queue before.
        outbox.try_send(message(hello)).expect("the queue is empty");
        let response = WorkersClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .work(ReceiverStream::new(messages))
            .await;
        let mut inbox = response.map_err(lost)?.into_inner();
        let first = inbox.message().await.map_err(lost)?.and_then(|message| message.message);
        let Some(FromScheduler::Welcome(welcome)) = first else {
            return Err(Error::new(Kind::Unavailable, "the scheduler does not welcome the worker"));
        };
        tracing::info!(worker = worker.name(), "the worker is connected");
        let heartbeat = heartbeat(&welcome);
        Ok(Self { worker, outbox, inbox, heartbeat, running: HashMap::new(), ends: FuturesUnordered::new() })
    }

    /// Serves the scheduler until the connection or the farm ends. Nothing of its leases runs any more then.
    async fn serve(mut self, shutdown: &Shutdown) {
        loop {
            let result = match self.next(shutdown).await {
                Event::Message(message) => self.take(*message),
                Event::Ended(end) => self.answer(*end).await,
                Event::Heartbeat => self.send(FromWorker::Heartbeat(Heartbeat {})).await,
                Event::Shutdown => return self.finish().await,
                Event::Lost(status) => Err(status.map_or_else(closed, lost)),
            };
            if let Err(error) = result {
                tracing::warn!(error = error.chain(), "the worker lost its scheduler");
                return self.finish().await;
            }
        }
    }

    /// Only receives; every branch may be dropped without loss.
    async fn next(&mut self, shutdown: &Shutdown) -> Event {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            end = next_end(&mut self.ends) => Event::Ended(end),
            message = self.inbox.message() => match message {
                Ok(Some(SchedulerMessage { message: Some(message) })) => Event::Message(Box::new(message)),
                Ok(Some(SchedulerMessage { message: None })) => Event::Lost(Some(tonic::Status::internal("an empty message"))),
                Ok(None) => Event::Lost(None),
                Err(status) => Event::Lost(Some(status)),
            },
            _ = self.heartbeat.tick() => Event::Heartbeat,
        }
    }

    fn take(&mut self, message: FromScheduler) -> Result<()> {
        match message {
            FromScheduler::Start(start) => self.start(start),
            FromScheduler::Kill(Kill { lease }) => {
                // A lease that is not known has been answered already; the answer and this message crossed.
                if let Some(kill) = self.running.get(&key(&lease.unwrap_or_default())) {
                    kill.cancel();
                }
                Ok(())
            }
            FromScheduler::Acknowledge(_) => Ok(()),
            FromScheduler::Welcome(_) => {
                Err(Error::new(Kind::Unavailable, "the scheduler welcomes the worker twice"))
            }
        }
    }

    fn start(&mut self, start: Start) -> Result<()> {
        let lease = start.lease.clone().unwrap_or_default();
        let kill = Shutdown::new();
        if self.running.insert(key(&lease), kill.clone()).is_some() {
            return Err(Error::new(Kind::Unavailable, "the scheduler starts a lease twice"));
        }
        let worker = self.worker.clone();
        self.ends.push(tasks::spawn("run a lease", async move {
            Box::new((lease, worker.run(start, kill).await))
        }));
        Ok(())
    }

    async fn answer(&mut self, (lease, outcome): (Lease, Outcome)) -> Result<()> {
        self.running.remove(&key(&lease));
        let outcome = answer::fitting(outcome);
        self.send(FromWorker::Finished(Finished { lease: Some(lease), outcome: Some(outcome) })).await
    }

    async fn send(&self, body: FromWorker) -> Result<()> {
        match timeout(PATIENCE, self.outbox.send(message(body))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(Error::new(Kind::Timeout, "the scheduler takes no messages")),
        }
    }

    /// Kills what runs, and tells the scheduler if it still listens.
    async fn finish(mut self) {
        self.running.values().for_each(Shutdown::cancel);
        let mut is_heard = true;
        while let Some(ended) = self.ends.next().await {
            if let (Ok(end), true) = (ended, is_heard) {
                is_heard = self.answer(*end).await.is_ok();
            }
        }
    }
}

/// The next lease that ends; waits for ever while none runs.
async fn next_end(ends: &mut FuturesUnordered<JoinHandle<End>>) -> End {
    match ends.next().await {
        Some(Ok(end)) => end,
        // A task is cancelled only when the runtime ends, and this one with it.
        Some(Err(_)) | None => future::pending().await,
    }
}

fn heartbeat(welcome: &Welcome) -> Interval {
    let asked = welcome.heartbeat_interval.as_ref();
    let asked = asked.map_or(HEARTBEAT_MAX, |asked| {
        let seconds = u64::try_from(asked.seconds).unwrap_or(0);
        Duration::new(seconds, u32::try_from(asked.nanos).unwrap_or(0).min(999_999_999))
    });
    let period = asked.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn key(lease: &Lease) -> Key {
    (lease.execution.clone(), lease.attempt)
}

fn message(message: FromWorker) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}

fn lost(status: tonic::Status) -> Error {
    Error::new(Kind::Unavailable, "the connection to the scheduler is lost").with_source(status)
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "the scheduler closed the connection")
}
