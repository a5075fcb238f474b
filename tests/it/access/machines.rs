//! Processes of a farm that know each other by tokens out of files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use croft::access::FreshToken;

use super::Doors;
use crate::client::{Client, Inputs, code, message, shell};
use crate::farm::Farm;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A farm of three processes, which are let in by their tokens only, and the files of these.
struct Machines {
    directory: tempfile::TempDir,
    cas: Farm,
    scheduler: Farm,
}

impl Machines {
    fn start(doors: &Doors) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (rules, tokens) = doors.values();
        let access = [("CROFT_ACCESS__RULES", rules.as_str()), ("CROFT_ACCESS__TOKENS", tokens.as_str())];
        let start = |name: &str, environment: &[(&str, &str)]| {
            Farm::start_in(&directory.path().join(name), &[environment, &access].concat())
        };
        let cas = start("cas", &[("CROFT_ROLES", "[\"cas\"]")]);
        let tier = tier(&cas, &write(directory.path(), "scheduler.token", doors.secret("machine")));
        let roles = ("CROFT_ROLES", "[\"scheduler\"]");
        let workers = ("CROFT_WORKERS__LISTEN", "127.0.0.1:0");
        let scheduler = start("scheduler", &[roles, workers, ("CROFT_STORAGE__TIER", &tier)]);
        Self { directory, cas, scheduler }
    }

    /// A worker that shows the scheduler and the cache the token in `token`.
    fn worker(&self, token: &Path) -> Farm {
        Farm::start_in(
            &self.directory.path().join("worker"),
            &[
                ("CROFT_ROLES", "[\"worker\"]"),
                ("CROFT_WORKER__SCHEDULER", &format!("grpc://{}", self.scheduler.workers)),
                ("CROFT_WORKER__TOKEN", token.to_str().unwrap()),
                ("CROFT_STORAGE__TIER", &tier(&self.cas, token)),
            ],
        )
    }
}

fn write(directory: &Path, name: &str, content: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, format!("{content}\n")).unwrap();
    path
}

/// The cache as a tier, in an instance where only tokens open.
fn tier(cas: &Farm, token: &Path) -> String {
    format!("[{{kind=\"farm\",endpoints=[\"http://{}\"],instance=\"farm\",token={token:?}}}]", cas.public)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_let_in_by_the_tokens_in_their_files() {
    let doors = Doors::new()
        .token("machine", "read,write,cache-write,work", "**")
        .token("idle", "read,write", "**")
        .anonymous("read,write,execute", "");
    let machines = Machines::start(&doors);
    let unknown = FreshToken::generate().unwrap();
    let token = write(machines.directory.path(), "worker.token", &unknown.token);
    let worker = machines.worker(&token);

    let is_told = async |sentence: &str| {
        let (status, page) = worker.page("/readyz").await;
        status == 503 && page.contains(sentence) && worker.log().contains(sentence)
    };
    until("a token that nobody knows is told of", async || {
        is_told("the scheduler refuses the worker: the token is not known here").await
    })
    .await;
    write(machines.directory.path(), "worker.token", doors.secret("idle"));
    until("a token without the right is told of", async || {
        is_told("the scheduler refuses the worker: `token:idle` does not have the right `work`").await
    })
    .await;
    write(machines.directory.path(), "worker.token", doors.secret("machine"));
    until("the right token opens", async || worker.page("/readyz").await.0 == 200).await;

    let execution = Client::new(&machines.scheduler).await;
    let client = Client {
        execution: execution.execution,
        operations: execution.operations,
        ..Client::new(&machines.cas).await
    };
    let inputs = Inputs::default().file("in", "hello");
    let action = client.action(&shell("cat in in > out", &["out"]), &inputs, |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), 0, "{}", message(&response));
    for farm in [&machines.cas, &machines.scheduler, &worker] {
        assert!(!farm.log().contains(doors.secret("machine")), "a secret stands in the log");
    }
}
