//! One lease from its start to its end: inputs, command, outputs, and the time of each step.

use std::future::Future;
use std::io::Write;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::Worker;
use super::answer;
use super::command::{Command, digest};
use super::directory::Directory;
use super::inputs::Staged;
use super::link::Reports;
use super::outcome::{self, Facts};
use super::outputs;
use super::persistent::{Asking, Fate, Service};
use super::quota::{self, Quota};
use super::sandbox::{End, Exit, Limits, Running, Scratch, Spec};
use crate::digest::{Digest, Function};
use crate::error::{Context, Error, Kind, Result};
use crate::proto::rev2::platform::Property;
use crate::proto::rev2::{ActionResult, ExecutedActionMetadata};
use crate::proto::worker::finished::Outcome;
use crate::proto::worker::{Lease, Start};
use crate::proto::{self, Timestamp};
use crate::tasks::{self, Shutdown};
use crate::trace;

/// How long fetching and staging the inputs may take: a store that does not answer must not hold a slot for ever.
const INPUTS_MAX: Duration = Duration::from_secs(30 * 60);
/// How long hashing and uploading the outputs may take.
const OUTPUTS_MAX: Duration = Duration::from_secs(30 * 60);
/// How long killed processes may take to go: only ones that hang in the kernel take longer than milliseconds.
const KILL_MAX: Duration = Duration::from_secs(30);
/// How long making the sandbox may take on top of the command's own time.
const SANDBOX_MAX: Duration = Duration::from_secs(60);

/// One attempt at one action.
pub(super) struct Attempt {
    worker: Worker,
    /// Cancelled when the scheduler or the farm wants this lease to end.
    kill: Shutdown,
    reports: Reports,
    metadata: ExecutedActionMetadata,
}

/// A command that has ended and what it left.
struct Ended {
    why: Why,
    exit: Exit,
    /// By the clock that the timeout goes by.
    elapsed: Duration,
    /// Whether `exit` says what it has used: a tool that stays running has used much for other actions, too.
    is_measured: bool,
}

/// Why a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Itself,
    Timeout,
    /// It wrote more to the disk than it may.
    Quota,
    Killed,
}

/// The parts of a `Start` that matter here, checked.
struct Job {
    function: Function,
    command: Digest,
    input_root: Digest,
    timeout: Duration,
    root: usize,
    limits: Limits,
    instance: String,
    properties: Vec<Property>,
}

/// The name of the directory of this lease: unique, because a lease is.
pub(super) fn directory_name(lease: &Lease) -> String {
    format!("{}-{}", hex::encode(&lease.execution), lease.attempt)
}

impl Attempt {
    pub(super) fn new(worker: Worker, kill: Shutdown, reports: Reports) -> Self {
        let metadata = ExecutedActionMetadata {
            worker: worker.name().to_owned(),
            worker_start_timestamp: Some(timestamp()),
            ..ExecutedActionMetadata::default()
        };
        Self { worker, kill, reports, metadata }
    }

    /// Runs `start` and answers how it ended. Nothing of the action runs any more then; its directory is deleted soon after.
    pub(super) async fn run(mut self, start: Start) -> Outcome {
        let lease = start.lease.clone().unwrap_or_default();
        let counted = match self.worker.make_directory(directory_name(&lease)).await {
            Ok(counted) => counted,
            Err(error) => return answer::of_error(&error),
        };
        let outcome = match self.execute(start, &counted.directory).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == Kind::Cancelled => Outcome::Killed(true),
            Err(error) => answer::of_error(&error),
        };
        self.worker.discard(counted);
        outcome
    }

    async fn execute(&mut self, start: Start, directory: &Directory) -> Result<Outcome> {
        let job = Job::check(&start, &self.worker)?;
        self.metadata.input_fetch_start_timestamp = Some(timestamp());
        self.reports.progress(self.metadata.clone());
        // Held to the end: outputs that are inputs, too, are read from these layers.
        let (command, layers, staged) = self
            .bounded(
                "fetching the inputs",
                INPUTS_MAX,
                self.stage(&job, directory).instrument(trace::part("inputs")),
            )
            .await?;
        self.metadata.input_fetch_completed_timestamp = Some(timestamp());

        self.metadata.execution_start_timestamp = Some(timestamp());
        self.reports.progress(self.metadata.clone());
        let running = self.run_somehow(&command, &job, (directory, layers, &staged));
        let ended = running.instrument(trace::part("command")).await?;
        self.metadata.execution_completed_timestamp = Some(timestamp());
        self.note_usage(&ended);

        self.metadata.output_upload_start_timestamp = Some(timestamp());
        self.reports.progress(self.metadata.clone());
        let outcome = self
            .bounded(
                "uploading the outputs",
                OUTPUTS_MAX,
                self.answer(&job, command, ended).instrument(trace::part("outputs")),
            )
            .await?;
        self.metadata.output_upload_completed_timestamp = Some(timestamp());
        self.metadata.worker_completed_timestamp = Some(timestamp());
        Ok(self.with_metadata(outcome))
    }

    /// Runs a phase until it is done, takes too long or the lease is to end.
    async fn bounded<T>(
        &self,
        phase: &str,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let late = || Error::new(Kind::Timeout, format!("{phase} took longer than {} s", limit.as_secs()));
        tokio::select! {
            result = timeout(limit, work) => result.map_err(|_| late())?,
            () = self.kill.cancelled() => Err(Error::new(Kind::Cancelled, format!("killed while {phase}"))),
        }
    }

    /// Fetches and checks everything, so that a request that is wrong runs nothing.
    async fn stage(&self, job: &Job, directory: &Directory) -> Result<(Command, Vec<String>, Staged)> {
        let cas = self.worker.cas();
        let command = cas.message(&job.command).await.context(|| format!("read command {}", job.command))?;
        let staged = self.worker.inputs().stage(job.input_root).await;
        let Some(command) = command else { return Err(missing_command(job.command, staged)) };
        let command = Command::check(command)?;
        let staged = staged?;
        let (ground, top, ownership) = (staged.clone(), directory.layer_path(), self.worker.ownership());
        let completed = move || ground.complete(&command, &top, ownership).map(|is_used| (command, is_used));
        let (command, has_own) = tasks::blocking(completed).await?;
        let own = has_own.then(|| directory.layer());
        let layers = own.into_iter().chain(staged.layers()).collect();
        Ok((command, layers, staged))
    }

    /// Has the command's work done by a tool that stays running if it asks for one, or runs it.
    async fn run_somehow(
        &self,
        command: &Command,
        job: &Job,
        (directory, layers, staged): (&Directory, Vec<String>, &Staged),
    ) -> Result<Ended> {
        let spec = Spec {
            directory: directory.name.clone(),
            layers,
            arguments: command.arguments.clone(),
            environment: command.environment.clone(),
            working_directory: command.working_directory.clone(),
            root: job.root,
            limits: job.limits,
        };
        if let Some(wish) = self.worker.wish(&job.instance, &job.properties, command) {
            let (input_root, spec) = (job.input_root, spec.clone());
            if let Some(ended) =
                self.ask(Asking { wish, command, input_root, staged, spec }, job.timeout).await?
            {
                return Ok(ended);
            }
        }
        self.command(spec, job, directory).await
    }

    /// Has a tool that stays running do the work of a command; `None` if the command has to be run.
    async fn ask(&self, asking: Asking<'_>, limit: Duration) -> Result<Option<Ended>> {
        let (worker, pool) = (&self.worker, self.worker.pool());
        let service =
            Service { cas: worker.cas(), inputs: worker.inputs(), launcher: worker.launcher(), pool };
        let open = async { Ok(service.open(asking).await) };
        let session = self.bounded("starting a persistent worker", SANDBOX_MAX, open).await?;
        let Some(mut session) = session else { return Ok(None) };
        let started = Instant::now();
        let answer = tokio::select! {
            answer = session.ask() => answer,
            () = tokio::time::sleep_until(started + limit) => Err(Fate::Timeout),
            () = self.kill.cancelled() => Err(Fate::Killed),
        };
        let request =
            session.close(pool, answer.as_ref().map_or_else(|fate| *fate, |_| Fate::Answered)).await;
        let elapsed = started.elapsed();
        let (why, end, output) = match answer {
            Ok(output) => (Why::Itself, End::Exited(0), output),
            Err(Fate::Timeout) => (Why::Timeout, End::Killed, String::new()),
            Err(Fate::Killed) => return Err(Error::new(Kind::Cancelled, "killed while the command ran")),
            Err(_) => return Ok(None),
        };
        let exit = tasks::blocking(move || {
            let mut exit = request.exit(end);
            exit.stderr.write_all(output.as_bytes()).context(|| "keep what the tool has said")?;
            Ok(exit)
        });
        Ok(Some(Ended { why, exit: exit.await?, elapsed, is_measured: false }))
    }

    async fn command(&self, spec: Spec, job: &Job, directory: &Directory) -> Result<Ended> {
        let running =
            self.bounded("starting the sandbox", SANDBOX_MAX, self.worker.launcher().run(spec)).await?;
        let started = Instant::now();
        let quota = self.quota(job, directory);
        let (why, exit) = self.wait(&running, job.timeout, quota).await?;
        if why == Why::Killed {
            return Err(Error::new(Kind::Cancelled, "killed while the command ran"));
        }
        Ok(Ended { why, exit, elapsed: started.elapsed(), is_measured: true })
    }

    fn note_usage(&mut self, ended: &Ended) {
        if ended.is_measured {
            outcome::usage(ended.exit.usage, ended.exit.spent).attach(&mut self.metadata);
        }
        self.metadata.virtual_execution_duration = Some(proto::duration(ended.elapsed));
    }

    /// What the command may write, where the kernel does not see to it.
    fn quota(&self, job: &Job, directory: &Directory) -> Option<Quota> {
        match self.worker.scratch() {
            Scratch::Memory => None,
            Scratch::Disk => Some(Quota { directory: directory.scratch(), bytes: job.limits.disk_bytes? }),
        }
    }

    async fn wait(&self, running: &Running, limit: Duration, quota: Option<Quota>) -> Result<(Why, Exit)> {
        let why = tokio::select! {
            exit = running.wait() => return Ok((Why::Itself, exit?)),
            () = tokio::time::sleep_until(Instant::now() + limit) => Why::Timeout,
            () = self.kill.cancelled() => Why::Killed,
            () = quota::exceeded(quota) => Why::Quota,
            never = outputs::follow(running, &self.reports) => match never {},
        };
        running.kill();
        let stuck = || Error::new(Kind::Unavailable, "the command's processes cannot be killed");
        let exit = timeout(KILL_MAX, running.wait()).await.map_err(|_| stuck())??;
        Ok((why, exit))
    }

    async fn answer(&self, job: &Job, command: Command, ended: Ended) -> Result<Outcome> {
        let Ended { why, exit, .. } = ended;
        let facts = Facts::of(&exit, job.limits, self.worker.scratch());
        let cas = self.worker.cas();
        let mut result = ActionResult::default();
        let (stdout, stderr) = tokio::try_join!(
            outputs::upload_file(cas, job.function, exit.stdout),
            outputs::upload_file(cas, job.function, exit.stderr),
        )?;
        result.stdout_digest = stdout.map(|digest| digest.to_proto());
        result.stderr_digest = stderr.map(|digest| digest.to_proto());
        let (exit_code, mut message) = facts.told();
        result.exit_code = exit_code;
        if why == Why::Timeout {
            return Ok(answer::of_timeout(result, job.timeout.as_secs_f64()));
        }
        if why == Why::Quota {
            message = outcome::disk_sentence(job.limits.disk_bytes);
        }
        match outputs::collect(cas, job.function, exit.view, (command.outputs, command.format)).await {
            Ok(found) => Ok(answer::of_result(merge(result, found), message)),
            Err(error) => Ok(answer::of_bad_outputs(result, &error)),
        }
    }

    fn with_metadata(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Response(mut response) => {
                if let Some(result) = &mut response.result {
                    result.execution_metadata = Some(self.metadata.clone());
                }
                Outcome::Response(response)
            }
            Outcome::Fault(_) | Outcome::Killed(_) => outcome,
        }
    }
}

/// All that is missing at once: the command and whatever is missing of the inputs.
fn missing_command(command: Digest, staged: Result<Staged>) -> Error {
    let mut missing = vec![command];
    match staged {
        Err(error) if error.kind() == Kind::MissingInput => missing.extend(error.missing()),
        Err(error) if error.kind() != Kind::Invalid => return error,
        Ok(_) | Err(_) => {}
    }
    Error::missing_input(missing)
}

/// The outputs of `found` with what the command printed and returned.
fn merge(printed: ActionResult, found: ActionResult) -> ActionResult {
    ActionResult {
        exit_code: printed.exit_code,
        stdout_digest: printed.stdout_digest,
        stderr_digest: printed.stderr_digest,
        ..found
    }
}

impl Job {
    fn check(start: &Start, worker: &Worker) -> Result<Self> {
        let function = Function::from_proto(start.digest_function)?
            .ok_or_else(|| Error::bug("the scheduler named no digest function"))?;
        let limit = start.timeout.as_ref().ok_or_else(|| Error::bug("the scheduler sent no timeout"))?;
        Ok(Self {
            function,
            command: digest(function, start.command_digest.as_ref(), "command digest")?,
            input_root: digest(function, start.input_root_digest.as_ref(), "input root digest")?,
            timeout: proto::read_duration(limit)
                .ok_or_else(|| Error::invalid("the timeout is negative or malformed"))?,
            root: worker.root(&start.properties)?,
            limits: worker.limits(&start.properties),
            instance: start.instance_name.clone(),
            properties: start.properties.clone(),
        })
    }
}

fn timestamp() -> Timestamp {
    proto::timestamp(SystemTime::now())
}
