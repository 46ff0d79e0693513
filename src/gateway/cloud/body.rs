//! The body that a provider is sent, and the one that it sends.
//!
//! Ours is pieces of the caller's buffer, and the news of whether any of it is on its way. Until then it can be withdrawn.
//! That is for HTTP/2, whose client asks for the first piece before it has a stream to send it on, and for the second when the first
//! has gone. So the first is then a single byte, with which no provider can do anything.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyDataStream, BodyExt, Either, StreamBody};
use tokio::sync::SetOnce;
use tokio_util::io::{ReaderStream, StreamReader};

use super::connections::Answering;
use crate::gateway::encoding::Encoding;

/// A request body on its way out. Its length is known, so a provider gets it as one of that length and not in chunks.
#[derive(Debug)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// In bytes.
    left: u64,
    /// Whether its first byte was asked for.
    asked: bool,
    /// Where somebody wants to know.
    fate: Option<Arc<SetOnce<Fate>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Begun,
    Withdrawn,
}

/// Why nothing of a body goes out.
#[derive(Debug, thiserror::Error)]
#[error("the call was withdrawn before any of it went out")]
pub(super) struct Withdrawn;

/// Tells whether a body has been asked for more than its first byte, which is when a connection was found that carries it.
/// Dropped before, it withdraws the body: a call that nobody waits for any more may still stand in some queue.
#[derive(Debug)]
pub(super) struct Sent(Arc<SetOnce<Fate>>);

impl Outgoing {
    /// A body of these pieces, which are shared and not copied.
    pub(super) fn new(pieces: &[Bytes]) -> Self {
        // One without bytes would be a frame that says nothing.
        let pieces: VecDeque<_> = pieces.iter().filter(|piece| !piece.is_empty()).cloned().collect();
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces, left, asked: false, fate: None }
    }

    /// The same, and what tells when it goes.
    pub(super) fn told(pieces: &[Bytes]) -> (Self, Sent) {
        let mut outgoing = Self::new(pieces);
        if let Some(first) = outgoing.pieces.front_mut().filter(|first| first.len() > 1) {
            let byte = first.split_to(1);
            outgoing.pieces.push_front(byte);
        }
        let fate = Arc::new(SetOnce::new());
        outgoing.fate = Some(Arc::clone(&fate));
        (outgoing, Sent(fate))
    }
}

impl Sent {
    /// Waits until it is on its way; for ever, if it never is.
    pub(super) async fn begun(&self) {
        if *self.0.wait().await == Fate::Withdrawn {
            std::future::pending().await
        }
    }

    /// Sees to it that none of it goes out. `false` when some of it may be on its way.
    pub(super) fn withdraw(&self) -> bool {
        // Whichever of both comes first holds.
        drop(self.0.set(Fate::Withdrawn));
        self.0.get() == Some(&Fate::Withdrawn)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        let asked = std::mem::replace(&mut self.asked, true);
        if let Some(fate) = &self.fate {
            if asked || self.pieces.len() < 2 {
                // Set already, it stays so.
                drop(fate.set(Fate::Begun));
            }
            if fate.get() == Some(&Fate::Withdrawn) {
                return Poll::Ready(Some(Err(Withdrawn)));
            }
        }
        let piece = self.pieces.pop_front();
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Why an answer's body broke.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer as it was before the provider encoded it, which it isn't asked to.
pub(super) fn decoded(answering: Answering) -> impl Body<Data = Bytes, Error = BoxError> + Unpin + Send {
    // What isn't known is left to whoever reads it.
    let Some(encoding) = Encoding::of(answering.headers()).unwrap_or(None) else {
        return Either::Left(answering.map_err(Into::into as fn(_) -> BoxError));
    };
    let bytes = BodyDataStream::new(answering).map_err(io::Error::other);
    let decoding = encoding.decoder(StreamReader::new(bytes));
    let frames = stream::once(decoding).map_ok(ReaderStream::new).try_flatten().map_ok(Frame::data);
    Either::Right(StreamBody::new(frames.map_err(BoxError::from).boxed()))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_is_on_its_way_is_told_and_the_length_is_known() {
        let pieces = [Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"cde")];
        let (mut body, sent) = Outgoing::told(&pieces);
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(5), false));
        assert!(sent.begun().now_or_never().is_none());
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.as_ref(), first.as_ptr()), (&b"a"[..], pieces[0].as_ptr()), "it is the caller's buffer");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(4), false));
        assert!(sent.begun().now_or_never().is_none(), "one byte says nothing");
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "b");
        sent.begun().await;
        assert!(!sent.withdraw(), "it is on its way");
        assert_eq!(body.collect().await.unwrap().to_bytes(), "cde");
    }

    #[tokio::test]
    async fn one_that_was_withdrawn_never_goes() {
        let pieces = [Bytes::from_static(b"ab")];
        let (mut body, sent) = Outgoing::told(&pieces);
        assert!(sent.withdraw());
        assert!(sent.begun().now_or_never().is_none());
        assert!(body.frame().await.unwrap().is_err());
        let (mut body, sent) = Outgoing::told(&pieces);
        assert!(body.frame().await.unwrap().is_ok(), "the first byte");
        drop(sent);
        assert!(body.frame().await.unwrap().is_err(), "nobody waits for its answer");
    }
}
