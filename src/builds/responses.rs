//! Which answers are kept whole: the latest, as long as there is room.

use std::collections::VecDeque;

use crate::proto::rev2::ExecuteResponse;
use crate::scheduler::OperationId;

/// Bytes of all answers together, twice: those of failures have a list of their own. One of a usual action takes less than two kilobytes, so
/// those of most operations that are kept find room.
const BYTES_MAX: usize = 32 << 20;

/// Bytes of one answer: no single one drives out all others.
const RESPONSE_BYTES_MAX: usize = 8 << 20;

/// Bytes that an answer takes at least, and each output of it: names, digests, and what stands around them. Estimated, because the
/// scheduler's driver has no time to look at a hundred thousand outputs.
const RESPONSE_BYTES: usize = 1 << 10;
const OUTPUT_BYTES: usize = 512;

/// The answers, the oldest first, and their estimated bytes.
#[derive(Debug, Default)]
pub(super) struct Responses {
    kept: VecDeque<(OperationId, usize)>,
    bytes: usize,
}

impl Responses {
    /// Counts an answer. Returns those that are to go, which may be this one.
    pub(super) fn add(&mut self, operation: OperationId, response: &ExecuteResponse) -> Vec<OperationId> {
        let bytes = estimated(response);
        if bytes > RESPONSE_BYTES_MAX {
            return vec![operation];
        }
        self.kept.push_back((operation, bytes));
        self.bytes += bytes;
        let mut gone = Vec::new();
        while self.bytes > BYTES_MAX
            && let Some((oldest, bytes)) = self.kept.pop_front()
        {
            self.bytes -= bytes;
            gone.push(oldest);
        }
        gone
    }
}

fn estimated(response: &ExecuteResponse) -> usize {
    let Some(result) = &response.result else { return RESPONSE_BYTES };
    let outputs = result.output_files.len() + result.output_symlinks.len() + result.output_directories.len();
    let inline = result.stdout_raw.len() + result.stderr_raw.len();
    RESPONSE_BYTES + OUTPUT_BYTES * outputs + inline
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rev2::ActionResult;

    fn with_output(bytes: usize) -> ExecuteResponse {
        let result = ActionResult { stdout_raw: vec![b'x'; bytes], ..ActionResult::default() };
        ExecuteResponse { result: Some(result), ..ExecuteResponse::default() }
    }

    #[test]
    fn the_oldest_answers_make_room_and_one_that_is_too_large_is_not_kept() {
        let mut responses = Responses::default();
        let large = with_output(RESPONSE_BYTES_MAX - RESPONSE_BYTES);
        let fit = BYTES_MAX / RESPONSE_BYTES_MAX;
        for number in 0..fit {
            assert_eq!(responses.add(OperationId::new(number as u128), &large), []);
        }
        let huge = with_output(RESPONSE_BYTES_MAX);
        assert_eq!(responses.add(OperationId::new(99), &huge), [OperationId::new(99)]);
        assert_eq!(responses.add(OperationId::new(100), &with_output(0)), [OperationId::new(0)]);
        assert!(responses.bytes <= BYTES_MAX && responses.kept.len() == fit);
    }
}
