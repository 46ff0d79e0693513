//! What a sequence takes in memory beside its model's weights, by kind of layer.

use super::{BLOCK, Config, plan::Plan};

/// What one layer keeps of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerNeeds {
    /// Bytes of each position that it keeps.
    pub(crate) per_position: u64,
    /// The most positions that it keeps; `None` keeps all.
    pub(crate) most: Option<u64>,
    /// Bytes whatever the length, such as those of a recurrent state.
    pub(crate) constant: u64,
}

/// What a model's sequences take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) layers: Vec<LayerNeeds>,
    /// Bytes that one token of a forward takes while it is computed.
    pub(crate) per_token: u64,
    /// Bytes that one token of a forward takes for each position that it sees.
    pub(crate) per_score: u64,
}

impl Needs {
    /// Of numbers of so many bytes. Layers with a window keep all positions too: what is kept of a sequence serves prompts that
    /// begin alike, wherever they part.
    pub(super) fn of(config: &Config, plan: &Plan, width: u64) -> Self {
        let size = |number: i32| u64::from(number.unsigned_abs());
        let (heads, kv, head) = (size(config.heads), size(plan.key_value_heads), size(plan.head_dim));
        let layer = LayerNeeds { per_position: 2 * kv * head * width, most: None, constant: 0 };
        // What is alive at once within a layer: the residual beside its norm, what attention projects, or what the
        // feed-forward does, and the scores of all heads twice.
        let attention = (2 * heads + 2 * kv) * head;
        let feed_forward = 3 * size(config.intermediate_size);
        Self {
            layers: vec![layer; plan.masks.len()],
            per_token: (4 * size(config.hidden_size) + attention.max(feed_forward)) * width,
            per_score: 2 * heads * 4,
        }
    }

    /// Bytes that a sequence of so many tokens keeps.
    pub(crate) fn sequence(&self, tokens: u64) -> u64 {
        let bytes = |layer: &LayerNeeds| {
            let positions = room(layer.most.map_or(tokens, |most| tokens.min(most)));
            layer.per_position.saturating_mul(positions).saturating_add(layer.constant)
        };
        self.layers.iter().map(bytes).fold(0, u64::saturating_add)
    }

    /// Bytes that computing so many tokens at once takes, which see so many positions.
    pub(crate) fn step(&self, tokens: u64, positions: u64) -> u64 {
        let each = self.per_token.saturating_add(self.per_score.saturating_mul(positions));
        each.saturating_mul(tokens)
    }
}

/// Positions that there is room for when so many are needed. That slots shared by many are longer is counted once they are.
fn room(positions: u64) -> u64 {
    let block = BLOCK as u64;
    positions.div_ceil(block).saturating_mul(block)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_of_layer_counts_by_its_own_rule() {
        let full = LayerNeeds { per_position: 1024, most: None, constant: 0 };
        let windowed = LayerNeeds { most: Some(512), ..full };
        let recurrent = LayerNeeds { per_position: 0, most: None, constant: 3_000_000 };
        let of = |layers: &[LayerNeeds], tokens| Needs { layers: layers.to_vec(), ..Needs::default() }.sequence(tokens);
        assert_eq!(of(&[full], 100), 256 * 1024);
        assert_eq!(of(&[full], 10_000), 10_240 * 1024);
        assert_eq!(of(&[windowed], 10_000), 512 * 1024);
        assert_eq!(of(&[recurrent], 10_000), 3_000_000);
        assert_eq!(of(&[full, windowed, recurrent, full], 300), 3 * 512 * 1024 + 3_000_000);
    }

    proptest! {
        #[test]
        fn more_tokens_never_take_less_and_room_is_a_block_more_at_most(tokens in 1..100_000_u64, more in 0..5_000_u64) {
            prop_assert!(room(tokens) >= tokens && room(tokens + more) >= room(tokens));
            prop_assert!(room(tokens) < tokens + BLOCK as u64);
        }
    }
}
