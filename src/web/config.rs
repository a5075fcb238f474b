//! The configuration `[pages]`: what the pages for people are told of the world around them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The pages for people on the admin listener.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where people reach the admin listener, as in `https://farm.example.org`. With it, answers to clients link to the pages of their
    /// actions, and a page under this name may do what operators may. It has no path, since the pages link to each other from the root.
    /// Unset: no links.
    pub public_url: Option<String>,
}

impl Config {
    /// Every problem, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let is_right = |url: &String| {
            let uri = url.parse::<http::Uri>().ok();
            let is_http = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https"));
            uri.is_some_and(|uri| {
                is_http(&uri) && uri.host().is_some() && uri.path_and_query().is_none_or(|rest| rest == "/")
            })
        };
        let problem =
            || "pages.public_url: it is not like \"https://farm.example.org\", without a path".to_owned();
        self.public_url.iter().filter(|url| !is_right(url)).map(|_| problem()).collect()
    }

    /// The address without a `/` at its end.
    pub fn address(&self) -> Option<Arc<str>> {
        self.public_url.as_deref().map(|url| url.trim_end_matches('/').into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_pages_is_one_of_http() {
        let problems = |url: &str| Config { public_url: Some(url.to_owned()) }.check().len();
        for right in ["http://localhost:50080", "https://farm.example.org/"] {
            assert_eq!(problems(right), 0, "{right}");
        }
        for wrong in [
            "farm.example.org",
            "ftp://x.org",
            "https://",
            "/pages",
            "https://x.org/?a",
            "https://x.org/croft",
            "",
        ] {
            assert_eq!(problems(wrong), 1, "{wrong}");
        }
        assert_eq!(Config::default().check(), Vec::<String>::new());
        let config = Config { public_url: Some("https://x.org/".into()) };
        assert_eq!(config.address().as_deref(), Some("https://x.org"));
    }
}
