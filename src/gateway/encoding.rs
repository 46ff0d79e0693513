//! Encoded bodies of requests and answers: which encodings are read, and their bytes as they were before.

use std::{io, pin::Pin};

use async_compression::{
    tokio::bufread::{BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder},
    zstd::DParameter,
};
use axum::http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING},
};
use mlx_manager_llm::{Error, ErrorKind};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead};

/// What callers may choose among.
const READ: &str = "gzip, deflate, br, zstd";
/// The window of a zstd frame, as a power of two: what RFC 9659 lets senders use. A larger one is memory that they only claim.
const ZSTD_WINDOW: u32 = 23;
/// By the first seven bits of this value a brotli stream says that its window is larger than RFC 7932 knows, up to 1 GiB.
const LARGE_BROTLI_WINDOW: u8 = 0x11;
/// How much of a header's value is repeated in an error, in characters.
const SHOWN: usize = 64;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// Named after an algorithm and meaning zlib's format of it, which not everybody knew: both are sent.
    Deflate,
    Brotli,
    Zstd,
}

impl Encoding {
    /// How the headers say that the body is encoded; `None` when it isn't.
    ///
    /// # Errors
    /// [`ErrorKind::UnsupportedMediaType`] for an encoding that isn't read, and for more than one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let said: Vec<_> =
            headers.get_all(CONTENT_ENCODING).iter().map(|value| value.to_str().unwrap_or("?")).collect();
        let said = said.join(", ");
        let names = said.split(',').map(str::trim).filter(|name| !name.is_empty());
        let mut names = names.filter(|name| !name.eq_ignore_ascii_case("identity"));
        let (first, second) = (names.next(), names.next());
        let encoding = match (first.map(str::to_ascii_lowercase).as_deref(), second) {
            (None, _) => return Ok(None),
            (Some("gzip" | "x-gzip"), None) => Self::Gzip,
            (Some("deflate"), None) => Self::Deflate,
            (Some("br"), None) => Self::Brotli,
            (Some("zstd"), None) => Self::Zstd,
            _ => {
                let said: String = said.chars().take(SHOWN).collect();
                let message = format!("a body with the content-encoding {said:?} can't be read; use one of {READ}");
                let mut error = Error::new(ErrorKind::UnsupportedMediaType, message);
                error.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(READ));
                return Err(error);
            }
        };
        Ok(Some(encoding))
    }

    /// The bytes before they were encoded. What follows the end of the encoded ones is left in `reader`.
    ///
    /// # Errors
    /// When the first bytes can't be read, or already say that the rest can't be decoded.
    pub(super) async fn decoder<'a, R>(self, mut reader: R) -> io::Result<Pin<Box<dyn AsyncRead + Send + 'a>>>
    where
        R: AsyncBufRead + Unpin + Send + 'a,
    {
        let first = reader.fill_buf().await?.first().copied().unwrap_or_default();
        Ok(match self {
            Self::Gzip => {
                let mut decoder = GzipDecoder::new(reader);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            // Of zlib's header these bits are the method; in a bare stream they would begin an uncompressed block that is not
            // the last and isn't padded with zeros.
            Self::Deflate if first & 0x0f == 8 => Box::pin(ZlibDecoder::new(reader)),
            Self::Deflate => Box::pin(DeflateDecoder::new(reader)),
            Self::Brotli if first & 0x7f == LARGE_BROTLI_WINDOW => return Err(io::ErrorKind::InvalidData.into()),
            Self::Brotli => Box::pin(BrotliDecoder::new(reader)),
            Self::Zstd => {
                let mut decoder = ZstdDecoder::with_params(reader, &[DParameter::window_log_max(ZSTD_WINDOW)]);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
        })
    }

    /// The refusal of a body that isn't what its header says.
    pub(super) fn belied(self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let name = match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        };
        let message = format!("the body is not whole and valid {name}, which its content-encoding says it is");
        Error::new(ErrorKind::InvalidRequest, message).with_source(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_encoding_that_is_read_is_taken_by_any_of_its_names() {
        let of = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(line));
            }
            Encoding::of(&headers)
        };
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["Identity"]).unwrap(), None);
        assert_eq!(of(&["GZip"]).unwrap(), Some(Encoding::Gzip));
        assert_eq!(of(&["x-gzip", "identity"]).unwrap(), Some(Encoding::Gzip));
        assert_eq!(of(&["br"]).unwrap(), Some(Encoding::Brotli));
        for lines in [&["gzip, gzip"][..], &["gzip", "gzip"], &["compress"]] {
            let error = of(lines).unwrap_err();
            assert_eq!(error.status(), 415);
            assert_eq!(error.headers["accept-encoding"], READ);
            assert!(error.message.contains(READ) && error.message.contains(&format!("{:?}", lines.join(", "))));
        }
        let long =
            of(&["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]);
        assert!(long.unwrap_err().message.len() < 160);
    }
}
