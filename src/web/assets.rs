//! The style and the script of the pages. They are part of the program, so a page never waits for another server.

use std::sync::LazyLock;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::digest::Function;

/// A page is a green field; as a part of the page, since browsers ask for one otherwise.
pub(super) const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Crect \
                               width='8' height='8' rx='2' fill='%233a7d44'/%3E%3Cpath d='M2 5h4M2 3h4' stroke='%23fff'/%3E%3C/svg%3E";

/// A file that pages load.
pub(super) struct Asset {
    pub(super) path: &'static str,
    kind: &'static str,
    content: &'static str,
    tag: LazyLock<String>,
}

pub(super) static STYLE: Asset = Asset {
    path: "/assets/style.css",
    kind: "text/css; charset=utf-8",
    content: include_str!("assets/style.css"),
    tag: LazyLock::new(|| tag(STYLE.content)),
};

pub(super) static SCRIPT: Asset = Asset {
    path: "/assets/pages.js",
    kind: "text/javascript; charset=utf-8",
    content: include_str!("assets/pages.js"),
    tag: LazyLock::new(|| tag(SCRIPT.content)),
};

pub(super) async fn style(headers: HeaderMap) -> Response {
    STYLE.answer(&headers)
}

pub(super) async fn script(headers: HeaderMap) -> Response {
    SCRIPT.answer(&headers)
}

fn tag(content: &str) -> String {
    format!("\"{}\"", &Function::Blake3.hash(content.as_bytes()).hex()[..16])
}

impl Asset {
    /// The file, or that the browser has it already. It asks each time, so after an upgrade no page has an old style.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let caching = [(header::ETAG, self.tag.as_str()), (header::CACHE_CONTROL, "private, no-cache")];
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        if known.is_some_and(|known| known.contains(self.tag.as_str())) {
            return (StatusCode::NOT_MODIFIED, caching).into_response();
        }
        (caching, [(header::CONTENT_TYPE, self.kind)], self.content).into_response()
    }
}
