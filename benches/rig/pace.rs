//! Load at a fixed rate.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::load::{Chat, Load, one};

impl Load {
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
