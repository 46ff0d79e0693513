//! What the configurations of measured daemons have in common.

use std::net::SocketAddr;

/// A daemon between callers and one provider, without local models, scraped at `metrics` if at all; `more` is what else
/// there is, and routes in it come after the one that is here.
pub fn config(listen: SocketAddr, metrics: Option<SocketAddr>, upstream: SocketAddr, more: &str) -> String {
    let metrics = metrics.map_or_else(|| "enabled = false".to_owned(), |address| format!("listen = \"{address}\""));
    format!(
        r#"
[server]
listen = "{listen}"
[metrics.prometheus]
{metrics}
[local]
default_model = ""
[[providers]]
name = "provider"
kind = "openai"
base_url = "http://{upstream}/v1"
api_key = "sk-bench"
[[routes]]
model = "gpt-*"
targets = ["provider"]
{more}"#
    )
}
