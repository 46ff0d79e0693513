//! `[server]`

use std::{net::SocketAddr, time::Duration};

use super::{
    decode::Decoder,
    schema::{Key, Table},
    setting::{DurationOrZero, Size},
};

/// Where and how the daemon listens.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address of the API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The largest request body, in bytes.
    pub max_body: u64,
    /// The most bytes of request bodies that are held at one time, at least `max_body`.
    pub max_inflight_body: u64,
    /// How long open requests may go on after a signal to stop.
    pub drain_timeout: Duration,
}

const LISTEN: Key = Key::new("listen", "\"127.0.0.1:10242\"", "the API; port 0 takes a free one");
const MAX_BODY: Key = Key::new("max_body", "\"32 MiB\"", "a larger request body gets a 413");
const MAX_INFLIGHT_BODY: Key =
    Key::new("max_inflight_body", "\"512 MiB\"", "bodies of all open requests, at least max_body; more get a 503");
const DRAIN_TIMEOUT: Key = Key::new("drain_timeout", "\"30 s\"", "how long open requests may go on after SIGTERM");

pub(super) const TABLE: Table = Table::single("server", "", &[LISTEN, MAX_BODY, MAX_INFLIGHT_BODY, DRAIN_TIMEOUT]);

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<ServerConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let listen = decoder.get(&section, &LISTEN);
    let max_body = decoder.get::<Size>(&section, &MAX_BODY);
    let max_inflight_body = decoder.get::<Size>(&section, &MAX_INFLIGHT_BODY);
    let drain_timeout = decoder.get::<DurationOrZero>(&section, &DRAIN_TIMEOUT);
    let (max_body, max_inflight_body) = (max_body?.0, max_inflight_body?.0);
    if max_inflight_body < max_body {
        // Of the two the one that was written is at fault.
        let written = [&MAX_INFLIGHT_BODY, &MAX_BODY].into_iter().find(|key| decoder.given(&section, key));
        let key = section.path_of(written.unwrap_or(&MAX_INFLIGHT_BODY));
        let message = format!(
            "would refuse a body that is allowed: `{}` ({max_inflight_body} B) is less than `{}` ({max_body} B)",
            section.path_of(&MAX_INFLIGHT_BODY),
            section.path_of(&MAX_BODY)
        );
        decoder.report_relation(&key, decoder.place_of(&key), &message, "raise the one or lower the other");
    }
    Some(ServerConfig { listen: listen?, max_body, max_inflight_body, drain_timeout: drain_timeout?.0 })
}
