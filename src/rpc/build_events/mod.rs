//! `PublishBuildEvent`: what build tools tell of their builds, for the pages of invocations.
//!
//! A client waits until each event is acknowledged, and its build may fail when one is not. So whatever an event says, and whether it can be
//! read at all, it is acknowledged; only what breaks the protocol itself ends a stream.

mod bazel;
mod masked;

use std::time::SystemTime;

use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::access::{Demand, Right};
use crate::audit;
use crate::builds::{Event, Position, Publisher, Turn, cut};
use crate::error::{Error, Kind, Result};
use crate::metrics::BUILD_EVENTS;
use crate::proto::build_events::publish_build_event_server::PublishBuildEvent;
use crate::proto::build_events::{
    OrderedBuildEvent, PublishBuildToolEventStreamRequest, PublishBuildToolEventStreamResponse,
    PublishLifecycleEventRequest, StreamId,
};
use crate::trace::{self, Build};

use super::Farm;

#[cfg(any(test, fuzzing))]
pub(super) use self::bazel::read;

/// Who may tell of a build: whoever may do more than read, since everybody who looks sees it.
const RIGHTS: [Right; 2] = [Right::Write, Right::Execute];

/// Bytes of the identifiers of a build and of an invocation; Bazel's have 36.
const ID_BYTES_MAX: usize = 256;

type Acknowledgements = BoxStream<'static, Result<PublishBuildToolEventStreamResponse, Status>>;

#[tonic::async_trait]
impl PublishBuildEvent for Farm {
    type PublishBuildToolEventStreamStream = Acknowledgements;

    /// That a build begins or ends is in the stream of its tool, too.
    async fn publish_lifecycle_event(
        &self,
        request: Request<PublishLifecycleEventRequest>,
    ) -> Result<Response<()>, Status> {
        let demand = Demand::of(request.extensions(), RIGHTS);
        self.instances.admit(&demand, &request.get_ref().project_id)?;
        Ok(Response::new(()))
    }

    async fn publish_build_tool_event_stream(
        &self,
        request: Request<Streaming<PublishBuildToolEventStreamRequest>>,
    ) -> Result<Response<Acknowledgements>, Status> {
        let demand = Demand::of(request.extensions(), RIGHTS);
        let teller = Teller {
            farm: self.clone(),
            identity: demand.caller.identity().to_string(),
            account: demand.caller.account(),
            demand,
            instance: None,
            incoming: request.into_inner(),
        };
        let acknowledged = stream::try_unfold(teller, |mut teller| async move {
            let next = teller.next().await?;
            Ok(next.map(|acknowledgement| (acknowledgement, teller)))
        });
        Ok(Response::new(acknowledged.boxed()))
    }
}

/// A client that tells of its build. It is told of one event before the next is read.
struct Teller {
    farm: Farm,
    demand: Demand,
    /// Who tells it; of those who have not said who they are, the addresses may change.
    identity: String,
    /// By which it is counted.
    account: String,
    /// The one that the client was let into.
    instance: Option<String>,
    incoming: Streaming<PublishBuildToolEventStreamRequest>,
}

impl Teller {
    /// The acknowledgement of the next event; none when the client has told everything.
    async fn next(&mut self) -> Result<Option<PublishBuildToolEventStreamResponse>> {
        let message = tokio::select! {
            message = self.incoming.message() => message.map_err(broken)?,
            () = self.demand.caller.expired() => {
                let message = "the certificate or token of the client has expired; go on with a new one";
                return Err(Error::new(Kind::Unauthenticated, message));
            }
            // The client goes on with the next event that was not acknowledged, as soon as there is a farm again.
            () = self.farm.stop.cancelled() => {
                return Err(Error::new(Kind::Unavailable, "the farm is stopping"));
            }
        };
        let Some(message) = message else { return Ok(None) };
        let taken = self.take(message);
        let outcome = taken.as_ref().map_or("refused", |(_, outcome)| outcome);
        BUILD_EVENTS.with_label_values(&[outcome]).inc();
        taken.map(|(acknowledgement, _)| Some(acknowledgement))
    }

    fn take(
        &mut self,
        message: PublishBuildToolEventStreamRequest,
    ) -> Result<(PublishBuildToolEventStreamResponse, &'static str)> {
        let PublishBuildToolEventStreamRequest { ordered_build_event, project_id } = message;
        if self.instance.as_ref() != Some(&project_id) {
            self.farm.instances.admit(&self.demand, &project_id)?;
        }
        let instance = self.instance.insert(project_id);
        let event = ordered_build_event.ok_or_else(|| Error::invalid("the event is not set"))?;
        let OrderedBuildEvent { stream_id, sequence_number, event } = event;
        let stream_id = stream_id.ok_or_else(|| Error::invalid("the event names no stream"))?;
        let position = position(&stream_id, sequence_number)?;
        let (event, outcome) = bazel::read(event);
        let ended = event.as_ref().and_then(|event| self.farm.ended(&position, event));
        let publisher = Publisher { instance, identity: &self.identity, account: &self.account };
        let turn = self.farm.builds.tell(&position, &publisher, event)?;
        let outcome = match turn {
            Turn::New => {
                ended.into_iter().for_each(trace::build);
                outcome
            }
            Turn::Repeated => "repeated",
        };
        Ok((PublishBuildToolEventStreamResponse { stream_id: Some(stream_id), sequence_number }, outcome))
    }
}

impl Farm {
    /// The build that this event ends, if it was told of from its beginning and has not ended before.
    fn ended(&self, position: &Position<'_>, event: &Event) -> Option<Build> {
        let Event::Finished { exit, at } = event else { return None };
        let (command, begun) = self.builds.under_way(position.invocation)?;
        Some(Build {
            invocation: position.invocation.to_owned(),
            command,
            times: (begun, at.unwrap_or_else(SystemTime::now)),
            exit: cut(&exit.name).to_owned(),
            has_failed: exit.code != 0,
        })
    }
}

fn position(stream: &StreamId, sequence: i64) -> Result<Position<'_>> {
    let StreamId { build_id, invocation_id, component } = stream;
    if invocation_id.is_empty() {
        return Err(Error::invalid("the stream names no invocation"));
    }
    if invocation_id == audit::NAME {
        return Err(Error::invalid(format!("invocation `{}` is the farm's own", audit::NAME)));
    }
    if build_id.len() > ID_BYTES_MAX || invocation_id.len() > ID_BYTES_MAX {
        let message = format!("identifiers of builds and invocations have {ID_BYTES_MAX} bytes at most");
        return Err(Error::invalid(message));
    }
    if sequence < 1 {
        return Err(Error::invalid(format!("event {sequence} of a stream: the first one is 1")));
    }
    Ok(Position { invocation: invocation_id, build: build_id, component: *component, sequence })
}

/// What is too large stays so; anything else the client may try again.
fn broken(status: Status) -> Error {
    match status.code() == Code::OutOfRange {
        true => Error::invalid("the event is too large").with_source(status),
        false => Error::new(Kind::Cancelled, "the client's stream broke off").with_source(status),
    }
}
