//! `croft check`: full validation of configuration files, without starting anything. What is dangerous is told, and is no failure.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};

pub(super) fn run(files: &[PathBuf]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mut found = 0;
    for file in files {
        let Found { problems, warnings } = look(file);
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

/// What there is to say of a configuration.
struct Found {
    problems: Vec<String>,
    warnings: Vec<String>,
}

fn look(file: &Path) -> Found {
    let (config, unseen) = match Config::load_to_check(file) {
        Ok(loaded) => loaded,
        Err(error) => return Found { problems: vec![error.chain()], warnings: Vec::new() },
    };
    let mut problems = config.check();
    // A configuration is checked where it is built, too, and its secrets are not there.
    let is_seen =
        |problem: &String| unseen.iter().all(|credential| !problem.contains(&*credential.to_string_lossy()));
    problems.extend(config.file_problems().into_iter().filter(is_seen));
    let mut warnings = config.warnings();
    warnings.extend(unseen.iter().filter_map(|credential| credential.file_name()).map(|name| {
        let name = name.to_string_lossy();
        format!("the credential `{name}` was not looked at: there is no $CREDENTIALS_DIRECTORY here")
    }));
    Found { problems, warnings }
}
