//! Pulls a model from the Hugging Face hub into the models folder.
//!
//! Enter at [`pull`]. [`listing`] says which of a repository's files make a model, [`hub`] makes the HTTP calls, each with
//! its span, and [`place`] looks after the disk: what is there survives any interruption, and nothing is listed as a model
//! before all of it has been checked.

mod error;
mod hub;
mod listing;
mod partial;
mod place;
mod repository;

use std::{path::PathBuf, time::Duration};

use mlx_manager_config::HubConfig;
use mlx_manager_signal::{
    event::{DownloadRetried, FileDownloaded, PullFinished, PullStarted},
    span,
};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, Span};

use self::{
    hub::{Get, Hub, Retry},
    listing::{Listing, RemoteFile},
    partial::Partial,
    place::{Installed, Place},
};

pub use error::PullError;
pub use repository::{Repository, Source};

/// What to pull, and where to.
#[derive(Debug)]
pub struct Pull<'a> {
    /// The repository and its revision.
    pub source: &'a Source,
    /// The hub.
    pub hub: &'a HubConfig,
    /// Below it the model gets a folder `organisation/name`.
    pub models_dir: PathBuf,
    /// What `model_type` in config.json may say, so that nobody waits for gigabytes that can't be used.
    pub supported: &'a [&'static str],
}

/// A model that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its folder.
    pub folder: PathBuf,
    /// The commit that the folder holds.
    pub commit: String,
    /// The size of its files.
    pub bytes: u64,
    /// How it got there.
    pub outcome: Outcome,
}

/// How a model got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Pulled,
    /// It takes the place of another commit, or of an incomplete one.
    Updated,
    /// All of it was there.
    Present,
}

impl Outcome {
    /// The name in spans and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::Updated => "updated",
            Self::Present => "present",
        }
    }
}

/// How far a pull is.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// The file that is next.
    File(&'a str),
    /// Bytes there, of all bytes of the model.
    Bytes(u64, u64),
    /// A call failed for this reason; the next one follows after a wait.
    Waiting(&'static str, Duration),
}

/// Pulls a model. Dropping the future interrupts the pull, and the next one goes on from there. Waits for the disk in
/// place, so it wants a runtime that has nothing else to do.
///
/// # Errors
/// When it can't be had, or can't be kept. What arrived stays for the next attempt, unless it is damaged.
pub async fn pull(pull: &Pull<'_>, progress: &(dyn Fn(Progress<'_>) + Sync)) -> Result<Pulled, PullError> {
    let repository = &pull.source.repository;
    let span = span::pull(&repository.to_string(), &pull.source.revision);
    let mut run =
        Run { pull, progress, span: span.clone(), started: Instant::now(), downloaded: 0, present: 0, finished: false };
    async move {
        let result = run.run().await;
        match &result {
            Ok(pulled) => run.finish(pulled.outcome.as_str(), None),
            Err(error) => run.finish(error.kind(), Some(error)),
        }
        result
    }
    .instrument(span)
    .await
}

struct Run<'a> {
    pull: &'a Pull<'a>,
    progress: &'a (dyn Fn(Progress<'_>) + Sync),
    span: Span,
    started: Instant,
    /// Bytes that came over the network.
    downloaded: u64,
    /// Bytes of the model that are on disk.
    present: u64,
    finished: bool,
}

impl Run<'_> {
    async fn run(&mut self) -> Result<Pulled, PullError> {
        let Pull { source, models_dir, .. } = self.pull;
        let hub = Hub::new(self.pull.hub)?;
        let listing = self.listing(&hub).await?;
        let bytes = listing.bytes();
        span::pull_resolved(&self.span, &listing.commit, listing.files.len(), bytes);
        let place = Place::lock(models_dir, &source.repository)?;
        let pulled =
            |outcome| Pulled { folder: place.folder().to_owned(), commit: listing.commit.clone(), bytes, outcome };
        let installed = place.installed(&listing)?;
        let outcome = match installed {
            Installed::Complete => return Ok(pulled(Outcome::Present)),
            Installed::Other => Outcome::Updated,
            Installed::Absent => Outcome::Pulled,
        };
        let scratch = place.scratch(&listing.commit)?;
        self.present = place::present(&scratch, &listing);
        place::check_free(&scratch, bytes - self.present)?;
        PullStarted {
            repository: &source.repository.to_string(),
            commit: &listing.commit,
            files: listing.files.len(),
            bytes,
            bytes_present: self.present,
        }
        .emit();
        for file in &listing.files {
            (self.progress)(Progress::File(&file.name));
            (self.progress)(Progress::Bytes(self.present, bytes));
            let partial = Partial::open(scratch.join(&file.name), file).await?;
            self.file(&hub, &listing, file, partial).await?;
            if file.name == listing::CONFIG {
                listing::check_supported(&scratch.join(&file.name), &source.repository, self.pull.supported)?;
            }
        }
        place.install(&scratch, &listing, installed)?;
        Ok(pulled(outcome))
    }

    async fn listing(&self, hub: &Hub) -> Result<Listing, PullError> {
        let mut get = Get::new(&self.span, hub.listing_url(self.pull.source)?);
        let mut retry = Retry::new(hub::LISTING_TRIES);
        loop {
            let failure = match hub.listing(&mut get, self.pull.source).await {
                Ok(body) => return Listing::read(&body, &self.pull.source.repository),
                Err(failure) => failure,
            };
            self.wait("the list of files", failure, &mut retry).await?;
        }
    }

    /// Downloads what a file lacks, until it is whole and what the hub says.
    async fn file(
        &mut self,
        hub: &Hub,
        listing: &Listing,
        file: &RemoteFile,
        mut partial: Partial<'_>,
    ) -> Result<(), PullError> {
        let mut get = Get::new(&self.span, hub.file_url(&self.pull.source.repository, &listing.commit, &file.name)?);
        let mut retry = Retry::new(hub::FILE_TRIES);
        let mut restarted = false;
        let others = self.present - partial.length().min(self.present);
        let mut reached = partial.length();
        loop {
            while !partial.is_whole() {
                let total = listing.bytes();
                let progress = self.progress;
                let result = hub
                    .download(&mut get, self.pull.source, &mut partial, |chunk, length| {
                        self.downloaded += chunk;
                        progress(Progress::Bytes(others + length, total));
                    })
                    .await;
                let Err(failure) = result else { continue };
                if partial.length() > reached {
                    // The connection works at times. Where it can only begin anew, that leads nowhere.
                    reached = partial.length();
                    retry = Retry::new(hub::FILE_TRIES);
                }
                self.wait(&file.name, failure, &mut retry).await?;
            }
            if partial.verify()? {
                self.present = others + file.size;
                FileDownloaded { file: &file.name, bytes: file.size }.emit();
                return Ok(());
            }
            // What an earlier attempt left may be at fault, so one more is made from the start.
            partial.clear()?;
            if std::mem::replace(&mut restarted, true) {
                return Err(PullError::Damaged { file: file.name.clone() });
            }
        }
    }

    /// Waits for the next try, unless another would be no use.
    async fn wait(&self, file: &str, failure: hub::Failure, retry: &mut Retry) -> Result<(), PullError> {
        let Some(delay) = failure.retry.and_then(|again| retry.next(again.after)) else { return Err(failure.error) };
        let reason = failure.retry.map_or("", |again| again.reason);
        DownloadRetried { file, error: &failure.error, reason, delay }.emit();
        (self.progress)(Progress::Waiting(reason, delay));
        sleep(delay).await;
        Ok(())
    }

    fn finish(&mut self, outcome: &'static str, error: Option<&PullError>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let bytes_downloaded = self.downloaded;
        let repository = self.pull.source.repository.to_string();
        let duration = self.started.elapsed();
        let cause = error.map(|error| error as &(dyn std::error::Error + 'static));
        PullFinished { repository: &repository, outcome, bytes_downloaded, duration, error: cause }.emit();
        span::pull_finished(&self.span, outcome, bytes_downloaded, cause);
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.finish("interrupted", None);
    }
}
