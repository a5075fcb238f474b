//! `croft check`: full validation of configuration files, without starting anything. What is dangerous is told, and is no failure.

use std::io::Write;
use std::path::PathBuf;

use crate::config::Config;
use crate::error::{Error, Result};

pub(super) fn run(files: &[PathBuf]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mut found = 0;
    for file in files {
        let (problems, warnings) = match Config::load(Some(file)) {
            Ok(config) => {
                let problems: Vec<_> = config.check().into_iter().chain(config.file_problems()).collect();
                (problems, config.warnings())
            }
            Err(error) => (vec![error.chain()], Vec::new()),
        };
        found += problems.len();
        if problems.is_empty() {
            writeln!(out, "{}: ok", file.display())?;
        }
        for warning in warnings {
            writeln!(out, "{}: warning: {warning}", file.display())?;
        }
        for problem in problems {
            writeln!(out, "{}: {problem}", file.display())?;
        }
    }
    if found == 0 { Ok(()) } else { Err(Error::invalid(format!("{found} problems"))) }
}
