//! `config.json` and `generation_config.json`: what a folder says of its model, checked.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    LoadError,
    linear::Bias,
    plan::Head,
    quantization::Quantization,
    rope::{RopePairs, RopeScaling},
};

/// No dimension of a real model comes near it; it keeps every product of two dimensions within 64 bits.
const LARGEST_DIMENSION: u32 = 1 << 26;

/// More than any model has.
const MOST_LAYERS: u32 = 1 << 12;

/// A family of models with the same computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Architecture {
    /// Qwen3, dense.
    Qwen3,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Llama and Mistral.
    Llama,
}

impl Architecture {
    /// Its name in config.json; Mistral's models are computed as Llama's.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Qwen3 => "qwen3",
            Self::Qwen2 => "qwen2",
            Self::Llama => "llama",
        }
    }

    fn from_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "qwen3" => Some(Self::Qwen3),
            "qwen2" => Some(Self::Qwen2),
            "llama" | "mistral" => Some(Self::Llama),
            _ => None,
        }
    }
}

/// What a folder says of its model. Dimensions are checked to be positive and to fit `i32`; keys whose meaning or default
/// depends on the architecture are left to its file.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) architecture: Architecture,
    pub(crate) hidden_size: i32,
    pub(crate) layers: usize,
    pub(crate) intermediate_size: i32,
    pub(crate) heads: i32,
    pub(crate) key_value_heads: Option<i32>,
    pub(crate) head_dim: Option<i32>,
    pub(crate) norm_epsilon: f32,
    pub(crate) vocabulary: i32,
    /// Positions the model was made for.
    pub(crate) max_context: Option<u32>,
    pub(crate) head: Option<Head>,
    pub(crate) attention_bias: Bias,
    pub(crate) feed_forward_bias: Bias,
    pub(crate) rope_base: Option<f32>,
    pub(crate) rope_pairs: RopePairs,
    pub(crate) rope_scaling: RopeScaling,
    pub(crate) sliding_window: Option<i32>,
    pub(crate) layer_types: Option<Vec<String>>,
    /// Ids that end an answer.
    pub(crate) end_ids: Vec<u32>,
    pub(crate) quantization: Quantization,
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: u32,
    num_hidden_layers: u32,
    intermediate_size: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    rms_norm_eps: f32,
    vocab_size: u32,
    max_position_embeddings: Option<u32>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    rope_theta: Option<f32>,
    rope_traditional: Option<bool>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    sliding_window: Option<u32>,
    layer_types: Option<Vec<String>>,
    hidden_act: Option<String>,
    eos_token_id: Option<OneOrMany>,
    quantization: Option<Map<String, Value>>,
    quantization_config: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct RawGeneration {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl Config {
    /// Reads the config of a model folder.
    pub(crate) fn read(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let text = read(&path)?;
        let mut config = Self::parse(&path, &text)?;
        let path = folder.join("generation_config.json");
        if path.exists() {
            let generation: RawGeneration = parse(&path, &read(&path)?)?;
            if let Some(ids) = generation.eos_token_id.map(OneOrMany::into_vec).filter(|ids| !ids.is_empty()) {
                config.end_ids = ids;
            }
        }
        Ok(config)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, LoadError> {
        // The model type is looked at alone first: another architecture may lack the keys that ours require.
        let model_type: ModelType = parse(path, text)?;
        let model_type = model_type.model_type.ok_or(LoadError::NoArchitecture)?;
        let architecture =
            Architecture::from_model_type(&model_type).ok_or(LoadError::Architecture { found: model_type })?;
        let raw: Raw = parse(path, text)?;
        if let Some(activation) = raw.hidden_act.filter(|name| name != "silu" && name != "swish") {
            return Err(LoadError::config("hidden_act", format!("{activation:?} is not supported; only silu is")));
        }
        let nested = raw.rope_parameters.as_ref();
        let nested_base =
            nested.and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64).map(|base| base as f32);
        let rope_base = raw.rope_theta.or(nested_base);
        if rope_base.is_some_and(|base| !(base.is_finite() && base > 1.0)) {
            return Err(LoadError::config("rope_theta", "must be greater than 1"));
        }
        if !(raw.rms_norm_eps.is_finite() && raw.rms_norm_eps >= 0.0) {
            return Err(LoadError::config("rms_norm_eps", "must be a small positive number"));
        }
        let heads = dimension("num_attention_heads", raw.num_attention_heads)?;
        let key_value_heads =
            raw.num_key_value_heads.map(|count| dimension("num_key_value_heads", count)).transpose()?;
        if key_value_heads.is_some_and(|count| heads % count != 0) {
            return Err(LoadError::config("num_key_value_heads", "must divide num_attention_heads"));
        }
        let quantization = raw.quantization.map(|map| ("quantization", map));
        let quantization = quantization.or(raw.quantization_config.map(|map| ("quantization_config", map)));
        Ok(Self {
            architecture,
            hidden_size: dimension("hidden_size", raw.hidden_size)?,
            layers: layers(raw.num_hidden_layers)?,
            intermediate_size: dimension("intermediate_size", raw.intermediate_size)?,
            heads,
            key_value_heads,
            head_dim: raw.head_dim.map(|size| dimension("head_dim", size)).transpose()?,
            norm_epsilon: raw.rms_norm_eps,
            vocabulary: dimension("vocab_size", raw.vocab_size)?,
            max_context: raw.max_position_embeddings,
            head: raw.tie_word_embeddings.map(Head::of),
            attention_bias: Bias::of(raw.attention_bias.unwrap_or(false)),
            feed_forward_bias: Bias::of(raw.mlp_bias.unwrap_or(false)),
            rope_base,
            rope_pairs: RopePairs::of(raw.rope_traditional.unwrap_or(false)),
            rope_scaling: RopeScaling::parse(raw.rope_scaling.as_ref().or(nested))?,
            sliding_window: raw.sliding_window.map(|size| dimension("sliding_window", size)).transpose()?,
            layer_types: raw.layer_types,
            end_ids: raw.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default(),
            quantization: quantization
                .map(|(key, map)| Quantization::parse(key, &map))
                .transpose()?
                .unwrap_or_default(),
        })
    }

    /// The size of a head, which most architectures derive when it isn't given.
    pub(super) fn head_dim_or_derived(&self) -> Result<i32, LoadError> {
        match self.head_dim {
            Some(size) => Ok(size),
            None if self.hidden_size % self.heads == 0 => Ok(self.hidden_size / self.heads),
            None => Err(LoadError::config("hidden_size", "must be a multiple of num_attention_heads")),
        }
    }
}

#[derive(Deserialize)]
struct ModelType {
    model_type: Option<String>,
}

fn dimension(key: &str, value: u32) -> Result<i32, LoadError> {
    match i32::try_from(value) {
        Ok(size) if (1..=LARGEST_DIMENSION).contains(&value) => Ok(size),
        _ => Err(LoadError::config(key, format!("must be between 1 and {LARGEST_DIMENSION}, not {value}"))),
    }
}

/// Something is made for every layer before a missing one is noticed.
fn layers(count: u32) -> Result<usize, LoadError> {
    match count {
        1..=MOST_LAYERS => Ok(count as usize),
        _ => Err(LoadError::config("num_hidden_layers", format!("must be between 1 and {MOST_LAYERS}, not {count}"))),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Read { path: PathBuf::from(path), source })
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(text).map_err(|source| LoadError::Json { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mlx_manager_catalogue::SUPPORTED;
    use serde_json::{Value, json};

    use super::{Architecture, Config, LoadError};
    use crate::model::quantization::Packing;

    fn config(change: impl FnOnce(&mut Value)) -> Result<Config, LoadError> {
        let mut value = json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
            "num_attention_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": 256,
        });
        change(&mut value);
        Config::parse(Path::new("config.json"), value.to_string().as_bytes())
    }

    #[test]
    fn what_is_said_to_be_supported_is() {
        for name in SUPPORTED {
            config(|value| value["model_type"] = json!(name)).unwrap();
        }
        let error = config(|value| *value = json!({})).unwrap_err().to_string();
        assert!(error.contains("model_type") && SUPPORTED.iter().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn mistral_is_computed_as_llama() {
        let config = config(|value| value["model_type"] = json!("mistral")).unwrap();
        assert_eq!(config.architecture, Architecture::Llama);
    }

    #[test]
    fn faults_name_the_key() {
        let cases: [(&str, Value, &str); 10] = [
            ("num_hidden_layers", json!(60_000_000), "num_hidden_layers"),
            ("model_type", json!("gpt_oss"), "gpt_oss"),
            ("hidden_size", json!(0), "hidden_size"),
            ("num_key_value_heads", json!(3), "num_key_value_heads"),
            ("hidden_act", json!("gelu"), "hidden_act"),
            ("rope_theta", json!(0.0), "rope_theta"),
            ("rope_scaling", json!({"rope_type": "longrope"}), "rope_scaling"),
            ("quantization", json!({"bits": 7, "group_size": 64}), "quantization.bits"),
            ("quantization", json!({"bits": 4, "group_size": 32, "mode": "mxfp4"}), "quantization.mode"),
            ("quantization_config", json!({"quant_method": "gptq"}), "quantization_config.quant_method"),
        ];
        for (key, wrong, named) in cases {
            let error = config(|value| value[key] = wrong).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn paths_may_differ_from_the_default_packing() {
        let config = config(|value| {
            value["quantization"] = json!({
                "bits": 4, "group_size": 64, "lm_head": false, "model.embed_tokens": {"bits": 8, "group_size": 32},
            });
        })
        .unwrap();
        assert_eq!(config.quantization.paths["lm_head"], Packing::Dense);
        assert!(matches!(config.quantization.paths["model.embed_tokens"], Packing::Affine(packed) if packed.bits == 8));
    }

    #[test]
    fn settings_of_generation_override_the_end_ids() {
        let folder = tempfile::tempdir().unwrap();
        let text = json!({
            "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
            "num_attention_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": 256, "eos_token_id": 7,
        });
        std::fs::write(folder.path().join("config.json"), text.to_string()).unwrap();
        assert_eq!(Config::read(folder.path()).unwrap().end_ids, [7]);
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [8, 9]}"#).unwrap();
        assert_eq!(Config::read(folder.path()).unwrap().end_ids, [8, 9]);
    }
}
