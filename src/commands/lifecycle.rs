//! `croft lifecycle`: the rules by age for the buckets of a configuration, in each provider's own format.

use std::io::Write;
use std::path::Path;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::object::Provider;
use crate::systemd::Sockets;

/// Prints the rules of each object tier, or of the one that is named; the provider's command for them goes to standard error, so
/// that the rules of one tier can go to a file.
pub(super) fn run(file: &Path, tier: Option<&str>) -> Result<()> {
    let config = Config::load_checked(Some(file), &Sockets::default())?;
    let providers = config.storage.object_tiers();
    let named: Vec<Provider<'_>> =
        providers.into_iter().filter(|provider| tier.is_none_or(|tier| tier == provider.label())).collect();
    if named.is_empty() {
        return Err(Error::invalid("there is no such tier in object storage"));
    }
    let (mut out, mut notes) = (std::io::stdout().lock(), std::io::stderr().lock());
    for provider in named {
        let (label, service) = (provider.label(), provider.service());
        let Some(rules) = provider.rules() else {
            writeln!(notes, "# tier {label} ({service}): a directory has no rules")?;
            continue;
        };
        writeln!(notes, "# tier {label} ({service}): {}", rules.command)?;
        out.write_all(rules.json.as_bytes())?;
    }
    Ok(())
}
