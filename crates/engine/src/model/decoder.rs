//! The decoder that all supported architectures share: embedding, layers of attention and feed-forward with a norm before
//! each, a last norm, logits. What differs between architectures is in a [`Plan`].

use std::rc::Rc;

use mlx_rs::{
    Array, Dtype,
    error::Exception,
    fast,
    ops::indexing::{Ellipsis, NewAxis, TryIndexOp},
};

use super::{
    Config, KeyValueCache, LoadError,
    attention::{Attention, FeedForward},
    linear::{Embedding, Linear},
    rope::Rope,
    weights::Weights,
};

/// How an architecture fills the shared decoder.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) head_dim: i32,
    pub(super) key_value_heads: i32,
    /// Biases of the query, key and value projections.
    pub(super) input_bias: bool,
    /// Bias of the attention's output projection.
    pub(super) output_bias: bool,
    pub(super) feed_forward_bias: bool,
    /// Whether each head of queries and keys is normed.
    pub(super) head_norms: bool,
    pub(super) tied: bool,
    pub(super) rope_base: f32,
    /// Whether neighbours are rotated together, instead of the two halves of a head.
    pub(super) rope_traditional: bool,
    /// Per layer, how many positions a token sees; all when `None`.
    pub(super) windows: Vec<Option<i32>>,
}

/// A model that computes logits.
#[derive(Debug)]
pub(crate) struct Decoder {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Array,
    /// `None` when the embedding serves.
    head: Option<Linear>,
    norm_epsilon: f32,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Array,
    attention: Attention,
    feed_forward_norm: Array,
    feed_forward: FeedForward,
}

impl Decoder {
    /// Takes the tensors that config and plan ask for. They stay lazy.
    pub(super) fn build(config: &Config, plan: &Plan, weights: &mut Weights) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        if plan.head_dim % 2 != 0 || plan.head_dim > 1 << 14 {
            return Err(LoadError::config("head_dim", "must be an even number below 16384"));
        }
        if plan.tied {
            weights.drop_where(|name| name.starts_with("lm_head."));
        }
        let embedding = weights.embedding("model.embed_tokens", config.vocabulary, hidden)?;
        let rope = Rope::new(plan.head_dim, plan.rope_base, plan.rope_traditional, &config.rope_scaling);
        let rope = Rc::new(rope);
        let mut layers = Vec::new();
        for (index, window) in plan.windows.iter().enumerate() {
            layers.push(Layer::build(config, plan, (index, *window), &rope, weights)?);
        }
        let norm = weights.float("model.norm.weight", &[hidden])?;
        let head =
            if plan.tied { None } else { Some(weights.linear("lm_head", (hidden, config.vocabulary), false)?) };
        Ok(Self { embedding, layers, norm, head, norm_epsilon: config.norm_epsilon })
    }

    /// An empty cache for one sequence.
    pub(crate) fn new_cache(&self) -> Vec<KeyValueCache> {
        self.layers.iter().map(|_| KeyValueCache::default()).collect()
    }

    /// Extends the cache by tokens without computing logits.
    pub(crate) fn prefill(&self, ids: &Array, cache: &mut [KeyValueCache]) -> Result<(), Exception> {
        self.hidden(ids, cache).map(drop)
    }

    /// Extends the cache by tokens, and gives the logits after the last of them, of shape [1, vocabulary], as floats of
    /// 32 bits.
    pub(crate) fn logits(&self, ids: &Array, cache: &mut [KeyValueCache]) -> Result<Array, Exception> {
        let hidden = self.hidden(ids, cache)?;
        let last = if hidden.dim(1) == 1 { hidden } else { hidden.try_index((Ellipsis, -1.., ..))? };
        let last = fast::rms_norm(last, Some(&self.norm), self.norm_epsilon)?;
        let logits = match &self.head {
            Some(head) => head.forward(&last)?,
            None => self.embedding.project(&last)?,
        };
        let logits = logits.reshape(&[1, -1])?;
        if logits.dtype() == Dtype::Float32 { Ok(logits) } else { logits.as_dtype(Dtype::Float32) }
    }

    fn hidden(&self, ids: &Array, cache: &mut [KeyValueCache]) -> Result<Array, Exception> {
        let mut x = self.embedding.look_up(&ids.try_index((NewAxis, ..))?)?;
        for (layer, cache) in self.layers.iter().zip(cache) {
            let normed = fast::rms_norm(&x, Some(&layer.attention_norm), self.norm_epsilon)?;
            let attended = x.add(layer.attention.forward(&normed, cache)?)?;
            let normed = fast::rms_norm(&attended, Some(&layer.feed_forward_norm), self.norm_epsilon)?;
            x = attended.add(layer.feed_forward.forward(&normed)?)?;
        }
        Ok(x)
    }

    /// Every array of the model.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let layers = self.layers.iter().flat_map(|layer| {
            let norms = [&layer.attention_norm, &layer.feed_forward_norm];
            norms.into_iter().chain(layer.attention.arrays()).chain(layer.feed_forward.arrays())
        });
        let head = self.head.iter().flat_map(Linear::arrays);
        self.embedding.arrays().into_iter().chain(layers).chain([&self.norm]).chain(head)
    }
}

impl Layer {
    fn build(
        config: &Config,
        plan: &Plan,
        (index, window): (usize, Option<i32>),
        rope: &Rc<Rope>,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let path = format!("model.layers.{index}");
        let attention_path = format!("{path}.self_attn");
        let wide = width(config.heads, plan.head_dim)?;
        let narrow = width(plan.key_value_heads, plan.head_dim)?;
        let head_norms = plan.head_norms.then(|| {
            Ok::<_, LoadError>((
                weights.float(&format!("{attention_path}.q_norm.weight"), &[plan.head_dim])?,
                weights.float(&format!("{attention_path}.k_norm.weight"), &[plan.head_dim])?,
            ))
        });
        let head_norms = head_norms.transpose()?;
        let mut attention = |name: &str, shape, bias| weights.linear(&format!("{attention_path}.{name}"), shape, bias);
        let attention = Attention {
            query: attention("q_proj", (hidden, wide), plan.input_bias)?,
            key: attention("k_proj", (hidden, narrow), plan.input_bias)?,
            value: attention("v_proj", (hidden, narrow), plan.input_bias)?,
            output: attention("o_proj", (wide, hidden), plan.output_bias)?,
            head_norms,
            heads: config.heads,
            key_value_heads: plan.key_value_heads,
            head_dim: plan.head_dim,
            norm_epsilon: config.norm_epsilon,
            rope: Rc::clone(rope),
            window,
        };
        let bias = plan.feed_forward_bias;
        let mut feed_forward = |name: &str, shape| weights.linear(&format!("{path}.mlp.{name}"), shape, bias);
        let feed_forward = FeedForward {
            gate: feed_forward("gate_proj", (hidden, inner))?,
            up: feed_forward("up_proj", (hidden, inner))?,
            down: feed_forward("down_proj", (inner, hidden))?,
        };
        Ok(Self {
            attention_norm: weights.float(&format!("{path}.input_layernorm.weight"), &[hidden])?,
            attention,
            feed_forward_norm: weights.float(&format!("{path}.post_attention_layernorm.weight"), &[hidden])?,
            feed_forward,
        })
    }
}

fn width(heads: i32, head_dim: i32) -> Result<i32, LoadError> {
    heads.checked_mul(head_dim).ok_or_else(|| LoadError::config("num_attention_heads", "times head_dim is too large"))
}
