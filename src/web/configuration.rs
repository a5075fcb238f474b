//! The page `/configuration`: what is in force, without what is secret.

use axum::extract::State;
use axum::response::Response;
use maud::html;
use toml::Value;

use super::Pages;
use super::page::{Section, page};

/// What stands in place of a secret.
const HIDDEN: &str = "(hidden)";

/// Parts of the names of keys whose texts are not shown. By design they hold names of files and hashes; a page that anybody may look
/// over one's shoulder at need not show these either.
const SECRET: [&str; 5] = ["password", "secret", "token", "sha256", "credential"];

pub(super) async fn show(State(pages): State<Pages>) -> Response {
    let body = html! {
        p { "Defaults, file and environment, as " code { "croft print-config" } " has them; what is or names a secret is hidden." }
        pre.whole tabindex="0" { (without_secrets(&pages.configuration)) }
    };
    page(Section::Configuration, "Configuration", &body)
}

/// The same TOML with secrets hidden; nothing of it if it is none.
fn without_secrets(configuration: &str) -> String {
    let Ok(mut table) = configuration.parse::<toml::Table>() else { return HIDDEN.to_owned() };
    table.iter_mut().for_each(|(key, value)| hide(key, value));
    toml::to_string(&table).unwrap_or_else(|_| HIDDEN.to_owned())
}

fn hide(key: &str, value: &mut Value) {
    match value {
        Value::Table(table) => table.iter_mut().for_each(|(key, value)| hide(key, value)),
        Value::Array(values) => values.iter_mut().for_each(|value| hide(key, value)),
        Value::String(text) if SECRET.iter().any(|part| key.contains(part)) => HIDDEN.clone_into(text),
        Value::String(text) => {
            if let Some(hidden) = without_password(text) {
                *text = hidden;
            }
        }
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// An address without the name and the password in it; `None` when there are none.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, _) = authority.rsplit_once('@')?;
    Some(format!("{scheme}://{HIDDEN}{}", &rest[user.len()..]))
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
            scheduler = "grpc://10.0.0.1:50061"
            "#,
        );
        for secret in ["pa%40ss", "ada", "/run/", "0011"] {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
        for open in
            ["slots = 3", "redis://(hidden)@10.0.0.1:6379/0", "grpc://10.0.0.1:50061", "name = \"ci\""]
        {
            assert!(shown.contains(open), "{open}: {shown}");
        }
        assert_eq!(without_secrets("no TOML"), HIDDEN);
    }
}
