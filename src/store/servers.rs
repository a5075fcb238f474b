//! Real servers for tests: Redis, and such as speak S3, Google Cloud Storage and Azure Blob Storage.
//!
//! `scripts/servers/install.sh` installs them. Each test starts its own, on a free port of loopback and in a directory of its own, and
//! takes it down when it ends; a test whose server is not installed says `skipped` and returns.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempDir;

use crate::digest::Function;

/// The bucket or container that each server has from the start.
pub(super) const BUCKET: &str = "cas";

/// The account of Azurite and its key: both are public constants of the emulator.
pub(super) const AZURE_ACCOUNT: &str = "devstoreaccount1";
pub(super) const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Python and Node take their time on a busy machine.
const START_MAX: Duration = Duration::from_secs(180);
const START_POLL: Duration = Duration::from_millis(20);

/// Another process may take a port between the moment it was found free and the server's start.
const PORTS_TRIED_MAX: u32 = 3;

/// A server that runs until it is dropped.
pub(super) struct Server {
    kind: Kind,
    program: PathBuf,
    port: u16,
    /// Its data and its log.
    directory: TempDir,
    process: Option<Child>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Redis,
    S3,
    Gcs,
    Azure,
}

impl Kind {
    /// Where the installer puts the program, and what it is called elsewhere.
    fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Redis => ("redis-server", "redis-server"),
            Self::S3 => ("moto/bin/moto_server", "moto_server"),
            Self::Gcs => ("fake-gcs-server/fake-gcs-server", "fake-gcs-server"),
            Self::Azure => ("azurite/node_modules/.bin/azurite-blob", "azurite-blob"),
        }
    }

    fn arguments(self, port: u16, directory: &Path) -> Vec<String> {
        let (port, directory) = (port.to_string(), directory.to_str().unwrap());
        let public = format!("127.0.0.1:{port}");
        let host = "127.0.0.1";
        let arguments: &[&str] = match self {
            Self::Redis => {
                &["--bind", host, "--port", &port, "--dir", directory, "--save", "", "--appendonly", "no"]
            }
            Self::S3 => &["-H", host, "-p", &port],
            Self::Gcs => {
                let [backend, scheme] = [["-backend", "memory"], ["-scheme", "http"]];
                &[&backend[..], &scheme, &["-host", host, "-port", &port, "-public-host", &public]].concat()
            }
            // Without `--disableTelemetry` it calls home.
            Self::Azure => {
                let place = ["--location", directory, "--blobHost", host, "--blobPort", &port];
                &[&place[..], &["--silent", "--skipApiVersionCheck", "--disableTelemetry"]].concat()
            }
        };
        arguments.iter().map(|argument| (*argument).to_owned()).collect()
    }
}

impl Server {
    /// Redis or Valkey, empty, without persistence.
    pub(super) fn redis() -> Option<Self> {
        Self::start_new(Kind::Redis)
    }

    /// A server that speaks S3, with [`BUCKET`]; any credentials will do.
    pub(super) fn s3() -> Option<Self> {
        Self::start_new(Kind::S3)
    }

    /// A server that speaks Google Cloud Storage's JSON, with [`BUCKET`]; no credentials. It knows no multipart uploads.
    pub(super) fn gcs() -> Option<Self> {
        Self::start_new(Kind::Gcs)
    }

    /// A server that speaks Azure Blob Storage, with the container [`BUCKET`] of [`AZURE_ACCOUNT`].
    pub(super) fn azure() -> Option<Self> {
        Self::start_new(Kind::Azure)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// As clients are told it: `redis://127.0.0.1:PORT`, `http://127.0.0.1:PORT`, or for Azure with the account behind it.
    pub(super) fn endpoint(&self) -> String {
        match self.kind {
            Kind::Redis => format!("redis://127.0.0.1:{}", self.port),
            Kind::S3 | Kind::Gcs => format!("http://127.0.0.1:{}", self.port),
            Kind::Azure => format!("http://127.0.0.1:{}/{AZURE_ACCOUNT}", self.port),
        }
    }

    /// Kills it, as a crash would. Its port stays its own for [`Server::start`].
    pub(super) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it again on the same port after [`Server::stop`], empty unless its data are on the disk.
    pub(super) fn start(&mut self) {
        assert!(self.process.is_none(), "it runs");
        assert!(self.try_start(), "{:?} does not start: {}", self.kind, self.log());
    }

    fn start_new(kind: Kind) -> Option<Self> {
        let Some(program) = find(kind) else {
            eprintln!("skipped: no {} (scripts/servers/install.sh installs it)", kind.program().1);
            return None;
        };
        for _ in 0..PORTS_TRIED_MAX {
            let directory = TempDir::new().unwrap();
            let mut server =
                Self { kind, program: program.clone(), port: free_port(), directory, process: None };
            if server.try_start() {
                return Some(server);
            }
        }
        panic!("{kind:?} does not start on any of {PORTS_TRIED_MAX} ports");
    }

    /// Whether it answers and has its bucket.
    fn try_start(&mut self) -> bool {
        let data = self.directory.path().join("data");
        fs::create_dir_all(&data).unwrap();
        let log = File::create(self.directory.path().join("log")).unwrap();
        let process = Command::new(&self.program)
            .args(self.kind.arguments(self.port, &data))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let deadline = Instant::now() + START_MAX;
        let mut answer = None;
        while Instant::now() < deadline && !self.has_ended() {
            answer = self.make_ready().or(answer);
            if answer.as_ref().is_some_and(|answer| is_ready(answer)) {
                return true;
            }
            std::thread::sleep(START_POLL);
        }
        let has_ended = self.has_ended();
        let log = self.log();
        eprintln!("{:?} did not start; ended: {has_ended}; answer: {answer:?}; log: {log}", self.kind);
        self.stop();
        false
    }

    fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some())
    }

    /// Makes the bucket, or for Redis a greeting; returns the answer.
    fn make_ready(&self) -> Option<String> {
        match self.kind {
            Kind::Redis => ask(self.port, "PING\r\n"),
            Kind::S3 => ask(self.port, &request("PUT", &format!("/{BUCKET}"), "", "")),
            Kind::Gcs => {
                let body = format!("{{\"name\":\"{BUCKET}\"}}");
                ask(self.port, &request("POST", "/storage/v1/b", "Content-Type: application/json\r\n", &body))
            }
            Kind::Azure => ask(self.port, &azure_container()),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn find(kind: Kind) -> Option<PathBuf> {
    let (installed, name) = kind.program();
    let cache = std::env::var_os("CROFT_TEST_CACHE").unwrap_or_else(|| "/var/cache/croft-test".into());
    let search = std::env::var_os("PATH").unwrap_or_default();
    let elsewhere = std::env::split_paths(&search).map(|folder| folder.join(name));
    std::iter::once(Path::new(&cache).join("servers").join(installed))
        .chain(elsewhere)
        .find(|program| program.is_file())
}

/// Whether the bucket is made, or was there before.
fn is_ready(answer: &str) -> bool {
    ["+PONG", "HTTP/1.1 200", "HTTP/1.1 201", "HTTP/1.1 409"].iter().any(|made| answer.starts_with(made))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// The first bytes of the answer to `text`; none when nobody answers.
fn ask(port: u16, text: &str) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// The signed request that makes the container; OpenDAL makes none. Azurite does not look at the date's age.
fn azure_container() -> String {
    let date = "Thu, 01 Jan 2026 00:00:00 GMT";
    let version = "2021-08-06";
    let signed = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    );
    let signature = BASE64_STANDARD.encode(hmac_sha256(&BASE64_STANDARD.decode(AZURE_KEY).unwrap(), &signed));
    let headers = format!(
        "x-ms-date: {date}\r\nx-ms-version: {version}\r\nAuthorization: SharedKey {AZURE_ACCOUNT}:{signature}\r\n"
    );
    request("PUT", &format!("/{AZURE_ACCOUNT}/{BUCKET}?restype=container"), &headers, "")
}

/// RFC 2104, for keys of up to 64 bytes.
fn hmac_sha256(key: &[u8], message: &str) -> Vec<u8> {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
        block
    };
    let inner = Function::Sha256.hash(&[&pad(0x36), message.as_bytes()].concat());
    Function::Sha256.hash(&[&pad(0x5c), inner.hash()].concat()).hash().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_installed_server_starts_stops_and_starts_again() {
        for start in [Server::redis, Server::s3, Server::gcs, Server::azure] {
            let Some(mut server) = start() else { continue };
            assert!(server.endpoint().contains(&server.port().to_string()));
            server.stop();
            assert!(ask(server.port(), "PING\r\n").is_none());
            server.start();
        }
    }
}
