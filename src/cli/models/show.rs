//! `mlx-manager models show` and `remove`: one model on disk.

use std::{fs, io, io::Write, path::Path};

use anyhow::{Context, anyhow, bail};
use bytesize::ByteSize;
use mlx_manager_catalogue::{Catalogue, Place, composed, metadata};
use mlx_manager_config::LocalConfig;
use serde_json::Value;

use crate::{
    cli::say,
    manager::models::{folder::Receipt, remove::remove},
};

pub(super) fn show(config: &LocalConfig, name: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let catalogue = Catalogue::new(config);
    let place = find(&catalogue, name)?;
    writeln!(out, "name          {name}\nplace         {place}")?;
    if let Place::Folder(folder) = &place {
        let bytes = size(folder).with_context(|| format!("{} can't be read", folder.display()))?;
        writeln!(out, "size          {}", ByteSize(bytes))?;
        if let Some(Receipt { repository, commit }) = Receipt::of(folder) {
            writeln!(out, "pulled        {repository}@{commit}")?;
        }
        let path = folder.join("config.json");
        let text = fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
        let model = metadata::parse(&text).with_context(|| format!("{} is no JSON", path.display()))?;
        let model = Value::Object(model);
        writeln!(out, "architecture  {}", model["model_type"].as_str().unwrap_or("unknown"))?;
        if let Some(bits) = model["quantization"]["bits"].as_u64() {
            writeln!(out, "quantization  {bits} bits")?;
        }
        if let Some(context) = model["max_position_embeddings"].as_u64() {
            writeln!(out, "context       {context} tokens")?;
        }
    }
    let name = composed(name);
    let listed = catalogue.models().iter().any(|model| model.name == name);
    writeln!(out, "listed        {}", if listed { "yes" } else { "no, without weights of a known architecture" })?;
    Ok(())
}

/// Of the files that a model is made of; those of the hub's cache are links.
fn size(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| {
        let metadata = fs::metadata(entry?.path())?;
        Ok(sum + if metadata.is_file() { metadata.len() } else { 0 })
    })
}

pub(super) fn remove_model(config: &LocalConfig, name: &str) -> anyhow::Result<()> {
    if config.models.iter().any(|model| model.name == name) {
        bail!(
            "{name} is an entry of [[local.models]]: take it out of the configuration, and remove its folder yourself"
        );
    }
    let Place::Folder(folder) = find(&Catalogue::new(config), name)? else {
        bail!("{name} is part of the binary");
    };
    if config.hub_dir.as_ref().is_some_and(|hub_dir| folder.starts_with(hub_dir)) {
        bail!(
            "{name} is in the Hugging Face cache, which other programs use too: `hf cache rm model/{name}` removes it"
        );
    }
    let freed = remove(&folder, &config.models_dir)?;
    say(format_args!(
        "{name} is removed: {} freed. A daemon that has loaded it serves it until it ends.",
        ByteSize(freed)
    ));
    if config.default_model.as_deref() == Some(name) {
        say(format_args!("local.default_model names it still: take it out of the configuration"));
    }
    Ok(())
}

fn find(catalogue: &Catalogue, name: &str) -> anyhow::Result<Place> {
    catalogue
        .find(name)
        .ok_or_else(|| anyhow!("there is no model {name:?}; `mlx-manager models list` names those that there are"))
}
