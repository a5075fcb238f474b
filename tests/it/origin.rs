//! A server on loopback that farms fetch from in tests.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use futures_util::StreamExt;

/// What every path without a rule of its own answers.
pub(crate) const CONTENT: &str = "what the origin has";

/// The header that paths below `/secret` want.
pub(crate) const SECRET: &str = "Bearer open-sesame";

/// A running server. It ends with the test's runtime.
pub(crate) struct Origin {
    pub(crate) port: u16,
    state: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<(String, HeaderMap)>>,
    files: Mutex<Vec<(String, Bytes)>>,
}

impl Origin {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Shared::default());
        let router = Router::new().fallback(answer).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, state }
    }

    /// The environment of a farm that may fetch from here, by address and by name.
    pub(crate) fn allowed(&self) -> String {
        format!("[\"{}\", \"http://localhost:{}/\"]", self.url("/"), self.port)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Lets `path` answer with `content`.
    pub(crate) fn put(&self, path: &str, content: impl Into<Bytes>) -> String {
        self.state.files.lock().unwrap().push((path.to_owned(), content.into()));
        self.url(path)
    }

    /// The headers of the requests for `path`.
    pub(crate) fn requests(&self, path: &str) -> Vec<HeaderMap> {
        let requests = self.state.requests.lock().unwrap();
        requests.iter().filter(|(asked, _)| asked == path).map(|(_, headers)| headers.clone()).collect()
    }
}

async fn answer(State(state): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    state.requests.lock().unwrap().push((path.clone(), headers.clone()));
    let file = state.files.lock().unwrap().iter().rfind(|(name, _)| *name == path).cloned();
    if let Some((_, content)) = file {
        return Response::new(Body::from(content));
    }
    if let Some(code) = path.strip_prefix("/status/") {
        return status(code.parse().unwrap());
    }
    if let Some(target) = path.strip_prefix("/to/") {
        let host = headers[header::HOST].to_str().unwrap();
        let port = host.rsplit_once(':').unwrap().1;
        return redirect(&target.replace("LOCALHOST", &format!("http://localhost:{port}")));
    }
    match path.as_str() {
        path if path.starts_with("/secret")
            && headers.get("authorization").is_none_or(|value| value != SECRET) =>
        {
            status(401)
        }
        "/loop" => redirect("/loop"),
        "/never" => std::future::pending().await,
        "/stalls" => body(futures_util::stream::iter([CONTENT]).chain(futures_util::stream::pending())),
        "/endless" => body(futures_util::stream::repeat(CONTENT)),
        "/chunked" => body(futures_util::stream::iter([CONTENT, CONTENT])),
        _ => Response::new(Body::from(CONTENT)),
    }
}

fn body(chunks: impl futures_util::Stream<Item = &'static str> + Send + 'static) -> Response<Body> {
    Response::new(Body::from_stream(chunks.map(Ok::<_, std::io::Error>)))
}

fn status(code: u16) -> Response<Body> {
    Response::builder().status(StatusCode::from_u16(code).unwrap()).body(Body::empty()).unwrap()
}

fn redirect(target: &str) -> Response<Body> {
    Response::builder().status(302).header(header::LOCATION, target).body(Body::empty()).unwrap()
}
