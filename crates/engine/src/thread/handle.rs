//! The handle by which everybody else talks to the MLX thread.
//!
//! Commands go in over a channel; each sequence has a channel of its own for what comes out. The handle never touches
//! MLX.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use mlx_manager_signal::span;
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        oneshot,
    },
    time::Instant,
};

#[cfg(test)]
use super::command::EngineStats;
use super::{
    EngineSettings,
    command::{Command, Generate, GenerationEvent, Outbox, Submission, Work},
    supervisor,
};
use crate::{
    error::EngineError,
    mlx::Precision,
    model::{ModelInfo, Source},
};

/// The handle. Clones talk to the same thread. Dropping the last one waits for the thread to end, which takes up to one
/// step: a process that exits while MLX computes crashes in MLX's destructors. [`Handle::shutdown`] waits without blocking.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    /// `None` only while it is dropped.
    commands: Option<mpsc::Sender<Command>>,
    supervisor: Option<thread::JoinHandle<()>>,
}

impl Link {
    fn send(&self, command: Command) -> Result<(), mpsc::SendError<Command>> {
        match &self.commands {
            Some(commands) => commands.send(command),
            None => Err(mpsc::SendError(command)),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(commands) = self.commands.take() {
            // It may have ended already.
            drop(commands.send(Command::Shutdown { reply: oneshot::channel().0 }));
        }
        if let Some(supervisor) = self.supervisor.take() {
            // It has logged what went wrong, if anything did.
            drop(supervisor.join());
        }
    }
}

impl Handle {
    /// Starts the thread. MLX is first touched when a model is loaded.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(settings: EngineSettings) -> Result<Self, EngineError> {
        let (commands, inbox) = mpsc::channel();
        let supervisor = thread::Builder::new()
            .name("mlx-supervisor".to_owned())
            .spawn({
                let commands = commands.clone();
                move || supervisor::supervise(inbox, &commands, &settings)
            })
            .map_err(|error| EngineError::Thread(Arc::new(error)))?;
        Ok(Self { link: Arc::new(Link { commands: Some(commands), supervisor: Some(supervisor) }) })
    }

    /// Loads the model in a folder under a name, or finds it loaded; requests that come together load once.
    ///
    /// # Errors
    /// When the model can't be loaded, which leaves the engine as it was.
    pub(crate) async fn load(&self, name: &str, source: impl Into<Source>) -> Result<Arc<ModelInfo>, EngineError> {
        let source = source.into();
        self.ask(|reply| Command::Work(Work::Load { name: name.into(), source, reply })).await?
    }

    /// With which precision the thread computes, which is a matter of the device.
    ///
    /// # Errors
    /// When MLX finds no device.
    pub(crate) async fn precision(&self) -> Result<Precision, EngineError> {
        self.ask(|reply| Command::Work(Work::Precision { reply })).await?
    }

    /// Gives a model's memory back. `reason` is `idle` or `memory`.
    ///
    /// # Errors
    /// When the model isn't loaded, or has requests in flight.
    pub(crate) async fn unload(&self, name: &str, reason: &'static str) -> Result<(), EngineError> {
        self.ask(|reply| Command::Work(Work::Unload { name: name.into(), reason, reply })).await?
    }

    /// Submits a sequence. Dropping the receiver cancels it within one step. The first event tells whether it was
    /// taken in; the channel is bounded in practice, by `max_tokens`.
    pub(crate) fn generate(&self, request: Generate) -> UnboundedReceiver<GenerationEvent> {
        let (events, receiver) = unbounded_channel();
        let queue_span = span::queue(&request.span, request.priority);
        let events = Outbox::new(events);
        let submission = Submission { request, events, submitted: Instant::now(), queue_span };
        // What can't be sent is dropped, and says so in the outbox.
        drop(self.link.send(Command::Work(Work::Generate(Box::new(submission)))));
        receiver
    }

    /// What the engine holds and does, measured on its thread between two steps.
    #[cfg(test)]
    pub(crate) async fn stats(&self) -> Result<EngineStats, EngineError> {
        self.ask(|reply| Command::Work(Work::Stats { reply })).await
    }

    /// Ends open sequences with an error and the thread with them; returns when MLX is at rest.
    pub(crate) async fn shutdown(&self) {
        // An engine that has stopped already is what was asked for.
        self.ask(|reply| Command::Shutdown { reply }).await.unwrap_or_default();
    }

    #[cfg(test)]
    pub(super) fn make_it_panic(&self) {
        self.link.send(Command::Work(Work::Panic)).map_err(drop).expect("the engine runs");
    }

    #[cfg(test)]
    pub(super) fn fail_steps(&self, words: Vec<&'static str>) {
        self.link.send(Command::Work(Work::FailSteps(words))).map_err(drop).expect("the engine runs");
    }

    #[cfg(test)]
    pub(super) fn make_it_fail(&self) {
        self.link.send(Command::Work(Work::Fail)).map_err(drop).expect("the engine runs");
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.link.send(command(reply)).map_err(|_| EngineError::Stopped)?;
        answer.await.map_err(|_| EngineError::Stopped)
    }
}
