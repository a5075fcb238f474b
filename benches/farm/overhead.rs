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

/// In which order the farms take their turns, from round to round: each is as often before and behind each other one, since what a farm
/// leaves to the disk meets the next.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]];

/// What each farm did in one turn, by the second: of time that passed, and of time that its processors worked.
type Turn = [[f64; 2]; 3];

/// A turn is compared with those of its own round; the two farms that are not watched tell what such a comparison is worth.
pub(crate) async fn figures(rounds: Rounds) -> Vec<Figure> {
    let mut watching = JoinSet::new();
    let collector = collect(&mut watching).await;
    let watched =
        Arc::new(Farm::start_with(&[("CROFT_TRACE__ENDPOINT", &collector), ("CROFT_TRACE__SAMPLE", "0.01")]));
    watching.spawn(scrape(Arc::clone(&watched)));
    let farms = [Arc::new(Farm::start()), Arc::new(Farm::start()), watched];
    let mut clients = Vec::new();
    for farm in &farms {
        clients.push(Client::new(farm).await);
    }
    let (mut actions, mut blobs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS * rounds.0 {
        let (mut of_actions, mut of_blobs) = (Turn::default(), Turn::default());
        for farm in ORDERS[round % ORDERS.len()] {
            let client = &clients[farm];
            let numbers = round * ACTIONS..(round + 1) * ACTIONS;
            of_actions[farm] = turn(&farms[farm], ACTIONS, actions::no_op_rate(client, numbers)).await;
            let numbers = round * BATCHES..(round + 1) * BATCHES;
            let blobs = numbers.len() * blobs::BATCH;
            of_blobs[farm] = turn(&farms[farm], blobs, blobs::batch_rate(client, numbers)).await;
        }
        actions.push(of_actions);
        blobs.push(of_blobs);
    }
    let figures =
        [("no-op actions", actions), ("1 KiB blobs", blobs)].map(|(name, turns)| compare(name, &turns));
    figures.into_iter().flatten().collect()
}

async fn turn(farm: &Farm, count: usize, work: impl Future<Output = f64>) -> [f64; 2] {
    let before = processor_time(farm);
    let rate = work.await;
    let worked = (processor_time(farm) - before).max(Duration::from_millis(1));
    [rate, count as f64 / worked.as_secs_f64()]
}

/// How long processors have worked for the process of a farm, in steps of 10 ms (proc_pid_stat(5)); what its actions used is not in it.
fn processor_time(farm: &Farm) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", farm.pid())).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// The watched farm beside the first, and the second beside the first.
fn compare(name: &str, turns: &[Turn]) -> [Figure; 4] {
    let figure = |what: &str, farm: usize, by: usize, goal| {
        let limit = median(turns.iter().map(|turn| turn[0][by]).collect());
        let ratio = median(turns.iter().map(|turn| turn[farm][by] / turn[0][by]).collect());
        let name = format!("{name}, {what}");
        let (limit_name, unit) = ("a farm that is neither", ["/s", "/s worked"][by]);
        Figure { name, ours: limit * ratio, limit, limit_name, unit, goal }
    };
    [
        figure("traced (1 %) and scraped", 2, 0, Goal::Ratio(0.97)),
        figure("another that is neither", 1, 0, Goal::Shown),
        figure("traced (1 %) and scraped", 2, 1, Goal::Shown),
        figure("another that is neither", 1, 1, Goal::Shown),
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
