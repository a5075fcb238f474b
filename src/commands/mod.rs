//! One file a subcommand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::error::{Error, Result};

mod admin;
mod audit;
mod check;
mod farm;
mod forget;
mod launcher;
mod lifecycle;
mod mark;
mod print_config;
mod scheduler;
mod scrub;
mod status;
mod table;
mod token;
mod why;

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
    /// Show what a running farm holds, what waits, and what its workers do
    Status {
        #[command(flatten)]
        farm: RunningFarm,
        /// Print what the farm answers, in JSON
        #[arg(long)]
        json: bool,
    },
    /// Say why an operation waits; without one, what waits longest for each set of platform properties and why
    Why {
        #[command(flatten)]
        farm: RunningFarm,
        /// The operation: its full name or the 32 digits at its end
        operation: Option<String>,
        /// Print what the farm answers, in JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a worker finish what it runs and take nothing new
    Drain {
        #[command(flatten)]
        mark: MarkArguments,
        /// Why, for whoever looks at the worker later
        #[arg(long, default_value = "")]
        reason: String,
        /// Return when nothing runs on it any more
        #[arg(long)]
        wait: bool,
        /// How long to wait, as in 90s or 2h; the worker drains on in any case
        #[arg(long, default_value = "1h", value_parser = parse_time, requires = "wait")]
        timeout: Duration,
    },
    /// Give a worker no new work, until it is opened again
    Cordon {
        #[command(flatten)]
        mark: MarkArguments,
        /// Why, for whoever looks at the worker later
        #[arg(long)]
        reason: String,
    },
    /// Give a worker that was cordoned or drained work again
    Open {
        #[command(flatten)]
        mark: MarkArguments,
    },
    /// Verify all that a running farm keeps on its disks; the exit code is 1 when something was damaged or lost
    Scrub {
        #[command(flatten)]
        farm: RunningFarm,
    },
    /// Run cached actions again and tell which outputs differ; the exit code is 1 when some do, 2 when of some nothing can be said
    ///
    /// Without actions and without --sample it prints what audits have found since the farm started.
    Audit {
        #[command(flatten)]
        farm: RunningFarm,
        /// The digests of the actions, each as HASH/SIZE
        actions: Vec<String>,
        /// The name of their instance; "" for the one without a name
        #[arg(long, default_value = "")]
        instance: String,
        /// The digest function
        #[arg(long, default_value = "sha256")]
        function: String,
        /// How many of the results to audit beside, that were cached since the farm started
        #[arg(long, default_value_t = 0)]
        sample: usize,
        /// Return when the audits have ended, and print what they found
        #[arg(long)]
        wait: bool,
        /// Print the reports in JSON
        #[arg(long)]
        json: bool,
    },
    /// Withdraw the cached result of one action, so that the next build runs it again
    Forget {
        #[command(flatten)]
        farm: RunningFarm,
        /// The name of the instance; "" for the one without a name
        instance: String,
        /// The digest of the action, as HASH/SIZE
        digest: String,
        /// The digest function
        #[arg(long, default_value = "sha256")]
        function: String,
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
    /// Print a token that nobody has yet, and its hash for the configuration
    Token,
    /// Run actions for the farm that started this process (not for people)
    #[command(hide = true)]
    Launcher,
}

/// Which farm a command is about.
#[derive(Debug, Args)]
struct RunningFarm {
    /// The farm's admin listener
    #[arg(long = "admin", default_value = admin::ADDRESS)]
    address: String,
    /// The file of the authorities, in PEM, that the farm's certificate must come from; without it, those of this system
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The file of the certificate, in PEM, to show to the farm
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The file of that certificate's private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The file with the token to show to the farm
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
}

/// Which worker a command is about.
#[derive(Debug, Args)]
struct MarkArguments {
    #[command(flatten)]
    farm: RunningFarm,
    /// The worker: its name, or its id where several have that name
    worker: String,
    /// Print what the farm answers, in JSON
    #[arg(long)]
    json: bool,
}

impl MarkArguments {
    fn run(&self, verb: &'static str, reason: &str, wait: Option<Duration>) -> Result<()> {
        let mark = mark::Mark { verb, worker: &self.worker, reason, wait, as_json: self.json };
        mark::run(&self.farm, &mark)
    }
}

fn parse_time(text: &str) -> Result<Duration> {
    let parsed = humantime_serde::re::humantime::parse_duration(text);
    parsed.map_err(|error| Error::invalid("a time is written as in 90s or 2h").with_source(error))
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
            Some(Command::Status { farm, json }) => status::run(&farm, json)?,
            Some(Command::Why { farm, operation, json }) => {
                why::run(&farm, operation.as_deref(), json)?;
            }
            Some(Command::Drain { mark, reason, wait, timeout }) => {
                mark.run("drain", &reason, wait.then_some(timeout))?;
            }
            Some(Command::Cordon { mark, reason }) => mark.run("cordon", &reason, None)?,
            Some(Command::Open { mark }) => mark.run("open", "", None)?,
            Some(Command::Scrub { farm }) => return scrub::run(&farm),
            Some(Command::Audit { farm, actions, instance, function, sample, wait, json }) => {
                let wanted =
                    audit::Wanted { actions: &actions, instance: &instance, function: &function, sample };
                return audit::run(&farm, &wanted, audit::Printed { wait, as_json: json });
            }
            Some(Command::Forget { farm, instance, digest, function }) => {
                let action = forget::Action { instance: &instance, digest: &digest, function: &function };
                forget::run(&farm, &action)?;
            }
            Some(Command::Lifecycle { config, tier }) => lifecycle::run(&config, tier.as_deref())?,
            Some(Command::Token) => token::run()?,
            Some(Command::Launcher) => return Ok(launcher::run()),
        }
        Ok(ExitCode::SUCCESS)
    }
}
