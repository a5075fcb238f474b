//! The configuration: defaults in code, then one TOML file, then the environment.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Serialized};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::systemd::Sockets;
use crate::worker::Machine;
use crate::{access, audit, listen, rpc, scheduler, store, telemetry, tls, trace, web, worker};

mod credentials;

use credentials::Credentials;

/// The whole configuration. Every part belongs to the component of its name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything is kept. Unset: `$STATE_DIRECTORY`, or `$XDG_STATE_HOME/croft`, or `~/.local/state/croft`.
    pub data: Option<PathBuf>,
    /// Instance names that are served; none named means that any is.
    pub instances: Vec<String>,
    /// What this process does of a farm: all of it by default.
    pub roles: BTreeSet<Role>,
    /// The listener for clients; a process that is only a worker has none.
    pub public: Listener,
    /// The listener for workers of other processes. Unset: none, unless this process is a scheduler without a worker of its own.
    pub workers: Option<Listener>,
    /// The listener for operators: metrics, liveness, readiness.
    pub admin: Listener,
    pub storage: store::Config,
    pub execution: rpc::Config,
    pub http: rpc::Http,
    pub scheduler: scheduler::Config,
    /// Content that is fetched from elsewhere.
    pub asset: rpc::assets::Config,
    pub worker: worker::Config,
    /// Actions that are run again to see whether they give the same outputs.
    pub audit: audit::Config,
    pub log: telemetry::Config,
    /// Traces, and where they go.
    pub trace: trace::Config,
    /// The pages for people on the admin listener.
    pub pages: web::Config,
    /// Who may do what. Unset: whoever is on this machine everything, and nobody else is listened for.
    pub access: Option<access::Config>,
}

/// A part of a farm that a process can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Keeps blobs, action results and assets.
    Cas,
    /// Takes actions from clients and hands them to workers.
    Scheduler,
    /// Runs actions.
    Worker,
}

/// One listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port, as in `127.0.0.1:50051`.
    pub listen: SocketAddr,
    /// Whether it may listen beyond loopback without TLS: for networks that encrypt by themselves, or behind a proxy with TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Connections that one address may have open, but for those of this machine.
    #[serde(default = "connections_per_address")]
    pub connections_per_address: u32,
    /// Its certificate, and whether it asks clients for theirs.
    #[serde(default)]
    pub tls: Option<tls::Server>,
}

/// Where a scheduler listens for workers if nothing else is said.
const WORKERS: Listener = Listener::on_loopback(50061);

/// How long a worker that has a process of its own lets actions go on when it is asked to stop: longer than most take, and as long as
/// an operator who waits for a machine has patience.
const DRAIN_MAX: Duration = Duration::from_secs(10 * 60);

/// The environment's variables begin with this; two underscores part a section from its key.
const PREFIX: &str = "CROFT_";
const SEPARATOR: &str = "__";

impl Default for Config {
    fn default() -> Self {
        Self {
            data: None,
            instances: Vec::new(),
            roles: [Role::Cas, Role::Scheduler, Role::Worker].into(),
            public: Listener::on_loopback(50051),
            workers: None,
            admin: Listener::on_loopback(50080),
            storage: store::Config::default(),
            execution: rpc::Config::default(),
            http: rpc::Http::default(),
            scheduler: scheduler::Config::default(),
            asset: rpc::assets::Config::default(),
            worker: worker::Config::default(),
            audit: audit::Config::default(),
            log: telemetry::Config::default(),
            trace: trace::Config::default(),
            pages: web::Config::default(),
            access: None,
        }
    }
}

fn connections_per_address() -> u32 {
    listen::CONNECTIONS_PER_ADDRESS
}

impl Listener {
    /// A listener on this machine's loopback, without TLS.
    pub const fn on_loopback(port: u16) -> Self {
        Self {
            insecure: false,
            connections_per_address: listen::CONNECTIONS_PER_ADDRESS,
            tls: None,
            listen: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)),
        }
    }
}

impl Listener {
    fn problems(&self, name: &str) -> Vec<String> {
        let address = self.listen;
        let is_exposed = !address.ip().is_loopback() && self.tls.is_none() && !self.insecure;
        let exposed = is_exposed.then(|| {
            let reason = "beyond loopback, anyone on the way can read and change what is sent";
            let remedy =
                format!("set {name}.tls, or {name}.insecure = true if something else protects the way");
            format!("{name}: listen on {address}: {reason}; {remedy}")
        });
        let is_both = self.insecure && self.tls.is_some();
        let both = is_both.then(|| format!("{name}.insecure: there is {name}.tls, so drop one of them"));
        let closed = (self.connections_per_address == 0)
            .then(|| format!("{name}.connections_per_address: with 0 nobody could connect"));
        let tls = self.tls.as_ref().map_or_else(Vec::new, |tls| tls.check(&format!("{name}.tls")));
        exposed.into_iter().chain(both).chain(closed).chain(tls).collect()
    }
}

impl Config {
    /// Reads the defaults, then `file` if there is one, then the environment.
    ///
    /// # Errors
    /// `Invalid` with every key that is unknown or of the wrong type, or with the credential that this process was not given.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        Self::load_with(file, &Credentials::of_this_process())
    }

    /// As [`Config::load`], where the farm need not be able to run: with the files of credentials that could not be looked for.
    ///
    /// # Errors
    /// `Invalid` with every key that is unknown or of the wrong type.
    pub fn load_to_check(file: &Path) -> Result<(Self, Vec<PathBuf>)> {
        let credentials = Credentials::where_the_farm_runs();
        let config = Self::load_with(Some(file), &credentials)?;
        Ok((config, credentials.into_unseen()))
    }

    fn load_with(file: Option<&Path>, credentials: &Credentials) -> Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            if !file.is_file() {
                return Err(Error::invalid(format!("there is no configuration file at {}", file.display())));
            }
            figment = figment.merge(credentials.file(file));
        }
        figment.merge(credentials.environment(environment())).extract().map_err(|error| {
            let problems: Vec<String> = error.into_iter().map(|error| error.to_string()).collect();
            Error::invalid(problems.join("; "))
        })
    }

    /// Every problem of the values, one sentence each.
    pub fn check(&self) -> Vec<String> {
        let mut problems = rpc::Instances::problems(&self.instances);
        problems.extend(self.listener_problems());
        problems.extend(self.role_problems());
        problems.extend(self.storage.check());
        problems.extend(self.execution.check());
        problems.extend(self.scheduler.check());
        problems.extend(self.asset.check());
        problems.extend(self.worker.check());
        problems.extend(self.audit.check());
        problems.extend(self.log.check());
        problems.extend(self.trace.check());
        problems.extend(self.pages.check());
        problems.extend(self.access.iter().flat_map(access::Config::check));
        problems
    }

    fn listener_problems(&self) -> Vec<String> {
        let listeners = self.listeners();
        let open: Vec<_> = listeners.iter().map(|(name, listener)| (name, listener.listen)).collect();
        let mut problems: Vec<String> =
            listeners.iter().flat_map(|(name, listener)| listener.problems(name)).collect();
        for (number, (name, address)) in open.iter().enumerate() {
            if !address.ip().is_loopback() && self.access.is_none() {
                let reason = "without a section [access] only this machine may do anything, so only loopback addresses are of use";
                problems.push(format!("{name}: listen on {address}: {reason}"));
            }
            for (other, _) in open[..number].iter().filter(|(_, other)| other == address && other.port() != 0)
            {
                problems.push(format!("{other} and {name} both listen on {address}"));
            }
        }
        problems
    }

    /// The listeners that this process has, by name.
    fn listeners(&self) -> Vec<(&'static str, Listener)> {
        let all = [
            ("public", self.public_listener()),
            ("workers", self.worker_listener()),
            ("admin", Some(self.admin.clone())),
        ];
        all.into_iter().filter_map(|(name, listener)| Some((name, listener?))).collect()
    }

    /// What is allowed and yet dangerous, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let listeners = self.listeners();
        let exposure = |(name, listener): &(&'static str, Listener)| access::Exposure {
            name,
            is_loopback: listener.listen.ip().is_loopback(),
            has_tls: listener.tls.is_some(),
            takes_certificates: listener.tls.as_ref().is_some_and(|tls| tls.clients.is_some()),
        };
        let exposures: Vec<_> = listeners.iter().map(exposure).collect();
        self.access.iter().flat_map(|access| access.warnings(&exposures, &self.instances)).collect()
    }

    /// What is wrong with the files that the configuration names: certificates, keys, revocation lists. One sentence each.
    pub fn file_problems(&self) -> Vec<String> {
        let of_listener =
            |(name, listener): (&str, Listener)| listener.tls?.file_problem(&format!("{name}.tls"));
        let mut problems: Vec<String> = self.listeners().into_iter().filter_map(of_listener).collect();
        if self.has(Role::Worker) {
            problems.extend(self.worker.file_problems());
        }
        problems.extend(self.storage.file_problems());
        problems.extend(self.access.iter().flat_map(access::Config::file_problems));
        problems
    }

    /// What the roles demand of the other parts.
    fn role_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.roles.is_empty() {
            problems.push("roles: name at least one of cas, scheduler, worker".to_owned());
        }
        if self.workers.is_some() && !self.has(Role::Scheduler) {
            problems.push(
                "workers.listen: only a process with the role scheduler has a use for workers".to_owned(),
            );
        }
        match (self.has(Role::Worker), self.has(Role::Scheduler), &self.worker.scheduler) {
            (true, false, None) => problems.push(
                "worker.scheduler: the roles name a worker but no scheduler, so say where one is, as in \"grpc://127.0.0.1:50061\""
                    .to_owned(),
            ),
            (true, true, Some(_)) => problems.push(
                "worker.scheduler: the roles name a scheduler, too, so the worker of this process works for that one".to_owned(),
            ),
            (false, _, Some(_)) => {
                problems.push("worker.scheduler: the roles name no worker".to_owned());
            }
            (true, false, Some(_)) | (true, true, None) | (false, _, None) => {}
        }
        if !self.has(Role::Cas) && !self.roles.is_empty() {
            problems.extend(self.storage.problems_beside_a_cas());
        }
        problems
    }

    /// Whether this process has `role`.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// The listener for clients, if the roles have something for them.
    pub fn public_listener(&self) -> Option<Listener> {
        (self.has(Role::Cas) || self.has(Role::Scheduler)).then(|| self.public.clone())
    }

    /// The listener for workers of other processes: where it is asked for, and where without it nobody could work.
    pub fn worker_listener(&self) -> Option<Listener> {
        let is_needed = self.has(Role::Scheduler) && !self.has(Role::Worker);
        self.workers.clone().or(is_needed.then_some(WORKERS))
    }

    /// How long actions may go on after the process was asked to stop. A farm in one process stops promptly, since its clients lose
    /// it anyway; a process that is only a worker lets what runs end.
    pub fn drain_timeout(&self) -> Duration {
        let is_worker_only = self.roles.iter().eq([&Role::Worker]);
        let default = if is_worker_only { DRAIN_MAX } else { Duration::ZERO };
        self.worker.drain_timeout.unwrap_or(default)
    }

    /// The worker with what it offers: the machine's cores and memory too, if actions can demand those and nothing else is configured.
    pub fn offered_worker(&self) -> worker::Config {
        let mut worker = self.worker.clone();
        let amounts = worker.amounts(&Machine::measure());
        for (name, amount) in amounts {
            let is_amount = self.scheduler.properties.get(name) == Some(&scheduler::PropertyKind::Minimum);
            if is_amount {
                worker.properties.entry(name.to_owned()).or_insert_with(|| vec![amount.to_string()]);
            }
        }
        worker
    }

    /// The configuration of a process that was given `sockets`: that is where it listens, whatever `listen` says.
    ///
    /// # Errors
    /// `Invalid` with the socket that no listener is for.
    pub fn listening_on(mut self, sockets: &Sockets) -> Result<Self> {
        for (name, address) in sockets.addresses()? {
            let listener = match name {
                "public" => self.public_listener().map(|_| &mut self.public),
                "workers" => {
                    self.workers = self.worker_listener();
                    self.workers.as_mut()
                }
                "admin" => Some(&mut self.admin),
                _ => None,
            };
            let unwanted = || {
                Error::invalid(format!(
                    "the socket `{name}` that was handed over is for no listener of this process: those are {}",
                    "public, workers and admin, as far as its roles have them"
                ))
            };
            listener.ok_or_else(unwanted)?.listen = address;
        }
        Ok(self)
    }

    /// [`Config::load`], refused if [`Config::check`] finds anything.
    ///
    /// # Errors
    /// `Invalid` with all problems.
    pub fn load_checked(file: Option<&Path>, sockets: &Sockets) -> Result<Self> {
        let config = Self::load(file)?.listening_on(sockets)?;
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

/// What the defaults leave unset, so that it is not among their keys.
const UNSET: [&str; 3] = ["access", "data", "workers"];

/// Only variables of our own sections: service managers and clusters put others with the same prefix into the environment.
fn environment() -> Env {
    let sections =
        figment::value::Value::serialize(Config::default()).ok().and_then(figment::value::Value::into_dict);
    let known: Vec<String> = sections
        .into_iter()
        .flat_map(|sections| sections.into_keys())
        .chain(UNSET.map(str::to_owned))
        .collect();
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
            let mut problems = load(snippet).unwrap().check();
            // What roots consist of is on the operator's machine.
            problems.retain(|problem| {
                !problem.starts_with("worker.root: ") && !problem.starts_with("worker.images: ")
            });
            assert_eq!(problems, Vec::<String>::new(), "{snippet}");
        }
    }

    /// Every text of a table with its key, and the table's own.
    fn texts(key: &str, value: &toml::Value, found: &mut Vec<(String, String)>) {
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(key, value)| texts(key, value, found)),
            toml::Value::Array(values) => values.iter().for_each(|value| texts(key, value, found)),
            toml::Value::String(text) => found.push((key.to_owned(), text.clone())),
            toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_) => {}
        }
    }

    #[test]
    fn the_page_hides_what_is_secret_and_nothing_else() {
        const HIDDEN: [&str; 8] = [
            "access_key_id",
            "account_key_file",
            "credential_file",
            "password_file",
            "secret_access_key_file",
            "sha256",
            "token",
            "username",
        ];
        let rare = r#"
            data = "/data"
            roles = ["cas", "scheduler", "worker"]
            [asset]
            allow = ["https://example.org/"]
            ca_file = "/ca"
            [worker]
            name = "w"
            token = "/token"
            images = { "docker://image" = "/root" }
            [[storage.tier]]
            kind = "redis"
            url = "redis://10.0.0.1"
            username = "ada"
            password_file = "/password"
            [[storage.tier]]
            kind = "s3"
            bucket = "b"
            access_key_id = "AK"
            secret_access_key_file = "/secret"
            [[storage.tier]]
            kind = "gcs"
            bucket = "b"
            credential_file = "/credential"
            [[storage.tier]]
            kind = "azure"
            container = "c"
            account = "a"
            account_key_file = "/account"
            "#;
        let readme = include_str!("../README.md");
        let snippets = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let mut hidden = BTreeSet::new();
        for toml in ["", rare].into_iter().chain(snippets) {
            let whole = load(toml).unwrap().to_toml().unwrap();
            let shown: toml::Table = web::without_secrets(&whole).parse().unwrap();
            let mut found = Vec::new();
            texts("", &toml::Value::Table(shown), &mut found);
            hidden.extend(found.into_iter().filter(|(_, text)| text == "(hidden)").map(|(key, _)| key));
        }
        assert_eq!(
            hidden,
            HIDDEN.map(str::to_owned).into(),
            "a new option stands in `OPEN` of the page, or here"
        );
    }

    #[test]
    fn a_worker_offers_the_machine_unless_something_else_is_said() {
        let offered = |toml: &str| load(toml).unwrap().offered_worker().properties;
        let by_default = offered("[worker]\nslots = 500");
        assert_eq!(by_default["cores"], ["500"], "who wants more actions than cores gets them");
        assert!(by_default["memory"][0].parse::<u64>().unwrap() > 1 << 20);
        let configured = offered("[worker.properties]\ncores = [\"3\"]");
        assert_eq!(configured["cores"], ["3"]);
        let undeclared = offered("[scheduler.properties]\nmemory = \"exact\"");
        assert!(!undeclared.contains_key("memory"), "{undeclared:?}");
    }

    #[test]
    fn nonsense_about_roles_is_told() {
        let farm = "[[storage.tier]]\nkind = \"farm\"\nendpoints = [\"http://127.0.0.1:50051\"]\n";
        let wrong = [
            ("roles = []".to_owned(), "at least one"),
            (format!("roles = [\"worker\"]\n{farm}"), "say where one is"),
            (
                format!("roles = [\"worker\"]\n[worker]\nscheduler = \"grpc://10.0.0.1:1\"\n{farm}"),
                "loopback",
            ),
            (format!("roles = [\"worker\"]\n[worker]\nscheduler = \"127.0.0.1:1\"\n{farm}"), "grpc://"),
            ("[worker]\nscheduler = \"grpc://127.0.0.1:1\"".to_owned(), "works for that one"),
            ("roles = [\"cas\"]\n[worker]\nscheduler = \"grpc://127.0.0.1:1\"".to_owned(), "name no worker"),
            ("roles = [\"cas\"]\n[workers]\nlisten = \"127.0.0.1:1\"".to_owned(), "role scheduler"),
            ("roles = [\"scheduler\"]".to_owned(), "storage.tier"),
            (format!("roles = [\"scheduler\"]\n[storage]\nwrite = \"back\"\n{farm}"), "storage.write"),
            (
                format!("roles = [\"scheduler\"]\n[access]\n[workers]\nlisten = \"0.0.0.0:1\"\n{farm}"),
                "workers.insecure",
            ),
            (
                format!("roles = [\"scheduler\"]\n[admin]\nlisten = \"127.0.0.1:50061\"\n{farm}"),
                "both listen",
            ),
        ];
        for (toml, expected) in wrong {
            let problems = load(&toml).unwrap().check();
            assert!(problems.len() == 1 && problems[0].contains(expected), "{toml}: {problems:?}");
        }
        assert!(load("roles = [\"cash\"]").is_err());
    }

    #[test]
    fn workers_are_listened_for_where_there_would_be_none_otherwise_or_when_asked() {
        let listens =
            |toml: &str| load(toml).unwrap().worker_listener().map(|listener| listener.listen.port());
        assert_eq!(listens(""), None);
        assert_eq!(listens("[workers]\nlisten = \"127.0.0.1:7\""), Some(7));
        assert_eq!(listens("roles = [\"cas\", \"scheduler\"]"), Some(50061));
        assert_eq!(listens("roles = [\"worker\"]"), None);
    }

    #[test]
    fn only_a_worker_alone_lets_actions_end_unless_told_so() {
        let drains = |toml: &str| load(toml).unwrap().drain_timeout();
        assert_eq!(drains(""), Duration::ZERO);
        assert_eq!(drains("roles = [\"worker\"]"), DRAIN_MAX);
        assert_eq!(drains("[worker]\ndrain_timeout = \"5s\""), Duration::from_secs(5));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let toml = "instances = [\"a/blobs\"]\n[public]\nlisten = \"0.0.0.0:1\"\n[execution]\ntimeout_max = \"0s\"\n";
        let problems = load(toml).unwrap().check();
        assert!(problems.len() >= 3, "{problems:?}");
    }
}
