//! Who may do what with which instances.

use std::sync::Arc;

use super::config::RuleConfig;
use super::identity::Identity;
use super::pattern::{Pattern, Who};
use super::right::{Right, Rights};

/// All rules. What none of them grants, nobody may.
#[derive(Debug, Clone, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    who: Vec<Who>,
    grant: Arc<Grant>,
}

/// Rights in some instances.
#[derive(Debug, PartialEq, Eq)]
struct Grant {
    rights: Rights,
    /// Those of the rights that are for the whole farm.
    of_farm: Rights,
    instances: Vec<Pattern>,
}

/// What the rules grant to somebody.
#[derive(Debug, Clone, Default)]
pub struct Grants(Vec<Arc<Grant>>);

impl Rules {
    /// # Errors
    /// Every problem, one sentence each.
    pub fn new(rules: &[RuleConfig]) -> Result<Self, Vec<String>> {
        let (mut made, mut problems) = (Vec::new(), Vec::new());
        for (number, rule) in rules.iter().enumerate() {
            match Rule::new(rule) {
                Ok(rule) => made.push(rule),
                Err(found) => {
                    problems
                        .extend(found.into_iter().map(|found| format!("access.rules[{number}]: {found}")));
                }
            }
        }
        if problems.is_empty() { Ok(Self(made)) } else { Err(problems) }
    }

    /// What `identity` may, from this machine or from elsewhere.
    pub fn grants(&self, identity: &Identity, is_loopback: bool) -> Grants {
        let granting = self.0.iter().filter(|rule| rule.who.iter().any(|who| who.is(identity, is_loopback)));
        Grants(granting.map(|rule| Arc::clone(&rule.grant)).collect())
    }
}

impl Rule {
    fn new(config: &RuleConfig) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut keep = |problem| problems.push(problem);
        let who: Vec<Who> =
            config.who.iter().filter_map(|who| Who::parse(who).map_err(&mut keep).ok()).collect();
        let instances: Vec<Pattern> =
            config.instances.iter().filter_map(|one| Pattern::new(one).map_err(&mut keep).ok()).collect();
        if config.who.is_empty() || config.may.is_empty() || config.instances.is_empty() {
            keep("it says nothing without `who`, `may` and `instances`".to_owned());
        }
        let of_farm: Rights = config.may.iter().copied().filter(|right| right.is_of_farm()).collect();
        if !of_farm.is_empty() && !instances.iter().any(Pattern::is_any) {
            keep(format!(
                "{of_farm} is for the whole farm: leave `instances` out, or make it a rule of its own"
            ));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let rights = config.may.iter().copied().collect();
        Ok(Self { who, grant: Arc::new(Grant { rights, of_farm, instances }) })
    }
}

impl Grants {
    /// Everything, everywhere.
    pub fn everything() -> Self {
        let any = Pattern::new("**").expect("it is short");
        let of_farm = Right::Work | Right::Admin;
        Self(vec![Arc::new(Grant { rights: Rights::all(), of_farm, instances: vec![any] })])
    }

    /// The rights in one instance.
    pub fn within(&self, instance: &str) -> Rights {
        let sum = |all: Rights, grant: &Arc<Grant>| {
            let matches = grant.instances.iter().any(|pattern| pattern.matches(instance));
            all | if matches { grant.rights } else { grant.of_farm }
        };
        self.0.iter().fold(Rights::NONE, sum)
    }

    /// The rights in every instance.
    pub fn everywhere(&self) -> Rights {
        let sum = |all: Rights, grant: &Arc<Grant>| {
            all | if grant.instances.iter().any(Pattern::is_any) { grant.rights } else { grant.of_farm }
        };
        self.0.iter().fold(Rights::NONE, sum)
    }

    /// The rights that there are in any instance.
    pub(super) fn anywhere(&self) -> Rights {
        self.0.iter().fold(Rights::NONE, |all, grant| all | grant.rights)
    }

    /// Whether there is any right at all.
    pub fn are_none(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::identity::Proof;

    fn rule(who: &[&str], may: &[Right], instances: &[&str]) -> RuleConfig {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        RuleConfig { who: owned(who), may: may.to_vec(), instances: owned(instances) }
    }

    #[test]
    fn ci_writes_developers_read_and_execute_workers_work() {
        use Right::{Admin, CacheWrite, Execute, Read, Work, Write};
        let rules = Rules::new(&[
            rule(&["group:ci"], &[Read, Write, CacheWrite, Execute], &["main/*"]),
            rule(&["group:developers"], &[Read, Execute], &["**"]),
            rule(&["spiffe://farm/worker/*"], &[Work, Read, Write], &["**"]),
            rule(&["basic:root"], &[Admin], &["**"]),
        ])
        .unwrap();
        let in_group = |group: &str| Identity::new(Proof::Jwt, "x", vec![group.into()]);
        let worker = Identity::new(Proof::Certificate, "spiffe://farm/worker/7", vec![]);
        let root = Identity::new(Proof::Basic, "root", vec![]);
        let table = [
            (in_group("ci"), "main/a", Read | Write | CacheWrite | Execute),
            (in_group("ci"), "main/a/b", Rights::NONE),
            (in_group("ci"), "", Rights::NONE),
            (in_group("developers"), "", Read | Execute),
            (in_group("developers"), "main/a", Read | Execute),
            (worker, "main/a", Work | Read | Write),
            (root, "anything", Admin.into()),
            (Identity::anonymous(), "main/a", Rights::NONE),
        ];
        for (identity, instance, expected) in table {
            assert_eq!(rules.grants(&identity, false).within(instance), expected, "{identity} {instance}");
        }
        let both = Identity::new(Proof::Jwt, "x", vec!["ci".into(), "developers".into()]);
        assert_eq!(rules.grants(&both, false).everywhere(), Read | Execute);
        assert!(rules.grants(&Identity::anonymous(), true).are_none());
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_a_problem() {
        let wrong = [
            (rule(&[], &[Right::Read], &["**"]), "says nothing"),
            (rule(&["user:a"], &[], &["**"]), "says nothing"),
            (rule(&["a"], &[Right::Read], &["**"]), "nobody"),
            (rule(&["user:a"], &[Right::Work], &["main"]), "whole farm"),
            (rule(&["user:a"], &[Right::Admin, Right::Read], &["main"]), "whole farm"),
        ];
        for (rule, expected) in wrong {
            let problems = Rules::new(&[rule]).unwrap_err();
            assert!(problems[0].contains(expected), "{problems:?}");
        }
    }
}
