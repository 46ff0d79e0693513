//! What gave way in memory, on disk: another tree, of extents of a file, within a bound of its own.
//!
//! The tree and the extents are the MLX thread's, which never waits for the file. What is to be written and read goes to a
//! thread beside it in order, so that a read sees what was written before it was asked for and nothing that was written
//! after, and extents are free for others as soon as what they hold is dropped.

mod file;

use std::{collections::HashMap, convert::Infallible, ops::Range, path::PathBuf, sync::Arc};

use mlx_manager_signal::event::{PrefixDiskFailed, PrefixDiskHeld, PrefixNotWritten};

pub(crate) use self::file::{DiskEvent, Open, create};
use self::file::{Job, Jobs};
use super::{
    extents::{self, Extents},
    lookup::SHORTEST,
    radix::{RadixTree, Run},
};
use crate::{
    mlx::Exception,
    model::{KeyValueRun, ModelName, RowLayout},
};

/// Of one read.
pub(crate) type ReadId = u64;

/// Where a prefix cache has its file, and how much that may take.
#[derive(Debug, Clone)]
pub(crate) struct DiskSettings {
    pub(crate) folder: PathBuf,
    pub(crate) limit_bytes: u64,
    /// Makes the file.
    pub(crate) open: Open,
}

/// What is on disk, and how far reads and writes are.
#[derive(Debug)]
pub(super) struct DiskCache {
    folder: PathBuf,
    tree: RadixTree<Stored, Infallible>,
    extents: Extents,
    jobs: Jobs,
    reads: HashMap<ReadId, Read>,
    next_id: ReadId,
    /// Bytes asked for that have not come, and the most of them.
    reading: u64,
    most_reading: u64,
}

/// Rows of a span of tokens.
#[derive(Debug)]
struct Stored {
    layout: Arc<RowLayout>,
    extents: Vec<Range<u64>>,
}

/// What is read of a sequence.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) model: ModelName,
    pub(super) tokens: Vec<u32>,
    /// Tokens before those whose values are read.
    pub(super) from: usize,
    pub(super) layout: Arc<RowLayout>,
}

impl Stored {
    fn row(&self) -> u64 {
        self.layout.bytes() as u64
    }
}

impl Run for Stored {
    type Error = Exception;

    fn bytes(&self) -> u64 {
        extents::length(&self.extents)
    }

    fn is_used(&self) -> bool {
        false
    }

    fn split(&self, at: usize) -> Result<(Self, Self), Exception> {
        let half = |extents| Self { layout: Arc::clone(&self.layout), extents };
        let (head, tail) = extents::cut(&self.extents, at as u64 * self.row());
        Ok((half(head), half(tail)))
    }
}

impl DiskCache {
    /// Begins with a new file. What becomes of reads is told, as is that the file can't be used, after which there is nothing
    /// to do but drop this. No more is read at once than `most_reading` bytes.
    pub(super) fn new(
        settings: &DiskSettings,
        most_reading: u64,
        tell: impl Fn(DiskEvent) + Clone + Send + 'static,
    ) -> Self {
        let DiskSettings { folder, limit_bytes, open } = settings;
        Self {
            folder: folder.clone(),
            tree: RadixTree::new(*limit_bytes),
            extents: Extents::new(*limit_bytes),
            jobs: Jobs::start(folder.clone(), *open, tell),
            reads: HashMap::new(),
            next_id: 0,
            reading: 0,
            most_reading,
        }
    }

    /// Keeps a sequence of which these are the values in memory, as far as it isn't kept already. When the disk is behind
    /// with writing, it isn't.
    pub(super) fn spill(
        &mut self,
        model: &ModelName,
        tokens: &[u32],
        runs: &[&[KeyValueRun]],
    ) -> Result<(), Exception> {
        let Some(layout) = runs.first().map(|layers| Arc::new(RowLayout::of(layers))) else { return Ok(()) };
        let row = layout.bytes() as u64;
        if tokens.len() < SHORTEST || row * tokens.len() as u64 > self.tree.limit_bytes() {
            return Ok(());
        }
        // Room is made before: extents can't be taken that others have.
        loop {
            // What is used together goes last together.
            let matched = self.tree.lookup(model, tokens).lookup.matched;
            let bytes = row * (tokens.len() - matched) as u64;
            if bytes == 0 {
                return Ok(());
            }
            if self.jobs.are_behind() {
                PrefixNotWritten { model, bytes }.emit();
                return Ok(());
            }
            if self.tree.bytes() + bytes <= self.tree.limit_bytes() {
                break;
            }
            let extents = &mut self.extents;
            if !self
                .tree
                .evict(|leaving| leaving.runs.last().into_iter().for_each(|run| extents.give_back(&run.extents)))
            {
                return Ok(());
            }
        }
        let (extents, jobs) = (&mut self.extents, &self.jobs);
        let make = |range: Range<usize>| {
            let rows = rows(&layout, runs, range)?;
            let extents = extents.take(rows.len() as u64).ok_or_else(|| Exception::custom("no room on disk"))?;
            jobs.write(Arc::clone(model), extents.clone(), rows);
            Ok(Stored { layout: Arc::clone(&layout), extents })
        };
        self.tree.insert(model, tokens, true, Vec::new(), make, |_| {})?;
        PrefixDiskHeld(self.tree.bytes()).emit();
        Ok(())
    }

    /// Reads what a prompt has in common with what is kept, from this token on; `None` when that isn't worth it, or too much is
    /// being read.
    pub(super) fn read(&mut self, model: &ModelName, prompt: &[u32], from: usize) -> Option<ReadId> {
        let found = self.tree.lookup(model, prompt);
        let end = found.lookup.restored;
        if end < from + SHORTEST {
            return None;
        }
        let common = prompt.get(..end)?;
        // One that begins alike may be on its way.
        let serves = |read: &Read| read.model == *model && read.from <= from && read.tokens.starts_with(common);
        if let Some((id, _)) = self.reads.iter().find(|(_, read)| serves(read)) {
            return Some(*id);
        }
        let layout = found.spans.first().map(|(stored, _)| Arc::clone(&stored.layout))?;
        let row = layout.bytes() as u64;
        let all: Vec<Range<u64>> = found.spans.iter().flat_map(|(stored, _)| stored.extents.iter().cloned()).collect();
        let (wanted, _) = extents::cut(&all, end as u64 * row);
        let (_, wanted) = extents::cut(&wanted, from as u64 * row);
        let bytes = extents::length(&wanted);
        if self.reading + bytes > self.most_reading {
            return None;
        }
        let id = self.next_id;
        let job = Job::Read { id, model: Arc::clone(model), extents: wanted, layout: Arc::clone(&layout) };
        if !self.jobs.send(job) {
            return None;
        }
        self.next_id += 1;
        self.reading += bytes;
        let tokens = common.to_vec();
        self.reads.insert(id, Read { model: Arc::clone(model), tokens, from, layout });
        Some(id)
    }

    /// Bytes have come: what they are of, unless that was dropped meanwhile.
    pub(super) fn arrived(&mut self, id: ReadId, sorted: &[Vec<u8>]) -> Option<Read> {
        self.reading -= sorted.iter().map(|part| part.len() as u64).sum::<u64>();
        self.reads.remove(&id)
    }

    /// Drops all of a model's, what is being read too.
    pub(super) fn forget(&mut self, model: &ModelName) {
        self.tree.forget(model).iter().for_each(|stored| self.extents.give_back(&stored.extents));
        self.reads.retain(|_, read| read.model != *model);
        PrefixDiskHeld(self.tree.bytes()).emit();
    }

    /// Ends it, because the file can't be used.
    pub(super) fn fail(self, error: &std::io::Error) {
        PrefixDiskFailed { folder: &self.folder, error }.emit();
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.tree.bytes()
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        PrefixDiskHeld(0).emit();
    }
}

/// The rows of a span of a sequence of which these are the values, in order.
fn rows(layout: &RowLayout, runs: &[&[KeyValueRun]], span: Range<usize>) -> Result<Vec<u8>, Exception> {
    let mut rows = Vec::new();
    let mut start = 0;
    for layers in runs {
        let positions = layers.first().map_or(0, KeyValueRun::positions);
        let within = |at: usize| at.saturating_sub(start).min(positions);
        let wanted = within(span.start)..within(span.end);
        if !wanted.is_empty() {
            rows.extend(layout.rows(layers, wanted)?);
        }
        start += positions;
    }
    Ok(rows)
}
