//! A batch as a unary gRPC call. Tonic speaks the protocol, and reqwest carries it as it does HTTP: the same trust in
//! certificates, and connections that are reused and made anew.

use std::{error::Error as _, io::Read, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use http::{Uri, uri::PathAndQuery};
use http_body_util::BodyExt;
use mlx_manager_config::{OtlpConfig, Signal};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
};
use tonic_types::StatusExt;

use super::{answer::Answer, endpoint::Endpoint, spool::Batch};

/// Makes a client fit to carry gRPC: HTTP/2 from the first byte.
pub(super) fn prepare(client: reqwest::ClientBuilder, config: &OtlpConfig) -> reqwest::ClientBuilder {
    let client = client
        .http2_prior_knowledge()
        .no_gzip()
        // A dead connection would swallow one call after the other, because a call that ran out of time leaves it open.
        // So a call that waits has it pinged; few pings per call, as servers turn away who pings too often.
        .http2_keep_alive_interval(config.timeout / 2)
        .http2_keep_alive_timeout(config.timeout);
    // Proxies forward HTTP/1.1 only; what is encrypted goes through them unread.
    if config.endpoint.starts_with("https:") { client } else { client.no_proxy() }
}

/// Sends a batch once.
pub(super) async fn call(endpoint: &Endpoint, batch: &Batch) -> Answer {
    let (Ok(body), Ok(origin)) = (plain(batch), endpoint.url.parse::<Uri>()) else {
        return Answer::Refused("the batch can't be sent: it is damaged".to_owned());
    };
    let carrier = tower::service_fn(|request| carry(endpoint.client.clone(), endpoint.timeout, request));
    let mut request = Request::new(body);
    *request.metadata_mut() = MetadataMap::from_headers(endpoint.headers.clone());
    request.set_timeout(endpoint.timeout);
    match Grpc::with_origin(carrier, origin).unary(request, method(batch.signal), Encoded).await {
        Ok(response) => Answer::taken(response.get_ref(), &endpoint.headers),
        Err(status) => judge(&status),
    }
}

/// One HTTP/2 request and its response.
async fn carry(
    client: reqwest::Client,
    timeout: Duration,
    request: http::Request<tonic::body::Body>,
) -> Result<http::Response<reqwest::Body>, Status> {
    let failed = |error: reqwest::Error| Status::from_error(error.without_url().into());
    let (parts, body) = request.into_parts();
    // The whole message at once, so that reqwest can repeat a request that a closing server didn't look at.
    let body = body.collect().await?.to_bytes();
    let mut request = reqwest::Request::try_from(http::Request::from_parts(parts, body)).map_err(failed)?;
    *request.timeout_mut() = Some(timeout);
    Ok(client.execute(request).await.map_err(failed)?.into())
}

/// The path of the call that takes a signal.
fn method(signal: Signal) -> PathAndQuery {
    PathAndQuery::from_static(match signal {
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    })
}

/// A batch's message. It is compressed if it was spooled.
fn plain(batch: &Batch) -> std::io::Result<Bytes> {
    if !batch.gzip {
        return Ok(batch.body.clone());
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*batch.body).read_to_end(&mut plain)?;
    Ok(plain.into())
}

/// Which failures pass: <https://opentelemetry.io/docs/specs/otlp/#failures>. The server's words are left out, because they
/// may repeat what it was sent.
fn judge(status: &Status) -> Answer {
    // Only what failed on this side has a cause.
    if let Some(error) = status.source() {
        return Answer::unreachable(error);
    }
    let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let reason = format!("gRPC status {:?}", status.code());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::Away { reason, retry_after },
        // Only a server that says when to come again will have room then; otherwise the batch is too much for it.
        Code::ResourceExhausted if retry_after.is_some() => Answer::Away { reason, retry_after },
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => Answer::Denied(reason),
        _ => Answer::Refused(reason),
    }
}

/// Messages that are bytes already: they were encoded before.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, io::Write};

    use mlx_manager_config::{OtlpKind, Protocol, Secret, Send};
    use tokio::{io::AsyncReadExt, net::TcpListener};
    use tonic_types::ErrorDetails;

    use super::*;

    fn batch(body: &[u8], gzip: bool) -> Batch {
        Batch { signal: Signal::Traces, gzip, items: 1, body: Bytes::copy_from_slice(body) }
    }

    #[test]
    fn failures_that_pass_are_those_of_the_specification() {
        let away = [1, 4, 10, 11, 14, 15];
        for code in 1..=16 {
            let answer = judge(&Status::new(Code::from_i32(code), "Authorization: top-secret"));
            let reason = format!("gRPC status {:?}", Code::from_i32(code));
            let expected = match code {
                _ if away.contains(&code) => Answer::Away { reason, retry_after: None },
                7 | 12 | 16 => Answer::Denied(reason),
                _ => Answer::Refused(reason),
            };
            assert_eq!(answer, expected, "{code}");
        }
    }

    #[test]
    fn a_server_may_say_when_to_come_again() {
        let seven = Some(Duration::from_secs(7));
        let retry = ErrorDetails::with_retry_info(seven);
        for code in [Code::Unavailable, Code::ResourceExhausted] {
            let answer = judge(&Status::with_error_details(code, "", retry.clone()));
            let reason = format!("gRPC status {code:?}");
            assert_eq!(answer, Answer::Away { reason, retry_after: seven });
        }
        for (code, details) in [
            (Code::InvalidArgument, retry),
            (Code::ResourceExhausted, ErrorDetails::with_retry_info(None)),
            (Code::ResourceExhausted, ErrorDetails::with_debug_info(Vec::new(), "a detail")),
        ] {
            let answer = judge(&Status::with_error_details(code, "", details));
            assert_eq!(answer, Answer::Refused(format!("gRPC status {code:?}")));
        }
    }

    #[test]
    fn what_failed_on_this_side_says_why_and_passes() {
        let answer = judge(&Status::from_error(Box::new(std::io::Error::other("cable cut"))));
        assert_eq!(answer, Answer::Away { reason: "cable cut".to_owned(), retry_after: None });
    }

    #[test]
    fn a_compressed_batch_is_made_plain() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"spans").unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(plain(&batch(&gzip, true)).unwrap(), "spans");
        assert_eq!(plain(&batch(&gzip, false)).unwrap(), gzip);
        assert!(plain(&batch(&gzip[..gzip.len() - 1], true)).is_err());
    }

    #[tokio::test]
    async fn a_connection_that_died_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = OtlpConfig {
            name: "collector".to_owned(),
            kind: OtlpKind::Otlp,
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            protocol: Protocol::Grpc,
            token: Secret::default(),
            headers: Vec::new(),
            send: Send::Always,
            signals: vec![Signal::Traces],
            timeout: Duration::from_millis(200),
            spool: None,
        };
        let endpoint = super::super::endpoint(&config).unwrap();
        // What the other end reads is acknowledged by its system, and never answered.
        let silent = async {
            let mut streams = Vec::new();
            let mut from = HashSet::new();
            while from.len() < 2 {
                let (mut stream, peer) = listener.accept().await.unwrap();
                assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
                from.insert(peer);
                streams.push(stream);
            }
        };
        let calls = async {
            loop {
                let answer = call(&endpoint, &batch(b"spans", false)).await;
                assert!(matches!(answer, Answer::Away { .. }), "{answer:?}");
            }
        };
        tokio::select! {
            () = silent => {}
            () = calls => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("every call took the dead connection"),
        }
    }
}
