//! Rotary position embeddings, and the ways to stretch them beyond the context a model was trained on.

use std::f64::consts::PI;

use mlx_manager_catalogue::metadata;
use mlx_rs::{Array, error::Exception, fast};
use serde_json::{Map, Value};

use super::LoadError;

/// `rope_scaling` of config.json.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RopeScaling {
    /// Positions as they are.
    None,
    /// Positions divided by a factor.
    Linear { factor: f64 },
    /// Llama 3: slow frequencies divided, fast ones kept, those between interpolated.
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
    /// YaRN (arXiv 2309.00071): a ramp from kept to divided frequencies, and a correction of the attention's scale.
    Yarn { factor: f64, original: f64, beta_fast: f64, beta_slow: f64, scale: f64, scale_all: f64 },
}

impl RopeScaling {
    pub(crate) fn parse(settings: Option<&Map<String, Value>>) -> Result<Self, LoadError> {
        let Some(settings) = settings else { return Ok(Self::None) };
        let kind = ["type", "rope_type"].into_iter().find_map(|key| settings.get(key).filter(|kind| !kind.is_null()));
        let number = |name: &str, default: Option<f64>| {
            let value = match settings.get(name) {
                None | Some(Value::Null) => default,
                Some(value) => metadata::number(value),
            };
            let value = value.filter(|value| value.is_finite() && *value >= 0.0);
            value.ok_or_else(|| LoadError::config(format!("rope_scaling.{name}"), "must be a positive number"))
        };
        let positive = |name: &str, default: Option<f64>| match number(name, default)? {
            0.0 => Err(LoadError::config(format!("rope_scaling.{name}"), "must be a positive number")),
            value => Ok(value),
        };
        match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => Ok(Self::None),
            Some("linear") => Ok(Self::Linear { factor: positive("factor", None)? }),
            Some("llama3") => Ok(Self::Llama3 {
                factor: positive("factor", None)?,
                low: positive("low_freq_factor", Some(1.0))?,
                high: positive("high_freq_factor", Some(4.0))?,
                original: positive("original_max_position_embeddings", Some(8192.0))?,
            }),
            Some("yarn") => Ok(Self::Yarn {
                factor: positive("factor", None)?,
                original: positive("original_max_position_embeddings", Some(4096.0))?,
                beta_fast: positive("beta_fast", Some(32.0))?,
                beta_slow: positive("beta_slow", Some(1.0))?,
                scale: number("mscale", Some(1.0))?,
                scale_all: number("mscale_all_dim", Some(0.0))?,
            }),
            other => {
                let problem = format!("of type {:?} is not supported", other.unwrap_or("(not a text)"));
                Err(LoadError::config("rope_scaling", problem))
            }
        }
    }
}

/// Which two dimensions of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopePairs {
    /// One of the first half and one of the second.
    Halves,
    /// Neighbours.
    Neighbours,
}

impl RopePairs {
    /// `rope_traditional` of config.json.
    pub(super) fn of(traditional: bool) -> Self {
        if traditional { Self::Neighbours } else { Self::Halves }
    }
}

/// How a model rotates its queries and keys.
#[derive(Debug)]
pub(crate) struct Rope {
    dimensions: i32,
    pairs: RopePairs,
    base: Option<f32>,
    scale: f32,
    /// One per pair of dimensions: base^(2i/d), the reciprocal of what other libraries call the inverse frequencies.
    frequencies: Option<Array>,
    /// Factor on the input.
    magnitude: f32,
}

impl Rope {
    pub(crate) fn new(dimensions: i32, base: f32, pairs: RopePairs, scaling: &RopeScaling) -> Self {
        let mut rope = Self { dimensions, pairs, base: Some(base), scale: 1.0, frequencies: None, magnitude: 1.0 };
        let frequencies = match *scaling {
            RopeScaling::None => return rope,
            RopeScaling::Linear { factor } => {
                rope.scale = (1.0 / factor) as f32;
                return rope;
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                plain(dimensions, base).map(|frequency| llama3(frequency, factor, (low, high), original)).collect()
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, scale, scale_all } => {
                rope.magnitude = (magnitude(factor, scale) / magnitude(factor, scale_all)) as f32;
                yarn(dimensions, base, factor, original, (beta_fast, beta_slow))
            }
        };
        rope.base = None;
        rope.frequencies = Some(row(&frequencies));
        rope
    }

    /// Rotates queries or keys of shape [1, heads, positions, head_dim], the first of which stands at `offset`.
    pub(crate) fn apply(&self, x: &Array, offset: i32) -> Result<Array, Exception> {
        let scaled = if self.magnitude == 1.0 {
            None
        } else {
            Some(x.multiply(Array::from_f32(self.magnitude).as_dtype(x.dtype())?)?)
        };
        let x = scaled.as_ref().unwrap_or(x);
        let traditional = self.pairs == RopePairs::Neighbours;
        fast::rope(x, self.dimensions, traditional, self.base, self.scale, offset, self.frequencies.as_ref())
    }
}

fn plain(dimensions: i32, base: f32) -> impl Iterator<Item = f64> {
    (0..dimensions / 2).map(move |pair| f64::from(base).powf(f64::from(2 * pair) / f64::from(dimensions)))
}

fn row(values: &[f64]) -> Array {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    Array::from_slice(&values, &[values.len() as i32])
}

fn llama3(frequency: f64, factor: f64, (low, high): (f64, f64), original: f64) -> f64 {
    let wavelength = 2.0 * PI * frequency;
    if wavelength > original / low {
        frequency * factor
    } else if wavelength > original / high && wavelength < original / low {
        let smooth = (original / wavelength - low) / (high - low);
        frequency / ((1.0 - smooth) / factor + smooth)
    } else {
        frequency
    }
}

fn yarn(dimensions: i32, base: f32, factor: f64, original: f64, (fast, slow): (f64, f64)) -> Vec<f64> {
    let size = f64::from(dimensions);
    let pair_with = |rotations: f64| size * (original / (rotations * 2.0 * PI)).ln() / (2.0 * f64::from(base).ln());
    let first = pair_with(fast).floor().max(0.0);
    let last = pair_with(slow).ceil().min(size - 1.0);
    let width = if first == last { 0.001 } else { last - first };
    let ramp = |pair: usize| ((pair as f64 - first) / width).clamp(0.0, 1.0);
    plain(dimensions, base)
        .enumerate()
        .map(|(pair, kept)| {
            let divided = factor * kept;
            let share = 1.0 - ramp(pair);
            divided * kept / (divided * share + kept * (1.0 - share))
        })
        .collect()
}

fn magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}
