//! What the configurations of measured daemons have in common.

use std::net::SocketAddr;

/// A daemon between callers and one provider, without local models; `more` is what else there is.
pub fn config(listen: SocketAddr, metrics: SocketAddr, upstream: SocketAddr, more: &str) -> String {
    format!(
        r#"
[server]
listen = "{listen}"
[metrics.prometheus]
listen = "{metrics}"
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
