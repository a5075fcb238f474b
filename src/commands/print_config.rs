//! `croft print-config`: what would be in force.

use std::io::Write;
use std::path::Path;

use crate::config::Config;
use crate::error::Result;

pub(super) fn run(file: Option<&Path>) -> Result<()> {
    let config = Config::load(file)?;
    std::io::stdout().write_all(config.to_toml()?.as_bytes())?;
    Ok(())
}
