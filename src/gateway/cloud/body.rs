//! The body that a provider is sent: pieces of the caller's buffer, and the news of whether any of it has been asked for.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::SetOnce;

/// A request body on its way out. Its length is known, so a provider gets it as one of that length and not in chunks.
#[derive(Debug)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// In bytes.
    left: u64,
    begun: Arc<SetOnce<()>>,
}

/// Tells whether a body has been asked for its first bytes, which is when a connection was found that may carry them.
#[derive(Debug, Clone)]
pub(super) struct Sent(Arc<SetOnce<()>>);

impl Outgoing {
    /// A body of these pieces, which are shared and not copied, and what tells when it goes.
    #[expect(clippy::new_ret_no_self, reason = "nobody needs a body that the client can't send")]
    pub(super) fn new(pieces: &[Bytes]) -> (reqwest::Body, Sent) {
        let (outgoing, sent) = Self::of(pieces);
        (reqwest::Body::wrap(outgoing), sent)
    }

    fn of(pieces: &[Bytes]) -> (Self, Sent) {
        // One without bytes would be a frame that says nothing.
        let pieces: VecDeque<_> = pieces.iter().filter(|piece| !piece.is_empty()).cloned().collect();
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        let begun = Arc::new(SetOnce::new());
        (Self { pieces, left, begun: Arc::clone(&begun) }, Sent(begun))
    }
}

#[cfg_attr(not(test), expect(dead_code, reason = "who chooses among connections will ask it"))]
impl Sent {
    /// Whether any of it may be on its way.
    pub(super) fn has_begun(&self) -> bool {
        self.0.initialized()
    }

    /// Waits until the first of it was asked for; for ever, if it never is.
    pub(super) async fn begun(&self) {
        self.0.wait().await;
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Set already by an earlier piece, it stays so.
        drop(self.begun.set(()));
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn the_first_poll_is_told_and_the_length_is_known() {
        let pieces = [Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"cde")];
        let (mut body, sent) = Outgoing::of(&pieces);
        assert_eq!((body.size_hint().exact(), body.is_end_stream(), sent.has_begun()), (Some(5), false, false));
        assert!(sent.begun().now_or_never().is_none());
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.as_ptr(), pieces[0].as_ptr(), "it is the caller's buffer");
        assert_eq!((body.size_hint().exact(), body.is_end_stream(), sent.has_begun()), (Some(3), false, true));
        sent.begun().await;
        assert_eq!(body.collect().await.unwrap().to_bytes(), "cde");
    }
}
