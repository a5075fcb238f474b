//! `credential:NAME` in place of a path: a file that the service manager hands over in `$CREDENTIALS_DIRECTORY`. So a configuration says
//! neither what a secret is nor where the machine keeps it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use figment::providers::{Data, Env, Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

/// What such a value begins with.
const PREFIX: &str = "credential:";

/// The keys whose values are files that hold a secret, or what is trusted.
const KEYS: [&str; 12] = [
    "account_key_file",
    "authorities",
    "ca_file",
    "certificate",
    "credential_file",
    "file",
    "key",
    "keys",
    "password_file",
    "revoked",
    "secret_access_key_file",
    "token",
];

/// The variable with the directory, which systemd sets where the unit has `LoadCredential=` or the like.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Where a credential is taken to be by who only looks at a configuration, without the service manager.
const ELSEWHERE: &str = "/run/credentials/croft.service";

/// Bytes of a credential's name, as the service manager has it.
const NAME_BYTES_MAX: usize = 255;

/// The credentials of this process.
#[derive(Debug)]
pub(super) struct Credentials {
    directory: Option<PathBuf>,
    /// Whether the configuration is only looked at.
    is_rehearsal: bool,
    unseen: RefCell<Vec<PathBuf>>,
}

/// A source of the configuration whose values have paths for names of credentials.
pub(super) struct Resolved<'a, P> {
    source: P,
    credentials: &'a Credentials,
}

impl Credentials {
    /// Those that the service manager has handed over; each that is named must be there.
    pub(super) fn of_this_process() -> Self {
        let directory = std::env::var_os(DIRECTORY).filter(|directory| !directory.is_empty());
        Self { directory: directory.map(PathBuf::from), is_rehearsal: false, unseen: RefCell::default() }
    }

    /// The same; but where nothing was handed over to this process, credentials are taken to be where the farm runs.
    pub(super) fn where_the_farm_runs() -> Self {
        Self { is_rehearsal: true, ..Self::of_this_process() }
    }

    pub(super) fn file(&self, file: &Path) -> Resolved<'_, Data<Toml>> {
        Resolved { source: Toml::file_exact(file), credentials: self }
    }

    pub(super) fn environment(&self, environment: Env) -> Resolved<'_, Env> {
        Resolved { source: environment, credentials: self }
    }

    /// The files that could not be looked for, since they are not on this machine.
    pub(super) fn into_unseen(self) -> Vec<PathBuf> {
        self.unseen.into_inner()
    }

    fn resolve(&self, key: &str, value: &mut Value) -> Result<(), String> {
        match value {
            Value::Dict(_, values) => values.iter_mut().try_for_each(|(key, value)| self.resolve(key, value)),
            // What is in a list has no key of its own, but its tables do.
            Value::Array(_, values) => values.iter_mut().try_for_each(|value| self.resolve("", value)),
            Value::String(_, text) if KEYS.contains(&key) => {
                let Some(name) = text.strip_prefix(PREFIX) else { return Ok(()) };
                let path = self.path(name).map_err(|problem| format!("{key} = \"{text}\": {problem}"))?;
                *text = path.into_os_string().into_string().map_err(|_| format!("{DIRECTORY} is no text"))?;
                Ok(())
            }
            Value::String(..) | Value::Char(..) | Value::Bool(..) | Value::Num(..) | Value::Empty(..) => {
                Ok(())
            }
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, String> {
        let is_name = !matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES_MAX;
        if !is_name || name.contains(|letter: char| letter == '/' || letter.is_control()) {
            return Err(format!("a credential's name has 1 to {NAME_BYTES_MAX} bytes and no slash"));
        }
        match &self.directory {
            Some(directory) => {
                let file = directory.join(name);
                let absent = || {
                    format!("there is no `{name}` in ${DIRECTORY}; the unit needs LoadCredential={name}:…")
                };
                file.is_file().then_some(file).ok_or_else(absent)
            }
            None if self.is_rehearsal => {
                let file = PathBuf::from(ELSEWHERE).join(name);
                self.unseen.borrow_mut().push(file.clone());
                Ok(file)
            }
            None => Err(format!("there is no ${DIRECTORY}; the unit needs LoadCredential={name}:…")),
        }
    }
}

impl<P: Provider> Provider for Resolved<'_, P> {
    fn metadata(&self) -> Metadata {
        self.source.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut data = self.source.data()?;
        for (key, value) in data.values_mut().flatten() {
            self.credentials.resolve(key, value)?;
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use figment::Figment;

    use super::*;

    /// Every key that may name a credential, and two texts that are none.
    const ALL: &str = r#"
        [public.tls]
        certificate = "/plain.pem"
        key = "credential:a"
        clients = { authorities = "credential:a", revoked = "credential:a" }
        [worker]
        token = "credential:a"
        properties = { key = ["credential:text"] }
        [access]
        basic = { file = "credential:a" }
        jwt = [{ keys = "credential:a" }]
        tokens = [{ name = "credential:text" }]
        [asset]
        ca_file = "credential:a"
        [[storage.tier]]
        password_file = "credential:a"
        [[storage.tier]]
        secret_access_key_file = "credential:a"
        credential_file = "credential:a"
        account_key_file = "credential:a"
    "#;

    fn resolve(credentials: &Credentials, toml: &str) -> Result<String, String> {
        let resolved = Resolved { source: Toml::string(toml), credentials };
        let value: Result<toml::Value, _> = Figment::from(resolved).extract();
        value.map(|value| toml::to_string(&value).unwrap()).map_err(|error| error.to_string())
    }

    fn credentials(directory: Option<&Path>) -> Credentials {
        let directory = directory.map(PathBuf::from);
        Credentials { directory, is_rehearsal: false, unseen: RefCell::default() }
    }

    #[test]
    fn every_key_of_a_file_may_name_a_credential_and_no_other_text_is_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "secret").unwrap();
        let resolved = resolve(&credentials(Some(directory.path())), ALL).unwrap();
        let path = directory.path().join("a").display().to_string();
        assert_eq!(resolved.matches(&path).count(), 11, "{resolved}");
        assert_eq!(resolved.matches("credential:text").count(), 2, "{resolved}");
        assert!(!resolved.contains("credential:a") && resolved.contains("/plain.pem"), "{resolved}");
    }

    #[test]
    fn a_credential_that_is_not_there_or_is_no_name_is_refused_with_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let given = credentials(Some(directory.path()));
        let wrong = [
            (&given, "absent", "no `absent` in $CREDENTIALS_DIRECTORY"),
            (&given, "../absent", "no slash"),
            (&given, "..", "no slash"),
            (&given, "", "no slash"),
            (&credentials(None), "absent", "there is no $CREDENTIALS_DIRECTORY"),
        ];
        for (credentials, name, expected) in wrong {
            let toml = format!("[worker]\ntoken = \"credential:{name}\"\n");
            let error = resolve(credentials, &toml).unwrap_err();
            assert!(error.contains(expected) && error.contains("token = "), "{name}: {error}");
        }
    }

    #[test]
    fn who_only_looks_takes_credentials_to_be_where_the_farm_runs_and_says_so() {
        let rehearsal = Credentials { is_rehearsal: true, ..credentials(None) };
        let resolved = resolve(&rehearsal, "[worker]\ntoken = \"credential:worker\"\n").unwrap();
        assert!(resolved.contains("/run/credentials/croft.service/worker"), "{resolved}");
        assert!(resolve(&rehearsal, "[worker]\ntoken = \"credential:a/b\"\n").is_err());
        assert_eq!(rehearsal.into_unseen(), [PathBuf::from(ELSEWHERE).join("worker")]);
    }
}
