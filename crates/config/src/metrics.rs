//! `[metrics.prometheus]`

use std::net::SocketAddr;

use super::{
    decode::Decoder,
    schema::{Key, Table},
    setting::{Raw, Setting},
};

/// The Prometheus endpoint.
#[derive(Debug, Clone)]
pub struct PrometheusConfig {
    /// Whether it exists.
    pub enabled: bool,
    /// Its own listener; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The path scraped.
    pub path: String,
}

const ENABLED: Key = Key::new("enabled", "true", "");
pub(super) const LISTEN: Key =
    Key::new("listen", "\"127.0.0.1:9464\"", "a listener of its own; port 0 takes a free one");
const PATH: Key = Key::new("path", "\"/metrics\"", "");

pub(super) const TABLE: Table = Table::single("metrics.prometheus", "", &[ENABLED, LISTEN, PATH]);

/// The path of a URL.
struct UrlPath(String);

impl Setting for UrlPath {
    fn allowed() -> String {
        "a URL path that starts with a slash, such as \"/metrics\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = String::read(raw)?;
        let character = |character: char| character.is_ascii_alphanumeric() || "/-_.~".contains(character);
        if text.starts_with('/') && text.chars().all(character) { Ok(Self(text)) } else { Err(None) }
    }
}

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<PrometheusConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let enabled = decoder.get(&section, &ENABLED);
    let listen = decoder.get(&section, &LISTEN);
    let path = decoder.get::<UrlPath>(&section, &PATH);
    Some(PrometheusConfig { enabled: enabled?, listen: listen?, path: path?.0 })
}
