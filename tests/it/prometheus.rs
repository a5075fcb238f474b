//! A real Prometheus beside a farm: it scrapes, evaluates our rules and answers what a dashboard asks.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use croft::digest::Digest;
use croft::proto::rev2::{Platform, platform};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{Client, Inputs, shell};

mod alerts;
mod counted;
mod dashboards;
mod evaluated;

const ALERTS: &str = include_str!("../../monitoring/alerts.yml");
const RECORDING: &str = include_str!("../../monitoring/recording.yml");

/// Far more than a scrape each second takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(200);

/// Instead of the minutes that rates and increases of the rules look back. No shorter: what happened before the second scrape that
/// sees it must still be within it on a busy machine.
const LOOK_BACK: &str = "[20s]";

/// A running Prometheus. Dropping it kills it.
struct Prometheus {
    child: Child,
    address: String,
    _data: TempDir,
}

impl Prometheus {
    /// One that looks at `targets` each second and has `alerts` for rules beside the recording ones; none, and a word about it, when
    /// the machine has no Prometheus.
    fn start(targets: &[&str], alerts: &str) -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        configure(data.path(), targets, alerts);
        let address = free_address();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", data.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self { child, address, _data: data }),
            Err(error) => {
                eprintln!("skipped: no prometheus ({error}); Debian: apt install prometheus");
                None
            }
        }
    }

    /// What its interface says, or null while it says nothing.
    async fn ask(&self, path: &str) -> Value {
        let answer = async {
            let mut connection = tokio::net::TcpStream::connect(&self.address).await.ok()?;
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            connection.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.ok()?;
            serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
        };
        answer.await.unwrap_or_default()
    }

    /// The values that an expression has at this moment.
    async fn values(&self, expression: &str) -> Vec<f64> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encoded(expression))).await;
        assert_ne!(answer["status"], "error", "{expression}: {answer}");
        let result = &answer["data"]["result"];
        let number = |value: &Value| value[1].as_str().and_then(|number| number.parse().ok());
        match answer["data"]["resultType"].as_str() {
            Some("scalar") => number(result).into_iter().collect(),
            Some(_) => {
                result.as_array().into_iter().flatten().filter_map(|one| number(&one["value"])).collect()
            }
            None => Vec::new(),
        }
    }

    /// Waits until `expression` has one value, which is about `wanted`.
    async fn until_value(&self, expression: &str, wanted: f64) {
        let start = Instant::now();
        loop {
            let values = self.values(expression).await;
            if matches!(values[..], [value] if (value - wanted).abs() < 1e-9) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{expression} is {values:?} instead of {wanted}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the state of an alert is as wanted: whether it fires.
    async fn until(&self, alert: &str, fires: bool) {
        let start = Instant::now();
        loop {
            let answer = self.ask("/api/v1/alerts").await;
            if let Some(alerts) = answer["data"]["alerts"].as_array() {
                let is_firing = |it: &Value| it["labels"]["alertname"] == alert && it["state"] == "firing";
                if alerts.iter().any(is_firing) == fires {
                    return;
                }
            }
            assert!(start.elapsed() < PATIENCE, "{alert} is not as it should be: {answer}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// All rules, once each of them has been evaluated.
    async fn rules(&self) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let answer = self.ask("/api/v1/rules").await;
            let groups = answer["data"]["groups"].as_array().into_iter().flatten();
            let rules: Vec<Value> =
                groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
            if !rules.is_empty() && rules.iter().all(|rule| rule["health"] != "unknown") {
                return rules;
            }
            assert!(start.elapsed() < PATIENCE, "the rules are not evaluated: {answer}");
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(directory: &Path, targets: &[&str], alerts: &str) {
    std::fs::write(directory.join("alerts.yml"), alerts).unwrap();
    std::fs::write(directory.join("recording.yml"), RECORDING).unwrap();
    let configuration = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [alerts.yml, recording.yml]\n\
         scrape_configs: [{{ job_name: croft, static_configs: [{{ targets: {targets:?} }}] }}]\n"
    );
    std::fs::write(directory.join("prometheus.yml"), configuration).unwrap();
}

/// Our alerts with other durations and nothing else.
fn impatient() -> String {
    let line = |line: &str| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
        Some(_) | None => ["[2m]", "[5m]", "[15m]"]
            .iter()
            .fold(format!("{line}\n"), |line, range| line.replace(range, LOOK_BACK)),
    };
    ALERTS.lines().map(line).collect()
}

/// A port that was free a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

/// As a part of a URL.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// An action for the workers of a pool.
async fn action(client: &Client, script: &str, pool: &str) -> Digest {
    let property = platform::Property { name: "Pool".into(), value: pool.into() };
    let change = |action: &mut croft::proto::rev2::Action| {
        action.platform = Some(Platform { properties: vec![property] });
    };
    client.action(&shell(script, &[]), &Inputs::default(), change).await
}

/// Has an action executed and does not wait for its end. Returns the operation's name.
async fn begin(client: &Client, action: &Digest) -> String {
    let mut operations = client.execution.clone().execute(client.request(action)).await.unwrap().into_inner();
    operations.message().await.unwrap().unwrap().name
}
