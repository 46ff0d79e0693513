//! What only shows when sections are seen together, or when the disk is looked at.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

use rustix::fs::Access;

use super::{
    Config, DatabaseConfig, LocalConfig, LogConfig, ModelPath, PrometheusConfig, Rotation, ServerConfig, SinkKind,
    database::{self, sqlite_file},
    decode::Decoder,
    is_stream, local, lock_of, log, log_file, metrics, otlp,
};

/// Two listeners on one port. What could not be decoded is `None`, here and below.
pub(super) fn listeners(
    decoder: &mut Decoder<'_>,
    server: Option<&ServerConfig>,
    prometheus: Option<&PrometheusConfig>,
) {
    let (Some(server), Some(prometheus)) = (server, prometheus) else { return };
    if prometheus.enabled && collide(server.listen, prometheus.listen) {
        let key = metrics::TABLE.path_of(&metrics::LISTEN);
        let place = decoder.place_of(&key);
        let message = format!("is {}, which `server.listen` takes", prometheus.listen);
        decoder.report_relation(&key, place, &message, "give it a port of its own, or 0");
    }
}

/// Log files that would be each other's, the database's or `own`, the configuration.
pub(super) fn log_files(
    decoder: &mut Decoder<'_>,
    log: Option<&LogConfig>,
    database: Option<&DatabaseConfig>,
    own: Option<&Path>,
) {
    let Some(log) = log else { return };
    let mut files: Vec<(&Path, &str)> = Vec::new();
    for (index, sink) in log.sinks.iter().enumerate() {
        let SinkKind::File { path, .. } = &sink.kind else { continue };
        let key = log::SINKS.path_in_entry(index, &log_file::FILE);
        if let Some((_, other)) = files.iter().find(|(known, _)| is_same_file(known, path)) {
            let message = format!("is the file of the sink \"{other}\" too: {}", normalize(path).display());
            decoder.report_relation(&key, decoder.place_of(&key), &message, "give each sink a file of its own");
        } else if let Some((_, other)) = files.iter().find(|(known, _)| archived_as(known) == archived_as(path)) {
            let message = format!("has archives with the names of those of the sink \"{other}\"");
            decoder.report_relation(&key, decoder.place_of(&key), &message, "give it another name");
        }
        files.push((path, &sink.name));
    }
    for (index, sink) in log.sinks.iter().enumerate() {
        let SinkKind::File { path, .. } = &sink.kind else { continue };
        if own.is_some_and(|file| is_same_file(file, path)) {
            let key = log::SINKS.path_in_entry(index, &log_file::FILE);
            decoder.report_relation(&key, decoder.place_of(&key), "is this very configuration", "give it another name");
        }
        let is_lock_of = |known: &Path| {
            let lock = lock_of(known);
            lock.file_name() == path.file_name() && is_same_file(&lock, path)
        };
        if let Some((_, other)) = files.iter().find(|(known, _)| is_lock_of(known)) {
            let key = log::SINKS.path_in_entry(index, &log_file::FILE);
            let message = format!("is the lock file of the sink \"{other}\"");
            decoder.report_relation(&key, decoder.place_of(&key), &message, "give it another name");
        }
    }
    if let Some(database) = database.and_then(|database| sqlite_file(&database.url))
        && let Some((_, sink)) = files.iter().find(|(path, _)| is_same_file(path, database))
    {
        let (key, message) =
            (database::TABLE.path_of(&database::URL), format!("is the log file of the sink \"{sink}\""));
        decoder.report_relation(&key, decoder.place_of(&key), &message, "give the database a file of its own");
    }
}

/// A default model that isn't there.
pub(super) fn default_model(decoder: &mut Decoder<'_>, local: Option<&LocalConfig>) {
    let Some(local) = local else { return };
    if let Some(name) = &local.default_model {
        let known = local.models.iter().any(|model| model.name == *name);
        // Names with a slash are found in the Hugging Face cache, whose state isn't part of the configuration.
        if !known && !name.contains('/') && !local.models_dir.join(name).is_dir() {
            let message = format!("is \"{name}\", which is neither in [[local.models]] nor in `local.models_dir`");
            decoder.warn(
                &local::TABLE.path_of(&local::DEFAULT_MODEL),
                &message,
                "the daemon starts without a loaded model",
            );
        }
    }
}

fn collide(left: SocketAddr, right: SocketAddr) -> bool {
    let same = left.ip() == right.ip() || left.ip().is_unspecified() || right.ip().is_unspecified();
    left.port() != 0 && left.port() == right.port() && same
}

/// Whether two paths lead to one file: by their text, by links, or because the file system ignores case.
fn is_same_file(left: &Path, right: &Path) -> bool {
    let inode = |path: &Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    real_path(left) == real_path(right) || inode(left).is_some_and(|left| inode(right) == Some(left))
}

/// What the names of a file's archives begin and end with; without an extension they get `.log`.
fn archived_as(path: &Path) -> PathBuf {
    let path = real_path(path);
    if path.extension().is_none() { path.with_extension("log") } else { path }
}

/// A path with its links resolved as far as it exists.
fn real_path(path: &Path) -> PathBuf {
    // A link to a file that is yet to be made.
    let target = path.read_link().ok().and_then(|target| Some(path.parent()?.join(target)));
    let path = target.filter(|_| !path.exists()).unwrap_or_else(|| path.to_owned());
    let resolved = path.ancestors().find_map(|existing| {
        let rest = path.strip_prefix(existing).ok()?;
        existing.canonicalize().ok().map(|existing| existing.join(rest))
    });
    normalize(&resolved.unwrap_or(path))
}

/// A path without `.` and, as far as the text shows, without `..`.
fn normalize(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if result.file_name().is_some() => {
                result.pop();
            }
            component => result.push(component),
        }
    }
    result
}

/// Folders and files that the daemon will need. Nothing is made here. Log files and spools that can't be written are
/// obstacles: the daemon says so and doesn't start. Nothing else that is found here stops it.
pub(super) fn places(decoder: &mut Decoder<'_>, config: &Config) {
    log_folders(decoder, &config.log);
    for (index, model) in config.local.models.iter().enumerate() {
        if let ModelPath::Folder(folder) = &model.path
            && !folder.join("config.json").is_file()
        {
            let message = format!("holds no model: {} is missing", folder.join("config.json").display());
            let hint = "requests for it get an error until it is there";
            decoder.warn(&local::MODELS.path_in_entry(index, &local::PATH), &message, hint);
        }
    }
    if let Some(folder) = sqlite_file(&config.database.url).and_then(Path::parent)
        && let Some(reason) = cannot_hold(folder)
    {
        decoder.warn(
            &database::TABLE.path_of(&database::URL),
            &format!("can't be used: {reason}"),
            "the audit will be lost until it can be written",
        );
    }
    for (index, destination) in config.otlp.iter().enumerate().filter(|(_, destination)| destination.is_active()) {
        if let Some(reason) = destination.spool.as_ref().and_then(|spool| cannot_hold(&spool.dir)) {
            let hint = "name a folder that the daemon may write to, or leave out `spool`";
            let key = format!("{}.{}", otlp::TABLE.path_in_entry(index, &otlp::SPOOL), otlp::DIR.name);
            decoder.obstacle(&key, &format!("can't be used: {reason}"), hint);
        }
    }
}

fn log_folders(decoder: &mut Decoder<'_>, log: &LogConfig) {
    let dir = &log.dir;
    let mut dir_reported = false;
    for (index, sink) in log.sinks.iter().enumerate() {
        let SinkKind::File { path, rotation, .. } = &sink.kind else { continue };
        let hint = "name another file, or change the owner or mode of what is there";
        let key = log::SINKS.path_in_entry(index, &log_file::FILE);
        if is_stream(path) {
            if let Some(reason) = cannot_append(path) {
                decoder.obstacle(&key, &format!("can't be written: {reason}"), hint);
            }
            continue;
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        if let Some(reason) = cannot_hold(dir).filter(|_| path.starts_with(dir)) {
            if !dir_reported {
                let hint = "name a folder that the daemon may write to, or change this one's owner or mode";
                decoder.obstacle(&log::TABLE.path_of(&log::DIR), &format!("can't hold log files: {reason}"), hint);
            }
            dir_reported = true;
            continue;
        }
        let archive = folder.join("archive");
        let archives = || cannot_hold(&archive).filter(|_| *rotation != Rotation::default());
        let files = || cannot_append(path).or_else(|| cannot_append(&lock_of(path)));
        if let Some(reason) = cannot_hold(folder).or_else(files).or_else(archives) {
            decoder.obstacle(&key, &format!("can't be written: {reason}"), hint);
        }
    }
}

/// Why a file that is there can't be continued.
fn cannot_append(path: &Path) -> Option<String> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Some(format!("{} is a folder", path.display())),
        Ok(metadata) if metadata.file_type().is_socket() => Some(format!("{} is a socket", path.display())),
        // What it holds would be overwritten.
        Ok(metadata) if metadata.file_type().is_block_device() => Some(format!("{} is a disk", path.display())),
        Ok(_) => denied(path, Access::READ_OK | Access::WRITE_OK),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("{}: {error}", path.display())),
    }
}

/// Why no file could be made below a folder, as far as can be told without making one.
fn cannot_hold(folder: &Path) -> Option<String> {
    let existing = folder.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok())?;
    // Where a folder is missing, `..` after it goes by the text.
    let rest = folder.strip_prefix(existing).unwrap_or(folder);
    if rest.components().any(|component| component == Component::ParentDir) {
        return cannot_hold(&real_path(folder));
    }
    match existing.metadata() {
        Err(error) => Some(format!("{}: {error}", existing.display())),
        Ok(metadata) if !metadata.is_dir() => Some(format!("{} isn't a folder", existing.display())),
        Ok(_) if is_kernels(existing) => Some(format!("{} belongs to the kernel", existing.display())),
        Ok(_) => denied(existing, Access::WRITE_OK | Access::EXEC_OK),
    }
}

/// Whether a folder is one of /proc or /sys, where not even root makes files, though access(2) doesn't say so.
#[cfg(target_os = "linux")]
fn is_kernels(folder: &Path) -> bool {
    const SYSFS_MAGIC: rustix::fs::FsWord = 0x6265_6572;
    let file_system = rustix::fs::statfs(folder).map(|stats| stats.f_type);
    file_system.is_ok_and(|magic| [rustix::fs::PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&magic))
}

#[cfg(not(target_os = "linux"))]
fn is_kernels(_: &Path) -> bool {
    false
}

fn denied(path: &Path, access: Access) -> Option<String> {
    let error = io::Error::from(rustix::fs::access(path, access).err()?);
    Some(format!("{}: {error}", path.display()))
}
