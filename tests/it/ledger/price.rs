//! The ledger's own price lists, in whole nano-dollars, and what a call costs by them.

use super::plan::Tokens;

/// Nano-dollars per token, and per search. What has no price leaves none for the call.
#[derive(Debug, Clone, Copy)]
struct Prices {
    input: u64,
    output: u64,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    search: Option<u64>,
}

const GPT_4O: Prices = openai(2_500, 1_250, 10_000);
const GPT_4O_MINI: Prices = openai(150, 75, 600);
const O3: Prices = openai(2_000, 500, 8_000);
const O3_FLEX: Prices = openai(1_000, 250, 4_000);
const O3_PRIORITY: Prices = openai(3_500, 875, 14_000);
const SONNET: Prices = Prices {
    input: 3_000,
    output: 15_000,
    cache_read: Some(300),
    cache_write: Some(3_750),
    cache_write_1h: Some(6_000),
    search: Some(10_000_000),
};
const GPT_LEDGER: Prices = Prices {
    input: 590,
    output: 790,
    cache_read: Some(60),
    cache_write: Some(590),
    cache_write_1h: Some(590),
    search: Some(5_000_000),
};
const CLAUDE_LEDGER: Prices = Prices {
    input: 1_100,
    output: 5_500,
    cache_read: Some(110),
    cache_write: Some(1_375),
    cache_write_1h: Some(2_200),
    search: None,
};
const LIMITED: Prices = Prices {
    input: 1_000,
    output: 2_000,
    cache_read: Some(1_000),
    cache_write: Some(1_000),
    cache_write_1h: Some(1_000),
    search: None,
};

const fn openai(input: u64, cache_read: u64, output: u64) -> Prices {
    let cache_read = Some(cache_read);
    Prices { input, output, cache_read, cache_write: None, cache_write_1h: None, search: Some(10_000_000) }
}

/// The operator's prices of the models that only they have.
pub const CONFIG: &str = r#"
[[prices]]
model = "gpt-ledger"
input = 0.59
output = 0.79
cache_read = 0.06
web_search = 5
[[prices]]
model = "claude-ledger"
input = 1.1
output = 5.5
cache_read = 0.11
cache_write = 1.375
cache_write_1h = 2.2
[[prices]]
model = "limited-*"
input = 1
output = 2
"#;

/// The models of a dialect: in the built-in list, in the operator's, in none.
pub fn models(anthropic: bool) -> &'static [&'static str] {
    if anthropic {
        &["claude-sonnet-4-5", "claude-ledger", "claude-mystery"]
    } else {
        &["gpt-4o", "o3", "gpt-ledger", "mystery"]
    }
}

/// What a call of a model costs, in nano-dollars.
pub fn nanos(model: &str, tokens: &Tokens) -> Option<u64> {
    let usual = matches!(tokens.tier, None | Some("default" | "standard"));
    let prices = match model {
        "o3" if tokens.tier == Some("flex") => O3_FLEX,
        "o3" if tokens.tier == Some("priority") => O3_PRIORITY,
        // Of the operator's prices there is one for all tiers.
        "gpt-ledger" => GPT_LEDGER,
        "claude-ledger" => CLAUDE_LEDGER,
        _ if model.starts_with("limited-") => LIMITED,
        _ if !usual => return None,
        "gpt-4o" => GPT_4O,
        "gpt-4o-mini" => GPT_4O_MINI,
        "o3" => O3,
        "claude-sonnet-4-5" => SONNET,
        _ => return None,
    };
    let (read, written) = (tokens.cache_read.unwrap_or(0), tokens.cache_write.unwrap_or(0));
    let hour = tokens.cache_write_1h.unwrap_or(0);
    let part = |count: u64, price: Option<u64>| if count == 0 { Some(0) } else { Some(count * price?) };
    Some(
        (tokens.input? - read - written) * prices.input
            + tokens.output? * prices.output
            + part(read, prices.cache_read)?
            + part(written - hour, prices.cache_write)?
            + part(hour, prices.cache_write_1h)?
            + part(tokens.searches.unwrap_or(0), prices.search)?,
    )
}

pub fn dollars(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
