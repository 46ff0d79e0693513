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
    /// How long open requests may go on after a signal to stop.
    pub drain_timeout: Duration,
}

const LISTEN: Key = Key::new("listen", "\"127.0.0.1:10242\"", "the API; port 0 takes a free one");
const MAX_BODY: Key = Key::new("max_body", "\"32 MiB\"", "a larger request body gets a 413");
const DRAIN_TIMEOUT: Key = Key::new("drain_timeout", "\"30 s\"", "how long open requests may go on after SIGTERM");

pub(super) const TABLE: Table = Table::single("server", "", &[LISTEN, MAX_BODY, DRAIN_TIMEOUT]);

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<ServerConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let listen = decoder.get(&section, &LISTEN);
    let max_body = decoder.get::<Size>(&section, &MAX_BODY);
    let drain_timeout = decoder.get::<DurationOrZero>(&section, &DRAIN_TIMEOUT);
    Some(ServerConfig { listen: listen?, max_body: max_body?.0, drain_timeout: drain_timeout?.0 })
}
