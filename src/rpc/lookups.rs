//! Counts look-ups of action results, in all and by what clients say that they build.

use std::sync::LazyLock;

use tonic::metadata::MetadataMap;

use crate::audit;
use crate::error::Result;
use crate::metrics::{ACTION_CACHE_LOOKUPS, ACTION_CACHE_RESULTS, Counter, Vocabulary};
use crate::proto;
use crate::proto::rev2::RequestMetadata;

use super::Offered;

/// What a result is asked for by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Method {
    GetActionResult,
    Execute,
}

impl Method {
    const ALL: [Self; 2] = [Self::GetActionResult, Self::Execute];

    const fn name(self) -> &'static str {
        match self {
            Self::GetActionResult => "GetActionResult",
            Self::Execute => "Execute",
        }
    }

    const fn is_offered(self, offered: Offered) -> bool {
        match self {
            Self::GetActionResult => offered.cache,
            Self::Execute => offered.execution,
        }
    }
}

/// The counters of the look-ups by one method.
#[derive(Debug)]
struct Outcomes {
    hit: Counter,
    miss: Counter,
    error: Counter,
}

impl Outcomes {
    fn new(counter: impl Fn(&str) -> Counter) -> Self {
        Self { hit: counter("hit"), miss: counter("miss"), error: counter("error") }
    }

    fn count<T>(&self, found: &Result<Option<T>>) {
        match found {
            Ok(Some(_)) => self.hit.inc(),
            Ok(None) => self.miss.inc(),
            Err(_) => self.error.inc(),
        }
    }
}

/// By the place of the method.
static ALL: [LazyLock<Outcomes>; 2] =
    [LazyLock::new(|| of_method(Method::GetActionResult)), LazyLock::new(|| of_method(Method::Execute))];

static BY_MNEMONIC: Vocabulary<[Outcomes; 2]> = Vocabulary::new(of_mnemonic);

fn of_method(method: Method) -> Outcomes {
    Outcomes::new(|outcome| ACTION_CACHE_RESULTS.with_label_values(&[method.name(), outcome]))
}

fn of_mnemonic(mnemonic: &str) -> [Outcomes; 2] {
    Method::ALL.map(|method| {
        let counter =
            |outcome: &str| ACTION_CACHE_LOOKUPS.with_label_values(&[mnemonic, method.name(), outcome]);
        Outcomes::new(counter)
    })
}

/// Shows the counters of what is offered from the start: a series that begins with its first look-ups hides them from every rate.
pub(super) fn promise(offered: Offered) {
    for method in Method::ALL.into_iter().filter(|method| method.is_offered(offered)) {
        LazyLock::force(&ALL[method as usize]);
    }
}

/// What the client says of its request; nothing when it is malformed. The invocation that the farm's own audits go by is nobody else's.
pub(super) fn request_metadata(metadata: &MetadataMap) -> RequestMetadata {
    let mut said = proto::request_metadata(metadata.as_ref()).unwrap_or_default();
    if said.tool_invocation_id == audit::NAME {
        said.tool_invocation_id.clear();
    }
    said
}

/// Counts a look-up by `method` for an action of this mnemonic.
pub(super) fn count<T>(method: Method, mnemonic: &str, found: &Result<Option<T>>) {
    ALL[method as usize].count(found);
    BY_MNEMONIC.of(mnemonic)[method as usize].count(found);
}
