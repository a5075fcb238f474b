//! The pages for people as a browser gets them, without one: what holds for each of them, and clients that try to get more than text into
//! them.

use std::collections::BTreeSet;

use croft::digest::Digest;
use croft::proto::rev2::{ExecuteResponse, GetActionResultRequest, RequestMetadata, ToolDetails};
use reqwest::Client as Http;
use reqwest::header::{HeaderMap, HeaderName};
use tonic::{Code, Request};

use crate::client::Client;
use crate::farm::Farm;

/// What an action writes wherever it can. None of it may be on a page as it is.
pub(crate) const TAG: &str = "<script>alert(1)</script>";
pub(crate) const IMAGE: &str = "<img src=x onerror=alert(2)>";

pub(crate) const INVOCATION: &str = "<i>0c9f5a8e</i>";

pub(crate) struct Browser {
    pub(crate) http: Http,
    pub(crate) farm: String,
}

pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Browser {
    pub(crate) fn new(farm: &Farm) -> Self {
        croft::tls::install();
        let http = Http::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { http, farm: format!("http://{}", farm.admin) }
    }

    pub(crate) async fn get(&self, path: &str) -> Page {
        let answer = self.http.get(format!("{}{path}", self.farm)).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Page { status, headers, body: String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned() }
    }

    /// A page that must be there, and be one.
    pub(crate) async fn page(&self, path: &str) -> String {
        let page = self.get(path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        page.check(path);
        page.body
    }
}

impl Page {
    pub(crate) fn header(&self, name: &str) -> &str {
        let name: HeaderName = name.parse().unwrap();
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn is_html(&self) -> bool {
        self.header("content-type").starts_with("text/html")
    }

    /// What holds for every answer, and for every page.
    pub(crate) fn check(&self, path: &str) {
        let policy = self.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(self.header("x-content-type-options"), "nosniff", "{path}");
        assert!(!self.header("referrer-policy").is_empty(), "{path}");
        if !self.is_html() {
            return;
        }
        for wrong in ["<script>", "<img", "onerror=alert(2)>", "<i>", " style="] {
            assert!(!self.body.contains(wrong), "{path} has {wrong}: {}", self.body);
        }
        for right in ["<!DOCTYPE html>", "<html lang=\"en\">", "name=\"viewport\"", "href=\"#main\""] {
            assert_eq!(self.body.matches(right).count(), 1, "{path} and {right}: {}", self.body);
        }
        // One is a picture, or where it has links a group of these.
        for drawing in self.body.split("<svg").skip(1) {
            let (tag, inside) = drawing.split_once('>').unwrap();
            assert!(tag.contains("role=\"img\"") || tag.contains("role=\"group\""), "{path}: {tag}");
            assert!(inside.starts_with("<title>"), "{path}: {tag}");
        }
        let drawings = self.body.matches("<svg").count();
        assert!(self.body.matches("<title>").count() > drawings, "{path}: the page has a title of its own");
        assert_eq!(self.body.matches("<h1>").count(), 1, "{path}: {}", self.body);
        let ids: Vec<&str> = values(&self.body, " id=\"");
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "{path}: {ids:?}");
        for place in values(&self.body, " href=\"#") {
            assert!(ids.contains(&place), "{path} leads to #{place}, and has {ids:?}");
        }
    }

    /// The addresses on the same farm that the page names.
    pub(crate) fn links(&self, path: &str) -> Vec<String> {
        let base = path.split('?').next().unwrap();
        let attributes = [" href=\"", " src=\"", " data-follow=\""];
        let found = attributes.iter().flat_map(|attribute| values(&self.body, attribute));
        let found = found.map(|link| link.replace("&amp;", "&"));
        let inside = found.filter(|link| link.starts_with(['/', '?']));
        inside.map(|link| if link.starts_with('?') { format!("{base}{link}") } else { link }).collect()
    }
}

pub(crate) fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    html.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

pub(crate) fn with_metadata<T>(message: T, (invocation, target): (&str, &str)) -> Request<T> {
    let metadata = RequestMetadata {
        tool_details: Some(ToolDetails { tool_name: format!("bazel{TAG}"), tool_version: "8".into() }),
        tool_invocation_id: invocation.into(),
        target_id: target.into(),
        action_mnemonic: format!("Genrule{IMAGE}"),
        ..RequestMetadata::default()
    };
    crate::client::with_metadata(message, &metadata)
}

/// Executes an action as a client that says what it builds. Returns the identifier of the operation, too.
pub(crate) async fn execute(client: &Client, action: &Digest, target: &str) -> (String, ExecuteResponse) {
    let request = with_metadata(client.request(action), (INVOCATION, target));
    let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
    let mut last = operations.message().await.unwrap().unwrap();
    let id = last.name.rsplit('/').next().unwrap().to_owned();
    while !last.done {
        last = operations.message().await.unwrap().unwrap();
    }
    (id, crate::client::response(&last))
}

/// What an invocation looks up in the action cache itself; whether there is a result.
pub(crate) async fn look_up(client: &Client, action: &Digest, named: (&str, &str)) -> bool {
    let ask = GetActionResultRequest {
        action_digest: Some(action.to_proto()),
        digest_function: action.function().to_proto().into(),
        ..Default::default()
    };
    match client.cache.clone().get_action_result(with_metadata(ask, named)).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound);
            false
        }
    }
}
