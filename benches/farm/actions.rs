//! Execution: actions that do nothing, so that only the farm is measured.

use croft::digest::Digest;
use croft::proto::rev2::Command;
use futures_util::stream::{self, StreamExt};

use crate::client::{Client, Inputs, code, message};
use crate::farm::Farm;
use crate::{Figure, Goal, Rounds, limits, median, rate};

const ACTIONS: usize = 1000;
const AT_ONCE: usize = 64;

/// Distinct actions, none of them cached, in the sandbox.
pub(crate) async fn no_ops(rounds: Rounds) -> Figure {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..rounds.0.min(3) {
        let actions: Vec<Digest> = stream::iter(0..ACTIONS)
            .map(|number| no_op(&client, round * ACTIONS + number))
            .buffered(AT_ONCE)
            .collect()
            .await;
        let runs = stream::iter(actions).map(|action| run(&client, action)).buffer_unordered(AT_ONCE);
        ours.push(rate(ACTIONS as f64, runs.for_each(|()| std::future::ready(()))).await);
        limit.push(limits::processes(ACTIONS));
    }
    Figure {
        name: "no-op actions at concurrency 64".into(),
        ours: median(ours),
        limit: median(limit),
        limit_name: "bare processes",
        unit: "/s",
        goal: Goal::Rate(200.0),
    }
}

async fn no_op(client: &Client, number: usize) -> Digest {
    let command = Command { arguments: vec!["/bin/true".into(), number.to_string()], ..Command::default() };
    client.action(&command, &Inputs::default(), |_| {}).await
}

async fn run(client: &Client, action: Digest) {
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!((code(&response), response.cached_result), (0, false), "{}", message(&response));
    assert_eq!(response.result.unwrap().exit_code, 0);
}
