//! Which URLs may be fetched: an allow-list of their beginnings, compared part by part after parsing.

use reqwest::Url;

use crate::error::{Error, Kind, Result};

/// The beginnings of the URLs that may be fetched.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins {
    allowed: Vec<Url>,
}

impl Origins {
    /// Reads the list; all that is wrong with it, one sentence each.
    pub(super) fn parse(prefixes: &[String]) -> Result<Self, Vec<String>> {
        let (mut allowed, mut problems) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match parse(prefix) {
                Ok(url) => allowed.push(url),
                Err(reason) => problems.push(format!("asset.allow: `{prefix}` {reason}")),
            }
        }
        if problems.is_empty() { Ok(Self { allowed }) } else { Err(problems) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.allowed.is_empty()
    }

    /// # Errors
    /// `Denied` for a URL that no beginning covers.
    pub(super) fn check(&self, url: &Url) -> Result<()> {
        if self.allowed.iter().any(|prefix| covers(prefix, url)) {
            return Ok(());
        }
        // A redirect's target may name what the client does not know, so the message has its origin only.
        let origin = url.origin().ascii_serialization();
        let message = format!("{origin} at this path is not among the origins that this farm fetches from");
        Err(Error::new(Kind::Denied, message))
    }
}

fn parse(prefix: &str) -> Result<Url, String> {
    let url = Url::parse(prefix).map_err(|error| format!("is no URL: {error}"))?;
    if !is_http(&url) {
        return Err("is not http or https".into());
    }
    let has_more = url.query().is_some() || url.fragment().is_some() || has_credentials(&url);
    if has_more { Err("has more than scheme, host, port and path".into()) } else { Ok(url) }
}

pub(super) fn is_http(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Whether `url` has the scheme, host and port of `prefix` and a path below its path. A path ends at a `/`: `/team` does not cover
/// `/teammate`.
fn covers(prefix: &Url, url: &Url) -> bool {
    let is_same_origin = prefix.scheme() == url.scheme()
        && prefix.host_str() == url.host_str()
        && prefix.port_or_known_default() == url.port_or_known_default();
    let rest = url.path().strip_prefix(prefix.path());
    let is_below =
        rest.is_some_and(|rest| rest.is_empty() || prefix.path().ends_with('/') || rest.starts_with('/'));
    is_same_origin && is_below && !climbs(url.path())
}

/// Whether some server might read the path as one with `..`: the parser resolves plain ones, but not those behind an escaped `/`.
fn climbs(path: &str) -> bool {
    let plain = path.to_ascii_lowercase().replace("%2f", "/").replace("%5c", "/").replace("%2e", ".");
    plain.split(['/', '\\']).any(|segment| segment == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(prefixes: &[&str]) -> Origins {
        let prefixes: Vec<String> = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        Origins::parse(&prefixes).unwrap()
    }

    #[test]
    fn a_url_is_compared_by_its_parts() {
        let origins =
            origins(&["https://github.com/", "https://example.com/team", "http://localhost:8080/a/"]);
        for good in [
            "https://github.com/x/y.tar.gz?z#w",
            "HTTPS://GitHub.com:443/x",
            "https://user:secret@github.com/x",
            "https://example.com/team",
            "https://example.com/team/x/../y",
            "http://localhost:8080/a/b",
        ] {
            assert!(origins.check(&Url::parse(good).unwrap()).is_ok(), "{good}");
        }
        for bad in [
            "https://github.com.evil.example/x",
            "https://github.com@evil.example/x",
            "http://github.com/x",
            "https://github.com:8443/x",
            "https://example.com/teammate/x",
            "https://example.com/team/../other",
            "https://example.com/team/%2e%2e/other",
            "https://example.com/team/%2E.%2fother",
            "https://example.com/team/a%2f..%2f..%2fother",
            "http://localhost/a/b",
            "http://localhost:8080/a",
            "ftp://github.com/x",
        ] {
            let error = origins.check(&Url::parse(bad).unwrap()).unwrap_err();
            assert_eq!(error.kind(), Kind::Denied, "{bad}");
        }
    }

    #[test]
    fn every_problem_of_the_list_is_told() {
        let prefixes =
            ["github.com", "ftp://a/", "https://a/?b", "https://u@a/", "https://a/"].map(String::from);
        assert_eq!(Origins::parse(&prefixes).unwrap_err().len(), 4);
    }
}
