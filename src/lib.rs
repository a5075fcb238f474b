//! Croft, a reproducible build farm: a cache, a scheduler and hermetic workers that speak the Remote Execution API v2.
//!
//! Imports go in one direction only (`tests/tidy.rs` checks it):
//! commands → server, config → rpc, worker, web → access, audit, builds → listen, store, scheduler → status, digest, error, index, proto, metrics, tasks,
//! reload, credential, systemd, tally, tls, trace.

pub mod access;
pub mod audit;
pub mod builds;
pub mod commands;
pub mod config;
pub mod credential;
pub mod digest;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod index;
pub mod listen;
pub mod metrics;
pub mod proto;
pub mod reload;
pub mod rpc;
pub mod scheduler;
pub mod server;
pub mod status;
pub mod store;
pub mod systemd;
pub mod tally;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod web;
pub mod worker;
