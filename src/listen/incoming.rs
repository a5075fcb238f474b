//! Bounds what requests make the process hold before a service sees them: the bytes of messages that are not whole yet, and how long
//! a message may take to become so.
//!
//! A unary message is decoded when all of it is here. Without a bound for all of them together, a client could begin thousands of large
//! ones and finish none.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use http::{Method, Request};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio::time::Sleep;
use tonic::Status;
use tower::{Layer, Service};

/// Bytes of messages of all requests together that are not whole yet: sixty of the largest, and a thousand times what small ones need.
const INCOMPLETE_BYTES_MAX: usize = 1 << 30;
static INCOMPLETE: Semaphore = Semaphore::const_new(INCOMPLETE_BYTES_MAX);

/// How long requests may take for a message.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// From its first byte to its last, and from the start of a request to the last byte of its first. A stream may pause between messages
    /// for as long as its service allows.
    message: Duration,
    /// The wait for room among the unfinished ones. Whole messages make room all the time, stuck ones when their time is over.
    room: Duration,
}

/// Enough for 16 MiB over a link of 2 Mb/s.
const TIMES: Times = Times { message: Duration::from_secs(60), room: Duration::from_secs(10) };

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounded;

impl<S> Layer<S> for Bounded {
    type Service = Bound<S>;

    fn layer(&self, inner: S) -> Bound<S> {
        Bound { inner }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Bound<S> {
    inner: S,
}

impl<S> Service<Request<tonic::body::Body>> for Bound<S>
where
    S: Service<Request<tonic::body::Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> S::Future {
        // Who says otherwise in a header is decoded all the same. Uploads of plain HTTP are stored as they come, and time themselves.
        let request = match request.method() == Method::POST {
            true => request.map(|body| tonic::body::Body::new(Incoming::new(body, &INCOMPLETE, TIMES))),
            false => request,
        };
        self.inner.call(request)
    }
}

/// The body of a request, as its messages come in.
struct Incoming<B> {
    body: B,
    messages: Messages,
    room: &'static Semaphore,
    times: Times,
    /// Room for what is here of a message that is not whole.
    held: Option<SemaphorePermit<'static>>,
    /// A frame that waits for its room.
    waiting: Option<(BoxFuture<'static, Room>, Bytes)>,
    /// The end of the time for the message.
    late: Option<Pin<Box<Sleep>>>,
}

type Room = Result<Result<SemaphorePermit<'static>, AcquireError>, tokio::time::error::Elapsed>;

impl<B> Incoming<B> {
    fn new(body: B, room: &'static Semaphore, times: Times) -> Self {
        Self { body, messages: Messages::default(), room, times, held: None, waiting: None, late: None }
    }

    /// Takes note of a frame. Gives it back unless there is no room for what it leaves unfinished.
    fn admit(&mut self, data: Bytes) -> Option<Bytes> {
        if self.messages.advance(&data) {
            // The next one has a time of its own, even if it has begun in the same frame.
            self.late = None;
        }
        let unfinished = self.messages.unfinished;
        if unfinished == 0 {
            self.held = None;
            return Some(data);
        }
        let held = self.held.as_ref().map_or(0, SemaphorePermit::num_permits);
        if unfinished <= held {
            // The rest belongs to a message that has become whole.
            drop(self.held.as_mut().and_then(|permits| permits.split(held - unfinished)));
            return Some(data);
        }
        let more = u32::try_from(unfinished - held).unwrap_or(u32::MAX);
        match self.room.try_acquire_many(more) {
            Ok(permits) => {
                self.hold(permits);
                Some(data)
            }
            Err(_) => {
                let room = self.room.acquire_many(more);
                self.waiting = Some((Box::pin(tokio::time::timeout(self.times.room, room)), data));
                None
            }
        }
    }

    fn hold(&mut self, permits: SemaphorePermit<'static>) {
        match &mut self.held {
            Some(held) => held.merge(permits),
            None => self.held = Some(permits),
        }
    }

    /// Ready with the frame when there is room for it, or with the refusal.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let Some((room, _)) = &mut self.waiting else { return Poll::Ready(None) };
        let room = ready!(room.as_mut().poll(context));
        let (_, data) = self.waiting.take().expect("it was there");
        match room {
            Ok(permits) => {
                self.hold(permits.expect("nobody closes it"));
                Poll::Ready(Some(Ok(data)))
            }
            Err(_) => Poll::Ready(Some(Err(Status::resource_exhausted(
                "the server holds as many unfinished messages as it can; try again later",
            )))),
        }
    }

    /// Ready when the message has taken too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if !self.messages.is_due() {
            return Poll::Pending;
        }
        let message = self.times.message;
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(message)));
        ready!(late.as_mut().poll(context));
        let seconds = message.as_secs();
        Poll::Ready(Status::deadline_exceeded(format!("a message was not whole after {seconds} s")))
    }
}

impl<B> Body for Incoming<B>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(data) = ready!(this.poll_room(context)) {
                return Poll::Ready(Some(data.map(Frame::data)));
            }
            let frame = match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return this.poll_late(context).map(|late| Some(Err(late))),
            };
            let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
            match frame.into_data() {
                Ok(data) => match this.admit(data) {
                    Some(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    None => continue,
                },
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where the messages of a gRPC body begin and end.
#[derive(Debug, Default)]
struct Messages {
    /// Bytes that are here of a message that is not whole, with its prefix.
    unfinished: usize,
    /// What the prefix says, as far as it is here: of its bytes, the last four are the length.
    length: u32,
    has_had_one: bool,
}

impl Messages {
    /// Goes over the next bytes; whether a message has become whole with them.
    fn advance(&mut self, mut bytes: &[u8]) -> bool {
        let mut is_any_whole = false;
        while let Some(&byte) = bytes.first() {
            if self.unfinished < PREFIX_BYTES {
                // The first byte is shifted out again.
                self.length = self.length << 8 | u32::from(byte);
                self.unfinished += 1;
                bytes.advance(1);
            } else {
                let rest = (PREFIX_BYTES + self.length as usize - self.unfinished).min(bytes.len());
                self.unfinished += rest;
                bytes.advance(rest);
            }
            if self.unfinished >= PREFIX_BYTES && self.unfinished == PREFIX_BYTES + self.length as usize {
                *self = Self { has_had_one: true, ..Self::default() };
                is_any_whole = true;
            }
        }
        is_any_whole
    }

    /// Whether something must come, and soon.
    fn is_due(&self) -> bool {
        self.unfinished > 0 || !self.has_had_one
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    /// A body that a test feeds.
    struct Fed(mpsc::Receiver<Bytes>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    fn room(bytes: usize) -> &'static Semaphore {
        Box::leak(Box::new(Semaphore::new(bytes)))
    }

    /// So short that a test can wait for all of it.
    const SHORT: Times = Times { message: Duration::from_millis(50), room: Duration::from_millis(50) };

    fn fed(room: &'static Semaphore) -> (mpsc::Sender<Bytes>, Incoming<Fed>) {
        let (sender, receiver) = mpsc::channel(16);
        (sender, Incoming::new(Fed(receiver), room, SHORT))
    }

    fn message(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        [&[0][..], &prefix, &vec![7; length]].concat()
    }

    async fn next(body: &mut Incoming<Fed>) -> Option<Result<Bytes, Status>> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        frame.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn what_is_not_whole_takes_room_until_it_is() {
        let room = room(100);
        let (sender, mut body) = fed(room);
        let bytes = [message(50), message(20)].concat();
        for (piece, left) in [(0..30, 70), (30..55, 100), (55..79, 76), (79..80, 100)] {
            sender.try_send(Bytes::copy_from_slice(&bytes[piece.clone()])).unwrap();
            assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes[piece]);
            assert_eq!(room.available_permits(), left);
        }
        sender.try_send(Bytes::copy_from_slice(&bytes[..40])).unwrap();
        next(&mut body).await.unwrap().unwrap();
        drop(body);
        assert_eq!(room.available_permits(), 100, "a request that is dropped leaves nothing behind");
    }

    #[tokio::test]
    async fn without_room_a_message_waits_and_is_refused_in_the_end() {
        let room = room(50);
        let (one, mut first) = fed(room);
        first.times.message = Duration::MAX;
        one.try_send(Bytes::from(message(60)).slice(..40)).unwrap();
        next(&mut first).await.unwrap().unwrap();
        let (two, mut second) = fed(room);
        two.try_send(Bytes::from(message(60)).slice(..30)).unwrap();
        let refusal = next(&mut second).await.unwrap().unwrap_err();
        assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
        drop(second);
        let (three, mut third) = fed(room);
        three.try_send(Bytes::from(message(60)).slice(..30)).unwrap();
        third.times.room = Duration::MAX;
        let (frame, ()) = tokio::join!(next(&mut third), async { drop(first) });
        assert_eq!(frame.unwrap().unwrap().len(), 30);
    }

    #[tokio::test]
    async fn a_message_that_does_not_end_is_given_up_and_a_pause_between_messages_is_not() {
        let (sender, mut body) = fed(room(100));
        sender.try_send(Bytes::from(message(10))).unwrap();
        next(&mut body).await.unwrap().unwrap();
        let pause = tokio::time::timeout(4 * SHORT.message, next(&mut body)).await;
        assert!(pause.is_err(), "{pause:?}");
        sender.try_send(Bytes::from(message(10)).slice(..3)).unwrap();
        next(&mut body).await.unwrap().unwrap();
        let late = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        let (_silent, mut body) = fed(room(100));
        assert_eq!(next(&mut body).await.unwrap().unwrap_err().code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn each_message_has_its_own_time_even_if_it_begins_in_the_frame_of_the_one_before() {
        let (sender, mut body) = fed(room(100));
        body.times.message = Duration::from_millis(1500);
        let bytes = Bytes::from(message(10).repeat(20));
        for end in (7..200).step_by(15) {
            sender.try_send(bytes.slice(end.max(15) - 15..end)).unwrap();
            next(&mut body).await.unwrap().unwrap();
            let pause = tokio::time::timeout(Duration::from_millis(150), next(&mut body)).await;
            assert!(pause.is_err(), "all of them together take longer, but none does: {pause:?}");
        }
    }

    proptest! {
        #[test]
        fn messages_are_told_apart_however_they_are_cut(
            lengths in prop::collection::vec(0_usize..40, 1..8),
            cuts in prop::collection::vec(1_usize..30, 1..100),
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut ends = vec![0];
            for length in &lengths {
                ends.push(ends.last().unwrap() + PREFIX_BYTES + length);
            }
            let (mut messages, mut at) = (Messages::default(), 0);
            for cut in cuts {
                let end = (at + cut).min(bytes.len());
                messages.advance(&bytes[at..end]);
                at = end;
                let begun = ends.iter().rfind(|end| **end <= at).unwrap();
                prop_assert_eq!(messages.unfinished, at - begun);
            }
        }
    }
}
