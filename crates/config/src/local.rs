//! `[local]`

use std::{path::PathBuf, time::Duration};

use mlx_manager_llm::Priority;

use super::{
    decode::Decoder,
    problem::Place,
    schema::{Key, Table},
    section::{Refusal, Section},
    setting::{Choice, Count, DurationOrZero, Filled, Raw, Setting, SizeOrZero, parse_percent, parse_size},
};

/// Local models.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Scanned for MLX model folders.
    pub models_dir: PathBuf,
    /// The Hugging Face hub's cache folder, scanned too; `None` when there is no home folder.
    pub hub_dir: Option<PathBuf>,
    /// Where the built-in model is unpacked, and the prefix cache has its file.
    pub cache_dir: PathBuf,
    /// Loaded at start.
    pub default_model: Option<String>,
    /// Loaded at start after it, in this order.
    pub preload: Vec<String>,
    /// Never unloaded, once they are loaded.
    pub pin: Vec<String>,
    /// The most models in memory at the same time; `None` when only memory counts.
    pub max_models: Option<usize>,
    /// How long a request may wait for room for its model.
    pub load_timeout: Duration,
    /// The most memory MLX may hold.
    pub memory_limit: MemoryLimit,
    /// What becomes of packed weights on a CPU.
    pub unpack: Unpack,
    /// Bytes that keys and values of earlier prompts and answers may take; 0 keeps none.
    pub prefix_cache: u64,
    /// Bytes on disk for those that give way there; 0 uses no disk.
    pub prefix_disk: u64,
    /// How long a model stays in memory that nobody uses.
    pub keep_alive: KeepAlive,
    /// The most requests computed at the same time.
    pub max_batch: usize,
    /// The most requests that wait beyond them.
    pub queue: usize,
    /// The most prompt tokens that those have together.
    pub queue_tokens: u64,
    /// Of requests for which neither a header nor a route says it.
    pub priority: Priority,
    /// Models with a name of their own.
    pub models: Vec<LocalModel>,
}

/// A limit on memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryLimit {
    /// A share of the machine's memory, in (0, 1].
    Share(f64),
    /// Bytes.
    Bytes(u64),
}

/// How long a model stays in memory that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Until another model needs the room.
    Forever,
    /// This long after its last request; with zero it goes as soon as nobody uses it.
    For(Duration),
}

/// What becomes of packed weights on a CPU, where products with them don't gain from batching as those with floats do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpack {
    /// Floats, where they leave half of the memory limit free.
    Auto,
    /// Floats, wherever they fit at all.
    Always,
    /// They stay packed.
    Never,
}

/// A model with a name of its own.
#[derive(Debug, Clone)]
pub struct LocalModel {
    /// What requests call it.
    pub name: String,
    /// Where it is.
    pub path: ModelPath,
    /// How long it stays in memory that nobody uses; `None` means as others do.
    pub keep_alive: Option<KeepAlive>,
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPath {
    /// `builtin:demo`, the model inside the binary.
    BuiltinDemo,
    /// A folder in MLX format.
    Folder(PathBuf),
}

const MODELS_DIR: Key =
    Key::new("models_dir", "\"models\"", "scanned for MLX model folders; the Hugging Face cache is read too");
pub(super) const DEFAULT_MODEL: Key = Key::new("default_model", "\"demo\"", "loaded at start; \"\" loads none");
const PRELOAD: Key = Key::new("preload", "[]", "loaded at start after it, in this order");
const PIN: Key = Key::new("pin", "[]", "never unloaded, once they are loaded");
const MAX_MODELS: Key = Key::bare("max_models", "in memory at the same time; left out, only memory counts").sample("4");
const LOAD_TIMEOUT: Key = Key::new("load_timeout", "\"5 min\"", "how long a request may wait for room for its model");
const UNPACK: Key = Key::new(
    "unpack",
    "\"auto\"",
    "on a CPU packed weights become floats, faster for many requests, if half of the limit stays free",
);
const MEMORY_LIMIT: Key = Key::new("memory_limit", "\"75%\"", "of the machine's memory, or a size such as \"8 GB\"");
const PREFIX_CACHE: Key = Key::new(
    "prefix_cache",
    "\"512 MiB\"",
    "at most, so that only what is new in a prompt is computed; \"0 B\" is off",
);
const PREFIX_DISK: Key = Key::new(
    "prefix_disk",
    "\"0 B\"",
    "at most, for what gives way there, in a file that ends with the daemon; \"0 B\" is off",
);
/// What `prefix_cache` was called.
const PROMPT_CACHE: Key = Key::bare("prompt_cache", "");
const KEEP_ALIVE: Key =
    Key::new("keep_alive", "\"forever\"", "how long an unused model stays, or a duration such as \"15 min\"");
/// What `keep_alive` was called.
const IDLE_UNLOAD: Key = Key::bare("idle_unload", "");
const MAX_BATCH: Key = Key::new("max_batch", "16", "requests computed at the same time");
const QUEUE: Key = Key::new("queue", "256", "requests that wait beyond them; more are refused with a `retry-after`");
const QUEUE_TOKENS: Key = Key::new("queue_tokens", "1000000", "and the tokens of all their prompts");
const PRIORITY: Key = Key::new(
    "priority",
    "\"normal\"",
    "interactive | normal | batch: who goes first; the header x-mlx-manager-priority or a route may say another",
);

pub(super) const TABLE: Table = Table::single(
    "local",
    "Models that run on this machine.",
    &[
        MODELS_DIR,
        DEFAULT_MODEL,
        PRELOAD,
        PIN,
        MAX_MODELS,
        KEEP_ALIVE,
        LOAD_TIMEOUT,
        MEMORY_LIMIT,
        UNPACK,
        PREFIX_CACHE,
        PREFIX_DISK,
        MAX_BATCH,
        QUEUE,
        QUEUE_TOKENS,
        PRIORITY,
    ],
);

const NAME: Key = Key::bare("name", "what requests call it");
pub(super) const PATH: Key = Key::bare("path", "builtin:demo is the model inside the binary; else a folder");

const OWN_KEEP_ALIVE: Key = KEEP_ALIVE.inherited();

pub(super) const MODELS: Table = Table::array(
    "local.models",
    "",
    &[NAME, PATH, OWN_KEEP_ALIVE],
    &[&[(NAME, "\"demo\""), (PATH, "\"builtin:demo\"")]],
);

impl Choice for Priority {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("interactive", Self::Interactive), ("normal", Self::Normal), ("batch", Self::Batch)];
}

impl Setting for MemoryLimit {
    fn allowed() -> String {
        "a share such as \"75%\", above 0% and up to 100%, or a size such as \"8 GB\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = raw.text().ok_or(None)?.trim();
        if let Some(share) = parse_percent(text) {
            return share.filter(|share| *share > 0.0).map(Self::Share).ok_or(None);
        }
        match parse_size(text) {
            Some(0) | None => Err(None),
            Some(bytes) => Ok(Self::Bytes(bytes)),
        }
    }
}

impl Setting for KeepAlive {
    fn allowed() -> String {
        "\"forever\", or a duration such as \"15 min\"; \"0 s\" unloads at once".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        match raw.text() {
            // `idle_unload` has said it so.
            Some("forever" | "never") => Ok(Self::Forever),
            _ => DurationOrZero::read(raw).map(|duration| Self::For(duration.0)),
        }
    }
}

impl Choice for Unpack {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("always", Self::Always), ("never", Self::Never)];
}

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<LocalConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &["models", PROMPT_CACHE.name, IDLE_UNLOAD.name]);
    let models_dir = decoder.path(&section, &MODELS_DIR);
    let memory_limit = decoder.get(&section, &MEMORY_LIMIT);
    let prefix_cache = decode_renamed::<SizeOrZero>(decoder, &section, (&PREFIX_CACHE, &PROMPT_CACHE));
    let prefix_disk = decoder.get::<SizeOrZero>(&section, &PREFIX_DISK);
    let unpack = decoder.get(&section, &UNPACK);
    let keep_alive = decode_renamed(decoder, &section, (&KEEP_ALIVE, &IDLE_UNLOAD));
    let preload = decode_names(decoder, &section, &PRELOAD);
    let pin = decode_names(decoder, &section, &PIN);
    let max_models = match decoder.find(&section, &MAX_MODELS) {
        Ok(Some(found)) => decoder.read::<Count<1, 1024>>(&found).map(|count| Some(count.0 as usize)),
        Ok(None) => Some(None),
        Err(_) => None,
    };
    let load_timeout = decoder.get(&section, &LOAD_TIMEOUT);
    let max_batch = decoder.get::<Count<1, 1024>>(&section, &MAX_BATCH);
    let queue = decoder.get::<Count<0, 100_000>>(&section, &QUEUE);
    let queue_tokens = decoder.get::<Count<1, 1_000_000_000>>(&section, &QUEUE_TOKENS);
    let priority = decoder.get(&section, &PRIORITY);
    let mut names = Vec::new();
    let mut models = Vec::new();
    for section in decoder.entries(&MODELS) {
        models.push(decode_model(decoder, &section, &mut names));
    }
    let models: Option<Vec<LocalModel>> = models.into_iter().collect();
    let default_model = decode_default(decoder, &section, &names);
    let environment = decoder.environment;
    let hub_dir = environment
        .set("HF_HUB_CACHE")
        .map(|folder| environment.working_directory.join(folder))
        .or_else(|| environment.set("HF_HOME").map(|folder| environment.working_directory.join(folder).join("hub")))
        .or_else(|| environment.user_folder("XDG_CACHE_HOME", ".cache").map(|cache| cache.join("huggingface/hub")));
    let own_cache = if environment.macos { "Library/Caches" } else { ".cache" };
    let cache_dir = environment.user_folder("XDG_CACHE_HOME", own_cache).unwrap_or_else(std::env::temp_dir);
    Some(LocalConfig {
        models_dir: models_dir?,
        hub_dir,
        cache_dir: cache_dir.join("mlx-manager"),
        default_model: default_model?,
        preload: preload?,
        pin: pin?,
        max_models: max_models?,
        load_timeout: load_timeout?,
        memory_limit: memory_limit?,
        unpack: unpack?,
        prefix_cache: prefix_cache?.0,
        prefix_disk: prefix_disk?.0,
        keep_alive: keep_alive?,
        max_batch: max_batch?.0 as usize,
        queue: queue?.0 as usize,
        queue_tokens: queue_tokens?.0.into(),
        priority: priority?,
        models: models?,
    })
}

/// Under its name or its former one, but not both.
fn decode_renamed<'a, T: Setting>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    (key, former): (&Key, &Key),
) -> Option<T> {
    if !decoder.given(section, former) {
        return decoder.get(section, key);
    }
    let found = decoder.find(section, former).ok().flatten()?;
    if decoder.given(section, key) {
        let relation = format!("and `{}` are both there", section.path_of(key));
        let hint = "leave it out: it is the former name of that one";
        decoder.report_relation(&found.path, found.place, &relation, hint);
        decoder.get::<T>(section, key);
        return None;
    }
    decoder.read(&found)
}

fn decode_names<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, key: &Key) -> Option<Vec<String>> {
    let names = decoder.list::<Filled>(section, key)?;
    Some(names.into_iter().map(|(name, _)| name.0).collect())
}

/// Whoever lists models without the demo and names no default means the first of them.
fn decode_default<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, names: &[String]) -> Option<Option<String>> {
    let mut found = decoder.find(section, &DEFAULT_MODEL).ok().flatten()?;
    let said = section.has(&DEFAULT_MODEL) || found.place != Place::Default;
    let fallback = found.raw.text().unwrap_or_default().to_owned();
    if !said && !names.contains(&fallback) {
        let first = names.first().cloned().unwrap_or_default();
        found.raw = Raw::Text { text: first, substituted: false };
    }
    let name = decoder.read::<String>(&found)?;
    Some(Some(name).filter(|name| !name.is_empty()))
}

fn decode_model<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, names: &mut Vec<String>) -> Option<LocalModel> {
    decoder.check_keys(section, &[]);
    let name = decoder.required::<Filled>(section, &NAME).map(|name| name.0);
    if let Some(name) = &name {
        decoder.check_unique(section, &NAME, name, names);
    }
    let path = decode_path(decoder, section);
    let keep_alive = match decoder.find(section, &OWN_KEEP_ALIVE) {
        Ok(Some(found)) => decoder.read(&found).map(Some),
        Ok(None) => Some(None),
        Err(_) => None,
    };
    Some(LocalModel { name: name?, path: path?, keep_alive: keep_alive? })
}

fn decode_path<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>) -> Option<ModelPath> {
    let found = decoder.find(section, &PATH).ok()?;
    match found.as_ref().and_then(|found| found.raw.text()).and_then(|text| text.strip_prefix("builtin:")) {
        Some("demo") => {
            let text = decoder.required::<String>(section, &PATH);
            text.map(|_| ModelPath::BuiltinDemo)
        }
        Some(_) => {
            decoder.refuse(
                &found?,
                Refusal { allowed: "\"builtin:demo\", or a folder in MLX format", hint: None, secret: false },
            );
            None
        }
        None if found.is_none() => {
            decoder.required::<Filled>(section, &PATH);
            None
        }
        None => decoder.path(section, &PATH).map(ModelPath::Folder),
    }
}
