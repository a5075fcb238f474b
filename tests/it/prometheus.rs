//! A real Prometheus scrapes a farm and evaluates our rules: alerts fire when they should, and clear.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use croft::proto::longrunning::CancelOperationRequest;
use croft::proto::rev2::{Platform, platform};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{Client, Inputs, shell};
use crate::farm::Farm;

/// Far more than a scrape each second takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running Prometheus. Dropping it kills it.
struct Prometheus {
    child: Child,
    address: String,
    _data: TempDir,
}

impl Prometheus {
    /// One that looks at the farm each second; none when the machine has no Prometheus.
    fn start(farm: &Farm) -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        configure(data.path(), &farm.admin);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", data.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { child, address, _data: data })
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
            tokio::time::sleep(Duration::from_millis(200)).await;
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

/// Writes the configuration, and our rules without their patience.
fn configure(directory: &Path, target: &str) {
    let alerts = include_str!("../../monitoring/alerts.yml");
    let is_patience = |line: &&str| line.trim_start().starts_with("for: ");
    let impatient: Vec<&str> = alerts.lines().filter(|line| !is_patience(line)).collect();
    std::fs::write(directory.join("alerts.yml"), impatient.join("\n")).unwrap();
    std::fs::write(directory.join("recording.yml"), include_str!("../../monitoring/recording.yml")).unwrap();
    let configuration = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [alerts.yml, recording.yml]\n\
         scrape_configs: [{{ job_name: croft, static_configs: [{{ targets: ['{target}'] }}] }}]\n"
    );
    std::fs::write(directory.join("prometheus.yml"), configuration).unwrap();
}

/// Has an action queued that no worker can run. Returns the operation's name.
async fn queue(client: &Client, number: usize) -> String {
    let property = platform::Property { name: "Pool".into(), value: "nowhere".into() };
    let command = shell(&format!("echo {number}"), &[]);
    let change = |action: &mut croft::proto::rev2::Action| {
        action.platform = Some(Platform { properties: vec![property] });
    };
    let action = client.action(&command, &Inputs::default(), change).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    operations.message().await.unwrap().unwrap().name
}

#[tokio::test]
async fn alerts_fire_on_a_farm_in_trouble_and_clear() {
    let farm = Farm::start_with(&[("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "10m")]);
    let Some(prometheus) = Prometheus::start(&farm) else {
        eprintln!("skipped: this machine has no prometheus (Debian: apt install prometheus)");
        return;
    };
    let client = Client::new(&farm).await;
    // The farm has one worker, and nothing waits or was read.
    prometheus.until("CroftFewWorkers", true).await;
    prometheus.until("CroftQueueLong", false).await;
    prometheus.until("CroftLowHitRate", false).await;

    let mut waiting = Vec::new();
    for number in 0..150 {
        waiting.push(queue(&client, number).await);
    }
    prometheus.until("CroftQueueLong", true).await;
    for number in 0..1000_u32 {
        client.read_blob(&client.function.hash(&number.to_le_bytes())).await.unwrap_err();
    }
    prometheus.until("CroftLowHitRate", true).await;

    for name in waiting {
        client.operations.clone().cancel_operation(CancelOperationRequest { name }).await.unwrap();
    }
    prometheus.until("CroftQueueLong", false).await;
    let rules = prometheus.ask("/api/v1/rules").await.to_string();
    assert!(rules.contains("\"health\":\"ok\"") && !rules.contains("\"health\":\"err\""), "{rules}");
}
