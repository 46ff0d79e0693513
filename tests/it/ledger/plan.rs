//! What one request of the ledger is: drawn from a seed and its number alone, so that any of them can be asked again.

use serde_json::{Value, json};

use super::{
    fault::{FAULTS, Fault},
    price,
};

/// A row of numbers that look random (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn of(seed: u64, number: usize) -> Self {
        let mut dice = Self(seed ^ (number as u64).wrapping_mul(0xd134_2543_de82_ef95));
        dice.next();
        dice
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Who may show an oddity: in which dialect, and in a stream or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    Anyone,
    Streamed,
    Whole,
    OpenAi,
    OpenAiStreamed,
    Anthropic,
    AnthropicStreamed,
}

macro_rules! oddities {
    ($($(#[$doc:meta])* $name:ident: $only:ident,)*) => {
        /// What is odd about how a provider answers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Oddity {
            $($(#[$doc])* $name,)*
        }

        impl Oddity {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub fn only(self) -> Only {
                match self {
                    $(Self::$name => Only::$only,)*
                }
            }
        }
    };
}

oddities! {
    /// Nothing.
    Plain: Anyone,
    /// `[DONE]` or `message_stop` never comes.
    NoTerminator: Streamed,
    NoLastBlankLine: Streamed,
    EmptyData: Streamed,
    CommentsAndPings: Streamed,
    CarriageReturns: Streamed,
    /// The first chunk has an empty id and model, as Azure's.
    EmptyFirstChunk: OpenAiStreamed,
    /// Keys given twice, of which the last counts.
    TwiceKeys: Anyone,
    HalfSurrogate: Anyone,
    /// What is said is the arguments of a tool's call.
    ToolCalls: Anyone,
    UnreadableFrames: Streamed,
    /// Events, blocks and fields that nobody knows.
    UnknownEvents: Streamed,
    UsageOnLastChoice: OpenAiStreamed,
    /// Moonshot's.
    UsageInChoice: OpenAiStreamed,
    /// Groq's.
    UsageInXGroq: OpenAiStreamed,
    /// DeepSeek's.
    CacheHitTokens: OpenAi,
    /// Perplexity's, which grows.
    UsageOnEachChunk: OpenAiStreamed,
    /// A chunk with usage alone, and a null in all others.
    UsageChunkAndNulls: OpenAiStreamed,
    /// xAI's, beside the completion.
    ReasoningOutside: OpenAi,
    CountsAsFloats: Anyone,
    CountsAsStrings: Anyone,
    ServiceTier: OpenAi,
    /// A tier that no list knows: no cost.
    StrangeTier: OpenAi,
    CacheLifetimes: Anthropic,
    WebSearch: Anthropic,
    ThinkingTokens: Anthropic,
    /// The last `message_delta` repeats smaller counts, some beside larger ones.
    SmallerRepeat: AnthropicStreamed,
    NoUsage: Anyone,
    /// Nobody says who answered.
    NoModel: Anyone,
    TwoChoices: OpenAi,
    Compressed: Anyone,
    /// A whole JSON answer to who asked for a stream.
    WholeForStream: Streamed,
    /// The other way about.
    StreamForWhole: Whole,
    WrongContentType: Anyone,
    NoContentType: Anyone,
    /// The connection breaks after some content.
    CutAfterContent: Streamed,
    CutBeforeContent: Streamed,
    /// The provider takes no `stream_options`, and says no usage.
    RefusesStreamOptions: OpenAiStreamed,
    ErrorStatus: Anyone,
    /// A status of 200, and an error for a body.
    ErrorIn200: Anyone,
    ErrorFirstFrame: Streamed,
    ErrorLaterFrame: Streamed,
}

impl Oddity {
    /// Whether the answer is whole in the end.
    pub fn is_good(self) -> bool {
        !self.is_error() && !matches!(self, Self::CutAfterContent | Self::CutBeforeContent)
    }

    pub fn is_error(self) -> bool {
        matches!(self, Self::ErrorStatus | Self::ErrorIn200 | Self::ErrorFirstFrame | Self::ErrorLaterFrame)
    }
}

/// When the client goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// Once the provider has the request, which it never answers.
    BeforeHead,
    /// Once it has read this many words, after which the provider falls silent.
    AfterWords(usize),
}

/// How the first target fails before anything else happens.
#[derive(Debug, Clone, Copy)]
pub struct Stumble {
    /// `None`: the connection breaks before any content, but after a usage that is another's than the one that counts.
    pub fault: Option<&'static Fault>,
    /// It goes on at the next target, and not at the same one.
    pub over: bool,
}

/// Counts as a provider has them in its books.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub reasoning: Option<u64>,
    pub cache_write_1h: Option<u64>,
    pub searches: Option<u64>,
    pub tier: Option<&'static str>,
}

impl Tokens {
    /// What is known after `newer` was told.
    pub fn update(&mut self, newer: Self) {
        self.input = newer.input.max(self.input);
        self.output = newer.output.max(self.output);
        self.cache_read = newer.cache_read.max(self.cache_read);
        self.cache_write = newer.cache_write.max(self.cache_write);
        self.reasoning = newer.reasoning.max(self.reasoning);
        self.cache_write_1h = newer.cache_write_1h.max(self.cache_write_1h);
        self.searches = newer.searches.max(self.searches);
        self.tier = newer.tier.or(self.tier);
    }
}

/// Counts that a provider may tell some of.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub fresh: u64,
    pub cache_read: u64,
    pub cache_write: u64,
    pub cache_write_1h: u64,
    pub output: u64,
    pub reasoning: u64,
    pub searches: u64,
}

impl Counts {
    fn draw(dice: &mut Dice) -> Self {
        let count = |dice: &mut Dice, end| dice.below(end) as u64;
        let output = 20 + count(dice, 4_000);
        let cache_write = count(dice, 9_000);
        Self {
            fresh: 1 + count(dice, 30_000),
            cache_read: if dice.chance(30) { 0 } else { count(dice, 60_000) },
            cache_write,
            cache_write_1h: count(dice, cache_write as usize + 1),
            output,
            reasoning: if dice.chance(20) { 0 } else { 1 + count(dice, output as usize) },
            searches: 1 + count(dice, 4),
        }
    }
}

/// One request, and how its provider answers.
#[derive(Debug, Clone)]
pub struct Plan {
    pub number: usize,
    pub seed: u64,
    pub oddity: Oddity,
    pub anthropic: bool,
    pub stream: bool,
    /// An OpenAI stream whose caller wants the usage too.
    pub asks_usage: bool,
    /// The model as the caller names it.
    pub model: String,
    /// As its targets are asked for it.
    pub asked: String,
    pub abort: Option<Abort>,
    pub stumble: Option<Stumble>,
    pub fault: Option<&'static Fault>,
    /// How many words the answer has.
    pub words: usize,
    pub counts: Counts,
    pub tier: Option<&'static str>,
    /// By which one of several ways is chosen.
    pub way: usize,
}

impl Plan {
    pub fn of(seed: u64, number: usize) -> Self {
        let mut dice = Dice::of(seed, number);
        let oddity = Oddity::ALL[number % Oddity::ALL.len()];
        let (anthropic, stream) = match oddity.only() {
            Only::Anyone => (dice.chance(50), dice.chance(50)),
            Only::Streamed => (dice.chance(50), true),
            Only::Whole => (dice.chance(50), false),
            Only::OpenAi => (false, dice.chance(50)),
            Only::OpenAiStreamed => (false, true),
            Only::Anthropic => (true, dice.chance(50)),
            Only::AnthropicStreamed => (true, true),
        };
        let fault = oddity.is_error().then(|| {
            let fits: Vec<_> =
                FAULTS.iter().filter(|fault| oddity == Oddity::ErrorStatus || !fault.only_status).collect();
            // One after the other, so that all come soon.
            fits[(number / Oddity::ALL.len()) % fits.len()]
        });
        let stumble = oddity.is_good().then(|| dice.below(100)).and_then(|roll| match roll {
            0..=5 => Some(false),
            6..=8 => Some(true),
            _ => None,
        });
        // The beginning of a call is content already, after which nothing is tried again.
        let may_cut = stream && oddity != Oddity::ToolCalls;
        let stumble = stumble.filter(|_| oddity != Oddity::RefusesStreamOptions).map(|over| {
            let fits: Vec<_> =
                FAULTS.iter().filter(|fault| if over { fault.is_over() } else { fault.is_again() }).collect();
            Stumble { fault: Some(dice.pick(&fits)).filter(|_| !may_cut || dice.chance(80)), over }
        });
        let words = 1 + dice.below(8);
        let abort = (oddity.is_good() && dice.chance(12)).then(|| {
            let silent = !stream || oddity == Oddity::WholeForStream || dice.chance(25);
            if silent { Abort::BeforeHead } else { Abort::AfterWords(1 + dice.below(words)) }
        });
        let limited =
            fault.into_iter().chain(stumble.and_then(|stumble| stumble.fault)).any(|fault| fault.status == 429);
        let asked = match oddity {
            Oddity::RefusesStreamOptions => "gpt-4o-mini".to_owned(),
            // A model that a provider limits is left alone by all, so each has one of its own.
            _ if limited => format!("limited-{}-{number}", if anthropic { "claude" } else { "gpt" }),
            Oddity::ServiceTier if dice.chance(60) => "o3".to_owned(),
            _ => dice.pick(price::models(anthropic)).to_owned(),
        };
        let over = stumble.is_some_and(|stumble| stumble.over);
        let model = match (oddity, over) {
            (Oddity::RefusesStreamOptions, _) => "stubborn".to_owned(),
            (_, true) => format!("over-{asked}"),
            _ => asked.clone(),
        };
        let tier = match oddity {
            Oddity::ServiceTier if asked == "o3" => Some(dice.pick(&["default", "flex", "priority"])),
            Oddity::ServiceTier => Some("default"),
            Oddity::StrangeTier => Some("scale"),
            _ if anthropic => dice.pick(&[None, Some("standard"), Some("standard"), Some("priority")]),
            _ => None,
        };
        Self {
            number,
            seed,
            oddity,
            anthropic,
            stream,
            asks_usage: !anthropic && stream && oddity != Oddity::RefusesStreamOptions && dice.chance(40),
            model,
            asked,
            abort,
            stumble,
            fault,
            words,
            counts: Counts::draw(&mut dice),
            tier,
            way: dice.below(60),
        }
    }

    /// Whether the client leaves at the last word of the protocol, as SDKs do, which is not to leave early.
    pub fn hurries(&self) -> bool {
        let ends = self.stream && self.oddity.is_good() && self.oddity != Oddity::NoTerminator;
        ends && self.abort.is_none() && self.way.is_multiple_of(5)
    }

    /// Dice for how this answer is cut into pieces and spiced.
    pub fn dice(&self) -> Dice {
        Dice::of(!self.seed, self.number)
    }

    pub fn path(&self) -> &'static str {
        if self.anthropic { "/v1/messages" } else { "/v1/chat/completions" }
    }

    pub fn id(&self) -> String {
        format!("ledger-{}", self.number)
    }

    /// The number within an id.
    pub fn number_of(id: &str) -> Option<usize> {
        id.strip_prefix("ledger-")?.parse().ok()
    }

    /// What the client sends.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "model": self.model, "messages": [{ "role": "user", "content": "What do you owe?" }], "stream": self.stream,
            "metadata": { "user_id": self.id() }
        });
        if self.anthropic {
            body["max_tokens"] = json!(64);
        }
        if self.asks_usage {
            body["stream_options"] = json!({ "include_usage": true });
        }
        body
    }

    /// A word of the answer, by which it is told how far it was read.
    pub fn word(&self, index: usize) -> String {
        format!("w{index}{} ", ".".repeat(1 + (self.number + index) % 9))
    }

    /// The model that says that it answered.
    pub fn answering(&self) -> Option<String> {
        let name = match self.asked.as_str() {
            "gpt-4o" => "gpt-4o-2024-08-06".to_owned(),
            "o3" => "o3-2025-04-16".to_owned(),
            "claude-sonnet-4-5" => "claude-sonnet-4-5-20250929".to_owned(),
            "gpt-4o-mini" => "gpt-4o-mini-2024-07-18".to_owned(),
            asked => format!("{asked}-2026"),
        };
        (self.oddity != Oddity::NoModel).then_some(name)
    }

    /// By which a mismatch can be made again.
    pub fn name(&self) -> String {
        let Self { number, seed, oddity, anthropic, stream, abort, asked, .. } = self;
        let dialect = if *anthropic { "anthropic" } else { "openai" };
        let fault = self.fault.map(|fault| format!(" {}", fault.name)).unwrap_or_default();
        let stumble = self.stumble.map(|stumble| {
            format!(" after {} (over: {})", stumble.fault.map_or("a cut", |fault| fault.name), stumble.over)
        });
        format!(
            "{number}: {oddity:?}{fault}, {dialect} {asked}, stream: {stream}, abort: {abort:?}{}; LEDGER_SEED={seed} LEDGER_ONLY={number}",
            stumble.unwrap_or_default()
        )
    }
}
