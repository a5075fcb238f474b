//! Texts that many tasks have in common, kept once: a million queued actions name a few instances, invocations and platforms.

use std::sync::Arc;

use super::config::Config;
use super::lookup::Recent;
use super::requirements::Requirements;
use super::task::{Platform, Task};
use crate::error::Result;

/// Texts and platforms that are remembered, each. More than are in use at once; what is not shared only costs its own memory.
const SHARED_MAX: usize = 8192;

#[derive(Debug)]
pub(super) struct Shared {
    texts: Recent<Arc<str>, Arc<str>>,
    platforms: Recent<Arc<Platform>, (Arc<Platform>, Arc<Requirements>)>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { texts: Recent::new(SHARED_MAX), platforms: Recent::new(SHARED_MAX) }
    }
}

impl Shared {
    /// Puts what is known in place of what `task` came with. Returns what its platform requires.
    ///
    /// # Errors
    /// As [`Requirements::resolve`].
    pub(super) fn share(&mut self, config: &Config, task: &mut Task) -> Result<Arc<Requirements>> {
        let resolve = || -> Result<_> {
            let requirements = Arc::new(Requirements::resolve(config, &task.platform)?);
            Ok((Arc::clone(&task.platform), (Arc::clone(&task.platform), requirements)))
        };
        let (platform, requirements) = self.platforms.get_or_try_insert(&task.platform, resolve)?;
        task.platform = platform;
        for text in [&mut task.instance, &mut task.invocation, &mut task.identity] {
            *text = self.texts.get_or_insert(text, || (Arc::clone(text), Arc::clone(text)));
        }
        Ok(requirements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(platform: &[(&str, &str)]) -> Task {
        let properties = platform.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Task {
            platform: Arc::new(Platform::new(properties)),
            invocation: "one".into(),
            identity: "somebody".into(),
            ..Task::example("x")
        }
    }

    #[test]
    fn equal_texts_and_platforms_are_kept_once() {
        let (mut shared, config) = (Shared::default(), Config::default());
        let [mut one, mut two] = [task(&[("ISA", "x")]), task(&[("ISA", "x")])];
        let first = shared.share(&config, &mut one).unwrap();
        let second = shared.share(&config, &mut two).unwrap();
        assert!(Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&one.platform, &two.platform));
        assert!(Arc::ptr_eq(&one.invocation, &two.invocation) && Arc::ptr_eq(&one.identity, &two.identity));
        assert!(shared.share(&config, &mut task(&[("undeclared", "x")])).is_err());
    }
}
