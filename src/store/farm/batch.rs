//! Small blobs together: which go into one `BatchUpdateBlobs`, and what its answer says of each.

use std::collections::HashMap;

use bytes::Bytes;
use tonic::Code;

use super::failure;
use crate::digest::{Digest, Function};
use crate::error::{Error, Result};
use crate::proto::rev2::batch_update_blobs_request::Request as UpdateOne;
use crate::proto::rev2::{BatchUpdateBlobsRequest, BatchUpdateBlobsResponse};
use crate::store::Key;

/// Bytes of blobs in one batch, each with [`OVERHEAD_BYTES`]; servers take 4 MiB in one message, some less in one batch.
const BYTES_MAX: usize = 2 << 20;

/// What a blob costs in a batch beside its bytes: its digest, and the tags and lengths around both.
const OVERHEAD_BYTES: usize = 200;

/// A blob up to this size is sent in a batch, larger ones over ByteStream.
pub(super) const SMALL_BYTES_MAX: u64 = 256 << 10;

/// Blobs of one digest function that are sent in one call.
#[derive(Debug)]
pub(super) struct Batch {
    function: Function,
    blobs: Vec<(Digest, Bytes)>,
    bytes: usize,
}

/// Batches, each with the places of its blobs in the list that they come from, and the places of what goes alone.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) batches: Vec<(Vec<usize>, Batch)>,
    pub(super) singles: Vec<usize>,
}

impl Batch {
    fn new(function: Function) -> Self {
        Self { function, blobs: Vec::new(), bytes: 0 }
    }

    /// A batch of one.
    pub(super) fn of(digest: Digest, bytes: Bytes) -> Self {
        Self {
            function: digest.function(),
            bytes: bytes.len() + OVERHEAD_BYTES,
            blobs: vec![(digest, bytes)],
        }
    }

    fn has_room(&self, bytes: &Bytes) -> bool {
        self.bytes + bytes.len() + OVERHEAD_BYTES <= BYTES_MAX
    }

    fn add(&mut self, digest: Digest, bytes: Bytes) {
        self.bytes += bytes.len() + OVERHEAD_BYTES;
        self.blobs.push((digest, bytes));
    }

    pub(super) fn request(&self, instance: &str) -> BatchUpdateBlobsRequest {
        let requests = self.blobs.iter().map(|(digest, bytes)| UpdateOne {
            digest: Some(digest.to_proto()),
            data: bytes.clone(),
            ..UpdateOne::default()
        });
        BatchUpdateBlobsRequest {
            instance_name: instance.to_owned(),
            requests: requests.collect(),
            digest_function: self.function.to_proto().into(),
        }
    }

    /// What the answer says of each blob, in their order; a server answers in any.
    pub(super) fn results(&self, response: BatchUpdateBlobsResponse) -> Vec<Result<()>> {
        let mut codes = HashMap::new();
        for one in response.responses {
            if let Ok(digest) = Digest::from_proto(self.function, one.digest.as_ref()) {
                codes.insert(digest, one.status.map_or(Code::Ok.into(), |status| status.code));
            }
        }
        let stored = [Code::Ok, Code::AlreadyExists].map(i32::from);
        let results = self.blobs.iter().map(|(digest, _)| {
            let code = codes.get(digest).copied().unwrap_or(Code::Unavailable.into());
            if stored.contains(&code) {
                return Ok(());
            }
            Err(failure::from_code(code, &format!("store blob {digest}")))
        });
        results.collect()
    }

    /// The same error for each blob.
    pub(super) fn failed(&self, error: &Error) -> Vec<Result<()>> {
        let fail = |digest| Err(Error::new(error.kind(), format!("store blob {digest}: {error}")));
        self.blobs.iter().map(|(digest, _)| fail(digest)).collect()
    }
}

/// Sorts `blobs` into batches. What is no blob, is large or has not the size of its digest goes alone.
pub(super) fn plan(blobs: &[(Key, Bytes)]) -> Plan {
    let mut plan = Plan::default();
    let mut open: HashMap<Function, usize> = HashMap::new();
    for (place, (key, bytes)) in blobs.iter().enumerate() {
        let Some(digest) = batchable(key, bytes) else {
            plan.singles.push(place);
            continue;
        };
        let function = digest.function();
        let number = match open.get(&function) {
            Some(number) if plan.batches[*number].1.has_room(bytes) => *number,
            Some(_) | None => {
                plan.batches.push((Vec::new(), Batch::new(function)));
                open.insert(function, plan.batches.len() - 1);
                plan.batches.len() - 1
            }
        };
        plan.batches[number].0.push(place);
        plan.batches[number].1.add(digest, bytes.clone());
    }
    plan
}

fn batchable(key: &Key, bytes: &Bytes) -> Option<Digest> {
    let size = bytes.len() as u64;
    match key {
        Key::Blob(digest) => (size <= SMALL_BYTES_MAX && digest.size() == size).then_some(*digest),
        Key::Action(_) | Key::Asset(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::rev2::batch_update_blobs_response::Response as UpdatedOne;

    fn blob(function: Function, size: usize, seed: u8) -> (Key, Bytes) {
        let bytes = Bytes::from(vec![seed; size]);
        (Key::Blob(function.hash(&bytes)), bytes)
    }

    #[test]
    fn batches_have_one_function_and_stay_below_what_servers_take() {
        let mut blobs: Vec<_> =
            (0..200).map(|seed| blob(Function::ALL[seed % 2], 50_000, seed as u8)).collect();
        blobs.extend((0..60_000).map(|seed| blob(Function::Blake3, 1, seed as u8)));
        let singles = [
            blob(Function::Sha256, SMALL_BYTES_MAX as usize + 1, 1),
            (Key::Asset([1; 32]), Bytes::from_static(b"x")),
            (blob(Function::Sha256, 5, 1).0, Bytes::from_static(b"x")),
        ];
        blobs.extend(singles);
        let plan = plan(&blobs);
        assert_eq!(plan.singles, [60_200, 60_201, 60_202]);
        let mut places: Vec<usize> = plan.batches.iter().flat_map(|(places, _)| places.clone()).collect();
        places.sort_unstable();
        assert_eq!(places, (0..60_200).collect::<Vec<_>>());
        for (places, batch) in &plan.batches {
            assert_eq!(places.len(), batch.blobs.len());
            assert!(batch.blobs.iter().all(|(digest, _)| digest.function() == batch.function));
            assert!(batch.request("an/instance").encoded_len() <= BYTES_MAX + 100);
        }
    }

    #[test]
    fn an_answer_in_any_order_is_understood_and_silence_is_no_success() {
        let [a, b, c, d] = [1, 2, 3, 4].map(|seed| blob(Function::Sha256, 5, seed));
        let plan = plan(&[a, b, c, d]);
        let batch = &plan.batches[0].1;
        let answer = |place: usize, code: Code| UpdatedOne {
            digest: Some(batch.blobs[place].0.to_proto()),
            status: Some(crate::proto::Status { code: code.into(), ..Default::default() }),
        };
        let responses =
            vec![answer(2, Code::ResourceExhausted), answer(1, Code::AlreadyExists), answer(0, Code::Ok)];
        let results = batch.results(BatchUpdateBlobsResponse { responses });
        assert!(results[0].is_ok() && results[1].is_ok());
        let kinds: Vec<_> = results[2..].iter().map(|result| result.as_ref().unwrap_err().kind()).collect();
        assert_eq!(kinds, [crate::error::Kind::Exhausted, crate::error::Kind::Unavailable]);
    }
}
