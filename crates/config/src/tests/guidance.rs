//! What a user is told who slipped: the nearest key, the variable behind a value, and who said it.

use super::*;

#[test]
fn only_what_may_be_a_secret_is_hidden_under_an_unknown_key() {
    for (text, shown) in [
        ("[server]\nlisen = \"127.0.0.1:1\"", true),
        ("sevrer = { listen = [\"127.0.0.1:1\"] }", true),
        ("[[providers]]\nname = 3\nregion = \"eu-west-1\"", true),
        ("[[providers]]\nname = 3\nserver_name = \"x\"", true),
        ("[[providers]]\nname = 3\napi_kye = \"abc\"", false),
        ("[[providers]]\nname = 3\npasswort = \"abc\"", false),
        ("provider = [{ api_kye = \"abc\" }]", false),
        ("provider = { region = { tokn = [\"abc\"] } }", false),
        ("[server]\nazure = \"3f1c9a0e8b7d4c6f9a2e\"", false),
        ("[server]\ndb = \"postgres://u:abc@h/d\"", false),
    ] {
        let drawn = load_file(text).unwrap_err().render(false);
        assert_eq!(!drawn.contains("***"), shown, "{text}\n{drawn}");
    }
}

#[test]
fn an_unclosed_table_is_one_problem() {
    let one = |text: &str, line: &str| {
        let found = problems_of(load_file(text));
        assert!(found.len() == 1 && found[0].starts_with(line), "{text}\n{found:#?}");
    };
    one("[server\nlisten = \"127.0.0.1:1\"\nmax_body = \"1 MB\"\n[log]\nlevel = \"info\"", "1:8 this isn't TOML");
    one("[log]\ndir = \"x\"\n[[providers]\nname = 3\n", "3:");
    let found = problems_of(load_file("[server\nlisten = 1\n[log]\nlevle = \"info\"\nlevel = 3"));
    assert!(found.len() == 3 && found[1].contains("log.levle") && found[2].contains("log.level`"), "{found:#?}");
    let found =
        problems_of(load_file("[[log.sinks]]\nname = \"a\"\nkind = \"file\"\nfile = \"a\"\nrotation = { size = \n"));
    assert!(found.iter().all(|line| line.contains("this isn't TOML")), "{found:#?}");
}

fn overridden(text: &str, overrides: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    load_text(text, Some(Path::new("/etc/mlx/config.toml")), &LoadOptions { overrides, ..options() })
}

#[test]
fn the_command_line_says_what_it_takes() {
    for (key, value, start, rest) in [
        ("server.lisen", "1", "is no key", "did you mean `server.listen`?"),
        ("sever.listen", "1", "is no key", "did you mean `server.listen`?"),
        ("listen", "1", "is no key", "did you mean `metrics.prometheus.listen` or `server.listen`?"),
        ("server.zzz", "1", "is no key", "known there: drain_timeout, listen, max_body, max_inflight_body"),
        ("zzz.zzz", "1", "is no key", ""),
        ("providers[7].api_key", "1", "is no key", "entries of `providers`: providers[0], providers[1]"),
        ("log.targets.a b", "info", "isn't a module path prefix", "hyper"),
        ("log.targets.foo", "loud", "can't be \"loud\"", "allowed: off"),
        ("log.sinks", "[]", "is a list of tables, which can't be set", "`log.sinks[0]."),
        ("providers", "x", "is a list of tables, which can't be set", "`providers[0]."),
        ("server", "{}", "is a table, which can't be set", "`server.drain_timeout`"),
        ("routes[0].targets", "openai", "can't be \"openai\"", "write it as in the file: ["),
        ("routes[0].targets", "[\"opnai\"]", "", "did you mean `openai`?"),
    ] {
        let found = problems_of(overridden("", &[(key, value)]));
        let expected = format!("args `{key}");
        let good =
            found.len() == 1 && found[0].starts_with(&expected) && found[0].contains(start) && found[0].contains(rest);
        assert!(good, "{key}: {found:#?}");
    }
}

#[test]
fn the_command_line_sets_what_the_file_leaves_out() {
    let collector = "[[otlp]]\nname = \"c\"\nkind = \"otlp\"\n";
    let config = overridden(
        collector,
        &[
            ("log.targets.foo", "debug"),
            ("log.targets.hyper", "trace"),
            ("routes[0].targets", "[\"anthropic/m\", \"local\"]"),
            ("otlp[0].endpoint", "http://h:1"),
            ("otlp[0].headers.x-team", "blue"),
            ("otlp[0].spool.size", "5 B"),
            ("providers[1].idle_timeout", "5 s"),
            ("providers[1].retries", "7"),
            ("providers[1].breaker.failures", "9"),
            ("log.sinks[1].rotation.every", "day"),
            ("log.sinks[1].rotation.at", "01:30"),
        ],
    )
    .unwrap_or_else(|problems| panic!("{problems}"))
    .config;
    let level = |target: &str| config.log.targets.iter().find(|other| other.target == target).unwrap().level;
    assert_eq!((level("foo"), level("hyper"), level("sqlx")), (Level::Debug, Level::Trace, Level::Warn));
    assert_eq!(config.cloud.routes[0].targets[0].model.as_deref(), Some("m"));
    assert_eq!(config.cloud.routes[0].targets[1].provider, "local");
    assert_eq!(config.otlp[0].endpoint, "http://h:1");
    assert_eq!(config.otlp[0].headers, [("x-team".to_owned(), Secret::new("blue"))]);
    assert_eq!(config.otlp[0].spool.as_ref().unwrap().size, 5);
    let calls = &config.providers[1].calls;
    assert_eq!((calls.idle_timeout, calls.retries, calls.breaker.failures), (Duration::from_secs(5), 7, 9));
    assert_eq!((config.providers[0].calls.retries, calls.breaker.open), (2, Duration::from_secs(30)));
    let SinkKind::File { rotation, .. } = &config.log.sinks[1].kind else { panic!() };
    assert!(matches!(rotation.every, Some(Period::Day { at }) if at.hour() == 1), "{rotation:?}");
}

#[test]
fn a_key_names_the_variable_that_it_is_read_from() {
    let paths = |loaded: &Loaded| loaded.config.providers.iter().map(|p| p.api_key_path.clone()).collect::<Vec<_>>();
    let builtin = load_text("", None, &options()).unwrap();
    assert_eq!(paths(&builtin), ["providers[0].api_key (OPENAI_API_KEY)", "providers[1].api_key (ANTHROPIC_API_KEY)"]);
    for (key, path) in [
        ("${MINE:-}", "providers[0].api_key (MINE)"),
        ("${A:-}${B:-}", "providers[0].api_key"),
        ("", "providers[0].api_key"),
    ] {
        let text = format!(
            "routes = []\n[[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = \"http://h\"\napi_key = \"{key}\""
        );
        assert_eq!(paths(&loaded(&text)), [path]);
    }
}

#[test]
fn a_token_of_no_known_region_is_worth_a_warning() {
    let warnings = |pairs: &[(&str, &str)]| {
        let environment = pairs.iter().fold(Environment::new("/cwd"), |all, (name, value)| all.with(name, value));
        let loaded = load_text("", None, &LoadOptions { environment, ..LoadOptions::default() }).unwrap();
        let sources: Vec<String> = loaded.warnings.iter().map(|warning| loaded.source_of(warning)).collect();
        (loaded.render_warnings(false), sources)
    };
    let (drawn, sources) = warnings(&[("LOGFIRE_TOKEN", "b4dt0k3n")]);
    for part in ["otlp[0].token` (LOGFIRE_TOKEN) starts with", "pylf_v1_us_ and pylf_v1_eu_", "US region is assumed"] {
        assert!(drawn.contains(part), "{part}\n{drawn}");
    }
    assert!(!drawn.contains("b4dt0k3n"), "{drawn}");
    assert_eq!(sources, ["default via ${LOGFIRE_TOKEN}"]);
    for quiet in [
        &[("LOGFIRE_TOKEN", "pylf_v1_us_abc")][..],
        &[("LOGFIRE_TOKEN", "pylf_v2_eu_abc")],
        &[("LOGFIRE_TOKEN", "b4dt0k3n"), ("LOGFIRE_BASE_URL", "http://h")],
        &[("LOGFIRE_TOKEN", "b4dt0k3n"), ("LOGFIRE_SEND_TO_LOGFIRE", "false")],
        &[("LOGFIRE_TOKEN", "")],
    ] {
        assert_eq!(warnings(quiet).0, "", "{quiet:?}");
    }
}

#[test]
fn a_warning_knows_where_its_value_came_from() {
    let source = |text: &str, environment: Environment, overrides: &[(&str, &str)]| {
        let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let options = LoadOptions { environment, overrides, ..LoadOptions::default() };
        let loaded = load_text(text, Some(Path::new("/cwd/config.toml")), &options).unwrap();
        assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
        loaded.source_of(&loaded.warnings[0])
    };
    let cwd = || Environment::new("/cwd");
    assert_eq!(source("\nlocal.default_model = \"other\"", cwd(), &[]), "config.toml:2");
    assert_eq!(source("", cwd(), &[("local.default_model", "other")]), "command line");
    let variable = "LOGFIRE_SEND_TO_LOGFIRE";
    assert_eq!(source("", cwd().with(variable, "true"), &[]), format!("environment {variable}"));
}

#[test]
fn a_terminal_may_refuse_colors() {
    let refuses = |name: &str, value: &str| Environment::new("/").with(name, value).refuses_color();
    assert!(refuses("NO_COLOR", "1") && refuses("TERM", "dumb"));
    assert!(!refuses("NO_COLOR", "") && !refuses("TERM", "xterm-256color"));
}

#[test]
fn whoever_named_a_missing_file_is_named() {
    let missing = |options: &LoadOptions| problems_of(load(options)).remove(0);
    let environment = Environment::new("/nowhere").with("MLX_MANAGER_CONFIG", "gone.toml");
    let found = missing(&LoadOptions { environment: environment.clone(), ..LoadOptions::default() });
    assert!(
        found.contains("gone.toml") && found.ends_with("by the environment variable MLX_MANAGER_CONFIG"),
        "{found}"
    );
    let found = missing(&LoadOptions { config: Some("lost.toml".into()), environment, ..LoadOptions::default() });
    assert!(found.contains("lost.toml") && found.ends_with("it was named by --config"), "{found}");
}
