//! One blob of the CAS: `/blobs/{function}/{hash}-{size}`, as text or, with `download`, as a file.

use axum::extract::{Path, RawQuery, State};
use axum::http::Extensions;
use axum::response::Response;
use maud::{Markup, html};

use crate::access::{Caller, Right};
use crate::digest::{Digest, Function};
use crate::error::{Error, Result};

use super::Pages;
use super::answer::page_or;
use super::content::{self, Content};
use super::page::{Section, page};
use super::query::Query;

pub(super) async fn show(
    State(pages): State<Pages>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    extensions: Extensions,
) -> Response {
    let rendered = async {
        Caller::of(&extensions).demand_everywhere(Right::Read)?;
        render(&pages, &parse(&name)?, query.as_deref()).await
    };
    page_or(Section::Invocations, rendered.await)
}

async fn render(pages: &Pages, digest: &Digest, query: Option<&str>) -> Result<Response> {
    let query = Query::parse(query, &content::KEYS)?;
    let content = Content::Blob(*digest);
    if query.text("download").is_some() {
        return content.download(&pages.cas, &digest.hex()).await;
    }
    let body = html! {
        p { code { (digest) } }
        (content.view(&pages.cas, &query).await?)
    };
    Ok(page(Section::Invocations, "A blob", &body))
}

fn parse(name: &str) -> Result<Digest> {
    let malformed = || Error::invalid("the path is not /blobs/{function}/{hash}-{size}");
    let (function, digest) = name.split_once('/').ok_or_else(malformed)?;
    let function = Function::from_name(function).ok_or_else(malformed)?;
    let (hash, size) = digest.rsplit_once('-').ok_or_else(malformed)?;
    Ok(Digest::parse(function, hash, size.parse().map_err(|_| malformed())?)?)
}

pub(super) fn link(digest: &Digest, text: &str) -> Markup {
    let address = format!("/blobs/{}/{}-{}", digest.function().name(), digest.hex(), digest.size());
    html! { a href=(address) { (text) } }
}
