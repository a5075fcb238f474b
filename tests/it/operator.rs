//! What operators ask of a running farm: by command, and over the admin listener.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use croft::digest::Function;
use croft::proto::keda::external_scaler_client::ExternalScalerClient;
use croft::proto::keda::{GetMetricsRequest, ScaledObjectRef};
use croft::proto::rev2::{ActionResult, GetActionResultRequest};
use reqwest::{Client as Http, Method, StatusCode};
use tonic::Code;

use crate::client::{Client, Inputs, code, finish, shell};
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

/// Where workers connect, as the greeting has it.
fn workers_address(farm: &Farm) -> String {
    let line = farm.greeting.lines().find(|line| line.contains("for workers")).unwrap();
    let address = line.split("grpc://").nth(1).and_then(|rest| rest.split_whitespace().next());
    format!("http://{}", address.unwrap())
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

#[tokio::test]
async fn a_web_page_whose_name_leads_here_reads_nothing() {
    croft::tls::install();
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let blob = client.put("not for web pages").await;
    let http = Http::builder().no_proxy().build().unwrap();
    let (status, content) =
        (format!("{}/status.json", address(&farm)), format!("http://{}/cas/{}", farm.public, blob.hex()));
    for url in [&status, &content] {
        let get = async |host: &str| http.get(url).header("host", host).send().await.unwrap().status();
        assert_eq!(get("evil.example:50080").await, StatusCode::UNAUTHORIZED, "{url}");
        for host in ["localhost:1", "127.0.0.1", "[::1]:1"] {
            assert_eq!(get(host).await, StatusCode::OK, "{url} of {host}");
        }
    }
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

/// An execution that was begun: its operation's name, and the stream that keeps it alive.
struct Begun {
    name: String,
    stream: tonic::Streaming<croft::proto::longrunning::Operation>,
}

async fn begin(client: &Client, script: &str, properties: &[(&str, &str)]) -> Begun {
    let property = |(name, value): &(&str, &str)| croft::proto::rev2::platform::Property {
        name: (*name).into(),
        value: (*value).into(),
    };
    let platform = croft::proto::rev2::Platform { properties: properties.iter().map(property).collect() };
    let change = |action: &mut croft::proto::rev2::Action| action.platform = Some(platform);
    let action = client.action(&shell(script, &[]), &Inputs::default(), change).await;
    let mut stream = client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    let name = stream.message().await.unwrap().unwrap().name;
    Begun { name, stream }
}

impl Begun {
    async fn cancel(&self, client: &Client) {
        let request = croft::proto::longrunning::CancelOperationRequest { name: self.name.clone() };
        client.operations.clone().cancel_operation(request).await.unwrap();
    }

    async fn ends(mut self) -> croft::proto::rev2::ExecuteResponse {
        tokio::time::timeout(PATIENCE, finish(&mut self.stream)).await.expect("it ends").unwrap()
    }
}

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The output of a command that must succeed.
pub(crate) fn said(farm: &Farm, arguments: &[&str]) -> String {
    let output = croft(&address(farm), arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What a command that must fail says.
fn refused(farm: &Farm, arguments: &[&str]) -> String {
    let output = croft(&address(farm), arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

/// Repeats a command until its output has `part`.
pub(crate) async fn until_said(farm: &Farm, arguments: &[&str], part: &str) -> String {
    let start = Instant::now();
    loop {
        let output = said(farm, arguments);
        if output.contains(part) {
            return output;
        }
        assert!(start.elapsed() < PATIENCE, "`{part}` is not in: {output}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_queued_action_that_no_worker_can_run_is_explained() {
    let farm = Farm::start_with(&[("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "10m")]);
    let client = Client::new(&farm).await;
    let begun = begin(&client, "true", &[("Pool", "gpu")]).await;
    let id = begun.name.rsplit('/').next().unwrap();
    let sentence = "no connected worker offers platform property `Pool` = `gpu`";
    for operation in [begun.name.as_str(), id] {
        let why = until_said(&farm, &["why", operation], "unless such a worker comes").await;
        assert!(why.starts_with(&format!("operation {id} is queued:\n  {sentence}\n")), "{why}");
    }
    let oldest = said(&farm, &["why"]);
    assert!(oldest.contains("Pool=gpu: 1 queued") && oldest.contains(sentence), "{oldest}");
    let why: croft::scheduler::Why = serde_json::from_str(&said(&farm, &["why", id, "--json"])).unwrap();
    assert_eq!((why.stage.as_str(), why.reasons[0].as_str()), ("queued", sentence));
    let status = said(&farm, &["status"]);
    let row = status.lines().find(|line| line.starts_with("Pool=gpu")).unwrap();
    assert!(row.contains(sentence) && status.contains("queued: 1 (the oldest for "), "{status}");
    for line in [
        "croft_workers_wanted{property_set=\"Pool=gpu\"} 1",
        "croft_scheduler_queue_length{property_set=\"Pool=gpu\"} 1",
        "nativelink_scheduler_queue_length 1",
        "croft_workers{state=\"open\"} 1",
    ] {
        let metrics = farm.page("/metrics").await.1;
        assert!(metrics.contains(line), "`{line}` is not in:\n{metrics}");
    }

    begun.cancel(&client).await;
    let why = said(&farm, &["why", id]);
    assert!(why.contains("is completed:\n  it ended with status 1"), "{why}");
    assert!(!farm.page("/metrics").await.1.contains("Pool=gpu"));
    assert_eq!(said(&farm, &["why"]), "Nothing waits.\n");
}

#[tokio::test]
async fn a_drained_worker_finishes_and_takes_nothing_new_until_it_is_opened() {
    let farm = Farm::start_with(&[("CROFT_WORKER__NAME", "alpha"), ("CROFT_WORKER__SLOTS", "2")]);
    let client = Client::new(&farm).await;
    let first = begin(&client, "sleep 600", &[]).await;
    let runs = until_said(&farm, &["why", &first.name], "is executing").await;
    assert!(runs.contains("attempt 1 runs on worker `alpha` for "), "{runs}");
    let status = said(&farm, &["status"]);
    let worker = status.lines().find(|line| line.starts_with("alpha   open")).expect(&status);
    assert!(worker.contains("1 of 2"), "{status}");
    assert!(status.contains(first.name.rsplit('/').next().unwrap()), "{status}");

    let mut drain = Command::new(env!("CARGO_BIN_EXE_croft"))
        .args([
            "drain",
            "alpha",
            "--reason",
            "new kernel",
            "--wait",
            "--timeout",
            "5m",
            "--admin",
            &address(&farm),
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    until_said(&farm, &["status"], "draining (new kernel)").await;
    let second = begin(&client, "echo second", &[]).await;
    let why = until_said(&farm, &["why", &second.name], "is queued").await;
    assert!(why.contains("the only worker that could run it is draining"), "{why}");
    assert!(drain.try_wait().unwrap().is_none(), "it waits for the first");
    first.cancel(&client).await;
    let output = tokio::task::spawn_blocking(|| drain.wait_with_output()).await.unwrap().unwrap();
    let progress = text(&output.stdout);
    assert!(output.status.success(), "{progress}");
    assert!(
        progress.starts_with("worker `alpha` is draining (new kernel); it runs 1 action\n"),
        "{progress}"
    );
    assert!(progress.ends_with("nothing runs on worker `alpha`\n"), "{progress}");

    assert_eq!(said(&farm, &["open", "alpha"]), "worker `alpha` is open; it runs 1 action\n");
    assert_eq!(code(&second.ends().await), 0);
}

#[tokio::test]
async fn a_drain_that_takes_too_long_says_so_and_goes_on() {
    let farm = Farm::start_with(&[("CROFT_WORKER__NAME", "alpha")]);
    let client = Client::new(&farm).await;
    let first = begin(&client, "sleep 600", &[]).await;
    until_said(&farm, &["why", &first.name], "is executing").await;
    let errors = refused(&farm, &["drain", "alpha", "--wait", "--timeout", "1s"]);
    assert!(errors.contains("worker `alpha` still ran something after 1s; it goes on draining"), "{errors}");
    assert!(said(&farm, &["status"]).contains("draining"));
}

#[tokio::test]
async fn a_cordoned_worker_says_why_and_runs_what_waits_when_it_is_opened() {
    let farm = Farm::start_with(&[("CROFT_WORKER__NAME", "alpha")]);
    let client = Client::new(&farm).await;
    let answer = said(&farm, &["cordon", "alpha", "--reason", "disk full"]);
    assert_eq!(answer, "worker `alpha` is cordoned (disk full); it runs nothing\n");
    let begun = begin(&client, "true", &[]).await;
    let why = until_said(&farm, &["why", &begun.name], "is queued").await;
    assert!(why.contains("the only worker that could run it is cordoned (disk full)"), "{why}");
    assert!(farm.page("/metrics").await.1.contains("croft_workers{state=\"cordoned\"} 1"));
    let status: croft::web::Status = serde_json::from_str(&said(&farm, &["status", "--json"])).unwrap();
    let worker = &status.scheduler.as_ref().unwrap().workers[0];
    said(&farm, &["open", &worker.id]);
    assert_eq!(code(&begun.ends().await), 0);
}

#[tokio::test]
async fn what_an_operator_mistypes_is_told_in_a_sentence() {
    let farm = Farm::start_with(&[("CROFT_WORKER__NAME", "alpha")]);
    let absent = "0".repeat(32);
    let long = "x".repeat(257);
    for (arguments, sentence) in [
        (&["drain", "beta"][..], "there is no worker `beta`; there are alpha"),
        (&["open", "a/b"], "there is no worker `a/b`; there are alpha"),
        (&["why", "nonsense"], "`nonsense` is no operation; one is 32 hexadecimal digits"),
        (&["why", &absent], "is unknown: it ended long ago, or never was"),
        (&["cordon", "alpha", "--reason", &long], "at most 256 bytes"),
        (&["cordon", "alpha", "--reason", ""], "a cordon needs a reason"),
        (&["cordon", "alpha"], "--reason"),
        (&["drain", "alpha", "--wait", "--timeout", "soon"], "90s or 2h"),
    ] {
        let errors = refused(&farm, arguments);
        assert!(errors.contains(sentence), "{arguments:?}: {errors}");
    }
    for (arguments, code) in [(["drain", "beta"], 64), (["why", &absent], 64), (["why", "nonsense"], 78)] {
        assert_eq!(croft(&address(&farm), &arguments).status.code(), Some(code), "{arguments:?}");
    }
    let elsewhere = nowhere();
    for arguments in
        [&["why"][..], &["drain", "alpha"], &["cordon", "alpha", "--reason", "x"], &["open", "alpha"]]
    {
        let errors = text(&croft(&elsewhere, arguments).stderr);
        assert!(errors.contains("no farm answers"), "{arguments:?}: {errors}");
    }
}

#[tokio::test]
async fn a_web_page_cannot_mark_a_worker() {
    croft::tls::install();
    let farm = Farm::start_with(&[("CROFT_WORKER__NAME", "alpha")]);
    let http = Http::builder().no_proxy().build().unwrap();
    for verb in ["drain", "cordon", "open"] {
        let url = format!("{}/workers/alpha/{verb}", address(&farm));
        assert_eq!(http.post(&url).send().await.unwrap().status(), StatusCode::FORBIDDEN);
        let request = http.post(&url).header("croft-admin", "1").header("origin", "http://evil.example");
        assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    }
    assert!(said(&farm, &["status"]).contains("alpha   open"));
    let url = format!("{}/workers/alpha/cordon", address(&farm));
    let body = format!("{{\"reason\": \"{}\"}}", "x".repeat(10_000));
    let request = http.post(&url).header("croft-admin", "1").body(body);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn an_autoscaler_follows_the_queue_on_the_workers_listener() {
    let environment =
        [("CROFT_WORKERS__LISTEN", "127.0.0.1:0"), ("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "10m")];
    let farm = Farm::start_with(&environment);
    let client = Client::new(&farm).await;
    let mut scaler = ExternalScalerClient::connect(workers_address(&farm)).await.unwrap();
    let object = |properties: &str| ScaledObjectRef {
        name: "workers".into(),
        namespace: "farm".into(),
        scaler_metadata: [("properties".to_owned(), properties.to_owned())].into(),
    };
    assert!(!scaler.is_active(object("Pool=gpu")).await.unwrap().into_inner().result);
    let begun = [
        begin(&client, "echo 1", &[("Pool", "gpu")]).await,
        begin(&client, "echo 2", &[("Pool", "gpu")]).await,
    ];
    let request = |properties| GetMetricsRequest {
        scaled_object_ref: Some(object(properties)),
        metric_name: "croft_workers_wanted".into(),
    };
    for (properties, wanted) in [("Pool=gpu", 2), ("Pool=cpu", 0), ("", 2)] {
        let values = scaler.get_metrics(request(properties)).await.unwrap().into_inner().metric_values;
        assert_eq!(values[0].metric_value, wanted, "{properties}");
    }
    begun[0].cancel(&client).await;
    let values = scaler.get_metrics(request("Pool=gpu")).await.unwrap().into_inner().metric_values;
    assert_eq!(values[0].metric_value, 1);
    assert_eq!(scaler.is_active(object("gpu")).await.unwrap_err().code(), Code::InvalidArgument);
}
