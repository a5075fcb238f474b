//! One file a subcommand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Result;

mod check;
mod farm;
mod launcher;
mod lifecycle;
mod print_config;

/// A reproducible build farm: Remote Execution API v2 cache, scheduler and workers in one binary.
///
/// Without a command it starts the farm on this machine with embedded defaults, on loopback, and prints the Bazel flags to use.
/// Every setting can also be given in the environment: CROFT_ and its path in capitals, with two underscores between a section and
/// a key, as in CROFT_PUBLIC__LISTEN=127.0.0.1:50051. `croft print-config` lists them.
#[derive(Debug, Parser)]
#[command(name = "croft", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve what a configuration file says
    Serve {
        /// The file, in TOML
        #[arg(long)]
        config: PathBuf,
    },
    /// Check configuration files and print every problem, not only the first
    Check {
        /// The files, in TOML
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the effective configuration as TOML, with the environment applied
    PrintConfig {
        /// The file to start from; without it, the defaults
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print the rules by age for the buckets of a configuration, in each provider's own format
    Lifecycle {
        /// The file, in TOML
        #[arg(long)]
        config: PathBuf,
        /// Only this tier's, by its name in the file or else its kind
        #[arg(long)]
        tier: Option<String>,
    },
    /// Run actions for the farm that started this process (not for people)
    #[command(hide = true)]
    Launcher,
}

impl Arguments {
    /// # Errors
    /// Those of the command.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            None => farm::run(None)?,
            Some(Command::Serve { config }) => farm::run(Some(&config))?,
            Some(Command::Check { files }) => check::run(&files)?,
            Some(Command::PrintConfig { config }) => print_config::run(config.as_deref())?,
            Some(Command::Lifecycle { config, tier }) => lifecycle::run(&config, tier.as_deref())?,
            Some(Command::Launcher) => return Ok(launcher::run()),
        }
        Ok(ExitCode::SUCCESS)
    }
}
