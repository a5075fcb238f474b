//! Actions that are run again: what differs is found and named, on another worker where there is one, and the cache stays as it is.

use std::process::Output;
use std::time::{Duration, Instant};

use croft::audit::{Audits, Change, Location, Outcome, Report};
use croft::digest::Digest;
use croft::proto::rev2::{ActionResult, GetActionResultRequest};

use crate::client::{Client, Inputs, code, message, shell};
use crate::farm::{Farm, executable};

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn start() -> Farm {
    Farm::start_with(&[("CROFT_WORKERS__LISTEN", "127.0.0.1:0"), ("CROFT_WORKER__NAME", "one")])
}

/// Another worker, in a process of its own, once it is connected.
async fn join(farm: &Farm, name: &str) -> Farm {
    let worker = Farm::start_with(&[
        ("CROFT_ROLES", "[\"worker\"]"),
        ("CROFT_WORKER__NAME", name),
        ("CROFT_WORKER__SCHEDULER", &format!("grpc://{}", farm.workers)),
        ("CROFT_STORAGE__TIER", &format!("[{{kind=\"farm\",endpoints=[\"http://{}\"]}}]", farm.public)),
    ]);
    let deadline = Instant::now() + PATIENCE;
    while worker.page("/readyz").await.0 != 200 {
        assert!(Instant::now() < deadline, "it does not get ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    worker
}

/// Runs an action, so that its result is cached.
async fn run(client: &Client, script: &str, outputs: &[&str]) -> Digest {
    let action = client.action(&shell(script, outputs), &Inputs::default(), |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), 0, "{}", message(&response));
    assert_eq!(response.result.unwrap().exit_code, 0);
    action
}

async fn cached(client: &Client, action: &Digest) -> ActionResult {
    let request = GetActionResultRequest {
        action_digest: Some(action.to_proto()),
        digest_function: action.function().to_proto().into(),
        ..Default::default()
    };
    client.cache.clone().get_action_result(request).await.unwrap().into_inner()
}

async fn croft(farm: &Farm, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(executable());
    let address = format!("http://{}", farm.admin);
    let ended = command.arg("audit").args(arguments).args(["--admin", &address]).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap()
}

fn name(digest: &Digest) -> String {
    format!("{}/{}", digest.hex(), digest.size())
}

/// Audits these actions. Returns the exit code and the reports.
pub(crate) async fn audit(farm: &Farm, actions: &[&Digest]) -> (i32, Vec<Report>) {
    let names: Vec<String> = actions.iter().map(|action| name(action)).collect();
    let arguments: Vec<&str> = names.iter().map(String::as_str).chain(["--wait", "--json"]).collect();
    let output = croft(farm, &arguments).await;
    let reports = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), reports.unwrap_or_else(|_| panic!("{output:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_named_and_what_does_not_is_the_same() {
    let farm = start();
    let client = Client::new(&farm).await;
    let good = run(&client, "echo always > out", &["out"]).await;
    let script = "mkdir tree && echo first > tree/out && date +%s.%N >> tree/out && echo x > tree/same";
    let bad = run(&client, script, &["tree"]).await;
    let before = cached(&client, &bad).await;

    let (exit, reports) = audit(&farm, &[&good]).await;
    assert_eq!((exit, reports[0].outcome), (0, Outcome::Same), "{reports:?}");
    let (exit, reports) = audit(&farm, &[&good, &bad]).await;
    assert_eq!((exit, reports[0].outcome, reports[1].outcome), (1, Outcome::Same, Outcome::Differs));
    let [difference] = reports[1].differences.as_slice() else { panic!("{reports:?}") };
    assert_eq!((difference.path.as_str(), &difference.change), ("tree/out", &Change::Content));
    let Some(Location::Text { line: 2, before: first, again }) = &difference.location else {
        panic!("{difference:?}")
    };
    assert_ne!(first, again);
    assert_eq!(cached(&client, &bad).await, before, "the result that clients get is the one they got");
    assert!(reports[1].command.starts_with("/bin/sh -c mkdir tree"), "{}", reports[1].command);
    assert_eq!((reports[1].first_worker.as_str(), reports[1].second_worker.as_str()), ("one", "one"));

    let text = String::from_utf8(croft(&farm, &[]).await.stdout).unwrap();
    assert!(text.contains("tree/out: other content, line 2: `"), "{text}");
    assert!(text.contains("the same worker, `one`") && text.contains("2 same, 1 differ, 0 failed"), "{text}");
    let (_, page) = farm.page("/audit").await;
    assert!(page.contains("tree/out: other content"), "{page}");
    let (_, metrics) = farm.page("/metrics").await;
    for line in [
        "croft_audit_actions_total{outcome=\"differs\"} 1",
        "croft_audit_actions_total{outcome=\"same\"} 2",
        "croft_audit_differences_total 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_run_is_on_the_other_worker() {
    let farm = start();
    let client = Client::new(&farm).await;
    let action = run(&client, "echo same > out", &["out"]).await;
    let _two = join(&farm, "two").await;
    for _ in 0..3 {
        let (exit, reports) = audit(&farm, &[&action]).await;
        assert_eq!((exit, reports[0].outcome), (0, Outcome::Same), "{reports:?}");
        assert_eq!((reports[0].first_worker.as_str(), reports[0].second_worker.as_str()), ("one", "two"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_audited_says_why() {
    let farm = start();
    let client = Client::new(&farm).await;
    let never = client.function.hash(b"no action");
    let (exit, reports) = audit(&farm, &[&never]).await;
    assert_eq!((exit, reports[0].outcome), (2, Outcome::Failed));
    assert!(reports[0].failure.contains("no complete result"), "{reports:?}");
    assert_eq!(croft(&farm, &["no-digest"]).await.status.code(), Some(78));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_results_are_audited_by_rate_and_a_sample_takes_recent_ones() {
    let farm = Farm::start_with(&[("CROFT_AUDIT__RATE", "1.0")]);
    let client = Client::new(&farm).await;
    run(&client, "cat /proc/sys/kernel/random/uuid > id", &["id"]).await;
    let deadline = Instant::now() + PATIENCE;
    let report = loop {
        let audits: Audits = serde_json::from_str(&farm.page("/audit.json").await.1).unwrap();
        if let [report] = audits.reports.as_slice() {
            break report.clone();
        }
        assert!(Instant::now() < deadline, "nobody audits it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((report.outcome, report.differences[0].path.as_str()), (Outcome::Differs, "id"));
    let output = croft(&farm, &["--sample", "5", "--wait"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("0 same, 1 differ, 0 failed"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}
