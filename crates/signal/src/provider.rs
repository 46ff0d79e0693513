//! What providers are called in labels, attributes and rows, and what their kind says of them.

use mlx_manager_config::{LOCAL, ProviderKind};
use mlx_manager_llm::Dialect;

/// The provider of local models.
pub const MLX: &str = "mlx";

/// The provider of a target as routes name it: its `[[providers]]` name, or `mlx` for `local`.
pub fn label(target: &str) -> &str {
    if target == LOCAL { MLX } else { target }
}

/// The dialect that providers of this kind speak.
pub fn dialect(kind: ProviderKind) -> Dialect {
    match kind {
        ProviderKind::OpenAi => Dialect::OpenAi,
        ProviderKind::Anthropic => Dialect::Anthropic,
    }
}

/// `gen_ai.provider.name` of providers of this kind.
pub const fn system(kind: ProviderKind) -> &'static str {
    kind.as_str()
}
