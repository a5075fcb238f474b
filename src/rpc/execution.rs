//! `Execution`: runs actions, or finds that they have run.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::access::{Demand, Right};
use crate::builds::{Asked, Lookup};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::longrunning::{Operation, operation};
use crate::proto::rev2::execution_server::Execution;
use crate::proto::rev2::execution_stage::Value as WireStage;
use crate::proto::rev2::{
    self, Action, ActionResult, Command, Directory, ExecuteOperationMetadata, ExecuteRequest,
    ExecuteResponse, ExecutedActionMetadata, RequestMetadata, WaitExecutionRequest,
};
use crate::proto::worker::output::Stream;
use crate::proto::{Any, read_duration, timestamp};
use crate::scheduler::{NEIGHBOURS_MAX, OperationId, Platform, Stage, Task, Update, Watch};
use crate::status;
use crate::store::{ActionKey, tree};
use crate::trace::Carried;

use super::inline::Hints;
use super::{Farm, logs, lookups, names};

/// Bytes of an action: digests, a time-out, a platform and a salt. It waits in the queue and travels to the worker.
const ACTION_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a command. Arguments that a kernel takes are below 4 MiB in all.
const COMMAND_BYTES_MAX: u64 = 8 << 20;

/// Bytes of an input root whose directories are looked at when a worker is chosen.
const ROOT_BYTES_MAX: u64 = 64 << 10;

/// How often a client hears of an operation that does not change: proxies and clients give up on silent streams.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// The type of every operation's metadata.
const METADATA: &str = "ExecuteOperationMetadata";

type Operations = BoxStream<'static, Result<Operation, Status>>;

#[tonic::async_trait]
impl Execution for Farm {
    type ExecuteStream = Operations;
    type WaitExecutionStream = Operations;

    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<Operations>, Status> {
        let demand = Demand::of(request.extensions(), Right::Execute);
        let client = lookups::request_metadata(request.metadata());
        let identity = demand.caller.account();
        let request = request.into_inner();
        let named = (request.digest_function, request.action_digest.as_ref());
        let function = self.function_of(&demand, &request.instance_name, named)?;
        let digest = Digest::from_proto(function, request.action_digest.as_ref()).map_err(Error::from)?;
        let hints = Hints::of(&request);
        check_size("action", &digest, ACTION_BYTES_MAX)?;
        let key = ActionKey { instance: request.instance_name.as_str().into(), digest };
        // Nearly all that is not asked of the action cache itself misses, so the action is read meanwhile.
        let (result, action) = tokio::join!(self.lookup(&key, &request), self.cas.message::<Action>(&digest));
        if !request.skip_cache_lookup {
            lookups::count(lookups::Method::Execute, &client.action_mnemonic, &result);
        }
        if let Some(result) = result? {
            let id = OperationId::new(uuid::Uuid::new_v4().as_u128());
            let operation = self.cached((&key, id), hints, result).await?;
            let asked = asked((&key, id), &identity, &client);
            self.builds.begin(&asked, Lookup::Hit);
            return Ok(Response::new(stream::iter([Ok(operation)]).boxed()));
        }
        let action = action?.ok_or_else(|| Error::missing_input(vec![digest]))?;
        let priority = request.execution_policy.map_or(0, |policy| policy.priority);
        let asker = Asker { invocation: client.tool_invocation_id.clone(), identity: identity.clone() };
        let task = self.task(key.clone(), &action, (asker, priority)).await?;
        let watch = self.scheduler.submit(task).await?;
        let asked = asked((&key, watch.id()), &identity, &client);
        self.builds.begin(&asked, missed(request.skip_cache_lookup, &action));
        Ok(Response::new(self.clone().follow(watch, hints)))
    }

    async fn wait_execution(
        &self,
        request: Request<WaitExecutionRequest>,
    ) -> Result<Response<Operations>, Status> {
        let demand = Demand::of(request.extensions(), Right::Execute);
        let watch = self.watch(&demand, &request.get_ref().name).await?;
        Ok(Response::new(self.clone().follow(watch, Hints::default())))
    }
}

impl Farm {
    /// The operation of that name, if it belongs to the instance that the name says and the caller has a right there.
    pub(super) async fn watch(&self, demand: &Demand, name: &str) -> Result<Watch> {
        let (instance, id) = names::parse(name)?;
        self.instances.admit(demand, &instance)?;
        let mut watch = self.scheduler.watch(id).await?.ok_or_else(|| names::unknown(name))?;
        if *watch.current().task.instance != *instance {
            return Err(names::unknown(name));
        }
        Ok(watch)
    }

    async fn lookup(&self, key: &ActionKey, request: &ExecuteRequest) -> Result<Option<ActionResult>> {
        if request.skip_cache_lookup { Ok(None) } else { self.action_cache.get(key).await }
    }

    /// What the scheduler needs to know, read from the CAS and checked.
    pub(super) async fn task(
        &self,
        key: ActionKey,
        action: &Action,
        (asker, priority): (Asker, i32),
    ) -> Result<Task> {
        let named = |what: &str, digest: Option<&rev2::Digest>| {
            Digest::from_proto(key.digest.function(), digest)
                .map_err(|error| Error::invalid(format!("{what} digest: {error}")))
        };
        let command_digest = named("command", action.command_digest.as_ref())?;
        let root_digest = named("input root", action.input_root_digest.as_ref())?;
        check_size("command", &command_digest, COMMAND_BYTES_MAX)?;
        let (command, neighbours) =
            tokio::join!(self.cas.message::<Command>(&command_digest), self.neighbours(&root_digest));
        let Some(command) = command? else {
            return Err(self.absent_command(command_digest, &root_digest).await);
        };
        Ok(Task {
            instance: key.instance,
            action_digest: key.digest,
            command: command_digest,
            input_root: root_digest,
            do_not_cache: action.do_not_cache,
            timeout: self.timeout(action)?,
            platform: Arc::new(platform(action, &command)),
            priority,
            invocation: asker.invocation.into(),
            identity: asker.identity.into(),
            neighbours,
            trace: Carried::current(),
        })
    }

    /// The trees by which a worker is preferred that had them: the input root and the directories at its top.
    ///
    /// It is only a hint, so a root that is large, absent or broken counts by its digest alone.
    async fn neighbours(&self, root: &Digest) -> Box<[u64]> {
        let directory = match root.size() {
            0..=ROOT_BYTES_MAX => self.cas.message::<Directory>(root).await.ok().flatten(),
            _ => None,
        };
        let below = directory.map(|directory| directory.directories).unwrap_or_default();
        let below =
            below.iter().filter_map(|node| Digest::from_proto(root.function(), node.digest.as_ref()).ok());
        std::iter::once(*root).chain(below).take(NEIGHBOURS_MAX).map(|digest| short(&digest)).collect()
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
        let timeout = read_duration(timeout)
            .ok_or_else(|| Error::invalid("the action's timeout is negative or malformed"))?;
        if timeout > self.config.timeout_max {
            let (seconds, max) = (timeout.as_secs(), self.config.timeout_max.as_secs());
            return Err(Error::invalid(format!(
                "the action's timeout of {seconds} s is above the server's maximum of {max} s"
            )));
        }
        // Zero is how old clients say "none".
        Ok(if timeout.is_zero() { self.config.timeout_default } else { timeout })
    }

    async fn cached(
        &self,
        (key, id): (&ActionKey, OperationId),
        hints: Hints,
        mut result: ActionResult,
    ) -> Result<Operation> {
        hints.apply(&self.cas, key.digest.function(), &mut result).await;
        let response = ExecuteResponse {
            result: Some(result),
            cached_result: true,
            status: Some(status::ok()),
            ..ExecuteResponse::default()
        };
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
        metadata.partial_execution_metadata = partial(update);
        if update.stage == Stage::Executing {
            metadata.stdout_stream_name = logs::name(&name, Stream::Stdout);
            metadata.stderr_stream_name = logs::name(&name, Stream::Stderr);
        }
        let Some(response) = &update.response else {
            return Ok(Operation {
                name,
                metadata: Some(any(METADATA, &metadata)),
                done: false,
                result: None,
            });
        };
        // A result may be large, and one that is passed on as it is need not be copied.
        if hints.are_none() && self.pages.is_none() {
            return Ok(finished(name, &metadata, response));
        }
        let mut response = ExecuteResponse::clone(response);
        self.link(id, &mut response.message);
        if let Some(result) = &mut response.result {
            hints.apply(&self.cas, task.action_digest.function(), result).await;
        }
        Ok(finished(name, &metadata, &response))
    }

    /// Tells people where to read more of an operation, after what there is to say of it. Bazel prints it with what failed, and with
    /// everything if it is asked to (`--remote_print_execution_messages`).
    fn link(&self, id: OperationId, message: &mut String) {
        let Some(pages) = &self.pages else { return };
        let separator = if message.is_empty() { "" } else { "\n" };
        *message += &format!("{separator}{pages}/operations/{id}");
    }

    /// The digest function of a request, after the check of its caller and its instance: the one that it names, else that of `example`.
    pub(super) fn function_of(
        &self,
        demand: &Demand,
        instance: &str,
        (function, example): (i32, Option<&rev2::Digest>),
    ) -> Result<Function> {
        self.instances.admit(demand, instance)?;
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
        changed(&mut self.watch, REPEAT_AFTER).await
    }
}

/// The next state of an operation, or the present one again when it lasts.
async fn changed(watch: &mut Watch, repeat_after: Duration) -> Result<Arc<Update>> {
    match tokio::time::timeout(repeat_after, watch.next()).await {
        Ok(Some(update)) => Ok(update),
        Ok(None) => Err(Error::new(Kind::Unavailable, "the farm is stopping")),
        Err(_) => Ok(watch.current()),
    }
}

fn asked<'a>(
    (key, operation): (&'a ActionKey, OperationId),
    identity: &'a str,
    client: &'a RequestMetadata,
) -> Asked<'a> {
    Asked { operation, instance: &key.instance, action: key.digest, identity, client }
}

/// Why the action cache did not answer a request.
fn missed(skips_lookup: bool, action: &Action) -> Lookup {
    if action.do_not_cache {
        return Lookup::Uncacheable;
    }
    if skips_lookup { Lookup::Skipped } else { Lookup::Absent }
}

/// Who asks for an execution.
pub(super) struct Asker {
    pub(super) invocation: String,
    /// Whose requests are counted together, as [`crate::access::Caller::account`] has it.
    pub(super) identity: String,
}

fn check_size(what: &str, digest: &Digest, max: u64) -> Result<()> {
    if digest.size() > max {
        return Err(Error::invalid(format!("{what} {digest} is larger than {max} bytes")));
    }
    Ok(())
}

/// Enough of a digest to tell trees apart when nothing but speed depends on it.
fn short(digest: &Digest) -> u64 {
    let first = digest.hash().first_chunk().expect("no function has fewer than 8 bytes");
    u64::from_be_bytes(*first)
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

/// What is known of an execution that has not ended: of the attempt that runs, and when it was queued in any case.
fn partial(update: &Update) -> Option<ExecutedActionMetadata> {
    if update.response.is_some() {
        return None;
    }
    Some(update.metadata.as_deref().cloned().unwrap_or_else(|| ExecutedActionMetadata {
        queued_timestamp: Some(timestamp(update.queued_at)),
        ..ExecutedActionMetadata::default()
    }))
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::scheduler::{Config, Handle, Settle};
    use crate::tasks::Shutdown;

    struct Unsettled;

    #[async_trait]
    impl Settle for Unsettled {
        async fn settle(&self, _: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
            Ok(response)
        }
    }

    fn task() -> Task {
        Task { instance: "".into(), ..Task::example("action") }
    }

    #[tokio::test]
    async fn a_client_whose_operation_waits_hears_of_it_again_and_of_its_end_at_once() {
        let shutdown = Shutdown::new();
        let handle = Handle::start(Config::default(), Arc::new(Unsettled), shutdown.clone());
        let mut watch = handle.submit(task()).await.unwrap();
        assert_eq!(watch.current().stage, Stage::Queued);
        for _ in 0..3 {
            let update = changed(&mut watch, Duration::from_millis(5)).await.unwrap();
            assert_eq!(update.stage, Stage::Queued);
        }
        handle.cancel(watch.id()).await.unwrap();
        assert_eq!(changed(&mut watch, Duration::MAX).await.unwrap().stage, Stage::Completed);
        shutdown.cancel();
        assert_eq!(changed(&mut watch, Duration::MAX).await.unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn trees_are_told_apart_by_their_digests() {
        let digest = Function::Sha256.hash(b"a");
        assert_eq!(short(&digest), short(&digest));
        assert_ne!(short(&digest), short(&Function::Sha256.hash(b"b")));
    }
}
