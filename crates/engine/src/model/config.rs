//! `config.json` and `generation_config.json`: what a folder says of its model, checked.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mlx_manager_catalogue::metadata;
use serde_json::{Map, Value};

use super::{
    LoadError,
    linear::Bias,
    plan::Head,
    quantization::Quantization,
    rope::{RopePairs, RopeScaling},
};

/// No dimension of a real model comes near it; it keeps every product of two dimensions within 64 bits.
const LARGEST_DIMENSION: u64 = 1 << 26;

/// More than any model has.
const MOST_LAYERS: u64 = 1 << 12;

/// A family of models with the same computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Architecture {
    /// Qwen3, dense.
    Qwen3,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Llama, and Mistral, whose models are computed alike.
    Llama,
}

impl Architecture {
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

impl Config {
    /// Reads the config of a model folder.
    pub(crate) fn read(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let mut config = Self::parse(&path, &read(&path)?)?;
        let path = folder.join("generation_config.json");
        if path.exists() {
            // It says nothing that a model can't do without, so a damaged one counts as none, as in mlx-lm.
            let generation = metadata::parse(&read(&path)?).unwrap_or_default();
            let ids = metadata::ids(generation.get("eos_token_id"));
            if !ids.is_empty() {
                config.end_ids = ids;
            }
        }
        Ok(config)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, LoadError> {
        let map = metadata::parse(text).map_err(|source| LoadError::Json { path: PathBuf::from(path), source })?;
        let keys = Keys(&map);
        // The model type is looked at first: another architecture may lack the keys that ours require.
        let model_type = keys.text("model_type")?.ok_or(LoadError::NoArchitecture)?;
        let architecture = Architecture::from_model_type(model_type)
            .ok_or_else(|| LoadError::Architecture { found: model_type.to_owned() })?;
        if let Some(activation) = keys.text("hidden_act")?.filter(|name| *name != "silu" && *name != "swish") {
            return Err(LoadError::config("hidden_act", format!("{activation:?} is not supported; only silu is")));
        }
        let scaling = keys.map("rope_scaling")?;
        let nested = keys.map("rope_parameters")?;
        let nested_base = nested.map(Keys).map(|rope| rope.number("rope_theta")).transpose()?.flatten();
        let rope_base = keys.number("rope_theta")?.or(nested_base).map(|base| base as f32);
        if rope_base.is_some_and(|base| !(base.is_finite() && base > 1.0)) {
            return Err(LoadError::config("rope_theta", "must be greater than 1"));
        }
        let norm_epsilon = keys.needed("rms_norm_eps", keys.number("rms_norm_eps")?)? as f32;
        if norm_epsilon < 0.0 {
            return Err(LoadError::config("rms_norm_eps", "must be a small positive number"));
        }
        let heads = keys.needed_dimension("num_attention_heads")?;
        let key_value_heads = keys.dimension("num_key_value_heads")?;
        if key_value_heads.is_some_and(|count| heads % count != 0) {
            return Err(LoadError::config("num_key_value_heads", "must divide num_attention_heads"));
        }
        let quantization = ["quantization", "quantization_config"].into_iter().find_map(|key| match keys.map(key) {
            Ok(None) => None,
            Ok(Some(map)) => Some(Quantization::parse(key, map)),
            Err(error) => Some(Err(error)),
        });
        Ok(Self {
            architecture,
            hidden_size: keys.needed_dimension("hidden_size")?,
            layers: layers(keys.needed("num_hidden_layers", keys.count("num_hidden_layers")?)?)?,
            intermediate_size: keys.needed_dimension("intermediate_size")?,
            heads,
            key_value_heads,
            head_dim: keys.dimension("head_dim")?,
            norm_epsilon,
            vocabulary: keys.needed_dimension("vocab_size")?,
            // Models without a bound are served too, so what is no number here is none.
            max_context: map
                .get("max_position_embeddings")
                .and_then(metadata::count)
                .and_then(|it| u32::try_from(it).ok()),
            head: keys.flag("tie_word_embeddings")?.map(Head::of),
            attention_bias: Bias::of(keys.flag("attention_bias")?.unwrap_or(false)),
            feed_forward_bias: Bias::of(keys.flag("mlp_bias")?.unwrap_or(false)),
            rope_base,
            rope_pairs: RopePairs::of(keys.flag("rope_traditional")?.unwrap_or(false)),
            rope_scaling: RopeScaling::parse(scaling.or(nested))?,
            // Only layers that `layer_types` calls sliding need it.
            sliding_window: map
                .get("sliding_window")
                .and_then(metadata::count)
                .and_then(|size| i32::try_from(size).ok())
                .filter(|size| *size > 0),
            layer_types: keys.texts("layer_types")?,
            end_ids: metadata::ids(map.get("eos_token_id")),
            quantization: quantization.transpose()?.unwrap_or_default(),
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

/// The keys of config.json that the computation depends on. Null is absent; what isn't of the right kind, however it may be
/// written, is an error that names the key.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn read<T>(
        self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.0.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| LoadError::config(key, format!("must be {expected}, not {}", shown(value))))
    }

    fn needed<T>(self, key: &str, value: Option<T>) -> Result<T, LoadError> {
        value.ok_or_else(|| LoadError::config(key, "is missing"))
    }

    fn text(self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.read(key, "a text", Value::as_str)
    }

    fn texts(self, key: &str) -> Result<Option<Vec<String>>, LoadError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.read(key, "a list of texts", |value| value.as_array()?.iter().map(text).collect())
    }

    fn flag(self, key: &str) -> Result<Option<bool>, LoadError> {
        self.read(key, "true or false", metadata::flag)
    }

    fn number(self, key: &str) -> Result<Option<f64>, LoadError> {
        self.read(key, "a number", metadata::number)
    }

    fn count(self, key: &str) -> Result<Option<u64>, LoadError> {
        self.read(key, "a whole number", metadata::count)
    }

    fn dimension(self, key: &str) -> Result<Option<i32>, LoadError> {
        self.count(key)?.map(|value| dimension(key, value)).transpose()
    }

    fn needed_dimension(self, key: &str) -> Result<i32, LoadError> {
        self.needed(key, self.dimension(key)?)
    }

    /// Settings; none that are empty, or switched off by `false`.
    fn map(self, key: &str) -> Result<Option<&'a Map<String, Value>>, LoadError> {
        if self.0.get(key) == Some(&Value::Bool(false)) {
            return Ok(None);
        }
        Ok(self.read(key, "an object", Value::as_object)?.filter(|map| !map.is_empty()))
    }
}

/// A value in an error message, which a long one must not fill.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn dimension(key: &str, value: u64) -> Result<i32, LoadError> {
    match i32::try_from(value) {
        Ok(size) if (1..=LARGEST_DIMENSION).contains(&value) => Ok(size),
        _ => Err(LoadError::config(key, format!("must be between 1 and {LARGEST_DIMENSION}, not {value}"))),
    }
}

/// Something is made for every layer before a missing one is noticed.
fn layers(count: u64) -> Result<usize, LoadError> {
    match usize::try_from(count) {
        Ok(layers) if (1..=MOST_LAYERS).contains(&count) => Ok(layers),
        _ => Err(LoadError::config("num_hidden_layers", format!("must be between 1 and {MOST_LAYERS}, not {count}"))),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Read { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mlx_manager_catalogue::SUPPORTED;
    use serde_json::{Value, json};

    use super::{Architecture, Config, LoadError};
    use crate::model::{quantization::Packing, rope::RopeScaling};

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

    #[test]
    fn what_is_written_otherwise_is_read_and_what_is_not_needed_may_be_wrong() {
        let read = config(|value| {
            for (key, odd) in [
                ("hidden_size", json!(64.0)),
                ("num_attention_heads", json!("4")),
                ("rms_norm_eps", json!("1e-6")),
                ("max_position_embeddings", json!("many")),
                ("sliding_window", json!("none")),
                ("tie_word_embeddings", json!("false")),
                ("rope_scaling", json!({})),
                ("quantization", json!({})),
                ("quantization_config", json!(null)),
                ("eos_token_id", json!([2.0, "7", null])),
                ("torch_dtype", json!(16)),
            ] {
                value[key] = odd;
            }
        })
        .unwrap();
        assert_eq!((read.hidden_size, read.heads, read.max_context), (64, 4, None));
        assert_eq!((read.end_ids.as_slice(), read.sliding_window), ([2, 7].as_slice(), None));
        assert_eq!(read.rope_scaling, RopeScaling::None);
        for (key, wrong) in [
            ("hidden_size", json!("wide")),
            ("rope_scaling", json!([1])),
            ("mlp_bias", json!("maybe")),
            ("rms_norm_eps", json!(null)),
        ] {
            let error = config(|value| value[key] = wrong).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let text = "\u{feff}{\"model_type\": \"llama\", \"hidden_size\": 64, \"num_hidden_layers\": 2, \"intermediate_size\": 128, \
                    \"num_attention_heads\": 4, \"rms_norm_eps\": 1e-6, \"vocab_size\": 256, \"initializer_range\": NaN, \"x\": -Infinity}";
        Config::parse(Path::new("config.json"), text.as_bytes()).unwrap();
    }

    #[test]
    fn a_damaged_generation_config_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let text = json!({
            "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
            "num_attention_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": 256, "eos_token_id": 7,
        });
        std::fs::write(folder.path().join("config.json"), text.to_string()).unwrap();
        for generation in ["{", "", "[8]", "{\"eos_token_id\": null}", "{\"eos_token_id\": \"none\"}"] {
            std::fs::write(folder.path().join("generation_config.json"), generation).unwrap();
            assert_eq!(Config::read(folder.path()).unwrap().end_ids, [7], "{generation}");
        }
    }
}
