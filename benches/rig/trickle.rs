//! A provider whose streams go on and on: a piece of text now and then.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::{net::TcpListener, time::sleep};

use super::{provider::frames, serve::serve};

/// Between two pieces of a stream.
pub const PACE: Duration = Duration::from_secs(1);
/// Streams begin in different parts of it.
const STEP: Duration = Duration::from_millis(7);

/// Serves on `listen` for as long as the process lives.
pub async fn trickle(listen: SocketAddr) -> Result<()> {
    let frames: Arc<[Bytes]> = frames().into_iter().take(2).map(Bytes::from).collect();
    let begun = Arc::<AtomicUsize>::default();
    let listener = TcpListener::bind(listen).await?;
    serve(listener, move |request: Request<Incoming>| {
        let (frames, number) = (Arc::clone(&frames), begun.fetch_add(1, Ordering::Relaxed));
        async move {
            request.into_body().collect().await?;
            // The role at once, and then the same piece of text for ever.
            let pieces = stream::unfold(0_usize, move |sent| {
                let frames = Arc::clone(&frames);
                async move {
                    match sent {
                        0 => {}
                        1 => sleep(STEP * (number % 143) as u32).await,
                        _ => sleep(PACE).await,
                    }
                    Some((Ok::<_, Infallible>(Frame::data(frames[sent.min(1)].clone())), sent + 1))
                }
            });
            let body = StreamBody::new(pieces.boxed());
            Ok(Response::builder().header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8").body(body)?)
        }
    })
    .await;
    Ok(())
}
