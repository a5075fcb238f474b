//! The configuration `[access]`: who there is, and who may do what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde::{Deserialize, Serialize};

use super::right::Right;
use super::rules::Rules;
use super::{basic, jwt, token};

/// Bytes of a name or a group. They stand in the log, and in the queue beside each action.
pub(super) const NAME_BYTES_MAX: usize = 256;

/// How often the keys of an issuer are read again when nothing else is said. Issuers announce a key a day before they use it.
const REFRESH: Duration = Duration::from_secs(60 * 60);

/// The least of that: issuers limit how often they are asked.
const REFRESH_MIN: Duration = Duration::from_secs(30);

/// Requests that one identity may have open at a time when nothing else is said: some 20 builds with a thousand jobs each, and at a
/// few dozen KiB for one that waits, within the memory of a small server.
pub(super) const REQUESTS_PER_IDENTITY: u32 = 20_000;

/// Who may do what. Without this section whoever is on this machine may do everything, and nobody else can be listened for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What none of them grants, nobody may.
    pub rules: Vec<RuleConfig>,
    /// Static tokens, for clients that can hold a secret and nothing better.
    pub tokens: Vec<TokenConfig>,
    /// Issuers whose signed tokens are taken.
    pub jwt: Vec<JwtConfig>,
    /// Users with passwords.
    pub basic: Option<BasicConfig>,
    /// Requests that one identity may have open at a time; without one, an address.
    pub requests_per_identity: u32,
}

/// One rule: each of `who` may do each of `may` in each of `instances`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// `group:NAME`, `user:NAME`, `certificate:NAME`, `token:NAME`, `jwt:NAME`, `basic:NAME`, `spiffe://DOMAIN/PATH`,
    /// `authenticated`, `loopback` or `anonymous`. In names `*` stands for any text without `/`, `**` for any text.
    pub who: Vec<String>,
    pub may: Vec<Right>,
    /// Names of instances, with the same stars. Unset: all of them.
    #[serde(default = "all_instances")]
    pub instances: Vec<String>,
}

/// A static token. The token itself is nowhere in the configuration.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Who has it.
    pub name: String,
    #[serde(default)]
    pub groups: Vec<String>,
    /// The SHA-256 of the token in hexadecimal, as `croft token` prints it.
    pub sha256: String,
}

impl fmt::Debug for TokenConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("TokenConfig");
        fields.field("name", &self.name).field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// An issuer of signed tokens, as OpenID Connect has them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// What the claim `iss` must be, to the letter.
    pub issuer: String,
    /// One of these must be in the claim `aud`.
    pub audiences: Vec<String>,
    /// A file with the issuer's keys (JWKS), or an `https://` address of one. Unset: the issuer's discovery document says where.
    #[serde(default)]
    pub keys: Option<String>,
    /// The algorithms that are taken; only those with a public key are possible.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// What comes before the names and groups of its tokens here, so that two issuers cannot name the same one.
    #[serde(default)]
    pub prefix: String,
    /// The claim that names somebody.
    #[serde(default = "subject")]
    pub name_claim: String,
    /// The claim that lists groups, as a list of texts or one text with spaces between.
    #[serde(default = "groups")]
    pub groups_claim: String,
    /// How often the keys are read again.
    #[serde(default = "refresh", with = "humantime_serde")]
    pub refresh: Duration,
}

/// Users with passwords.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicConfig {
    /// A file of `htpasswd -B`: a line with a name, a colon and a bcrypt hash for each user.
    pub file: PathBuf,
    /// The groups of each user.
    #[serde(default)]
    pub groups: BTreeMap<String, Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            tokens: Vec::new(),
            jwt: Vec::new(),
            basic: None,
            requests_per_identity: REQUESTS_PER_IDENTITY,
        }
    }
}

fn all_instances() -> Vec<String> {
    vec!["**".to_owned()]
}

fn algorithms() -> Vec<Algorithm> {
    vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
}

fn subject() -> String {
    "sub".to_owned()
}

fn groups() -> String {
    "groups".to_owned()
}

fn refresh() -> Duration {
    REFRESH
}

impl Config {
    /// Every problem, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Rules::new(&self.rules).err().unwrap_or_default();
        problems.extend(self.token_problems());
        if self.requests_per_identity == 0 {
            problems.push("access.requests_per_identity: with 0 nobody could ask anything".to_owned());
        }
        problems.extend(self.jwt.iter().flat_map(JwtConfig::problems));
        problems.extend(self.issuer_problems());
        problems
    }

    /// What is wrong with the files of passwords and of keys, one sentence each.
    pub fn file_problems(&self) -> Vec<String> {
        let passwords = self.basic.as_ref().and_then(basic::file_problem);
        passwords.into_iter().chain(self.jwt.iter().filter_map(jwt::file_problem)).collect()
    }

    /// What two issuers say of themselves must not be the same: the weaker one could name whoever the other trusts.
    fn issuer_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (mut issuers, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
        for JwtConfig { issuer, prefix, .. } in &self.jwt {
            if !issuers.insert(issuer) {
                problems.push(format!("access.jwt `{issuer}`: the issuer is there twice"));
            } else if !prefixes.insert(prefix) {
                let why = "another issuer has the same, so each could name the other's users and groups";
                problems.push(format!("access.jwt `{issuer}`: prefix: {why}"));
            }
        }
        problems
    }

    fn token_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
        for token in &self.tokens {
            let mut tell =
                |problem: &str| problems.push(format!("access.tokens `{}`: {problem}", token.name));
            if !is_name(&token.name) || !token.groups.iter().all(|group| is_name(group)) {
                tell("names and groups are texts of 1 to 256 bytes without control characters");
            }
            if token::parse_hash(&token.sha256).is_none() {
                tell("sha256 is 64 hexadecimal digits, as `croft token` prints them");
            }
            if !names.insert(token.name.as_str()) {
                tell("the name is there twice");
            }
            if !hashes.insert(token.sha256.to_ascii_lowercase()) {
                tell("another token has the same hash");
            }
        }
        problems
    }
}

/// Whether a text can be the name of somebody or of a group.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

impl JwtConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut tell = |problem: String| problems.push(format!("access.jwt `{}`: {problem}", self.issuer));
        if self.issuer.is_empty() {
            tell("name the issuer".to_owned());
        }
        if self.audiences.is_empty() {
            tell("name an audience: a token for somebody else must not open this farm".to_owned());
        }
        if self.algorithms.is_empty() {
            tell("name an algorithm".to_owned());
        }
        for symmetric in self.algorithms.iter().filter(|algorithm| is_symmetric(**algorithm)) {
            tell(format!("{symmetric:?} has no public key: whoever can verify a token could make one"));
        }
        if self.refresh < REFRESH_MIN {
            tell(format!("refresh is at least {} s", REFRESH_MIN.as_secs()));
        }
        if self.keys.is_none() && !is_address(&self.issuer) {
            tell(
                "discovery needs an issuer that begins with https://; else say where the keys are".to_owned(),
            );
        }
        if let Some(keys) = &self.keys
            && keys.contains("://")
            && !is_address(keys)
        {
            tell("keys come from a file or from an address that begins with https://".to_owned());
        }
        problems
    }
}

/// Whether keys may be fetched from there. Over plain HTTP whoever is on the way could put in a key of his own, except on this machine.
pub(super) fn is_address(text: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(text) else { return false };
    let is_here = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
    url.scheme() == "https" || (url.scheme() == "http" && is_here)
}

pub(super) fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(toml: &str) -> Vec<String> {
        toml::from_str::<Config>(toml).unwrap().check()
    }

    #[test]
    fn the_usual_case_is_one_line_each() {
        let hash = "0".repeat(64);
        let toml = format!(
            "rules = [\n  {{ who = [\"group:ci\"], may = [\"read\", \"write\", \"cache-write\", \"execute\"], instances = [\"main/*\"] }},\n  \
             {{ who = [\"group:developers\"], may = [\"read\", \"execute\"] }},\n  {{ who = [\"spiffe://farm/worker/*\"], may = [\"work\"] }},\n]\n\
             [[tokens]]\nname = \"ci\"\ngroups = [\"ci\"]\nsha256 = \"{hash}\"\n[[jwt]]\nissuer = \"https://id.example\"\naudiences = [\"croft\"]\n"
        );
        assert_eq!(problems(&toml), Vec::<String>::new());
    }

    #[test]
    fn what_would_open_the_farm_by_mistake_is_a_problem() {
        let hash = "a".repeat(64);
        let wrong = [
            ("[[tokens]]\nname = \"ci\"\nsha256 = \"secret\"".to_owned(), "64 hexadecimal"),
            (format!("[[tokens]]\nname = \"\"\nsha256 = \"{hash}\""), "1 to 256"),
            (
                format!(
                    "[[tokens]]\nname = \"a\"\nsha256 = \"{hash}\"\n[[tokens]]\nname = \"b\"\nsha256 = \"{}\"",
                    hash.to_uppercase()
                ),
                "same hash",
            ),
            ("[[jwt]]\nissuer = \"https://i\"\naudiences = []".to_owned(), "audience"),
            ("[[jwt]]\nissuer = \"https://i\"\naudiences = [\"a\"]\n".repeat(2), "there twice"),
            (
                ["i", "j"]
                    .map(|issuer| format!("[[jwt]]\nissuer = \"https://{issuer}\"\naudiences = [\"a\"]\n"))
                    .concat(),
                "prefix",
            ),
            (
                "[[jwt]]\nissuer = \"https://i\"\naudiences = [\"a\"]\nalgorithms = [\"HS256\"]".to_owned(),
                "no public key",
            ),
            ("[[jwt]]\nissuer = \"http://i\"\naudiences = [\"a\"]".to_owned(), "https://"),
            (
                "[[jwt]]\nissuer = \"i\"\naudiences = [\"a\"]\nkeys = \"http://i/keys\"".to_owned(),
                "from a file",
            ),
            (
                "[[jwt]]\nissuer = \"https://i\"\naudiences = [\"a\"]\nrefresh = \"1s\"".to_owned(),
                "at least 30 s",
            ),
        ];
        for (toml, expected) in wrong {
            let found = problems(&toml);
            assert!(found.len() == 1 && found[0].contains(expected), "{toml}: {found:?}");
        }
        assert!(
            toml::from_str::<Config>("[[jwt]]\nissuer = \"i\"\naudiences = []\nalgorithms = [\"none\"]")
                .is_err()
        );
    }
}
