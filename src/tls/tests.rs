//! Handshakes over loopback, with files that change between them.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::authority::{Authority, Issued, Wanted};
use super::*;
use crate::reload::{Look, Watched, watch};
use crate::{metrics, tasks};

/// A listener's files and its acceptor.
struct Setup {
    directory: TempDir,
    authority: Authority,
    config: Server,
}

impl Setup {
    /// A listener that asks for certificates of clients if `required` says whether it insists.
    fn new(required: Option<bool>) -> Self {
        let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let (certificate, key) = authority.issue("first").write(directory.path(), "server");
        let authorities = write(directory.path(), "authorities", &authority.certificate);
        let revoked = Some(write(directory.path(), "revoked", &authority.revoke(&[])));
        let clients = required.map(|required| Clients { authorities, required, revoked });
        Self { directory, authority, config: Server { certificate, key, clients } }
    }

    fn acceptor(&self, name: &str) -> Acceptor {
        Acceptor::new(name, &self.config).unwrap()
    }

    fn install(&self, issued: &Issued) {
        issued.write_to(&self.config.certificate, &self.config.key);
    }

    /// A client that trusts the authority and shows `issued`.
    fn client(&self, issued: Option<&Issued>) -> Arc<Connector> {
        let authorities = write(self.directory.path(), "trusted", &self.authority.certificate);
        let mut config = Client { authorities: Some(authorities), ..Client::default() };
        if let Some(issued) = issued {
            let (certificate, key) = issued.write(self.directory.path(), "client");
            config.certificate = Some(certificate);
            config.key = Some(key);
        }
        Connector::new("test client", "tls", &config, Some(b"h2")).unwrap()
    }
}

fn write(directory: &Path, name: &str, content: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// What the two ends of a handshake know of each other: the names of the server, and the certificate of the client or why it was refused.
type Met = (io::Result<String>, Result<Option<Arc<ClientCertificate>>, Refusal>);

/// One handshake, and a byte from the server, without which a client does not know whether it was let in.
async fn meet(acceptor: &Acceptor, client: &Connector) -> Met {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut stream, certificate) = acceptor.accept(stream).await.map_err(|(refusal, _)| refusal)?;
        // A client that does not want us may be gone.
        let _ = stream.write_all(b"x").await;
        Ok(certificate)
    };
    let connect = async {
        let mut stream = client.connect("localhost", TcpStream::connect(address).await?).await?;
        stream.read_u8().await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        Ok(ClientCertificate::read(&shown).unwrap().common_name.unwrap())
    };
    let (accepted, connected) = tokio::join!(serve, connect);
    (connected, accepted)
}

async fn shown_by(acceptor: &Acceptor, client: &Connector) -> String {
    meet(acceptor, client).await.0.unwrap()
}

fn failures(name: &str) -> u64 {
    metrics::value("croft_reload_failures_total", &[("kind", "certificates"), ("of", name)]).unwrap_or(0)
}

#[tokio::test]
async fn a_listener_shows_a_new_certificate_as_soon_as_it_has_seen_it() {
    let setup = Setup::new(None);
    let (acceptor, client) = (setup.acceptor("swap"), setup.client(None));
    assert_eq!(shown_by(&acceptor, &client).await, "first");
    let end = SystemTime::now() + Duration::from_secs(7200);
    setup.install(&setup.authority.issue_as(&Wanted::new("second").ending(end)));
    acceptor.reloaded().look(Look::Periodic);
    assert_eq!(shown_by(&acceptor, &client).await, "second");
    let expiry = metrics::value(
        "croft_tls_certificate_expiry_timestamp_seconds",
        &[("listener", "swap"), ("of", "certificate")],
    );
    assert_eq!(expiry, Some(end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()));
    assert_eq!(failures("swap"), 0);
}

#[tokio::test]
async fn files_behind_a_symlink_that_is_swapped_are_seen() {
    let mut setup = Setup::new(None);
    let root = setup.directory.path().to_owned();
    for name in ["one", "two"] {
        std::fs::create_dir(root.join(name)).unwrap();
        setup.authority.issue(name).write(&root.join(name), "server");
    }
    symlink("one", root.join("data")).unwrap();
    setup.config.certificate = root.join("data/server.crt");
    setup.config.key = root.join("data/server.key");
    let (acceptor, client) = (setup.acceptor("symlink"), setup.client(None));
    assert_eq!(shown_by(&acceptor, &client).await, "one");
    symlink("two", root.join("next")).unwrap();
    std::fs::rename(root.join("next"), root.join("data")).unwrap();
    acceptor.reloaded().look(Look::Periodic);
    assert_eq!(shown_by(&acceptor, &client).await, "two");
}

#[tokio::test]
async fn what_cannot_be_right_is_refused_and_the_former_certificate_stays() {
    let setup = Setup::new(Some(false));
    let (acceptor, client) = (setup.acceptor("broken"), setup.client(None));
    let (certificate, key) = (&setup.config.certificate, &setup.config.key);
    let other = setup.authority.issue("other");
    let past = SystemTime::now() - Duration::from_secs(60);
    let expired = setup.authority.issue_as(&Wanted::new("expired").ending(past));
    let revoked = setup.config.clients.clone().unwrap().revoked.unwrap();
    let good = setup.authority.issue("good");
    let breakages: [&dyn Fn(); 6] = [
        &|| std::fs::write(key, &other.key).unwrap(),
        &|| std::fs::write(certificate, "no PEM").unwrap(),
        &|| std::fs::write(key, "").unwrap(),
        &|| std::fs::remove_file(key).unwrap(),
        &|| setup.install(&expired),
        &|| std::fs::write(&revoked, "no list").unwrap(),
    ];
    for (number, breakage) in (1..).zip(breakages) {
        breakage();
        acceptor.reloaded().look(Look::Periodic);
        assert_eq!(failures("broken"), number - 1, "someone may be writing still");
        for _ in 0..3 {
            acceptor.reloaded().look(Look::Periodic);
            assert_eq!(failures("broken"), number, "it is told once");
        }
        assert_ne!(shown_by(&acceptor, &client).await, "expired");
        setup.install(&good);
        std::fs::write(&revoked, setup.authority.revoke(&[])).unwrap();
        acceptor.reloaded().look(Look::Periodic);
        assert_eq!(shown_by(&acceptor, &client).await, "good");
    }
}

#[tokio::test]
async fn at_the_operators_word_a_broken_pair_is_told_at_once() {
    let setup = Setup::new(None);
    let acceptor = setup.acceptor("asked");
    std::fs::write(&setup.config.key, "").unwrap();
    for number in 1..3 {
        acceptor.reloaded().look(Look::Asked);
        assert_eq!(failures("asked"), number);
    }
}

#[tokio::test]
async fn what_a_client_shows_is_read_once_it_is_verified() {
    let setup = Setup::new(Some(true));
    let acceptor = setup.acceptor("clients");
    let wanted = Wanted { uris: vec!["spiffe://farm.example/ci".to_owned()], ..Wanted::new("ci") };
    let client = setup.client(Some(&setup.authority.issue_as(&wanted)));
    let certificate = meet(&acceptor, &client).await.1.unwrap().unwrap();
    assert_eq!(certificate.uris, wanted.uris);
    assert_eq!(certificate.dns_names, ["localhost"]);
    assert_eq!(certificate.common_name.as_deref(), Some("ci"));
    let end = wanted.validity.1;
    assert!(end.duration_since(certificate.not_after).unwrap() < Duration::from_secs(1));
    assert!(certificate.has_expired(end) && !certificate.has_expired(SystemTime::now()));
    assert_eq!(certificate.fingerprint.to_string().len(), 64);
}

#[tokio::test]
async fn clients_that_do_not_belong_are_refused_each_for_its_reason() {
    let setup = Setup::new(Some(true));
    let acceptor = setup.acceptor("strict");
    let past = SystemTime::now() - Duration::from_secs(60);
    let expired = setup.authority.issue_as(&Wanted::new("x").ending(past));
    let revoked = setup.authority.issue("revoked");
    let foreign = Authority::new().issue("foreign");
    // Our own client does not begin with an expired certificate, so it is made with rustls.
    assert_eq!(raw_refusal(&acceptor, &setup, &expired).await, Refusal::CertificateExpired);
    assert_eq!(meet(&acceptor, &setup.client(Some(&foreign))).await.1, Err(Refusal::CertificateWrong));
    let nobody = meet(&acceptor, &setup.client(None)).await;
    assert_eq!(nobody.1, Err(Refusal::NoCertificate));
    assert!(nobody.0.is_err());
    assert!(meet(&acceptor, &setup.client(Some(&revoked))).await.1.is_ok());
    let list = setup.config.clients.as_ref().unwrap().revoked.as_ref().unwrap();
    std::fs::write(list, setup.authority.revoke(&[&revoked])).unwrap();
    acceptor.reloaded().look(Look::Periodic);
    assert_eq!(meet(&acceptor, &setup.client(Some(&revoked))).await.1, Err(Refusal::CertificateRevoked));
}

/// The refusal of a client that shows whatever it has.
async fn raw_refusal(acceptor: &Acceptor, setup: &Setup, issued: &Issued) -> Refusal {
    let config = setup.authority.client(Some(issued));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connect = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        // It is refused: when it learns that is its own matter.
        if let Ok(mut stream) = connector.connect("localhost".try_into().unwrap(), stream).await {
            let _ = stream.read_u8().await;
        }
    };
    let serve = async { acceptor.accept(listener.accept().await.unwrap().0).await };
    tokio::join!(connect, serve).1.unwrap_err().0
}

#[tokio::test]
async fn a_client_without_a_certificate_is_let_in_where_it_may() {
    let setup = Setup::new(Some(false));
    let acceptor = setup.acceptor("lenient");
    assert_eq!(meet(&acceptor, &setup.client(None)).await.1, Ok(None));
    let foreign = Authority::new().issue("foreign");
    assert_eq!(meet(&acceptor, &setup.client(Some(&foreign))).await.1, Err(Refusal::CertificateWrong));
}

#[tokio::test]
async fn what_is_no_tls_is_told_apart() {
    let setup = Setup::new(None);
    let acceptor = setup.acceptor("noise");
    let cases = [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Refusal::PlainHttp),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refusal::PlainHttp),
        (b"\0\0\0", Refusal::Garbage),
        (b"\x16\x03\x01\x00\x05garbage", Refusal::Garbage),
        (b"", Refusal::Gone),
    ];
    for (bytes, refusal) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let accepted = acceptor.accept(listener.accept().await.unwrap().0).await;
        assert_eq!(accepted.unwrap_err().0, refusal, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_client_shows_its_new_certificate_on_new_connections() {
    let setup = Setup::new(Some(true));
    let acceptor = setup.acceptor("renewed");
    let client = setup.client(Some(&setup.authority.issue("old")));
    let generation = client.generation();
    setup.authority.issue("new").write(setup.directory.path(), "client");
    client.reloaded().look(Look::Periodic);
    assert_ne!(client.generation(), generation);
    let certificate = meet(&acceptor, &client).await.1.unwrap().unwrap();
    assert_eq!(certificate.common_name.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_server_that_is_not_the_one_that_was_meant_is_not_trusted() {
    let setup = Setup::new(None);
    let client = setup.client(None);
    let foreign = Authority::new().issue("foreign");
    setup.install(&foreign);
    let met = meet(&setup.acceptor("foreign"), &client).await;
    assert!(met.0.is_err());
    assert_eq!(met.1, Err(Refusal::RefusedByClient));
    let elsewhere = Wanted { names: vec!["elsewhere.example".to_owned()], ..Wanted::new("elsewhere") };
    setup.install(&setup.authority.issue_as(&elsewhere));
    let acceptor = setup.acceptor("elsewhere");
    assert!(meet(&acceptor, &client).await.0.is_err());
    let config = Client {
        authorities: Some(setup.directory.path().join("trusted")),
        server_name: Some("elsewhere.example".to_owned()),
        ..Client::default()
    };
    let named = Connector::new("test client", "tls", &config, None).unwrap();
    assert_eq!(shown_by(&acceptor, &named).await, "elsewhere");
}

#[tokio::test]
async fn changes_are_seen_without_anybody_asking() {
    let setup = Setup::new(None);
    let (acceptor, client) = (setup.acceptor("watched"), setup.client(None));
    let shutdown = tasks::Shutdown::new();
    let watching = tasks::spawn("test", watch(shutdown.clone()));
    setup.install(&setup.authority.issue("second"));
    let changed = async {
        while shown_by(&acceptor, &client).await != "second" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.expect("it is seen soon");
    shutdown.cancel();
    watching.await.unwrap().unwrap();
}

#[test]
fn a_problem_names_the_key_and_the_path_and_nothing_secret() {
    let setup = Setup::new(Some(true));
    assert_eq!(setup.config.check("public.tls"), Vec::<String>::new());
    assert_eq!(setup.config.file_problem("public.tls"), None);
    let other = setup.authority.issue("other");
    std::fs::write(&setup.config.key, &other.key).unwrap();
    let problem = setup.config.file_problem("public.tls").unwrap();
    let path = setup.config.key.display().to_string();
    assert!(problem.starts_with("public.tls.key: ") && problem.contains(&path), "{problem}");
    let missing = Server { certificate: "/nowhere/at/all".into(), ..setup.config.clone() };
    let problem = missing.file_problem("public.tls").unwrap();
    assert!(problem.contains("public.tls.certificate: /nowhere/at/all: "), "{problem}");
    let relative = Server { certificate: "tls.crt".into(), ..setup.config.clone() };
    assert!(relative.check("public.tls")[0].contains("public.tls.certificate must be"));
    let half =
        Client { certificate: Some("/x".into()), server_name: Some("a b".into()), ..Client::default() };
    assert_eq!(half.check("worker.tls").len(), 2);
}
