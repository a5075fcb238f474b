//! `externalscaler.ExternalScaler`: tells KEDA how many workers the queue asks for.
//!
//! A trigger's metadata `properties` names the kind of worker that is scaled, as in `OSFamily=linux,Pool=gpu`; see [`WorkerKind`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use crate::access::{Caller, Right};
use crate::error::{Error, Kind, Result, shown};
use crate::proto::keda::external_scaler_server::ExternalScaler;
use crate::proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use crate::scheduler::{Handle, WorkerKind};

/// The one metric there is: the workers that are wanted, one for each of its units.
const METRIC: &str = "croft_workers_wanted";

/// The key in a trigger's metadata that names the kind of worker.
const PROPERTIES: &str = "properties";

/// How often a stream looks whether anything is wanted. KEDA itself looks every 30 s, so this is prompt and costs nothing.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Streams at once: each scaled kind of worker has one, and each asks the scheduler every second.
const STREAMS_MAX: usize = 64;

/// How long the scheduler may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The scaler's service.
#[derive(Debug, Clone)]
pub(super) struct Scaler {
    scheduler: Handle,
    streams: Arc<Semaphore>,
}

/// One stream: what it asks for, and what it said last.
struct Activity {
    scaler: Scaler,
    kind: WorkerKind,
    told: Option<bool>,
    _permit: OwnedSemaphorePermit,
}

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = BoxStream<'static, Result<IsActiveResponse, Status>>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        admit(&request)?;
        let kind = self.kind(Some(request.get_ref()))?;
        Ok(Response::new(IsActiveResponse { result: self.wanted(&kind).await? > 0 }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        admit(&request)?;
        let kind = self.kind(Some(request.get_ref()))?;
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        let full =
            |_| Error::new(Kind::Exhausted, format!("{STREAMS_MAX} streams of scalers are open already"));
        let activity = Activity { scaler: self.clone(), kind, told: None, _permit: permit.map_err(full)? };
        Ok(Response::new(stream::try_unfold(activity, Activity::next).boxed()))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        admit(&request)?;
        self.kind(Some(request.get_ref()))?;
        let spec = MetricSpec { metric_name: METRIC.to_owned(), target_size: 1, target_size_float: 1.0 };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        admit(&request)?;
        let request = request.into_inner();
        if request.metric_name != METRIC {
            let shown = shown(&request.metric_name);
            return Err(Error::invalid(format!("there is no metric `{shown}`, only `{METRIC}`")).into());
        }
        let kind = self.kind(request.scaled_object_ref.as_ref())?;
        let wanted = self.wanted(&kind).await?;
        let value = MetricValue {
            metric_name: METRIC.to_owned(),
            metric_value: i64::try_from(wanted).unwrap_or(i64::MAX),
            metric_value_float: wanted as f64,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}

/// How much is queued is told to whoever works, operates, or may read everything: an autoscaler needs no more than that.
fn admit<T>(request: &Request<T>) -> Result<()> {
    Caller::of(request.extensions()).demand_everywhere(Right::Read | Right::Work | Right::Admin)
}

impl Scaler {
    pub(super) fn new(scheduler: Handle) -> Self {
        Self { scheduler, streams: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }

    /// The kind of worker that a trigger names; any if it names none.
    fn kind(&self, object: Option<&ScaledObjectRef>) -> Result<WorkerKind> {
        let named = object.and_then(|object| object.scaler_metadata.get(PROPERTIES));
        WorkerKind::parse(self.scheduler.config(), named.map_or("", String::as_str))
    }

    async fn wanted(&self, kind: &WorkerKind) -> Result<u64> {
        let load = tokio::time::timeout(ANSWER_MAX, self.scheduler.load()).await;
        let load = load.map_err(|_| Error::new(Kind::Timeout, "the scheduler did not answer in time"))??;
        Ok(kind.wanted(&load))
    }
}

impl Activity {
    /// The first state at once, then each that differs from the one before. Dropping the stream ends it.
    async fn next(mut self) -> Result<Option<(IsActiveResponse, Self)>, Status> {
        loop {
            if self.told.is_some() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            let result = self.scaler.wanted(&self.kind).await? > 0;
            if self.told.replace(result) != Some(result) {
                return Ok(Some((IsActiveResponse { result }, self)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::future::Future;

    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::Code;
    use tonic::transport::{Channel, Server};

    use super::*;
    use crate::access::{Access, Grants, Identity};
    use crate::proto::keda::external_scaler_client::ExternalScalerClient;
    use crate::proto::keda::external_scaler_server::ExternalScalerServer;
    use crate::proto::rev2::ExecuteResponse;
    use crate::scheduler::{Config, Platform, Settle, Task, Watch};
    use crate::tasks::{self, Shutdown};

    struct Never;

    #[tonic::async_trait]
    impl Settle for Never {
        async fn settle(&self, _: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
            Ok(response)
        }
    }

    /// A scheduler whose scaler listens on a socket.
    struct Scaled {
        scheduler: Handle,
        client: ExternalScalerClient<Channel>,
        shutdown: Shutdown,
    }

    impl Drop for Scaled {
        fn drop(&mut self) {
            self.shutdown.cancel();
        }
    }

    async fn scaled() -> Scaled {
        let shutdown = Shutdown::new();
        let scheduler = Handle::start(Config::default(), Arc::new(Never), shutdown.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let everything = |mut request: Request<()>| {
            let caller = Caller::with(Access::of_this_machine(), Identity::process(), Grants::everything());
            request.extensions_mut().insert(caller);
            Ok(request)
        };
        let service = ExternalScalerServer::with_interceptor(Scaler::new(scheduler.clone()), everything);
        let serving = Server::builder().add_service(service).serve_with_incoming_shutdown(
            TcpListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
        tasks::spawn("scaler of a test", async move { serving.await.unwrap() });
        let client = ExternalScalerClient::connect(address).await.unwrap();
        Scaled { scheduler, client, shutdown }
    }

    async fn submit(scheduler: &Handle, action: &str, properties: &[(&str, &str)]) -> Watch {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let platform = Arc::new(Platform::new(properties));
        let task = Task { instance: "".into(), platform, ..Task::example(action) };
        scheduler.submit(task).await.unwrap()
    }

    fn object(properties: &str) -> ScaledObjectRef {
        let metadata = [("scalerAddress", "croft:50061"), (PROPERTIES, properties)];
        let metadata: HashMap<String, String> =
            metadata.map(|(key, value)| (key.into(), value.into())).into();
        ScaledObjectRef { name: "workers".into(), namespace: "farm".into(), scaler_metadata: metadata }
    }

    async fn wanted(client: &mut ExternalScalerClient<Channel>, properties: &str) -> (i64, f64) {
        let spec = client.get_metric_spec(object(properties)).await.unwrap().into_inner();
        let [spec] = &spec.metric_specs[..] else { panic!("there is one metric") };
        assert_eq!((spec.target_size, spec.target_size_float), (1, 1.0));
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object(properties)),
            metric_name: spec.metric_name.clone(),
        };
        let values = client.get_metrics(request).await.unwrap().into_inner().metric_values;
        let [value] = &values[..] else { panic!("there is one value") };
        assert_eq!(value.metric_name, spec.metric_name);
        (value.metric_value, value.metric_value_float)
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), future).await.expect("this happens soon")
    }

    #[tokio::test]
    async fn the_metric_follows_the_queue_of_the_kind_that_is_asked_for() {
        let Scaled { scheduler, client, .. } = &scaled().await;
        let mut client = client.clone();
        assert_eq!(wanted(&mut client, "").await, (0, 0.0));
        assert!(!client.is_active(object("Pool=gpu")).await.unwrap().into_inner().result);

        let _plain = submit(scheduler, "a", &[("OSFamily", "linux")]).await;
        let gpu = submit(scheduler, "b", &[("OSFamily", "linux"), ("Pool", "gpu")]).await;
        assert_eq!(wanted(&mut client, "").await, (2, 2.0));
        assert_eq!(wanted(&mut client, "OSFamily=linux,Pool=gpu").await, (2, 2.0));
        assert_eq!(wanted(&mut client, "OSFamily=linux,Pool=cpu").await, (1, 1.0));
        assert_eq!(wanted(&mut client, "Pool=gpu").await, (0, 0.0));
        assert!(client.is_active(object("OSFamily=linux")).await.unwrap().into_inner().result);

        assert!(scheduler.cancel(gpu.id()).await.unwrap());
        assert_eq!(wanted(&mut client, "").await, (1, 1.0));
    }

    #[tokio::test]
    async fn a_stream_tells_each_change_and_frees_its_place_when_it_ends() {
        let Scaled { scheduler, client, .. } = &scaled().await;
        let mut client = client.clone();
        let mut stream = client.stream_is_active(object("")).await.unwrap().into_inner();
        assert!(!soon(stream.message()).await.unwrap().unwrap().result);
        let watch = submit(scheduler, "a", &[]).await;
        assert!(soon(stream.message()).await.unwrap().unwrap().result);
        scheduler.cancel(watch.id()).await.unwrap();
        assert!(!soon(stream.message()).await.unwrap().unwrap().result);

        let mut streams = vec![stream];
        while streams.len() < STREAMS_MAX {
            streams.push(client.stream_is_active(object("")).await.unwrap().into_inner());
        }
        let refusal = client.stream_is_active(object("")).await.unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        drop(streams);
        soon(async { while client.stream_is_active(object("")).await.is_err() {} }).await;
    }

    #[tokio::test]
    async fn metadata_that_names_no_kind_of_worker_is_refused() {
        let scaled = scaled().await;
        let mut client = scaled.client.clone();
        for (properties, sentence) in [("gpu", "name=value"), ("flavour=big", "not declared")] {
            let refusals = [
                client.is_active(object(properties)).await.unwrap_err(),
                client.get_metric_spec(object(properties)).await.unwrap_err(),
                client.stream_is_active(object(properties)).await.map(|_| ()).unwrap_err(),
            ];
            for refusal in refusals {
                assert_eq!(refusal.code(), Code::InvalidArgument);
                assert!(refusal.message().contains(sentence), "{refusal:?}");
            }
        }
        let request = GetMetricsRequest { metric_name: "other".into(), scaled_object_ref: None };
        assert_eq!(client.get_metrics(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
}
