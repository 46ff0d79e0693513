//! What a call costs, from the prices bundled with `genai-prices`.

use std::sync::OnceLock;

use genai_prices::{Calculator, PriceRequest, ProviderInfo, UsageKey};
use mlx_manager_llm::{Dialect, Usage};

/// Decodes the bundled prices, which takes tens of milliseconds; else the first call pays for it.
pub fn prepare() {
    let providers = Calculator::bundled().providers().count();
    tracing::debug!(target: crate::target::TELEMETRY, providers, "prices are ready");
}

/// The prices of the calls to one provider.
#[derive(Debug)]
pub struct PriceList {
    dialect: Dialect,
    base_url: String,
    /// By which `genai-prices` knows whose list it is; `None` when it can't say. Finding it means trying the patterns of
    /// all addresses it knows, so that is done once, by the first call that has a price.
    provider: OnceLock<Option<&'static str>>,
}

impl PriceList {
    /// The list that belongs to a provider's address. An address that belongs to no known provider (a proxy) is priced as
    /// its dialect's own provider.
    pub fn new(dialect: Dialect, base_url: &str) -> Self {
        Self { dialect, base_url: base_url.to_owned(), provider: OnceLock::new() }
    }

    /// The price of a call in US dollars; `None` when the model's price or the usage is unknown.
    pub fn cost_usd(&self, model: &str, usage: &Usage) -> Option<f64> {
        // Half a count would give half a price, which looks like a whole one.
        let (input, output) = (usage.input?, usage.output?);
        let cache_read = usage.cache_read.filter(|&tokens| tokens > 0);
        let cache_write = usage.cache_write.filter(|&tokens| tokens > 0);
        let counted: genai_prices::Usage = [
            (UsageKey::INPUT_TOKENS, Some(input)),
            (UsageKey::OUTPUT_TOKENS, Some(output)),
            (UsageKey::CACHE_READ_TOKENS, cache_read),
            (UsageKey::CACHE_WRITE_TOKENS, cache_write),
        ]
        .into_iter()
        // No count of tokens comes near 2^52.
        .filter_map(|(key, tokens)| Some((key, tokens? as f64)))
        .collect();
        let provider = (*self.provider.get_or_init(|| self.find_provider()))?;
        let price = genai_prices::calculate(&PriceRequest::new(model, &counted).with_provider_id(provider));
        // A price of nothing for something is a price that nobody entered.
        price.ok().map(|price| price.total_price).filter(|&price| price > 0.0 || input + output == 0)
    }

    fn find_provider(&self) -> Option<&'static str> {
        let found = Calculator::bundled().find_provider(None, Some(&self.base_url)).ok()?;
        Some(found.map_or(
            match self.dialect {
                Dialect::OpenAi => "openai",
                Dialect::Anthropic => "anthropic",
            },
            ProviderInfo::id,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: u64, output: u64) -> Usage {
        Usage { input: Some(input), output: Some(output), ..Usage::default() }
    }

    fn cost_usd(dialect: Dialect, base_url: &str, model: &str, usage: &Usage) -> Option<f64> {
        let list = PriceList::new(dialect, base_url);
        let (first, second) = (list.cost_usd(model, usage), list.cost_usd(model, usage));
        assert_eq!(first, second, "what the list found out does not change a price");
        first
    }

    const OPENAI: &str = "https://api.openai.com/v1";
    const ANTHROPIC: &str = "https://api.anthropic.com";

    #[test]
    fn known_models_cost_what_their_price_lists_say() {
        let million = usage(1_000_000, 1_000_000);
        // $2.50 and $10 per million tokens.
        assert_eq!(cost_usd(Dialect::OpenAi, OPENAI, "gpt-4o", &million), Some(12.5));
        assert_eq!(cost_usd(Dialect::OpenAi, "http://127.0.0.1:4000/v1", "gpt-4o", &million), Some(12.5));
        // $3 and $15.
        let price = cost_usd(Dialect::Anthropic, ANTHROPIC, "claude-sonnet-4-5", &usage(100_000, 10_000)).unwrap();
        assert!((price - 0.45).abs() < 1e-9, "{price}");
    }

    #[test]
    fn cached_tokens_are_inside_the_input_and_cheaper() {
        let cached = Usage { cache_read: Some(100_000), ..usage(100_000, 0) };
        let price = cost_usd(Dialect::Anthropic, ANTHROPIC, "claude-sonnet-4-5", &cached).unwrap();
        assert!((price - 0.03).abs() < 1e-9, "a tenth of the input's price: {price}");
        let written = Usage { cache_write: Some(100_000), ..usage(100_000, 0) };
        let price = cost_usd(Dialect::Anthropic, ANTHROPIC, "claude-sonnet-4-5", &written).unwrap();
        assert!((price - 0.375).abs() < 1e-9, "1.25 times the input's price: {price}");
    }

    #[test]
    fn the_unknown_has_no_price() {
        assert_eq!(cost_usd(Dialect::OpenAi, OPENAI, "our-own-model", &usage(10, 10)), None);
        assert_eq!(cost_usd(Dialect::OpenAi, "http://127.0.0.1:1/v1", "our-own-model", &usage(10, 10)), None);
        let partial = Usage { input: Some(5), ..Usage::default() };
        assert_eq!(cost_usd(Dialect::OpenAi, OPENAI, "gpt-4o", &partial), None);
    }
}
