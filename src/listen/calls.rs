//! The calls that are timed: what methods and codes are called in labels, and the histogram of each pair, which is looked up once.

use std::sync::{LazyLock, OnceLock};

use tonic::Code;

use crate::metrics::{Durations, REQUEST_DURATION, STREAM_DURATION, Timing};

/// The methods that we serve, as they stand in the label; a client can make no series of its own.
const METHODS: [&str; 33] = [
    "ActionCache/GetActionResult",
    "ActionCache/UpdateActionResult",
    "ByteStream/QueryWriteStatus",
    "ByteStream/Read",
    "ByteStream/Write",
    "Capabilities/GetCapabilities",
    "ContentAddressableStorage/BatchReadBlobs",
    "ContentAddressableStorage/BatchUpdateBlobs",
    "ContentAddressableStorage/FindMissingBlobs",
    "ContentAddressableStorage/GetTree",
    "ContentAddressableStorage/SpliceBlob",
    "ContentAddressableStorage/SplitBlob",
    "Execution/Execute",
    "Execution/WaitExecution",
    "ExternalScaler/GetMetricSpec",
    "ExternalScaler/GetMetrics",
    "ExternalScaler/IsActive",
    "ExternalScaler/StreamIsActive",
    "Fetch/FetchBlob",
    "Fetch/FetchDirectory",
    "Health/Check",
    "Health/Watch",
    "Operations/CancelOperation",
    "Operations/DeleteOperation",
    "Operations/GetOperation",
    "Operations/ListOperations",
    "Operations/WaitOperation",
    "PublishBuildEvent/PublishBuildToolEventStream",
    "PublishBuildEvent/PublishLifecycleEvent",
    "Push/PushBlob",
    "Push/PushDirectory",
    "ServerReflection/ServerReflectionInfo",
    "Workers/Work",
];

/// Those of them that last as long as what they wait for.
const WAITING: [&str; 8] = [
    "Execution/Execute",
    "Execution/WaitExecution",
    "ExternalScaler/StreamIsActive",
    "Health/Watch",
    "Operations/WaitOperation",
    "PublishBuildEvent/PublishBuildToolEventStream",
    "ServerReflection/ServerReflectionInfo",
    "Workers/Work",
];

/// The methods of plain HTTP, by the cache that they are about.
const PLAIN: [&str; 2] = ["HTTP/ac", "HTTP/cas"];

/// All that is none of those.
const OTHER: &str = "other";

/// The methods that ordinarily answer that something is not there.
const LOOK_UPS: [&str; 4] = ["ActionCache/GetActionResult", "ByteStream/Read", "HTTP/ac", "HTTP/cas"];

/// Codes as they stand in the label, by their numbers.
const CODES: [&str; 17] = [
    "Ok",
    "Cancelled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// A method by its place: first [`METHODS`], then [`PLAIN`], then [`OTHER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Method(usize);

/// How many there are.
const COUNT: usize = METHODS.len() + PLAIN.len() + 1;

impl Method {
    /// Of `/google.bytestream.ByteStream/Read`, `ByteStream/Read`; of plain HTTP, which of the two caches.
    pub(super) fn of(path: &str) -> Self {
        match path.rsplit('/').nth(1) {
            Some("ac") => return Self(METHODS.len()),
            Some("cas") => return Self(METHODS.len() + 1),
            Some(_) | None => {}
        }
        let name = path.rsplit_once('.').map_or("", |(_, name)| name);
        Self(METHODS.binary_search(&name).unwrap_or(COUNT - 1))
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..COUNT).map(Self)
    }

    pub(super) fn name(self) -> &'static str {
        METHODS.iter().chain(&PLAIN).nth(self.0).copied().unwrap_or(OTHER)
    }

    /// Whether a call lasts as long as what it waits for.
    pub(super) fn waits(self) -> bool {
        WAITING.contains(&self.name())
    }

    /// Whether it belongs to one of these services, by their full names. Plain HTTP belongs to the action cache.
    fn is_of(self, services: &[&str]) -> bool {
        let service = self.name().split('/').next().unwrap_or_default();
        let service = if service == "HTTP" { "ActionCache" } else { service };
        services.iter().any(|name| name.rsplit('.').next() == Some(service))
    }
}

/// The histograms of a family, by method and code.
pub(super) struct Timers {
    family: &'static LazyLock<Durations>,
    by_call: [[OnceLock<Timing>; CODES.len()]; COUNT],
}

/// Of calls up to their answer.
pub(super) static REQUESTS: Timers = Timers::new(&REQUEST_DURATION);

/// Of whole calls that last as long as what they wait for.
pub(super) static STREAMS: Timers = Timers::new(&STREAM_DURATION);

impl Timers {
    const fn new(family: &'static LazyLock<Durations>) -> Self {
        Self { family, by_call: [const { [const { OnceLock::new() }; CODES.len()] }; COUNT] }
    }

    /// The histogram of calls of `method` that ended with `code`.
    pub(super) fn of(&self, method: Method, code: Code) -> &Timing {
        let code = code as usize;
        self.by_call[method.0][code]
            .get_or_init(|| self.family.with_label_values(&[method.name(), CODES[code]]))
    }
}

/// Shows what is served from the start: a series that begins with its first call hides it from every rate. Of the codes, that is only
/// what calls ordinarily end with, since each takes 15 series.
pub fn promise(services: &[&str]) {
    for method in Method::all().filter(|method| method.is_of(services)) {
        REQUESTS.of(method, Code::Ok);
        if LOOK_UPS.contains(&method.name()) {
            REQUESTS.of(method, Code::NotFound);
        }
        if method.waits() {
            STREAMS.of(method, Code::Ok);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_named_without_its_package() {
        assert!(METHODS.is_sorted());
        let name = |path: &str| Method::of(path).name();
        assert_eq!(name("/google.bytestream.ByteStream/Read"), "ByteStream/Read");
        assert_eq!((name("/ac/00"), name("/some/instance/cas/00")), ("HTTP/ac", "HTTP/cas"));
        for unknown in ["", "/", "/x.Y/Z", "/google.bytestream.ByteStream/Read/more"] {
            assert_eq!(name(unknown), "other");
        }
    }

    #[test]
    fn every_code_has_its_own_name() {
        for (number, name) in CODES.iter().enumerate() {
            assert_eq!(format!("{:?}", Code::from_i32(number as i32)), *name);
        }
    }

    #[test]
    fn names_that_are_listed_twice_are_names_of_methods() {
        let names: Vec<&str> = Method::all().map(Method::name).collect();
        assert!(WAITING.iter().chain(&LOOK_UPS).all(|name| names.contains(name)));
    }

    #[test]
    fn a_service_has_its_methods_and_the_action_cache_those_of_plain_http() {
        let names = |services: &[&str]| -> Vec<&str> {
            Method::all().filter(|method| method.is_of(services)).map(Method::name).collect()
        };
        assert_eq!(names(&["grpc.health.v1.Health"]), ["Health/Check", "Health/Watch"]);
        let cache = names(&["build.bazel.remote.execution.v2.ActionCache"]);
        assert_eq!(
            cache,
            ["ActionCache/GetActionResult", "ActionCache/UpdateActionResult", "HTTP/ac", "HTTP/cas"]
        );
    }
}
