//! The active file of a sink: it is continued, rotated, and found again when somebody moved it.
//!
//! It takes bytes and decides where they go; records, levels and queues are not its business. One thread owns it.
//! Enter at [`RollingFile::open`].

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::{Timestamp, ToSpan, Zoned, civil::DateTime, tz::TimeZone};
use mlx_manager_config::{Period, Rotation, is_stream, lock_of};

use super::{archive::Shelf, clock::Clock, line::TORN};

/// The group may read logs, others may not.
const MODE: u32 = 0o640;
/// How often the file's name is looked at, and a failed rotation tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The length of a sequence number in the lock file, newline included.
const NOTE_BYTES: usize = 21;

/// Hears of rotations.
pub type Rotated = Box<dyn Fn(Result<(), &io::Error>) + Send>;

/// Where and how a file rolls.
#[derive(Debug, Clone)]
pub struct RollingPlan {
    /// The active file.
    pub path: PathBuf,
    /// When a new one is begun.
    pub rotation: Rotation,
    /// Time zone of the periods.
    pub timezone: TimeZone,
    /// The time.
    pub clock: Clock,
}

/// An append-only file that rotates.
pub struct RollingFile {
    plan: RollingPlan,
    shelf: Shelf,
    file: File,
    size: u64,
    /// When the period of the active file ends.
    period_end: Option<Timestamp>,
    generation: u64,
    next_look: Instant,
    /// A rotation that failed is not tried at every record.
    next_rotation: Instant,
    /// Called after each rotation, and with the error of one that failed.
    rotated: Rotated,
    /// Held as long as the daemon lives. Not the log file itself, because that changes with each rotation. A stream has
    /// none, and is only written to.
    lock: Option<File>,
    /// What happens instead of a write.
    #[cfg(test)]
    pub(super) fault: Option<Box<dyn FnMut() -> Option<io::Error> + Send>>,
}

impl RollingFile {
    /// Opens the active file and continues it, with its size and its period.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another daemon writes this file; else what the file system says.
    pub fn open(
        plan: RollingPlan,
        shelf: Shelf,
        rotated: impl Fn(Result<(), &io::Error>) + Send + 'static,
    ) -> io::Result<Self> {
        if let Some(folder) = plan.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let lock = if is_stream(&plan.path) { None } else { Some(lock(&lock_of(&plan.path))?) };
        // Before it is opened: opening an existing file leaves its time alone, but a repair would not.
        let last_written = fs::metadata(&plan.path).and_then(|metadata| metadata.modified()).ok();
        let (file, size) = open_active(&plan.path, lock.is_none())?;
        let since = match last_written.and_then(|time| Timestamp::try_from(time).ok()) {
            Some(time) if size > 0 => time,
            _ => plan.clock.now(),
        };
        let now = Instant::now();
        Ok(Self {
            period_end: plan.rotation.every.and_then(|period| period_end(period, since, &plan.timezone)),
            plan,
            shelf,
            file,
            size,
            generation: 0,
            next_look: now + LOOK_EVERY,
            next_rotation: now,
            rotated: Box::new(rotated),
            lock,
            #[cfg(test)]
            fault: None,
        })
    }

    /// Goes on by another plan for the same path.
    pub fn change(&mut self, plan: RollingPlan, shelf: Shelf, rotated: Rotated) {
        if plan.rotation.every != self.plan.rotation.every || plan.timezone != self.plan.timezone {
            let now = plan.clock.now();
            self.period_end = plan.rotation.every.and_then(|period| period_end(period, now, &plan.timezone));
        }
        (self.plan, self.shelf, self.rotated) = (plan, shelf, rotated);
    }

    /// The number that [`Self::note_sequence`] noted last, if any.
    ///
    /// # Errors
    /// What the file system says.
    pub fn noted_sequence(&self) -> io::Result<Option<u64>> {
        let mut note = [0; NOTE_BYTES];
        let Some(lock) = &self.lock else { return Ok(None) };
        let length = lock.read_at(&mut note, 0)?;
        Ok(std::str::from_utf8(&note[..length]).ok().and_then(|note| note.trim_end().parse().ok()))
    }

    /// Notes where a new file begins, in the lock file: until a record is in the new file, and when somebody took the
    /// old ones away, no log file says how far the numbers were.
    ///
    /// # Errors
    /// What the file system says.
    pub fn note_sequence(&self, next: u64) -> io::Result<()> {
        // Of one length, so that it is overwritten whole and needs no space on a full disk.
        self.lock.as_ref().map_or(Ok(()), |lock| lock.write_all_at(format!("{next:020}\n").as_bytes(), 0))
    }

    /// The active file.
    pub fn path(&self) -> &Path {
        &self.plan.path
    }

    /// Grows whenever writing goes on in another file.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How many bytes fit into the active file.
    pub fn room(&self) -> u64 {
        let limit = self.plan.rotation.size.filter(|_| self.lock.is_some());
        limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.size))
    }

    /// Once a second: opens the file anew if it was renamed or deleted, and rotates it if its period is over.
    ///
    /// # Errors
    /// When it could not be opened.
    pub fn look_after(&mut self) -> io::Result<()> {
        if Instant::now() < self.next_look {
            return Ok(());
        }
        let is_locked = || self.lock.as_ref().is_none_or(|lock| leads_to(&lock_of(&self.plan.path), lock));
        if !leads_to(&self.plan.path, &self.file) || !is_locked() {
            self.reopen()?;
        } else if self.lock.is_some() {
            let length = self.file.metadata()?.len();
            // Somebody may have cut the file, as a copying log rotation does.
            if length < self.size {
                self.generation += 1;
            }
            self.size = length;
        }
        // Only now: a file that can't be opened is tried again before anything is written into one that was moved away.
        self.next_look = Instant::now() + LOOK_EVERY;
        self.follow_clock();
        self.make_room_for(0)
    }

    /// Where the clock was set back by more than a period, the period's end is that of the corrected time; a step within
    /// a period changes nothing, or the period would end twice.
    fn follow_clock(&mut self) {
        let Some(period) = self.plan.rotation.every else { return };
        let end_after = |moment| period_end(period, moment, &self.plan.timezone);
        let end = end_after(self.plan.clock.now());
        if end.and_then(end_after) < self.period_end {
            self.period_end = end;
        }
    }

    /// Opens the file anew under its name, and takes the lock anew if somebody took that away.
    ///
    /// # Errors
    /// When it could not be opened or another daemon writes it; writing then goes on in the old file.
    pub fn reopen(&mut self) -> io::Result<()> {
        let path = &self.plan.path;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let name = lock_of(path);
        if is_stream(path) {
            self.lock = None;
        } else if !self.lock.as_ref().is_some_and(|lock| leads_to(&name, lock)) {
            self.lock = Some(lock(&name)?);
        }
        (self.file, self.size) = open_active(path, self.lock.is_none())?;
        self.generation += 1;
        Ok(())
    }

    /// Rotates if the period is over or if so many more bytes would cross the size. A rotation that fails is reported
    /// and tried again later: too large a file is better than a lost record.
    ///
    /// # Errors
    /// When the new file could not be opened.
    pub fn make_room_for(&mut self, length: u64) -> io::Result<()> {
        let now = self.plan.clock.now();
        let period_over = self.period_end.is_some_and(|end| now >= end);
        if self.lock.is_none() || !period_over && (length <= self.room() || self.size == 0) {
            return Ok(());
        }
        if self.size > 0 {
            if Instant::now() < self.next_rotation {
                return Ok(());
            }
            if let Err(error) = self.shelf.shelve(&self.plan.path, now) {
                self.next_rotation = Instant::now() + LOOK_EVERY;
                (self.rotated)(Err(&error));
                return Ok(());
            }
            self.reopen()?;
            (self.rotated)(Ok(()));
        }
        self.period_end = self.plan.rotation.every.and_then(|period| period_end(period, now, &self.plan.timezone));
        Ok(())
    }

    /// Appends what it can in one go and returns how much that was.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(error) = self.fault.as_mut().and_then(|fault| fault()) {
            return Err(error);
        }
        let written = match self.file.write(bytes) {
            Ok(0) if !bytes.is_empty() => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        self.size += written as u64;
        Ok(written)
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync(&self) -> io::Result<()> {
        match self.file.sync_data() {
            // A pipe or a device can't, and needn't.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
            result => result,
        }
    }

    /// On a full disk: deletes the sink's oldest archive, if archives are ever deleted.
    pub fn give_up_oldest_archive(&self) {
        self.shelf.give_up_oldest();
    }
}

fn leads_to(path: &Path, file: &File) -> bool {
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    path.metadata().is_ok_and(|named| file.metadata().is_ok_and(|ours| inode(named) == inode(ours)))
}

fn lock(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(MODE).open(path);
    // Who reads of the log file only would look at the wrong one.
    let file = opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::WouldBlock, "another running daemon writes it"))
        }
        // Some network file systems have no locks. Logging there is worth more than the check.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open_active(path: &Path, is_stream: bool) -> io::Result<(File, u64)> {
    // Also for reading, for the sake of pipes: one without a reader opens all the same, and keeps what fits into it.
    let mut file = OpenOptions::new().create(true).append(true).read(true).mode(MODE).open(path)?;
    let mut size = if is_stream { 0 } else { file.metadata()?.len() };
    if size > 0 {
        // A crash may have torn the last record. It says so, because half a number looks like a whole one, and the next
        // one starts on a line of its own.
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            let mended = format!("{TORN}\n");
            file.write_all(mended.as_bytes())?;
            size += mended.len() as u64;
        }
    }
    Ok((file, size))
}

/// The end of the period that a moment lies in; nothing at the end of representable time.
fn period_end(period: Period, moment: Timestamp, timezone: &TimeZone) -> Option<Timestamp> {
    let local = moment.to_zoned(timezone.clone());
    let (at, on) = match period {
        Period::Hour => return hour_end(&local),
        Period::Day { at } => (at, None),
        Period::Week { on, at } => (at, Some(on)),
    };
    // Where the clocks skip this time of day the period ends just after the gap; where they repeat it, the first time.
    (0..=8).find_map(|days| {
        let date = local.date().checked_add(days.days()).ok()?;
        let end = DateTime::from_parts(date, at).to_zoned(timezone.clone()).ok()?.timestamp();
        (end > moment && on.is_none_or(|on| date.weekday() == on)).then_some(end)
    })
}

fn hour_end(local: &Zoned) -> Option<Timestamp> {
    let start = local.with().minute(0).second(0).subsec_nanosecond(0).build().ok()?;
    start.checked_add(1.hour()).ok().map(|end| end.timestamp())
}

#[cfg(test)]
mod tests;
