//! The machine's limit for dispatch: a bare relay that sends the same messages over the same connections and does nothing else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use croft::proto::Any;
use croft::proto::longrunning::{Operation, operation};
use croft::proto::rev2::execution_server::Execution;
use croft::proto::rev2::{ExecuteOperationMetadata, ExecuteRequest, ExecuteResponse, WaitExecutionRequest};
use croft::proto::worker::finished::Outcome;
use croft::proto::worker::scheduler_message::Message as FromScheduler;
use croft::proto::worker::worker_message::Message as FromWorker;
use croft::proto::worker::workers_server::Workers;
use croft::proto::worker::{Acknowledge, Lease, SchedulerMessage, Start, Welcome, WorkerMessage};
use croft::tasks;
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Outbox = mpsc::Sender<Result<SchedulerMessage, Status>>;

/// Hands each action to the next worker and its answer back. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Relay {
    workers: Arc<Mutex<Vec<Outbox>>>,
    waiting: Arc<Mutex<HashMap<u32, oneshot::Sender<ExecuteResponse>>>>,
    next: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Execution for Relay {
    type ExecuteStream = BoxStream<'static, Result<Operation, Status>>;
    type WaitExecutionStream = Self::ExecuteStream;

    async fn execute(
        &self,
        request: Request<ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let request = request.into_inner();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lease = u32::try_from(number).unwrap();
        let (reply, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(lease, reply);
        let start = Start {
            lease: Some(Lease { execution: vec![0; 16].into(), attempt: lease }),
            command_digest: request.action_digest.clone(),
            input_root_digest: request.action_digest.clone(),
            action_digest: request.action_digest.clone(),
            ..Start::default()
        };
        let outbox = {
            let workers = self.workers.lock().unwrap();
            workers[number % workers.len()].clone()
        };
        outbox.send(Ok(said(FromScheduler::Start(start)))).await.unwrap();
        let metadata =
            ExecuteOperationMetadata { action_digest: request.action_digest, ..Default::default() };
        let queued = Operation {
            name: format!("operations/{number:032x}"),
            metadata: Some(any(&metadata)),
            ..Operation::default()
        };
        let first = queued.clone();
        let last = async move {
            let result = Some(operation::Result::Response(any(&answer.await.unwrap())));
            Ok(Operation { done: true, result, ..queued })
        };
        Ok(Response::new(stream::iter([Ok(first)]).chain(stream::once(last)).boxed()))
    }

    async fn wait_execution(
        &self,
        _: Request<WaitExecutionRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

#[tonic::async_trait]
impl Workers for Relay {
    type WorkStream = BoxStream<'static, Result<SchedulerMessage, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let mut incoming = request.into_inner();
        let (outbox, messages) = mpsc::channel(1024);
        outbox.try_send(Ok(said(FromScheduler::Welcome(Welcome::default())))).unwrap();
        self.workers.lock().unwrap().push(outbox.clone());
        let waiting = Arc::clone(&self.waiting);
        tasks::spawn("relay", async move {
            while let Ok(Some(message)) = incoming.message().await {
                let Some(FromWorker::Finished(finished)) = message.message else { continue };
                let lease = finished.lease.unwrap();
                let reply = waiting.lock().unwrap().remove(&lease.attempt).unwrap();
                let thanks = FromScheduler::Acknowledge(Acknowledge { lease: Some(lease) });
                if let (Some(Outcome::Response(response)), Ok(())) =
                    (finished.outcome, outbox.try_send(Ok(said(thanks))))
                {
                    let _ = reply.send(response);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(messages).boxed()))
    }
}

fn said(message: FromScheduler) -> SchedulerMessage {
    SchedulerMessage { message: Some(message) }
}

fn any(message: &impl Message) -> Any {
    Any { type_url: "bench".into(), value: message.encode_to_vec() }
}
