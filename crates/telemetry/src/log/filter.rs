//! Who takes what: the mask of a target and a level, computed once per callsite.
//!
//! Pure: it knows the `[log]` section and nothing of files, spans or threads. Enter at [`Filter::taken`].

use mlx_manager_config::{Directive, Level, LogConfig};
use mlx_manager_signal::target::{HTTP, SERVER_HTTP};
use tracing::{Level as TracingLevel, level_filters::LevelFilter};

pub use mlx_manager_config::MAX_SINKS;

/// One bit per sink from bit 0 up, and the two bits below at the top.
pub type Mask = u64;

/// The span is recorded: for the trace layer and for the context of log lines.
pub const SPAN: Mask = 1 << 63;
/// The event goes to the record observer.
pub const OBSERVED: Mask = 1 << 62;

/// The level up to which a request's story goes.
const STORY: Level = Level::Debug;

/// The path that an exporter's own connections log under. Exporting these would make every export cause another one.
const EXPORT_PATH: [&str; 10] = [
    "hyper",
    "hyper_util",
    "h2",
    "tonic",
    "tower",
    "reqwest",
    "rustls",
    "rustls_platform_verifier",
    "opentelemetry",
    "tracing_opentelemetry",
];

/// What a callsite is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callsite {
    /// An event.
    Event,
    /// A span.
    Span,
}

/// Who takes what a callsite says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// These, outside of every span.
    pub mask: Mask,
    /// Only if the request that it belongs to fails: its level does not pass, and would if the log's were DEBUG.
    pub story: bool,
    /// A third party says it, and the spans around it may change who takes it.
    pub follows: bool,
}

impl Taken {
    /// Whether nobody ever takes it.
    pub fn is_never(self) -> bool {
        self.mask == 0 && !self.follows
    }
}

/// The level logic of the `[log]` section; the default takes no event.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    level: Level,
    directives: Vec<Directive>,
    caps: Vec<Directive>,
    sinks: Vec<SinkFilter>,
    /// Whether there is a record observer.
    observed: bool,
    /// Whether somebody exports spans.
    traced: bool,
    failure_story: bool,
}

#[derive(Debug, Clone)]
struct SinkFilter {
    include: Vec<String>,
    exclude: Vec<String>,
    level: Level,
}

impl Filter {
    /// Takes what it needs from the `[log]` section. A trace layer gets no events: an ERROR would mark its span as failed,
    /// which only whoever ends the span can judge, and records reach its destinations as such, by their trace id.
    pub fn new(config: &LogConfig, observed: bool, traced: bool) -> Self {
        let sinks = config.sinks.iter().map(|sink| SinkFilter {
            include: sink.include.clone(),
            exclude: sink.exclude.clone(),
            level: sink.level,
        });
        Self {
            level: config.level,
            directives: config.directives.clone(),
            caps: config.targets.clone(),
            sinks: sinks.collect(),
            observed,
            traced,
            failure_story: config.failure_story,
        }
    }

    /// Whether requests keep what they say at DEBUG.
    pub fn keeps_stories(&self) -> bool {
        self.failure_story && self.has_takers()
    }

    /// Whether anybody takes records.
    fn has_takers(&self) -> bool {
        self.observed || !self.sinks.is_empty()
    }

    /// Who takes a callsite.
    pub fn taken(&self, target: &str, level: TracingLevel, callsite: Callsite) -> Taken {
        if callsite == Callsite::Span {
            // Whatever the log level: traces don't depend on it, and the records that remain need their request id. Rows
            // and headers need the ids of a request's own span, and nobody else's.
            let own = is_own(target) && level <= TracingLevel::INFO;
            let needed = self.traced || self.has_takers() || target == HTTP || target == SERVER_HTTP;
            return Taken { mask: if own && needed { SPAN } else { 0 }, ..Taken::default() };
        }
        let story = !self.level_of(target, Level::Off).allows(level);
        if story && !(self.failure_story && self.level_of(target, STORY).allows(level)) {
            return Taken::default();
        }
        let follows = !is_own(target) && self.sinks.iter().any(|sink| sink.level.allows(level) && sink.names_own());
        Taken { mask: self.select(target, level, &[]), story, follows }
    }

    /// Who takes an event whose level passes, inside spans of these targets.
    pub fn select(&self, target: &str, level: TracingLevel, spans: &[&str]) -> Mask {
        let mut mask = 0;
        if self.observed && !is_export_path(target) {
            mask |= OBSERVED;
        }
        for (index, sink) in self.sinks.iter().enumerate() {
            if sink.level.allows(level) && sink.selects(target, spans) {
                mask |= 1 << index;
            }
        }
        mask
    }

    /// The most detailed level that any target can pass; never below INFO, the level of spans.
    pub fn max_level(&self) -> LevelFilter {
        let levels = self.directives.iter().map(|directive| directive.level);
        let story = self.keeps_stories().then_some(STORY);
        LevelFilter::from(levels.chain(story).fold(self.level, Level::max)).max(LevelFilter::INFO)
    }

    /// The level of a target: the most specific directive, else the global level; under the most specific cap, unless
    /// a directive names the capped target or something below it. With a `floor`, our own targets have at least that
    /// one; a directive for a third party's target is there to limit it, and `off` is off.
    fn level_of(&self, target: &str, floor: Level) -> Level {
        let directive = most_specific(&self.directives, target);
        let level = match directive.map_or(self.level, |directive| directive.level) {
            Level::Off => Level::Off,
            level if directive.is_some_and(|directive| !is_own(&directive.target)) => level,
            level => level.max(floor),
        };
        match most_specific(&self.caps, target) {
            // Both match the same target, so that the longer one lies at or below the other.
            Some(cap) if directive.is_none_or(|directive| directive.target.len() < cap.target.len()) => {
                level.min(cap.level)
            }
            _ => level,
        }
    }
}

impl SinkFilter {
    /// Whether the sink wants a target. What a third party says counts as said by every span around it too, so that it
    /// goes where the rest of a request goes.
    fn selects(&self, target: &str, spans: &[&str]) -> bool {
        let listed = |prefixes: &[String]| {
            prefixes.iter().any(|prefix| is_below(target, prefix) || spans.iter().any(|span| is_below(span, prefix)))
        };
        (self.include.is_empty() || listed(&self.include)) && !listed(&self.exclude)
    }

    /// Whether any span makes a difference to it; all spans are our own.
    fn names_own(&self) -> bool {
        self.include.iter().chain(&self.exclude).any(|prefix| is_own(prefix))
    }
}

pub(super) fn most_specific<'a>(directives: &'a [Directive], target: &str) -> Option<&'a Directive> {
    let matching = directives.iter().filter(|directive| is_below(target, &directive.target));
    matching.max_by_key(|directive| directive.target.len())
}

/// Whether a target is a module path prefix or lies below it, by whole segments.
pub(super) fn is_below(target: &str, prefix: &str) -> bool {
    target.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with("::"))
}

fn is_own(target: &str) -> bool {
    is_below(target, "mlx_manager")
}

fn is_export_path(target: &str) -> bool {
    // The SDK's crates share the stem (`opentelemetry_sdk`, `opentelemetry-otlp`).
    target.starts_with("opentelemetry") || EXPORT_PATH.iter().any(|prefix| is_below(target, prefix))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use mlx_manager_config::{Color, Format, Sink, SinkKind, Timezone};

    use super::*;

    fn sink(include: &[&str], exclude: &[&str], level: Level) -> Sink {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Sink {
            name: "sink".into(),
            kind: SinkKind::Console { color: Color::Never },
            format: Format::Text,
            include: owned(include),
            exclude: owned(exclude),
            level,
        }
    }

    fn directives(list: &[(&str, Level)]) -> Vec<Directive> {
        list.iter().map(|(target, level)| Directive { target: target.to_string(), level: *level }).collect()
    }

    fn config(level: Level, list: &[(&str, Level)], caps: &[(&str, Level)], sinks: Vec<Sink>) -> LogConfig {
        LogConfig {
            level,
            directives: directives(list),
            targets: directives(caps),
            dir: PathBuf::new(),
            timezone: Timezone::Utc,
            failure_story: false,
            sinks,
        }
    }

    impl Filter {
        /// Who takes a callsite outside of every span and story.
        fn enabled(&self, target: &str, level: TracingLevel, callsite: Callsite) -> Mask {
            let taken = self.taken(target, level, callsite);
            if taken.story { 0 } else { taken.mask }
        }
    }

    fn all() -> Vec<Sink> {
        vec![sink(&[], &[], Level::Trace)]
    }

    /// Whether the one sink takes each target at the level.
    fn passes(config: &LogConfig, level: TracingLevel, expected: &[(&str, bool)]) {
        let filter = Filter::new(config, false, true);
        for (target, expect) in expected {
            assert_eq!(filter.enabled(target, level, Callsite::Event) == 1, *expect, "{target} at {level}");
        }
    }

    #[test]
    fn most_specific_directive_wins() {
        let list = [("mlx_manager::server", Level::Debug), ("mlx_manager::server::engine", Level::Error)];
        let config = config(Level::Info, &list, &[], all());
        let expected = [
            ("mlx_manager::server", true),
            ("mlx_manager::server::dispatch", true),
            ("mlx_manager::server::engine", false),
            ("mlx_manager::server::engine::pool", false),
            ("mlx_manager::servers", false),
            ("mlx_manager", false),
        ];
        passes(&config, TracingLevel::DEBUG, &expected);
    }

    #[test]
    fn cap_matches_whole_segments_and_most_specific_cap_wins() {
        let caps = [("hyper", Level::Warn), ("hyper::proto", Level::Info)];
        let config = config(Level::Debug, &[], &caps, all());
        passes(
            &config,
            TracingLevel::INFO,
            &[("hyper", false), ("hyper::client", false), ("hyper::proto::h1", true), ("hyper_util", true)],
        );
        passes(&config, TracingLevel::DEBUG, &[("hyper::proto::h1", false), ("hyper_util", true)]);
    }

    #[test]
    fn only_directive_at_or_below_cap_lifts_it() {
        let caps = [("sqlx::query", Level::Warn)];
        passes(&config(Level::Trace, &[], &caps, all()), TracingLevel::INFO, &[("sqlx::query", false), ("sqlx", true)]);
        let broader = config(Level::Info, &[("sqlx", Level::Trace)], &caps, all());
        passes(&broader, TracingLevel::DEBUG, &[("sqlx::query", false), ("sqlx::pool", true)]);
        let same = config(Level::Info, &[("sqlx::query", Level::Debug)], &caps, all());
        passes(&same, TracingLevel::DEBUG, &[("sqlx::query", true), ("sqlx::query::deep", true)]);
        let below = config(Level::Info, &[("sqlx::query::deep", Level::Debug)], &caps, all());
        passes(&below, TracingLevel::DEBUG, &[("sqlx::query", false), ("sqlx::query::deep", true)]);
    }

    #[test]
    fn cap_never_raises_a_level() {
        let config = config(Level::Error, &[], &[("hyper", Level::Warn)], all());
        passes(&config, TracingLevel::WARN, &[("hyper", false)]);
        passes(&config, TracingLevel::ERROR, &[("hyper", true)]);
    }

    #[test]
    fn sinks_split_by_prefix_and_have_own_floor() {
        let sinks = vec![
            sink(&["mlx_manager::server"], &[], Level::Trace),
            sink(&[], &["mlx_manager::server"], Level::Trace),
            sink(&[], &[], Level::Warn),
        ];
        let filter = Filter::new(&config(Level::Debug, &[], &[], sinks), false, true);
        let mask = |target, level| filter.enabled(target, level, Callsite::Event);
        assert_eq!(mask("mlx_manager::server::api", TracingLevel::DEBUG), 0b001);
        assert_eq!(mask("mlx_manager::store", TracingLevel::DEBUG), 0b010);
        assert_eq!(mask("mlx_manager::server", TracingLevel::WARN), 0b101);
        assert_eq!(mask("other", TracingLevel::ERROR), 0b110);
        assert_eq!(mask("mlx_manager::server", TracingLevel::TRACE), 0);
    }

    #[test]
    fn own_spans_are_recorded_whatever_the_level() {
        for level in [Level::Off, Level::Error, Level::Trace] {
            let filter = Filter::new(&config(level, &[], &[], all()), false, true);
            let span = |target, level| filter.enabled(target, level, Callsite::Span);
            assert_eq!(span("mlx_manager::server::http", TracingLevel::INFO), SPAN);
            assert_eq!(span("mlx_manager_other", TracingLevel::INFO), 0);
            assert_eq!(span("hyper::client", TracingLevel::ERROR), 0);
            assert!(filter.max_level() >= LevelFilter::INFO);
        }
    }

    #[test]
    fn exporter_path_is_not_observed() {
        let filter = Filter::new(&config(Level::Trace, &[], &[], all()), true, true);
        let event = |target| filter.enabled(target, TracingLevel::INFO, Callsite::Event);
        for target in [
            "hyper",
            "hyper_util::client",
            "h2",
            "tonic",
            "tower::buffer",
            "reqwest",
            "rustls",
            "opentelemetry_sdk",
            "opentelemetry-otlp",
        ] {
            assert_eq!(event(target), 1, "{target}");
        }
        assert_eq!(event("mlx_manager::store"), 1 | OBSERVED);
        assert_eq!(event("tower_http"), 1 | OBSERVED);
    }

    #[test]
    fn off_is_off() {
        let config = config(Level::Off, &[("loud", Level::Error)], &[], all());
        passes(&config, TracingLevel::ERROR, &[("mlx_manager", false), ("loud", true)]);
    }

    #[test]
    fn story_goes_to_debug_under_floors_caps_and_directives_for_others() {
        let sinks = vec![sink(&[], &[], Level::Trace), sink(&[], &[], Level::Warn)];
        let list = [("mlx_manager::server", Level::Warn), ("mlx_manager::store", Level::Off), ("noisy", Level::Info)];
        let mut config = config(Level::Error, &list, &[("hyper", Level::Warn)], sinks);
        let taken = |config: &LogConfig, target, level| {
            let taken = Filter::new(config, false, true).taken(target, level, Callsite::Event);
            (taken.mask, taken.story)
        };
        for target in ["mlx_manager::server::api", "mlx_manager", "noisy", "hyper"] {
            assert_eq!(taken(&config, target, TracingLevel::DEBUG), (0, false), "{target}: off");
        }
        assert_eq!(Filter::new(&config, false, true).max_level(), LevelFilter::INFO);
        config.failure_story = true;
        let expected = [
            ("mlx_manager::server::api", TracingLevel::DEBUG, (0b01, true)),
            ("mlx_manager::server::api", TracingLevel::TRACE, (0, false)),
            ("mlx_manager::server::api", TracingLevel::WARN, (0b11, false)),
            ("mlx_manager", TracingLevel::WARN, (0b11, true)),
            ("mlx_manager::store", TracingLevel::ERROR, (0, false)),
            ("noisy", TracingLevel::DEBUG, (0, false)),
            ("hyper", TracingLevel::DEBUG, (0, false)),
            ("hyper", TracingLevel::WARN, (0b11, true)),
            ("tokio", TracingLevel::DEBUG, (0b01, true)),
        ];
        for (target, level, expected) in expected {
            assert_eq!(taken(&config, target, level), expected, "{target} at {level}");
        }
        assert_eq!(Filter::new(&config, false, true).max_level(), LevelFilter::DEBUG);
    }

    #[test]
    fn third_party_goes_where_the_spans_around_it_go() {
        let sinks = vec![
            sink(&["mlx_manager::server"], &[], Level::Trace),
            sink(&[], &["mlx_manager::server"], Level::Trace),
            sink(&["hyper"], &[], Level::Trace),
            sink(&["mlx_manager::server::cloud"], &["hyper::proto"], Level::Trace),
        ];
        let filter = Filter::new(&config(Level::Debug, &[], &[("sqlx", Level::Warn)], sinks), false, true);
        let inside = ["mlx_manager::server::cloud", "mlx_manager::server::http"];
        let select = |target, spans: &[&str]| filter.select(target, TracingLevel::DEBUG, spans);
        assert_eq!(select("hyper::client", &[]), 0b0110);
        assert_eq!(select("hyper::client", &inside), 0b1101);
        assert_eq!(select("hyper::proto", &inside), 0b0101);
        assert_eq!(select("hyper", &["mlx_manager::store", "mlx_manager::server::http"]), 0b0101);
        assert_eq!(select("hyper", &["mlx_manager::store"]), 0b0110);
        let follows = |target, level| filter.taken(target, level, Callsite::Event).follows;
        assert!(follows("hyper", TracingLevel::DEBUG));
        assert!(!follows("sqlx", TracingLevel::DEBUG), "its own level comes first");
        assert!(!follows("mlx_manager::server::api", TracingLevel::INFO), "our own say themselves where they belong");
        let plain =
            Filter::new(&config(Level::Debug, &[], &[], vec![sink(&["hyper"], &[], Level::Trace)]), false, true);
        assert!(!plain.taken("tokio", TracingLevel::INFO, Callsite::Event).follows, "no span makes a difference");
    }
}
