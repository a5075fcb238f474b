//! TLS of the real binary: whom it lets in, and that nobody notices when certificates change.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::authority::{Authority, Issued, Wanted};
use crate::client::{Client, Inputs, code, message, shell};
use crate::farm::{Farm, executable};

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often certificates change under load.
const CHANGES: usize = 10;

/// An authority, and the files that it issued.
pub(crate) struct Setup {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let setup = Self { directory: tempfile::tempdir().unwrap(), authority: Authority::new() };
        setup.write("authorities.crt", &setup.authority.certificate);
        setup.write("revoked.crl", &setup.authority.revoke(&[]));
        setup.authority.issue("server").write(setup.directory.path(), "server");
        setup.authority.issue("client").write(setup.directory.path(), "client");
        setup
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The TLS of a listener, as the value of an environment variable.
    pub(crate) fn server(&self, clients: Option<bool>) -> String {
        let (certificate, key) = (self.path("server.crt"), self.path("server.key"));
        let clients = clients.map_or_else(String::new, |required| {
            let (authorities, revoked) = (self.path("authorities.crt"), self.path("revoked.crl"));
            format!(",clients={{authorities={authorities:?},revoked={revoked:?},required={required}}}")
        });
        format!("{{certificate={certificate:?},key={key:?}{clients}}}")
    }

    /// The TLS of a client that shows a certificate.
    pub(crate) fn client(&self) -> String {
        let [authorities, certificate, key] =
            ["authorities.crt", "client.crt", "client.key"].map(|name| self.path(name));
        format!("{{authorities={authorities:?},certificate={certificate:?},key={key:?}}}")
    }

    /// A new connection to `address`.
    pub(crate) async fn connect(
        &self,
        address: &str,
        shown: Option<&Issued>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(self.authority.client(shown)));
        connector.connect("localhost".try_into().unwrap(), stream).await
    }

    /// What the server at `address` shows on a new connection.
    pub(crate) async fn shown(&self, address: &str) -> CertificateDer<'static> {
        let stream = self.connect(address, None).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    }

    /// A channel with one connection to the farm.
    pub(crate) async fn channel(
        &self,
        address: &str,
        shown: Option<&Issued>,
    ) -> Result<Channel, tonic::transport::Error> {
        let config = Arc::new(self.authority.client(shown));
        let (host, config) = (address.to_owned(), config);
        let connector = tower::service_fn(move |_| {
            let (host, config) = (host.clone(), Arc::clone(&config));
            async move {
                let stream = TcpStream::connect(host).await?;
                let connected =
                    TlsConnector::from(config).connect("localhost".try_into().unwrap(), stream).await;
                connected.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        endpoint.max_frame_size(1 << 20).connect_with_connector(connector).await
    }

    pub(crate) async fn client_of(&self, address: &str, shown: Option<&Issued>) -> Client {
        Client::over(self.channel(address, shown).await.unwrap())
    }
}

/// The value of a metric on the admin page.
async fn metric(farm: &Farm, name: &str) -> u64 {
    let page = farm.page("/metrics").await.1;
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

/// Clients that go on until they are stopped, and how many requests they made. The first that fails ends the test.
struct Load {
    stop: CancellationToken,
    requests: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn start(setup: &Arc<Setup>, farm: &Farm) -> Self {
        let client = setup.client_of(&farm.public, None).await;
        let content = Bytes::from(vec![7; 8 << 20]);
        let large = client.write_blob(&content).await.unwrap();
        let small = client.put("small").await;
        let mut load = Self { stop: CancellationToken::new(), requests: Arc::default(), tasks: Vec::new() };
        let streaming = client.clone();
        load.repeat(move || {
            let (client, content) = (streaming.clone(), content.clone());
            async move { assert!(client.read_blob(&large).await.unwrap() == content) }
        });
        load.repeat(move || {
            let client = client.clone();
            async move { assert_eq!(client.missing(&[small]).await, []) }
        });
        let (setup, address) = (Arc::clone(setup), farm.public.clone());
        load.repeat(move || {
            let (setup, address) = (Arc::clone(&setup), address.clone());
            async move {
                let client = setup.client_of(&address, None).await;
                assert_eq!(client.missing(&[small]).await, []);
            }
        });
        load
    }

    fn repeat<F: Future<Output = ()> + Send + 'static>(&mut self, request: impl Fn() -> F + Send + 'static) {
        let (stop, requests) = (self.stop.clone(), Arc::clone(&self.requests));
        self.tasks.push(tokio::spawn(async move {
            while !stop.is_cancelled() {
                request().await;
                requests.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    async fn stop(self) -> u64 {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("no request failed");
        }
        self.requests.load(Ordering::Relaxed)
    }
}

/// Puts a pair in the place of the present one, by turns as three kinds of tools do it.
fn install(setup: &Setup, issued: &Issued, turn: usize) {
    let directory = setup.directory.path();
    let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
    match turn % 3 {
        0 => issued.write_to(&certificate, &key),
        1 => {
            let (new_certificate, new_key) = issued.write(directory, "new");
            std::fs::rename(new_certificate, &certificate).unwrap();
            std::fs::rename(new_key, &key).unwrap();
        }
        _ => {
            let version = directory.join(format!("version-{turn}"));
            std::fs::create_dir(&version).unwrap();
            issued.write(&version, "server");
            swap_link(&version.join("server.crt"), &certificate);
            swap_link(&version.join("server.key"), &key);
        }
    }
}

fn swap_link(to: &Path, link: &Path) {
    let new = link.with_extension("link");
    symlink(to, &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_load_and_no_request_fails() {
    let setup = Arc::new(Setup::new());
    let farm = Farm::start_with(&[("CROFT_PUBLIC__TLS", &setup.server(Some(false)))]);
    let load = Load::start(&setup, &farm).await;
    let mut slowest = Duration::ZERO;
    for turn in 0..CHANGES {
        let before = load.requests.load(Ordering::Relaxed);
        let next = setup.authority.issue(&format!("server {turn}"));
        install(&setup, &next, turn);
        let start = Instant::now();
        while setup.shown(&farm.public).await != next.der() {
            assert!(start.elapsed() < PATIENCE, "the new certificate is not shown");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        slowest = slowest.max(start.elapsed());
        while load.requests.load(Ordering::Relaxed) < before + 3 {
            assert!(load.tasks.iter().all(|task| !task.is_finished()), "a request failed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let requests = load.stop().await;
    eprintln!(
        "{CHANGES} changes under {requests} requests; a new certificate was shown after at most {slowest:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_does_not_fit_is_refused_and_the_old_one_stays() {
    let setup = Setup::new();
    let farm = Farm::start_with(&[("CROFT_PUBLIC__TLS", &setup.server(None))]);
    let before = setup.shown(&farm.public).await;
    let (one, other) = (setup.authority.issue("one"), setup.authority.issue("other"));
    setup.write("server.crt", &one.certificate);
    setup.write("server.key", &other.key);
    let start = Instant::now();
    while metric(&farm, "croft_reload_failures_total{kind=\"certificates\",of=\"public\"}").await == 0 {
        assert!(start.elapsed() < PATIENCE, "it is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(setup.shown(&farm.public).await == before, "the old certificate stays");
    setup.write("server.key", &one.key);
    let pid = rustix::process::Pid::from_raw(farm.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let start = Instant::now();
    while setup.shown(&farm.public).await != one.der() {
        assert!(start.elapsed() < PATIENCE, "the repaired pair is not shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let expiry = "croft_tls_certificate_expiry_timestamp_seconds{listener=\"public\",of=\"certificate\"}";
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(metric(&farm, expiry).await > now);
}

/// Whether a client with this certificate gets an answer.
async fn is_let_in(setup: &Setup, farm: &Farm, shown: Option<&Issued>) -> bool {
    let Ok(channel) = setup.channel(&farm.public, shown).await else { return false };
    let mut client = Client::over(channel);
    let request = croft::proto::rev2::FindMissingBlobsRequest::default();
    client.cas.find_missing_blobs(request).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_whose_certificates_do_not_hold_are_refused() {
    let setup = Setup::new();
    let farm = Farm::start_with(&[("CROFT_PUBLIC__TLS", &setup.server(Some(true)))]);
    let good = setup.authority.issue("good");
    let stolen = setup.authority.issue("stolen");
    let past = SystemTime::now() - Duration::from_secs(1);
    let expired = setup.authority.issue_as(&Wanted::new("expired").ending(past));
    let foreign = Authority::new().issue("foreign");
    assert!(is_let_in(&setup, &farm, Some(&good)).await);
    assert!(is_let_in(&setup, &farm, Some(&stolen)).await);
    for shown in [None, Some(&expired), Some(&foreign)] {
        assert!(!is_let_in(&setup, &farm, shown).await);
    }
    setup.write("revoked.crl", &setup.authority.revoke(&[&stolen]));
    let start = Instant::now();
    while is_let_in(&setup, &farm, Some(&stolen)).await {
        assert!(start.elapsed() < PATIENCE, "it is let in still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_let_in(&setup, &farm, Some(&good)).await);
    for reason in ["no_certificate", "certificate_expired", "certificate_revoked", "certificate_wrong"] {
        let name = format!("croft_tls_handshake_failures_total{{listener=\"public\",reason=\"{reason}\"}}");
        assert!(metric(&farm, &name).await >= 1, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_costs_its_own_connection_and_nobody_elses() {
    let setup = Setup::new();
    let farm = Farm::start_with(&[("CROFT_PUBLIC__TLS", &setup.server(None))]);
    let client = setup.client_of(&farm.public, None).await;
    let mut silent = Vec::new();
    for number in 0..300_u32 {
        let mut stream = TcpStream::connect(&farm.public).await.unwrap();
        match number % 4 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap(),
            1 => stream.write_all(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]).await.unwrap(),
            2 => stream.write_all(&number.to_be_bytes()).await.unwrap(),
            // Someone who only sits there.
            _ => silent.push(stream),
        }
    }
    let blob = client.put("a blob").await;
    let newcomer = setup.client_of(&farm.public, None).await;
    assert_eq!(newcomer.read_blob(&blob).await.unwrap(), b"a blob");
    let plain = "croft_tls_handshake_failures_total{listener=\"public\",reason=\"plain_http\"}";
    let start = Instant::now();
    while metric(&farm, plain).await < 75 {
        assert!(start.elapsed() < PATIENCE, "they are not counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_of_three_processes_works_over_mutual_tls() {
    let setup = Setup::new();
    let (server, client) = (setup.server(Some(true)), setup.client());
    let data: [TempDir; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let cas = Farm::start_in(data[0].path(), &[("CROFT_ROLES", "[\"cas\"]"), ("CROFT_PUBLIC__TLS", &server)]);
    assert!(cas.greeting.contains("--remote_cache=grpcs://"), "{}", cas.greeting);
    let tier = format!("[{{kind=\"farm\",endpoints=[\"grpcs://{}\"],tls={client}}}]", cas.public);
    let workers = format!("{{listen=\"127.0.0.1:0\",tls={server}}}");
    let scheduler = Farm::start_in(
        data[1].path(),
        &[
            ("CROFT_ROLES", "[\"scheduler\"]"),
            ("CROFT_PUBLIC__TLS", &server),
            ("CROFT_WORKERS", &workers),
            ("CROFT_STORAGE__TIER", &tier),
        ],
    );
    let worker = Farm::start_in(
        data[2].path(),
        &[
            ("CROFT_ROLES", "[\"worker\"]"),
            ("CROFT_WORKER__SCHEDULER", &format!("grpcs://{}", scheduler.workers)),
            ("CROFT_WORKER__TLS", &client),
            ("CROFT_STORAGE__TIER", &tier),
        ],
    );
    let start = Instant::now();
    while worker.page("/readyz").await.0 != 200 {
        assert!(start.elapsed() < PATIENCE, "the worker does not connect");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let shown = setup.authority.issue("developer");
    let execution = setup.client_of(&scheduler.public, Some(&shown)).await;
    let client = Client {
        execution: execution.execution,
        operations: execution.operations,
        ..setup.client_of(&cas.public, Some(&shown)).await
    };
    let inputs = Inputs::default().file("in", "hello");
    let action = client.action(&shell("cat in in > out", &["out"]), &inputs, |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), 0, "{}", message(&response));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_speak_to_the_farm_over_tls() {
    let setup = Setup::new();
    let farm = Farm::start_with(&[("CROFT_ADMIN__TLS", &setup.server(Some(true)))]);
    let address = format!("https://{}", farm.admin);
    let status = |more: &[&str]| {
        let mut command = Command::new(executable());
        command.args(["status", "--json", "--admin", &address]).args(more).output().unwrap()
    };
    let [ca, certificate, key] = ["authorities.crt", "client.crt", "client.key"].map(|name| setup.path(name));
    let output = status(&["--ca", &ca, "--certificate", &certificate, "--key", &key]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"storage\""));
    assert!(!status(&["--ca", &ca]).status.success(), "it must show a certificate");
    assert!(!status(&[]).status.success(), "the system does not know the authority");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_page_over_tls_speaks_http_1() {
    let setup = Setup::new();
    let farm = Farm::start_with(&[("CROFT_ADMIN__TLS", &setup.server(None))]);
    let mut config = setup.authority.client(None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(&farm.admin).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn a_wrong_file_is_told_by_check_and_at_the_start() {
    let setup = Setup::new();
    let other = setup.authority.issue("other");
    let key = setup.write("server.key", &other.key);
    let config = setup.write("croft.toml", &format!("[public]\ntls = {}\n", setup.server(None)));
    let output = Command::new(executable()).arg("check").arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("public.tls.key: {}: it is not the key of the certificate", key.display());
    assert!(!output.status.success() && said.contains(&expected), "{said}");
    let data = tempfile::tempdir().unwrap();
    let Err((status, errors)) = Farm::try_start(data.path(), &[("CROFT_PUBLIC__TLS", &setup.server(None))])
    else {
        panic!("it starts")
    };
    assert!(!status.success() && errors.contains(&expected), "{errors}");
}

/// Redis that speaks TLS only, and only with clients of the authority.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    /// None where there is no Redis with TLS.
    fn start(setup: &Setup) -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", "0", "--tls-port", &port.to_string()])
            .args(["--tls-cert-file", &setup.path("server.crt"), "--tls-key-file", &setup.path("server.key")])
            .args(["--tls-ca-cert-file", &setup.path("authorities.crt"), "--tls-auth-clients", "yes"])
            .args(["--save", "", "--appendonly", "no", "--dir", setup.directory.path().to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let mut redis = Self { child: child.ok()?, port };
        let start = Instant::now();
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if redis.child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(start.elapsed() < PATIENCE, "redis does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_spoken_to_over_mutual_tls() {
    let setup = Setup::new();
    let Some(redis) = Redis::start(&setup) else {
        eprintln!("skipped: no redis-server with TLS");
        return;
    };
    let (port, tls) = (redis.port, setup.client());
    let tiers = format!(
        "[{{kind=\"redis\",url=\"rediss://127.0.0.1:{port}\",tls={tls}}},{{kind=\"disk\",size=\"1 GiB\"}}]"
    );
    let blob = {
        let farm = Farm::start_with(&[("CROFT_STORAGE__TIER", &tiers)]);
        let blob = Client::new(&farm).await.put("kept in redis").await;
        until_counted(&farm, &calls("put", "ok")).await;
        blob
    };
    // Its disk is empty, so it has the blob from Redis or from nowhere.
    let farm = Farm::start_with(&[("CROFT_STORAGE__TIER", &tiers)]);
    assert_eq!(Client::new(&farm).await.read_blob(&blob).await.unwrap(), b"kept in redis");
    until_counted(&farm, &calls("get", "hit")).await;
}

/// The metric of calls to Redis.
fn calls(operation: &str, outcome: &str) -> String {
    format!("croft_store_calls_total{{operation=\"{operation}\",outcome=\"{outcome}\",store=\"redis\"}}")
}

async fn until_counted(farm: &Farm, name: &str) {
    let start = Instant::now();
    while metric(farm, name).await == 0 {
        assert!(start.elapsed() < PATIENCE, "{name} stays 0");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
