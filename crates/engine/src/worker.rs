//! The one OS thread that owns every MLX array, and the handle by which everybody else talks to it.
//!
//! Commands go in over a channel; each sequence has a channel of its own for what comes out. The handle never touches
//! MLX. A panic on the thread ends the sequences it had, with an error, and a new thread takes over; models come back
//! when they are asked for.

use std::{
    collections::HashMap,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use mlx_manager_llm::FinishReason;
use mlx_manager_signal::{event::MlxThreadGone, span};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::Instant,
};
use tracing::Span;

use super::{
    error::EngineError,
    mlx::Precision,
    model::ModelInfo,
    sample::SamplingParameters,
    scheduler::{Limits, ModelName},
    turn::Core,
};

/// How the engine works.
#[derive(Debug, Clone)]
pub(crate) struct EngineSettings {
    /// Sequences computed at the same time.
    pub(crate) max_batch: usize,
    /// Sequences that may wait beyond them; more are refused as overloaded.
    pub(crate) queue_limit: usize,
    /// Prompt tokens computed at once, between two decode steps of other sequences.
    pub(crate) prefill_chunk: usize,
    /// Bytes that MLX is asked to stay below.
    pub(crate) memory_limit: Option<u64>,
    /// Bytes that keys and values of sequences that ended may take, for prompts that begin alike; 0 keeps none.
    pub(crate) prompt_cache: u64,
    /// `None` takes the fastest precision for the device.
    pub(crate) precision: Option<Precision>,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            max_batch: 16,
            queue_limit: 256,
            prefill_chunk: 2048,
            memory_limit: None,
            prompt_cache: 512 << 20,
            precision: None,
        }
    }
}

/// One answer to be generated.
#[derive(Debug)]
pub(crate) struct Generate {
    /// A model that was loaded by this name.
    pub(crate) model: String,
    /// Token ids of the prompt, which together with `max_tokens` must fit the model's context; the caller checks that.
    pub(crate) prompt: Vec<u32>,
    /// How to choose tokens.
    pub(crate) sampling: SamplingParameters,
    /// The most tokens to generate, at least 1.
    pub(crate) max_tokens: u32,
    /// All ids that end the answer, the model's own included ([`ModelInfo::end_ids`]).
    pub(crate) stop_ids: Vec<u32>,
    /// The inference span; queue, prefill and decode become its children.
    pub(crate) span: Span,
}

/// What happens to a sequence, in this order. `Failed` may come at any time; `Finished` and `Failed` are the last.
#[derive(Debug, Clone)]
pub(crate) enum GenerationEvent {
    /// It waited so long, and its prompt is being computed now.
    Started {
        /// From submission to now.
        queued: Duration,
        /// How many tokens of the prompt came from the prompt cache.
        cached: u64,
    },
    /// One more token of the answer.
    Token(u32),
    /// The answer is complete.
    Finished {
        /// [`FinishReason::Stop`] or [`FinishReason::Length`].
        reason: FinishReason,
        /// Tokens generated, the stop token included.
        tokens: u64,
        /// The token that ended the answer.
        #[cfg(test)]
        stop_id: Option<u32>,
    },
    /// The answer can't be given, or not to its end.
    Failed(EngineError),
}

/// What the engine holds and does.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineStats {
    /// Sequences that wait.
    pub(crate) waiting: usize,
    /// Sequences that are computed.
    pub(crate) running: usize,
    /// Bytes of the arrays that MLX holds.
    pub(crate) active_memory: u64,
    /// The loaded models, with the bytes of their key-value caches, those of ended sequences included.
    pub(crate) models: Vec<(Arc<ModelInfo>, u64)>,
}

pub(super) type LoadReply = oneshot::Sender<Result<Arc<ModelInfo>, EngineError>>;

/// A sequence on its way to the thread.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: Generate,
    pub(super) events: Outbox,
    pub(super) submitted: Instant,
    pub(super) queue_span: Span,
}

/// What the thread is told.
enum Command {
    Work(Work),
    Shutdown { reply: oneshot::Sender<()> },
}

/// What the thread is to do.
pub(super) enum Work {
    Load {
        name: ModelName,
        folder: PathBuf,
        reply: LoadReply,
    },
    Unload {
        name: ModelName,
        reason: &'static str,
        reply: oneshot::Sender<Result<(), EngineError>>,
    },
    Generate(Box<Submission>),
    #[cfg(test)]
    Stats {
        reply: oneshot::Sender<EngineStats>,
    },
    #[cfg(test)]
    Panic,
    /// MLX fails at all sequences.
    #[cfg(test)]
    Fail,
}

/// The handle. Clones talk to the same thread. Dropping the last one waits for the thread to end, which takes up to one
/// step: a process that exits while MLX computes crashes in MLX's destructors. [`Engine::shutdown`] waits without blocking.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
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
        self.commands = None;
        if let Some(supervisor) = self.supervisor.take() {
            // It has logged what went wrong, if anything did.
            drop(supervisor.join());
        }
    }
}

impl Engine {
    /// Starts the thread. MLX is first touched when a model is loaded.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(settings: EngineSettings) -> Result<Self, EngineError> {
        let (commands, inbox) = mpsc::channel();
        let supervisor = thread::Builder::new()
            .name("mlx-supervisor".to_owned())
            .spawn(move || supervise(inbox, &settings))
            .map_err(|error| EngineError::Thread(Arc::new(error)))?;
        Ok(Self { link: Arc::new(Link { commands: Some(commands), supervisor: Some(supervisor) }) })
    }

    /// Loads the model in a folder under a name, or finds it loaded; requests that come together load once.
    ///
    /// # Errors
    /// When the model can't be loaded, which leaves the engine as it was.
    pub(crate) async fn load(&self, name: &str, folder: PathBuf) -> Result<Arc<ModelInfo>, EngineError> {
        self.ask(|reply| Command::Work(Work::Load { name: name.into(), folder, reply })).await?
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
        let queue_span = span::queue(&request.span);
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
    pub(super) fn make_it_fail(&self) {
        self.link.send(Command::Work(Work::Fail)).map_err(drop).expect("the engine runs");
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.link.send(command(reply)).map_err(|_| EngineError::Stopped)?;
        answer.await.map_err(|_| EngineError::Stopped)
    }
}

/// Where the events of a sequence go. Whatever becomes of it, the last one is `Finished` or `Failed`.
#[derive(Debug)]
pub(super) struct Outbox {
    events: UnboundedSender<GenerationEvent>,
    ended: bool,
}

impl Outbox {
    pub(super) fn new(events: UnboundedSender<GenerationEvent>) -> Self {
        Self { events, ended: false }
    }

    /// Tells a client that may have left; that it has is noticed at the next step.
    pub(super) fn tell(&mut self, event: GenerationEvent) {
        self.ended |= matches!(event, GenerationEvent::Finished { .. } | GenerationEvent::Failed(_));
        drop(self.events.send(event));
    }

    /// Whether the client left.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(GenerationEvent::Failed(EngineError::Stopped));
        }
    }
}

/// How an MLX thread ended.
enum Exit {
    /// By a panic; another thread takes over.
    Panicked,
    /// In order; somebody may wait to hear of it.
    Ended(Option<oneshot::Sender<()>>),
}

/// Keeps one MLX thread alive until it ends by itself. It is a thread of its own because MLX ties its streams, and
/// `mlx-rs` its state, to the thread that a panic may have left in disorder.
fn supervise(mut inbox: mpsc::Receiver<Command>, settings: &EngineSettings) {
    let mut folders = HashMap::new();
    loop {
        let (inbox, folders) = (&mut inbox, &mut folders);
        let exit = thread::scope(|scope| {
            let thread = thread::Builder::new().name("mlx".to_owned());
            match thread.spawn_scoped(scope, || run(inbox, settings, folders)) {
                Ok(thread) => thread.join().unwrap_or(Exit::Panicked),
                Err(error) => {
                    MlxThreadGone::Refused(&error).emit();
                    Exit::Ended(None)
                }
            }
        });
        match exit {
            Exit::Panicked => MlxThreadGone::Panicked.emit(),
            Exit::Ended(waiting) => {
                // Only now is everything that MLX keeps for its thread gone.
                waiting.map_or(Ok(()), |reply| reply.send(())).unwrap_or_default();
                return;
            }
        }
    }
}

/// The MLX thread. `folders` are those of models once loaded, kept for its successor.
fn run(
    inbox: &mut mpsc::Receiver<Command>,
    settings: &EngineSettings,
    folders: &mut HashMap<ModelName, PathBuf>,
) -> Exit {
    let limits = Limits { max_batch: settings.max_batch, queue: settings.queue_limit };
    let mut core = Core::new(settings.clone(), limits, std::mem::take(folders));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| serve(inbox, &mut core)));
    if outcome.is_err() {
        core.abandon(&EngineError::Panicked);
        *folders = core.folders();
    }
    // Arrays that a panic left half-made may panic again when they are dropped.
    let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(core)));
    match (outcome, dropped) {
        (Ok(waiting), Ok(())) => Exit::Ended(waiting),
        _ => Exit::Panicked,
    }
}

/// Works until it is told to end, or nobody is left to tell it anything. Gives whoever waits for the end.
fn serve(inbox: &mut mpsc::Receiver<Command>, core: &mut Core) -> Option<oneshot::Sender<()>> {
    let waiting = loop {
        let command = if core.is_idle() {
            match inbox.recv() {
                Ok(command) => Some(command),
                Err(mpsc::RecvError) => break None,
            }
        } else {
            match inbox.try_recv() {
                Ok(command) => Some(command),
                Err(mpsc::TryRecvError::Empty) => None,
                Err(mpsc::TryRecvError::Disconnected) => break None,
            }
        };
        match command {
            Some(Command::Shutdown { reply }) => break Some(reply),
            Some(Command::Work(work)) => core.obey(work),
            None => core.step(),
        }
    };
    core.abandon(&EngineError::Stopped);
    waiting
}
