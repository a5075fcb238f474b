//! What of a configuration is allowed and yet dangerous. `croft check` tells of it.

use super::config::Config;
use super::identity::Identity;
use super::right::Right;
use super::rules::Rules;

/// A listener, as far as it matters for who gets at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposure<'a> {
    /// As the configuration calls it.
    pub name: &'a str,
    pub is_loopback: bool,
    pub has_tls: bool,
    /// Whether it asks clients for certificates.
    pub takes_certificates: bool,
}

impl Config {
    /// What is dangerous, one sentence each. It is no problem: there may be reasons that the farm does not know.
    pub fn warnings(&self, listeners: &[Exposure<'_>], instances: &[String]) -> Vec<String> {
        let mut warnings = self.rule_warnings(listeners, instances);
        warnings.extend(self.transport_warnings(listeners));
        warnings
    }

    fn rule_warnings(&self, listeners: &[Exposure<'_>], instances: &[String]) -> Vec<String> {
        let mut warnings = Vec::new();
        let rules = Rules::new(&self.rules).unwrap_or_default();
        let anonymous = rules.grants(&Identity::anonymous(), false);
        for right in [Right::Execute, Right::Write, Right::Work, Right::CacheWrite, Right::Admin] {
            if anonymous.anywhere().has(right) {
                warnings.push(format!(
                    "access: `{}` for anonymous: whoever reaches the farm {}",
                    right.name(),
                    consequence(right)
                ));
            }
        }
        if self.rules.is_empty() {
            warnings.push("access: there is no rule, so nobody may do anything".to_owned());
        }
        let takes_certificates = listeners.iter().any(|listener| listener.takes_certificates);
        for (number, rule) in self.rules.iter().enumerate() {
            let unknown = rule.who.iter().filter(|who| !self.can_be(who, takes_certificates));
            warnings.extend(unknown.map(|who| {
                format!("access.rules[{number}]: nobody can be `{who}`: no token, issuer, user or certificate proves it")
            }));
            let matches_one = |pattern: &String| {
                let pattern = super::pattern::Pattern::new(pattern);
                pattern.is_ok_and(|pattern| instances.iter().any(|instance| pattern.matches(instance)))
            };
            let useless =
                rule.instances.iter().filter(|pattern| !instances.is_empty() && !matches_one(pattern));
            warnings.extend(useless.map(|pattern| {
                format!("access.rules[{number}]: no instance that is served matches `{pattern}`")
            }));
        }
        warnings
    }

    /// Whether anything that is configured can prove to be `who`.
    fn can_be(&self, who: &str, takes_certificates: bool) -> bool {
        let (form, name) = who.split_once(':').unwrap_or((who, ""));
        let matches =
            |text: &String| super::pattern::Pattern::new(name).is_ok_and(|pattern| pattern.matches(text));
        let has_issuer = !self.jwt.is_empty();
        let has_group = self.tokens.iter().flat_map(|token| &token.groups).any(matches)
            || self.basic.iter().flat_map(|basic| basic.groups.values().flatten()).any(matches);
        let has_token = self.tokens.iter().any(|token| matches(&token.name));
        match form {
            "group" => has_issuer || has_group,
            "token" => has_token,
            "jwt" => has_issuer,
            "basic" => self.basic.is_some(),
            "user" => has_token || has_issuer || self.basic.is_some() || takes_certificates,
            "certificate" | "spiffe" => takes_certificates,
            _ => true,
        }
    }

    fn transport_warnings(&self, listeners: &[Exposure<'_>]) -> Vec<String> {
        let has_secrets = !self.tokens.is_empty() || !self.jwt.is_empty() || self.basic.is_some();
        let plain = listeners.iter().filter(|listener| !listener.is_loopback && !listener.has_tls);
        let sentence = |listener: &Exposure<'_>| {
            let more = if has_secrets {
                ", and whoever is on the way can take the tokens and passwords"
            } else {
                ""
            };
            format!("{}: it can be reached from other machines without TLS{more}", listener.name)
        };
        plain.map(sentence).collect()
    }
}

fn consequence(right: Right) -> &'static str {
    match right {
        Right::Work => "gets the sources of others and hands in results for them",
        Right::CacheWrite => "decides what others build with",
        Right::Admin => "operates it",
        Right::Execute => "runs what it likes on the workers",
        Right::Write => "fills the storage",
        Right::Read => "reads all that is stored",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Exposure<'_> =
        Exposure { name: "public", is_loopback: true, has_tls: false, takes_certificates: false };

    fn warnings(toml: &str, listener: Exposure<'_>) -> Vec<String> {
        toml::from_str::<Config>(toml).unwrap().warnings(&[listener], &["main".to_owned()])
    }

    #[test]
    fn dangerous_combinations_are_told_and_usual_ones_are_not() {
        let hash = "0".repeat(64);
        let token = format!("[[tokens]]\nname = \"ci\"\nsha256 = \"{hash}\"\n");
        let good = format!(
            "rules = [{{ who = [\"token:ci\"], may = [\"read\"], instances = [\"main\"] }}]\n{token}"
        );
        assert_eq!(warnings(&good, HERE), Vec::<String>::new());
        let open = Exposure { is_loopback: false, ..HERE };
        let certified = Exposure { has_tls: true, takes_certificates: true, ..open };
        let spiffe = "rules = [{ who = [\"spiffe://farm/w/*\"], may = [\"work\"] }]";
        assert_eq!(warnings(spiffe, certified), Vec::<String>::new());
        let table = [
            (good.as_str(), open, "can take the tokens"),
            (spiffe, HERE, "nobody can be `spiffe://farm/w/*`"),
            ("rules = [{ who = [\"anonymous\"], may = [\"work\"] }]", HERE, "hands in results"),
            (
                "rules = [{ who = [\"anonymous\"], may = [\"cache-write\"], instances = [\"main\"] }]",
                HERE,
                "others build with",
            ),
            ("rules = [{ who = [\"anonymous\"], may = [\"admin\"] }]", HERE, "operates it"),
            ("rules = [{ who = [\"group:ci\"], may = [\"read\"] }]", HERE, "nobody can be `group:ci`"),
            (
                "rules = [{ who = [\"anonymous\"], may = [\"read\"], instances = [\"mian\"] }]",
                HERE,
                "matches `mian`",
            ),
            ("rules = []", HERE, "nobody may do anything"),
        ];
        for (toml, listener, expected) in table {
            let found = warnings(toml, listener);
            assert!(found.len() == 1 && found[0].contains(expected), "{toml}: {found:?}");
        }
    }
}
