//! What a call costs: what the operator's `[[prices]]` say, else the prices bundled with `genai-prices`.
//!
//! A cost is exact or there is none. Where the bundled list lacks a part of a price it charges the next wider one and doesn't
//! say so (cached tokens as others, a tier as the usual one), so each part that a call used is asked for first.

mod rates;

use std::sync::OnceLock;

use genai_prices::{Calculator, ErrorKind, PriceCalculation, PriceRequest, ProviderInfo, UsageKey};
use globset::{GlobBuilder, GlobMatcher};
use mlx_manager_config::Price;
use mlx_manager_llm::{Dialect, ServiceTier, Usage};

use self::rates::Found;

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
    /// What the operator says, which comes first.
    own: Vec<OwnPrice>,
    /// By which `genai-prices` knows whose list it is; `None` when it can't say. Finding it means trying the patterns of
    /// all addresses it knows, so that is done once, by the first call that has a price.
    provider: OnceLock<Option<&'static str>>,
    /// What the bundled list was found to say of models.
    found: Found,
}

/// A `[[prices]]` entry, ready to match.
#[derive(Debug)]
struct OwnPrice {
    price: Price,
    /// `None` for a name that is no glob; the configuration has checked it.
    matcher: Option<GlobMatcher>,
}

impl PriceList {
    /// The list that belongs to a provider: those of `prices` that are for its name or for all, then the bundled one of its
    /// address. An address that belongs to no known provider (a proxy) is priced as its dialect's own provider.
    pub fn new(dialect: Dialect, base_url: &str, provider: &str, prices: &[Price]) -> Self {
        let ours = |price: &&Price| price.provider.as_deref().is_none_or(|name| name == provider);
        let own = prices.iter().filter(ours).cloned().map(OwnPrice::new).collect();
        Self { dialect, base_url: base_url.to_owned(), own, provider: OnceLock::new(), found: Found::default() }
    }

    /// The price of a call in US dollars; `None` when any part of it, or of the usage, is unknown. `model` is the one that
    /// answered, by which the bundled list goes; the operator may have meant it or `asked`, the name it was asked for by,
    /// which vendors often answer with a date behind it.
    pub fn cost_usd(&self, model: &str, asked: &str, usage: &Usage) -> Option<f64> {
        match self.own.iter().find(|own| own.matches(model) || own.matches(asked)) {
            Some(own) => own.cost_usd(usage),
            None => {
                let provider = (*self.provider.get_or_init(|| self.find_provider()))?;
                self.found.cost_usd(Bundled { provider, model }, usage)
            }
        }
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

impl OwnPrice {
    fn new(price: Price) -> Self {
        let glob = GlobBuilder::new(&price.model).case_insensitive(true).build();
        Self { matcher: glob.ok().map(|glob| glob.compile_matcher()), price }
    }

    fn matches(&self, model: &str) -> bool {
        self.price.model.eq_ignore_ascii_case(model)
            || self.matcher.as_ref().is_some_and(|matcher| matcher.is_match(model))
    }

    /// What is said of tokens alone goes for cached ones too, and for every tier. `None` for searches without a price.
    fn cost_usd(&self, usage: &Usage) -> Option<f64> {
        let Price { input, output, cache_read, cache_write, cache_write_1h, web_search, .. } = self.price;
        let used = Used::of(usage)?;
        let fresh = used.input.checked_sub(used.cache_read)?.checked_sub(used.cache_write)?;
        let written = used.cache_write.checked_sub(used.cache_write_1h)?;
        let cache_write = cache_write.unwrap_or(input);
        let per_million = [
            (fresh, input),
            (used.cache_read, cache_read.unwrap_or(input)),
            (written, cache_write),
            (used.cache_write_1h, cache_write_1h.unwrap_or(cache_write)),
            (used.output, output),
        ];
        let tokens: f64 = per_million.map(|(tokens, price)| tokens as f64 * price).iter().sum();
        let searches = if used.web_searches == 0 { 0.0 } else { used.web_searches as f64 * web_search? };
        Some(tokens / 1e6 + searches / 1e3)
    }
}

/// Counts of which none is unknown.
#[derive(Debug, Clone, Copy)]
struct Used {
    input: u64,
    output: u64,
    cache_read: u64,
    cache_write: u64,
    cache_write_1h: u64,
    reasoning: u64,
    web_searches: u64,
}

impl Used {
    /// Half a count would give half a price, which looks like a whole one. What is only counted where it happens is zero when
    /// it isn't there.
    fn of(usage: &Usage) -> Option<Self> {
        Some(Self {
            input: usage.input?,
            output: usage.output?,
            cache_read: usage.cache_read.unwrap_or_default(),
            cache_write: usage.cache_write.unwrap_or_default(),
            cache_write_1h: usage.cache_write_1h.unwrap_or_default(),
            reasoning: usage.reasoning.unwrap_or_default(),
            web_searches: usage.web_searches.unwrap_or_default(),
        })
    }
}

/// What stands for a tier in the bundled list's context.
type Context = (&'static str, &'static str);

/// The bundled price of one model.
#[derive(Clone, Copy)]
struct Bundled<'a> {
    provider: &'static str,
    model: &'a str,
}

impl Bundled<'_> {
    fn cost_usd(self, usage: &Usage) -> Option<f64> {
        // The list has prices for sound, of what it isn't told which part of either side that is.
        let used = Used::of(usage).filter(|_| usage.audio.unwrap_or_default() == 0)?;
        // What is written for an hour is part of what is written, as the list has it too: it takes the one from the other.
        let counted: genai_prices::Usage = [
            (UsageKey::INPUT_TOKENS, used.input),
            (UsageKey::OUTPUT_TOKENS, used.output),
            (UsageKey::CACHE_READ_TOKENS, used.cache_read),
            (UsageKey::CACHE_WRITE_TOKENS, used.cache_write),
            (UsageKey::CACHE_WRITE_1H_TOKENS, used.cache_write_1h),
            (UsageKey::OUTPUT_REASONING_TOKENS, used.reasoning),
            (UsageKey::WEB_SEARCHES, used.web_searches),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        // No count comes near 2^52.
        .map(|(key, count)| (key, count as f64))
        .collect();
        let standard = self.price(&counted, None)?;
        if !self.knows(used, &counted, &standard) {
            return None;
        }
        let price = match context(usage.tier) {
            Tier::Standard => standard.total_price,
            Tier::Unknown => return None,
            // A tier that the list doesn't know gets the usual price there; none has the same.
            Tier::Own(context) => {
                let price = self.price(&counted, Some(context))?.total_price;
                Some(price).filter(|price| *price != standard.total_price)?
            }
        };
        // A price of nothing for something is a price that nobody entered.
        (price > 0.0 || used.input + used.output == 0).then_some(price)
    }

    /// Whether the list has the model.
    fn is_listed(self) -> bool {
        let usage = genai_prices::Usage::new();
        let request = PriceRequest::new(self.model, &usage).with_provider_id(self.provider);
        !genai_prices::calculate(&request).is_err_and(|error| error.kind() == ErrorKind::ModelNotFound)
    }

    fn price(self, usage: &genai_prices::Usage, context: Option<Context>) -> Option<PriceCalculation> {
        let mut request = PriceRequest::new(self.model, usage).with_provider_id(self.provider);
        if let Some((key, value)) = context {
            request = request.with_price_context(key, value);
        }
        // A warning is of something that the list prices in a way that this version doesn't know.
        genai_prices::calculate(&request).ok().filter(|price| price.warnings.is_empty())
    }

    /// Whether everything that was used has a price of its own.
    fn knows(self, used: Used, counted: &genai_prices::Usage, price: &PriceCalculation) -> bool {
        let unused_or_priced = |count, key| count == 0 || self.has_price(&key);
        let searches_cost = || {
            let mut others = counted.clone();
            others.remove(UsageKey::WEB_SEARCHES);
            self.price(&others, None).is_some_and(|others| others.total_price < price.total_price)
        };
        // What costs something has a price.
        (price.input_price > 0.0 || unused_or_priced(used.input, UsageKey::INPUT_TOKENS))
            && (price.output_price > 0.0 || unused_or_priced(used.output, UsageKey::OUTPUT_TOKENS))
            && unused_or_priced(used.cache_read, UsageKey::CACHE_READ_TOKENS)
            && unused_or_priced(used.cache_write, UsageKey::CACHE_WRITE_TOKENS)
            && unused_or_priced(used.cache_write_1h, UsageKey::CACHE_WRITE_1H_TOKENS)
            && (used.web_searches == 0 || searches_cost())
    }

    /// Whether the model has a price for a kind of tokens. The list doesn't say so, but it refuses usage that reports a part
    /// of a kind and not the kind itself, if and only if that has a price.
    fn has_price(self, kind: &UsageKey) -> bool {
        let parts: &[UsageKey] = match kind.as_str() {
            "input_tokens" => &[UsageKey::INPUT_TEXT_TOKENS],
            "output_tokens" => &[UsageKey::OUTPUT_TEXT_TOKENS],
            "cache_read_tokens" => {
                &[UsageKey::INPUT_TOKENS, UsageKey::INPUT_TEXT_TOKENS, UsageKey::CACHE_TEXT_READ_TOKENS]
            }
            "cache_write_tokens" => {
                &[UsageKey::INPUT_TOKENS, UsageKey::INPUT_TEXT_TOKENS, UsageKey::CACHE_TEXT_WRITE_TOKENS]
            }
            _ => &[
                UsageKey::INPUT_TOKENS,
                UsageKey::INPUT_TEXT_TOKENS,
                UsageKey::CACHE_WRITE_TOKENS,
                UsageKey::CACHE_TEXT_WRITE_TOKENS,
                UsageKey::CACHE_TEXT_WRITE_1H_TOKENS,
            ],
        };
        let usage: genai_prices::Usage = parts.iter().map(|part| (part.clone(), 1.0)).collect();
        let request = PriceRequest::new(self.model, &usage).with_provider_id(self.provider);
        genai_prices::calculate(&request).is_err_and(|error| error.kind() == ErrorKind::InvalidUsage)
    }
}

/// What a tier is in the bundled list.
enum Tier {
    /// The usual one.
    Standard,
    /// One with prices of its own, if the list has them.
    Own(Context),
    /// One that has none there.
    Unknown,
}

fn context(tier: Option<ServiceTier>) -> Tier {
    match tier {
        // Who has no tiers doesn't say one.
        None | Some(ServiceTier::Standard) => Tier::Standard,
        Some(ServiceTier::Flex) => Tier::Own(("service_tier", "flex")),
        Some(ServiceTier::Priority) => Tier::Own(("service_tier", "priority")),
        Some(ServiceTier::Fast) => Tier::Own(("service_tier", "fast")),
        Some(ServiceTier::Batch) => Tier::Own(("processing", "batch")),
        Some(ServiceTier::Other) => Tier::Unknown,
    }
}

#[cfg(test)]
mod tests;
