//! The page `/configuration`: what is in force, without what is secret.

use axum::extract::State;
use axum::response::Response;
use bytesize::ByteSize;
use humantime_serde::re::humantime::parse_duration;
use maud::html;
use toml::Value;

use super::Pages;
use super::page::{Section, page};

/// What stands in place of a secret.
const HIDDEN: &str = "(hidden)";

/// Keys whose texts are shown. Any other text is hidden, so that a new option is a secret until somebody has thought about it. Texts of
/// secrets are in no configuration by design, but names of files and of users, and hashes of tokens are; a page that anybody may look
/// over one's shoulder at need not show these either.
const OPEN: [&str; 46] = [
    "account",
    "algorithms",
    "allow",
    "audiences",
    "authorities",
    "bucket",
    "ca_file",
    "certificate",
    "closure",
    "container",
    "data",
    "endpoint",
    "endpoints",
    "file",
    "filter",
    "format",
    "groups",
    "groups_claim",
    "images",
    "instance",
    "instances",
    "issuer",
    "key",
    "keys",
    "kind",
    "links",
    "listen",
    "may",
    "mode",
    "name",
    "name_claim",
    "path",
    "prefix",
    "properties",
    "protocol",
    "public_url",
    "region",
    "revoked",
    "roles",
    "root",
    "scheduler",
    "scratch",
    "server_name",
    "url",
    "who",
    "write",
];

/// Keys of tables in which the operator chooses the names.
const NAMED: [&str; 4] = ["groups", "images", "links", "properties"];

pub(super) async fn show(State(pages): State<Pages>) -> Response {
    let body = html! {
        p { "Defaults, file and environment, as " code { "croft print-config" } " has them; what is or names a secret is hidden." }
        pre.whole tabindex="0" { (without_secrets(&pages.configuration)) }
    };
    page(Section::Configuration, "Configuration", &body)
}

/// The same TOML with secrets hidden; nothing of it if it is none.
pub fn without_secrets(configuration: &str) -> String {
    let Ok(mut table) = configuration.parse::<toml::Table>() else { return HIDDEN.to_owned() };
    table.iter_mut().for_each(|(key, value)| hide(key, value));
    toml::to_string(&table).unwrap_or_else(|_| HIDDEN.to_owned())
}

fn hide(key: &str, value: &mut Value) {
    match value {
        Value::Table(table) if NAMED.contains(&key) => {
            table.iter_mut().for_each(|(_, value)| hide(key, value))
        }
        Value::Table(table) => table.iter_mut().for_each(|(key, value)| hide(key, value)),
        Value::Array(values) => values.iter_mut().for_each(|value| hide(key, value)),
        Value::String(text) if !OPEN.contains(&key) && !is_measure(text) => HIDDEN.clone_into(text),
        Value::String(text) => {
            if let Some(hidden) = without_password(text) {
                *text = hidden;
            }
        }
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// A time or a number of bytes, with its unit.
fn is_measure(text: &str) -> bool {
    let has_unit = text.contains(|character: char| character.is_ascii_alphabetic());
    has_unit && (parse_duration(text).is_ok() || text.parse::<ByteSize>().is_ok())
}

/// An address without the name and the password in it, and without its query, which may be a signature; `None` when there are none.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?"));
    let authority = rest.split(['/', '#']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let hide = |part: &str| if part.is_empty() { "" } else { HIDDEN };
    let is_open = user.is_empty() && query.is_empty();
    (!is_open).then(|| format!("{scheme}://{}{}{query}{}", hide(user), &rest[user.len()..], hide(query)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_hidden_wherever_it_stands() {
        let shown = without_secrets(
            r#"
            slots = 3
            [[storage.tier]]
            kind = "redis"
            url = "redis://ada:pa%40ss@10.0.0.1:6379/0"
            password_file = "/run/redis"
            [[access.tokens]]
            name = "ci"
            sha256 = "0011"
            [worker]
            token = "/run/token"
            heartbeat_interval = "5s"
            input_cache_size = "20.0 GiB"
            option_of_tomorrow = "tomorrow's secret"
            number_of_tomorrow = "4711"
            list_of_tomorrow = ["another secret"]
            properties = { Pool = ["gpu"] }
            endpoint = "https://store.example/c?sig=signed"
            scheduler = "grpc://10.0.0.1:50061"
            "#,
        );
        for secret in ["pa%40ss", "ada", "/run/", "0011", "secret", "4711", "signed"] {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
        for open in [
            "slots = 3",
            "redis://(hidden)@10.0.0.1:6379/0",
            "grpc://10.0.0.1:50061",
            "name = \"ci\"",
            "\"5s\"",
            "\"20.0 GiB\"",
            "Pool = [\"gpu\"]",
            "https://store.example/c?(hidden)",
        ] {
            assert!(shown.contains(open), "{open}: {shown}");
        }
        assert_eq!(without_secrets("no TOML"), HIDDEN);
    }
}
