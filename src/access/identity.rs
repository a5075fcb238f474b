//! Who somebody is, and how that was proven.

use std::fmt;
use std::time::SystemTime;

/// How an identity was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// Nothing was proven.
    None,
    /// It is a part of this process, over a pipe in memory.
    Process,
    /// A certificate in the TLS handshake.
    Certificate,
    /// A static token, of which the configuration has the hash.
    Token,
    /// A token that an issuer has signed.
    Jwt,
    /// A user's name and password.
    Basic,
}

impl Proof {
    /// As rules and the log spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "anonymous",
            Self::Process => "process",
            Self::Certificate => "certificate",
            Self::Token => "token",
            Self::Jwt => "jwt",
            Self::Basic => "basic",
        }
    }
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub proof: Proof,
    /// What it is called; a certificate may have several names, of which the first stands in messages.
    pub names: Vec<String>,
    /// The groups that the proof or the configuration puts it in.
    pub groups: Vec<String>,
    /// When the proof ends, as a certificate's or a signed token's does.
    pub expires: Option<SystemTime>,
}

impl Identity {
    /// Somebody who has proven nothing.
    pub const fn anonymous() -> Self {
        Self { proof: Proof::None, names: Vec::new(), groups: Vec::new(), expires: None }
    }

    /// A part of this process.
    pub const fn process() -> Self {
        Self { proof: Proof::Process, names: Vec::new(), groups: Vec::new(), expires: None }
    }

    pub fn new(proof: Proof, name: impl Into<String>, groups: Vec<String>) -> Self {
        Self { proof, names: vec![name.into()], groups, expires: None }
    }

    /// The same with an end of its proof.
    #[must_use]
    pub fn until(self, expires: SystemTime) -> Self {
        Self { expires: Some(expires), ..self }
    }

    /// Whether somebody has proven to be somebody.
    pub fn is_proven(&self) -> bool {
        self.proof != Proof::None
    }

    /// The name that stands in messages; empty for somebody without one.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// As in `token:ci`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.first() {
            Some(name) => write!(f, "{}:{name}", self.proof.name()),
            None => f.write_str(self.proof.name()),
        }
    }
}
