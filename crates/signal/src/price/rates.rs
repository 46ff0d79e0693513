//! What the bundled list is found to say of a model, which it takes thousands of steps to say anew for each call.
//!
//! The list calculates and doesn't show its prices. Most models cost so much a token of each kind, whatever their number:
//! that shows in what it calculates for a few tokens and for very many. Then the rates are kept, by the minute, since some
//! prices change with the date or with the time of day. All other models are left to the list.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use foldhash::fast::RandomState;
use mlx_manager_llm::{ServiceTier, Usage};
use parking_lot::RwLock;

use super::{Bundled, Used};

/// The most models of which something is kept. Their names come from providers, so there may be any number of them.
const MOST_MODELS: usize = 256;

const MILLION: u64 = 1_000_000;

/// Counts of tokens between which, and beyond which, rates may change.
const COUNTS: [u64; 6] = [1, 1_000, 10_000, 100_000, MILLION, 1_000_000 * MILLION];

/// Two results of the same prices differ by rounding alone.
const ROUNDING: f64 = 1e-12;

/// What was found out about models.
#[derive(Debug, Default)]
pub(super) struct Found(RwLock<HashMap<String, (Minute, Finding), RandomState>>);

/// The minutes since 1970.
type Minute = u64;

/// How a model is priced.
#[derive(Debug, Clone, Copy)]
enum Finding {
    /// The list doesn't have it.
    Unlisted,
    /// By rates that don't change with the number of tokens.
    Flat(Rates),
    /// In another way.
    Else,
}

/// Dollars for a million tokens; `None` where the list has no price of its own for a kind.
#[derive(Debug, Clone, Copy)]
struct Rates {
    input: Option<f64>,
    output: Option<f64>,
    cache_read: Option<f64>,
    cache_write: Option<f64>,
}

impl Found {
    /// What [`Bundled::cost_usd`] says, mostly without asking it.
    pub fn cost_usd(&self, bundled: Bundled<'_>, usage: &Usage) -> Option<f64> {
        match self.finding(bundled) {
            Finding::Unlisted => None,
            Finding::Flat(rates) => rates.cost_usd(usage).or_else(|| bundled.cost_usd(usage)),
            Finding::Else => bundled.cost_usd(usage),
        }
    }

    fn finding(&self, bundled: Bundled<'_>) -> Finding {
        let now = minute();
        if let Some((found, finding)) = self.0.read().get(bundled.model)
            && *found == now
        {
            return *finding;
        }
        let finding = Finding::of(bundled);
        let mut models = self.0.write();
        if models.len() >= MOST_MODELS {
            models.clear();
        }
        models.insert(bundled.model.to_owned(), (now, finding));
        finding
    }
}

fn minute() -> Minute {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 60)
}

impl Finding {
    fn of(bundled: Bundled<'_>) -> Self {
        if !bundled.is_listed() {
            return Self::Unlisted;
        }
        let cost_usd =
            |input, output, usage| bundled.cost_usd(&Usage { input: Some(input), output: Some(output), ..usage });
        let rates = Rates {
            input: cost_usd(MILLION, 0, Usage::default()),
            output: cost_usd(0, MILLION, Usage::default()),
            cache_read: cost_usd(MILLION, 0, Usage { cache_read: Some(MILLION), ..Usage::default() }),
            cache_write: cost_usd(MILLION, 0, Usage { cache_write: Some(MILLION), ..Usage::default() }),
        };
        let read = |count| rates.cache_read.map(|_| count);
        let written = |count| rates.cache_write.map(|_| count);
        let is_flat = COUNTS.into_iter().all(|count| {
            // Rates may depend on how long the prompt is, of which parts were read and written.
            let usage = Usage {
                input: rates.input.map(|_| 3 * count),
                output: rates.output.map_or(Some(0), |_| Some(count)),
                cache_read: read(count),
                cache_write: written(count),
                reasoning: rates.output.map(|_| count),
                ..Usage::default()
            };
            let (found, listed) = (rates.cost_usd(&usage), bundled.cost_usd(&usage));
            found.zip(listed).is_some_and(|(found, listed)| (found - listed).abs() <= ROUNDING * listed)
        });
        if is_flat { Self::Flat(rates) } else { Self::Else }
    }
}

impl Rates {
    /// The price of tokens alone, where all that were used have a rate. What else may be used, or is wrong, the list knows.
    fn cost_usd(&self, usage: &Usage) -> Option<f64> {
        let used = Used::of(usage)?;
        let is_plain = matches!(usage.tier, None | Some(ServiceTier::Standard))
            && usage.audio.unwrap_or_default() == 0
            && used.cache_write_1h == 0
            && used.web_searches == 0
            && used.reasoning <= used.output;
        let fresh = used.input.checked_sub(used.cache_read)?.checked_sub(used.cache_write)?;
        let parts = [
            // The list has no rate for a part of the input where it has none for the whole.
            (used.input, fresh, self.input),
            (used.output, used.output, self.output),
            (used.cache_read, used.cache_read, self.cache_read),
            (used.cache_write, used.cache_write, self.cache_write),
        ];
        let mut dollars = 0.0;
        for (needed, tokens, rate) in parts {
            if needed > 0 {
                dollars += tokens as f64 * rate?;
            }
        }
        (is_plain && dollars > 0.0).then_some(dollars / MILLION as f64)
    }
}
