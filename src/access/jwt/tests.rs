//! Tests with an issuer of our own: an HTTP server with a discovery document and keys that can be changed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::source::Source;
use super::*;
use crate::reload::{Look, Watched};
use crate::tasks;

/// An Ed25519 key for tests in the form of PKCS #8, which is a fixed head before the 32 secret bytes.
fn key(secret: u8) -> EncodingKey {
    const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    EncodingKey::from_ed_der(&[&HEAD[..], &[secret; 32]].concat())
}

fn jwk(secret: u8, identifier: &str) -> Jwk {
    let mut jwk = Jwk::from_encoding_key(&key(secret), Algorithm::EdDSA).unwrap();
    jwk.common.key_id = Some(identifier.to_owned());
    jwk
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(issuer: &str) -> Value {
    json!({"iss": issuer, "aud": "croft", "sub": "ann", "exp": now() + 600, "groups": ["ci", "dev"]})
}

fn token(claims: &Value, secret: u8, identifier: &str) -> String {
    let header = Header { kid: Some(identifier.to_owned()), ..Header::new(Algorithm::EdDSA) };
    encode(&header, claims, &key(secret)).unwrap()
}

/// An issuer that can be asked, and how often it was asked for its keys.
struct Issuing {
    address: String,
    keys: Arc<std::sync::Mutex<Option<JwkSet>>>,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Issuing {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Issuing {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(std::sync::Mutex::new(Some(JwkSet { keys: vec![jwk(1, "one")] })));
        let asked = Arc::new(AtomicUsize::new(0));
        let (issuer, served, count) = (address.clone(), Arc::clone(&keys), Arc::clone(&asked));
        let serving = tasks::spawn("issuer of a test", async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = connection.read(&mut request).await.unwrap();
                let is_discovery =
                    String::from_utf8_lossy(&request[..length]).contains("openid-configuration");
                let body = if is_discovery {
                    Some(json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}).to_string())
                } else {
                    count.fetch_add(1, Ordering::Relaxed);
                    served.lock().unwrap().as_ref().map(|keys| serde_json::to_string(keys).unwrap())
                };
                let status = if body.is_some() { "200 OK" } else { "500 Down" };
                let body = body.unwrap_or_default();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                // The client may have gone away.
                let _ = connection.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, keys, asked, serving }
    }

    fn set(&self, keys: Option<Vec<Jwk>>) {
        *self.keys.lock().unwrap() = keys.map(|keys| JwkSet { keys });
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn issuers(issuer: &str, keys: Option<String>) -> Issuers {
    let toml = format!("issuer = \"{issuer}\"\naudiences = [\"croft\", \"other\"]\n");
    let config: JwtConfig = toml::from_str(&toml).unwrap();
    Issuers::new(&[JwtConfig { keys, ..config }]).unwrap()
}

#[tokio::test]
async fn a_token_says_who_somebody_is_and_in_which_groups() {
    let issuing = Issuing::start().await;
    let issuers = issuers(&issuing.address, None);
    for _ in 0..3 {
        let identity = issuers.verify(&token(&claims(&issuing.address), 1, "one")).await.unwrap();
        assert_eq!(identity.to_string(), "jwt:ann");
        assert_eq!(identity.groups, ["ci", "dev"]);
        let left = identity.expires.unwrap().duration_since(SystemTime::now()).unwrap().as_secs();
        assert!((600..=600 + LEEWAY_SECONDS).contains(&left), "{left}");
    }
    assert_eq!(issuing.asked(), 1, "the keys are kept");
}

#[tokio::test]
async fn a_token_that_is_not_right_in_everything_is_refused() {
    let issuing = Issuing::start().await;
    let issuers = issuers(&issuing.address, None);
    let changed = |name: &str, value: Value| {
        let mut claims = claims(&issuing.address);
        claims[name] = value;
        token(&claims, 1, "one")
    };
    let right = token(&claims(&issuing.address), 1, "one");
    let parts: Vec<&str> = right.split('.').collect();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!("{}.{}.", part(json!({"alg": "none"})), parts[1]);
    // Whoever takes the public key for the secret of an HMAC lets everybody in who knows it.
    let public = serde_json::to_value(jwk(1, "one")).unwrap()["x"].as_str().unwrap().to_owned();
    let secret = EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(public).unwrap());
    let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::HS256) };
    let confused = encode(&header, &claims(&issuing.address), &secret).unwrap();
    let wrong = [
        changed("iss", json!("http://127.0.0.1:1")),
        changed("aud", json!("somebody")),
        changed("exp", json!(now() - 60)),
        changed("exp", Value::Null),
        changed("nbf", json!(now() + 120)),
        changed("sub", json!("")),
        changed("sub", json!(7)),
        token(&claims(&issuing.address), 2, "one"),
        token(&claims(&issuing.address), 2, "two"),
        format!("{}.{}.{}", parts[0], part(json!({"iss": issuing.address})), parts[2]),
        unsigned,
        confused,
        "a.b.c".into(),
        "..".into(),
        format!("{right}{}", "A".repeat(TOKEN_BYTES_MAX)),
    ];
    for token in wrong {
        let error = issuers.verify(&token).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthenticated, "{token}: {}", error.chain());
    }
    assert!(issuers.verify(&changed("exp", json!(now() - 5))).await.is_ok(), "clocks differ a little");
    assert!(issuers.verify(&right).await.is_ok());
}

#[tokio::test]
async fn unknown_keys_do_not_turn_us_against_the_issuer_and_its_absence_opens_and_shuts_nothing() {
    let issuing = Issuing::start().await;
    let issuers = issuers(&issuing.address, None);
    let address = issuing.address.as_str();
    issuers.verify(&token(&claims(address), 1, "one")).await.unwrap();
    let unknown: Vec<String> =
        (0..50).map(|number| token(&claims(address), 9, &format!("{number}"))).collect();
    let verified = unknown.iter().map(|token| issuers.verify(token));
    for result in futures_util::future::join_all(verified).await {
        assert_eq!(result.unwrap_err().kind(), Kind::Unauthenticated);
    }
    assert_eq!(issuing.asked(), 1, "the keys were read a moment ago");

    // The pause is over: the new key is found by one attempt, however many ask.
    issuing.set(Some(vec![jwk(1, "one"), jwk(2, "two")]));
    let keys = &issuers.issuers[address].keys;
    keys.end_pause();
    let rotated = token(&claims(address), 2, "two");
    let (first, second) = tokio::join!(issuers.verify(&rotated), issuers.verify(&rotated));
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(issuing.asked(), 2);

    // The issuer is down: what is known stays, and what is not known stays unknown.
    issuing.set(None);
    keys.end_pause();
    assert!(issuers.verify(&token(&claims(address), 3, "three")).await.is_err());
    assert_eq!(issuing.asked(), 3);
    let mut another = claims(address);
    another["sub"] = json!("ben");
    assert!(issuers.verify(&token(&another, 1, "one")).await.is_ok());
}

#[tokio::test]
async fn without_any_keys_it_is_nobodys_fault_but_nobody_gets_in() {
    let issuing = Issuing::start().await;
    issuing.set(None);
    let issuers = issuers(&issuing.address, None);
    let error = issuers.verify(&token(&claims(&issuing.address), 1, "one")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn keys_come_from_a_file_too_and_secrets_among_them_are_no_keys() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let secret =
        json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode("secret"), "kid": "secret", "alg": "HS256"});
    let encryption = json!({"use": "enc", "kid": "enc"});
    let mut encrypting = serde_json::to_value(jwk(4, "enc")).unwrap();
    encrypting["use"] = encryption["use"].clone();
    let set = json!({"keys": [secret, encrypting, jwk(1, "one")]});
    std::fs::write(file.path(), set.to_string()).unwrap();
    let issuers = issuers("ours", Some(file.path().display().to_string()));
    assert!(issuers.verify(&token(&claims("ours"), 1, "one")).await.is_ok());
    assert!(issuers.verify(&token(&claims("ours"), 4, "enc")).await.is_err());
    let mut nameless = Header::new(Algorithm::EdDSA);
    nameless.kid = None;
    let token = encode(&nameless, &claims("ours"), &key(1)).unwrap();
    assert!(issuers.verify(&token).await.is_ok(), "a token that names no key is tried with all");
}

#[tokio::test]
async fn a_file_of_keys_that_changes_counts_at_once_and_a_broken_one_does_not() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |keys: &[Jwk]| std::fs::write(file.path(), json!({ "keys": keys }).to_string()).unwrap();
    write(&[jwk(1, "one")]);
    let issuers = issuers("ours", Some(file.path().display().to_string()));
    let Source::File(watched) = &issuers.issuers["ours"].keys.source else { panic!("it is a file") };
    issuers.verify(&token(&claims("ours"), 1, "one")).await.unwrap();
    std::fs::write(file.path(), "no keys").unwrap();
    watched.look(Look::Asked);
    let mut other = claims("ours");
    other["sub"] = json!("ben");
    issuers.verify(&token(&other, 1, "one")).await.unwrap();
    write(&[jwk(2, "two")]);
    watched.look(Look::Asked);
    issuers.verify(&token(&claims("ours"), 2, "two")).await.unwrap();
    other["sub"] = json!("eve");
    let refused = issuers.verify(&token(&other, 1, "one")).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unauthenticated);
}
