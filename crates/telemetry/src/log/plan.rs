//! What is in effect: the filter, the sinks, and who takes what each callsite says.
//!
//! It is replaced as a whole, so that a mask always fits the sinks that it is about, and whoever logs sees one state or
//! the other. Enter at [`InEffect`].

use std::{
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use tracing::{Metadata, callsite::Identifier};

use super::{
    console::ConsoleSink,
    filter::{Callsite, Filter, Mask, Taken},
    format::{Rendered, Style},
    loss::own_record,
    record::{Fields, LogRecord},
    sink::FileSink,
};

/// How long a sink that could not write in time gets to say what is lost.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A plan and what it means for every callsite that was ever reached. Read at every event, and copied when it changes.
#[derive(Clone, Default)]
pub struct InEffect {
    /// The plan.
    pub plan: Arc<Plan>,
    callsites: foldhash::HashMap<Identifier, (&'static Metadata<'static>, Taken)>,
}

impl InEffect {
    /// Who takes what a callsite says.
    pub fn taken(&self, metadata: &Metadata<'_>) -> Taken {
        // One that is not registered is unusual and no mistake.
        self.known(metadata).unwrap_or_else(|| self.plan.taken(metadata))
    }

    /// The same for a callsite that is registered.
    pub fn known(&self, metadata: &Metadata<'_>) -> Option<Taken> {
        self.callsites.get(&metadata.callsite()).map(|(_, taken)| *taken)
    }

    /// With one more callsite.
    pub fn with(&self, metadata: &'static Metadata<'static>) -> Self {
        let mut next = self.clone();
        next.callsites.insert(metadata.callsite(), (metadata, self.plan.taken(metadata)));
        next
    }

    /// The same callsites under another plan.
    pub fn under(&self, plan: &Arc<Plan>) -> Self {
        let judged = |(metadata, _): &(&'static Metadata<'static>, _)| (*metadata, plan.taken(metadata));
        let callsites = self.callsites.iter().map(|(id, callsite)| (id.clone(), judged(callsite)));
        Self { plan: Arc::clone(plan), callsites: callsites.collect() }
    }
}

/// The `[log]` section, opened.
#[derive(Default)]
pub struct Plan {
    /// Who takes what.
    pub filter: Filter,
    /// The sinks, in the order of the bits of a mask.
    pub routes: Vec<Route>,
}

/// A sink and how it is fed.
pub struct Route {
    /// Its name.
    pub name: String,
    /// How it writes.
    pub style: Style,
    /// Where to.
    pub output: Output,
}

/// The callers' end of a sink. A reload may hand it on to the next plan.
#[derive(Clone)]
pub enum Output {
    /// Standard error.
    Console(Arc<ConsoleSink>),
    /// A file.
    File(Arc<FileOutput>),
}

/// A file sink with its thread, which ends when nothing can push any more.
pub struct FileOutput {
    /// The active file.
    pub path: PathBuf,
    /// The callers' end.
    pub sink: Arc<FileSink>,
    /// The worker.
    pub thread: Mutex<Option<JoinHandle<()>>>,
}

impl FileOutput {
    /// Lets workers write what they have and waits for their end; false for one whose disk stands still.
    pub fn end(files: &[Arc<Self>], deadline: Instant) -> bool {
        files.iter().for_each(|file| file.sink.stop());
        files.iter().fold(true, |ended, file| {
            let thread = file.thread.lock().take();
            ended
                & thread.is_none_or(|thread| {
                    // One that panicked has said so through the hook.
                    wait(deadline, || thread.is_finished()) && thread.join().is_ok()
                })
        })
    }
}

/// Waits for something that nothing tells of.
pub fn wait(deadline: Instant, done: impl Fn() -> bool) -> bool {
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK_EVERY);
    }
    true
}

impl Drop for FileOutput {
    fn drop(&mut self) {
        self.sink.stop();
    }
}

impl Plan {
    fn taken(&self, metadata: &Metadata<'_>) -> Taken {
        let callsite = if metadata.is_span() { Callsite::Span } else { Callsite::Event };
        self.filter.taken(metadata.target(), *metadata.level(), callsite)
    }

    /// The file sinks.
    pub fn files(&self) -> impl Iterator<Item = &Arc<FileOutput>> {
        self.routes.iter().filter_map(|route| match &route.output {
            Output::Console(_) => None,
            Output::File(file) => Some(file),
        })
    }

    fn consoles(&self) -> impl Iterator<Item = &Arc<ConsoleSink>> {
        self.routes.iter().filter_map(|route| match &route.output {
            Output::Console(sink) => Some(sink),
            Output::File(_) => None,
        })
    }

    /// A console sink.
    pub fn console(&self, name: &str) -> Option<&Arc<ConsoleSink>> {
        self.routes.iter().find_map(|route| match &route.output {
            Output::Console(sink) if route.name == name => Some(sink),
            _ => None,
        })
    }

    /// Hands a record to the sinks of a mask; `rendered` is room for its text.
    pub fn deliver(&self, record: &LogRecord<'_>, mask: Mask, rendered: &mut Rendered) {
        let mut style = None;
        for (index, route) in self.routes.iter().enumerate() {
            if mask & (1 << index) == 0 {
                continue;
            }
            // Most sinks write alike.
            if style != Some(&route.style) {
                rendered.render(&route.style, record);
                style = Some(&route.style);
            }
            match &route.output {
                Output::Console(sink) => sink.push(rendered, record.level, record.timestamp),
                Output::File(file) => {
                    if file.sink.push(rendered, record.level, record.timestamp) {
                        self.tell_overload(file, record.timestamp);
                    }
                }
            }
        }
    }

    /// Says on the consoles, since the file's own record about it comes when it can be written again.
    fn tell_overload(&self, file: &FileOutput, timestamp: Timestamp) {
        let message = format!("log file {} can't keep up or stands still: records are being lost", file.path.display());
        let record = own_record(&message, Fields::NONE, timestamp);
        for route in &self.routes {
            if let Output::Console(sink) = &route.output {
                let mut rendered = Rendered::default();
                rendered.render(&route.style, &record);
                sink.push(&rendered, record.level, timestamp);
            }
        }
    }

    /// Writes everything that was pushed before; false when the deadline came first.
    pub fn flush(&self, deadline: Instant) -> bool {
        // All start at once: a sink that is late takes no time from the next.
        let asked: Vec<_> = self.files().map(|file| (file, file.sink.ask_flush())).collect();
        let files =
            asked.into_iter().fold(true, |flushed, (file, asked)| flushed & file.sink.await_flush(asked, deadline));
        // Last, since a file may have had something to say there.
        self.consoles().fold(files, |flushed, sink| flushed & sink.flush(deadline))
    }

    /// Writes everything and ends the files' workers; false when something was lost. One that can't write says what is
    /// lost, and one whose disk stands still is left behind.
    pub fn close(&self, deadline: Instant) -> bool {
        let flushed = self.flush(deadline);
        let deadline = deadline.max(Instant::now() + LAST_WORDS);
        // First those that can't, so that the others take down what they say.
        let (well, stuck): (Vec<_>, Vec<_>) = self.files().cloned().partition(|file| file.sink.is_flushed());
        let ended = [stuck, well].iter().fold(true, |ended, files| ended & FileOutput::end(files, deadline));
        self.consoles().fold(flushed && ended, |well, sink| well & sink.flush(deadline))
    }
}
