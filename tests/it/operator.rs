//! What operators ask of a running farm: by command, and over the admin listener.

use std::process::{Command, Output};

use croft::digest::Function;
use croft::proto::rev2::{ActionResult, GetActionResultRequest};
use reqwest::{Client as Http, Method, StatusCode};
use tonic::Code;

use crate::client::Client;
use crate::farm::Farm;

fn croft(farm: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_croft"));
    command.args(arguments).arg("--admin").arg(farm).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn address(farm: &Farm) -> String {
    format!("http://{}", farm.admin)
}

/// An address where nothing listens: the port was free a moment ago.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

async fn cached(client: &Client, instance: &str, action: &croft::digest::Digest) -> bool {
    let request = GetActionResultRequest {
        instance_name: instance.into(),
        action_digest: Some(action.to_proto()),
        digest_function: action.function().to_proto().into(),
        ..Default::default()
    };
    match client.cache.clone().get_action_result(request).await {
        Ok(_) => true,
        Err(status) if status.code() == Code::NotFound => false,
        Err(status) => panic!("{status}"),
    }
}

async fn cache(client: &Client, instance: &str, action: &croft::digest::Digest) {
    let request = croft::proto::rev2::UpdateActionResultRequest {
        instance_name: instance.into(),
        action_digest: Some(action.to_proto()),
        action_result: Some(ActionResult { exit_code: 0, ..Default::default() }),
        digest_function: action.function().to_proto().into(),
        ..Default::default()
    };
    client.cache.clone().update_action_result(request).await.unwrap();
}

#[tokio::test]
async fn status_tells_what_each_tier_holds() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digest = client.put(vec![7; 100_000]).await;
    client.read_blob(&digest).await.unwrap();
    let output = croft(&address(&farm), &["status"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("croft "), "{shown}");
    assert!(lines[2].starts_with("tier") && lines[2].contains("hit rate"), "{shown}");
    assert!(lines[3].starts_with("disk") && lines[3].contains("iB"), "{shown}");

    let output = croft(&address(&farm), &["status", "--json"]);
    let status: croft::web::Status = serde_json::from_slice(&output.stdout).unwrap();
    let disk = &status.storage.tiers[0];
    assert_eq!((disk.kind.as_str(), disk.errors), ("disk", 0));
    assert!(disk.hits >= 1 && disk.written_bytes >= 100_000 && disk.read_bytes >= 100_000, "{disk:?}");
    assert!(disk.max_bytes > disk.used_bytes, "{disk:?}");
    assert!(lines[2].contains("evictions") && disk.evictions == Some(0), "{disk:?}");
}

#[tokio::test]
async fn a_withdrawn_result_is_gone_and_no_other() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (one, two) = (Function::Sha256.hash(b"one"), Function::Blake3.hash(b"two"));
    for instance in ["", "team/project"] {
        cache(&client, instance, &one).await;
        cache(&client, instance, &two).await;
    }
    let output = croft(&address(&farm), &["forget", "team/project", &one.to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(&one.to_string()));
    let digest = format!("{}/{}", two.hex(), two.size());
    let output = croft(&address(&farm), &["forget", "", &digest, "--function", "blake3"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = [
        cached(&client, "", &one).await,
        cached(&client, "", &two).await,
        cached(&client, "team/project", &one).await,
        cached(&client, "team/project", &two).await,
    ];
    assert_eq!(found, [true, false, false, true]);

    let output = croft(&address(&farm), &["forget", "", "nonsense"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("HASH/SIZE"));
}

#[tokio::test]
async fn a_command_without_a_farm_says_what_to_do() {
    let farm = nowhere();
    for arguments in [&["status"][..], &["scrub"], &["forget", "", &format!("{}/1", "a".repeat(64))]] {
        let output = croft(&farm, arguments);
        assert_eq!(output.status.code(), Some(70), "{arguments:?}");
        let errors = text(&output.stderr);
        assert!(errors.contains("no farm answers") && errors.contains("--admin"), "{errors}");
    }
    assert_eq!(croft("not an address", &["status"]).status.code(), Some(78));
}

#[tokio::test]
async fn a_web_page_cannot_change_anything() {
    croft::tls::install();
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let action = Function::Sha256.hash(b"action");
    cache(&client, "", &action).await;
    let forget = format!("{}/ac/sha256/{}-{}", address(&farm), action.hex(), action.size());
    let scrub = format!("{}/scrub", address(&farm));
    let http = Http::builder().no_proxy().build().unwrap();
    for (method, url) in [(Method::DELETE, &forget), (Method::POST, &scrub)] {
        let plain = http.request(method.clone(), url).send().await.unwrap();
        assert_eq!(plain.status(), StatusCode::FORBIDDEN);
        assert!(plain.text().await.unwrap().contains("croft-admin"));
        let request =
            http.request(method, url).header("croft-admin", "1").header("origin", "http://evil.example");
        assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    }
    assert_eq!(http.get(&scrub).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(cached(&client, "", &action).await);
    let request = http.delete(&forget).header("croft-admin", "1").send().await.unwrap();
    assert_eq!(request.status(), StatusCode::NO_CONTENT);
    assert!(!cached(&client, "", &action).await);
    let malformed = format!("{}/ac/sha256/abc", address(&farm));
    let request = http.delete(malformed).header("croft-admin", "1").send().await.unwrap();
    assert_eq!(request.status(), StatusCode::BAD_REQUEST);
}

/// The file of a blob, wherever the disk keeps it.
fn file_of(directory: &std::path::Path, digest: &croft::digest::Digest) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(directory).ok()?.map(Result::unwrap) {
        let path = entry.path();
        let found = if entry.file_type().unwrap().is_dir() { file_of(&path, digest) } else { None };
        if found.is_some() {
            return found;
        }
        if entry.file_name().to_string_lossy().contains(&digest.hex()) {
            return Some(path);
        }
    }
    None
}

/// Changes bytes and nothing else, as a failing disk does.
fn damage(path: &std::path::Path) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let size = std::fs::metadata(path).unwrap().len();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(b"damaged", size / 2).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
}

#[tokio::test]
async fn a_scrub_tells_what_is_damaged_and_makes_room_for_it_again() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(300_000).collect();
    let (digest, other) = (client.put(content.clone()).await, client.put(vec![7; 200_000]).await);
    let output = croft(&address(&farm), &["scrub"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown} {}", text(&output.stderr));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("tier") && lines[1].starts_with("disk"), "{shown}");
    assert!(shown.contains("All that is stored is what it should be."), "{shown}");

    damage(&file_of(farm.data(), &digest).expect("a blob of this size has a file"));
    let output = croft(&address(&farm), &["scrub"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown} {}", text(&output.stderr));
    assert!(shown.contains("out of the way"), "{shown}");
    assert_eq!(client.missing(&[digest, other]).await, [digest.to_proto()]);
    assert_eq!(client.read_blob(&digest).await.unwrap_err().code(), Code::NotFound);

    assert_eq!(client.put(content.clone()).await, digest);
    assert_eq!(client.read_blob(&digest).await.unwrap(), content);
    let output = croft(&address(&farm), &["scrub"]);
    assert_eq!(output.status.code(), Some(0), "{} {}", text(&output.stdout), text(&output.stderr));
}
