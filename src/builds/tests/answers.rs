//! What the action cache answers to invocations.

use super::*;

#[test]
fn an_action_that_is_looked_up_and_then_executed_counts_once() {
    let builds = Builds::default();
    let (task, client) = (task("build"), client("build", ""));
    for number in 0..2 {
        look_up(&builds, ("build", ""), false);
        begin(&builds, (id(number), &task), &client, Lookup::Absent);
    }
    look_up(&builds, ("build", "//a"), true);
    begin(&builds, (id(2), &task), &client, Lookup::Hit);
    begin(&builds, (id(3), &task), &client, Lookup::Skipped);
    let (invocation, _) = builds.invocation("build").unwrap();
    assert_eq!((invocation.hit_rate(), invocation.executed), (Some(0.5), 3));
    let [miss, hit] = &builds.answers("build")[..] else { panic!("a miss before anything ran, and a hit") };
    assert_eq!((miss.is_hit, hit.is_hit, miss.action), (false, true, looked_up()));
    assert_eq!((&*hit.target, &*hit.mnemonic, &*hit.instance), ("//a", "CppCompile", "main"));
    let cached = builds.record(id(2)).unwrap();
    assert!(cached.state == State::Cached && cached.duration() == Duration::ZERO);
}

#[test]
fn misses_are_named_of_a_build_that_tells_of_itself_and_executes_nothing_here() {
    let builds = Builds::default();
    builds.tell(&position("build", 1), &by("ada"), None).unwrap();
    look_up(&builds, ("build", "//a"), false);
    assert_eq!(builds.answers("build").len(), 1);
}

#[test]
fn answers_go_with_their_invocation() {
    let builds = Builds::default();
    for number in 0..LOOKERS_MAX {
        look_up(&builds, (&format!("build {number}"), ""), true);
    }
    assert_eq!((builds.answers("build 0").len(), builds.answers("build 1").len()), (1, 1));
    look_up(&builds, ("one more", ""), true);
    assert!(builds.invocation("build 0").is_none());
    assert_eq!((builds.answers("build 0").len(), builds.answers("build 1").len()), (0, 1));
}
