//! What is remembered, in which order it is forgotten, and what it is counted as.

use std::time::Duration;

use super::*;
use crate::proto::rev2::{ActionResult, ExecuteResponse, ToolDetails};
use crate::scheduler::{ExecutionId, Stage, Task};

fn id(number: usize) -> OperationId {
    OperationId::new(number as u128)
}

fn client(invocation: &str, target: &str) -> RequestMetadata {
    RequestMetadata {
        tool_invocation_id: invocation.into(),
        target_id: target.into(),
        action_mnemonic: "CppCompile".into(),
        tool_details: Some(ToolDetails { tool_name: "bazel".into(), tool_version: "8.1".into() }),
        ..RequestMetadata::default()
    }
}

fn task(invocation: &str) -> Arc<Task> {
    Arc::new(Task { invocation: invocation.into(), ..Task::example("action") })
}

fn update(task: &Arc<Task>, stage: Stage, exit_code: Option<i32>) -> Update {
    let result = |exit_code| ActionResult { exit_code, ..ActionResult::default() };
    let response =
        exit_code.map(|code| Arc::new(ExecuteResponse { result: Some(result(code)), ..Default::default() }));
    Update {
        execution: ExecutionId::new(1),
        stage,
        task: Arc::clone(task),
        queued_at: SystemTime::now(),
        attempt: 1,
        metadata: None,
        response,
    }
}

fn begin(builds: &Builds, (operation, task): (OperationId, &Task), client: &RequestMetadata, lookup: Lookup) {
    let (instance, action) = (&task.instance, task.action_digest);
    builds.begin(&Asked { operation, instance, action, identity: "ada", client }, lookup);
}

#[test]
fn an_operation_is_remembered_whichever_of_the_two_who_tell_of_it_comes_first() {
    let (task, client) = (task("build"), client("build", "//a:b"));
    for is_begun_first in [true, false] {
        let builds = Builds::default();
        let tell = || begin(&builds, (id(1), &task), &client, Lookup::Absent);
        if is_begun_first {
            tell();
        }
        builds.noted(id(1), &update(&task, Stage::Queued, None));
        builds.noted(id(1), &update(&task, Stage::Completed, Some(3)));
        if !is_begun_first {
            tell();
        }
        let record = builds.record(id(1)).unwrap();
        assert_eq!((record.state, record.exit_code), (State::Failed, Some(3)));
        assert_eq!((&*record.client.target, &*record.identity), ("//a:b", "ada"));
        assert_eq!(record.lookup, Lookup::Absent);
        let (invocation, records) = builds.invocation("build").unwrap();
        assert_eq!((records.len(), invocation.failed, invocation.executed), (1, 1, 1));
        assert_eq!((invocation.tool.as_str(), &*invocation.identity), ("bazel 8.1", "ada"));
    }
}

#[test]
fn the_oldest_operations_and_invocations_go_first() {
    let builds = Builds::default();
    let (first, second) = (task("first"), task("second"));
    let count = OPERATIONS_MAX + 10;
    for number in 0..count {
        let task = if number < 20 { &first } else { &second };
        builds.noted(id(number), &update(task, Stage::Queued, None));
    }
    assert!(builds.record(id(9)).is_none() && builds.record(id(10)).is_some());
    let part = builds.operations(&Filter::default(), (0, 3));
    assert_eq!(part.total, OPERATIONS_MAX);
    let latest: Vec<OperationId> = part.items.iter().map(|record| record.operation).collect();
    assert_eq!(latest, [id(count - 1), id(count - 2), id(count - 3)]);
    assert_eq!(builds.invocation("first").unwrap().1.len(), 10);

    for number in 0..INVOCATIONS_MAX {
        builds.looked_up(&client(&format!("build {number}"), ""), ("", ""), true);
    }
    assert!(builds.invocation("second").is_none());
    let part = builds.invocations((INVOCATIONS_MAX - 1, 5));
    assert_eq!((part.total, part.items.len(), &*part.items[0].id), (INVOCATIONS_MAX, 1, "build 0"));
    assert!(builds.record(id(count - 1)).is_some(), "an operation stays without its invocation");
}

#[test]
fn an_action_that_is_looked_up_and_then_executed_counts_once() {
    let builds = Builds::default();
    let (task, client) = (task("build"), client("build", ""));
    for number in 0..2 {
        builds.looked_up(&client, ("main", "ada"), false);
        begin(&builds, (id(number), &task), &client, Lookup::Absent);
    }
    builds.looked_up(&client, ("main", "ada"), true);
    begin(&builds, (id(2), &task), &client, Lookup::Hit);
    let (invocation, _) = builds.invocation("build").unwrap();
    assert_eq!(invocation.hit_rate(), Some(0.5));
    let cached = builds.record(id(2)).unwrap();
    assert!(cached.state == State::Cached && cached.duration() == Duration::ZERO);
}

#[test]
fn a_filter_takes_states_and_parts_of_names() {
    let builds = Builds::default();
    let task = task("build");
    for (number, target) in ["//a:one", "//b:two"].into_iter().enumerate() {
        builds.noted(id(number), &update(&task, Stage::Completed, Some(number as i32)));
        begin(&builds, (id(number), &task), &client("build", target), Lookup::Absent);
    }
    let found = |state: Option<State>, text: &str| {
        let text = (!text.is_empty()).then(|| text.to_owned());
        builds.operations(&Filter { state, text }, (0, 10)).total
    };
    assert_eq!([found(None, ""), found(None, "Cpp"), found(None, ":two"), found(None, "z")], [2, 2, 1, 0]);
    assert_eq!([found(Some(State::Failed), ""), found(Some(State::Failed), ":one")], [1, 0]);
}

#[test]
fn what_is_alike_came_before_with_the_same_names() {
    let builds = Builds::default();
    let task = task("build");
    for (number, target) in ["//a", "//b", "//a", "//a", "", ""].into_iter().enumerate() {
        begin(&builds, (id(number), &task), &client("build", target), Lookup::Absent);
    }
    let alike = |number| {
        let found = builds.alike(&builds.record(id(number)).unwrap(), 10);
        found.iter().map(|record| record.operation).collect::<Vec<_>>()
    };
    assert_eq!([alike(0), alike(1), alike(5)], [[], [], []]);
    assert_eq!((alike(2), alike(3)), (vec![id(0)], vec![id(2), id(0)]));
}

#[test]
fn texts_are_shared_and_cut() {
    let builds = Builds::default();
    let long = "ä".repeat(TEXT_CHARS_MAX * 2);
    for number in 0..2 {
        let client = client("", &long);
        begin(&builds, (id(number), &task("")), &client, Lookup::Absent);
    }
    let [one, other] = [0, 1].map(|number| builds.record(id(number)).unwrap());
    assert_eq!(one.client.target.chars().count(), TEXT_CHARS_MAX);
    assert!(Arc::ptr_eq(&one.client.target, &other.client.target));
    assert!(builds.invocation("").is_none(), "who names no invocation has none");
}
