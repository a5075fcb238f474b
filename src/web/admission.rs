//! Who may look at a page and who may change something, and what every answer forbids the browser.

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::{Caller, Right};

use super::Pages;
use super::answer::failed;

/// The header that a request must have that changes something. A page of another origin cannot send it without our consent, which
/// we never give; so no web page that an operator looks at can make the browser do what only the operator may.
pub const ADMIN_HEADER: &str = "croft-admin";

/// What anybody may ask, since supervisors have no credentials.
const OPEN: [&str; 2] = ["/livez", "/readyz"];

/// What a browser may do with our pages: load our style, our script and images that are part of the page, and ask us. Nothing that an
/// action writes can run, even if it got into a page as it is.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// On every answer. Pages tell of builds, so nobody keeps them; what may be kept says so itself.
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Adds what every answer forbids.
pub(super) async fn protect(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Pages tell of all instances: whoever may read everything may look at them, and operators, too, but for what is in the store; the pages
/// that show that demand the right to read. To change something is for operators.
pub(super) async fn admit(request: Request, next: Next) -> Response {
    let caller = Caller::of(request.extensions());
    let admitted = if OPEN.contains(&request.uri().path()) {
        Ok(())
    } else if is_only_read(&request) {
        caller.demand_everywhere(Right::Read | Right::Admin)
    } else {
        caller.demand_everywhere(Right::Admin).inspect(|()| caller.record_administration(""))
    };
    match admitted {
        Ok(()) => next.run(request).await,
        Err(error) => failed(&error),
    }
}

fn is_only_read(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

pub(super) async fn refuse_other_origins(
    State(pages): State<Pages>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    // HTTP/2 has no header for the host.
    let host = request.uri().authority().map(Authority::as_str).or(text(headers, &header::HOST));
    let is_own = || match text(headers, &header::ORIGIN) {
        Some(origin) => is_own_page((origin, host), pages.public_url.as_deref()),
        None => !headers.contains_key(header::ORIGIN),
    };
    if is_only_read(&request) || (headers.contains_key(ADMIN_HEADER) && is_own()) {
        return next.run(request).await;
    }
    let message = format!("this needs the header `{ADMIN_HEADER}: 1` and is not for web pages of others\n");
    (StatusCode::FORBIDDEN, message).into_response()
}

/// Whether one of our own pages sends the request: its origin is where the request goes to. A name that is not known to be ours proves
/// nothing, since whoever owns a name can let it lead here; so it is an address, this machine, or the configured one.
fn is_own_page((origin, host): (&str, Option<&str>), public_url: Option<&str>) -> bool {
    let Ok(origin) = origin.parse::<Uri>() else { return false };
    let public = public_url.and_then(|url| url.parse::<Uri>().ok());
    let is_public = public
        .is_some_and(|public| (public.scheme(), public.authority()) == (origin.scheme(), origin.authority()));
    let name = origin.host().unwrap_or_default();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_certain = address.parse::<std::net::IpAddr>().is_ok() || name == "localhost";
    let leads_here = origin.authority().map(Authority::as_str) == host;
    is_public || (is_certain && leads_here)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_may_change_something() {
        let public = Some("https://farm.example.org/croft");
        let is_own = |origin: &str, host: &str, public| is_own_page((origin, Some(host)), public);
        assert!(is_own("http://127.0.0.1:50080", "127.0.0.1:50080", None));
        assert!(is_own("http://[::1]:50080", "[::1]:50080", None));
        assert!(is_own("http://localhost:1", "localhost:1", None));
        assert!(is_own("https://farm.example.org", "10.0.0.1:50080", public));
        for (origin, host, public) in [
            ("http://evil.example", "127.0.0.1:50080", None),
            ("http://evil.example:50080", "evil.example:50080", public),
            ("http://127.0.0.1:8000", "127.0.0.1:50080", None),
            ("http://farm.example.org", "farm.example.org", public),
            ("https://farm.example.org:444", "farm.example.org:444", public),
            ("null", "127.0.0.1:50080", None),
        ] {
            assert!(!is_own(origin, host, public), "{origin} {host}");
        }
    }
}
