//! The thread that writes and reads the file, one thing after the other.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use mlx_manager_signal::event::{PrefixRead, PrefixWritten};
use uuid::Uuid;

use super::ReadId;
use crate::model::{ModelName, RowLayout};

/// Bytes that wait to be written beyond which no more may wait. They are in memory that is nobody's limit.
const BEHIND: u64 = 64 << 20;

/// Makes the file in a folder.
pub(crate) type Open = fn(&Path) -> io::Result<File>;

/// What the thread tells.
#[derive(Debug)]
pub(crate) enum DiskEvent {
    /// The bytes of each array that was asked for.
    Read { id: ReadId, sorted: Vec<Vec<u8>> },
    /// The file can't be made, written or read. This is the last event.
    Failed(io::Error),
}

/// What the thread is to do.
pub(super) enum Job {
    Write { model: ModelName, extents: Vec<Range<u64>>, rows: Vec<u8> },
    Read { id: ReadId, model: ModelName, extents: Vec<Range<u64>>, layout: Arc<RowLayout> },
}

/// The way to the thread, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Jobs {
    sender: mpsc::Sender<Job>,
    /// Bytes that wait to be written.
    unwritten: Arc<AtomicU64>,
}

impl Jobs {
    pub(super) fn start(folder: PathBuf, open: Open, tell: impl Fn(DiskEvent) + Clone + Send + 'static) -> Self {
        let (sender, jobs) = mpsc::channel();
        let unwritten = Arc::new(AtomicU64::new(0));
        let waiting = Arc::clone(&unwritten);
        let told = tell.clone();
        let work = move || {
            if let Err(error) = open(&folder).and_then(|file| serve(&jobs, &file, &waiting, &told)) {
                told(DiskEvent::Failed(error));
            }
        };
        // Nobody waits for its end: what it has not written then is nobody's.
        if let Err(error) = thread::Builder::new().name("prefix-disk".to_owned()).spawn(work) {
            tell(DiskEvent::Failed(error));
        }
        Self { sender, unwritten }
    }

    /// Whether so much waits to be written that no more should.
    pub(super) fn are_behind(&self) -> bool {
        self.unwritten.load(Ordering::Relaxed) > BEHIND
    }

    /// False when the thread is gone.
    pub(super) fn send(&self, job: Job) -> bool {
        self.sender.send(job).is_ok()
    }

    pub(super) fn write(&self, model: ModelName, extents: Vec<Range<u64>>, rows: Vec<u8>) {
        self.unwritten.fetch_add(rows.len() as u64, Ordering::Relaxed);
        // A thread that is gone has told why.
        self.send(Job::Write { model, extents, rows });
    }
}

/// A file that only its owner has: nobody else may read it, and nobody finds it. What it holds tells of prompts.
///
/// # Errors
/// When it can't be made, or still has a name.
pub(crate) fn create(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!(".prefixes-{}", Uuid::now_v7().simple()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Works until nobody is left to ask for anything.
fn serve(jobs: &mpsc::Receiver<Job>, file: &File, unwritten: &AtomicU64, tell: &impl Fn(DiskEvent)) -> io::Result<()> {
    while let Ok(job) = jobs.recv() {
        let began = Instant::now();
        match job {
            Job::Write { model, extents, rows } => {
                let mut rest = rows.as_slice();
                for Range { start, end } in extents {
                    let (part, after) =
                        rest.split_at(rest.len().min(usize::try_from(end - start).unwrap_or(usize::MAX)));
                    file.write_all_at(part, start)?;
                    rest = after;
                }
                let bytes = rows.len() as u64;
                unwritten.fetch_sub(bytes, Ordering::Relaxed);
                PrefixWritten { model: &model, bytes, duration: began.elapsed() }.emit();
            }
            Job::Read { id, model, extents, layout } => {
                let mut rows = vec![0; usize::try_from(super::extents::length(&extents)).unwrap_or(usize::MAX)];
                let mut rest = rows.as_mut_slice();
                for Range { start, end } in extents {
                    let length = rest.len().min(usize::try_from(end - start).unwrap_or(usize::MAX));
                    let (part, after) = rest.split_at_mut(length);
                    file.read_exact_at(part, start)?;
                    rest = after;
                }
                PrefixRead { model: &model, bytes: rows.len() as u64, duration: began.elapsed() }.emit();
                tell(DiskEvent::Read { id, sorted: layout.sorted(&rows) });
            }
        }
    }
    Ok(())
}
