//! Who gets in, and who does not: every call by nobody, without the right and with it; and workers that speak for others.

mod certificates;
mod machines;
mod table;
mod workers;

use std::path::Path;

use croft::access::FreshToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::farm::Farm;

/// The environment of a farm: its tokens, and the rules for them.
struct Doors {
    tokens: Vec<(String, FreshToken)>,
    rules: Vec<String>,
}

impl Doors {
    fn new() -> Self {
        Self { tokens: Vec::new(), rules: Vec::new() }
    }

    /// Adds a token that may do `rights`, which are names with commas between, in `instances`.
    fn token(mut self, name: &str, rights: &str, instances: &str) -> Self {
        if !self.tokens.iter().any(|(known, _)| known == name) {
            self.tokens.push((name.to_owned(), FreshToken::generate().unwrap()));
        }
        self.rule(&format!("token:{name}"), rights, instances)
    }

    /// Says what whoever has no token may do.
    fn anonymous(self, rights: &str, instances: &str) -> Self {
        self.rule("anonymous", rights, instances)
    }

    fn rule(mut self, who: &str, rights: &str, instances: &str) -> Self {
        if !rights.is_empty() {
            let rights: Vec<String> = rights.split(',').map(|right| format!("{right:?}")).collect();
            let rights = rights.join(", ");
            self.rules.push(format!("{{who=[\"{who}\"], may=[{rights}], instances=[\"{instances}\"]}}"));
        }
        self
    }

    fn start(&self, environment: &[(&str, &str)]) -> Farm {
        self.start_by(environment, Farm::start_with)
    }

    /// On the data of a former farm, or of one to come.
    fn start_in(&self, data: &Path, environment: &[(&str, &str)]) -> Farm {
        self.start_by(environment, |environment| Farm::start_in(data, environment))
    }

    fn start_by(&self, environment: &[(&str, &str)], start: impl FnOnce(&[(&str, &str)]) -> Farm) -> Farm {
        let mut environment = environment.to_vec();
        let (rules, tokens) = self.values();
        environment.extend([
            ("CROFT_ACCESS__RULES", rules.as_str()),
            ("CROFT_ACCESS__TOKENS", tokens.as_str()),
            ("CROFT_WORKERS__LISTEN", "127.0.0.1:0"),
        ]);
        start(&environment)
    }

    /// The values of `access.rules` and `access.tokens`.
    fn values(&self) -> (String, String) {
        let tokens: Vec<String> = self
            .tokens
            .iter()
            .map(|(name, token)| format!("{{name=\"{name}\", sha256=\"{}\"}}", token.sha256))
            .collect();
        (format!("[{}]", self.rules.join(", ")), format!("[{}]", tokens.join(", ")))
    }

    /// What is put before each call of whoever has the token.
    fn bearer(&self, name: &str) -> Bearer {
        Bearer(format!("Bearer {}", self.secret(name)).parse().unwrap())
    }

    /// The token itself.
    fn secret(&self, name: &str) -> &str {
        &self.tokens.iter().find(|(known, _)| known == name).unwrap().1.token
    }
}

/// Shows a token with each call.
#[derive(Debug, Clone)]
struct Bearer(AsciiMetadataValue);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}
