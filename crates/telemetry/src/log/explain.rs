//! Which sinks take an event, and by which keys of the configuration.
//!
//! The router goes by masks, which say who but not why; a test holds the two together. Enter at [`explain`].

use mlx_manager_config::{Directive, Level, LogConfig, Sink};
use mlx_manager_signal::target::SERVER_HTTP;
use tracing::Level as TracingLevel;

use super::filter::{Callsite, Filter, Mask, is_below, most_specific};

/// What one sink does with an event.
#[derive(Debug)]
pub struct Verdict<'a> {
    /// The sink's name.
    pub sink: &'a str,
    /// Whether it takes the event.
    pub takes: bool,
    /// The keys that let it pass, or else those that stop it.
    pub reasons: Vec<Reason>,
}

/// What one key of the configuration does with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The key, `log.sinks[1].include`.
    pub key: String,
    /// Whether it lets the event pass.
    pub passes: bool,
    /// What it does, as it follows the key and its value.
    pub effect: String,
}

/// Says of every sink whether it takes an event of this target and level, and why.
pub fn explain<'a>(config: &'a LogConfig, target: &str, level: TracingLevel) -> Vec<Verdict<'a>> {
    let common = level_reasons(config, target, level);
    let judge = |(index, sink): (usize, &'a Sink)| {
        let mut reasons = common.clone();
        reasons.extend(sink_reasons(&format!("log.sinks[{index}]"), sink, target, level));
        let takes = reasons.iter().all(|reason| reason.passes);
        reasons.retain(|reason| reason.passes == takes);
        Verdict { sink: &sink.name, takes, reasons }
    };
    config.sinks.iter().enumerate().map(judge).collect()
}

/// What becomes of an event while an inference request is served.
#[derive(Debug, PartialEq, Eq)]
pub struct InRequest<'a> {
    /// The names of the sinks that take it.
    pub takers: Vec<&'a str>,
    /// Whether they get it only if the request fails.
    pub story: bool,
}

/// Says which sinks take an event of this target and level inside an inference request.
pub fn in_request<'a>(config: &'a LogConfig, target: &str, level: TracingLevel) -> InRequest<'a> {
    let filter = Filter::new(config, false, true);
    let taken = filter.taken(target, level, Callsite::Event);
    let mask = if taken.follows { filter.select(target, level, &[SERVER_HTTP]) } else { taken.mask };
    InRequest { takers: names(config, mask), story: taken.story }
}

fn names(config: &LogConfig, mask: Mask) -> Vec<&str> {
    let taking = config.sinks.iter().enumerate().filter(|(index, _)| mask & (1 << index) != 0);
    taking.map(|(_, sink)| sink.name.as_str()).collect()
}

/// What `log.level` and the caps say, for all sinks alike.
fn level_reasons(config: &LogConfig, target: &str, level: TracingLevel) -> Vec<Reason> {
    let reason = |key: &str, limit: Level, by: String| {
        let passes = limit.allows(level);
        let verb = if passes { "lets" } else { "stops" };
        let effect = format!("{by}{verb} {level}{}", if passes { " pass" } else { "" });
        Reason { key: key.to_owned(), passes, effect }
    };
    let directive = most_specific(&config.directives, target);
    let mut reasons = vec![match directive {
        Some(Directive { target, level: limit }) => {
            reason("log.level", *limit, format!("with its directive {target}={} ", limit.as_str()))
        }
        None => reason("log.level", config.level, String::new()),
    }];
    if let Some(cap) = most_specific(&config.targets, target) {
        let key = format!("log.targets.{}", cap.target);
        reasons.push(match directive {
            Some(directive) if directive.target.len() >= cap.target.len() => {
                Reason { key, passes: true, effect: "is lifted by that directive".to_owned() }
            }
            _ => reason(&key, cap.level, String::new()),
        });
    }
    reasons
}

fn sink_reasons(key: &str, sink: &Sink, target: &str, level: TracingLevel) -> Vec<Reason> {
    let passes = sink.level.allows(level);
    let effect = if passes { format!("lets {level} pass") } else { format!("stops {level}") };
    let mut reasons = vec![Reason { key: format!("{key}.level"), passes, effect }];
    let mut list = |name: &str, prefixes: &[String], wanted: bool| {
        if prefixes.is_empty() {
            return;
        }
        let found = prefixes.iter().find(|prefix| is_below(target, prefix));
        let effect = found.map_or_else(|| "doesn't name it".to_owned(), |prefix| format!("names {prefix}"));
        reasons.push(Reason { key: format!("{key}.{name}"), passes: found.is_some() == wanted, effect });
    };
    list("include", &sink.include, true);
    list("exclude", &sink.exclude, false);
    reasons
}

#[cfg(test)]
mod tests {
    use mlx_manager_config::{Environment, LoadOptions, load_text};
    use proptest::prelude::*;

    use super::*;
    use crate::log::LEVELS;

    const CONFIG: &str = r#"
        [log]
        level = "info,a::b=debug,a::b::c=off,hyper::client=trace"
        [log.targets]
        "a::b::x" = "error"
        [[log.sinks]]
        name = "all"
        kind = "console"
        [[log.sinks]]
        name = "some"
        kind = "console"
        include = ["a::b", "hyper"]
        exclude = ["a::b::d"]
        [[log.sinks]]
        name = "bad"
        kind = "console"
        level = "warn"
    "#;

    fn config() -> LogConfig {
        let options = LoadOptions { environment: Environment::new("/"), ..LoadOptions::default() };
        load_text(CONFIG, None, &options).unwrap().config.log
    }

    /// The reasons of one sink, `key effect` each.
    fn reasons(sink: &str, target: &str, level: TracingLevel) -> (bool, Vec<String>) {
        let config = config();
        let verdict = explain(&config, target, level).into_iter().find(|verdict| verdict.sink == sink).unwrap();
        (verdict.takes, verdict.reasons.iter().map(|reason| format!("{} {}", reason.key, reason.effect)).collect())
    }

    #[track_caller]
    fn check(sink: &str, (target, level): (&str, TracingLevel), takes: bool, expected: &[&str]) {
        assert_eq!(reasons(sink, target, level), (takes, expected.iter().map(ToString::to_string).collect()));
    }

    #[test]
    fn every_key_speaks_for_itself() {
        let (debug, info) = (TracingLevel::DEBUG, TracingLevel::INFO);
        check("all", ("a", debug), false, &["log.level stops DEBUG"]);
        check("all", ("a", info), true, &["log.level lets INFO pass", "log.sinks[0].level lets INFO pass"]);
        check("bad", ("a", info), false, &["log.sinks[2].level stops INFO"]);
        check(
            "some",
            ("a::b::e", debug),
            true,
            &[
                "log.level with its directive a::b=debug lets DEBUG pass",
                "log.sinks[1].level lets DEBUG pass",
                "log.sinks[1].include names a::b",
                "log.sinks[1].exclude doesn't name it",
            ],
        );
        check("some", ("a::b::d", debug), false, &["log.sinks[1].exclude names a::b::d"]);
        check("some", ("z", info), false, &["log.sinks[1].include doesn't name it"]);
        check("all", ("a::b::c", info), false, &["log.level with its directive a::b::c=off stops INFO"]);
        check("all", ("a::b::x", info), false, &["log.targets.a::b::x stops INFO"]);
        check("all", ("hyper::server", info), false, &["log.targets.hyper stops INFO"]);
        check(
            "all",
            ("hyper::client", debug),
            true,
            &[
                "log.level with its directive hyper::client=trace lets DEBUG pass",
                "log.targets.hyper is lifted by that directive",
                "log.sinks[0].level lets DEBUG pass",
            ],
        );
    }

    proptest! {
        #[test]
        fn agrees_with_the_router(target in "(a|b|hyper|sqlx)(::(a|b|c|d|x|client)){0,3}", level in 0usize..5) {
            let config = config();
            let verdicts = explain(&config, &target, LEVELS[level]);
            let taking: Vec<_> = verdicts.iter().filter(|verdict| verdict.takes).map(|verdict| verdict.sink).collect();
            let taken = Filter::new(&config, false, true).taken(&target, LEVELS[level], Callsite::Event);
            prop_assert_eq!(taking, names(&config, if taken.story { 0 } else { taken.mask }));
            prop_assert!(verdicts.iter().all(|verdict| !verdict.reasons.is_empty()));
        }
    }
}
