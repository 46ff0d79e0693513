//! What the thread of a daemon does besides telemetry: a request is read, understood and answered, over HTTP on both sides.
//!
//! Between two pieces of it this leaves the processor's caches, and what it has learnt of branches, as a daemon does.

use anyhow::{Result, anyhow};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mlx_manager_dialect as dialect;
use mlx_manager_llm::{Api, Error};
use tokio::{net::TcpListener, runtime::Runtime};

use super::serve::serve;

/// What is answered.
const ANSWER: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1763000000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"The fox is quick, and the dog is lazy: the one runs on, and the other lies where it lay. Nothing else is said of either of them.","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"completion_tokens":50,"total_tokens":300,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},"service_tier":"default","system_fingerprint":"fp_bench"}"#;

pub struct Elsewhere {
    runtime: Runtime,
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    question: Bytes,
}

impl Elsewhere {
    /// Both sides of it on the thread that calls.
    pub fn open(question: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let uri = format!("http://{}/v1/chat/completions", listener.local_addr()?).parse()?;
        runtime.spawn(serve(listener, move |request| async move {
            let question = request.into_body().collect().await?.to_bytes();
            let refused = |error: Error| anyhow!("{}", error.message);
            let request = dialect::decode_head(Api::ChatCompletions, question).map_err(refused)?;
            let answer = Bytes::from_static(ANSWER.as_bytes());
            dialect::observe_body(&request, &answer, false, false).map_err(refused)?;
            Ok(Response::new(Full::new(answer)))
        }));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { runtime, client, uri, question: question.to_owned().into() })
    }

    /// Does one request.
    pub fn work(&self) -> Result<()> {
        self.runtime.block_on(async {
            let request = Request::post(self.uri.clone()).body(Full::new(self.question.clone()))?;
            self.client.request(request).await?.into_body().collect().await?;
            Ok(())
        })
    }
}
