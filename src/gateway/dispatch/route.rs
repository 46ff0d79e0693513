//! Which targets serve a model: pure, decided once per request.

use globset::{Glob, GlobMatcher};
use mlx_manager_config::{LOCAL, Route, Target};
use mlx_manager_llm::Priority;

use super::budget::Budget;

/// The rules of `[[routes]]`, ready to match.
#[derive(Debug)]
pub(super) struct RouteTable {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    route: Route,
    matcher: GlobMatcher,
    budget: Budget,
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Decision<'a> {
    /// The pattern that matched, or `local` for a local model that no rule names.
    pub rule: &'a str,
    /// The targets, in order, each with the model that it is asked for if a star in its name said so.
    pub targets: Vec<Target>,
    /// What the rule says of its requests.
    pub priority: Option<Priority>,
    /// How many of its requests may be tried again.
    pub budget: Option<&'a Budget>,
}

impl RouteTable {
    /// Compiles the rules, whose patterns the config has checked.
    ///
    /// # Errors
    /// When a pattern is no glob.
    pub(super) fn new(routes: &[Route]) -> Result<Self, globset::Error> {
        let rules = routes
            .iter()
            .map(|route| {
                let matcher = Glob::new(&route.model)?.compile_matcher();
                Ok(Rule { matcher, budget: Budget::new(route.retry_budget), route: route.clone() })
            })
            .collect::<Result<_, globset::Error>>()?;
        Ok(Self { rules })
    }

    /// The first rule that matches wins; without one, a local model of that name.
    pub(super) fn decide(&self, model: &str, is_local: impl FnOnce(&str) -> bool) -> Option<Decision<'_>> {
        // A pattern that is the name itself matches even when the name holds glob characters.
        if let Some(rule) = self.rules.iter().find(|rule| rule.route.model == model || rule.matcher.is_match(model)) {
            let route = &rule.route;
            let targets = route.targets.iter().map(|target| Target {
                provider: target.provider.clone(),
                model: target.model.is_some().then(|| route.model_at(target, model).into_owned()),
            });
            let (targets, budget) = (targets.collect(), Some(&rule.budget));
            return Some(Decision { rule: &route.model, targets, priority: route.priority, budget });
        }
        let target = || Target { provider: LOCAL.to_owned(), model: None };
        is_local(model).then(|| Decision { rule: LOCAL, targets: vec![target()], priority: None, budget: None })
    }

    /// The rules that are plain names, which can be listed as models, each with its first target's provider.
    pub(super) fn named_models(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules
            .iter()
            .filter_map(|rule| Some((rule.route.named_model()?, rule.route.targets.first()?.provider.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use mlx_manager_config::RetryBudget;

    use super::*;

    fn table() -> RouteTable {
        let target = |provider: &str, model: Option<&str>| Target {
            provider: provider.to_owned(),
            model: model.map(ToOwned::to_owned),
        };
        let route = |model: &str, targets, priority| Route {
            model: model.to_owned(),
            targets,
            priority,
            retry_budget: RetryBudget::default(),
        };
        RouteTable::new(&[
            route("gpt-4o", vec![target("a", None), target("b", Some("other"))], None),
            route("gpt-*", vec![target("b", None)], None),
            route("org/*", vec![target(LOCAL, None)], Some(Priority::Batch)),
            route("groq/*", vec![target("groq", Some("*")), target("azure", Some("my-*")), target(LOCAL, None)], None),
        ])
        .unwrap()
    }

    #[test]
    fn the_first_match_wins() {
        let table = table();
        assert_eq!(table.decide("gpt-4o", |_| false).unwrap().targets.len(), 2);
        assert_eq!(table.decide("gpt-4", |_| false).unwrap().rule, "gpt-*");
        let local = table.decide("org/deep/name", |_| false).unwrap();
        assert_eq!((local.rule, local.priority), ("org/*", Some(Priority::Batch)));
    }

    #[test]
    fn a_rule_beats_a_local_model_and_a_local_model_beats_nothing() {
        let table = table();
        assert_eq!(table.decide("gpt-mine", |_| true).unwrap().rule, "gpt-*");
        assert_eq!(table.decide("mine", |name| name == "mine").unwrap().rule, LOCAL);
        assert!(table.decide("yours", |name| name == "mine").is_none());
    }

    #[test]
    fn a_star_in_a_target_is_what_the_rule_took() {
        let table = table();
        let decision = table.decide("groq/llama-3.3-70b", |_| false).unwrap();
        let targets: Vec<_> = decision.targets.iter().map(|target| target.model.as_deref()).collect();
        assert_eq!(targets, [Some("llama-3.3-70b"), Some("my-llama-3.3-70b"), None]);
        // A caller that asks for the rule itself.
        let decision = table.decide("groq/*", |_| false).unwrap();
        assert!(decision.targets.iter().all(|target| target.model.as_deref() != Some("*")));
    }

    #[test]
    fn only_plain_names_are_listed() {
        assert_eq!(table().named_models().collect::<Vec<_>>(), [("gpt-4o", "a")]);
    }
}
