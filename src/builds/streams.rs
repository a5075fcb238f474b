//! How far the streams of events of an invocation have come.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};

/// Streams of one invocation: that of the tool, and one for each time that it was tried again.
const STREAMS_MAX: usize = 8;

/// Where an event stands: in which stream, and the how manieth it is.
#[derive(Debug, Clone, Copy)]
pub struct Position<'a> {
    pub invocation: &'a str,
    /// The build that the invocation belongs to, and the number of the component that tells of it: together they name a stream.
    pub build: &'a str,
    pub component: i32,
    /// From 1 on.
    pub sequence: i64,
}

/// Whether an event is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    New,
    /// It was taken before: the client did not hear of it and says it again.
    Repeated,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Streams {
    all: Vec<Stream>,
    is_begun_elsewhere: bool,
}

#[derive(Debug, Clone)]
struct Stream {
    build: Arc<str>,
    component: i32,
    last: i64,
}

impl Streams {
    /// Whether it is the turn of an event. A stream that is not known may begin anywhere: what came before was told to a process that has
    /// ended since.
    pub(super) fn advance(&mut self, position: &Position<'_>) -> Result<Turn> {
        let is_it =
            |stream: &&mut Stream| &*stream.build == position.build && stream.component == position.component;
        let Some(stream) = self.all.iter_mut().find(is_it) else { return self.begin(position) };
        if position.sequence <= stream.last {
            return Ok(Turn::Repeated);
        }
        let next = stream.last.saturating_add(1);
        if position.sequence != next {
            let message =
                format!("event {next} of the stream comes next, and this is event {}", position.sequence);
            return Err(Error::new(Kind::Precondition, message));
        }
        stream.last = next;
        Ok(Turn::New)
    }

    /// Whether one of them did not begin with its first event.
    pub(super) fn is_begun_elsewhere(&self) -> bool {
        self.is_begun_elsewhere
    }

    fn begin(&mut self, position: &Position<'_>) -> Result<Turn> {
        if self.all.len() >= STREAMS_MAX {
            let message = format!("an invocation has {STREAMS_MAX} streams of events at most");
            return Err(Error::new(Kind::Exhausted, message));
        }
        let Position { build, component, sequence, .. } = *position;
        self.is_begun_elsewhere |= sequence > 1;
        self.all.push(Stream { build: build.into(), component, last: sequence });
        Ok(Turn::New)
    }
}
