//! `POST /v1/chat/completions` and `POST /v1/messages`: the same steps, in the caller's dialect.

use std::{error::Error as _, mem, sync::Arc};

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
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, LengthLimitError};
use mlx_manager_dialect as dialect;
use mlx_manager_dialect::{BodyBuilder, Identity, StreamEncoder};
use mlx_manager_llm as llm;
use mlx_manager_llm::{Answer, Api, Context, Error, ErrorKind, Priority};
use mlx_manager_signal::event::RequestDecoded;

use super::{add_headers, error_response};
use crate::gateway::{
    cloud,
    dispatch::{
        Dispatch,
        meter::{Meter, Metered},
    },
};

/// By which a caller says who goes first where requests wait.
const PRIORITY: HeaderName = HeaderName::from_static("x-mlx-manager-priority");

pub(super) async fn chat_completions(
    State(dispatch): State<Arc<Dispatch>>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    infer(dispatch, Api::ChatCompletions, context, request).await
}

pub(super) async fn messages(
    State(dispatch): State<Arc<Dispatch>>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    infer(dispatch, Api::Messages, context, request).await
}

async fn infer(dispatch: Arc<Dispatch>, api: Api, context: Context, request: Request) -> Response {
    // Opened before anything can go wrong: every POST leaves exactly one record.
    let mut meter = dispatch.meter(api, &context);
    let begun = begin(&dispatch, &mut meter, api, &context, request).await;
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
    let events = meter.measure(answer);
    let result = if request.stream {
        Ok(stream_body(events, StreamEncoder::new(&request, identity)))
    } else {
        whole_body(events, BodyBuilder::new(&request, identity)).await.map(Body::from)
    };
    match result {
        Ok(body) => {
            let mut response = Response::new(body);
            let content_type = HeaderValue::from_static(dialect::content_type(request.stream));
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            if request.stream {
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            }
            add_headers(&mut response, &headers);
            response
        }
        Err(error) => error_response(api.dialect(), &error, Some(&context.request_id)),
    }
}

async fn begin(
    dispatch: &Dispatch,
    meter: &mut Meter,
    api: Api,
    context: &Context,
    request: Request,
) -> Result<(Arc<llm::Request>, Answer), Error> {
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    meter.received();
    let request = match dialect::decode_head(api, &body) {
        Ok(request) => Arc::new(request),
        Err(error) => {
            dialect::model_of(&body).into_iter().for_each(|model| meter.named(&model));
            return Err(error);
        }
    };
    meter.decoded(&request);
    RequestDecoded { model: meter.model(), stream: request.stream, bytes: body.len() }.emit();
    let priority = priority(&parts.headers)?;
    let headers = cloud::forwarded(&parts.headers);
    let answer = dispatch.start(meter, Arc::clone(&request), context, headers, priority).await?;
    Ok((request, answer))
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

async fn read(body: Body) -> Result<Bytes, Error> {
    let error = match body.collect().await {
        Ok(body) => return Ok(body.to_bytes()),
        Err(error) => error,
    };
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<LengthLimitError>() {
            return Err(Error::new(ErrorKind::BodyTooLarge, "the request body is larger than server.max_body allows"));
        }
        cause = inner.source();
    }
    Err(Error::new(ErrorKind::InvalidRequest, "the request body broke off").with_source(error))
}

/// Events as they come, each a few frames. After an error its frame is the last.
fn stream_body(events: Metered, encoder: StreamEncoder) -> Body {
    let frames = stream::unfold(Some((events, encoder)), |state| async move {
        let (mut events, mut encoder) = state?;
        loop {
            match events.next().await {
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
