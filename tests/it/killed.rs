//! The process is killed while its worker makes an input tree, and the next one shows no action a part of it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use croft::digest::{Digest, Function};

use crate::client::{Client, Inputs, code, message, shell, stdout};
use crate::farm::Farm;

/// So many that making the tree takes long enough to be met in the middle.
const FILES: usize = 3000;
/// How much of the tree is there when the process is killed.
const STAGES: [usize; 3] = [1, FILES / 2, FILES];
/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Waits until so many files of a tree are there, or there are more trees than before.
async fn until_staged(inputs: &Path, (before, files): (usize, usize)) {
    let deadline = Instant::now() + PATIENCE;
    let staged = || fs::read_dir(inputs.join("layers")).into_iter().flatten().flatten();
    while count(&inputs.join("trees")) == before && !staged().any(|layer| count(&layer.path()) >= files) {
        assert!(Instant::now() < deadline, "no tree is made");
        tokio::task::yield_now().await;
    }
}

async fn action(client: &Client, word: &str) -> (Digest, String) {
    let content = |number: usize| format!("{word} {number}\n");
    let inputs = (0..FILES)
        .fold(Inputs::default(), |inputs, number| inputs.file(&number.to_string(), content(number)));
    let action = client.action(&shell("ls | sort -n | xargs cat | sha256sum", &[]), &inputs, |_| {}).await;
    let all: String = (0..FILES).map(content).collect();
    (action, format!("{}  -\n", Function::Sha256.hash(all.as_bytes()).hex()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_while_it_makes_a_tree_shows_the_whole_of_it_when_it_is_started_again() {
    let data = tempfile::tempdir().unwrap();
    for (word, files) in ["a", "b", "c"].into_iter().zip(STAGES) {
        let mut farm = Farm::start_in(data.path(), &[]);
        let client = Client::new(&farm).await;
        let (action, expected) = action(&client, word).await;
        let inputs = data.path().join("worker/inputs");
        let before = count(&inputs.join("trees"));
        let stream = client.execution.clone().execute(client.request(&action)).await.unwrap();
        until_staged(&inputs, (before, files)).await;
        farm.kill();
        drop(stream);
        let farm = Farm::start_in(data.path(), &[]);
        let client = Client::new(&farm).await;
        let response = client.execute(client.request(&action)).await.unwrap();
        assert_eq!((code(&response), stdout(&response)), (0, expected), "{}", message(&response));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_cannot_have_one_directory() {
    let farm = Farm::start();
    let tier = format!("[{{kind=\"farm\",endpoints=[\"http://{}\"]}}]", farm.public);
    let environment = [
        ("CROFT_ROLES", "[\"worker\"]"),
        ("CROFT_WORKER__SCHEDULER", "grpc://127.0.0.1:1"),
        ("CROFT_STORAGE__TIER", &tier),
    ];
    let Err((status, errors)) = Farm::try_start(farm.data(), &environment) else { panic!("it started") };
    assert!(!status.success() && errors.contains("in use"), "{errors}");
}
