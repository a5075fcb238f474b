//! A blob's size by its hash alone. The Remote Execution API has no such question; a server that serves plain HTTP beside its gRPC, as ours
//! do, answers it over the connections that there are.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Request, StatusCode, Version};
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt;

use super::failure::Failure;
use super::link::{Link, in_time};
use crate::credential::Lane;
use crate::error::{Error, Kind};

/// What a server says of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// In bytes.
    Size(u64),
    Absent,
    /// It does not serve plain HTTP, or keeps blobs where it does not find them by hash itself.
    Nothing,
}

/// What the server says of the blob with this hash, in hexadecimal digits.
pub(super) async fn ask(link: &Link, instance: &str, hash: &str) -> Result<Told, Failure> {
    let path = if instance.is_empty() { format!("/cas/{hash}") } else { format!("/{instance}/cas/{hash}") };
    let ask = |channel| in_time(link.timeout, head(channel, path.clone()));
    let (status, headers) = link.call(ask).await?;
    match status {
        StatusCode::OK => return Ok(size(&headers).map_or(Told::Nothing, Told::Size)),
        StatusCode::NOT_FOUND => return Ok(Told::Absent),
        _ => {}
    }
    let is_refused =
        matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
    if is_refused || status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
        let message = format!("ask for the size of a blob: a server of the farm tier says {status}");
        return Err(Failure::Source(Error::new(Kind::Unavailable, message)));
    }
    Ok(Told::Nothing)
}

async fn head(channel: Lane, path: String) -> Result<(StatusCode, HeaderMap), Status> {
    // What is no path cannot name anything there.
    let request = Request::head(path).version(Version::HTTP_2).body(Body::empty());
    let Ok(request) = request else { return Ok((StatusCode::NOT_FOUND, HeaderMap::new())) };
    let response = channel.oneshot(request).await.map_err(|error| Status::from_error(Box::new(error)))?;
    let (parts, _) = response.into_parts();
    Ok((parts.status, parts.headers))
}

/// The length of what would come. A server of gRPC alone says that all is well, too, and then in its own way what is not.
fn size(headers: &HeaderMap) -> Option<u64> {
    let kind = headers.get(CONTENT_TYPE)?.as_bytes();
    if kind.starts_with(b"application/grpc") {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_of_grpc_alone_says_is_no_size() {
        let headers = |kind: &'static str, length: &'static str| {
            HeaderMap::from_iter(
                [(CONTENT_TYPE, kind), (CONTENT_LENGTH, length)]
                    .map(|(name, value)| (name, http::HeaderValue::from_static(value))),
            )
        };
        assert_eq!(size(&headers("application/octet-stream", "12")), Some(12));
        assert_eq!(size(&headers("application/octet-stream", "-1")), None);
        assert_eq!(size(&headers("application/grpc", "0")), None);
        assert_eq!(size(&HeaderMap::new()), None);
    }
}
