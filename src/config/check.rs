//! What only shows when sections are seen together, or when the disk is looked at.

use std::{
    net::SocketAddr,
    path::{Component, Path, PathBuf},
};

use super::{Config, ModelPath, SinkKind, database::sqlite_file, decode::Decoder};

/// Contradictions between keys.
pub(super) fn relations(decoder: &mut Decoder<'_>, config: &Config) {
    if config.prometheus.enabled && collide(config.server.listen, config.prometheus.listen) {
        let key = "metrics.prometheus.listen";
        let place = decoder.place_of(key);
        let message = format!("is {}, which `server.listen` takes", config.prometheus.listen);
        decoder.report_relation(key, place, &message, "give it a port of its own, or 0");
    }
    let mut files: Vec<(PathBuf, &str)> = Vec::new();
    for (index, sink) in config.log.sinks.iter().enumerate() {
        let SinkKind::File { path, .. } = &sink.kind else { continue };
        let path = normalize(path);
        match files.iter().find(|(known, _)| *known == path) {
            Some((_, other)) => {
                let key = format!("log.sinks[{index}].file");
                let place = decoder.place_of(&key);
                let message = format!("is the file of the sink \"{other}\" too: {}", path.display());
                decoder.report_relation(&key, place, &message, "give each sink a file of its own");
            }
            None => files.push((path, &sink.name)),
        }
    }
    if let Some(name) = &config.local.default_model {
        let known = config.local.models.iter().any(|model| model.name == *name);
        // Names with a slash are found in the Hugging Face cache, whose state isn't part of the configuration.
        if !known && !name.contains('/') && !config.local.models_dir.join(name).is_dir() {
            let message = format!("is \"{name}\", which is neither in [[local.models]] nor in `local.models_dir`");
            decoder.warn("local.default_model", &message, "the daemon starts without a loaded model");
        }
    }
}

fn collide(left: SocketAddr, right: SocketAddr) -> bool {
    let same = left.ip() == right.ip() || left.ip().is_unspecified() || right.ip().is_unspecified();
    left.port() != 0 && left.port() == right.port() && same
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

/// Folders and files that the daemon will need. Nothing is made here, and nothing found here stops the daemon.
pub(super) fn places(decoder: &mut Decoder<'_>, config: &Config) {
    let logs = config.log.sinks.iter().any(|sink| matches!(sink.kind, SinkKind::File { .. }));
    if logs && let Some(reason) = cannot_hold(&config.log.dir) {
        let hint = "the file sinks will lose their records until it can be written";
        decoder.warn("log.dir", &format!("can't be used: {reason}"), hint);
    }
    for (index, model) in config.local.models.iter().enumerate() {
        if let ModelPath::Folder(folder) = &model.path
            && !folder.join("config.json").is_file()
        {
            let message = format!("holds no model: {} is missing", folder.join("config.json").display());
            let hint = "requests for it get an error until it is there";
            decoder.warn(&format!("local.models[{index}].path"), &message, hint);
        }
    }
    if let Some(folder) = sqlite_file(&config.database.url).and_then(Path::parent)
        && let Some(reason) = cannot_hold(folder)
    {
        decoder.warn(
            "database.url",
            &format!("can't be used: {reason}"),
            "the audit will be lost until it can be written",
        );
    }
    for (index, destination) in config.otlp.iter().enumerate() {
        if let Some(reason) = destination.spool.as_ref().and_then(|spool| cannot_hold(&spool.dir)) {
            let key = format!("otlp[{index}].spool.dir");
            decoder.warn(&key, &format!("can't be used: {reason}"), "batches will wait in memory only");
        }
    }
}

/// Why no file could be made below a folder, as far as can be told without making one.
fn cannot_hold(folder: &Path) -> Option<String> {
    let existing = folder.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok())?;
    match existing.metadata() {
        Err(error) => Some(format!("{}: {error}", existing.display())),
        Ok(metadata) if !metadata.is_dir() => Some(format!("{} isn't a folder", existing.display())),
        Ok(metadata) if metadata.permissions().readonly() => Some(format!("{} is read-only", existing.display())),
        Ok(_) => None,
    }
}
