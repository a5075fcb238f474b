//! What it costs to be watched: two farms side by side, one of which exports a hundredth of its traces and is scraped each second.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::client::Client;
use crate::farm::Farm;
use crate::{Figure, Goal, Rounds, actions, blobs, median};

/// Actions of one turn, and batches of blobs: about a second of them. The shorter a turn, the likelier the machine does the same meanwhile.
const ACTIONS: usize = 300;
const BATCHES: usize = 8;

/// Rounds of turns for each that is asked for: a few percent are small beside what two turns differ by.
const ROUNDS: usize = 4;

const SCRAPE_EACH: Duration = Duration::from_secs(1);

/// A collector that keeps nothing.
struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        _request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The three farms take turns, and each has each place in a round as often as the others, so that what the machine does meanwhile meets
/// all. A turn is compared with those of its own round; the two farms that are not watched tell what such a comparison is worth.
pub(crate) async fn figures(rounds: Rounds) -> Vec<Figure> {
    let mut watching = JoinSet::new();
    let collector = collect(&mut watching).await;
    let watched =
        Arc::new(Farm::start_with(&[("CROFT_TRACE__ENDPOINT", &collector), ("CROFT_TRACE__SAMPLE", "0.01")]));
    let [plain, other] = [Farm::start(), Farm::start()];
    watching.spawn(scrape(Arc::clone(&watched)));
    let clients = [Client::new(&plain).await, Client::new(&other).await, Client::new(&watched).await];
    let (mut actions, mut blobs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS * rounds.0 {
        let mut rates = [[0.0; 3]; 2];
        for place in 0..3 {
            let farm = (round + place) % 3;
            let numbers = round * ACTIONS..(round + 1) * ACTIONS;
            rates[0][farm] = actions::no_op_rate(&clients[farm], numbers).await;
            rates[1][farm] = blobs::batch_rate(&clients[farm], round * BATCHES..(round + 1) * BATCHES).await;
        }
        actions.push(rates[0]);
        blobs.push(rates[1]);
    }
    let [actions, blobs] =
        [("no-op actions", actions), ("1 KiB blobs", blobs)].map(|(name, rates)| compare(name, &rates));
    actions.into_iter().chain(blobs).collect()
}

/// The watched farm beside the first, and the second beside the first.
fn compare(name: &str, rounds: &[[f64; 3]]) -> [Figure; 2] {
    let limit = median(rounds.iter().map(|[plain, ..]| *plain).collect());
    let beside = |farm: usize| limit * median(rounds.iter().map(|rates| rates[farm] / rates[0]).collect());
    let figure = |what: &str, ours, goal| Figure {
        name: format!("{name}, {what}"),
        ours,
        limit,
        limit_name: "a farm that is neither",
        unit: "/s",
        goal,
    };
    [
        figure("traced (1 %) and scraped", beside(2), Goal::Ratio(0.97)),
        figure("another that is neither", beside(1), Goal::Shown),
    ]
}

async fn collect(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = Server::builder()
        .add_service(TraceServiceServer::new(Collector))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tasks.spawn(async { serving.await.unwrap() });
    address
}

async fn scrape(farm: Arc<Farm>) {
    let mut turns = tokio::time::interval(SCRAPE_EACH);
    loop {
        turns.tick().await;
        assert_eq!(farm.page("/metrics").await.0, 200);
    }
}
