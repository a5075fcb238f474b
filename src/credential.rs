//! What this process shows where it is a client: a bearer token out of a file, read again when that changes.

use std::path::Path;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use tokio::sync::watch;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::error::{Error, Result};
use crate::reload::{Content, Kind, NamedFile, Reloaded};
use crate::trace;

/// Bytes of a token, as much as our own listeners take.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// A channel whose calls show what there is to show, and say which trace they belong to.
pub type Lane = InterceptedService<Channel, Credential>;

/// A token, or nothing. Cheap to clone; what it shows is what the file holds at that time.
#[derive(Clone, Default)]
pub struct Credential(Option<Arc<Reloaded<AsciiMetadataValue>>>);

impl Credential {
    /// The token in `file`, if there is one, for the client that is called `name` in logs and metrics and whose section is `section`.
    ///
    /// # Errors
    /// `Invalid` with the key and the path when there is no token in it.
    pub fn new(name: &str, section: &str, file: Option<&Path>) -> Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let file = named(section, file);
        let make = |contents: &[Content]| token(&contents[0]);
        Reloaded::new((Kind::Token, name.to_owned()), vec![file], Box::new(make))
            .map(|token| Self(Some(token)))
    }

    /// `channel`, and with each call the token.
    pub fn over(&self, channel: Channel) -> Lane {
        InterceptedService::new(channel, self.clone())
    }

    /// Tells of each change of the token from now on; none where there will never be one.
    pub fn renewals(&self) -> Option<watch::Receiver<u64>> {
        self.0.as_ref().map(|token| token.renewals())
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(AUTHORIZATION.as_str(), (*token.current()).clone());
        }
        trace::send(request.metadata_mut());
        Ok(request)
    }
}

/// What is wrong with the value of `section.token`, where calls go to `hosts`: a sentence each, for the operator. `hosts` are those that
/// are reached without TLS.
pub fn problems<'a>(section: &str, file: &Path, hosts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut problems = Vec::new();
    if !file.is_absolute() {
        problems.push(format!("{section}.token must be an absolute path"));
    }
    let exposed = hosts.into_iter().filter(|host| !is_loopback(host));
    problems.extend(exposed.map(|host| {
        format!(
            "{section}.token: {host} is reached without TLS, and whoever is on the way could take the token"
        )
    }));
    problems
}

/// What is wrong with the file.
pub fn file_problem(section: &str, file: &Path) -> Option<String> {
    token(&named(section, file).read()).err().map(|error| error.chain())
}

/// Whether a host, as it stands in an address, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn named(section: &str, file: &Path) -> NamedFile {
    NamedFile { key: format!("{section}.token"), path: file.to_owned() }
}

/// Of the token itself no message says anything.
fn token(content: &Content) -> Result<AsciiMetadataValue> {
    let text = std::str::from_utf8(content.bytes()?).unwrap_or_default().trim();
    let is_token =
        !text.is_empty() && text.len() <= TOKEN_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    let wrong =
        || -> Error { content.wrong("there is no token in it: one line of letters, digits and signs") };
    if !is_token {
        return Err(wrong());
    }
    let mut value: AsciiMetadataValue = format!("Bearer {text}").parse().map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reload::{Look, Watched};

    fn shown(credential: &mut Credential) -> Option<String> {
        let request = credential.call(Request::new(())).unwrap();
        let value = request.metadata().get("authorization")?;
        assert!(value.is_sensitive());
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn what_the_file_holds_is_shown_until_it_holds_something_else_that_is_a_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\n").unwrap();
        let mut credential = Credential::new("test token", "worker", Some(file.path())).unwrap();
        let renewals = credential.renewals().unwrap();
        assert_eq!(shown(&mut credential).unwrap(), "Bearer one");
        let look = |credential: &Credential| credential.0.as_ref().unwrap().look(Look::Asked);
        for wrong in ["", "a token", "t\u{f6}ken"] {
            std::fs::write(file.path(), wrong).unwrap();
            look(&credential);
            assert_eq!(shown(&mut credential).unwrap(), "Bearer one");
        }
        assert!(!renewals.has_changed().unwrap());
        std::fs::write(file.path(), "two").unwrap();
        look(&credential);
        assert!(renewals.has_changed().unwrap());
        assert_eq!(shown(&mut credential).unwrap(), "Bearer two");
        assert_eq!(shown(&mut Credential::default()), None);
    }

    #[test]
    fn a_token_is_never_for_the_open_network() {
        let file = Path::new("/token");
        assert_eq!(problems("worker", file, ["localhost", "127.0.0.1", "[::1]"]), Vec::<String>::new());
        assert_eq!(problems("worker", file, ["farm.example", "10.0.0.1"]).len(), 2);
        assert_eq!(problems("worker", Path::new("token"), []).len(), 1);
    }

    #[test]
    fn a_message_about_a_file_says_nothing_of_what_is_in_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "my secret").unwrap();
        let problem = file_problem("worker", file.path()).unwrap();
        assert!(problem.starts_with("worker.token: ") && !problem.contains("secret"), "{problem}");
    }
}
