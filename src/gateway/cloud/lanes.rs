//! Connections over HTTP/2: where the streams of one are all taken, another is opened.
//!
//! One connection carries many calls, but calls beyond the number of streams that the provider allows on it wait inside the client for
//! as long as others are being answered. So there are several *lanes*, each a connection of its own. How many streams a connection
//! has is told by nobody: a call whose body isn't asked for waits for a stream. Nothing of it went out, so it is made on another
//! lane, and how many calls the full lane had is remembered.

use std::{
    error::Error as _,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Response;
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    body::{Outgoing, Sent},
    connections::{Letter, Unanswered},
    dial::{Dialed, Dialer, Io},
};

/// The most lanes of a provider. Calls beyond what they carry wait for a stream.
const MOST_LANES: usize = 64;
/// How long a call may wait for a stream before it changes lanes: so many looks, so far apart. Looks and not time alone, since on
/// a busy machine whatever would have let it go is late too. One that changes lanes for nothing costs a connection.
const LOOKS: u32 = 8;
const BETWEEN_LOOKS: Duration = Duration::from_millis(25);
/// How often a call may change lanes.
const MOST_CHANGES: u32 = 6;
/// How long after a refused call its lane is judged, so that others which were sent with it have been refused as well.
const REFUSALS: Duration = Duration::from_millis(20);
/// How long the number of streams is remembered. A provider may allow more later.
const MEMORY: Duration = Duration::from_secs(60);
/// How long a lane is kept that nobody is on.
const IDLE: Duration = Duration::from_secs(90);

/// The window of one stream, which is what a slow reader lets pile up here.
const STREAM_WINDOW: u32 = 512 * 1024;
/// That of a connection, so large that the windows of slow readers never fill it, and their neighbours' answers come on.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// How often a connection has to prove that it is alive, and how long it may take for that.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head of an answer that the client takes, in bytes.
const MAX_HEAD: u32 = 1024 * 1024;

/// All connections over HTTP/2 to one provider.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    state: Mutex<State>,
    /// Held by whoever opens a lane, so that those who come meanwhile wait for it and open none of their own.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    lanes: Vec<Arc<Lane>>,
    /// How many streams a connection was found to have, and when.
    streams: Option<(usize, Instant)>,
}

/// A connection, and who is on it.
#[derive(Debug)]
struct Lane {
    sender: SendRequest<Outgoing>,
    /// From the choice of this lane to the end of the answer.
    calls: AtomicUsize,
    /// Those of the calls whose request went out.
    open: AtomicUsize,
    left: Mutex<Instant>,
}

impl Lane {
    async fn new(io: Box<dyn Io>) -> hyper::Result<Self> {
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .handshake(io)
            .await?;
        // Its end is seen by the calls that are on it. Nothing waits for it: it ends with the last who may send.
        TokioExecutor::new().execute(async move { drop(connection.await) });
        let (calls, open) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Self { sender, calls, open, left: Mutex::new(Instant::now()) })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether somebody is on it, or was not long ago.
    fn is_wanted(&self) -> bool {
        self.calls() > 0 || self.left.lock().elapsed() < IDLE
    }

    /// Resolves when a call that `may_change` lanes has waited for a stream in vain, and has been withdrawn.
    async fn is_full(&self, guard: &mut LaneGuard, sent: &Sent, may_change: bool) {
        let mut looks = 0;
        while timeout(BETWEEN_LOOKS, sent.begun()).await.is_err() {
            // Where no stream is open none is missing.
            looks = if self.open() > 0 { looks + 1 } else { 0 };
            if may_change && looks >= LOOKS && sent.withdraw() {
                return;
            }
        }
        guard.opened();
        std::future::pending().await
    }
}

/// How one try of a call on one lane went.
enum Try {
    Answered(Response<Incoming>),
    /// It waited for a stream, and nothing of it went out.
    Full,
    /// The provider says that it did nothing of it.
    Refused(hyper::Error),
    /// The connection is no more, and nothing of it went out.
    Gone(hyper::Error),
    Failed(hyper::Error),
}

/// What becomes of a call that is to be made over HTTP/2.
pub(super) enum Made {
    Answered(Response<Incoming>, LaneGuard),
    /// The provider spoke HTTP/1.1 when it was called.
    Otherwise(Box<dyn Io>),
}

impl Lanes {
    /// Makes a call, and waits until `limit` for the head of its answer.
    ///
    /// # Errors
    /// When none came.
    pub(super) async fn send(
        self: &Arc<Self>,
        dialer: &Dialer,
        letter: &Letter,
        limit: Instant,
    ) -> Result<Made, Unanswered> {
        let mut avoided: Vec<Arc<Lane>> = Vec::new();
        let mut changes = 0;
        loop {
            let boarded = timeout_at(limit, self.board(dialer, &avoided)).await;
            let mut guard = match boarded.map_err(|_| Unanswered::TookTooLong)?? {
                Boarded::On(guard) => guard,
                Boarded::Otherwise(io) => return Ok(Made::Otherwise(io)),
            };
            let lane = Arc::clone(&guard.lane);
            match timeout_at(limit, post(&mut guard, letter, changes < MOST_CHANGES)).await {
                Err(_) => {
                    if guard.opened {
                        // Its connection may have gone dead without a word.
                        guard.retire();
                    }
                    return Err(Unanswered::TookTooLong);
                }
                Ok(Try::Answered(response)) => return Ok(Made::Answered(response, guard)),
                Ok(Try::Failed(error)) => return Err(Unanswered::Failed(error)),
                Ok(Try::Gone(error) | Try::Refused(error))
                    if changes >= MOST_CHANGES || Instant::now() + REFUSALS >= limit =>
                {
                    return Err(Unanswered::Failed(error));
                }
                Ok(Try::Full) => self.learn(lane.open()),
                Ok(Try::Gone(_)) => guard.retire(),
                Ok(Try::Refused(_)) => {
                    drop(guard);
                    sleep(REFUSALS).await;
                    // Alone it was refused for another reason than want of streams.
                    if lane.open() == 0 {
                        changes += MOST_CHANGES / 2;
                        continue;
                    }
                    self.learn(lane.open());
                }
            }
            changes += 1;
            avoided.push(lane);
        }
    }

    /// A place on a lane: the first that has room and is none of those `avoided`, else a new one, else the emptiest.
    async fn board(self: &Arc<Self>, dialer: &Dialer, avoided: &[Arc<Lane>]) -> Result<Boarded, Unanswered> {
        if let Some(guard) = self.find(avoided, false) {
            return Ok(Boarded::On(guard));
        }
        let _opening = self.opening.lock().await;
        if let Some(guard) = self.find(avoided, false) {
            return Ok(Boarded::On(guard));
        }
        if self.state.lock().lanes.len() >= MOST_LANES
            && let Some(guard) = self.find(&[], true)
        {
            return Ok(Boarded::On(guard));
        }
        match Box::pin(dialer.dial(true)).await.map_err(Unanswered::NotConnected)? {
            Dialed { io, is_http2: false } => Ok(Boarded::Otherwise(io)),
            Dialed { io, .. } => Ok(Boarded::On(self.add(io).await?)),
        }
    }

    /// Opens a lane over a connection that was made, with a place on it for who made it.
    pub(super) async fn add(self: &Arc<Self>, io: Box<dyn Io>) -> Result<LaneGuard, Unanswered> {
        let lane = Lane::new(io).await.map_err(Unanswered::Failed)?;
        let lane = Arc::new(lane);
        lane.calls.fetch_add(1, Ordering::Relaxed);
        self.state.lock().lanes.push(Arc::clone(&lane));
        Ok(LaneGuard { lanes: Arc::clone(self), lane, opened: false })
    }

    /// A place on a lane that there is, be it one without room if it has to be.
    fn find(self: &Arc<Self>, avoided: &[Arc<Lane>], crowded: bool) -> Option<LaneGuard> {
        let mut state = self.state.lock();
        state.lanes.retain(|lane| !lane.sender.is_closed() && lane.is_wanted());
        let streams = state.streams.filter(|(_, learned)| learned.elapsed() < MEMORY).map(|(streams, _)| streams);
        let has_room = |lane: &&Arc<Lane>| {
            let room = streams.is_none_or(|streams| lane.calls() < streams);
            room && !avoided.iter().any(|other| Arc::ptr_eq(other, lane))
        };
        let lane = match crowded {
            false => state.lanes.iter().find(has_room)?,
            true => state.lanes.iter().min_by_key(|lane| lane.calls())?,
        };
        // Under the lock, so that no other takes the same place.
        lane.calls.fetch_add(1, Ordering::Relaxed);
        Some(LaneGuard { lanes: Arc::clone(self), lane: Arc::clone(lane), opened: false })
    }

    fn learn(&self, streams: usize) {
        self.state.lock().streams = Some((streams.max(1), Instant::now()));
    }

    /// Closes what nobody has been on for long.
    pub(super) fn prune(&self) {
        self.state.lock().lanes.retain(|lane| lane.is_wanted());
    }
}

/// Where a call is to be made.
enum Boarded {
    On(LaneGuard),
    /// The provider chose HTTP/1.1.
    Otherwise(Box<dyn Io>),
}

/// Posts on the lane of `guard`. Where it `may_change`, waiting for a stream comes to an end.
async fn post(guard: &mut LaneGuard, letter: &Letter, may_change: bool) -> Try {
    let lane = Arc::clone(&guard.lane);
    let (body, sent) = Outgoing::told(&letter.pieces);
    let answer = lane.sender.clone().try_send_request(letter.clone().with(body));
    let answer = {
        let (answer, full) = (pin!(answer), pin!(lane.is_full(guard, &sent, may_change)));
        tokio::select! {
            biased;
            answer = answer => answer,
            () = full => return Try::Full,
        }
    };
    guard.opened();
    match answer {
        Ok(response) => Try::Answered(response),
        Err(mut error) => {
            let is_whole = error.take_message().is_some();
            let error = error.into_error();
            match is_unprocessed(&error) {
                true => Try::Refused(error),
                false if is_whole => Try::Gone(error),
                false => Try::Failed(error),
            }
        }
    }
}

/// Whether the provider said that it did nothing of a call, which may then be sent again without being done twice.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            let leaving = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            return error.is_remote() && (refused || leaving);
        }
        cause = error.source();
    }
    false
}

/// A call's place on its lane, until it is dropped.
#[derive(Debug)]
pub(super) struct LaneGuard {
    lanes: Arc<Lanes>,
    lane: Arc<Lane>,
    opened: bool,
}

impl LaneGuard {
    fn opened(&mut self) {
        if !std::mem::replace(&mut self.opened, true) {
            self.lane.open.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets no further call on this lane. Those that are there go on.
    fn retire(&self) {
        self.lanes.state.lock().lanes.retain(|lane| !Arc::ptr_eq(lane, &self.lane));
    }
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        *self.lane.left.lock() = Instant::now();
        self.lane.calls.fetch_sub(1, Ordering::Relaxed);
        if self.opened {
            self.lane.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
