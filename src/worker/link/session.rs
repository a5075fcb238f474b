//! One connection to the scheduler: says hello, takes orders, passes on what the leases say.

use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::Stop;
use super::leases::{Leases, Said};
use crate::credential::Lane;
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result, shown};
use crate::proto;
use crate::proto::worker::scheduler_message::Message as FromScheduler;
use crate::proto::worker::worker_message::Message as FromWorker;
use crate::proto::worker::workers_client::WorkersClient;
use crate::proto::worker::{
    Draining, Goodbye, Heartbeat, Hello, SchedulerMessage, Warm, Welcome, WorkerMessage,
};
use crate::worker::Worker;

/// How long a scheduler may take to take a message from a worker before the connection counts as lost.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// How long a scheduler may take to close the connection after the goodbye: so long the process stays for it.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// The shortest and the longest time between heartbeats that a worker lets a scheduler ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// Bytes of one message of the scheduler; an action has 1 MiB at most.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Messages on their way to the scheduler; more than these wait in the tasks that made them.
const OUTBOX_MESSAGES: usize = 64;

/// One connection to the scheduler.
pub(super) struct Session {
    outbox: mpsc::Sender<WorkerMessage>,
    inbox: Streaming<SchedulerMessage>,
    heartbeat: Interval,
    /// Whether the scheduler knows that the worker wants nothing new.
    is_draining: bool,
    renewals: Vec<Renewals>,
}

/// Tells when the worker has another certificate or token to show.
type Renewals = watch::Receiver<u64>;

/// How a connection ended.
pub(super) enum End {
    /// The worker has said goodbye.
    Left,
    /// It broke; the leases go on.
    Lost(Error),
    /// The worker has another certificate or token and is to connect with it; the leases go on.
    Renewed,
}

/// What a session waits for.
enum Event {
    Message(Box<FromScheduler>),
    /// A kind of message that this worker does not know: its scheduler is newer, and knows that some workers are not.
    Unknown,
    Said(Said),
    Heartbeat,
    Drain,
    Stop,
    Lost(Option<tonic::Status>),
    Renewed,
}

impl Session {
    /// Introduces the worker over `channel`, and tells what it holds. It serves until `renewals` tells of something.
    ///
    /// # Errors
    /// `Unavailable` when the scheduler does not take it.
    pub(super) async fn open(
        worker: &Worker,
        leases: &Leases,
        (channel, renewals): (Lane, Vec<Renewals>),
    ) -> Result<Self> {
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let hello = FromWorker::Hello(Hello {
            name: worker.name().to_owned(),
            slots: worker.slots(),
            properties: worker.shared.config.offers(),
            worker: worker.shared.id.clone(),
            leases: leases.held(),
        });
        // The scheduler answers the call only after it has heard from us, so this must be in the queue before.
        outbox.try_send(message(hello)).expect("the queue is empty");
        let response = WorkersClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .work(ReceiverStream::new(messages))
            .await;
        let mut inbox = response.map_err(refused)?.into_inner();
        let first = inbox.message().await.map_err(lost)?.and_then(|message| message.message);
        let Some(FromScheduler::Welcome(welcome)) = first else {
            return Err(Error::new(Kind::Unavailable, "the scheduler does not welcome the worker"));
        };
        let session = Self { outbox, inbox, heartbeat: heartbeat(&welcome), is_draining: false, renewals };
        for finished in leases.unacknowledged() {
            session.send(FromWorker::Finished(finished)).await?;
        }
        Ok(session)
    }

    /// Serves the scheduler until the connection breaks or the worker has left.
    pub(super) async fn serve(mut self, worker: &Worker, leases: &mut Leases, stop: &Stop) -> End {
        loop {
            if self.is_draining && leases.is_empty() {
                self.leave().await;
                return End::Left;
            }
            let result = match self.next(leases, stop).await {
                Event::Message(message) => self.take(*message, leases, worker).await,
                Event::Unknown => Ok(()),
                Event::Said(said) => self.pass_on(said, leases).await,
                Event::Heartbeat => self.send(FromWorker::Heartbeat(Heartbeat {})).await,
                Event::Drain => self.drain().await,
                Event::Stop => return self.finish(leases).await,
                Event::Renewed => return End::Renewed,
                Event::Lost(status) => Err(status.map_or_else(closed, refused)),
            };
            if let Err(error) = result {
                return End::Lost(error);
            }
        }
    }

    /// Only receives; every branch may be dropped without loss.
    async fn next(&mut self, leases: &mut Leases, stop: &Stop) -> Event {
        tokio::select! {
            biased;
            () = stop.now.cancelled() => Event::Stop,
            () = stop.drain.cancelled(), if !self.is_draining => Event::Drain,
            message = self.inbox.message() => match message {
                Ok(Some(SchedulerMessage { message: Some(message) })) => Event::Message(Box::new(message)),
                Ok(Some(SchedulerMessage { message: None })) => Event::Unknown,
                Ok(None) => Event::Lost(None),
                Err(status) => Event::Lost(Some(status)),
            },
            _ = self.heartbeat.tick() => Event::Heartbeat,
            said = leases.next() => Event::Said(said),
            () = renewed(&mut self.renewals) => Event::Renewed,
        }
    }

    async fn take(&mut self, message: FromScheduler, leases: &mut Leases, worker: &Worker) -> Result<()> {
        match message {
            FromScheduler::Start(start) => leases.start(start),
            FromScheduler::Kill(kill) => match leases.kill(kill.lease) {
                Some(finished) => self.send(FromWorker::Finished(finished)).await,
                None => Ok(()),
            },
            FromScheduler::Acknowledge(acknowledge) => {
                leases.acknowledge(acknowledge.lease.as_ref());
                Ok(())
            }
            FromScheduler::Warm(warm) => {
                if let Some(root) = root_of(&warm) {
                    worker.warm(root);
                }
                Ok(())
            }
            FromScheduler::Welcome(_) => {
                Err(Error::new(Kind::Unavailable, "the scheduler welcomes the worker twice"))
            }
        }
    }

    async fn pass_on(&mut self, said: Said, leases: &mut Leases) -> Result<()> {
        match said {
            Said::Report(report) => self.send(*report).await,
            Said::Ended(finished) => {
                // It is kept before anything is sent: a connection that breaks now must not take it along.
                leases.ended((*finished).clone());
                while let Some(report) = leases.waiting_report() {
                    self.send(report).await?;
                }
                self.send(FromWorker::Finished(*finished)).await
            }
        }
    }

    async fn drain(&mut self) -> Result<()> {
        self.is_draining = true;
        self.send(FromWorker::Draining(Draining { reason: "the worker is stopping".to_owned() })).await
    }

    /// Kills what runs and leaves. Of what is killed nothing is said but the goodbye, so that it counts as nobody's failure.
    async fn finish(self, leases: &mut Leases) -> End {
        let mut is_heard = true;
        for finished in leases.end().await {
            is_heard = is_heard && self.send(FromWorker::Finished(finished)).await.is_ok();
        }
        if is_heard {
            self.leave().await;
        }
        End::Left
    }

    /// Says goodbye and stays until the scheduler has heard it, for a while.
    async fn leave(self) {
        let Self { outbox, mut inbox, .. } = self;
        if outbox.try_send(message(FromWorker::Goodbye(Goodbye {}))).is_ok() {
            drop(outbox);
            let heard = async { while let Ok(Some(_)) = inbox.message().await {} };
            // If it does not hear it, it finds out by the silence.
            let _ = timeout(GOODBYE_MAX, heard).await;
        }
    }

    async fn send(&self, body: FromWorker) -> Result<()> {
        match timeout(UNREAD_MAX, self.outbox.send(message(body))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(Error::new(Kind::Timeout, "the scheduler takes no messages")),
        }
    }
}

/// Waits until there is another certificate or token; for ever where there never will be.
async fn renewed(renewals: &mut [Renewals]) {
    let changes = renewals.iter_mut().map(|renewals| {
        Box::pin(async move {
            if renewals.changed().await.is_err() {
                std::future::pending().await
            }
        })
    });
    let changes: Vec<_> = changes.collect();
    if changes.is_empty() {
        return std::future::pending().await;
    }
    select_all(changes).await;
}

fn heartbeat(welcome: &Welcome) -> Interval {
    let asked = welcome.heartbeat_interval.as_ref();
    // One that makes no sense is as short as may be.
    let asked = asked.map_or(HEARTBEAT_MAX, |asked| proto::read_duration(asked).unwrap_or_default());
    let period = asked.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The inputs that a hint is about. Of one that makes no sense nothing follows.
fn root_of(warm: &Warm) -> Option<Digest> {
    let function = Function::from_proto(warm.digest_function).ok().flatten()?;
    Digest::from_proto(function, warm.input_root_digest.as_ref()).ok()
}

fn message(message: FromWorker) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}

/// Of a scheduler that does not take the worker its operator wants to read why.
fn refused(status: tonic::Status) -> Error {
    if !matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
        return lost(status);
    }
    Error::new(Kind::Denied, format!("the scheduler refuses the worker: {}", shown(status.message())))
}

fn lost(status: tonic::Status) -> Error {
    Error::new(Kind::Unavailable, "the connection to the scheduler is lost").with_source(status)
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "the scheduler closed the connection")
}
