//! Tools that stay running: one process does several actions, and whatever it does wrong, the results are those of ordinary runs.

use std::path::Path;
use std::time::{Duration, Instant};

use croft::proto::rev2::{self, ExecuteResponse};
use tonic::Code;

use crate::audit::audit;
use crate::client::{Client, Inputs, code, shell, stderr};
use crate::farm::Farm;
use crate::sandbox::as_nobody;
use crate::traces::{Held, family};

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Run the ordinary way it says `once` where it says its name and how many actions it has done otherwise. Each action then gets a list of
/// all that it sees, its input, and what it did before as far as it shows.
const TOOL: &str = r#"#!/bin/sh
work() {
    { echo "$1"; find . -type f | sort | tr '\n' ' '; echo; cat src/input; } > out/result
    mkdir -p left; touch left/over out/other beside
}
if [ "$1" != --persistent_worker ]; then
    read mode < "${1#@}"
    [ "$mode" = fail ] && { echo 'it has failed' >&2; exit 7; }
    [ "$mode" = status ] && { grep -E 'Seccomp:|NoNewPrivs|Cap|Uid|Groups' /proc/self/status; umask; ulimit -a; } > out/result
    [ "$mode" = status ] || work once
    exit 0
fi
read name < /proc/sys/kernel/random/uuid
count=0
echo 'a complaint of the process' >&2
while read -r line; do
    count=$((count + 1))
    mode=${line#*'["'}
    mode=${mode%%'"'*}
    case $mode in
        crash) work bad; exit 3 ;;
        garbage) work bad; echo 'INFO: working'; continue ;;
        half) work bad; printf '{"exitCode":0,'; exec 1>&-; continue ;;
        large) work bad; echo '{'; head -c 20000000 /dev/zero | tr '\0' ' '; continue ;;
        wait) work bad; sleep 1000; continue ;;
        fail) echo '{"exitCode":7,"output":"of the process"}'; continue ;;
        status) { grep -E 'Seccomp:|NoNewPrivs|Cap|Uid|Groups' /proc/self/status; umask; ulimit -a; } > out/result ;;
        twice) work bad; printf '{}{}'; continue ;;
        number) work bad; echo '{"requestId":5}'; continue ;;
        *) work "$name $count" ;;
    esac
    printf '%s\n' '{"exitCode":0,"output":"said by the tool\n"}'
done
"#;

/// As [`TOOL`] with messages instead of objects: it copies the input.
const PROTO_TOOL: &str = r#"#!/bin/sh
[ "$1" = --persistent_worker ] || { echo once > out/result; exit; }
byte() { dd bs=1 count=1 2> /dev/null | od -An -tu1; }
while low=$(byte); [ -n "$low" ]; do
    length=$((low))
    [ "$length" -lt 128 ] || length=$((length - 128 + 128 * $(byte)))
    dd bs=1 count="$length" 2> /dev/null > /tmp/request
    { cat src/input; grep -c src/input /tmp/request; } > out/result
    printf '\7\22\5hello'
done
"#;

fn farm(idle: &str) -> Farm {
    Farm::start_with(&[
        ("CROFT_WORKER__PERSISTENT_WORKERS", "1"),
        ("CROFT_WORKER__PERSISTENT_WORKERS_IDLE", idle),
        ("CROFT_WORKER__SLOTS", "2"),
    ])
}

/// What the tool is asked to do, with what, and in which words.
struct Asking {
    mode: &'static str,
    input: &'static str,
    tool: &'static str,
    protocol: &'static str,
    timeout: i64,
    is_cached: bool,
}

fn asking(mode: &'static str, input: &'static str) -> Asking {
    Asking { mode, input, tool: TOOL, protocol: "json", timeout: 60, is_cached: false }
}

impl Asking {
    async fn request(self, client: &Client) -> croft::digest::Digest {
        let mark = rev2::NodeProperty { name: "bazel_tool_input".into(), value: String::new() };
        let tool = rev2::FileNode {
            name: "tool".into(),
            digest: Some(client.put(self.tool).await.to_proto()),
            is_executable: true,
            node_properties: Some(rev2::NodeProperties { properties: vec![mark], ..Default::default() }),
        };
        let input = rev2::FileNode {
            name: "input".into(),
            digest: Some(client.put(self.input).await.to_proto()),
            ..rev2::FileNode::default()
        };
        let mut inputs = Inputs::default().file("flags", format!("{}\n", self.mode));
        for (name, file) in [("bin", tool), ("src", input)] {
            let directory = rev2::Directory { files: vec![file], ..Default::default() };
            let digest = Some(client.put_message(&directory).await.to_proto());
            inputs.root.directories.push(rev2::DirectoryNode { name: name.into(), digest });
        }
        let arguments = vec!["bin/tool".into(), "@flags".into()];
        let command = rev2::Command { arguments, ..shell("", &["out/result"]) };
        let properties = [("persistentWorkerKey", "b22d48cd"), ("persistentWorkerProtocol", self.protocol)];
        let property =
            |(name, value): (&str, &str)| rev2::platform::Property { name: name.into(), value: value.into() };
        let platform = rev2::Platform { properties: properties.map(property).into() };
        let change = |action: &mut rev2::Action| {
            action.platform = Some(platform);
            action.timeout = Some(croft::proto::Duration { seconds: self.timeout, nanos: 0 });
            action.do_not_cache = !self.is_cached;
        };
        client.action(&command, &inputs, change).await
    }

    async fn run(self, client: &Client) -> ExecuteResponse {
        let action = self.request(client).await;
        client.execute(client.request(&action)).await.unwrap()
    }
}

/// The lines of the action's one output.
async fn output(client: &Client, response: &ExecuteResponse) -> Vec<String> {
    let result = response.result.as_ref().expect("it ran");
    assert_eq!(result.exit_code, 0, "{response:?}");
    let [file] = &result.output_files[..] else { panic!("{response:?}") };
    let digest =
        croft::digest::Digest::from_proto(croft::digest::Function::Sha256, file.digest.as_ref()).unwrap();
    String::from_utf8(client.read_blob(&digest).await.unwrap()).unwrap().lines().map(str::to_owned).collect()
}

async fn metric(farm: &Farm, line: &str) -> u64 {
    let (_, page) = farm.page("/metrics").await;
    let value = page.lines().find_map(|text| text.strip_prefix(line)).unwrap_or("0");
    value.trim().parse().unwrap()
}

async fn outcomes(farm: &Farm, outcome: &str) -> u64 {
    metric(farm, &format!("croft_worker_persistent_requests_total{{outcome=\"{outcome}\"}}")).await
}

/// What every action sees of files, whatever ran before.
const SEEN: &str = "./bin/tool ./flags ./out/result ./src/input ";

#[tokio::test(flavor = "multi_thread")]
async fn one_process_does_several_actions_and_none_sees_anothers_files() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    let mut names = Vec::new();
    for (number, (mode, input)) in [("a", "one"), ("b", "two"), ("a", "three")].into_iter().enumerate() {
        let response = asking(mode, input).run(&client).await;
        let lines = output(&client, &response).await;
        let (name, count) = lines[0].split_once(' ').expect("a process that stays");
        names.push(name.to_owned());
        assert_eq!((count, lines[1].as_str(), lines[2].as_str()), (&*(number + 1).to_string(), SEEN, input));
        assert_eq!((stderr(&response).as_str(), code(&response)), ("said by the tool\n", 0));
    }
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    assert_eq!(outcomes(&farm, "answered").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_actions_of_one_process_leave_no_trace_on_the_machine() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    let run = async |count: usize| {
        for _ in 0..count {
            output(&client, &asking("good", "x").run(&client).await).await;
        }
    };
    run(5).await;
    let before = Held::settled(farm.pid()).await;
    run(100).await;
    before.until_again(farm.pid()).await;
    assert_eq!(
        (outcomes(&farm, "answered").await, metric(&farm, "croft_worker_persistent_processes").await),
        (105, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_can_be_asked_by_messages() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    for input in ["one", "two"] {
        let asking = Asking { tool: PROTO_TOOL, protocol: "proto", ..asking("x", input) };
        let response = asking.run(&client).await;
        assert_eq!(output(&client, &response).await, [format!("{input}1")]);
        assert_eq!(stderr(&response), "hello");
    }
    assert_eq!(outcomes(&farm, "answered").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_process_does_wrong_the_action_has_the_result_of_an_ordinary_run() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    for mode in ["crash", "garbage", "half", "large", "twice", "number"] {
        let response = asking(mode, "x").run(&client).await;
        assert_eq!(output(&client, &response).await, ["once", SEEN, "x"], "{mode}");
        assert_eq!(stderr(&response), "", "{mode}");
        let response = asking("good", "y").run(&client).await;
        let lines = output(&client, &response).await;
        assert!(
            lines[0].ends_with(" 1") && lines[1] == SEEN,
            "after {mode} there is a new process: {lines:?}"
        );
    }
    let counts =
        [outcomes(&farm, "ended").await, outcomes(&farm, "garbled").await, outcomes(&farm, "answered").await];
    assert_eq!(counts, [2, 4, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_fails_in_a_process_fails_as_in_an_ordinary_run_and_the_process_goes_on() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    asking("good", "x").run(&client).await;
    let response = asking("fail", "x").run(&client).await;
    assert_eq!(response.result.as_ref().unwrap().exit_code, 7);
    assert_eq!(stderr(&response), "it has failed\n");
    let lines = output(&client, &asking("good", "x").run(&client).await).await;
    assert!(lines[0].ends_with(" 3"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_the_limits_and_the_rights_of_an_ordinary_run() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    let mut seen = Vec::new();
    // Nobody knows the first protocol.
    for protocol in ["xml", "json"] {
        let asking = Asking { protocol, ..asking("status", "x") };
        seen.push(output(&client, &asking.run(&client).await).await);
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].iter().any(|line| line == "Seccomp:\t2"), "{seen:?}");
    assert_eq!(outcomes(&farm, "answered").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_takes_too_long_is_told_so_and_its_process_ends() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    let before = family(farm.pid()).len();
    let response = Asking { timeout: 1, ..asking("wait", "x") }.run(&client).await;
    assert_eq!(code(&response), Code::DeadlineExceeded as i32, "{response:?}");
    until_family_is(&farm, before).await;
    assert_eq!(outcomes(&farm, "timeout").await, 1);
    assert_eq!(output(&client, &asking("good", "x").run(&client).await).await[1], SEEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_nobody_wants_any_more_ends_its_process() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    let before = family(farm.pid()).len();
    let action = asking("wait", "x").request(&client).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    let name = operations.message().await.unwrap().unwrap().name;
    until(|| family(farm.pid()).len() > before + 1, "the process starts").await;
    let mut all = croft::proto::longrunning::operations_client::OperationsClient::new(farm.channel().await);
    all.cancel_operation(croft::proto::longrunning::CancelOperationRequest { name }).await.unwrap();
    until_family_is(&farm, before).await;
    assert_eq!(metric(&farm, "croft_worker_persistent_processes").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_for_which_there_is_no_process_runs_the_ordinary_way() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    let before = family(farm.pid()).len();
    let action = asking("wait", "x").request(&client).await;
    let _stream = client.execution.clone().execute(client.request(&action)).await.unwrap();
    until(|| family(farm.pid()).len() > before + 1, "the process starts").await;
    assert_eq!(output(&client, &asking("good", "y").run(&client).await).await, ["once", SEEN, "y"]);
    assert_eq!(outcomes(&farm, "busy").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_nobody_needs_ends_after_a_while() {
    let farm = farm("1s");
    let client = Client::new(&farm).await;
    let before = family(farm.pid()).len();
    let lines = output(&client, &asking("good", "x").run(&client).await).await;
    assert!(lines[0].ends_with(" 1"), "{lines:?}");
    until_family_is(&farm, before).await;
    assert_eq!(metric(&farm, "croft_worker_persistent_processes").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ended_while_it_waited_is_replaced() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    for _ in 0..2 {
        let lines = output(&client, &asking("good", "x").run(&client).await).await;
        assert!(lines[0].ends_with(" 1"), "it is a new one: {lines:?}");
        let is_tool = |pid: &&u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.ends_with(b"--persistent_worker\0")
        };
        let tool = *family(farm.pid()).iter().find(is_tool).expect("it waits");
        let pid = rustix::process::Pid::from_raw(tool.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until(|| !family(farm.pid()).contains(&tool), "it has ended").await;
    }
    assert_eq!(outcomes(&farm, "answered").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_runs_the_tool_anew_and_tells_what_it_made_otherwise() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    let action = Asking { is_cached: true, ..asking("good", "x") }.request(&client).await;
    client.execute(client.request(&action)).await.unwrap();
    let (exit_code, reports) = audit(&farm, &[&action]).await;
    assert_eq!(exit_code, 1, "the process wrote its name: {reports:?}");
    assert_eq!(outcomes(&farm, "answered").await, 1);
}

/// The same as a user without privileges: the test runs itself as `nobody`, where it may.
#[test]
fn processes_stay_without_root() {
    let Some(text) = as_nobody("persistent::one_process") else { return };
    assert!(
        text.contains(
            "test persistent::one_process_does_several_actions_and_none_sees_anothers_files ... ok"
        ),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tool_takes_the_place_of_one_that_waits() {
    let farm = farm("5min");
    let client = Client::new(&farm).await;
    for _ in 0..2 {
        let lines = output(&client, &asking("good", "x").run(&client).await).await;
        assert!(lines[0].ends_with(" 1"), "it is a new one: {lines:?}");
        let other = Asking { tool: PROTO_TOOL, protocol: "proto", ..asking("x", "one") };
        assert_eq!(output(&client, &other.run(&client).await).await, ["one1"]);
        assert_eq!(metric(&farm, "croft_worker_persistent_processes").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_stops_leaves_no_process() {
    let mut farm = farm("5min");
    let client = Client::new(&farm).await;
    output(&client, &asking("good", "x").run(&client).await).await;
    let all = family(farm.pid());
    assert!(farm.terminate().success());
    let is_there = |pid: &u32| Path::new(&format!("/proc/{pid}/exe")).exists();
    until(|| !all.iter().any(is_there), "all processes are gone").await;
}

/// The farm's own start may just have ended a process when the first count was taken, so that there are fewer in the end.
async fn until_family_is(farm: &Farm, size: usize) {
    until(|| family(farm.pid()).len() <= size, "the processes are as many as before").await;
}

async fn until(is_so: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
