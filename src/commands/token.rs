//! `croft token`: a token that nobody has yet, and its hash for the configuration.

use std::io::Write;

use crate::access::FreshToken;
use crate::error::Result;

/// The token is printed once and kept nowhere: it goes to the client, the hash into the configuration.
pub(super) fn run() -> Result<()> {
    let FreshToken { token, sha256 } = FreshToken::generate()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "token:  {token}")?;
    writeln!(out, "sha256: {sha256}")?;
    Ok(())
}
