//! `POST /v1/chat/completions` and `POST /v1/messages`: the same steps, in the caller's dialect.

use std::{mem, sync::Arc, time::Duration};

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
use tokio::time::{Instant, timeout_at};

use super::{Inference, add_headers, error_response};
use crate::gateway::{
    cloud,
    dispatch::meter::{Meter, Metered},
};

/// By which a caller says who goes first where requests wait.
const PRIORITY: HeaderName = HeaderName::from_static("x-mlx-manager-priority");

/// By which proxies are told to pass on a stream as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How long a stream of our own may be silent. Proxies and clients hang up after a minute or more, and a long prompt takes
/// that on a laptop.
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
    // Opened before anything can go wrong: every POST leaves exactly one record.
    let mut meter = inference.dispatch.meter(api, &context);
    let begun = begin(&inference, &mut meter, api, &context, request).await;
    let (request, mut answer) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let response = error_response(api.dialect(), &error, Some(&context.request_id));
            meter.refuse(&error);
            return response;
        }
    };
    let identity =
        Identity { id: context.request_id.to_string(), model: request.model.clone(), created: context.arrived_at };
    let headers = mem::take(&mut answer.headers);
    let silence = answer.keep_alive.then_some(MOST_SILENCE);
    let events = meter.measure(answer);
    let encoder = StreamEncoder::new(&request, identity.clone());
    let builder = BodyBuilder::new(&request, identity);
    let is_stream = request.stream;
    // The answer has begun, so nobody will send the request again: its buffer must not wait for the answer's end.
    drop(request);
    let result = if is_stream {
        Ok(stream_body(events, encoder, silence))
    } else {
        whole_body(events, builder).await.map(Body::from)
    };
    match result {
        Ok(body) => {
            let mut response = Response::new(body);
            let content_type = HeaderValue::from_static(dialect::content_type(is_stream));
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            if is_stream {
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                // nginx gathers an answer before it passes it on, unless it is told not to.
                response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
            }
            add_headers(&mut response, &headers);
            response
        }
        Err(error) => error_response(api.dialect(), &error, Some(&context.request_id)),
    }
}

async fn begin(
    inference: &Inference,
    meter: &mut Meter,
    api: Api,
    context: &Context,
    request: Request,
) -> Result<(Arc<llm::Request>, Answer), Error> {
    let (parts, body) = request.into_parts();
    let body = inference.bodies.read(&parts, body).await?;
    meter.received();
    let request = Arc::new(decode(meter, api, body)?);
    let priority = priority(&parts.headers)?;
    let headers = cloud::forwarded(&parts.headers);
    let answer = inference.dispatch.start(meter, Arc::clone(&request), context, headers, priority).await?;
    Ok((request, answer))
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

/// Events as they come, each a few frames. After an error its frame is the last. With `silence` a frame that says nothing
/// comes whenever nothing else came for so long.
fn stream_body(
    events: impl Stream<Item = Result<Event, Error>> + Send + Unpin + 'static,
    encoder: StreamEncoder,
    silence: Option<Duration>,
) -> Body {
    let frames = stream::unfold(Some((events, encoder)), move |state| async move {
        let (mut events, mut encoder) = state?;
        let began = Instant::now();
        loop {
            // Counted from the last frame and not from the last event, of which many say nothing to the caller.
            let next = match silence {
                Some(silence) => timeout_at(began + silence, events.next()).await,
                None => Ok(events.next().await),
            };
            let Ok(next) = next else { return Some((encoder.keep_alive(), Some((events, encoder)))) };
            match next {
                Some(Ok(event)) => {
                    let frames = encoder.encode(&event);
                    // What says nothing to the caller must not become an empty chunk, which would end the body.
                    if !frames.is_empty() {
                        return Some((frames, Some((events, encoder))));
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
    async fn body(api: Api, silence: Option<Duration>) -> String {
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
        let body = stream_body(Box::pin(events), StreamEncoder::new(&request, identity), silence);
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_silent_for_long() {
        let comment = ": keep-alive\n\n";
        let openai = body(Api::ChatCompletions, Some(MOST_SILENCE)).await;
        let rest = openai.strip_prefix(comment).and_then(|rest| rest.strip_prefix(comment)).unwrap();
        assert!(
            rest.starts_with("data: ") && rest.ends_with("data: [DONE]\n\n") && !rest.contains(comment),
            "{openai}"
        );
        let ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
        let anthropic = body(Api::Messages, Some(MOST_SILENCE)).await;
        assert!(anthropic.starts_with(&ping.repeat(2)) && anthropic.matches(ping).count() == 2, "{anthropic}");
        assert!(!body(Api::ChatCompletions, None).await.contains(comment));
    }
}
