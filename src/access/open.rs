//! The requests that each identity has open, so that one whose client has gone wild leaves room for the others.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use crate::error::{Error, Kind, Result};
use crate::tally::{Share, Tally};

/// The open requests of all identities.
#[derive(Debug)]
pub(super) struct OpenRequests(Arc<Tally<String>>);

/// One open request. Dropping it says that it is over.
pub(super) type Place = Share<String>;

impl OpenRequests {
    pub(super) fn new(each_max: u32) -> Self {
        Self(Tally::new(each_max))
    }

    /// A request of `account` begins. What a part of this process asks, which has no account, is not counted.
    ///
    /// # Errors
    /// `Exhausted` when the account has as many open as it may.
    pub(super) fn begin(&self, account: String) -> Result<Option<Place>> {
        if account.is_empty() {
            return Ok(None);
        }
        let full = || {
            let max = self.0.each_max();
            let message = format!("`{account}` has {max} requests open and may have no more at a time");
            Error::new(Kind::Exhausted, message)
        };
        self.0.take(account.clone()).map(Some).ok_or_else(full)
    }
}

/// The body of an answer: its request is open until the body has ended or is dropped.
#[derive(Debug, Default)]
pub struct Held<B> {
    body: B,
    place: Option<Place>,
}

impl<B> Held<B> {
    pub(super) fn new(body: B, place: Option<Place>) -> Self {
        Self { body, place }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = &frame {
            self.place = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn kind(begun: Result<Option<Place>>) -> Result<(), Kind> {
        begun.map(drop).map_err(|error| error.kind())
    }

    #[test]
    fn each_has_its_own_places_and_gets_them_back() {
        let open = OpenRequests::new(2);
        let begin = |account: &str| open.begin(account.to_owned());
        let first = begin("token:ci").unwrap();
        let second = begin("token:ci").unwrap();
        let error = begin("token:ci").unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
        assert_eq!(error.to_string(), "`token:ci` has 2 requests open and may have no more at a time");
        assert_eq!(kind(begin("token:dev")), Ok(()));
        drop(first);
        assert_eq!(kind(begin("token:ci")), Ok(()));
        drop(second);
    }

    #[test]
    fn the_parts_of_this_process_are_not_counted() {
        let open = OpenRequests::new(1);
        let places: Vec<_> = (0..3).map(|_| open.begin(String::new()).unwrap()).collect();
        assert!(places.iter().all(Option::is_none));
    }

    #[tokio::test]
    async fn a_request_is_open_until_its_answer_has_ended_or_is_dropped() {
        let open = OpenRequests::new(1);
        let held = || Held::new("answer".to_owned(), open.begin("ann".to_owned()).unwrap());
        let mut read = held();
        assert!(read.frame().await.is_some());
        assert_eq!(kind(open.begin("ann".to_owned())), Err(Kind::Exhausted));
        assert!(read.frame().await.is_none());
        assert_eq!(kind(open.begin("ann".to_owned())), Ok(()));
        drop(held());
        assert_eq!(kind(open.begin("ann".to_owned())), Ok(()));
    }
}
