//! Small questions: which blobs are missing, what an action's result is.

use bytes::Bytes;
use croft::digest::{Digest, Function};
use croft::proto::rev2::{ActionResult, FindMissingBlobsRequest, GetActionResultRequest, OutputFile};
use futures_util::stream::{self, StreamExt};
use prost::Message;

use crate::client::Client;
use crate::farm::Farm;
use crate::{Figure, Goal, Rounds, limits, median, rate};

/// Digests of one FindMissingBlobs, and such calls one after the other.
const DIGESTS: usize = 10_000;
const CALLS: usize = 10;

/// Calls of GetActionResult at the same time.
const AT_ONCE: usize = 16;

/// Outputs that one round of GetActionResult checks at most, over all its calls.
const OUTPUTS_MAX: usize = 200_000;
const GETS_MAX: usize = 2_000;

/// Blobs in one batch.
const BATCH: usize = 1_000;

fn blob(number: usize) -> Bytes {
    format!("output {number}").into()
}

/// Stores `count` small blobs.
async fn stored(client: &Client, count: usize) -> Vec<Digest> {
    let blobs: Vec<Bytes> = (0..count).map(blob).collect();
    let mut digests = Vec::new();
    for batch in blobs.chunks(BATCH) {
        digests.extend(client.put_all(batch.to_vec()).await);
    }
    digests
}

/// What a client asks that has all of its blobs here, or none.
pub(crate) async fn missing(rounds: Rounds, are_present: bool) -> Figure {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digests = match are_present {
        true => stored(&client, DIGESTS).await,
        false => (0..DIGESTS).map(|number| Function::Sha256.hash(&blob(number))).collect(),
    };
    let proto: Vec<_> = digests.iter().map(Digest::to_proto).collect();
    let request_bytes = FindMissingBlobsRequest { blob_digests: proto, ..Default::default() }.encoded_len();
    let expected = if are_present { 0 } else { DIGESTS };
    let response_bytes = if are_present { 1 } else { request_bytes };
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..rounds.0.min(5) {
        let calls = async {
            for _ in 0..CALLS {
                assert_eq!(client.missing(&digests).await.len(), expected);
            }
        };
        ours.push(rate((CALLS * DIGESTS) as f64, calls).await);
        limit.push(DIGESTS as f64 * limits::exchanges(request_bytes, response_bytes, CALLS, 1));
    }
    Figure {
        name: format!("FindMissing of 10,000, all {}", if are_present { "present" } else { "absent" }),
        ours: median(ours),
        limit: median(limit),
        limit_name: "same bytes over TCP",
        unit: "digests/s",
        goal: Goal::Shown,
    }
}

/// Hits of the action cache. Each is checked to be complete, so the outputs count.
pub(crate) async fn results(rounds: Rounds, outputs: usize) -> Figure {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digests = stored(&client, outputs).await;
    let output = |(number, digest): (usize, &Digest)| OutputFile {
        path: format!("out/{number}"),
        digest: Some(digest.to_proto()),
        ..OutputFile::default()
    };
    let output_files = digests.iter().enumerate().map(output).collect();
    let result = ActionResult { output_files, ..ActionResult::default() };
    let response_bytes = result.encoded_len();
    let action = client.put(&b"an action"[..]).await;
    client.put_result(&action, result).await.unwrap();
    let request = GetActionResultRequest {
        action_digest: Some(action.to_proto()),
        digest_function: Function::Sha256.to_proto().into(),
        ..Default::default()
    };
    let gets = (OUTPUTS_MAX / outputs).min(GETS_MAX);
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..rounds.0.min(5) {
        let calls = stream::iter(0..gets).map(|_| async {
            let result = client.cache.clone().get_action_result(request.clone()).await.unwrap();
            assert_eq!(result.get_ref().output_files.len(), outputs);
        });
        let all = calls.buffer_unordered(AT_ONCE).for_each(|()| std::future::ready(()));
        ours.push(rate(gets as f64, all).await);
        limit.push(limits::exchanges(request.encoded_len(), response_bytes, gets, AT_ONCE));
    }
    Figure {
        name: format!("cached results of {outputs} outputs, {AT_ONCE} at once"),
        ours: median(ours),
        limit: median(limit),
        limit_name: "same bytes over TCP",
        unit: "/s",
        goal: Goal::Shown,
    }
}
