//! `croft.worker.v1.Workers`: the scheduler's end of a worker's stream.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryFutureExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::access::{Caller, Right};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::platform::Property;
use crate::proto::worker::scheduler_message::Message as ToWorker;
use crate::proto::worker::worker_message::Message as FromWorker;
use crate::proto::worker::workers_server::Workers;
use crate::proto::{self, worker as wire};
use crate::scheduler::{
    Availability, Command, ExecutionId, Lease, Offer, Outcome, Task, WorkerId, WorkerSession,
};
use crate::tasks;

use super::owners::{self, Tenure};
use super::{Farm, Logs};

/// How long a connection may take to say who it is.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// Messages between the scheduler's outbox, which is bounded, and the connection.
const OUTBOX_MAX: usize = 64;

/// Bytes of a worker's name.
const NAME_BYTES_MAX: usize = 256;

/// The most slots of a worker: ten times what the largest machines have cores.
const SLOTS_MAX: u32 = 8192;

/// The values of properties that a worker may offer, and the bytes of one with its name.
const PROPERTIES_MAX: usize = 64;
const PROPERTY_BYTES_MAX: usize = 1024;

/// How long a worker may leave its messages unread: then it is treated as lost.
const UNREAD_MAX: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl Workers for Farm {
    type WorkStream = BoxStream<'static, Result<wire::SchedulerMessage, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<wire::WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let caller = Caller::of(request.extensions());
        caller.demand_everywhere(Right::Work)?;
        let mut incoming = request.into_inner();
        let owner = owners::account(caller.identity());
        let offer = Offer { owner, ..greet(&mut incoming).await? };
        let kept_for = self.scheduler.config().reconnect_within;
        let tenure = self.owners.begin(&caller, &offer, kept_for)?;
        let session = self.scheduler.join(offer).await?;
        let heartbeat_interval = Some(proto::duration(self.scheduler.config().heartbeat_interval));
        let welcome = wire::Welcome { heartbeat_interval };
        let (outgoing, messages) = mpsc::channel(OUTBOX_MAX);
        send(&outgoing, ToWorker::Welcome(welcome)).await?;
        let post = Post { session, tenure, logs: self.logs.clone() };
        tasks::spawn("worker session", async move {
            // What is under way when the proof ends is as when a connection breaks: the worker says it again.
            let end = tokio::select! {
                end = converse(post, incoming, &outgoing) => end,
                () = caller.expired() => Err(caller.refuse_worker("its certificate or token has expired")),
            };
            if let Err(error) = end {
                // The worker may be gone already; then nobody reads the reason.
                let _ = outgoing.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages).boxed()))
    }
}

async fn greet(incoming: &mut Streaming<wire::WorkerMessage>) -> Result<Offer> {
    let first = tokio::time::timeout(HELLO_MAX, incoming.message().map_err(broken)).await;
    let first = first.map_err(|_| Error::new(Kind::Timeout, "the worker did not say hello"))??;
    match first.and_then(|message| message.message) {
        Some(FromWorker::Hello(hello)) => offer(hello),
        Some(_) | None => Err(Error::invalid("the first message of a worker is hello")),
    }
}

fn offer(hello: wire::Hello) -> Result<Offer> {
    check(&hello)?;
    let worker = <[u8; 16]>::try_from(&hello.worker[..])
        .map_err(|_| Error::invalid("a worker's identifier is 16 bytes"))?;
    let leases = hello.leases.into_iter().map(|lease| from_wire(Some(lease))).collect::<Result<_>>()?;
    let mut properties = BTreeMap::<_, Vec<_>>::new();
    for property in hello.properties {
        properties.entry(property.name).or_default().push(property.value);
    }
    let worker = WorkerId::new(u128::from_be_bytes(worker));
    Ok(Offer { worker, name: hello.name, owner: "".into(), slots: hello.slots, properties, leases })
}

/// What a worker says of itself is kept as long as it is known, so it must not be large.
fn check(hello: &wire::Hello) -> Result<()> {
    let leases_max = wire::leases_max(hello.slots);
    let is_long =
        |property: &Property| property.name.len().saturating_add(property.value.len()) > PROPERTY_BYTES_MAX;
    let problem = if hello.name.len() > NAME_BYTES_MAX {
        format!("a worker's name has {NAME_BYTES_MAX} bytes at most")
    } else if hello.slots == 0 || hello.slots > SLOTS_MAX {
        format!("a worker has 1 to {SLOTS_MAX} slots")
    } else if hello.properties.len() > PROPERTIES_MAX {
        format!("a worker offers {PROPERTIES_MAX} values of properties at most")
    } else if hello.properties.iter().any(is_long) {
        format!("a property's name and value have {PROPERTY_BYTES_MAX} bytes at most")
    } else if hello.leases.len() > 2 * leases_max {
        // As many that run as are answered.
        format!("a worker of {} slots holds {} leases at most", hello.slots, 2 * leases_max)
    } else {
        return Ok(());
    };
    Err(Error::invalid(problem))
}

type Outgoing = mpsc::Sender<Result<wire::SchedulerMessage, Status>>;

/// One connection of a worker, with what it may speak of.
struct Post {
    session: WorkerSession,
    tenure: Tenure,
    logs: Logs,
}

/// Carries messages both ways until one end closes. Dropping the session tells the scheduler that the connection is gone.
async fn converse(
    mut post: Post,
    mut incoming: Streaming<wire::WorkerMessage>,
    outgoing: &Outgoing,
) -> Result<()> {
    loop {
        tokio::select! {
            command = post.session.next() => match command {
                Some(command) => {
                    post.keep_books(&command);
                    send(outgoing, translate(command)).await?;
                }
                None => return Err(Error::new(Kind::Unavailable, "the scheduler let the worker go")),
            },
            message = incoming.message() => match message.map_err(broken)? {
                Some(wire::WorkerMessage { message: Some(FromWorker::Goodbye(_)) }) => {
                    return post.session.leave().await;
                }
                Some(wire::WorkerMessage { message: Some(message) }) => post.apply(message).await?,
                // A kind of message that this scheduler does not know: its worker is newer.
                Some(wire::WorkerMessage { message: None }) => {}
                None => return Ok(()),
            },
        }
    }
}

async fn send(outgoing: &Outgoing, message: ToWorker) -> Result<()> {
    let message = wire::SchedulerMessage { message: Some(message) };
    match tokio::time::timeout(UNREAD_MAX, outgoing.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Error::new(Kind::Unavailable, "the worker does not take its messages")),
    }
}

fn translate(command: Command) -> ToWorker {
    match command {
        Command::Start { lease, task } => ToWorker::Start(start(lease, &task)),
        Command::Warm { task } => ToWorker::Warm(wire::Warm {
            digest_function: task.input_root.function().to_proto().into(),
            input_root_digest: Some(task.input_root.to_proto()),
        }),
        Command::Acknowledge { lease } => {
            ToWorker::Acknowledge(wire::Acknowledge { lease: Some(to_wire(lease)) })
        }
        Command::Kill { lease } => ToWorker::Kill(wire::Kill { lease: Some(to_wire(lease)) }),
    }
}

fn start(lease: Lease, task: &Task) -> wire::Start {
    wire::Start {
        lease: Some(to_wire(lease)),
        instance_name: task.instance.to_string(),
        digest_function: task.action_digest.function().to_proto().into(),
        action_digest: Some(task.action_digest.to_proto()),
        command_digest: Some(task.command.to_proto()),
        input_root_digest: Some(task.input_root.to_proto()),
        timeout: Some(proto::duration(task.timeout)),
        properties: task.platform.properties().iter().map(property).collect(),
        trace_parent: task.trace.as_ref().map(|trace| trace.as_str().to_owned()).unwrap_or_default(),
    }
}

fn property((name, value): &(String, String)) -> Property {
    Property { name: name.clone(), value: value.clone() }
}

impl Post {
    /// Notes what the worker is given, and what it need not speak of any more.
    fn keep_books(&self, command: &Command) {
        match command {
            Command::Start { lease, .. } => self.tenure.give(*lease),
            Command::Acknowledge { lease } => self.tenure.close(*lease),
            Command::Kill { .. } | Command::Warm { .. } => {}
        }
    }

    async fn apply(&self, message: FromWorker) -> Result<()> {
        let session = &self.session;
        match message {
            FromWorker::Draining(draining) => {
                session.mark(Availability::Draining { reason: draining.reason }).await
            }
            FromWorker::Output(output) => {
                let stream = output.stream();
                let lease = from_wire(output.lease)?;
                if self.tenure.holds(lease)? {
                    self.logs.append(lease, stream, (output.offset, &output.data));
                }
                Ok(())
            }
            FromWorker::Goodbye(_) => Ok(()),
            FromWorker::Hello(_) => Err(Error::invalid("a worker says hello once")),
            FromWorker::Heartbeat(_) => session.heartbeat().await,
            FromWorker::Progress(progress) => {
                let lease = from_wire(progress.lease)?;
                self.tenure.holds(lease)?;
                session.progress(lease, progress.metadata.unwrap_or_default()).await
            }
            FromWorker::Finished(finished) => {
                let lease = from_wire(finished.lease)?;
                // Of a lease that it does not hold the scheduler takes no word either, but it says that the word has come.
                if self.tenure.holds(lease)? {
                    self.logs.end(lease);
                }
                session.finished(lease, outcome(finished.outcome)).await
            }
        }
    }
}

fn outcome(outcome: Option<wire::finished::Outcome>) -> Outcome {
    match outcome {
        Some(wire::finished::Outcome::Response(response)) => Outcome::Response(Box::new(response)),
        Some(wire::finished::Outcome::Fault(fault)) => Outcome::Fault(fault),
        Some(wire::finished::Outcome::Killed(_)) => Outcome::Killed,
        None => Outcome::Fault("the worker ended the lease without an outcome".to_owned()),
    }
}

fn to_wire(lease: Lease) -> wire::Lease {
    wire::Lease { execution: lease.execution.number().to_be_bytes().to_vec().into(), attempt: lease.attempt }
}

fn from_wire(lease: Option<wire::Lease>) -> Result<Lease> {
    let lease = lease.ok_or_else(|| Error::invalid("the lease is not set"))?;
    let bytes = <[u8; 16]>::try_from(&lease.execution[..])
        .map_err(|_| Error::invalid("a lease's execution is 16 bytes"))?;
    Ok(Lease { execution: ExecutionId::new(u128::from_be_bytes(bytes)), attempt: lease.attempt })
}

fn broken(status: Status) -> Error {
    Error::new(Kind::Unavailable, "the worker's stream broke off").with_source(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> wire::Hello {
        wire::Hello { name: "w".into(), slots: 2, worker: vec![1; 16].into(), ..wire::Hello::default() }
    }

    fn lease(attempt: u32) -> wire::Lease {
        wire::Lease { execution: vec![2; 16].into(), attempt }
    }

    fn property(value: String) -> Property {
        Property { name: "gpu".into(), value }
    }

    #[test]
    fn a_hello_is_understood() {
        let properties = vec![property("a".into()), property("b".into())];
        let offer = offer(wire::Hello { properties, leases: vec![lease(3)], ..hello() }).unwrap();
        assert_eq!((offer.name.as_str(), offer.slots, offer.leases[0].attempt), ("w", 2, 3));
        assert_eq!(offer.properties["gpu"], ["a", "b"]);
    }

    #[test]
    fn a_hello_that_is_wrong_or_too_large_is_refused_with_the_limit() {
        let wrong = [
            (wire::Hello { name: "n".repeat(257), ..hello() }, "256 bytes"),
            (wire::Hello { slots: 0, ..hello() }, "1 to 8192 slots"),
            (wire::Hello { slots: u32::MAX, ..hello() }, "1 to 8192 slots"),
            (wire::Hello { properties: vec![property("x".into()); 65], ..hello() }, "64 values"),
            (wire::Hello { properties: vec![property("x".repeat(1024))], ..hello() }, "1024 bytes"),
            (wire::Hello { leases: vec![lease(1); 145], ..hello() }, "144 leases"),
            (wire::Hello { worker: vec![1; 15].into(), ..hello() }, "16 bytes"),
            (wire::Hello { leases: vec![wire::Lease::default()], ..hello() }, "16 bytes"),
        ];
        for (hello, sentence) in wrong {
            let error = offer(hello).unwrap_err();
            assert!(error.kind() == Kind::Invalid && error.to_string().contains(sentence), "{error}");
        }
    }
}
