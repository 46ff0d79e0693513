//! Reading a request's body: decoded, into one buffer, as far as there is room for it.

use std::{error::Error as _, io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, Version,
        header::{CONTENT_LENGTH, EXPECT},
        request::Parts,
    },
};
use futures_util::TryStreamExt;
use http_body_util::{BodyDataStream, BodyExt, LengthLimitError};
use mlx_manager_config::ServerConfig;
use mlx_manager_llm::{Error, ErrorKind};
use mlx_manager_signal::event::BodiesHeld;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::coop::consume_budget,
    time::timeout,
};
use tokio_util::io::StreamReader;

use super::buffer::Buffer;
use crate::gateway::encoding::Encoding;

/// What room is counted in, in bytes.
const UNIT: usize = 1024;
/// How much is decoded before its size is looked at, in bytes.
const STEP: usize = 64 * 1024;
/// When a caller that was answered too early may come again.
const COME_AGAIN: Duration = Duration::from_secs(1);
/// How long the rest of a refused body is taken and thrown away. A caller whose sending breaks off rarely reads why.
const DISCARD: Duration = Duration::from_secs(2);

/// Reads bodies, and knows how much of them there is.
#[derive(Debug, Clone)]
pub(crate) struct Bodies {
    /// The largest one, in bytes.
    max: usize,
    /// Room for all, in [`UNIT`]s.
    room: Arc<Semaphore>,
    /// How much of it there is when nothing is held.
    all: usize,
}

impl Bodies {
    /// Of a server that has read none.
    pub(crate) fn new(config: &ServerConfig) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let room = size(config.max_inflight_body).div_ceil(UNIT).min(Semaphore::MAX_PERMITS);
        Self { max: size(config.max_body), room: Arc::new(Semaphore::new(room)), all: room }
    }

    /// A poller for the metrics.
    pub(crate) fn poller(&self) -> impl Fn() + Send + Sync + 'static {
        let bodies = self.clone();
        move || BodiesHeld((bodies.all.saturating_sub(bodies.room.available_permits()) * UNIT) as u64).emit()
    }

    /// Reads a body. It keeps its room for as long as anybody holds a slice of it.
    ///
    /// # Errors
    /// [`ErrorKind::BodyTooLarge`] when it is larger than one may be, [`ErrorKind::Overloaded`] when all of them would be,
    /// [`ErrorKind::UnsupportedMediaType`] for an encoding that isn't read, [`ErrorKind::InvalidRequest`] when it breaks off
    /// or isn't encoded as it says.
    pub(super) async fn read(&self, parts: &Parts, mut body: Body) -> Result<Bytes, Error> {
        let read = match Encoding::of(&parts.headers) {
            Ok(None) => self.plain(&parts.headers, &mut body).await,
            Ok(Some(encoding)) => self.decoded(encoding, &mut body).await,
            Err(error) => Err(error),
        };
        // Whoever waits for leave to send is refused before that, and in HTTP/2 a stream ends without its connection.
        if read.is_err() && parts.version < Version::HTTP_2 && !parts.headers.contains_key(EXPECT) {
            // However far that came, the caller is answered.
            drop(timeout(DISCARD, discard(&mut body)).await);
        }
        read
    }

    async fn plain(&self, headers: &HeaderMap, body: &mut Body) -> Result<Bytes, Error> {
        // Before anything is taken from the socket, which tells a caller who waits for it to send.
        let mut held = self.open(length(headers).unwrap_or_default())?;
        while let Some(frame) = body.frame().await {
            if let Ok(piece) = frame.map_err(broken_off)?.into_data() {
                self.push(&mut held, &piece)?;
            }
        }
        Ok(Bytes::from_owner(held))
    }

    async fn decoded(&self, encoding: Encoding, body: &mut Body) -> Result<Bytes, Error> {
        let wrong = |error: io::Error| match error.downcast::<axum::Error>() {
            Ok(error) => broken_off(error),
            Err(error) => encoding.belied(error),
        };
        let mut held = self.open(0)?;
        let mut reader = StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other));
        let mut decoder = encoding.decoder(&mut reader).await.map_err(wrong)?;
        let mut piece = vec![0; STEP];
        loop {
            let read = decoder.read(&mut piece).await.map_err(wrong)?;
            let Some(piece) = piece.get(..read).filter(|piece| !piece.is_empty()) else { break };
            self.push(&mut held, piece)?;
            // A few bytes may stand for very many, and others want to go on too.
            consume_budget().await;
        }
        drop(decoder);
        if !reader.fill_buf().await.map_err(wrong)?.is_empty() {
            return Err(encoding.belied("it goes on after its end"));
        }
        Ok(Bytes::from_owner(held))
    }

    /// A buffer with room for what is expected.
    fn open(&self, expected: usize) -> Result<Held, Error> {
        let room = self.room(None, expected)?;
        Ok(Held { data: Buffer::new(expected, self.max).map_err(|error| too_many().with_source(error))?, room })
    }

    fn push(&self, held: &mut Held, piece: &[u8]) -> Result<(), Error> {
        held.room = self.room(held.room.take(), held.data.len() + piece.len())?;
        held.data.push(piece).map_err(|error| too_many().with_source(error))
    }

    /// The room of a body of so many bytes, some of which it may have.
    fn room(&self, has: Option<OwnedSemaphorePermit>, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Error> {
        if bytes > self.max {
            return Err(too_large());
        }
        let missing = bytes.div_ceil(UNIT).saturating_sub(has.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if missing == 0 {
            return Ok(has);
        }
        let more = u32::try_from(missing).ok().and_then(|missing| {
            let room = Arc::clone(&self.room);
            room.try_acquire_many_owned(missing).ok()
        });
        let mut more = more.ok_or_else(too_many)?;
        has.into_iter().for_each(|has| more.merge(has));
        Ok(Some(more))
    }
}

/// A body and its room, which is given back with its memory.
struct Held {
    data: Buffer,
    room: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.data.as_ref()
    }
}

fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large() -> Error {
    Error::new(ErrorKind::BodyTooLarge, "the request body is larger than server.max_body allows")
}

fn too_many() -> Error {
    let message = "the bodies of other requests leave no room for this one (server.max_inflight_body); try again";
    Error::new(ErrorKind::Overloaded, message).with_retry_after(COME_AGAIN)
}

fn broken_off(error: axum::Error) -> Error {
    match is_too_large(&error) {
        true => too_large(),
        false => Error::new(ErrorKind::InvalidRequest, "the request body broke off").with_source(error),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<LengthLimitError>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// Takes what is left of a body. What is beyond the limit comes as one error after the other.
async fn discard(body: &mut Body) {
    while let Some(frame) = body.frame().await {
        if frame.is_err_and(|error| !is_too_large(&error)) {
            return;
        }
    }
}
