//! Connections over HTTP/1.1, each of which carries one call at a time.
//!
//! Whoever makes a call drives its connection: nobody else has to be woken for a byte to get from one to the other, and a call
//! that is dropped closes it. Between two calls a connection lies idle, and nobody drives it.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{Connection, SendRequest, handshake},
    },
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{body::Outgoing, dial::Io};

/// How long a connection may lie idle. Servers close theirs after a minute or more.
const LONGEST_IDLE: Duration = Duration::from_secs(90);

/// A connection, driven by whoever has it.
pub(super) struct Wire {
    sender: SendRequest<Outgoing>,
    link: Link,
}

/// What is driven; `None` once it has ended.
struct Link(Option<Box<Connection<Box<dyn Io>, Outgoing>>>);

impl Link {
    /// Sends and receives what can be. What that came to is told by the answer that somebody waits for.
    fn drive(&mut self, task: &mut Context<'_>) {
        if self.0.as_mut().is_some_and(|connection| Pin::new(&mut **connection).poll(task).is_ready()) {
            self.0 = None;
        }
    }
}

impl Wire {
    /// Over a connection that was made.
    ///
    /// # Errors
    /// When it is no more.
    pub(super) async fn open(io: Box<dyn Io>) -> hyper::Result<Self> {
        let (sender, connection) = handshake(io).await?;
        Ok(Self { sender, link: Link(Some(Box::new(connection))) })
    }

    /// Whether another call may be made over it.
    fn is_idle(&mut self, task: &mut Context<'_>) -> bool {
        self.link.drive(task);
        self.link.0.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// When there is none; with the request if nothing of it went out.
    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Outgoing>>> {
        let Self { sender, link } = self;
        let mut answer = pin!(sender.try_send_request(request));
        poll_fn(|task| {
            link.drive(task);
            answer.as_mut().poll(task)
        })
        .await
    }

    /// The next piece of an answer's body.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        task: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // Asked first, since nothing is read from a connection that nobody wants.
        match Pin::new(&mut *body).poll_frame(task) {
            Poll::Pending => {
                self.link.drive(task);
                Pin::new(body).poll_frame(task)
            }
            ready => ready,
        }
    }
}

/// Connections that lie idle, in the order in which they were left.
#[derive(Default)]
pub(super) struct Idle(Mutex<VecDeque<(Wire, Instant)>>);

impl Idle {
    /// The one that was left last and is still open.
    pub(super) async fn take(&self) -> Option<Wire> {
        poll_fn(|task| {
            loop {
                let Some((mut wire, left)) = self.0.lock().pop_back() else { return Poll::Ready(None) };
                if left.elapsed() < LONGEST_IDLE && wire.is_idle(task) {
                    return Poll::Ready(Some(wire));
                }
            }
        })
        .await
    }

    /// Keeps one whose answer was read to its end, unless it has ended with that.
    pub(super) fn keep(&self, mut wire: Wire, task: &mut Context<'_>) {
        if wire.is_idle(task) {
            self.0.lock().push_back((wire, Instant::now()));
        }
    }

    /// Closes those that were left too long ago.
    pub(super) fn prune(&self) {
        let mut idle = self.0.lock();
        let old = idle.iter().take_while(|(_, left)| left.elapsed() >= LONGEST_IDLE).count();
        let closed: Vec<_> = idle.drain(..old).collect();
        drop(idle);
        drop(closed);
    }
}

impl fmt::Debug for Idle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Idle").field(&self.0.lock().len()).finish()
    }
}
