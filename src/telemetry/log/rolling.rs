//! The active file of a sink: it is continued, rotated, and found again when somebody moved it.
//!
//! It takes bytes and decides where they go; records, levels and queues are not its business. One thread owns it.
//! Enter at [`RollingFile::open`].

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::{Timestamp, ToSpan, Zoned, civil::DateTime, tz::TimeZone};

use super::{archive::Shelf, clock::Clock};
use crate::config::{Period, Rotation};

/// The group may read logs, others may not.
const MODE: u32 = 0o640;
/// How often the file's name is looked at, and a failed rotation tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    /// Held as long as the daemon lives. Not the log file itself, because that changes with each rotation.
    _lock: File,
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
        let lock = lock(&plan.path)?;
        // Before it is opened: opening an existing file leaves its time alone, but a repair would not.
        let last_written = fs::metadata(&plan.path).and_then(|metadata| metadata.modified()).ok();
        let (file, size) = open_active(&plan.path)?;
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
            _lock: lock,
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
        self.plan.rotation.size.map_or(u64::MAX, |limit| limit.saturating_sub(self.size))
    }

    /// Once a second: opens the file anew if it was renamed or deleted, and rotates it if its period is over.
    ///
    /// # Errors
    /// When it could not be opened.
    pub fn look_after(&mut self) -> io::Result<()> {
        if Instant::now() < self.next_look {
            return Ok(());
        }
        self.next_look = Instant::now() + LOOK_EVERY;
        let ours = self.file.metadata()?;
        let in_place =
            fs::metadata(&self.plan.path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()));
        if in_place {
            // Somebody may have cut the file, as a copying log rotation does.
            self.size = ours.len();
        } else {
            self.reopen()?;
        }
        self.make_room_for(0)
    }

    /// Opens the file anew under its name.
    ///
    /// # Errors
    /// When it could not be opened; writing then goes on in the old file.
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Some(folder) = self.plan.path.parent() {
            fs::create_dir_all(folder)?;
        }
        (self.file, self.size) = open_active(&self.plan.path)?;
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
        if !period_over && (length <= self.room() || self.size == 0) {
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

fn lock(path: &Path) -> io::Result<File> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file =
        OpenOptions::new().create(true).append(true).mode(MODE).open(path.with_file_name(format!(".{name}.lock")))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        // Some network file systems have no locks. Logging there is worth more than the check.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open_active(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().create(true).append(true).read(true).mode(MODE).open(path)?;
    let mut size = file.metadata()?.len();
    if size > 0 {
        // A crash may have torn the last record. The next one starts on a line of its own.
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
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
