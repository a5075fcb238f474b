//! Do the pieces fit: the real binary, spoken to as clients do.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on panics, says what it skips, takes any other message for a failure, and has tasks whose \
              panics are its own"
)]

mod access;
mod assets;
mod audit;
#[path = "../../src/tls/authority.rs"]
mod authority;
mod bad_input;
mod browser;
mod build_events;
mod bytestream;
mod cas;
mod client;
mod closure;
mod compressed;
mod determinism;
mod escape;
mod execution;
mod farm;
mod faults;
mod foreign;
mod hostile;
mod http;
mod images;
mod inputs;
mod invocations;
mod killed;
mod lifecycle;
mod live;
mod metrics;
mod operations;
mod operator;
mod origin;
mod pages;
mod persistent;
mod prometheus;
mod restart;
mod roles;
mod sandbox;
#[path = "../../src/store/servers.rs"]
mod servers;
mod spans;
mod split;
mod systemd;
mod tiers;
mod tls;
mod toolchain;
mod traces;
mod warming;
mod worker;

// What `servers` finds at the root of the library, too.
use croft::digest;
