//! `[[routes]]`

use std::borrow::Cow;

use mlx_manager_llm::Priority;

use super::{
    decode::Decoder,
    schema::{Key, Table},
    section::{Found, Section},
    setting::{Count, Filled, Share, nearest},
};

/// The provider of a target that is the local engine.
pub const LOCAL: &str = "local";

/// Which targets serve a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Exact name or glob.
    pub model: String,
    /// Tried in order.
    pub targets: Vec<Target>,
    /// Of its requests, where the local engine has them wait; `None` leaves that to `local.priority`.
    pub priority: Option<Priority>,
    /// How many of its requests may be tried again.
    pub retry_budget: RetryBudget,
}

/// How many of a route's requests may be tried again, so that retries don't bury a provider that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Retries as a share of the requests, in [0, 1].
    pub ratio: f64,
    /// Retries that are allowed in any minute, however few requests there are.
    pub min_per_minute: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_minute: 10 }
    }
}

/// What makes a rule more than a name.
const GLOB: [char; 7] = ['*', '?', '[', ']', '{', '}', '\\'];

impl Route {
    /// The model, if the rule names one and is no glob.
    pub fn named_model(&self) -> Option<&str> {
        (!self.model.contains(GLOB)).then_some(self.model.as_str())
    }

    /// What a target of this route is asked for when a caller asks for `asked`: the target's own name for it, in which a star
    /// stands for what the rule's star took. A name that is only a star is the caller's, less the folder that the rule names.
    pub fn model_at<'a>(&self, target: &'a Target, asked: &'a str) -> Cow<'a, str> {
        match target.model.as_deref() {
            None => asked.into(),
            Some("*") => self.below_folder(asked).into(),
            Some(name) => match (name.split_once('*'), taken(&self.model, asked)) {
                (Some((before, after)), Some(taken)) => format!("{before}{taken}{after}").into(),
                // A caller may ask for a rule by its very text, of which nothing is taken.
                (Some(_), None) => asked.into(),
                (None, _) => name.into(),
            },
        }
    }

    /// What a target of this route is asked for, as far as the configuration alone can say.
    pub fn known_model_at<'a>(&'a self, target: &'a Target) -> Option<&'a str> {
        match (target.model.as_deref(), self.named_model()) {
            // A rule that is a name has no star, so the target's is all of its name.
            (Some(name), Some(asked)) if name.contains('*') => Some(self.below_folder(asked)),
            (Some(name), None) if name.contains('*') => None,
            (Some(name), _) => Some(name),
            (None, named) => named,
        }
    }

    /// A name without what the rule says literally up to its last slash; the whole name if that leaves no model's name.
    fn below_folder<'a>(&self, asked: &'a str) -> &'a str {
        let literal = self.model.split(GLOB).next().unwrap_or_default();
        let folder = literal.rfind('/').map_or("", |slash| &literal[..=slash]);
        asked.strip_prefix(folder).filter(|rest| !matches!(*rest, "" | "*")).unwrap_or(asked)
    }
}

/// What the one star of a rule takes of a name that the rule matches; `None` for a rule without exactly one star, or with
/// more of a glob than that.
fn taken<'a>(rule: &str, asked: &'a str) -> Option<&'a str> {
    let (before, after) = only_star(rule)?;
    asked.strip_prefix(before)?.strip_suffix(after)
}

/// What stands before and after the one star of a rule that is otherwise literal.
fn only_star(rule: &str) -> Option<(&str, &str)> {
    rule.split_once('*').filter(|(before, after)| !before.contains(GLOB) && !after.contains(GLOB))
}

/// A provider, and the model's name there if it differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The `[[providers]]` name, or `local`.
    pub provider: String,
    /// The model's name there, which may hold one star ([`Route::model_at`]); `None` keeps the caller's.
    pub model: Option<String>,
}

impl Target {
    /// Whether it is the local engine.
    pub fn is_local(&self) -> bool {
        self.provider == LOCAL
    }
}

const MODEL: Key = Key::bare("model", "exact, or a glob");
const TARGETS: Key = Key::bare(
    "targets",
    "in order; \"provider/other-model\" renames, \"provider/*\" drops the rule's \"folder/\"; \"local\" is this machine",
);

const PRIORITY: Key =
    Key::bare("priority", "interactive | normal | batch: who goes first on this machine, in place of local.priority")
        .sample("\"batch\"");

const RETRY_BUDGET_DEFAULT: &str = "{ ratio = \"20%\", min_per_minute = 10 }";
const RETRY_BUDGET: Key = Key::new(
    "retry_budget",
    RETRY_BUDGET_DEFAULT,
    "retries beside the route's requests, and how many any minute may have anyway",
)
.sample(RETRY_BUDGET_DEFAULT);

const RATIO: Key = Key::new("ratio", "\"20%\"", "");
const MIN_PER_MINUTE: Key = Key::new("min_per_minute", "10", "");

pub(super) const TABLE: Table = Table::array(
    "routes",
    "The first that matches wins; without a match: a local model of that name, else 404.",
    &[MODEL, TARGETS, PRIORITY, RETRY_BUDGET],
    &[
        // Models called gpt-oss have open weights: people run them, and OpenAI doesn't.
        &[
            (MODEL, "\"{gpt-[!o]*,chatgpt-*,o[0-9]*,codex-*,computer-use-*,text-embedding-*,ft:*}\""),
            (TARGETS, "[\"openai\"]"),
        ],
        &[(MODEL, "\"claude-*\""), (TARGETS, "[\"anthropic\"]")],
    ],
);

pub(super) fn decode(decoder: &mut Decoder<'_>, providers: &[String]) -> Option<Vec<Route>> {
    let mut routes: Vec<Option<Route>> = Vec::new();
    for section in decoder.entries(&TABLE) {
        // A default route to a provider that the user's own list leaves out is nothing the user asked for.
        if !section.is_from_user() && !default_route_stands(&section, providers) {
            continue;
        }
        let route = decode_route(decoder, &section, providers);
        if let Some(route) = &route {
            warn_if_shadowed(decoder, &section, route, &routes);
        }
        routes.push(route);
    }
    routes.into_iter().collect()
}

fn decode_route<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, providers: &[String]) -> Option<Route> {
    decoder.check_keys(section, &[]);
    let model = decoder.required::<Filled>(section, &MODEL).map(|model| model.0);
    if let Some(Err(error)) = model.as_deref().map(globset::Glob::new) {
        let key = section.path_of(&MODEL);
        let place = decoder.place_of(&key);
        decoder.report(&key, place, "isn't a glob", &format!("{}; \\ escapes", error.kind()));
        return None;
    }
    if !decoder.given(section, &TARGETS) {
        decoder.required::<Filled>(section, &TARGETS);
        return None;
    }
    let targets = decoder.list::<Filled>(section, &TARGETS)?;
    if targets.is_empty() {
        let key = section.path_of(&TARGETS);
        let place = decoder.place_of(&key);
        decoder.report(&key, place, "is empty", "allowed: names of [[providers]], or \"local\"");
    }
    let mut checked = Vec::new();
    for (text, found) in targets {
        let (provider, target_model) = match text.0.split_once('/') {
            Some((provider, model)) => (provider, Some(model)),
            None => (text.0.as_str(), None),
        };
        let known = || providers.iter().map(String::as_str).chain([LOCAL]);
        if !known().any(|name| name == provider) {
            let hint = nearest(provider, known()).map_or_else(
                || format!("known providers: {}", known().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("names a provider \"{provider}\" that isn't configured");
            decoder.report_relation(&found.path, found.place, &message, &hint);
        } else if target_model == Some("") {
            let hint = "write \"provider\", or \"provider/other-model\"";
            decoder.report_relation(&found.path, found.place, "has no model after the slash", hint);
        } else if let Some((target, rule)) = target_model.zip(model.as_deref()) {
            check_star(decoder, &found, target, rule);
        }
        checked.push(Target { provider: provider.to_owned(), model: target_model.map(str::to_owned) });
    }
    let priority = decoder.get(section, &PRIORITY);
    if priority.is_some() && !checked.iter().any(Target::is_local) {
        let key = section.path_of(&PRIORITY);
        decoder.warn(&key, "has no effect: no target is \"local\"", "providers are not told; leave it out");
    }
    let retry_budget = decode_retry_budget(decoder, section);
    Some(Route { model: model?, targets: checked, priority, retry_budget: retry_budget? })
}

fn decode_retry_budget<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>) -> Option<RetryBudget> {
    let budget = decoder.nested(section, &RETRY_BUDGET, &[RATIO, MIN_PER_MINUTE])?;
    decoder.check_keys(&budget, &[]);
    let ratio = decoder.get::<Share>(&budget, &RATIO);
    let min_per_minute = decoder.get::<Count<0, 1_000_000>>(&budget, &MIN_PER_MINUTE);
    Some(RetryBudget { ratio: ratio?.0, min_per_minute: min_per_minute?.0 })
}

/// A star in a target's model has to stand for something: nobody has a model called `*`.
fn check_star(decoder: &mut Decoder<'_>, found: &Found<'_>, target: &str, rule: &str) {
    let place = || found.place.clone();
    match target.matches('*').count() {
        0 => {}
        1 if target == "*" || only_star(rule).is_some() => {}
        1 => {
            let message = format!("has a `*` for what the one `*` of `model` takes, but that is \"{rule}\"");
            let hint = "a star within a name needs a rule with one `*` and nothing else of a glob, such as \"gpt-*\"";
            decoder.report_relation(&found.path, place(), &message, hint);
        }
        _ => {
            let hint = "one `*` stands for what the rule's takes; \"provider/*\" keeps the name";
            decoder.report_relation(&found.path, place(), "has more than one `*` in its model", hint);
        }
    }
}

/// Whether the providers of a default route are all there.
fn default_route_stands(section: &Section<'_>, providers: &[String]) -> bool {
    section.strings(&TARGETS).all(|target| providers.iter().any(|provider| provider == target))
}

fn warn_if_shadowed(decoder: &mut Decoder<'_>, section: &Section<'_>, route: &Route, earlier: &[Option<Route>]) {
    let covers = |other: &&Route| {
        let glob = globset::Glob::new(&other.model).map(|glob| glob.compile_matcher());
        other.model == route.model || other.model == "*" || glob.is_ok_and(|glob| glob.is_match(&route.model))
    };
    if let Some(other) = earlier.iter().flatten().find(covers) {
        let key = section.path_of(&MODEL);
        let message = format!("never matches: an earlier route takes \"{}\"", other.model);
        decoder.warn(&key, &message, "the first match wins; put the narrower route first");
    }
}
