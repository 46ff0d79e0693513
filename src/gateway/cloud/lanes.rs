//! Ways to one provider: where one connection's streams are all taken, another connection is opened.
//!
//! Over HTTP/2 a client has one connection to a provider, and calls beyond the number of streams that the provider allows on it
//! wait inside the client for as long as others are being answered. So there are several *lanes*, each with a client and thus a
//! connection of its own. How many streams a connection has is told by nobody: a call whose body isn't asked for though its
//! lane has a connection waits for a stream. Nothing of it went out, so it is made on another lane, and how many calls the full
//! lane had is remembered.
//!
//! Over HTTP/1.1 a client opens as many connections as it needs, and there is one lane.

use std::{
    error::Error as _,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, Version, header};
use parking_lot::Mutex;
use reqwest::{Client, ClientBuilder, Response, Url};
use tokio::{
    task::yield_now,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    body::{Outgoing, Sent},
    dial::Dials,
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
/// How long a lane beyond the first, and an idle connection, is kept.
const IDLE: Duration = Duration::from_secs(90);

/// The window of one stream, which is what a slow reader lets pile up here.
const STREAM_WINDOW: u32 = 512 * 1024;
/// That of a connection, so large that the windows of slow readers never fill it, and their neighbours' answers come on.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// How often a connection over HTTP/2 has to prove that it is alive, and how long it may take for that.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is silent before TCP asks whether the other side is there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);
/// After how many chunks that were there already an answer lets others go first. What reads a connection may stand behind who
/// takes an answer from it, and with it the answers of all others there.
const CHUNKS: usize = 16;
/// The largest head of an answer, in bytes. The client itself gives up somewhat above it over HTTP/1.1, and at four times that
/// over HTTP/2.
const MAX_HEAD: usize = 256 * 1024;

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// No head of one came in time.
    TookTooLong,
    /// Its head has more than [`MAX_HEAD`] bytes.
    HeadTooLarge,
    /// The provider can't be reached, or the connection broke.
    Failed(reqwest::Error),
}

/// All ways to one provider.
#[derive(Debug)]
pub(super) struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connect_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lanes: Vec<Arc<Lane>>,
    /// How many streams a connection was found to have, and when.
    streams: Option<(usize, Instant)>,
}

/// A client of its own, and who is on it.
#[derive(Debug)]
struct Lane {
    client: Client,
    dials: Dials,
    /// From the choice of this lane to the end of the answer.
    calls: AtomicUsize,
    /// Those of the calls whose request went out.
    open: AtomicUsize,
    /// Whether its last answer came over HTTP/1.1.
    wide: AtomicBool,
    left: Mutex<Instant>,
}

impl Lane {
    fn new(connect_timeout: Duration) -> reqwest::Result<Self> {
        let dials = Dials::default();
        let client = client(connect_timeout).connector_layer(dials.clone()).build()?;
        let (calls, open) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Self { client, dials, calls, open, wide: AtomicBool::new(false), left: Mutex::new(Instant::now()) })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether it takes any number of calls, as far as is known.
    fn is_wide(&self) -> bool {
        self.wide.load(Ordering::Relaxed)
    }

    /// Resolves when a call that `may_change` lanes has waited for a stream in vain, and has been withdrawn.
    async fn is_full(&self, guard: &mut LaneGuard, sent: &Sent, may_change: bool) {
        let mut looks = 0;
        while timeout(BETWEEN_LOOKS, sent.begun()).await.is_err() {
            // Where no stream is open none is missing, and the call waits for a connection.
            let waits = self.open() > 0 && self.dials.are_quiet_for(BETWEEN_LOOKS);
            looks = if waits { looks + 1 } else { 0 };
            if may_change && looks >= LOOKS && sent.withdraw() {
                return;
            }
        }
        guard.opened();
        std::future::pending().await
    }
}

/// A client with one connection, as every lane has it.
fn client(connect_timeout: Duration) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("mlx-manager/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(4 * MAX_HEAD as u32)
        // Following one would send the request, and its key, to another place than the user configured.
        .redirect(reqwest::redirect::Policy::none())
}

/// How one try of a call on one lane went.
enum Try {
    Answered(Response),
    /// It waited for a stream, and nothing of it went out.
    Full,
    /// The provider says that it did nothing of it.
    Refused(reqwest::Error),
    Failed(Unanswered),
}

impl Lanes {
    /// With one lane; connects to nothing.
    ///
    /// # Errors
    /// When a client can't be made.
    pub(super) fn new(connect_timeout: Duration) -> reqwest::Result<Self> {
        let state = State { lanes: vec![Arc::new(Lane::new(connect_timeout)?)], streams: None };
        Ok(Self(Arc::new(Shared { connect_timeout, state: Mutex::new(state) })))
    }

    /// Posts a request, and waits until `limit` for the head of its answer.
    ///
    /// # Errors
    /// When none came.
    pub(super) async fn send(
        &self,
        url: &Url,
        headers: &HeaderMap,
        pieces: &[Bytes],
        limit: Instant,
    ) -> Result<Answering, Unanswered> {
        let mut avoided: Vec<Arc<Lane>> = Vec::new();
        let mut changes = 0;
        loop {
            let mut guard = self.0.board(&avoided).map_err(Unanswered::Failed)?;
            let lane = Arc::clone(&guard.lane);
            let tried = timeout_at(limit, post(&mut guard, url, headers, pieces, changes < MOST_CHANGES)).await;
            match tried {
                Err(_) => {
                    if guard.opened && !lane.is_wide() {
                        // Its connection may have gone dead without a word.
                        guard.retire();
                    }
                    return Err(Unanswered::TookTooLong);
                }
                Ok(Try::Answered(response)) => return Ok(Answering { response, guard }),
                Ok(Try::Failed(why)) => return Err(why),
                Ok(Try::Full) => self.0.learn(lane.open()),
                Ok(Try::Refused(error)) if changes >= MOST_CHANGES || Instant::now() + REFUSALS >= limit => {
                    return Err(Unanswered::Failed(error));
                }
                Ok(Try::Refused(_)) => {
                    drop(guard);
                    sleep(REFUSALS).await;
                    // Alone it was refused for another reason than want of streams.
                    if lane.open() == 0 {
                        changes += MOST_CHANGES / 2;
                        continue;
                    }
                    self.0.learn(lane.open());
                }
            }
            changes += 1;
            avoided.push(lane);
        }
    }
}

/// Posts on the lane of `guard`. Where it `may_change`, waiting for a stream comes to an end.
async fn post(guard: &mut LaneGuard, url: &Url, headers: &HeaderMap, pieces: &[Bytes], may_change: bool) -> Try {
    let lane = Arc::clone(&guard.lane);
    let (body, sent) = Outgoing::new(pieces);
    let answer = lane.client.post(url.clone()).headers(headers.clone()).body(body).send();
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
        Ok(response) => {
            lane.wide.store(response.version() != Version::HTTP_2, Ordering::Relaxed);
            let head: usize = response.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            if head > MAX_HEAD { Try::Failed(Unanswered::HeadTooLarge) } else { Try::Answered(response) }
        }
        Err(error) if is_unprocessed(&error) => Try::Refused(error),
        Err(error) => Try::Failed(Unanswered::Failed(error)),
    }
}

/// Whether the provider said that it did nothing of a call, which may then be sent again without being done twice.
fn is_unprocessed(error: &reqwest::Error) -> bool {
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

impl Shared {
    /// Chooses a lane: the first that has room and is none of those `avoided`, else a new one, else the emptiest.
    fn board(self: &Arc<Self>, avoided: &[Arc<Lane>]) -> reqwest::Result<LaneGuard> {
        let mut state = self.state.lock();
        let mut is_first = true;
        state
            .lanes
            .retain(|lane| std::mem::take(&mut is_first) || lane.calls() > 0 || lane.left.lock().elapsed() < IDLE);
        let streams = state.streams.filter(|(_, learned)| learned.elapsed() < MEMORY).map(|(streams, _)| streams);
        let has_room = |lane: &&Arc<Lane>| {
            let room = streams.is_none_or(|streams| lane.calls() < streams) || lane.is_wide();
            room && !avoided.iter().any(|other| Arc::ptr_eq(other, lane))
        };
        let lane = match state.lanes.iter().find(has_room) {
            Some(lane) => Arc::clone(lane),
            None if state.lanes.len() < MOST_LANES => {
                let lane = Arc::new(Lane::new(self.connect_timeout)?);
                state.lanes.push(Arc::clone(&lane));
                lane
            }
            None => match state.lanes.iter().min_by_key(|lane| lane.calls()) {
                Some(lane) => Arc::clone(lane),
                None => Arc::new(Lane::new(self.connect_timeout)?),
            },
        };
        // Under the lock, so that no other takes the same place.
        lane.calls.fetch_add(1, Ordering::Relaxed);
        Ok(LaneGuard { shared: Arc::clone(self), lane, opened: false })
    }

    fn learn(&self, streams: usize) {
        self.state.lock().streams = Some((streams.max(1), Instant::now()));
    }
}

/// A call's place on its lane, until it is dropped.
#[derive(Debug)]
pub(super) struct LaneGuard {
    shared: Arc<Shared>,
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
        self.shared.state.lock().lanes.retain(|lane| !Arc::ptr_eq(lane, &self.lane));
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

/// An answer whose head has come. It keeps its call's place on its lane.
#[derive(Debug)]
pub(super) struct Answering {
    response: Response,
    guard: LaneGuard,
}

impl Answering {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Whether its body ends with its connection, and nothing says how long it is.
    pub(super) fn ends_with_connection(&self) -> bool {
        let has = |name| self.response.headers().contains_key(name);
        self.response.version() < Version::HTTP_2 && !has(header::CONTENT_LENGTH) && !has(header::TRANSFER_ENCODING)
    }

    /// Its body as it comes.
    pub(super) fn bytes_stream(self) -> impl Stream<Item = reqwest::Result<Bytes>> + Send {
        let Self { response, guard } = self;
        let mut taken = 0_usize;
        response.bytes_stream().then(move |chunk| {
            let _: &LaneGuard = &guard;
            taken += 1;
            let is_long = taken.is_multiple_of(CHUNKS);
            async move {
                if is_long {
                    yield_now().await;
                }
                chunk
            }
        })
    }
}
