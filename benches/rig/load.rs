//! The load generator: chats over connections that stay open.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::connection::Connection;

/// What to send, and how an answer is known to be whole.
#[derive(Debug, Clone)]
pub struct Chat {
    pub body: Bytes,
    /// What the last bytes of the answer hold.
    pub ending: &'static [u8],
}

/// Several connections to one gateway.
pub struct Load {
    connections: Vec<Arc<Mutex<Connection>>>,
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
        let sent = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for connection in &self.connections {
            let (connection, chat, sent) = (Arc::clone(connection), chat.clone(), Arc::clone(&sent));
            workers.spawn(async move {
                let mut connection = connection.lock().await;
                while sent.fetch_add(1, Ordering::Relaxed) < count {
                    one(&mut connection, &chat).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(())
    }

    /// Sends `count` chats, one every `interval` whatever became of those before, and returns how long after its due
    /// time each was answered. So a gateway that stalls is charged for everybody whom it kept waiting.
    pub async fn open_loop(&self, chat: &Chat, count: usize, interval: Duration) -> Result<Vec<Duration>> {
        let (due, queue) = mpsc::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        // A thread, because the runtime's own clock ticks in milliseconds.
        let pace = thread::spawn(move || {
            let mut next = Instant::now();
            for _ in 0..count {
                next += interval;
                thread::sleep(next.saturating_duration_since(Instant::now()));
                if due.send(next).is_err() {
                    break;
                }
            }
        });
        let mut workers = JoinSet::new();
        for connection in &self.connections {
            let (connection, chat, queue) = (Arc::clone(connection), chat.clone(), Arc::clone(&queue));
            workers.spawn(async move {
                let mut connection = connection.lock().await;
                let mut latencies = Vec::new();
                loop {
                    let next = queue.lock().await.recv().await;
                    let Some(due) = next else { return anyhow::Ok(latencies) };
                    one(&mut connection, &chat).await?;
                    latencies.push(due.elapsed());
                }
            });
        }
        let mut latencies = Vec::new();
        while let Some(worker) = workers.join_next().await {
            latencies.extend(worker??);
        }
        if pace.join().is_err() {
            bail!("the pacing thread failed");
        }
        Ok(latencies)
    }
}

async fn one(connection: &mut Connection, chat: &Chat) -> Result<()> {
    let mut last = Bytes::new();
    connection.chat(chat.body.clone(), |piece, _| last = piece.clone()).await.context("a chat failed")?;
    ensure!(
        last.windows(chat.ending.len()).any(|window| window == chat.ending),
        "an answer is not whole; it ends with {}",
        String::from_utf8_lossy(&last)
    );
    Ok(())
}
