//! `POST /v1/chat/completions` and `POST /v1/messages`: the same steps, in the caller's dialect.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
};
use futures_util::{Stream, StreamExt, stream};
use mlx_manager_dialect as dialect;
use mlx_manager_dialect::{BodyBuilder, Identity, StreamEncoder};
use mlx_manager_llm as llm;
use mlx_manager_llm::{Answer, Api, Context, Error, ErrorKind, Event, Priority};
use mlx_manager_signal::event::RequestDecoded;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Inference, add_headers, error_response};
use crate::gateway::{
    cloud,
    dispatch::{
        Ask, Dispatch,
        meter::{Meter, Metered},
    },
};

/// By which a caller says who goes first where requests wait.
const PRIORITY: HeaderName = HeaderName::from_static("x-mlx-manager-priority");

/// By which proxies are told to pass on a stream as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How long a stream may be silent. Proxies and clients hang up after half a minute or more, and a long prompt takes that on a
/// laptop, as thoughts that aren't shown do anywhere.
const MOST_SILENCE: Duration = Duration::from_secs(5);

pub(super) async fn chat_completions(
    State(inference): State<Inference>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    infer(inference, Api::ChatCompletions, context, request).await
}

pub(super) async fn messages(
    State(inference): State<Inference>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    infer(inference, Api::Messages, context, request).await
}

async fn infer(inference: Inference, api: Api, context: Context, request: Request) -> Response {
    let dispatch = Arc::clone(&inference.dispatch);
    // Opened before anything can go wrong: every POST leaves exactly one record.
    let mut meter = dispatch.meter(api, &context);
    let ask = match understand(&inference, &mut meter, api, &context, request).await {
        Ok(ask) => ask,
        Err(error) => return refuse(meter, &error, api, &context),
    };
    let identity =
        Identity { id: context.request_id.to_string(), model: ask.request.model.clone(), created: context.arrived_at };
    let commit_after = dispatch.stream_commit_after();
    if ask.request.stream {
        let encoder = StreamEncoder::new(&ask.request, identity);
        let head_sent = meter.head_sent();
        let mut start = Box::pin(start(dispatch, meter, ask));
        return match timeout(commit_after, &mut start).await {
            Ok((meter, Ok(mut answer))) => {
                let headers = mem::take(&mut answer.headers);
                stream_response(stream_body(meter.measure(answer), encoder, false), &headers)
            }
            Ok((meter, Err(error))) => refuse(meter, &error, api, &context),
            Err(_) => {
                // Another target may yet answer, as long as no content was sent; but somebody on the way would hang up.
                head_sent.store(true, Ordering::Relaxed);
                stream_response(stream_body(Box::pin(begun_later(start)), encoder, true), &HeaderMap::new())
            }
        };
    }
    let builder = BodyBuilder::new(&ask.request, identity);
    let (meter, answer) = start(dispatch, meter, ask).await;
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(error) => return refuse(meter, &error, api, &context),
    };
    let headers = mem::take(&mut answer.headers);
    match whole_body(meter.measure(answer), builder).await {
        Ok(body) => response(Body::from(body), false, &headers),
        Err(error) => error_response(api.dialect(), &error, Some(&context.request_id)),
    }
}

/// Asks the targets, and gives the meter back, since a refusal is measured too.
async fn start(dispatch: Arc<Dispatch>, mut meter: Box<Meter>, ask: Ask) -> (Box<Meter>, Result<Answer, Error>) {
    let answer = dispatch.start(&mut meter, ask).await;
    (meter, answer)
}

/// The events of an answer that hasn't begun yet.
fn begun_later(
    start: impl Future<Output = (Box<Meter>, Result<Answer, Error>)> + Send + 'static,
) -> impl Stream<Item = Result<Event, Error>> + Send {
    let begun = async move {
        match start.await {
            (meter, Ok(answer)) => meter.measure(answer).boxed(),
            (meter, Err(error)) => {
                meter.refuse(&error);
                stream::once(std::future::ready(Err(error))).boxed()
            }
        }
    };
    stream::once(begun).flatten()
}

fn refuse(meter: Box<Meter>, error: &Error, api: Api, context: &Context) -> Response {
    let response = error_response(api.dialect(), error, Some(&context.request_id));
    meter.refuse(error);
    response
}

fn response(body: Body, stream: bool, headers: &HeaderMap) -> Response {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(dialect::content_type(stream));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    add_headers(&mut response, headers);
    response
}

fn stream_response(body: Body, headers: &HeaderMap) -> Response {
    let mut response = response(body, true, headers);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx gathers an answer before it passes it on, unless it is told not to.
    response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

async fn understand(
    inference: &Inference,
    meter: &mut Meter,
    api: Api,
    context: &Context,
    request: Request,
) -> Result<Ask, Error> {
    let (parts, body) = request.into_parts();
    let body = inference.bodies.read(&parts, body).await?;
    meter.received();
    let request = Arc::new(decode(meter, api, body)?);
    let priority = priority(&parts.headers)?;
    let passed = cloud::Passed::of(&parts);
    Ok(Ask { request, context: context.clone(), passed, priority })
}

fn decode(meter: &mut Meter, api: Api, body: Bytes) -> Result<llm::Request, Error> {
    let request = dialect::decode_head(api, body.clone()).inspect_err(|_| {
        dialect::model_of(&body).into_iter().for_each(|model| meter.named(&model));
    })?;
    meter.decoded(&request);
    RequestDecoded { model: meter.model(), stream: request.stream, bytes: body.len() }.emit();
    Ok(request)
}

/// What the caller says of who goes first where requests wait.
fn priority(headers: &HeaderMap) -> Result<Option<Priority>, Error> {
    let said: Vec<_> = headers.get_all(PRIORITY).iter().map(|value| value.to_str().unwrap_or("?")).collect();
    if said.is_empty() {
        return Ok(None);
    }
    let said = said.join(", ");
    said.parse().map(Some).map_err(|_| {
        let (said, allowed) = (said.chars().take(64).collect::<String>(), Priority::NAMES.join(", "));
        let message = format!("the header {PRIORITY} says {said:?}; allowed: {allowed}");
        Error::new(ErrorKind::InvalidRequest, message)
    })
}

/// Events as they come, each a few frames. After an error its frame is the last. A frame that says nothing comes whenever
/// nothing else came for long, and at once when that was so before the beginning.
fn stream_body(
    events: impl Stream<Item = Result<Event, Error>> + Send + Unpin + 'static,
    encoder: StreamEncoder,
    late: bool,
) -> Body {
    let silence = if late { Duration::ZERO } else { MOST_SILENCE };
    let frames = stream::unfold(Some((events, encoder, silence)), move |state| async move {
        let (mut events, mut encoder, silence) = state?;
        let began = Instant::now();
        loop {
            // Counted from the last frame and not from the last event, of which many say nothing to the caller.
            let Ok(next) = timeout_at(began + silence, events.next()).await else {
                return Some((encoder.keep_alive(), Some((events, encoder, MOST_SILENCE))));
            };
            match next {
                Some(Ok(event)) => {
                    let frames = encoder.encode(&event);
                    // What says nothing to the caller must not become an empty chunk, which would end the body.
                    if !frames.is_empty() {
                        return Some((frames, Some((events, encoder, MOST_SILENCE))));
                    }
                }
                Some(Err(error)) => return Some((encoder.error(&error), None)),
                None => return Some((encoder.finish(), None)),
            }
        }
    });
    let frames = frames.filter(|frames| std::future::ready(!frames.is_empty()));
    Body::from_stream(frames.map(Ok::<_, std::convert::Infallible>))
}

async fn whole_body(mut events: Metered, mut builder: BodyBuilder) -> Result<Bytes, Error> {
    while let Some(event) = events.next().await {
        builder.push(event?);
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use mlx_manager_llm::{FinishReason, Usage};

    use super::*;

    /// What a stream of an answer says whose prompt takes long.
    async fn body(api: Api, late: bool) -> String {
        let body = br#"{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
        let request = dialect::decode_head(api, Bytes::from_static(body)).unwrap();
        let identity = Identity { id: "1".into(), model: "m".into(), created: jiff::Timestamp::UNIX_EPOCH };
        let events = [
            Event::Started { id: None, model: None, usage: Usage::default() },
            Event::Text("hi".into()),
            Event::Finished { reason: FinishReason::Stop, stop_sequence: None },
        ];
        let events = stream::iter(events).then(|event| async move {
            if matches!(event, Event::Text(_)) {
                tokio::time::sleep(Duration::from_secs(12)).await;
            }
            Ok(event)
        });
        let body = stream_body(Box::pin(events), StreamEncoder::new(&request, identity), late);
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_silent_for_long() {
        let comment = ": keep-alive\n\n";
        let openai = body(Api::ChatCompletions, false).await;
        let rest = openai.strip_prefix(comment).and_then(|rest| rest.strip_prefix(comment)).unwrap();
        assert!(
            rest.starts_with("data: ") && rest.ends_with("data: [DONE]\n\n") && !rest.contains(comment),
            "{openai}"
        );
        let ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
        let anthropic = body(Api::Messages, false).await;
        assert!(anthropic.starts_with(&ping.repeat(2)) && anthropic.matches(ping).count() == 2, "{anthropic}");
        let late = body(Api::Messages, true).await;
        assert!(late.starts_with(&ping.repeat(3)) && late.matches(ping).count() == 3, "at once: {late}");
    }
}
