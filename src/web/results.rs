//! The action cache by hand: look up one result at `/ac`, and withdraw it.

use axum::extract::{Path, RawQuery, State};
use axum::http::Extensions;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};

use crate::access::{Caller, Right};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::store::ActionKey;

use super::action;
use super::answer::page_or;
use super::page::{Section, facts, page};
use super::query::Query;
use super::storage::parse_action;
use super::{Pages, text};

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
            label { "Digest as HASH/SIZE" input name="digest" required size="40" maxlength="300"; }
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
            ("Action", html! { code { (key.digest) } }),
        ]))
        (action::result(&result))
        h2 { "Outputs" }
        ul {
            @for file in result.output_files.iter().take(OUTPUTS_SHOWN) { li { code { (text::visible(&file.path)) } } }
            @for directory in result.output_directories.iter().take(OUTPUTS_SHOWN) { li { code { (text::visible(&directory.path)) "/" } } }
        }
        (read.show())
        (withdrawal(key))
    };
    Ok(page(Section::ActionCache, "A result", &body))
}

/// Outputs of each kind that are named.
const OUTPUTS_SHOWN: usize = 200;

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
