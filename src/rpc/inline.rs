//! Puts small outputs into an action result when the client asks for it (REv2, `inline_stdout` and its kin).

use std::collections::HashSet;

use crate::digest::{Digest, Function};
use crate::proto::rev2::{self, ActionResult, ExecuteRequest};
use crate::store::Cas;

/// Bytes inlined into one result: with the rest of the message it stays far below the 4 MiB that clients take.
const INLINE_BYTES_MAX: u64 = 1 << 20;

/// What a client would like inlined.
#[derive(Debug, Clone, Default)]
pub(super) struct Hints {
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    /// Paths of output files.
    pub(super) files: HashSet<String>,
}

impl Hints {
    pub(super) fn of(request: &ExecuteRequest) -> Self {
        Self {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: request.inline_output_files.iter().cloned().collect(),
        }
    }

    /// Whether nothing was asked for.
    pub(super) fn are_none(&self) -> bool {
        !self.stdout && !self.stderr && self.files.is_empty()
    }

    /// Fills in what was asked for, as long as there is room. The digests stay, so nothing depends on it.
    pub(super) async fn apply(&self, cas: &Cas, function: Function, result: &mut ActionResult) {
        let mut reader = Reader { cas, function, left: INLINE_BYTES_MAX };
        if self.stdout {
            reader.fill(result.stdout_digest.as_ref(), &mut result.stdout_raw).await;
        }
        if self.stderr {
            reader.fill(result.stderr_digest.as_ref(), &mut result.stderr_raw).await;
        }
        for file in result.output_files.iter_mut().filter(|file| self.files.contains(&file.path)) {
            reader.fill(file.digest.as_ref(), &mut file.contents).await;
        }
    }
}

struct Reader<'a> {
    cas: &'a Cas,
    function: Function,
    left: u64,
}

impl Reader<'_> {
    /// A blob that cannot be read is left out: the client was promised its digest, not its bytes.
    async fn fill(&mut self, digest: Option<&rev2::Digest>, into: &mut Vec<u8>) {
        let Ok(digest) = Digest::from_proto(self.function, digest) else { return };
        if !into.is_empty() || digest.size() > self.left {
            return;
        }
        match self.cas.read(&digest, self.left).await {
            Ok(Some(bytes)) => {
                self.left -= digest.size();
                *into = bytes.to_vec();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(blob = %digest, error = error.chain(), "an output was not inlined"),
        }
    }
}
