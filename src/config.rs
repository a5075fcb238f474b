//! The configuration: defaults in code, then one TOML file, then the environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::{rpc, scheduler, store, telemetry, worker};

/// The whole configuration. Every part belongs to the component of its name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything is kept. Unset: `$STATE_DIRECTORY`, or `$XDG_STATE_HOME/croft`, or `~/.local/state/croft`.
    pub data: Option<PathBuf>,
    /// Instance names that are served; none named means that any is.
    pub instances: Vec<String>,
    /// The listener for clients.
    pub public: Listener,
    /// The listener for operators: metrics, liveness, readiness.
    pub admin: Listener,
    pub storage: store::Config,
    pub execution: rpc::Config,
    pub http: rpc::Http,
    pub scheduler: scheduler::Config,
    /// Content that is fetched from elsewhere.
    pub asset: rpc::assets::Config,
    pub worker: worker::Config,
    pub log: telemetry::Config,
}

/// One listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port, as in `127.0.0.1:50051`.
    pub listen: SocketAddr,
}

/// The environment's variables begin with this; two underscores part a section from its key.
const PREFIX: &str = "CROFT_";
const SEPARATOR: &str = "__";

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| Listener { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
        Self {
            data: None,
            instances: Vec::new(),
            public: loopback(50051),
            admin: loopback(50080),
            storage: store::Config::default(),
            execution: rpc::Config::default(),
            http: rpc::Http::default(),
            scheduler: scheduler::Config::default(),
            asset: rpc::assets::Config::default(),
            worker: worker::Config::default(),
            log: telemetry::Config::default(),
        }
    }
}

impl Config {
    /// Reads the defaults, then `file` if there is one, then the environment.
    ///
    /// # Errors
    /// `Invalid` with every key that is unknown or of the wrong type.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            if !file.is_file() {
                return Err(Error::invalid(format!("there is no configuration file at {}", file.display())));
            }
            figment = figment.merge(Toml::file_exact(file));
        }
        figment.merge(environment()).extract().map_err(|error| {
            let problems: Vec<String> = error.into_iter().map(|error| error.to_string()).collect();
            Error::invalid(problems.join("; "))
        })
    }

    /// Every problem of the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = rpc::Instances::problems(&self.instances);
        if self.public.listen == self.admin.listen && self.public.listen.port() != 0 {
            problems.push(format!("public and admin both listen on {}", self.public.listen));
        }
        for listener in [&self.public, &self.admin] {
            if !listener.listen.ip().is_loopback() {
                let reason = "clients are not authenticated, so only loopback addresses are allowed";
                problems.push(format!("listen on {}: {reason}", listener.listen));
            }
        }
        problems.extend(self.storage.check());
        problems.extend(self.execution.check());
        problems.extend(self.scheduler.check());
        problems.extend(self.asset.check());
        problems.extend(self.worker.check());
        problems.extend(self.log.check());
        problems
    }

    /// [`Config::load`], refused if [`Config::check`] finds anything.
    ///
    /// # Errors
    /// `Invalid` with all problems.
    pub fn load_checked(file: Option<&Path>) -> Result<Self> {
        let config = Self::load(file)?;
        let problems = config.check();
        if problems.is_empty() { Ok(config) } else { Err(Error::invalid(problems.join("; "))) }
    }

    /// The directory for all data.
    ///
    /// # Errors
    /// `Invalid` when none is configured and the environment names none.
    pub fn data_directory(&self) -> Result<PathBuf> {
        if let Some(data) = &self.data {
            return Ok(data.clone());
        }
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // systemd lists several directories with colons between; ours is the first.
        let systemd = variable("STATE_DIRECTORY")
            .and_then(|list| Some(PathBuf::from(list.to_str()?.split(':').next()?)));
        systemd
            .or_else(|| Some(variable("XDG_STATE_HOME")?.join("croft")))
            .or_else(|| Some(variable("HOME")?.join(".local/state/croft")))
            .ok_or_else(|| Error::invalid("set `data` (or HOME): there is no place for the data"))
    }

    /// The effective configuration as TOML.
    ///
    /// # Errors
    /// `Bug` if a value has no form in TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|error| Error::bug("write the configuration as TOML").with_source(error))
    }
}

/// Only variables of our own sections: service managers and clusters put others with the same prefix into the environment.
fn environment() -> Env {
    let sections =
        figment::value::Value::serialize(Config::default()).ok().and_then(figment::value::Value::into_dict);
    let known: Vec<String> =
        sections.into_iter().flat_map(|sections| sections.into_keys()).chain(["data".to_owned()]).collect();
    Env::prefixed(PREFIX)
        .filter(move |key| {
            let section = key.as_str().to_ascii_lowercase();
            known.iter().any(|known| Some(known.as_str()) == section.split(SEPARATOR).next())
        })
        .split(SEPARATOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str) -> Result<Config> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        Config::load(Some(file.path()))
    }

    #[test]
    fn the_defaults_are_right_and_on_loopback() {
        let config = Config::default();
        assert_eq!(config.check(), Vec::<String>::new());
        assert!(config.public.listen.ip().is_loopback() && config.admin.listen.ip().is_loopback());
    }

    #[test]
    fn an_unknown_key_stops_the_start_and_is_named() {
        let error = load("[storage]\nsice = \"1 GiB\"\n").unwrap_err();
        assert!(error.to_string().contains("sice"), "{error}");
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let toml = Config::default().to_toml().unwrap();
        assert_eq!(load(&toml).unwrap().to_toml().unwrap(), toml);
    }

    #[test]
    fn the_configurations_of_the_readme_are_right() {
        let readme = include_str!("../README.md");
        let snippets: Vec<&str> =
            readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(!snippets.is_empty());
        for snippet in snippets {
            assert_eq!(load(snippet).unwrap().check(), Vec::<String>::new(), "{snippet}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let toml = "instances = [\"a/blobs\"]\n[public]\nlisten = \"0.0.0.0:1\"\n[execution]\ntimeout_max = \"0s\"\n";
        let problems = load(toml).unwrap().check();
        assert!(problems.len() >= 3, "{problems:?}");
    }
}
