//! The least that a gateway on hyper can cost.

use std::net::SocketAddr;

use anyhow::Result;
use http::{Request, Uri, header};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::net::TcpListener;

use super::serve::serve;

/// Passes everything on to `provider` and back, looking at nothing.
pub async fn null_proxy(listen: SocketAddr, provider: SocketAddr) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let listener = TcpListener::bind(listen).await?;
    serve(listener, move |mut request: Request<Incoming>| {
        let client = client.clone();
        async move {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            *request.uri_mut() = format!("http://{provider}{path}").parse::<Uri>()?;
            request.headers_mut().remove(header::HOST);
            Ok(client.request(request).await?)
        }
    })
    .await;
    Ok(())
}
