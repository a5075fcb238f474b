//! Other REv2 servers as one store: sharded, or each holding everything.

mod batch;
mod config;
mod failure;
mod link;
mod located;
mod peer;
mod repairs;
mod replicas;
mod reusable;
mod shards;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

pub use self::config::{Config, Mode};
use self::peer::Peer;
use self::replicas::{Replica, Replicas};
use self::shards::Shards;
use super::Store;
use crate::credential::Credential;
use crate::error::{Error, Result};
use crate::tls;

/// Opens the tier, inside of a runtime; connections are made when they are needed and again when they break.
///
/// # Errors
/// `Invalid` when the configuration or a file of its TLS cannot be right.
pub fn open(config: &Config) -> Result<Arc<dyn Store>> {
    let problems = config.check();
    if !problems.is_empty() {
        return Err(Error::invalid(problems.join("; ")));
    }
    let name = config.name.as_deref().unwrap_or("farm");
    let tls = config.effective_tls().map(|tls| tls::Connector::new(name, "tls", &tls, Some(b"h2")));
    let tls = tls.transpose()?;
    let credential = Credential::new(name, "a farm tier", config.token.as_deref())?;
    let peers = config.endpoints.iter().map(|endpoint| {
        let tls = tls.clone().filter(|_| config::is_with_tls(endpoint));
        Ok(Arc::new(Peer::new(endpoint, config, (tls, credential.clone()))?))
    });
    let peers: Vec<Arc<Peer>> = peers.collect::<Result<_>>()?;
    Ok(match config.mode {
        Mode::Shards => {
            let stores = peers.into_iter().map(|peer| peer as Arc<dyn Store>);
            Arc::new(Shards::new(config.endpoints.iter().cloned().zip(stores)))
        }
        Mode::Replicas => {
            let replicas: Vec<Replica> = peers.into_iter().map(replica).collect();
            let minimum = config.replicas_min.unwrap_or(replicas.len());
            Arc::new(Replicas::new(replicas, minimum))
        }
    })
}

fn replica(peer: Arc<Peer>) -> Replica {
    Replica { health: Arc::clone(peer.health()), store: peer }
}
