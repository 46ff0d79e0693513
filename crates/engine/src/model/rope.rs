//! Rotary position embeddings, and the ways to stretch them beyond the context a model was trained on.

use std::f64::consts::PI;

use mlx_manager_catalogue::metadata;
use mlx_rs::{Array, error::Exception, fast, ops::concatenate};
use serde_json::{Map, Value};

use super::{LoadError, kernels::Kernels};

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
    /// One per pair of dimensions: base^(2i/d), the reciprocal of what other libraries call the inverse frequencies.
    frequencies: Vec<f64>,
    /// Factor on positions.
    scale: f64,
    /// Factor on the input.
    magnitude: f64,
    kernels: Kernels,
}

/// A rotation by the positions of one forward, for all layers.
#[derive(Debug)]
pub(super) enum Rotation {
    /// Positions, and frequencies, for MLX's own kernel.
    Fused { positions: Array, frequencies: Array },
    /// Cosines and signed sines, which broadcast to heads of paired dimensions.
    Tables { cosines: Array, sines: Array },
}

impl Rope {
    pub(crate) fn new(dimensions: i32, base: f32, pairs: RopePairs, scaling: &RopeScaling, kernels: Kernels) -> Self {
        let plain = plain(dimensions, base);
        let (mut scale, mut magnitude) = (1.0, 1.0);
        let frequencies = match *scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => {
                scale = 1.0 / factor;
                plain.collect()
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                plain.map(|frequency| llama3(frequency, factor, (low, high), original)).collect()
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, scale, scale_all } => {
                magnitude = self::magnitude(factor, scale) / self::magnitude(factor, scale_all);
                yarn(dimensions, base, factor, original, (beta_fast, beta_slow))
            }
        };
        Self { dimensions, pairs, frequencies, scale, magnitude, kernels }
    }

    /// The rotation of tokens that stand at these positions.
    pub(super) fn at(&self, positions: &[i32]) -> Result<Rotation, Exception> {
        let count = i32::try_from(positions.len()).unwrap_or(i32::MAX);
        match self.kernels {
            Kernels::Fused => {
                let frequencies: Vec<f32> = self.frequencies.iter().map(|frequency| *frequency as f32).collect();
                Ok(Rotation::Fused {
                    positions: Array::from_slice(positions, &[count]),
                    frequencies: Array::from_slice(&frequencies, &[self.dimensions / 2]),
                })
            }
            Kernels::Composed => {
                let angles = positions.iter().flat_map(|position| {
                    let position = f64::from(*position) * self.scale;
                    self.frequencies.iter().map(move |frequency| position / frequency)
                });
                let (mut sines, mut cosines) = (Vec::new(), Vec::new());
                for angle in angles {
                    let (sine, cosine) = angle.sin_cos();
                    sines.push((sine * self.magnitude) as f32);
                    cosines.push((cosine * self.magnitude) as f32);
                }
                let half = self.dimensions / 2;
                let (shape, axis) = match self.pairs {
                    RopePairs::Halves => ([count, 1, 1, half], 2),
                    RopePairs::Neighbours => ([count, 1, half, 1], 3),
                };
                let negated: Vec<f32> = sines.iter().map(|sine| -sine).collect();
                let parts = [Array::from_slice(&negated, &shape), Array::from_slice(&sines, &shape)];
                let sines = concatenate(&parts, axis)?;
                Ok(Rotation::Tables { cosines: Array::from_slice(&cosines, &shape), sines })
            }
        }
    }

    /// Rotates heads of shape [tokens, heads, head_dim].
    pub(super) fn rotate(&self, x: &Array, by: &Rotation) -> Result<Array, Exception> {
        let shape = x.shape();
        match by {
            Rotation::Fused { positions, frequencies } => {
                let scaled = if self.magnitude == 1.0 {
                    None
                } else {
                    Some(x.multiply(Array::from_f32(self.magnitude as f32).as_dtype(x.dtype())?)?)
                };
                let x = scaled.as_ref().unwrap_or(x).reshape(&[shape[0], shape[1], 1, -1])?;
                let traditional = self.pairs == RopePairs::Neighbours;
                let scale = self.scale as f32;
                fast::rope_dynamic(&x, self.dimensions, traditional, None, scale, positions, frequencies)?
                    .reshape(shape)
            }
            Rotation::Tables { cosines, sines } => {
                let half = self.dimensions / 2;
                let (pairs, axis) = match self.pairs {
                    RopePairs::Halves => (x.reshape(&[shape[0], shape[1], 2, half])?, 2),
                    RopePairs::Neighbours => (x.reshape(&[shape[0], shape[1], half, 2])?, 3),
                };
                let mut swapped = pairs.split_equal(2, axis)?;
                swapped.reverse();
                let swapped = concatenate(&swapped, axis)?;
                pairs.multiply(cosines)?.add(swapped.multiply(sines)?)?.reshape(shape)
            }
        }
    }
}

fn plain(dimensions: i32, base: f32) -> impl Iterator<Item = f64> {
    (0..dimensions / 2).map(move |pair| f64::from(base).powf(f64::from(2 * pair) / f64::from(dimensions)))
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
