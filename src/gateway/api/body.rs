//! Reading a request's body from the socket into one buffer.

use std::error::Error as _;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header::CONTENT_LENGTH},
};
use http_body_util::{BodyExt, LengthLimitError};
use mlx_manager_llm::{Error, ErrorKind};

/// Reads a body that is at most `max` bytes large.
///
/// # Errors
/// [`ErrorKind::BodyTooLarge`] when it is larger, [`ErrorKind::InvalidRequest`] when it breaks off.
pub(super) async fn read(headers: &HeaderMap, mut body: Body, max: usize) -> Result<Bytes, Error> {
    let announced = length(headers);
    if announced.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let mut data = Vec::with_capacity(announced.unwrap_or_default());
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.map_err(broken_off)?.into_data() {
            data.extend_from_slice(&piece);
        }
    }
    Ok(data.into())
}

fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large() -> Error {
    Error::new(ErrorKind::BodyTooLarge, "the request body is larger than server.max_body allows")
}

fn broken_off(error: axum::Error) -> Error {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<LengthLimitError>() {
            return too_large();
        }
        cause = inner.source();
    }
    Error::new(ErrorKind::InvalidRequest, "the request body broke off").with_source(error)
}
