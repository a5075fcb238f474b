//! Patterns of names, and who a rule is for.

use super::identity::{Identity, Proof};

/// Bytes of a pattern; more is a mistake, and matching costs the product of both lengths.
const PATTERN_BYTES_MAX: usize = 512;

/// A pattern of names with segments: `*` stands for any text within a segment, `**` for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(String);

impl Pattern {
    /// # Errors
    /// A sentence when it is too long to be meant.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(format!("a pattern has {PATTERN_BYTES_MAX} bytes at most"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether it matches every name.
    pub(super) fn is_any(&self) -> bool {
        self.0 == "**"
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }
}

/// One pass over the name for each byte of the pattern: what `reached` says is where in the name the pattern so far may end.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    let mut rest = pattern;
    while let Some((first, following)) = rest.split_first() {
        if *first != b'*' {
            reached =
                (0..=name.len()).map(|end| end > 0 && reached[end - 1] && name[end - 1] == *first).collect();
            rest = following;
            continue;
        }
        let crosses = following.first() == Some(&b'*');
        for end in 1..=name.len() {
            reached[end] |= reached[end - 1] && (crosses || name[end - 1] != b'/');
        }
        rest = if crosses { &following[1..] } else { following };
    }
    reached[name.len()]
}

/// Who a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Whoever proves nothing.
    Anonymous,
    /// Whoever is connected from this machine, proven or not.
    Loopback,
    /// Whoever proves anything.
    Authenticated,
    /// Those in a group.
    Group(Pattern),
    /// Those of that name, however proven; or by that proof alone.
    Named(Option<Proof>, Pattern),
}

impl Who {
    /// # Errors
    /// A sentence that names the forms there are.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "anonymous" => return Ok(Self::Anonymous),
            "loopback" => return Ok(Self::Loopback),
            "authenticated" => return Ok(Self::Authenticated),
            _ => {}
        }
        // A SPIFFE id is the name of a certificate and of nothing else.
        if text.starts_with("spiffe://") {
            return Ok(Self::Named(Some(Proof::Certificate), Pattern::new(text)?));
        }
        let unknown = || {
            format!(
                "`{text}` is nobody; write `group:NAME`, `user:NAME`, `certificate:NAME`, `token:NAME`, `jwt:NAME`, `basic:NAME`, \
                 `spiffe://DOMAIN/PATH`, `authenticated`, `loopback` or `anonymous`"
            )
        };
        let (form, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or_else(unknown)?;
        let pattern = Pattern::new(name)?;
        match form {
            "group" => Ok(Self::Group(pattern)),
            "user" => Ok(Self::Named(None, pattern)),
            "certificate" => Ok(Self::Named(Some(Proof::Certificate), pattern)),
            "token" => Ok(Self::Named(Some(Proof::Token), pattern)),
            "jwt" => Ok(Self::Named(Some(Proof::Jwt), pattern)),
            "basic" => Ok(Self::Named(Some(Proof::Basic), pattern)),
            _ => Err(unknown()),
        }
    }

    pub(super) fn is(&self, identity: &Identity, is_loopback: bool) -> bool {
        match self {
            Self::Anonymous => !identity.is_proven(),
            Self::Loopback => is_loopback,
            Self::Authenticated => identity.is_proven(),
            Self::Group(pattern) => identity.groups.iter().any(|group| pattern.matches(group)),
            Self::Named(proof, pattern) => {
                proof.is_none_or(|proof| proof == identity.proof)
                    && identity.names.iter().any(|name| pattern.matches(name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_a_segment_and_two_do_not() {
        let table = [
            ("main", "main", true),
            ("main", "mai", false),
            ("main", "mains", false),
            ("main/*", "main/a", true),
            ("main/*", "main/", true),
            ("main/*", "main", false),
            ("main/*", "main/a/b", false),
            ("main/**", "main/a/b", true),
            ("*", "", true),
            ("*", "a/b", false),
            ("**", "", true),
            ("**", "a/b", true),
            ("*/ci", "team/ci", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("spiffe://farm.example/worker/*", "spiffe://farm.example/worker/w-1", true),
            ("spiffe://farm.example/worker/*", "spiffe://evil.example/worker/w-1", false),
            ("spiffe://farm.example/worker/*", "spiffe://farm.example/worker/w-1/more", false),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_rule_is_for_whom_it_names() {
        let ci = Identity::new(Proof::Token, "ci", vec!["builders".into()]);
        let jwt = Identity::new(Proof::Jwt, "ci", vec![]);
        let nobody = Identity::anonymous();
        let spiffe = Identity::new(Proof::Certificate, "spiffe://farm/worker/1", vec![]);
        let forged = Identity::new(Proof::Jwt, "spiffe://farm/worker/1", vec![]);
        let table = [
            ("anonymous", [false, false, true, false, false]),
            ("authenticated", [true, true, false, true, true]),
            ("group:build*", [true, false, false, false, false]),
            ("user:ci", [true, true, false, false, false]),
            ("token:ci", [true, false, false, false, false]),
            ("jwt:ci", [false, true, false, false, false]),
            ("spiffe://farm/worker/*", [false, false, false, true, false]),
        ];
        for (who, expected) in table {
            let who = Who::parse(who).unwrap();
            let found = [&ci, &jwt, &nobody, &spiffe, &forged].map(|identity| who.is(identity, false));
            assert_eq!(found, expected, "{who:?}");
        }
        assert!(Who::Loopback.is(&nobody, true) && !Who::Loopback.is(&ci, false));
        for text in ["", "ci", "group:", "role:x", "everyone"] {
            assert!(Who::parse(text).is_err(), "{text}");
        }
    }
}
