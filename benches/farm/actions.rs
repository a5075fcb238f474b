//! Execution: actions that do nothing, so that only the farm is measured.

use std::ops::Range;

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
        ours.push(no_op_rate(&client, round * ACTIONS..(round + 1) * ACTIONS).await);
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

/// How many of the no-ops with these numbers, none of which has run before, are done in a second.
pub(crate) async fn no_op_rate(client: &Client, numbers: Range<usize>) -> f64 {
    let count = numbers.len() as f64;
    let actions: Vec<Digest> =
        stream::iter(numbers).map(|number| no_op(client, number)).buffered(AT_ONCE).collect().await;
    let runs = stream::iter(actions).map(|action| run(client, action)).buffer_unordered(AT_ONCE);
    rate(count, runs.for_each(|()| std::future::ready(()))).await
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
