//! The load generator: chats over connections that stay open.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::JoinSet,
};

use super::connection::Connection;

/// What to send, and how an answer is known to be whole.
#[derive(Debug, Clone)]
pub struct Chat {
    pub body: Bytes,
    pub status: StatusCode,
    /// What the last bytes of the answer hold.
    pub ending: &'static [u8],
}

/// What a chat of about 1 kB says.
pub const TEXT: &str = "The quick brown fox jumps over the lazy dog and runs on. ";

/// A chat of about so many bytes, and never less than 1 kB.
pub fn chat(stream: bool, bytes: usize) -> Chat {
    chat_with("gpt-4o-mini", stream, bytes)
}

/// The same with a model.
pub fn chat_with(model: &str, stream: bool, bytes: usize) -> Chat {
    let text = TEXT.repeat(14.max(bytes / TEXT.len()));
    let mut body = json!({
        "model": model, "temperature": 0.7, "max_tokens": 256,
        "messages": [{ "role": "system", "content": "You are a helpful assistant." }, { "role": "user", "content": text }],
    });
    if stream {
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
    }
    let ending: &[u8] = if stream { b"[DONE]" } else { b"\"finish_reason\":\"stop\"" };
    Chat { body: Bytes::from(body.to_string()), status: StatusCode::OK, ending }
}

/// Several connections to one gateway.
pub struct Load {
    pub connections: Vec<Arc<Mutex<Connection>>>,
}

impl Load {
    pub async fn open(address: SocketAddr, connections: usize) -> Result<Self> {
        let mut load = Self { connections: Vec::new() };
        for _ in 0..connections {
            load.connections.push(Arc::new(Mutex::new(Connection::open(address).await?)));
        }
        Ok(load)
    }

    /// Sends `count` chats as fast as they are answered.
    pub async fn closed_loop(&self, chat: &Chat, count: usize) -> Result<()> {
        let chat = chat.clone();
        self.loops(count, move |mut connection| {
            let chat = chat.clone();
            async move { one(&mut connection, &chat).await }
        })
        .await
    }

    /// Does something with the connections, `count` times in all.
    pub async fn loops<F, A>(&self, count: usize, ask: F) -> Result<()>
    where
        F: Fn(OwnedMutexGuard<Connection>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<()>> + Send,
    {
        let sent = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for connection in &self.connections {
            let (connection, ask, sent) = (Arc::clone(connection), ask.clone(), Arc::clone(&sent));
            workers.spawn(async move {
                while sent.fetch_add(1, Ordering::Relaxed) < count {
                    ask(Arc::clone(&connection).lock_owned().await).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(())
    }
}

pub async fn one(connection: &mut Connection, chat: &Chat) -> Result<()> {
    let mut last = Bytes::new();
    connection.post(chat.body.clone(), chat.status, |piece, _| last = piece.clone()).await.context("a chat failed")?;
    ensure!(
        last.windows(chat.ending.len()).any(|window| window == chat.ending),
        "an answer is not whole; it ends with {}",
        String::from_utf8_lossy(&last)
    );
    Ok(())
}
