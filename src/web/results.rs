//! The action cache by hand: look up one result at `/ac`, and withdraw it.

use axum::extract::{Path, RawQuery, State};
use axum::http::Extensions;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};

use crate::access::{Caller, Right};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::{self, ActionResult};
use crate::store::ActionKey;

use super::action;
use super::answer::page_or;
use super::page::{Section, copied, facts, page};
use super::query::Query;
use super::storage::parse_action;
use super::{Pages, blobs, text};

/// Outputs of each kind that are named.
const OUTPUTS_SHOWN: usize = 200;

/// The form; with a digest, on to its result.
pub(super) async fn ask(RawQuery(query): RawQuery) -> Response {
    page_or(Section::ActionCache, find(query.as_deref()))
}

fn find(query: Option<&str>) -> Result<Response> {
    let query = Query::parse(query, &["instance", "function", "digest"])?;
    let Some(digest) = query.text("digest") else {
        return Ok(page(Section::ActionCache, "Action cache", &form()));
    };
    let function = query.text("function").unwrap_or(Function::Sha256.name());
    let (hash, size) = digest.rsplit_once(['/', '-']).unwrap_or((digest, ""));
    let named = format!("{function}/{hash}-{size}");
    let instance = query.text("instance").map(|name| format!("{name}/")).unwrap_or_default();
    let key = parse_action(&(instance + &named))?;
    Ok(Redirect::to(&address(&key.instance, &key.digest)).into_response())
}

fn form() -> Markup {
    html! {
        p { "The result of an action is kept under the digest of the action. Bazel tells it in its execution log, and each operation has it on its page." }
        form method="get" action="/ac" {
            label { "Instance (may be empty)" input name="instance" maxlength="300"; }
            label { "Digest function"
                select name="function" {
                    @for function in Function::ALL { option value=(function.name()) { (function.name()) } }
                }
            }
            label { "Digest as HASH/SIZE" input name="digest" required size="80" maxlength="300"; }
            button type="submit" { "Look up" }
        }
    }
}

pub(super) async fn show(
    State(pages): State<Pages>,
    Path(name): Path<String>,
    extensions: Extensions,
) -> Response {
    let rendered = async {
        Caller::of(&extensions).demand_everywhere(Right::Read)?;
        render(&pages, &parse_action(&name)?).await
    };
    page_or(Section::ActionCache, rendered.await)
}

async fn render(pages: &Pages, key: &ActionKey) -> Result<Response> {
    let none = || {
        let message = format!("there is no result of action {}, or an output of it is gone", key.digest);
        Error::new(Kind::NotFound, message)
    };
    let (result, read) = tokio::join!(pages.storage.result(key), action::read(&pages.cas, &key.digest));
    let result = result?.ok_or_else(none)?;
    let body = html! {
        (facts(&[
            ("Instance", html! { (text::instance(&key.instance)) }),
            ("Action", copied("action", &key.digest.to_string())),
        ]))
        (action::result(&result))
        p { a href={ "/operations?q=" (key.digest.hex()) } { "Operations with this action" } }
        h2 { "Outputs" }
        (outputs(key.digest.function(), &result))
        (read.show())
        (withdrawal(key))
    };
    let title = format!("Result of action {}", text::short(&key.digest.hex()));
    Ok(page(Section::ActionCache, &title, &body))
}

/// What the action printed and made, as links to the content.
fn outputs(function: Function, result: &ActionResult) -> Markup {
    let blob = |digest: Option<&rev2::Digest>| Digest::from_proto(function, digest).ok();
    let link = |digest: Option<&rev2::Digest>, path: &str| {
        html! {
            @match blob(digest) {
                Some(digest) => { (blobs::link(&digest, &text::visible(path))) " " span.quiet { (text::bytes(digest.size())) } }
                None => { (text::visible(path)) }
            }
        }
    };
    let streams = [("standard output", &result.stdout_digest), ("standard error", &result.stderr_digest)];
    let printed =
        streams.into_iter().filter(|(_, digest)| digest.as_ref().is_some_and(|one| one.size_bytes > 0));
    let counts = [result.output_files.len(), result.output_directories.len(), result.output_symlinks.len()];
    let more: usize = counts.into_iter().map(|count| count.saturating_sub(OUTPUTS_SHOWN)).sum();
    html! {
        ul {
            @for (name, digest) in printed { li { (link(digest.as_ref(), name)) } }
            @for file in result.output_files.iter().take(OUTPUTS_SHOWN) { li { code { (link(file.digest.as_ref(), &file.path)) } } }
            @for directory in result.output_directories.iter().take(OUTPUTS_SHOWN) { li { code { (text::visible(&directory.path)) "/" } } }
            @for link in result.output_symlinks.iter().take(OUTPUTS_SHOWN) { li { code { (text::visible(&link.path)) " → " (text::visible(&link.target)) } } }
            @if more > 0 { li { "and " (text::count(more)) " more" } }
        }
    }
}

/// The script sends it with the header that operators' requests need; without a script there is the command.
fn withdrawal(key: &ActionKey) -> Markup {
    let command = text::command_line(&[
        "croft".to_owned(),
        "forget".to_owned(),
        key.instance.to_string(),
        format!("{}/{}", key.digest.hex(), key.digest.size()),
        "--function".to_owned(),
        key.digest.function().name().to_owned(),
    ]);
    html! {
        h2 { "Withdraw it" }
        p { "The action runs again when somebody asks for it. By command: " code { (command) } }
        form hidden data-method="DELETE" data-url=(address(&key.instance, &key.digest)) {
            button type="submit" { "Delete this entry" }
            output {}
        }
    }
}

/// Where the result of an action is shown.
fn address(instance: &str, digest: &Digest) -> String {
    let place = if instance.is_empty() { String::new() } else { text::path(instance) + "/" };
    format!("/ac/{place}{}/{}-{}", digest.function().name(), digest.hex(), digest.size())
}

pub(super) fn link(instance: &str, digest: &Digest) -> Markup {
    html! { a href=(address(instance, digest)) { (text::digest(digest)) } }
}

/// The same with a text of somebody else; with the digest where there is none.
pub(super) fn link_as(instance: &str, digest: &Digest, name: &str) -> Markup {
    if name.is_empty() {
        return link(instance, digest);
    }
    html! { a.words href=(address(instance, digest)) { (text::visible(name)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_taken_as_people_have_it() {
        let digest = Function::Sha256.hash(b"action");
        for written in
            [format!("{}/{}", digest.hex(), digest.size()), format!("{}-{}", digest.hex(), digest.size())]
        {
            let query: String = form_urlencoded::byte_serialize(written.as_bytes()).collect();
            let answer = find(Some(&format!("digest={query}&instance=a%2Fb"))).unwrap();
            let location = answer.headers()["location"].to_str().unwrap();
            assert_eq!(location, address("a/b", &digest));
            assert_eq!(parse_action(location.strip_prefix("/ac/").unwrap()).unwrap().digest, digest);
        }
        for wrong in ["digest=x", "digest=abc%2F1", "digest=x&function=md4", "other=1"] {
            assert_eq!(find(Some(wrong)).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }
}
