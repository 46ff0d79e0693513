//! Keeps an MLX thread alive: a panic on it ends the sequences it had, with an error, and a new thread takes over; models
//! come back when they are asked for.

use std::{
    collections::HashMap,
    panic::{self, AssertUnwindSafe},
    sync::mpsc,
    thread,
    time::Duration,
};

use mlx_manager_signal::event::MlxThreadGone;
use tokio::sync::oneshot;

use super::{EngineSettings, command::Command, step::Core};
use crate::{
    error::EngineError,
    mlx,
    model::{ModelName, Source},
};

/// How long there is nothing to do before buffers that MLX keeps go back to the system: requests often come in bursts, and new
/// memory costs the first of them more than their computing.
const REST: Duration = Duration::from_secs(10);

/// How an MLX thread ended.
enum Exit {
    /// By a panic; another thread takes over.
    Panicked,
    /// In order; somebody may wait to hear of it.
    Ended(Option<oneshot::Sender<()>>),
}

/// Keeps one MLX thread alive until it ends by itself. It is a thread of its own because MLX ties its streams, and
/// `mlx-rs` its state, to the thread that a panic may have left in disorder.
/// `commands` lead to the inbox, for threads beside it.
pub(super) fn supervise(
    mut inbox: mpsc::Receiver<Command>,
    commands: &mpsc::Sender<Command>,
    settings: &EngineSettings,
) {
    let mut sources = HashMap::new();
    loop {
        let (inbox, sources) = (&mut inbox, &mut sources);
        let exit = thread::scope(|scope| {
            let thread = thread::Builder::new().name("mlx".to_owned());
            match thread.spawn_scoped(scope, || run(inbox, commands.clone(), settings, sources)) {
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

/// The MLX thread. `sources` are those of models once loaded, kept for its successor.
fn run(
    inbox: &mut mpsc::Receiver<Command>,
    commands: mpsc::Sender<Command>,
    settings: &EngineSettings,
    sources: &mut HashMap<ModelName, Source>,
) -> Exit {
    mlx::keep_freed();
    let mut core = Core::new(settings, std::mem::take(sources), commands);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| serve(inbox, &mut core)));
    if outcome.is_err() {
        core.abandon(&EngineError::Panicked);
        *sources = core.sources();
    }
    // Arrays that a panic left half-made may panic again when they are dropped.
    let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(core)));
    match (outcome, dropped) {
        (Ok(waiting), Ok(())) => Exit::Ended(waiting),
        _ => Exit::Panicked,
    }
}

/// Works until it is told to end. Gives whoever waits for the end.
fn serve(inbox: &mut mpsc::Receiver<Command>, core: &mut Core) -> Option<oneshot::Sender<()>> {
    let waiting = loop {
        let command = if core.is_idle() {
            let patience = core.patience().or_else(|| core.has_worked().then_some(REST));
            let next = match patience {
                Some(patience) => inbox.recv_timeout(patience),
                None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(command) => Some(command),
                Err(mpsc::RecvTimeoutError::Disconnected) => break None,
                Err(mpsc::RecvTimeoutError::Timeout) if core.patience().is_some() => None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    core.rest();
                    continue;
                }
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
