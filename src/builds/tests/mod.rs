//! What is remembered, in which order it is forgotten, and what it is counted as.

mod answers;

use std::time::Duration;

use super::texts::TEXT_CHARS_MAX;
use super::*;
use crate::error::Kind;
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
    Arc::new(Task { invocation: invocation.into(), identity: "ada".into(), ..Task::example("action") })
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

fn look_up(builds: &Builds, of: (&str, &str), is_hit: bool) {
    look_up_as("ada", builds, of, is_hit);
}

fn look_up_as(identity: &str, builds: &Builds, (invocation, target): (&str, &str), is_hit: bool) {
    builds.looked_up(&client(invocation, target), ("main", looked_up(), identity), is_hit);
}

fn looked_up() -> Digest {
    Task::example("looked up").action_digest
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
fn operations_of_equal_actions_are_each_with_the_invocation_that_asked_for_it() {
    let builds = Builds::default();
    for (number, name) in ["first", "second"].into_iter().enumerate() {
        let task = task(name);
        builds.noted(id(number), &update(&task, Stage::Executing, None));
        begin(&builds, (id(number), &task), &client(name, name), Lookup::Absent);
    }
    for number in 0..2 {
        builds.noted(id(number), &update(&task("first"), Stage::Completed, Some(0)));
    }
    for name in ["first", "second"] {
        let (invocation, records) = builds.invocation(name).unwrap();
        assert_eq!((records.len(), invocation.executed, invocation.succeeded), (1, 1, 1), "{name}");
        assert_eq!((&*records[0].client.target, &*records[0].client.invocation), (name, name));
    }
    for number in 2..OPERATIONS_MAX + 2 {
        builds.noted(id(number), &update(&task("third"), Stage::Queued, None));
    }
    for name in ["first", "second"] {
        assert_eq!(builds.invocation(name).unwrap().0.operations().len(), 0, "{name}");
    }
}

#[test]
fn an_invocation_with_a_long_name_is_one() {
    let builds = Builds::default();
    let long = "a".repeat(TEXT_CHARS_MAX + 1);
    let task = task(&long);
    builds.noted(id(1), &update(&task, Stage::Queued, None));
    begin(&builds, (id(1), &task), &client(&long, ""), Lookup::Absent);
    let part = builds.invocations(&InvocationFilter::default(), (0, 2));
    assert_eq!((part.total, part.items[0].operations().len(), part.items[0].executed), (1, 1, 1));
}

#[test]
fn the_oldest_operations_and_invocations_go_first() {
    let builds = Builds::default();
    let (first, second) = (task("first"), task("second"));
    let count = OPERATIONS_MAX + 10;
    for number in 0..count {
        let task = if number < 20 { &first } else { &second };
        builds.noted(id(number), &update(task, Stage::Completed, Some(0)));
    }
    assert!(builds.record(id(9)).is_none() && builds.record(id(10)).is_some());
    let part = builds.operations(&Filter::default(), (0, 3));
    assert_eq!(part.total, OPERATIONS_MAX);
    let latest: Vec<OperationId> = part.items.iter().map(|record| record.operation).collect();
    assert_eq!(latest, [id(count - 1), id(count - 2), id(count - 3)]);
    let (invocation, records) = builds.invocation("first").unwrap();
    assert_eq!((records.len(), invocation.operations_forgotten()), (10, 10));

    for number in 0..INVOCATIONS_MAX {
        let task = task(&format!("build {number}"));
        builds.noted(id(count + number), &update(&task, Stage::Queued, None));
    }
    assert!(builds.invocation("second").is_none());
    let part = builds.invocations(&InvocationFilter::default(), (INVOCATIONS_MAX - 1, 5));
    assert_eq!((part.total, part.items.len(), &*part.items[0].id), (INVOCATIONS_MAX, 1, "build 0"));
    assert!(builds.record(id(count - 1)).is_some(), "an operation stays without its invocation");
}

#[test]
fn an_operation_that_is_forgotten_although_it_goes_on_counts_once_and_does_not_come_back() {
    let builds = Builds::default();
    let (slow, later) = (task("slow"), task("later"));
    let all = OPERATIONS_MAX + UNENDED_MAX + 1;
    for number in 0..all {
        let task = if number == 0 { &slow } else { &later };
        builds.noted(id(number), &update(task, Stage::Queued, None));
    }
    // The oldest of the invocation with most is the first that is forgotten.
    assert!(builds.record(id(0)).is_some() && builds.record(id(1)).is_none());
    builds.noted(id(1), &update(&later, Stage::Executing, None));
    builds.noted(id(1), &update(&later, Stage::Completed, Some(1)));
    assert!(builds.record(id(1)).is_none());
    let (invocation, _) = builds.invocation("later").unwrap();
    assert_eq!((invocation.failed, invocation.operations_forgotten()), (1, 1));
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
        let text = (!text.is_empty()).then_some(text);
        builds.operations(&Filter::new(state, text), (0, 10)).total
    };
    let action = task.action_digest;
    for digest in [action.to_string(), action.hex(), action.hex()[..8].to_owned()] {
        assert_eq!(found(None, &digest), 2, "{digest}");
    }
    assert_eq!([found(None, &id(1).to_string()), found(None, &id(2).to_string())], [1, 0]);
    assert_eq!([found(None, ""), found(None, "Cpp"), found(None, ":two"), found(None, "z")], [2, 2, 1, 0]);
    assert_eq!([found(Some(State::Failed), ""), found(Some(State::Failed), ":one")], [1, 0]);
}

#[test]
fn invocations_are_found_by_what_they_are_who_runs_them_and_how_they_ended() {
    let builds = Builds::default();
    let started = Event::Started(Started {
        command: "test".into(),
        patterns: vec!["//net/...".into()],
        ..Started::default()
    });
    let workspace = Event::Workspace(Workspace { user: "grace".into(), host: "desk".into() });
    let exit = |code| Event::Finished { exit: Exit { name: "X".into(), code }, at: None };
    let told = [("good", Some(exit(0))), ("bad", Some(exit(3))), ("going", None)];
    for (name, exit) in told {
        let events = [started.clone(), workspace.clone()].into_iter().chain(exit);
        for (sequence, event) in (1..).zip(events) {
            builds.tell(&position(name, sequence), &by("publisher"), Some(event)).unwrap();
        }
    }
    look_up(&builds, ("silent", ""), true);
    let task = task("broken");
    begin(&builds, (id(1), &task), &client("broken", ""), Lookup::Absent);
    builds.noted(id(1), &update(&task, Stage::Completed, Some(1)));
    let found = |filter: &InvocationFilter| -> Vec<String> {
        builds.invocations(filter, (0, 10)).items.iter().map(|one| one.id.to_string()).collect()
    };
    let with = |outcome| found(&InvocationFilter { outcome: Some(outcome), ..InvocationFilter::default() });
    assert_eq!(with(Outcome::Succeeded), ["good"]);
    assert_eq!(with(Outcome::Failed), ["broken", "bad"]);
    assert_eq!(
        (with(Outcome::UnderWay), with(Outcome::Unknown)),
        (vec!["going".into()], vec!["silent".into()])
    );
    let says =
        |text: &str| found(&InvocationFilter { text: Some(text.into()), ..InvocationFilter::default() });
    assert_eq!((says("grace").len(), says("desk").len(), says("net").len(), says("ada").len()), (3, 3, 3, 2));
    assert_eq!((says("goo"), says("8.1").len(), says("nobody").len()), (vec!["good".into()], 2, 0));
    let without = InvocationFilter { without: Some("silent"), ..InvocationFilter::default() };
    assert_eq!(found(&without).len(), 4);
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

#[test]
fn failures_and_what_has_not_ended_stay_when_a_large_build_goes_on() {
    let builds = Builds::default();
    let (large, small) = (task("large"), task("small"));
    let note = |number, task, code| builds.noted(id(number), &update(task, Stage::Completed, code));
    note(0, &small, Some(1));
    begin(&builds, (id(1), &large), &client("large", "//long:test"), Lookup::Absent);
    begin(&builds, (id(2), &large), &client("large", "//long:build"), Lookup::Absent);
    note(3, &large, Some(1));
    let pass =
        |first: usize| (first..first + OPERATIONS_MAX).for_each(|number| note(number, &large, Some(0)));
    pass(10);
    note(1, &large, Some(1));
    note(2, &large, Some(0));
    pass(10 + OPERATIONS_MAX);
    assert_eq!(&*builds.record(id(1)).unwrap().client.target, "//long:test");
    assert!(
        builds.record(id(0)).is_some() && builds.record(id(2)).is_none() && builds.record(id(3)).is_some()
    );
    let (invocation, records) = builds.invocation("large").unwrap();
    assert_eq!((invocation.failed, invocation.operations_forgotten()), (2, 1 + OPERATIONS_MAX as u64));
    assert_eq!((records[0].operation, records[1].operation), (id(1), id(3)));
    assert_eq!(builds.operations(&Filter::default(), (0, 0)).total, OPERATIONS_MAX + 3);

    // Of too many, those of the invocation go that has most.
    for number in 0..OPERATIONS_MAX + 2 * FAILURES_MAX {
        note(100_000 + number, &large, Some(1));
    }
    assert!(builds.record(id(0)).is_some() && builds.record(id(1)).is_none());
    assert_eq!(builds.operations(&Filter::default(), (0, 0)).total, OPERATIONS_MAX + FAILURES_MAX);
    let (invocation, records) = builds.invocation("large").unwrap();
    assert_eq!(records.len(), OPERATIONS_MAX + FAILURES_MAX - 1);
    assert_eq!(invocation.failed, 2 + (OPERATIONS_MAX + 2 * FAILURES_MAX) as u64);
    let book = builds.lock();
    assert_eq!((book.order.len(), book.records.len()), (records.len() + 1, records.len() + 1));
}

#[test]
fn look_ups_drive_out_nothing_but_look_ups_and_of_those_the_ones_of_who_has_most() {
    let builds = Builds::default();
    let publisher = by("ada");
    for sequence in 1..=50 {
        let event = completed(&format!("//bad:{sequence}"), Completion::Failed);
        builds.tell(&position("told", sequence), &publisher, Some(event)).unwrap();
    }
    begin(&builds, (id(1), &task("run")), &client("run", ""), Lookup::Hit);
    look_up(&builds, ("cached", ""), true);
    for number in 0..3 * LOOKERS_MAX {
        look_up_as("eve", &builds, (&format!("x{number}"), ""), false);
    }
    let event = completed("//good:1", Completion::Built);
    builds.tell(&position("told", 51), &publisher, Some(event)).unwrap();
    let told = told(&builds, "told").unwrap();
    assert_eq!((told.targets.total, told.targets.bad), (51, 50));
    assert!(!builds.invocation("told").unwrap().0.is_begun_elsewhere());
    assert!(builds.invocation("run").is_some() && builds.invocation("cached").is_some());
    assert_eq!(builds.invocations(&InvocationFilter::default(), (0, 0)).total, LOOKERS_MAX + 2);
    let book = builds.lock();
    assert_eq!((book.invocations.len(), book.invocation_order.len()), (LOOKERS_MAX + 2, LOOKERS_MAX + 2));
    assert_eq!((book.lookers.weight(), book.builders.weight()), (LOOKERS_MAX, 2));
}

#[test]
fn who_has_most_invocations_loses_them_and_of_those_what_goes_on_last() {
    let builds = Builds::default();
    let tell = |name: &str, sequence, who: &str| {
        builds.tell(&position(name, sequence), &by(who), None).unwrap();
    };
    tell("of ada", 1, "ada");
    tell("of eve", 1, "eve");
    for number in 0..2 * INVOCATIONS_MAX {
        tell(&format!("flood {number}"), 1, "eve");
        if number % 100 == 0 {
            tell("of eve", 2 + number as i64 / 100, "eve");
        }
    }
    assert!(builds.invocation("of ada").is_some());
    assert!(!builds.invocation("of eve").unwrap().0.is_begun_elsewhere());
    assert_eq!(builds.invocations(&InvocationFilter::default(), (0, 0)).total, INVOCATIONS_MAX);
    // What was driven out and goes on says so.
    tell("flood 0", 2, "eve");
    assert!(builds.invocation("flood 0").unwrap().0.is_begun_elsewhere());
}

#[test]
fn what_others_ask_for_in_the_name_of_an_invocation_is_not_counted_in_it() {
    let builds = Builds::default();
    let own = client("build", "");
    let ask = |number: usize, identity: &str| {
        let task = Task { identity: identity.into(), ..Task::clone(&task("build")) };
        let (instance, action) = (&task.instance, task.action_digest);
        let asked = Asked { operation: id(number), instance, action, identity, client: &own };
        builds.noted(id(number), &update(&Arc::new(task.clone()), Stage::Queued, None));
        builds.begin(&asked, Lookup::Absent);
        builds.noted(id(number), &update(&Arc::new(task.clone()), Stage::Completed, Some(1)));
        builds.looked_up(&own, ("main", looked_up(), identity), true);
    };
    ask(1, "token:ada");
    for (number, other) in ["token:eve", "10.0.0.1"].into_iter().enumerate() {
        ask(10 + number, other);
        let record = builds.record(id(10 + number)).unwrap();
        assert_eq!((record.state, &*record.identity), (State::Failed, other));
    }
    let (invocation, records) = builds.invocation("build").unwrap();
    assert_eq!((records.len(), invocation.executed, invocation.hits, invocation.failed), (1, 1, 1, 1));

    // Whoever tells of it may ask for something later than somebody else.
    builds.tell(&position("told", 1), &by("token:ada"), None).unwrap();
    for identity in ["token:eve", "token:ada", "token:bob"] {
        builds.looked_up(&client("told", ""), ("main", looked_up(), identity), true);
    }
    assert_eq!(builds.invocation("told").unwrap().0.hits, 2);

    // Whoever has not said who they are may come from elsewhere.
    let nobody = client("nobody", "");
    for address in ["10.0.0.1", "2001:db8::"] {
        builds.looked_up(&nobody, ("main", looked_up(), address), true);
    }
    assert_eq!(builds.invocation("nobody").unwrap().0.hits, 2);
}

fn by(who: &str) -> Publisher<'_> {
    Publisher { instance: "main", identity: who, account: who }
}

fn position(invocation: &str, sequence: i64) -> Position<'_> {
    Position { invocation, build: "b", component: 3, sequence }
}

fn completed(label: &str, end: Completion) -> Event {
    let target = Target { label: label.into(), configuration: "c".into(), ..Target::default() };
    Event::Completed { target, end, why: String::new() }
}

fn told(builds: &Builds, invocation: &str) -> Option<Arc<Told>> {
    builds.invocation(invocation).unwrap().0.told
}

#[test]
fn who_begins_to_tell_of_an_invocation_goes_on_and_nobody_else() {
    let builds = Builds::default();
    let tell = |who: &str, sequence| builds.tell(&position("build", sequence), &by(who), None);
    assert_eq!(tell("ada", 1).unwrap(), Turn::New);
    assert_eq!(tell("eve", 2).unwrap_err().kind(), Kind::Denied);
    assert_eq!(tell("ada", 1).unwrap(), Turn::Repeated);
    assert_eq!(tell("ada", 3).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(tell("ada", 2).unwrap(), Turn::New);
    assert_eq!(tell("ada", i64::MAX).unwrap_err().kind(), Kind::Precondition);
    for component in 10.. {
        let position = Position { component, ..position("build", 1) };
        if let Err(error) = builds.tell(&position, &by("ada"), None) {
            assert_eq!((component, error.kind()), (17, Kind::Exhausted));
            break;
        }
    }
}

#[test]
fn a_target_that_is_built_keeps_what_was_told_of_it_before() {
    let builds = Builds::default();
    let target = Target { label: "//a".into(), ..Target::default() };
    let events = [
        Event::Configured { target, kind: "rule".into() },
        completed("//a", Completion::Built),
        Event::Completed {
            target: Target { label: "//a".into(), configuration: "other".into(), ..Target::default() },
            end: Completion::Failed,
            why: "why".into(),
        },
        completed("//a", Completion::Built),
    ];
    for (sequence, event) in (1..).zip(events) {
        builds.tell(&position("build", sequence), &by("ada"), Some(event)).unwrap();
    }
    let told = told(&builds, "build").unwrap();
    assert_eq!((told.targets.total, told.targets.bad, told.targets.len()), (2, 1, 2));
    let rows: Vec<_> = told
        .targets
        .failures_first()
        .map(|(name, row)| (&*name.configuration, row.end, &*row.kind))
        .collect();
    assert_eq!(rows, [("other", Completion::Failed, "rule"), ("c", Completion::Built, "rule")]);
}

#[test]
fn what_all_clients_tell_is_bounded_and_what_was_told_first_goes_first() {
    let builds = Builds::default();
    let long = "😀".repeat(TEXT_CHARS_MAX);
    let names: Vec<String> = (0..12).map(|number| format!("build {number}")).collect();
    for name in &names {
        for sequence in 1..=ROWS_MAX as i64 + 1 {
            let label = format!("{sequence}{long}");
            let event = completed(&label, Completion::Built);
            builds.tell(&position(name, sequence), &by("ada"), Some(event)).unwrap();
        }
    }
    let book = builds.lock();
    let bytes: usize = book.invocations.values().map(Invocation::told_bytes).sum();
    assert_eq!(bytes, book.told.weight());
    assert!(bytes <= TOLD_BYTES_MAX && bytes > TOLD_BYTES_MAX / 2, "{bytes}");
    drop(book);
    let last = told(&builds, "build 11").unwrap();
    assert!(last.targets.total == ROWS_MAX + 1 && last.targets.len() < ROWS_MAX);
    let (first, _) = builds.invocation("build 0").unwrap();
    assert!(first.told.is_none() && first.is_told_forgotten());
    // It is not begun again in the middle.
    let event = completed("//late", Completion::Built);
    builds.tell(&position("build 0", ROWS_MAX as i64 + 2), &by("ada"), Some(event)).unwrap();
    assert!(told(&builds, "build 0").is_none());
}
