//! The layer around all services of a listener: it finds out who calls before anybody else looks at the request.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use tonic::Status;
use tower::{Layer, Service};

use crate::error::{Error, Kind};
use crate::listen::{Peer, is_grpc};

use super::Access;
use super::caller::Head;
use super::open::Held;

/// What anybody may ask: whether the farm lives. Balancers and supervisors have no credentials. To watch it keeps a request open, so that is
/// not for everybody.
const OPEN: [&str; 3] = ["/grpc.health.v1.Health/Check", "/livez", "/readyz"];

/// Puts a [`super::Caller`] among the extensions of every request, or answers itself when a credential is wrong.
#[derive(Debug, Clone)]
pub struct Guard(pub(super) Arc<Access>);

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, access: Arc::clone(&self.0) }
    }
}

/// A service behind a [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    access: Arc<Access>,
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Body + Unpin + Default + From<String>,
{
    type Response = Response<Held<R>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let access = Arc::clone(&self.access);
        // The one that is ready serves this request; its clone has to become ready for the next.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            if OPEN.contains(&request.uri().path()) {
                let answer = inner.call(request).await?;
                return Ok(answer.map(|body| Held::new(body, None)));
            }
            let head = take_head(&mut request);
            // Services demand their rights when they have read the request; nobody without any makes us read it.
            let identified = access.identify(head).await;
            let admitted = identified.and_then(|caller| {
                caller.demand_anything()?;
                access.open(&caller).map(|place| (caller, place))
            });
            let mut answer = match admitted {
                Ok((caller, place)) => {
                    request.extensions_mut().insert(caller);
                    inner.call(request).await?.map(|body| Held::new(body, place))
                }
                Err(error) => refusal(request.headers(), &error).map(|body| Held::new(body, None)),
            };
            if answer.status() == StatusCode::UNAUTHORIZED {
                answer.headers_mut().insert(WWW_AUTHENTICATE, access.challenge());
            }
            Ok(answer)
        })
    }
}

/// The credential is taken out of the request, so that nobody behind the guard can log it or pass it on.
fn take_head<B>(request: &mut Request<B>) -> Head {
    let values: Vec<HeaderValue> = request.headers().get_all(AUTHORIZATION).iter().cloned().collect();
    request.headers_mut().remove(AUTHORIZATION);
    let authorization = match &values[..] {
        [] => None,
        [one] => Some(one.to_str().map(str::to_owned).map_err(|_| ())),
        _ => Some(Err(())),
    };
    let peer = request.extensions().get::<Peer>().cloned();
    Head { peer, uri: request.uri().clone(), authorization, is_rebound: is_rebound(request) }
}

/// Whether it may come from a web page whose own name leads here: then the address says nothing of who wrote it. What a page asks of its own
/// origin has no header that tells so, unless it changes something; but it names the farm as the page is named.
fn is_rebound<B>(request: &Request<B>) -> bool {
    let only_reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority: Option<Authority> = host.and_then(|host| host.parse().ok());
    let name = request.uri().host().or(authority.as_ref().map(Authority::host));
    let is_of_this_machine = |name: &str| {
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
    };
    only_reads && name.is_some_and(|name| !is_of_this_machine(name))
}

fn refusal<R: Default + From<String>>(headers: &HeaderMap, error: &Error) -> Response<R> {
    if is_grpc(headers) {
        return Status::new(crate::status::code_of(error.kind()), error.public_message()).into_http();
    }
    let mut response = Response::new(R::from(error.public_message() + "\n"));
    *response.status_mut() = status_of(error.kind());
    response
}

/// What a credential can fail with; all else is our fault.
fn status_of(kind: Kind) -> StatusCode {
    if kind == Kind::Unauthenticated {
        StatusCode::UNAUTHORIZED
    } else if kind == Kind::Denied {
        StatusCode::FORBIDDEN
    } else if kind == Kind::Exhausted {
        StatusCode::TOO_MANY_REQUESTS
    } else if kind == Kind::Unavailable {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}
