//! What config.json says of packed weights.

use std::collections::BTreeMap;

use mlx_manager_catalogue::metadata;
use serde_json::{Map, Value};

use super::LoadError;

/// What holds where config.json names a path without them.
const PATH_DEFAULTS: PackingDefaults = PackingDefaults { bits: Some(4), group_size: Some(64) };

/// What holds where config.json doesn't give bits or group size; it must give what is `None` here.
#[derive(Debug, Clone, Copy)]
struct PackingDefaults {
    bits: Option<i32>,
    group_size: Option<i32>,
}

/// What config.json says of packed weights. The shapes of the tensors have the last word on bits and group sizes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quantization {
    /// What it says of all other paths.
    pub(crate) default: Option<QuantizationSummary>,
    pub(crate) paths: BTreeMap<String, Packing>,
}

/// What config.json says of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Stored as it is.
    Dense,
    /// Packed so.
    Affine(QuantizationSummary),
}

/// How weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuantizationSummary {
    /// Bits per weight.
    pub(crate) bits: i32,
    /// Weights that share a scale.
    pub(crate) group_size: i32,
}

impl Quantization {
    /// Of the map at `key`, the top level of config.json's `quantization`.
    pub(super) fn parse(key: &str, map: &Map<String, Value>) -> Result<Self, LoadError> {
        if let Some(method) = map.get("quant_method").and_then(Value::as_str) {
            return Err(LoadError::config(
                format!("{key}.quant_method"),
                format!("{method:?} is not supported; convert the model to MLX format"),
            ));
        }
        affine(key, map.get("mode"))?;
        let mut paths = BTreeMap::new();
        for (path, value) in map {
            let packing = match value {
                Value::Bool(false) => Packing::Dense,
                Value::Object(settings) => {
                    let key = format!("{key}.{path}");
                    affine(&key, settings.get("mode"))?;
                    Packing::Affine(summary(&key, settings, PATH_DEFAULTS)?)
                }
                _ => continue,
            };
            paths.insert(path.clone(), packing);
        }
        let default = summary(key, map, PackingDefaults { bits: None, group_size: None })?;
        Ok(Self { default: Some(default), paths })
    }
}

fn affine(key: &str, mode: Option<&Value>) -> Result<(), LoadError> {
    match mode.filter(|mode| !mode.is_null()).map(|mode| mode.as_str().unwrap_or_default()) {
        None | Some("affine") => Ok(()),
        Some(other) => {
            Err(LoadError::config(format!("{key}.mode"), format!("{other:?} is not supported; only affine is")))
        }
    }
}

fn summary(
    key: &str,
    settings: &Map<String, Value>,
    defaults: PackingDefaults,
) -> Result<QuantizationSummary, LoadError> {
    let number = |name: &str, default: Option<i32>, allowed: &[i32]| {
        let value = match settings.get(name) {
            None | Some(Value::Null) => default,
            Some(value) => metadata::count(value).and_then(|value| i32::try_from(value).ok()),
        };
        let problem = || LoadError::config(format!("{key}.{name}"), format!("must be one of {allowed:?}"));
        value.filter(|value| allowed.contains(value)).ok_or_else(problem)
    };
    Ok(QuantizationSummary {
        bits: number("bits", defaults.bits, &[2, 3, 4, 5, 6, 8])?,
        group_size: number("group_size", defaults.group_size, &[32, 64, 128])?,
    })
}
