//! The guard as a whole: what comes in, who it is taken for, and what is answered when it is wrong.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::listen::Socket;
use crate::tls::{ClientCertificate, Fingerprint};

const HERE: &str = "127.0.0.1:7";
const MAPPED: &str = "[::ffff:127.0.0.1]:7";
const ELSEWHERE: &str = "10.0.0.7:7";

fn peer(address: &str) -> Peer {
    Peer::Socket(Socket { address: address.parse::<SocketAddr>().unwrap(), certificate: None })
}

fn certified(uri: &str, not_after: SystemTime) -> Peer {
    let certificate = ClientCertificate {
        uris: vec![uri.to_owned()],
        dns_names: vec!["w.farm.example".to_owned()],
        common_name: Some("w".to_owned()),
        not_after,
        fingerprint: Fingerprint::default(),
    };
    Peer::Socket(Socket { address: ELSEWHERE.parse().unwrap(), certificate: Some(Arc::new(certificate)) })
}

/// What the handler behind the guard would see: the caller and the rights in `main`; or the status and the challenge.
async fn ask(access: &Arc<Access>, peer: Option<Peer>, credentials: &[&str]) -> (StatusCode, String) {
    let inner = service_fn(|request: Request<()>| async move {
        assert!(!request.headers().contains_key(AUTHORIZATION), "the credential stays with the guard");
        let caller = Caller::of(request.extensions());
        let text = format!("{} {}", caller.identity(), caller.within("main"));
        Ok::<_, Infallible>(Response::new(text))
    });
    let mut request = Request::builder().uri("/cas/00");
    for credential in credentials {
        request = request.header(AUTHORIZATION, *credential);
    }
    let mut request = request.body(()).unwrap();
    request.extensions_mut().extend(
        peer.map(|peer| {
            let mut extensions = http::Extensions::new();
            extensions.insert(peer);
            extensions
        })
        .unwrap_or_default(),
    );
    let answer = access.guard().layer(inner).oneshot(request).await.unwrap();
    let is_challenged = answer.headers().contains_key(WWW_AUTHENTICATE);
    assert_eq!(is_challenged, answer.status() == StatusCode::UNAUTHORIZED);
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn without_a_configuration_this_machine_may_everything_and_others_nothing() {
    let access = Access::new(None).unwrap();
    let everything = Rights::all();
    for (from, expected) in [
        (Some(peer(HERE)), format!("anonymous {everything}")),
        (Some(peer(MAPPED)), format!("anonymous {everything}")),
        (Some(Peer::Process), format!("process {everything}")),
    ] {
        assert_eq!(ask(&access, from, &[]).await, (StatusCode::OK, expected));
    }
    for from in [Some(peer(ELSEWHERE)), None] {
        assert_eq!(ask(&access, from, &[]).await.0, StatusCode::UNAUTHORIZED);
    }
    let (status, _) = ask(&access, Some(peer(HERE)), &["Bearer whatever"]).await;
    assert_eq!(status, StatusCode::OK, "nothing is asked for, so nothing is wrong");
}

/// Where a request comes from, its credentials, and the caller or what the refusal says.
type Case<'a> = (Option<Peer>, Vec<&'a str>, Result<&'static str, &'static str>);

#[tokio::test]
async fn each_proof_gives_an_identity_and_a_wrong_one_is_no_anonymous() {
    let ci = FreshToken::generate().unwrap();
    let toml = format!(
        "rules = [\n {{ who = [\"token:ci\"], may = [\"read\", \"write\"] }},\n {{ who = [\"spiffe://farm/w/*\"], may = [\"work\"] }},\n \
         {{ who = [\"certificate:w.farm.example\"], may = [\"execute\"] }},\n {{ who = [\"anonymous\"], may = [\"read\"] }},\n]\n\
         [[tokens]]\nname = \"ci\"\nsha256 = \"{}\"\n",
        ci.sha256
    );
    let access = Access::new(Some(&toml::from_str(&toml).unwrap())).unwrap();
    let later = SystemTime::now() + Duration::from_secs(60);
    let before = SystemTime::now() - Duration::from_secs(60);
    let bearer = format!("Bearer {}", ci.token);
    let lower = format!("bearer  {}", ci.token);
    let worker = || Some(certified("spiffe://farm/w/1", later));
    let table: [Case<'_>; 13] = [
        (Some(peer(HERE)), vec![], Ok("anonymous read")),
        (Some(peer(ELSEWHERE)), vec![], Ok("anonymous read")),
        (Some(peer(ELSEWHERE)), vec![&bearer], Ok("token:ci read or write")),
        (Some(peer(ELSEWHERE)), vec![&lower], Ok("token:ci read or write")),
        (worker(), vec![], Ok("certificate:spiffe://farm/w/1 execute or work")),
        (worker(), vec![&bearer], Ok("token:ci read or write")),
        (Some(certified("spiffe://farm/w/1", before)), vec![], Err("expired")),
        (Some(peer(HERE)), vec!["Bearer wrong"], Err("not known")),
        (Some(peer(HERE)), vec![&bearer, &bearer], Err("several")),
        (Some(peer(HERE)), vec!["Bearer"], Err("not known")),
        (Some(peer(HERE)), vec!["Basic YTpi"], Err("of this kind")),
        (Some(peer(HERE)), vec!["Digest x"], Err("of this kind")),
        (Some(peer(HERE)), vec!["Bearer a.b.c"], Err("malformed")),
    ];
    for (from, credentials, expected) in table {
        let shown = format!("{from:?} {credentials:?}");
        let (status, text) = ask(&access, from, &credentials).await;
        match expected {
            Ok(caller) => assert_eq!((status, text.as_str()), (StatusCode::OK, caller), "{shown}"),
            Err(part) => {
                assert!(
                    status == StatusCode::UNAUTHORIZED && text.contains(part),
                    "{shown}: {status} {text}"
                );
                assert!(!text.contains(&ci.token));
            }
        }
    }
}

#[tokio::test]
async fn whoever_has_too_many_requests_open_is_refused_and_others_are_not() {
    let toml = "requests_per_identity = 2\nrules = [{ who = [\"anonymous\"], may = [\"read\"] }]";
    let access = Access::new(Some(&toml::from_str(toml).unwrap())).unwrap();
    let inner =
        service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new("an answer".to_owned())) });
    let ask = async |address: &str, path: &str| {
        let mut request = Request::builder().uri(path).body(()).unwrap();
        request.extensions_mut().insert(peer(address));
        access.guard().layer(inner).oneshot(request).await.unwrap()
    };
    let first = ask(ELSEWHERE, "/cas/00").await;
    let _second = ask(ELSEWHERE, "/cas/00").await;
    let refused = ask(ELSEWHERE, "/cas/00").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let sentence = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(sentence.ends_with(b"has 2 requests open and may have no more at a time\n"), "{sentence:?}");
    assert_eq!(ask(HERE, "/cas/00").await.status(), StatusCode::OK);
    assert_eq!(ask(ELSEWHERE, "/livez").await.status(), StatusCode::OK, "health is open");
    drop(first);
    assert_eq!(ask(ELSEWHERE, "/cas/00").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_has_not_gone_through_the_guard_may_nothing() {
    let caller = Caller::of(&http::Extensions::new());
    assert_eq!(caller.demand("", Rights::all()).unwrap_err().kind(), Kind::Unauthenticated);
    assert!(caller.demand_everywhere(Right::Read).is_err() && caller.demand_anything().is_err());
}

#[test]
fn a_refusal_names_who_what_and_where_and_no_rule() {
    let rules = Rules::new(&[RuleConfig {
        who: vec!["user:secret-pattern-*".into()],
        may: vec![Right::Admin],
        instances: vec!["**".into()],
    }])
    .unwrap();
    let identity = Identity::new(Proof::Token, "ann", vec![]);
    let grants = rules.grants(&identity, false);
    let caller = Caller::with(Access::of_this_machine(), identity, grants);
    let error = caller.demand("main", Right::Write | Right::Execute).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_eq!(
        error.to_string(),
        "`token:ann` does not have one of the rights `write` or `execute` in instance `main`"
    );
    let error = caller.demand_everywhere(Right::Admin).unwrap_err();
    assert_eq!(error.to_string(), "`token:ann` does not have the right `admin` in the whole farm");
}
