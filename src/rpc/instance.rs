//! Which instance names are served.

use crate::access::Demand;
use crate::error::{Error, Kind, Result};
use crate::proto;

/// Longest instance name in bytes; it is part of keys and of the log.
const LENGTH_MAX: usize = 256;

/// The instance names that are served; none named means that any is.
#[derive(Debug, Clone, Default)]
pub struct Instances {
    names: Vec<String>,
}

impl Instances {
    pub fn new(names: Vec<String>) -> Self {
        Self { names }
    }

    /// Lets a caller into an instance who has one of the rights there. There is no way to check a name without naming a right.
    ///
    /// # Errors
    /// `Invalid` for a name that REv2 forbids, `Unauthenticated` or `Denied` when no right is there, `NotFound` for a name that is not
    /// served; the message lists those that are and that the caller has rights in.
    pub fn admit(&self, demand: &Demand, name: &str) -> Result<()> {
        if is_valid(name) {
            demand.caller.demand(name, demand.rights)?;
        }
        self.check(name, |served| !demand.caller.within(served).is_empty())
    }

    fn check(&self, name: &str, may_know: impl Fn(&str) -> bool) -> Result<()> {
        if !is_valid(name) {
            let shown: String = name.chars().take(LENGTH_MAX).collect();
            return Err(Error::invalid(format!(
                "instance name `{shown}` has an empty or a reserved segment or is too long"
            )));
        }
        if self.names.is_empty() || self.names.iter().any(|served| served == name) {
            return Ok(());
        }
        let known = self.names.iter().filter(|served| may_know(served));
        let served: Vec<String> = known.map(|served| format!("`{served}`")).collect();
        let message = format!("instance `{name}` is not served here; these are: {}", served.join(", "));
        Err(Error::new(Kind::NotFound, message))
    }

    /// What is wrong with the configured names.
    pub fn problems(names: &[String]) -> Vec<String> {
        let wrong = names.iter().filter(|name| !is_valid(name));
        wrong.map(|name| format!("instances: `{name}` is no valid instance name")).collect()
    }
}

fn is_valid(name: &str) -> bool {
    name.len() <= LENGTH_MAX && proto::is_instance_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_instance_is_answered_with_those_that_are_served() {
        let instances = Instances::new(vec!["main".into(), "a/b".into()]);
        assert!(instances.check("a/b", |_| true).is_ok());
        let error = instances.check("other", |_| true).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.to_string(), "instance `other` is not served here; these are: `main`, `a/b`");
        let error = instances.check("other", |name| name == "main").unwrap_err();
        assert_eq!(error.to_string(), "instance `other` is not served here; these are: `main`");
    }

    #[test]
    fn reserved_segments_are_refused() {
        let instances = Instances::default();
        assert!(instances.check("", |_| true).is_ok() && instances.check("team/project", |_| true).is_ok());
        for name in ["blobs", "a/uploads", "a//b", "/a", "a/"] {
            assert_eq!(instances.check(name, |_| true).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
    }
}
