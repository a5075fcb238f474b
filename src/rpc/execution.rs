//! `Execution`: runs actions, or finds that they have run.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::Any;
use crate::proto::longrunning::{Operation, operation};
use crate::proto::rev2::execution_server::Execution;
use crate::proto::rev2::execution_stage::Value as WireStage;
use crate::proto::rev2::{
    self, Action, ActionResult, Command, ExecuteOperationMetadata, ExecuteRequest, ExecuteResponse,
    RequestMetadata, WaitExecutionRequest,
};
use crate::scheduler::{OperationId, Platform, Stage, Task, Update, Watch};
use crate::status;
use crate::store::{ActionKey, tree};

use super::inline::Hints;
use super::{Farm, names};

/// Bytes of an action: digests, a time-out, a platform and a salt. It waits in the queue and travels to the worker.
const ACTION_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a command. Arguments that a kernel takes are below 4 MiB in all.
const COMMAND_BYTES_MAX: u64 = 8 << 20;

/// How often a client hears of an operation that does not change: proxies and clients give up on silent streams.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// The header in which clients say what they build (REv2, `RequestMetadata`).
const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// The type of every operation's metadata.
const METADATA: &str = "ExecuteOperationMetadata";

type Operations = BoxStream<'static, Result<Operation, Status>>;

#[tonic::async_trait]
impl Execution for Farm {
    type ExecuteStream = Operations;
    type WaitExecutionStream = Operations;

    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<Operations>, Status> {
        let invocation = invocation(request.metadata());
        let request = request.into_inner();
        let function = self.function_of(
            &request.instance_name,
            request.digest_function,
            request.action_digest.as_ref(),
        )?;
        let digest = Digest::from_proto(function, request.action_digest.as_ref()).map_err(Error::from)?;
        let hints = Hints::of(&request);
        if !request.skip_cache_lookup {
            let key = ActionKey { instance: request.instance_name.as_str().into(), digest };
            if let Some(result) = self.action_cache.get(&key).await? {
                let operation = self.cached(&key, hints, result).await?;
                return Ok(Response::new(stream::iter([Ok(operation)]).boxed()));
            }
        }
        let task = self.task(request, digest, invocation).await?;
        let watch = self.scheduler.submit(task).await?;
        Ok(Response::new(self.clone().follow(watch, hints)))
    }

    async fn wait_execution(
        &self,
        request: Request<WaitExecutionRequest>,
    ) -> Result<Response<Operations>, Status> {
        let watch = self.watch(&request.get_ref().name).await?;
        Ok(Response::new(self.clone().follow(watch, Hints::default())))
    }
}

impl Farm {
    /// The operation of that name, if it belongs to the instance that the name says.
    pub(super) async fn watch(&self, name: &str) -> Result<Watch> {
        let (instance, id) = names::parse(name)?;
        self.instances.check(&instance)?;
        let mut watch = self.scheduler.watch(id).await?.ok_or_else(|| names::unknown(name))?;
        if *watch.current().task.instance != *instance {
            return Err(names::unknown(name));
        }
        Ok(watch)
    }

    /// What the scheduler needs to know, read from the CAS and checked.
    async fn task(&self, request: ExecuteRequest, digest: Digest, invocation: String) -> Result<Task> {
        let function = digest.function();
        check_size("action", &digest, ACTION_BYTES_MAX)?;
        let Some(action) = self.cas.message::<Action>(&digest).await? else {
            return Err(Error::missing_input(vec![digest]));
        };
        let named = |what: &str, digest: Option<&rev2::Digest>| {
            Digest::from_proto(function, digest)
                .map_err(|error| Error::invalid(format!("{what} digest: {error}")))
        };
        let command_digest = named("command", action.command_digest.as_ref())?;
        let root_digest = named("input root", action.input_root_digest.as_ref())?;
        check_size("command", &command_digest, COMMAND_BYTES_MAX)?;
        let Some(command) = self.cas.message::<Command>(&command_digest).await? else {
            return Err(self.absent_command(command_digest, &root_digest).await);
        };
        Ok(Task {
            instance: request.instance_name.into(),
            action_digest: digest,
            command: command_digest,
            input_root: root_digest,
            do_not_cache: action.do_not_cache,
            timeout: self.timeout(&action)?,
            platform: Arc::new(platform(&action, &command)),
            priority: request.execution_policy.map_or(0, |policy| policy.priority),
            invocation: invocation.into(),
            identity: "".into(),
            neighbours: Box::default(),
        })
    }

    /// The error for an absent command. It names all inputs that are absent too, so that the client uploads everything at once.
    async fn absent_command(&self, command: Digest, root: &Digest) -> Error {
        let mut missing = vec![command];
        if let Ok(walk) = tree::directories(&self.cas, root, &tree::Limits::default()).await {
            let found = walk.directories.iter();
            let files =
                found.filter_map(|(digest, directory)| tree::files(digest.function(), directory).ok());
            let files: Vec<Digest> = files.flatten().collect();
            missing.extend(walk.missing);
            missing.extend(self.cas.missing(&files).await.unwrap_or_default());
        }
        Error::missing_input(missing)
    }

    fn timeout(&self, action: &Action) -> Result<Duration> {
        let Some(timeout) = &action.timeout else { return Ok(self.config.timeout_default) };
        let seconds = u64::try_from(timeout.seconds).ok();
        let nanos = u32::try_from(timeout.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        let (Some(seconds), Some(nanos)) = (seconds, nanos) else {
            return Err(Error::invalid("the action's timeout is negative or malformed"));
        };
        let timeout = Duration::new(seconds, nanos);
        if timeout > self.config.timeout_max {
            let max = self.config.timeout_max.as_secs();
            return Err(Error::invalid(format!(
                "the action's timeout of {seconds} s is above the server's maximum of {max} s"
            )));
        }
        // Zero is how old clients say "none".
        Ok(if timeout.is_zero() { self.config.timeout_default } else { timeout })
    }

    async fn cached(&self, key: &ActionKey, hints: Hints, mut result: ActionResult) -> Result<Operation> {
        hints.apply(&self.cas, key.digest.function(), &mut result).await;
        let response = ExecuteResponse {
            result: Some(result),
            cached_result: true,
            status: Some(status::ok()),
            ..ExecuteResponse::default()
        };
        let id = OperationId::new(uuid::Uuid::new_v4().as_u128());
        let metadata = metadata(&key.digest, WireStage::Completed);
        Ok(finished(names::operation(&key.instance, id), &metadata, &response))
    }

    /// The operation as it changes, until it is done.
    fn follow(self, watch: Watch, hints: Hints) -> Operations {
        let state = Some(Following { farm: self, watch, hints, is_first: true });
        stream::unfold(state, |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(operation) if operation.done => Some((Ok(operation), None)),
                Ok(operation) => Some((Ok(operation), Some(state))),
                Err(error) => Some((Err(error.into()), None)),
            }
        })
        .boxed()
    }

    /// The operation as a message, with its result if it has one.
    pub(super) async fn operation(
        &self,
        id: OperationId,
        update: &Update,
        hints: &Hints,
    ) -> Result<Operation> {
        let task = &update.task;
        let name = names::operation(&task.instance, id);
        let mut metadata = metadata(&task.action_digest, wire_stage(update.stage));
        metadata.partial_execution_metadata = update.metadata.as_deref().cloned();
        let Some(response) = &update.response else {
            return Ok(Operation {
                name,
                metadata: Some(any(METADATA, &metadata)),
                done: false,
                result: None,
            });
        };
        let mut response = ExecuteResponse::clone(response);
        if let Some(result) = &mut response.result {
            hints.apply(&self.cas, task.action_digest.function(), result).await;
        }
        Ok(finished(name, &metadata, &response))
    }

    /// The digest function of a request, after the check of its instance name: the one that it names, else that of `example`.
    pub(super) fn function_of(
        &self,
        instance: &str,
        function: i32,
        example: Option<&rev2::Digest>,
    ) -> Result<Function> {
        self.instances.check(instance)?;
        Ok(Function::of_request(function, example)?)
    }
}

/// A client that watches an operation.
struct Following {
    farm: Farm,
    watch: Watch,
    hints: Hints,
    is_first: bool,
}

impl Following {
    async fn next(&mut self) -> Result<Operation> {
        let update = self.update().await?;
        self.farm.operation(self.watch.id(), &update, &self.hints).await
    }

    async fn update(&mut self) -> Result<Arc<Update>> {
        if std::mem::take(&mut self.is_first) {
            return Ok(self.watch.current());
        }
        match tokio::time::timeout(REPEAT_AFTER, self.watch.next()).await {
            Ok(Some(update)) => Ok(update),
            Ok(None) => Err(Error::new(Kind::Unavailable, "the farm is stopping")),
            Err(_) => Ok(self.watch.current()),
        }
    }
}

fn check_size(what: &str, digest: &Digest, max: u64) -> Result<()> {
    if digest.size() > max {
        return Err(Error::invalid(format!("{what} {digest} is larger than {max} bytes")));
    }
    Ok(())
}

fn invocation(metadata: &MetadataMap) -> String {
    let bytes = metadata.get_bin(REQUEST_METADATA).and_then(|value| value.to_bytes().ok());
    let metadata = bytes.and_then(|bytes| RequestMetadata::decode(bytes).ok());
    metadata.map(|metadata| metadata.tool_invocation_id).unwrap_or_default()
}

/// The action's platform, or for clients older than 2.2 the command's.
fn platform(action: &Action, command: &Command) -> Platform {
    #[expect(deprecated, reason = "clients older than 2.2 send it")]
    let of_command = command.platform.as_ref();
    let properties = action.platform.as_ref().or(of_command).map(|platform| platform.properties.iter());
    Platform::new(
        properties.into_iter().flatten().map(|property| (property.name.clone(), property.value.clone())),
    )
}

fn metadata(digest: &Digest, stage: WireStage) -> ExecuteOperationMetadata {
    ExecuteOperationMetadata {
        stage: stage.into(),
        action_digest: Some(digest.to_proto()),
        digest_function: digest.function().to_proto().into(),
        ..ExecuteOperationMetadata::default()
    }
}

fn wire_stage(stage: Stage) -> WireStage {
    match stage {
        Stage::Queued => WireStage::Queued,
        Stage::Executing => WireStage::Executing,
        Stage::Completed => WireStage::Completed,
    }
}

fn finished(name: String, metadata: &ExecuteOperationMetadata, response: &ExecuteResponse) -> Operation {
    let result = Some(operation::Result::Response(any("ExecuteResponse", response)));
    Operation { name, metadata: Some(any(METADATA, metadata)), done: true, result }
}

/// A message of REv2 in an envelope that names its type.
fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/build.bazel.remote.execution.v2.{name}"),
        value: message.encode_to_vec(),
    }
}
