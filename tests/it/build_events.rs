//! What a build tool tells of its build: events by hand, as Bazel would never send them, and what comes of them on the page of the invocation.

use std::time::Duration;

use croft::proto::Any;
use croft::proto::bazel_events::aborted::AbortReason;
use croft::proto::bazel_events::build_event::Payload;
use croft::proto::bazel_events::build_event_id::{
    ConfigurationId, Id, PatternExpandedId, TargetCompletedId, TargetConfiguredId, TestResultId,
    TestSummaryId,
};
use croft::proto::bazel_events::{
    self as bazel, Aborted, BuildEventId, BuildFinished, BuildStarted, File, OptionsParsed, TargetComplete,
    TargetConfigured, TestResult, TestStatus, TestSummary, build_finished,
};
use croft::proto::build_events::build_event::{BuildComponentStreamFinished, Event};
use croft::proto::build_events::publish_build_event_client::PublishBuildEventClient;
use croft::proto::build_events::{
    BuildEvent, OrderedBuildEvent, PublishBuildToolEventStreamRequest, StreamId,
};
use prost::Message;
use tonic::{Code, Status};

use crate::client::Client;
use crate::farm::Farm;

pub(crate) const INVOCATION: &str = "3e8a2c44-3f0b-4a3e-9d6c-000000000001";

/// When the builds here began, in milliseconds since the epoch.
pub(crate) const BEGUN_MILLIS: i64 = 1_700_000_000_000;

/// What a client writes wherever it can.
const TAG: &str = "<script>alert(1)</script>\u{202e}";

/// How long a stream may take that takes some milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn bazel_event(id: Id, payload: Payload) -> Event {
    let event = bazel::BuildEvent { id: Some(BuildEventId { id: Some(id) }), payload: Some(payload) };
    of_bazel(event.encode_to_vec())
}

fn of_bazel(value: Vec<u8>) -> Event {
    Event::BazelEvent(Any { type_url: "type.googleapis.com/build_event_stream.BuildEvent".into(), value })
}

fn completed(label: &str, success: bool) -> Event {
    let id = TargetCompletedId { label: label.into(), ..Default::default() };
    bazel_event(Id::TargetCompleted(id), Payload::Completed(TargetComplete { success }))
}

fn tested(label: &str, attempt: i32, result: TestResult) -> Event {
    let configuration = Some(ConfigurationId { id: "c1".into() });
    let id = TestResultId { label: label.into(), configuration, attempt, run: 1, shard: 2 };
    bazel_event(Id::TestResult(id), Payload::TestResult(result))
}

/// The first event: with the second field of its message it announces the pattern.
pub(crate) fn started(pattern: &str) -> Event {
    let started = BuildStarted {
        command: "test".into(),
        build_tool_version: "8".into(),
        start_time_millis: BEGUN_MILLIS,
        ..Default::default()
    };
    let event = bazel::BuildEvent { id: None, payload: Some(Payload::Started(started)) };
    let pattern = PatternExpandedId { pattern: vec![pattern.into()] };
    let announced = BuildEventId { id: Some(Id::Pattern(pattern)) }.encode_to_vec();
    let mut bytes = event.encode_to_vec();
    bytes.extend(bazel::Announcement { children: vec![announced.into()] }.encode_to_vec());
    of_bazel(bytes)
}

/// What the tool has come to, two seconds after it began.
pub(crate) fn ended(name: &str, code: i32) -> Event {
    let exit = build_finished::ExitCode { name: name.into(), code };
    let finish_time_millis = BEGUN_MILLIS + 2_000;
    let end = BuildFinished { exit_code: Some(exit), finish_time_millis, ..Default::default() };
    bazel_event(Id::Pattern(PatternExpandedId::default()), Payload::Finished(end))
}

fn finished() -> Event {
    Event::ComponentStreamFinished(BuildComponentStreamFinished { r#type: 1 })
}

fn request(sequence_number: i64, event: Option<Event>) -> PublishBuildToolEventStreamRequest {
    let stream_id = StreamId { build_id: "b".into(), invocation_id: INVOCATION.into(), component: 3 };
    let event =
        OrderedBuildEvent { stream_id: Some(stream_id), sequence_number, event: Some(BuildEvent { event }) };
    PublishBuildToolEventStreamRequest { ordered_build_event: Some(event), project_id: String::new() }
}

/// The numbers that were acknowledged, and how the stream ended.
async fn publish(
    farm: &Farm,
    requests: Vec<PublishBuildToolEventStreamRequest>,
) -> (Vec<i64>, Result<(), Status>) {
    let mut client = PublishBuildEventClient::new(farm.channel().await).max_encoding_message_size(usize::MAX);
    let published = async {
        let stream = tokio_stream::iter(requests);
        let mut acknowledged = client.publish_build_tool_event_stream(stream).await.unwrap().into_inner();
        let mut numbers = Vec::new();
        loop {
            match acknowledged.message().await {
                Ok(Some(answer)) => {
                    assert_eq!(answer.stream_id.unwrap().invocation_id, INVOCATION);
                    numbers.push(answer.sequence_number);
                }
                Ok(None) => return (numbers, Ok(())),
                Err(status) => return (numbers, Err(status)),
            }
        }
    };
    tokio::time::timeout(PATIENCE, published).await.unwrap()
}

/// Tells events that must all be taken, from the first of a stream on.
pub(crate) async fn tell(farm: &Farm, events: Vec<Event>) {
    let count = events.len() as i64;
    let requests = (1..).zip(events).map(|(number, event)| request(number, Some(event))).collect();
    let (numbers, end) = publish(farm, requests).await;
    end.unwrap();
    assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
}

async fn page(farm: &Farm, query: &str) -> String {
    let (status, page) = farm.page(&format!("/invocations/{INVOCATION}{query}")).await;
    assert_eq!(status, 200, "{page}");
    page
}

async fn counted(farm: &Farm, outcome: &str) -> Option<String> {
    let (_, metrics) = farm.page("/metrics").await;
    let series = format!("croft_build_events_total{{outcome=\"{outcome}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned)
}

#[tokio::test]
async fn events_are_acknowledged_in_order_again_after_a_new_connection_and_never_over_a_gap() {
    let farm = Farm::start();
    let event = |number: i64| request(number, Some(completed(&format!("//a:{number}"), true)));
    let (numbers, end) = publish(&farm, (1..=5).map(event).collect()).await;
    assert_eq!((numbers, end.is_ok()), (vec![1, 2, 3, 4, 5], true));
    // The client did not hear of the last three.
    let (numbers, end) = publish(&farm, (3..=7).map(event).collect()).await;
    assert_eq!((numbers, end.is_ok()), (vec![3, 4, 5, 6, 7], true));
    let (numbers, end) = publish(&farm, vec![event(8), event(10)]).await;
    assert_eq!((numbers, end.unwrap_err().code()), (vec![8], Code::FailedPrecondition));
    assert!(page(&farm, "").await.contains("8, of which 0 failed"));
    assert_eq!(counted(&farm, "repeated").await.as_deref(), Some("3"));
    assert_eq!(counted(&farm, "refused").await.as_deref(), Some("1"));

    for wrong in [request(0, None), request(-1, None), PublishBuildToolEventStreamRequest::default()] {
        let (numbers, end) = publish(&farm, vec![wrong]).await;
        assert_eq!((numbers, end.unwrap_err().code()), (vec![], Code::InvalidArgument));
    }
    let mut nameless = event(9);
    nameless.ordered_build_event.as_mut().unwrap().stream_id.as_mut().unwrap().invocation_id.clear();
    assert_eq!(publish(&farm, vec![nameless]).await.1.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_stream_goes_on_after_the_farm_has_started_again() {
    let farm = Farm::start();
    let (numbers, end) = publish(&farm, vec![request(40, Some(completed("//a", false)))]).await;
    assert_eq!((numbers, end.is_ok()), (vec![40], true));
    let page = page(&farm, "").await;
    assert!(page.contains("1, of which 1 failed") && page.contains("under way"), "{page}");
    assert!(page.contains("Its beginning is not known to this process"), "{page}");
}

#[tokio::test]
async fn a_farm_that_stops_ends_the_streams_of_builds_that_go_on() {
    let mut farm = Farm::start();
    let mut client = PublishBuildEventClient::new(farm.channel().await);
    let (events, told) = tokio::sync::mpsc::channel(1);
    events.send(request(1, Some(completed("//a", true)))).await.unwrap();
    let told = tokio_stream::wrappers::ReceiverStream::new(told);
    let mut acknowledged = client.publish_build_tool_event_stream(told).await.unwrap().into_inner();
    assert_eq!(acknowledged.message().await.unwrap().unwrap().sequence_number, 1);
    farm.ask_to_stop();
    let end = tokio::time::timeout(PATIENCE, acknowledged.message()).await.unwrap();
    let end = end.expect_err("the build is not told to the end");
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "the farm is stopping"));
    assert!(farm.wait().success());
    drop(events);
}

#[tokio::test]
async fn what_cannot_be_read_is_acknowledged_and_what_can_is_text_on_the_page() {
    let farm = Farm::start();
    let other = Any { type_url: "type.googleapis.com/other.Event".into(), value: vec![1, 2, 3] };
    let failed = TestResult { status: TestStatus::Failed.into(), ..Default::default() };
    let secret = OptionsParsed {
        explicit_cmd_line: vec!["--remote_header=x-token=hunter2".into(), format!("--define=a={TAG}")],
    };
    let aborted = Aborted { reason: AbortReason::AnalysisFailure.into(), description: TAG.into() };
    let about = TargetCompletedId { label: format!("//z:{TAG}"), ..Default::default() };
    let none = PatternExpandedId::default();
    tell(
        &farm,
        vec![
            started(TAG),
            of_bazel(vec![0xff; 100]),
            of_bazel(vec![0; (1 << 20) + 1]),
            Event::BazelEvent(other),
            bazel_event(Id::Pattern(none), Payload::OptionsParsed(secret)),
            completed(TAG, false),
            tested(TAG, 1, failed),
            bazel_event(Id::TargetCompleted(about), Payload::Aborted(aborted)),
            finished(),
        ],
    )
    .await;
    for (outcome, count) in [("malformed", "1"), ("large", "1"), ("ignored", "1"), ("kept", "6")] {
        assert_eq!(counted(&farm, outcome).await.as_deref(), Some(count), "{outcome}");
    }
    for page in [page(&farm, "").await, farm.page("/invocations").await.1] {
        assert!(
            !page.contains("<script>") && !page.contains('\u{202e}') && !page.contains("hunter2"),
            "{page}"
        );
    }
    let page = page(&farm, "").await;
    for text in
        ["&lt;script&gt;alert(1)&lt;/script&gt;", "analysis failed", "x-token=…", "ended without a result"]
    {
        assert!(page.contains(text), "{text}: {page}");
    }
}

#[tokio::test]
async fn a_message_beyond_what_is_taken_ends_the_stream_for_good() {
    let farm = Farm::start();
    let large = request(1, Some(of_bazel(vec![0; 17 << 20])));
    let (numbers, end) = publish(&farm, vec![large]).await;
    assert_eq!(
        (numbers, end.unwrap_err().code()),
        (vec![], Code::InvalidArgument),
        "Bazel retries any other"
    );
}

#[tokio::test]
async fn a_build_and_its_tests_are_on_the_page_with_their_logs() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let log = client.put("expected 4, got 5").await;
    let uri = format!("bytestream://farm.example:443/main/blobs/{}/{}", log.hex(), log.size());
    let output = File { name: "test.log".into(), uri }.encode_to_vec().into();
    let failed = TestResult {
        status: TestStatus::Failed.into(),
        test_attempt_duration_millis: 1_234,
        test_action_output: vec![output],
        ..Default::default()
    };
    let passed = TestResult { status: TestStatus::Passed.into(), cached_locally: true, ..Default::default() };
    let configured = TargetConfiguredId { label: "//a:flaky".into(), ..Default::default() };
    let kind = TargetConfigured { target_kind: "sh_test rule".into() };
    let configuration = Some(ConfigurationId { id: "c1".into() });
    let built = TargetCompletedId {
        label: "//a:flaky".into(),
        configuration: configuration.clone(),
        ..Default::default()
    };
    let summary = TestSummaryId { label: "//a:flaky".into(), configuration };
    let flaky = TestSummary { overall_status: TestStatus::Flaky.into() };
    tell(
        &farm,
        vec![
            started("//a/..."),
            bazel_event(Id::TargetConfigured(configured), Payload::Configured(kind)),
            bazel_event(Id::TargetCompleted(built), Payload::Completed(TargetComplete { success: true })),
            tested("//a:flaky", 1, failed.clone()),
            tested("//a:flaky", 2, passed.clone()),
            bazel_event(Id::TestSummary(summary), Payload::TestSummary(flaky)),
            tested("//a:good", 1, passed),
            tested("//a:bad", 1, failed.clone()),
            tested("//a:bad", 2, failed.clone()),
            tested("//a:bad", 3, failed),
            ended("TESTS_FAILED", 3),
            finished(),
        ],
    )
    .await;
    let page = page(&farm, "").await;
    for text in [
        "test //a/...",
        "TESTS_FAILED",
        "1, of which 0 failed",
        "3, of which 1 failed, 1 flaky; 6 attempts.",
        "sh_test rule",
        "1.23 s",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(page.contains("flaky</span>") && page.contains("by the client"), "{page}");
    let link = page.split("href=\"").find(|rest| rest.starts_with("/blobs/")).unwrap();
    let (status, blob) = farm.page(link.split('"').next().unwrap()).await;
    assert!(status == 200 && blob.contains("expected 4, got 5"), "{blob}");
    let list = farm.page("/invocations").await.1;
    assert!(
        list.contains("TESTS_FAILED") && list.contains("1 of 3</span>, 1 flaky") && list.contains("bazel 8"),
        "{list}"
    );
}

#[tokio::test]
async fn of_too_many_targets_the_failures_are_kept_and_the_rest_is_counted() {
    let farm = Farm::start();
    let mut events: Vec<Event> =
        (0..10_500).map(|number| completed(&format!("//a:{number:05}"), true)).collect();
    events.push(completed("//z:last", false));
    tell(&farm, events).await;
    let first = page(&farm, "").await;
    assert!(first.contains("10,501, of which 1 failed. Only 10,001 are kept."), "{first}");
    assert!(
        first.contains("//z:last") && first.contains("//a:00098") && !first.contains("//a:00099"),
        "{first}"
    );
    let last = page(&farm, "?targets=101").await;
    assert!(last.contains("//a:09999") && last.contains("page 101 of 101"), "{last}");
}
