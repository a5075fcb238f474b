//! What a small OTLP receiver sees of a farm: one trace an action, with the spans of all that had a part in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use croft::proto::rev2::{ExecuteRequest, ExecuteResponse, RequestMetadata};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::build_events;
use crate::client::{Client, Inputs, code, finish, message, shell, with_metadata};
use crate::farm::Farm;

/// Far more than a batch of spans takes to come on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A span as far as the tests look at it.
#[derive(Debug, Clone)]
struct Seen {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    start: u64,
    end: u64,
}

/// What has come so far.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Seen>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    /// Listens for OTLP over gRPC; with the address to send to.
    async fn over_grpc() -> (Self, String) {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(receiver.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (receiver, address)
    }

    /// Listens for OTLP as protobuf over HTTP.
    async fn over_http() -> (Self, String) {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let taker = receiver.clone();
        let take = move |body: axum::body::Bytes| async move {
            taker.take(ExportTraceServiceRequest::decode(body).unwrap());
        };
        let routes = axum::Router::new().route("/v1/traces", axum::routing::post(take));
        tokio::spawn(
            tonic::transport::Server::builder()
                .accept_http1(true)
                .add_routes(tonic::service::Routes::from(routes))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        (receiver, address)
    }

    fn take(&self, request: ExportTraceServiceRequest) {
        for of_process in request.resource_spans {
            let attributes = of_process.resource.map(|resource| resource.attributes).unwrap_or_default();
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let Some(Value::StringValue(service)) = name.and_then(|name| name.value?.value) else {
                panic!("a process without a name");
            };
            let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| Seen {
                service: service.clone(),
                name: span.name,
                trace: hex::encode(span.trace_id),
                id: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
            }));
        }
    }

    /// Waits until of the trace there are spans with all of these names.
    async fn until(&self, trace: &str, names: &[&str]) -> Vec<Seen> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen: Vec<Seen> =
                self.0.lock().unwrap().iter().filter(|span| span.trace == trace).cloned().collect();
            let has = |name: &&str| seen.iter().any(|span| span.name == **name);
            if names.iter().all(has) {
                return seen;
            }
            assert!(Instant::now() < deadline, "not all of {names:?} came: {seen:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A process of a farm that sends its spans to `address` under the name of its role.
fn process(role: &str, address: &str, more: &[(&str, &str)]) -> Farm {
    let roles = format!("[\"{role}\"]");
    let own = [
        ("CROFT_ROLES", roles.as_str()),
        ("OTEL_SERVICE_NAME", role),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", address),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ];
    Farm::start_with(&[&own[..], more].concat())
}

fn free_address() -> String {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().to_string()
}

async fn execute(
    client: &Client,
    mut request: Request<ExecuteRequest>,
    header: (&'static str, &str),
) -> ExecuteResponse {
    request.metadata_mut().insert(header.0, header.1.parse().unwrap());
    let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
    let response = finish(&mut operations).await.unwrap();
    assert_eq!(code(&response), 0, "{}", message(&response));
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_is_one_trace_from_its_client_to_the_store() {
    let (receiver, address) = Receiver::over_grpc().await;
    let cas = process("cas", &address, &[]);
    let tier = format!("[{{kind=\"farm\",endpoints=[\"http://{}\"]}}]", cas.public);
    let workers = free_address();
    let more = [("CROFT_WORKERS__LISTEN", workers.as_str()), ("CROFT_STORAGE__TIER", tier.as_str())];
    let scheduler = process("scheduler", &address, &more);
    let to = format!("grpc://{workers}");
    let more = [("CROFT_WORKER__SCHEDULER", to.as_str()), ("CROFT_STORAGE__TIER", tier.as_str())];
    let _worker = process("worker", &address, &more);

    let of_cas = Client::new(&cas).await;
    let inputs = Inputs::default().file("in", "hello");
    let action = of_cas.action(&shell("cat in > out", &["out"]), &inputs, |_| {}).await;
    let client = Client { execution: Client::new(&scheduler).await.execution, ..of_cas };
    let parent = format!("00-{TRACE}-{PARENT}-01");
    execute(&client, Request::new(client.request(&action)), ("traceparent", &parent)).await;

    let names =
        ["Execution/Execute", "queued", "settle", "action", "inputs", "command", "outputs", "farm get"];
    let spans = receiver.until(TRACE, &names).await;
    let known: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).chain([PARENT]).collect();
    for span in &spans {
        assert!(known.contains(span.parent.as_str()), "{span:?} hangs in the air: {spans:#?}");
        assert!(span.start <= span.end, "{span:?}");
    }
    let one = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(one("Execution/Execute").parent, PARENT);
    for name in ["queued", "settle", "action"] {
        assert_eq!(one(name).parent, one("Execution/Execute").id, "{name}");
    }
    for name in ["inputs", "command", "outputs"] {
        assert_eq!((&one(name).parent, one(name).service.as_str()), (&one("action").id, "worker"));
    }
    let services: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    assert_eq!(services, BTreeSet::from(["cas", "scheduler", "worker"]));
    // What the worker asks of the CAS goes on there.
    let of_worker: BTreeMap<&str, &Seen> =
        spans.iter().filter(|span| span.service == "worker").map(|span| (span.id.as_str(), span)).collect();
    assert!(spans.iter().any(|span| span.service == "cas" && of_worker.contains_key(span.parent.as_str())));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_calls_of_a_build_are_of_the_trace_that_has_its_identifier() {
    let (receiver, address) = Receiver::over_http().await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &address),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("CROFT_LOG__FORMAT", "json"),
    ];
    let farm = Farm::start_with(&environment);
    let client = Client::new(&farm).await;
    let build = "0c1f3d6e-9a55-4c8e-b1a2-8d6f7e5c4b3a";
    let metadata = RequestMetadata { tool_invocation_id: build.to_owned(), ..RequestMetadata::default() };
    for script in ["echo one", "echo two"] {
        let action = client.action(&shell(script, &[]), &Inputs::default(), |_| {}).await;
        let request = with_metadata(client.request(&action), &metadata);
        let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
        assert_eq!(code(&finish(&mut operations).await.unwrap()), 0);
    }
    let trace = build.replace('-', "");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let spans = receiver.until(&trace, &["Execution/Execute", "action", "disk put"]).await;
        if spans.iter().filter(|span| span.name == "action").count() == 2 {
            assert!(spans.iter().all(|span| span.service == "croft"));
            break;
        }
        assert!(Instant::now() < deadline, "{spans:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_told_of_has_a_span_above_all_its_calls() {
    let (receiver, address) = Receiver::over_grpc().await;
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", address.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let farm = Farm::start_with(&environment);
    let client = Client::new(&farm).await;
    let action = client.action(&shell("true", &[]), &Inputs::default(), |_| {}).await;
    let metadata =
        RequestMetadata { tool_invocation_id: build_events::INVOCATION.into(), ..RequestMetadata::default() };
    let request = with_metadata(client.request(&action), &metadata);
    let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
    assert_eq!(code(&finish(&mut operations).await.unwrap()), 0);
    // What a build comes to is said once, whatever else is said of it.
    let events = [build_events::started("//..."), build_events::ended("TESTS_FAILED", 3)];
    let again = build_events::ended("SUCCESS", 0);
    build_events::tell(&farm, events.into_iter().chain([again]).collect()).await;

    let trace = build_events::INVOCATION.replace('-', "");
    let spans = receiver.until(&trace, &["Execution/Execute", "action", "bazel test"]).await;
    let builds: Vec<&Seen> = spans.iter().filter(|span| span.parent.is_empty()).collect();
    let [build] = builds[..] else { panic!("one span has no parent: {spans:#?}") };
    let begun = build_events::BEGUN_MILLIS as u64 * 1_000_000;
    assert_eq!((build.name.as_str(), build.start, build.end), ("bazel test", begun, begun + 2_000_000_000));
    assert_eq!(spans.iter().find(|span| span.name == "Execution/Execute").unwrap().parent, build.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_sent_when_the_farm_stops_and_what_is_not_kept_is_never_sent() {
    let (receiver, address) = Receiver::over_grpc().await;
    let environment = [
        ("CROFT_TRACE__ENDPOINT", address.as_str()),
        ("CROFT_TRACE__SAMPLE", "0.0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
    ];
    let mut farm = Farm::start_with(&environment);
    let client = Client::new(&farm).await;
    client.run("echo not kept", &Inputs::default(), &[]).await;
    let action = client.action(&shell("echo kept", &[]), &Inputs::default(), |_| {}).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    execute(&client, Request::new(client.request(&action)), ("traceparent", &parent)).await;
    drop(client);
    farm.terminate();
    let spans = receiver.until(TRACE, &["action", "command"]).await;
    assert_eq!(spans.len(), receiver.0.lock().unwrap().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_nothing_but_the_spans() {
    let nobody = format!("http://{}", free_address());
    let environment = [("CROFT_TRACE__ENDPOINT", nobody.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let mut farm = Farm::start_with(&environment);
    let client = Client::new(&farm).await;
    client.run("echo fine", &Inputs::default(), &[]).await;
    let deadline = Instant::now() + PATIENCE;
    while !farm.log().contains("traces are not taken") {
        assert!(Instant::now() < deadline, "nobody is told that spans are lost: {}", farm.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It is counted before it is told.
    let lost = "croft_trace_spans_total{outcome=\"lost\"} ";
    let metrics = farm.page("/metrics").await.1;
    assert!(metrics.contains(lost) && !metrics.contains(&format!("{lost}0\n")), "{metrics}");
    drop(client);
    assert!(farm.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_a_slow_collector_leaves_behind_are_counted_as_lost() {
    let deaf = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = format!("http://{}", deaf.local_addr().unwrap());
    let environment = [
        ("CROFT_TRACE__ENDPOINT", address.as_str()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "20"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
    ];
    let farm = Farm::start_with(&environment);
    let client = Client::new(&farm).await;
    // Each is a span of its own and one below it, and nothing is taken.
    for number in 0..100 {
        client.put(format!("blob {number}")).await;
    }
    let series = "croft_trace_spans_total{outcome=\"lost\"} ";
    let metrics = farm.page("/metrics").await.1;
    let lost = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap();
    assert!(lost.parse::<u64>().unwrap() >= 100, "{lost}");
    assert!(farm.log().contains("spans come faster than they are taken"), "{}", farm.log());
}

#[test]
fn a_variable_that_is_not_understood_is_refused_at_the_start() {
    let data = tempfile::tempdir().unwrap();
    let environment =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_TRACES_SAMPLER", "sometimes")];
    let (_, errors) = Farm::try_start(data.path(), &environment).err().unwrap();
    assert!(errors.contains("OTEL_TRACES_SAMPLER: `sometimes`"), "{errors}");
}
