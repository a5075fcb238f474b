//! Start, stop, crash, start again; what the commands say.

use std::process::{Command, Output};

use bytes::Bytes;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{Client, Inputs, code, shell};
use crate::farm::{self, Farm};

fn croft(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_croft")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn the_start_says_what_is_served_and_what_to_paste() {
    let mut farm = Farm::start();
    let data = farm.data().display().to_string();
    for part in ["is ready", &data, &format!("--remote_executor=grpc://{}", farm.public), "/metrics"] {
        assert!(farm.greeting.contains(part), "`{part}` is not in:\n{}", farm.greeting);
    }
    assert_eq!(farm.page("/readyz").await.0, 200);
    assert_eq!(farm.page("/livez").await.0, 200);
    assert_eq!(farm.page("/nowhere").await.0, 404);
    let mut health = HealthClient::new(farm.channel().await);
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    assert!(farm.terminate().success());
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    assert_eq!(code(&client.run("true", &Inputs::default(), &[]).await), 0);
    let (status, text) = farm.page("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "nativelink_worker_active_count 1",
        "nativelink_scheduler_queue_length 0",
        "nativelink_worker_execution_failures 0",
        "nativelink_request_duration_seconds_count{code=\"Ok\",method=\"Execution/Execute\"} 1",
        "nativelink_store_size_bytes{tier=\"disk\"}",
        "croft_store_max_bytes{tier=\"disk\"}",
    ] {
        assert!(text.contains(line), "`{line}` is not in:\n{text}");
    }
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let farm = Farm::start();
    let mut client = ServerReflectionClient::new(farm.channel().await);
    let ask = |message_request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message_request),
    };
    let symbol = "build.bazel.remote.execution.v2.Execution".to_owned();
    let asked =
        [MessageRequest::ListServices(String::new()), MessageRequest::FileContainingSymbol(symbol.clone())];
    let mut answers =
        client.server_reflection_info(tokio_stream::iter(asked.map(ask))).await.unwrap().into_inner();
    let list = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = list else { panic!("{list:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&symbol.as_str()) && names.contains(&"google.bytestream.ByteStream"), "{names:?}");
    assert!(
        !names.iter().any(|name| name.starts_with("croft.")),
        "workers have a listener of their own: {names:?}"
    );
    let file = answers.message().await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{file:?}");
}

#[tokio::test]
async fn a_second_farm_on_the_same_data_says_so_and_harms_nothing() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digest = client.put(&b"kept"[..]).await;
    let (status, errors) = Farm::try_start(farm.data(), &[]).err().expect("the second start fails");
    assert!(!status.success());
    assert!(errors.contains("in use by another croft"), "{errors}");
    assert!(errors.contains(&farm.pid().to_string()), "the other is named: {errors}");
    assert_eq!(client.read_blob(&digest).await.unwrap(), b"kept");
}

#[tokio::test]
async fn a_taken_port_is_told_with_its_number() {
    let farm = Farm::start();
    let other = tempfile::tempdir().unwrap();
    let (_, errors) = Farm::try_start(other.path(), &[("CROFT_PUBLIC__LISTEN", &farm.public)]).err().unwrap();
    assert!(errors.contains(&farm.public) && errors.contains("is a farm running already?"), "{errors}");
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_farm_is_killed() {
    let data = tempfile::tempdir().unwrap();
    let mut farm = Farm::start_in(data.path(), &[]);
    let client = Client::new(&farm).await;
    let small: Vec<Bytes> = (0..500).map(|number| format!("small {number}").into()).collect();
    let large: Vec<Bytes> = (0..20_u8).map(|number| vec![number; 100_000].into()).collect();
    let mut digests = client.put_all(small.clone()).await;
    digests.extend(client.put_all(large.clone()).await);
    let action = client.action(&shell("echo out > out", &["out"]), &Inputs::default(), |_| {}).await;
    assert_eq!(code(&client.execute(client.request(&action)).await.unwrap()), 0);
    // Some uploads are still under way when it dies.
    let busy = client.clone();
    let uploads = tokio::spawn(async move {
        for size in 1_000_000.. {
            if busy.write_blob(&vec![9; size].into()).await.is_err() {
                return;
            }
        }
    });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    farm.kill();
    uploads.await.unwrap();
    let farm = Farm::start_in(data.path(), &[]);
    let client = Client::new(&farm).await;
    assert_eq!(client.missing(&digests).await, []);
    for (digest, content) in digests.iter().zip(small.into_iter().chain(large)) {
        assert_eq!(client.read_blob(digest).await.unwrap(), content);
    }
    let again = client.execute(client.request(&action)).await.unwrap();
    assert!(again.cached_result, "the action cache survived");
    assert_eq!(std::fs::read_dir(data.path().join("cas/tmp")).unwrap().count(), 0, "half uploads are swept");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_middle_of_an_action_ends_cleanly() {
    let mut farm = Farm::start();
    let client = Client::new(&farm).await;
    let action = client.action(&shell("sleep 3600", &[]), &Inputs::default(), |_| {}).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    operations.message().await.unwrap().unwrap();
    let following = tokio::spawn(async move {
        while let Ok(Some(operation)) = operations.message().await {
            assert!(!operation.done, "{operation:?}");
        }
    });
    assert!(farm.terminate().success());
    following.await.unwrap();
}

#[test]
fn help_lists_every_command_and_hides_the_internal_one() {
    let help = text(&croft(&["--help"]).stdout);
    for command in ["serve", "check", "print-config"] {
        assert!(help.contains(command), "{help}");
        let own = croft(&[command, "--help"]);
        assert!(own.status.success() && text(&own.stdout).contains("Usage: croft"), "{command}");
    }
    assert!(!help.contains("launcher"), "{help}");
}

#[test]
fn check_prints_every_problem_of_every_file() {
    let directory = tempfile::tempdir().unwrap();
    let (good, bad) = (directory.path().join("good.toml"), directory.path().join("bad.toml"));
    std::fs::write(&good, croft(&["print-config"]).stdout).unwrap();
    std::fs::write(&bad, "instances = [\"a//b\"]\n[public]\nlisten = \"0.0.0.0:50051\"\n").unwrap();
    let output = croft(&["check", good.to_str().unwrap(), bad.to_str().unwrap()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(78));
    assert!(printed.contains("good.toml: ok"), "{printed}");
    assert!(printed.contains("a//b") && printed.contains("0.0.0.0:50051"), "{printed}");
}

#[test]
fn a_wrong_configuration_stops_the_start_with_the_key() {
    let data = tempfile::tempdir().unwrap();
    for (name, value, expected) in [
        ("CROFT_STORAGE__SIZE", "many", "STORAGE.SIZE"),
        ("CROFT_WORKER__NO_SUCH_KEY", "1", "no_such_key"),
        ("CROFT_PUBLIC__LISTEN", "localhost", "LISTEN"),
    ] {
        let output = farm::command(data.path(), &[(name, value)]).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{errors}");
        assert!(errors.contains(expected), "{name}: {errors}");
    }
}

#[test]
fn variables_of_others_with_our_prefix_do_no_harm() {
    let data = tempfile::tempdir().unwrap();
    let environment = [("CROFT_SERVICE_HOST", "10.0.0.1"), ("CROFT_PORT", "tcp://10.0.0.1:1")];
    let mut farm = Farm::start_in(data.path(), &environment);
    assert!(farm.terminate().success());
}
