//! A file, or what a command has printed: a page of its text at a time, or all of it as a download.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::TryStreamExt;
use maud::{Markup, html};

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::store::Cas;

use super::query::Query;
use super::{terminal, text};

/// Bytes on one page: more than anybody reads at once, and little for a browser.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// The keys of a page that shows content.
pub(super) const KEYS: [&str; 3] = ["offset", "download", "page"];

/// Bytes, wherever they are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Blob(Digest),
    /// They came with a result.
    Inline(Bytes),
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Blob(digest) => digest.size(),
            Self::Inline(bytes) => bytes.len() as u64,
        }
    }

    /// Up to `limit` bytes from `offset` on.
    ///
    /// # Errors
    /// `NotFound` when the CAS does not have it any more, `OutOfRange` for an offset past the end.
    pub(super) async fn read(&self, cas: &Cas, (offset, limit): (u64, usize)) -> Result<Bytes> {
        let digest = match self {
            Self::Blob(digest) => digest,
            Self::Inline(bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
                return Ok(bytes.slice(start..bytes.len().min(start + limit)));
            }
        };
        let mut chunks = cas.open(digest, offset).await?.ok_or_else(|| gone(digest))?.into_chunks();
        let mut piece = Vec::new();
        while piece.len() < limit
            && let Some(chunk) = chunks.try_next().await?
        {
            piece.extend_from_slice(&chunk[..chunk.len().min(limit - piece.len())]);
        }
        Ok(piece.into())
    }

    /// All of it, as a file that the browser saves and never shows: it may be a page that somebody's action has written.
    ///
    /// # Errors
    /// As for [`Content::read`].
    pub(super) async fn download(&self, cas: &Cas, name: &str) -> Result<Response> {
        let body = match self {
            Self::Inline(bytes) => Body::from(bytes.clone()),
            Self::Blob(digest) => {
                let blob = cas.open(digest, 0).await?.ok_or_else(|| gone(digest))?;
                Body::from_stream(blob.into_chunks())
            }
        };
        let file = name.rsplit('/').next().unwrap_or(name);
        let disposition = format!("attachment; filename*=UTF-8''{}", text::segment(file));
        let disposition =
            HeaderValue::from_str(&disposition).expect("what is percent-encoded makes a header");
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (header::CONTENT_DISPOSITION, disposition),
            (header::CONTENT_LENGTH, HeaderValue::from(self.size())),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'")),
        ];
        Ok((headers, body).into_response())
    }

    /// One piece of its text, with links to the others.
    ///
    /// # Errors
    /// As for [`Content::read`]; `Invalid` for an offset that is none.
    pub(super) async fn view(&self, cas: &Cas, query: &Query) -> Result<Markup> {
        let size = self.size();
        let offset = query.number("offset", size)?.unwrap_or(0);
        let piece = self.read(cas, (offset, PIECE_BYTES)).await?;
        let end = offset + piece.len() as u64;
        let before = offset.saturating_sub(PIECE_BYTES as u64);
        Ok(html! {
            p { (text::bytes(size)) ", " a href="?download=1" { "download" } }
            @if piece.contains(&0) {
                p.warn { "It is not text." }
            } @else {
                pre.whole tabindex="0" { (terminal::show(&piece)) }
            }
            @if offset > 0 || end < size {
                nav.pages aria-label="Pieces of this text" {
                    @if offset > 0 { a href="?offset=0" { "beginning" } " " a href={ "?offset=" (before) } rel="prev" { "previous" } " " }
                    span { (text::bytes(offset)) " to " (text::bytes(end)) " of " (text::bytes(size)) }
                    @if end < size { " " a href={ "?offset=" (end) } rel="next" { "next" } }
                }
            }
        })
    }
}

fn gone(digest: &Digest) -> Error {
    Error::new(Kind::NotFound, format!("{digest} is not in the CAS any more"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::digest::Function;
    use crate::store::Memory;

    #[tokio::test]
    async fn a_long_text_is_shown_piece_by_piece() {
        let cas = Cas::new(Arc::new(Memory::new(1 << 20)));
        let long = Bytes::from("<b>".repeat(PIECE_BYTES));
        let digest = cas.put_bytes(Function::Sha256, long.clone()).await.unwrap();
        for content in [Content::Blob(digest), Content::Inline(long.clone())] {
            let view = async |query: &str| {
                let query = Query::parse(Some(query), &KEYS).unwrap();
                content.view(&cas, &query).await.map(|view| view.into_string())
            };
            let first = view("").await.unwrap();
            assert!(first.contains("&lt;b&gt;") && !first.contains("<b>") && first.contains("?offset=65536"));
            let last = view("offset=131072").await.unwrap();
            assert!(last.contains("?offset=65536") && !last.contains("rel=\"next\""));
            assert_eq!(view("offset=196609").await.unwrap_err().kind(), Kind::Invalid);
        }
        let binary = Content::Inline(Bytes::from_static(b"a\0b"));
        let view = binary.view(&cas, &Query::default()).await.unwrap().into_string();
        assert!(view.contains("not text"), "{view}");
    }

    #[tokio::test]
    async fn a_download_is_never_shown() {
        let cas = Cas::new(Arc::new(Memory::new(1 << 20)));
        let content = Content::Inline(Bytes::from_static(b"<script>"));
        let answer = content.download(&cas, "a/\"ü\r\n.html").await.unwrap();
        let disposition = answer.headers()[header::CONTENT_DISPOSITION].to_str().unwrap();
        assert_eq!(disposition, "attachment; filename*=UTF-8''%22%C3%BC%0D%0A.html");
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/octet-stream");
        let absent = Content::Blob(Function::Sha256.hash(b"absent"));
        assert_eq!(absent.download(&cas, "x").await.unwrap_err().kind(), Kind::NotFound);
    }
}
