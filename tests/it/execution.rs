//! Execution: what a client sees of its actions.

use std::time::Duration;

use croft::digest::{Digest, Function};
use croft::proto::rev2::{
    self, Command, Directory, ExecuteResponse, FileNode, GetActionResultRequest, SymlinkNode, Tree,
    WaitExecutionRequest, execution_stage,
};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::client::{Client, Inputs, code, finish, message, metadata, shell, stderr, stdout};
use crate::farm::Farm;

/// Prints something that no other run prints.
const UNIQUE: &str = "cat /proc/sys/kernel/random/uuid";

#[tokio::test]
async fn an_action_runs_and_its_second_execution_is_a_cache_hit() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let inputs =
        Inputs::default().file("in.txt", "hello").program("tool", "#!/bin/sh\ncat in.txt in.txt > out.txt\n");
    let action =
        client.action(&shell("./tool && echo done && echo oops >&2", &["out.txt"]), &inputs, |_| {}).await;
    let first = client.execute(client.request(&action)).await.unwrap();
    assert_eq!((code(&first), first.cached_result), (0, false), "{}", message(&first));
    let result = first.result.as_ref().unwrap();
    assert_eq!((stdout(&first), stderr(&first)), ("done\n".into(), "oops\n".into()));
    let output = Digest::from_proto(Function::Sha256, result.output_files[0].digest.as_ref()).unwrap();
    assert_eq!(client.read_blob(&output).await.unwrap(), b"hellohello");
    check_timestamps(result.execution_metadata.as_ref().unwrap());
    let second = client.execute(client.request(&action)).await.unwrap();
    assert!(second.cached_result);
    assert_eq!(second.result, first.result);
    let get = GetActionResultRequest { action_digest: Some(action.to_proto()), ..Default::default() };
    client.cache.clone().get_action_result(get).await.unwrap();
}

fn check_timestamps(metadata: &rev2::ExecutedActionMetadata) {
    assert!(!metadata.worker.is_empty());
    let steps = [
        &metadata.queued_timestamp,
        &metadata.worker_start_timestamp,
        &metadata.input_fetch_start_timestamp,
        &metadata.input_fetch_completed_timestamp,
        &metadata.execution_start_timestamp,
        &metadata.execution_completed_timestamp,
        &metadata.output_upload_start_timestamp,
        &metadata.output_upload_completed_timestamp,
        &metadata.worker_completed_timestamp,
    ];
    let times: Vec<_> =
        steps.iter().map(|step| step.as_ref().map(|time| (time.seconds, time.nanos))).collect();
    assert!(times.iter().all(Option::is_some), "{metadata:?}");
    assert!(times.is_sorted(), "{metadata:?}");
}

#[tokio::test]
async fn skip_cache_lookup_runs_again_and_replaces_the_cached_result() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let action = client.action(&shell(UNIQUE, &[]), &Inputs::default(), |_| {}).await;
    let first = client.execute(client.request(&action)).await.unwrap();
    let mut request = client.request(&action);
    request.skip_cache_lookup = true;
    let second = client.execute(request).await.unwrap();
    assert!(!second.cached_result);
    assert_ne!(stdout(&first), stdout(&second));
    let third = client.execute(client.request(&action)).await.unwrap();
    assert!(third.cached_result);
    assert_eq!(stdout(&third), stdout(&second));
}

#[tokio::test]
async fn equal_actions_in_flight_run_once_unless_they_must_not_be_cached() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let script = format!("sleep 1; {UNIQUE}");
    for (do_not_cache, runs) in [(false, 1), (true, 3)] {
        let change = |action: &mut rev2::Action| action.do_not_cache = do_not_cache;
        let action = client.action(&shell(&script, &[]), &Inputs::default(), change).await;
        let executions = (0..3).map(|_| client.execute(client.request(&action)));
        let answers = futures_util::future::join_all(executions).await;
        let mut printed: Vec<String> = answers.into_iter().map(|answer| stdout(&answer.unwrap())).collect();
        printed.sort();
        printed.dedup();
        assert_eq!(printed.len(), runs, "do_not_cache: {do_not_cache}");
        let cached = client.execute(client.request(&action)).await.unwrap().cached_result;
        assert_eq!(cached, !do_not_cache);
    }
}

#[tokio::test]
async fn an_action_named_by_blake3_has_outputs_named_by_blake3() {
    let farm = Farm::start();
    let client = Client { function: Function::Blake3, ..Client::new(&farm).await };
    let inputs = Inputs::default().file("in", "some input");
    let action = client.action(&shell("cp in out && echo done", &["out"]), &inputs, |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!((code(&response), stdout(&response)), (0, "done\n".into()), "{}", message(&response));
    let output = response.result.as_ref().unwrap().output_files[0].digest.clone().unwrap();
    assert_eq!(output, Function::Blake3.hash(b"some input").to_proto());
    assert!(client.execute(client.request(&action)).await.unwrap().cached_result);
}

#[tokio::test]
async fn a_failing_command_is_an_answer_and_is_not_cached() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let action = client.action(&shell("echo log; exit 3", &[]), &Inputs::default(), |_| {}).await;
    for _ in 0..2 {
        let response = client.execute(client.request(&action)).await.unwrap();
        assert_eq!((code(&response), response.cached_result), (0, false));
        assert_eq!(response.result.as_ref().unwrap().exit_code, 3);
        assert_eq!(stdout(&response), "log\n");
    }
}

#[tokio::test]
async fn a_timeout_is_told_with_what_was_printed_and_is_not_cached() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let change = |action: &mut rev2::Action| {
        action.timeout = Some(croft::proto::Duration { seconds: 1, nanos: 500_000_000 })
    };
    let script = "echo before; sleep 600 & sleep 600; echo after";
    let action = client.action(&shell(script, &[]), &Inputs::default(), change).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::DeadlineExceeded as i32, "{response:?}");
    assert_eq!(stdout(&response), "before\n");
    let get = GetActionResultRequest { action_digest: Some(action.to_proto()), ..Default::default() };
    assert_eq!(client.cache.clone().get_action_result(get).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_timeout_above_the_maximum_is_refused() {
    let farm = Farm::start_with(&[
        ("CROFT_EXECUTION__TIMEOUT_MAX", "1h"),
        ("CROFT_EXECUTION__TIMEOUT_DEFAULT", "1h"),
    ]);
    let client = Client::new(&farm).await;
    for (seconds, nanos, sentence) in
        [(3601, 0, "maximum of 3600 s"), (-1, 0, "negative"), (0, -5, "negative")]
    {
        let change =
            |action: &mut rev2::Action| action.timeout = Some(croft::proto::Duration { seconds, nanos });
        let action = client.action(&shell("true", &[]), &Inputs::default(), change).await;
        let error = client.execute(client.request(&action)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(sentence), "{error:?}");
    }
}

#[tokio::test]
async fn every_missing_blob_is_named() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let absent = |name: &str| Function::Sha256.hash(name.as_bytes());
    let never = absent("action");
    assert_eq!(
        missing_of(&client.execute(client.request(&never)).await.unwrap_err()),
        [format!("blobs/{never}")]
    );

    let (command, root) = (absent("command"), absent("root"));
    let action = rev2::Action {
        command_digest: Some(command.to_proto()),
        input_root_digest: Some(root.to_proto()),
        ..rev2::Action::default()
    };
    let action = client.put_message(&action).await;
    let error = client.execute(client.request(&action)).await.unwrap_err();
    assert_eq!(missing_of(&error), sorted([command, root]));

    let mut inputs = Inputs::default();
    let (first, second, subtree) = (absent("first"), absent("second"), absent("subtree"));
    let file = |name: &str, digest: &Digest| FileNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
        ..Default::default()
    };
    let child = Directory { files: vec![file("second", &second)], ..Directory::default() };
    let child = client.put_message(&child).await;
    let node = |name: &str, digest: &Digest| rev2::DirectoryNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
    };
    inputs.root.directories = vec![node("a", &child), node("b", &subtree)];
    let root = Directory { files: vec![file("first", &first)], ..inputs.root };
    let root = client.put_message(&root).await;
    let change = |action: &mut rev2::Action| action.input_root_digest = Some(root.to_proto());
    let action = client.action(&shell("true", &[]), &Inputs::default(), change).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::FailedPrecondition as i32);
    assert_eq!(missing_in(&response), sorted([first, second, subtree]));
}

fn sorted<const N: usize>(digests: [Digest; N]) -> Vec<String> {
    let mut subjects = digests.map(|digest| format!("blobs/{digest}"));
    subjects.sort();
    subjects.into()
}

fn missing_of(error: &Status) -> Vec<String> {
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    let failure = error.get_details_precondition_failure().expect("the details name the blobs");
    assert!(failure.violations.iter().all(|violation| violation.r#type == "MISSING"));
    let mut subjects: Vec<_> = failure.violations.into_iter().map(|violation| violation.subject).collect();
    subjects.sort();
    subjects
}

fn missing_in(response: &ExecuteResponse) -> Vec<String> {
    let status = response.status.clone().unwrap();
    let details = status.encode_to_vec();
    missing_of(&Status::with_details(Code::from(status.code), status.message, details.into()))
}

#[tokio::test]
async fn outputs_of_every_kind_come_back() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let script = "mkdir -p d/sub d/empty && printf x > d/sub/x && printf run > d/run && chmod 755 d/run && ln -s sub/x d/link \
        && ln -s /nowhere/at/all dangling && ln -s d to-d && : > empty && printf plain > plain && printf '\\303\\244' > 'd/\u{e4}.txt'";
    let outputs = ["d", "dangling", "to-d", "empty", "plain", "missing", "also/missing"];
    let response = client.run(script, &Inputs::default(), &outputs).await;
    let result = response.result.as_ref().unwrap();
    assert_eq!(result.exit_code, 0, "{}", stderr(&response));
    let files: Vec<_> =
        result.output_files.iter().map(|file| (file.path.as_str(), file.is_executable)).collect();
    assert_eq!(files, [("empty", false), ("plain", false)]);
    let links: Vec<_> =
        result.output_symlinks.iter().map(|link| (link.path.as_str(), link.target.as_str())).collect();
    assert_eq!(links, [("dangling", "/nowhere/at/all"), ("to-d", "d")]);
    let tree = tree(&client, &response).await;
    let root = tree.root.unwrap();
    let names: Vec<_> = root.files.iter().map(|file| (file.name.as_str(), file.is_executable)).collect();
    assert_eq!(names, [("run", true), ("\u{e4}.txt", false)], "in the order of UTF-8 bytes");
    let directories: Vec<_> = root.directories.iter().map(|directory| directory.name.as_str()).collect();
    assert_eq!(directories, ["empty", "sub"]);
    assert_eq!(
        root.symlinks,
        [SymlinkNode { name: "link".into(), target: "sub/x".into(), node_properties: None }]
    );
    assert_eq!(tree.children.len(), 2);
}

async fn tree(client: &Client, response: &ExecuteResponse) -> Tree {
    let directory = &response.result.as_ref().unwrap().output_directories[0];
    let digest = Digest::from_proto(Function::Sha256, directory.tree_digest.as_ref()).unwrap();
    Tree::decode(client.read_blob(&digest).await.unwrap().as_slice()).unwrap()
}

#[tokio::test]
#[expect(deprecated, reason = "clients older than 2.1 send these fields")]
async fn old_clients_are_served() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    // Bazel before 5 expects its output directories to be there.
    let script =
        "printf a > o/file && printf b > dir/b && ln -s file o/link && rmdir dirlink && ln -s dir dirlink";
    let command = Command {
        output_files: vec!["o/file".into(), "o/link".into(), "o/none".into()],
        output_directories: vec!["dir".into(), "dirlink".into()],
        platform: Some(rev2::Platform {
            properties: vec![rev2::platform::Property { name: "OSFamily".into(), value: "linux".into() }],
        }),
        ..shell(script, &[])
    };
    let action = client.action(&command, &Inputs::default(), |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    let result = response.result.as_ref().unwrap();
    assert_eq!((code(&response), result.exit_code), (0, 0), "{} {}", message(&response), stderr(&response));
    assert_eq!(result.output_files[0].path, "o/file");
    assert_eq!(result.output_directories[0].path, "dir");
    assert_eq!(result.output_file_symlinks[0].path, "o/link");
    assert_eq!(result.output_directory_symlinks[0].path, "dirlink");
}

#[tokio::test]
async fn an_unknown_or_unsatisfiable_property_is_answered_not_queued_for_ever() {
    let farm = Farm::start_with(&[("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "1s")]);
    let client = Client::new(&farm).await;
    let with = |name: &str, value: &str| {
        let property = rev2::platform::Property { name: name.into(), value: value.into() };
        move |action: &mut rev2::Action| action.platform = Some(rev2::Platform { properties: vec![property] })
    };
    let action = client.action(&shell("true", &[]), &Inputs::default(), with("no-such-thing", "1")).await;
    let error = client.execute(client.request(&action)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("no-such-thing"), "{error:?}");
    let action = client.action(&shell("true", &[]), &Inputs::default(), with("OSFamily", "plan9")).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::FailedPrecondition as i32);
    assert!(message(&response).contains("OSFamily") && !message(&response).contains("linux"), "{response:?}");
}

/// As Bazel asks with `--experimental_remote_mark_tool_inputs`; the command is a whole one all the same.
#[tokio::test]
async fn an_action_that_may_run_in_a_persistent_worker_runs_the_ordinary_way() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let tool = client.put("#!/bin/sh\nread argument < \"${1#@}\"; echo $# $argument\n").await;
    let mark = rev2::NodeProperty { name: "bazel_tool_input".into(), value: String::new() };
    let tool = rev2::FileNode {
        name: "tool".into(),
        digest: Some(tool.to_proto()),
        is_executable: true,
        node_properties: Some(rev2::NodeProperties { properties: vec![mark], ..Default::default() }),
    };
    let bin = client.put_message(&rev2::Directory { files: vec![tool], ..Default::default() }).await;
    let bin = rev2::DirectoryNode { name: "bin".into(), digest: Some(bin.to_proto()) };
    let mut inputs = Inputs::default().file("flags", "from the file\n");
    inputs.root.directories.push(bin);
    let command = rev2::Command { arguments: vec!["bin/tool".into(), "@flags".into()], ..shell("", &[]) };
    let properties = [("persistentWorkerKey", "b22d48cd"), ("persistentWorkerProtocol", "json")];
    let properties =
        properties.map(|(name, value)| rev2::platform::Property { name: name.into(), value: value.into() });
    let platform = rev2::Platform { properties: properties.into() };
    let action = client.action(&command, &inputs, |action| action.platform = Some(platform)).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(stdout(&response), "1 from the file\n", "{response:?}");
}

#[tokio::test]
async fn a_client_that_lost_its_stream_waits_for_the_same_operation() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let action = client.action(&shell(&format!("sleep 1; {UNIQUE}"), &[]), &Inputs::default(), |_| {}).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    let first = operations.message().await.unwrap().unwrap();
    assert!(!first.done && first.result.is_none());
    assert_eq!(metadata(&first).action_digest, Some(action.to_proto()));
    drop(operations);
    for _ in 0..2 {
        let request = WaitExecutionRequest { name: first.name.clone() };
        let mut operations = client.execution.clone().wait_execution(request).await.unwrap().into_inner();
        let response = finish(&mut operations).await.unwrap();
        assert_eq!((code(&response), response.cached_result), (0, false));
    }
    for name in ["operations/0123", "operations/00000000000000000000000000000000", "nonsense"] {
        let request = WaitExecutionRequest { name: name.into() };
        let error = client.execution.clone().wait_execution(request).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{name}");
    }
}

#[tokio::test]
async fn the_stages_come_in_order_and_the_last_message_ends_the_stream() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let action = client.action(&shell("sleep 0.3", &[]), &Inputs::default(), |_| {}).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    let mut stages = Vec::new();
    while let Some(operation) = operations.message().await.unwrap() {
        assert_eq!(operation.done, metadata(&operation).stage() == execution_stage::Value::Completed);
        stages.push(metadata(&operation).stage);
    }
    assert!(stages.is_sorted(), "{stages:?}");
    assert_eq!(stages.last(), Some(&(execution_stage::Value::Completed as i32)));
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_action() {
    let farm = Farm::start_with(&[("CROFT_SCHEDULER__ABANDON_AFTER", "1s")]);
    let client = Client::new(&farm).await;
    let action = client.action(&shell("sleep 86399", &[]), &Inputs::default(), |_| {}).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    while metadata(&operations.message().await.unwrap().unwrap()).stage() != execution_stage::Value::Executing
    {
    }
    wait_for(|| runs("sleep\086399")).await;
    drop(operations);
    wait_for(|| !runs("sleep\086399")).await;
}

/// Whether a process with these arguments (parted by NUL) runs on this machine.
pub(crate) fn runs(arguments: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| line.starts_with(arguments.as_bytes()))
}

pub(crate) async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not come to pass in 30 s");
}
