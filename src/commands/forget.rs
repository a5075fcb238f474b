//! `croft forget`: withdraws the cached result of one action from a running farm.

use std::io::Write;

use reqwest::Method;

use super::RunningFarm;
use super::admin::{self, Admin};
use crate::digest::{Digest, Function};
use crate::error::{Error, Result};

/// Which result is to be forgotten, as it stands on the command line.
pub(super) struct Action<'a> {
    pub(super) instance: &'a str,
    pub(super) digest: &'a str,
    pub(super) function: &'a str,
}

pub(super) fn run(farm: &RunningFarm, action: &Action<'_>) -> Result<()> {
    let digest = parse(action)?;
    let name = name(action.instance, &digest);
    let segments = ["ac"].into_iter().chain(name.split('/'));
    admin::run(async { Admin::new(farm)?.ask(Method::DELETE, segments).await })?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "No result of action {digest} is cached any more; the next build runs it again.")?;
    Ok(())
}

/// The name of a result on the admin listener: `INSTANCE/FUNCTION/HASH-SIZE`, without the instance where it has no name.
pub(super) fn name(instance: &str, digest: &Digest) -> String {
    let function = digest.function().to_proto().as_str_name().to_ascii_lowercase();
    let digest = format!("{}-{}", digest.hex(), digest.size());
    let instance = instance.split('/').filter(|segment| !segment.is_empty());
    instance.chain([function.as_str(), digest.as_str()]).collect::<Vec<_>>().join("/")
}

/// Both forms that logs and tools print: `HASH/SIZE` and `FUNCTION/HASH/SIZE`.
pub(super) fn parse(action: &Action<'_>) -> Result<Digest> {
    let malformed = || Error::invalid(format!("`{}` is no digest; one looks like HASH/SIZE", action.digest));
    let (rest, size) = action.digest.rsplit_once('/').ok_or_else(malformed)?;
    let (function, hash) = rest.rsplit_once('/').unwrap_or((action.function, rest));
    let unknown = || {
        let names: Vec<&str> = Function::ALL.iter().map(|function| function.name()).collect();
        Error::invalid(format!("there is no digest function `{function}`; there are {}", names.join(", ")))
    };
    let function = Function::from_name(function).ok_or_else(unknown)?;
    Ok(Digest::parse(function, hash, size.parse().map_err(|_| malformed())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_logs_print_it() {
        for function in Function::ALL {
            let digest = function.hash(b"action");
            let printed = digest.to_string();
            let plain = format!("{}/{}", digest.hex(), digest.size());
            let name = function.to_proto().as_str_name();
            for text in [&printed, &plain] {
                assert_eq!(parse(&Action { instance: "", digest: text, function: name }).unwrap(), digest);
            }
        }
        for digest in ["", "abc", "abc/1", "md4/abc/1", "/"] {
            assert!(parse(&Action { instance: "", digest, function: "sha256" }).is_err(), "{digest}");
        }
    }
}
