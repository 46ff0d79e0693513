//! The loader as a whole: bad inputs with their exact places, precedence, provenance, and the example file.

use std::{path::Path, time::Duration};

use mlx_manager_llm::Priority;
use proptest::prelude::*;

use super::*;

mod cloud;
mod guidance;
mod places;

fn options() -> LoadOptions {
    LoadOptions { environment: Environment::new("/work-dir"), ..LoadOptions::default() }
}

fn load_with(text: &str, environment: Environment) -> Result<Loaded, Problems> {
    let options = LoadOptions { environment, ..LoadOptions::default() };
    load_text(text, Some(Path::new("/etc/mlx/config.toml")), &options)
}

fn load_file(text: &str) -> Result<Loaded, Problems> {
    load_with(text, Environment::new("/work-dir"))
}

fn loaded(text: &str) -> Loaded {
    load_file(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Each problem as `line:column key message | label | hint`.
fn problems_of(result: Result<Loaded, Problems>) -> Vec<String> {
    let Err(problems) = result else { return Vec::new() };
    let describe = |problem: &Problem| {
        let place = match &problem.place {
            Place::File { line, column, .. } => format!("{line}:{column}"),
            Place::Environment(name) => format!("${name}"),
            Place::CommandLine => "args".to_owned(),
            Place::Default => "-".to_owned(),
        };
        format!("{place} {} | {} | {}", problem.message, problem.label, problem.hint.as_deref().unwrap_or_default())
    };
    problems.problems.iter().map(describe).collect()
}

/// Each expectation is a start (place and message) and a word that the rest of its line has to hold.
#[track_caller]
fn check(text: &str, expected: &[(&str, &str)]) {
    let found = problems_of(load_file(text));
    let matches = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, (start, rest))| found.starts_with(start) && found.contains(rest));
    assert!(matches, "{text}\nfound:\n{found:#?}\nexpected:\n{expected:#?}");
}

#[test]
fn example_is_written_from_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config.example.toml");
    let written = write_example();
    if option_env!("UPDATE_EXAMPLE").is_some() || EXAMPLE.is_empty() {
        std::fs::write(&path, &written).unwrap();
    }
    let file = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        file, written,
        "config.example.toml is out of date: UPDATE_EXAMPLE=1 cargo test -p mlx-manager-config example_is_written"
    );
}

#[test]
fn the_example_is_the_built_in_default() {
    let environment = || Environment::new("/etc/mlx");
    let options = LoadOptions { environment: environment(), ..LoadOptions::default() };
    let builtin = load_text("", None, &options).unwrap();
    let written = load_with(EXAMPLE, environment()).unwrap();
    assert_eq!(format!("{:?}", builtin.config), format!("{:?}", written.config));
    let keys = |loaded: &Loaded| loaded.shown.iter().map(|s| (s.key.clone(), s.value.clone())).collect::<Vec<_>>();
    assert_eq!(keys(&builtin), keys(&written));
    assert!(builtin.shown.iter().all(|shown| shown.place == Place::Default));
    assert!(builtin.warnings.is_empty(), "{:?}", builtin.warnings);
}

#[test]
fn the_default_is_the_contract() {
    let config = load_text("", None, &options()).unwrap().config;
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:10242");
    assert_eq!(config.server.max_body, 32 << 20);
    assert_eq!(config.server.max_inflight_body, 512 << 20);
    assert_eq!(config.log.level, Level::Info);
    assert_eq!(config.log.dir, Path::new("/work-dir/logs"));
    assert_eq!(config.log.targets.len(), 6);
    let names: Vec<&str> = config.log.sinks.iter().map(|sink| sink.name.as_str()).collect();
    assert_eq!(names, ["console", "mlx-server", "mlx-manager"]);
    let SinkKind::File { path, rotation, retention, .. } = &config.log.sinks[1].kind else { panic!() };
    assert_eq!(path, Path::new("/work-dir/logs/mlx-server.log"));
    assert_eq!(rotation.size, Some(10_000_000));
    assert_eq!(retention.age, Some(Duration::from_secs(7 * 86_400)));
    assert!(!config.otlp[0].is_active());
    assert_eq!(config.otlp[0].spool.as_ref().unwrap().size, 256_000_000);
    assert_eq!(config.local.models[0].path, ModelPath::BuiltinDemo);
    assert_eq!((config.local.memory_limit, config.local.prefix_cache), (MemoryLimit::Share(0.75), 512 << 20));
    assert!(config.providers.iter().all(|provider| provider.api_key.as_ref().unwrap().is_empty()));
    assert!(config.providers.iter().all(|provider| !provider.send_trace_context));
    assert_eq!(config.providers[0].calls.breaker, Breaker { failures: 5, open: Duration::from_secs(30) });
    assert_eq!(config.cloud.routes[1].targets[0].provider, "anthropic");
    assert_eq!(config.database.url.expose(), "sqlite:/work-dir/mlx-manager.db");
}

#[test]
fn the_prefix_cache_is_found_under_its_former_name() {
    let former = loaded("local.prompt_cache = \"1 MiB\"");
    assert_eq!(former.config.local.prefix_cache, 1 << 20);
    check(
        "[local]\nprompt_cache = \"1 MiB\"\nprefix_cache = \"2 MiB\"",
        &[("2:16 `local.prompt_cache` and `local.prefix_cache` are both there", "leave it out")],
    );
}

#[test]
fn single_values() {
    check(
        "[server]\nlisten = \"localhost:1\"",
        &[("2:10 `server.listen` can't be \"localhost:1\"", "write \"127.0.0.1:1\"")],
    );
    check("[server]\nlisten = 10242", &[("2:10 `server.listen` can't be 10242", "an IP address and a port")]);
    check("server.max_body = 5", &[("1:19 `server.max_body` can't be 5", "say the unit: \"5 B\"")]);
    check("server.max_body = \"5 MO\"", &[("1:19 `server.max_body` can't be \"5 MO\"", "\"32 MiB\"")]);
    check(
        "[server]\nmax_body = \"32 MiB\"\nmax_inflight_body = \"31 MiB\"",
        &[("3:21 `server.max_inflight_body` would refuse", "raise the one or lower the other")],
    );
    check(
        "server.max_body = \"513 MiB\"",
        &[("1:19 `server.max_body` would refuse a body that is allowed: `server.max_inflight_body` (536870912 B)", "")],
    );
    check("server.max_body = \"0 B\"", &[("1:19 `server.max_body` can't be \"0 B\"", "above zero")]);
    check(
        "server.drain_timeout = \"30\"",
        &[("1:24 `server.drain_timeout` can't be \"30\"", "say the unit: \"30 s\"")],
    );
    check("server.drain_timeout = \"300 years\"", &[("1:24 `server.drain_timeout`", "hundred years")]);
    check("log.level = \"inof\"", &[("1:13 `log.level` can't be \"inof\"", "did you mean \"info\"?")]);
    check("log.level = \"info,debug\"", &[("1:13 `log.level` can't be", "two levels without a target")]);
    check("log.level = \"a::=debug\"", &[("1:13 `log.level` can't be", "`a::` is no module path")]);
    check("log.timezone = \"UTC+1\"", &[("1:16 `log.timezone` can't be \"UTC+1\"", "allowed: \"utc\", \"local\"")]);
    check("log.targets.hyper = 3", &[("1:21 `log.targets.hyper` can't be 3", "off, error, warn")]);
    check("traces.sample_ratio = 1.5", &[("1:23 `traces.sample_ratio` can't be 1.5", "a number from 0 to 1")]);
    check("traces.sample_ratio = nan", &[("1:23 `traces.sample_ratio` can't be NaN", "a number from 0 to 1")]);
    check("traces.sample_ratio = \"0.5\"", &[("1:23 `traces.sample_ratio`", "write it without quotes: 0.5")]);
    check("traces.capture_content = \"true\"", &[("1:26 `traces.capture_content`", "write it without quotes: true")]);
    check("traces.semconv = 1.41", &[("1:18 `traces.semconv` can't be 1.41", "\"1.41\", \"latest\", \"both\"")]);
    check("local.memory_limit = \"175%\"", &[("1:22 `local.memory_limit`", "\"75%\"")]);
    check("local.memory_limit = \"NaN%\"", &[("1:22 `local.memory_limit`", "\"75%\"")]);
    check("local.prefix_cache = 0", &[("1:22 `local.prefix_cache` can't be 0", "say the unit: \"0 B\"")]);
    check("local.prompt_cache = \"50%\"", &[("1:22 `local.prompt_cache` can't be \"50%\"", "\"0 B\"")]);
    check("local.idle_unload = \"nevr\"", &[("1:21 `local.idle_unload` can't be \"nevr\"", "\"forever\"")]);
    check("local.keep_alive = 5", &[("1:20 `local.keep_alive` can't be 5", "say the unit: \"5 s\"")]);
    check("local.max_models = 0", &[("1:20 `local.max_models` can't be 0", "from 1 to 1024")]);
    check("local.unpack = \"yes\"", &[("1:16 `local.unpack` can't be \"yes\"", "\"auto\", \"always\", \"never\"")]);
    check("local.pin = \"a\"", &[("1:13 `local.pin` can't be \"a\"", "a list")]);
    check(
        "local.keep_alive = \"5 min\"\nlocal.idle_unload = \"never\"",
        &[(
            "2:21 `local.idle_unload` and `local.keep_alive` are both there",
            "leave it out: it is the former name of that one",
        )],
    );
    check("local.max_batch = 0", &[("1:19 `local.max_batch` can't be 0", "from 1 to 1024")]);
    check("local.max_batch = 99999999999999999999", &[("1:19 `local.max_batch`", "from 1 to 1024")]);
    check("local.queue = -1", &[("1:15 `local.queue` can't be -1", "from 0 to 100000")]);
    check("local.queue_tokens = 0", &[("1:22 `local.queue_tokens` can't be 0", "from 1 to")]);
    check("local.priority = \"bacth\"", &[("1:18 `local.priority` can't be \"bacth\"", "did you mean `batch`?")]);
    check("metrics.prometheus.path = \"metrics\"", &[("1:27 `metrics.prometheus.path`", "starts with a slash")]);
    check("telemetry.environment = \"\"", &[("1:25 `telemetry.environment`", "isn't empty")]);
    check("database.url = \"mysql://h/d\"", &[("1:16 `database.url` can't be \"mysql://h/d\"", "\"sqlite:PATH\"")]);
    check("database.retention = \"soon\"", &[("1:22 `database.retention` can't be \"soon\"", "\"7 days\"")]);
    check("cloud.retries = -1", &[("1:17 `cloud.retries` can't be -1", "from 0 to 20")]);
    check("cloud.breaker = { failures = 0 }", &[("1:30 `cloud.breaker.failures` can't be 0", "from 1")]);
}

#[test]
fn unknown_keys_and_wrong_shapes() {
    check("[sever]\n", &[("1:2 unknown key `sever`", "did you mean `server`?")]);
    check("[server]\nlisten_ = \"127.0.0.1:1\"", &[("2:1 unknown key `server.listen_`", "did you mean `listen`?")]);
    check("[metrics]\nprometeus = {}", &[("2:1 unknown key `metrics.prometeus`", "did you mean `prometheus`?")]);
    check("zzz = 1", &[("1:1 unknown key `zzz`", "known here: cloud, database, local, log")]);
    check("server = 3", &[("1:10 `server` must be a table", "allowed: a table")]);
    check("metrics = 3", &[("1:11 `metrics` must be a table", "")]);
    check("providers = 3", &[("1:13 `providers` must be a list of tables", "[[providers]]")]);
    check("providers = [3]", &[("1:14 `providers[0]` must be a table", "")]);
}

#[test]
fn sinks() {
    let console = "[[log.sinks]]\nname = \"a\"\nkind = \"console\"\n";
    let file = "[[log.sinks]]\nname = \"a\"\nkind = \"file\"\nfile = \"a.log\"\n";
    check("[[log.sinks]]\nkind = \"console\"", &[("1:1 `log.sinks[0].name` is missing", "")]);
    check(&format!("{console}{console}"), &[("5:8 `log.sinks[1].name` is \"a\", a name that is taken", "")]);
    check(&format!("{console}file = \"x\""), &[("4:1 `log.sinks[0].file` is only for kind = \"file\"", "\"console\"")]);
    check(&format!("{file}color = \"auto\""), &[("5:1 `log.sinks[0].color` is only for kind = \"console\"", "")]);
    let twice = format!("{file}[[log.sinks]]\nname = \"b\"\nkind = \"file\"\nfile = \"x/../a.log\"");
    check(&twice, &[("8:8 `log.sinks[1].file` is the file of the sink \"a\" too", "a file of its own")]);
    check(&format!("{file}rotation = {{ every = \"Week\", on = \"Sunday\" }}"), &[]);
    check(&format!("{file}rotation = {{}}"), &[("5:12 `log.sinks[0].rotation` sets nothing", "\"never\"")]);
    check(&format!("{file}retention = {{}}"), &[("5:13 `log.sinks[0].retention` can delete nothing", "\"never\"")]);
    check(
        &format!("{file}rotation = \"never\"\nretention = {{ files = 3 }}"),
        &[("6:13 `log.sinks[0].retention` can do nothing, because the sink never rotates", "")],
    );
    check(
        &format!("{file}rotation = {{ size = \"1 MB\", at = \"01:00\" }}"),
        &[("5:34 `log.sinks[0].rotation.at`", "")],
    );
    check(
        &format!("{file}rotation = {{ every = \"week\", on = \"mon\", at = \"25:00\" }}"),
        &[("5:35 `log.sinks[0].rotation.on`", "did you mean `monday`?"), ("5:47 `log.sinks[0].rotation.at`", "23:30")],
    );
    check(
        &format!("{file}rotation = {{ every = \"year\", at = \"01:00\", on = \"monday\" }}"),
        &[("5:22 `log.sinks[0].rotation.every` can't be \"year\"", "\"week\"")],
    );
    check(&format!("{file}retention = {{ files = 0 }}"), &[("5:23 `log.sinks[0].retention.files` can't be 0", "")]);
    check(
        &format!("{file}compression = \"lz4\""),
        &[("5:15 `log.sinks[0].compression`", "\"none\", \"gzip\", \"zstd\"")],
    );
    check(&format!("{file}include = [\"a::b\", 3]"), &[("5:20 `log.sinks[0].include[1]` can't be 3", "")]);
    check(&format!("{file}include = \"a\""), &[("5:11 `log.sinks[0].include` can't be \"a\"", "a list")]);
    let never = loaded(&format!("{file}rotation = \"never\""));
    let SinkKind::File { rotation, retention, .. } = &never.config.log.sinks[0].kind else { panic!() };
    assert_eq!((rotation, retention), (&Rotation::default(), &Retention::default()));
}

#[test]
fn exporters() {
    let collector = "[[otlp]]\nname = \"c\"\nkind = \"otlp\"\n";
    check(collector, &[("1:1 `otlp[0].endpoint` is missing", "http or https")]);
    let collector = &format!("{collector}endpoint = \"http://h:4318\"\n");
    assert_eq!(problems_of(load_file(collector)), Vec::<String>::new());
    check(&format!("{collector}protocol = \"thrift\""), &[("5:12 `otlp[0].protocol`", "\"http/protobuf\", \"grpc\"")]);
    check(&format!("{collector}send = \"if-token-present\""), &[("5:8 `otlp[0].send`", "always, never")]);
    check(&format!("{collector}token = \"x\""), &[("5:1 `otlp[0].token` is only for kind = \"logfire\"", "")]);
    check(&format!("{collector}signals = [\"trace\"]"), &[("5:12 `otlp[0].signals[0]`", "did you mean `traces`?")]);
    check(&collector.replace("h:4318", "h:4318/v1/traces"), &[("4:12 `otlp[0].endpoint`", "leave out /v1")]);
    check(
        &collector.replace("http://h", "ftp://h"),
        &[("4:12 `otlp[0].endpoint` can't be \"ftp://h:4318\"", "http or https")],
    );
    check(&format!("{collector}headers = {{ \"a b\" = \"x\" }}"), &[("5:11 `otlp[0].headers.a b`", "")]);
    check(&format!("{collector}spool = {{ dri = \"x\" }}"), &[("5:11 unknown key `otlp[0].spool.dri`", "`dir`")]);
}

#[test]
fn exporters_over_grpc() {
    let collector = "[[otlp]]\nname = \"c\"\nkind = \"otlp\"\nprotocol = \"grpc\"\nendpoint = \"http://h:4317\"\n";
    let whole = format!("{collector}headers = {{ X-Scope-OrgID = \"a\", a_b = \"c\" }}\nspool = {{}}\n");
    let otlp = &loaded(&whole).config.otlp[0];
    assert_eq!((otlp.protocol, otlp.endpoint.as_str(), otlp.headers.len()), (Protocol::Grpc, "http://h:4317", 2));
    assert!(otlp.spool.is_some());
    check(
        "[[otlp]]\nname = \"l\"\nkind = \"logfire\"\nprotocol = \"grpc\"",
        &[("4:12 `otlp[0].protocol` can't be \"grpc\"", "Logfire takes | leave it out")],
    );
    for path in ["/v1/traces", "/collector"] {
        let hint = format!("leave out {path}: a gRPC call's path");
        check(&collector.replace(":4317", path), &[("5:12 `otlp[0].endpoint`", &hint)]);
    }
    for name in ["TE", "grpc-timeout", "Content-Type", "key-bin", "a!b"] {
        let start = format!("6:11 `otlp[0].headers.{name}` can't be metadata of a gRPC call");
        let headers = format!("headers = {{ \"{name}\" = \"x\" }}");
        check(&format!("{collector}{headers}"), &[(&start, "letters, digits")]);
    }
}

#[test]
fn a_port_of_the_other_protocol_is_a_warning() {
    let warnings = |protocol: &str, port: u16| {
        let text = format!(
            "[[otlp]]\nname = \"c\"\nkind = \"otlp\"\nprotocol = \"{protocol}\"\nendpoint = \"http://h:{port}\""
        );
        loaded(&text).render_warnings(false)
    };
    for (protocol, port, remedy) in
        [("http/protobuf", 4317, "protocol = \"grpc\", or port 4318"), ("grpc", 4318, "or port 4317")]
    {
        let drawn = warnings(protocol, port);
        assert!(drawn.contains("`otlp[0].endpoint` has the port") && drawn.contains(remedy), "{drawn}");
    }
    for (protocol, port) in [("http/protobuf", 4318), ("grpc", 4317), ("grpc", 443)] {
        assert_eq!(warnings(protocol, port), "");
    }
}

#[test]
fn providers_and_routes() {
    let provider = "[[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = \"http://10.0.0.1/v1/\"\n";
    let route = |target: &str| format!("{provider}[[routes]]\nmodel = \"m\"\ntargets = [\"{target}\"]");
    let config = loaded(&route("p/org/other")).config;
    assert_eq!(config.providers[0].base_url, "http://10.0.0.1/v1");
    assert!(config.providers[0].send_trace_context && config.providers[0].api_key.is_none());
    let azure = route("p").replace("/v1/", "/d/?api-version=1&subscription-key=SeCrEt");
    let loaded_azure = loaded(&azure);
    assert_eq!(loaded_azure.config.providers[0].base_url, "http://10.0.0.1/d?api-version=1&subscription-key=SeCrEt");
    assert!(!format!("{:?}", loaded_azure.shown).contains("SeCrEt"), "a key in a query is shown");
    check(
        &route("p").replace("/v1/", "/v1#x"),
        &[("4:12 `providers[0].base_url` can't be \"http://10.0.0.1/v1#x\"", "")],
    );
    let auth = |kind: &str, said: &str| {
        let text = format!("auth = \"{said}\"\n[[routes]]");
        let text = route("p").replace("[[routes]]", if said.is_empty() { "[[routes]]" } else { &text });
        loaded(&text.replace("\"openai\"", &format!("\"{kind}\""))).config.providers[0].auth.clone()
    };
    let header = |name: &str| Auth::Header(name.parse().unwrap());
    assert_eq!((auth("openai", ""), auth("anthropic", "")), (Auth::Bearer, header("x-api-key")));
    assert_eq!((auth("anthropic", "bearer"), auth("openai", "api-key")), (Auth::Bearer, header("api-key")));
    assert_eq!(auth("openai", "header:X-Portkey-Key"), header("x-portkey-key"));
    for bad in ["header:", "header:a b", "basic", "header:Content-Length"] {
        let text = route("p").replace("[[routes]]", &format!("auth = \"{bad}\"\n[[routes]]"));
        check(&text, &[(&format!("5:8 `providers[0].auth` can't be \"{bad}\""), "")]);
    }
    let target = Target { provider: "p".to_owned(), model: Some("org/other".to_owned()) };
    assert_eq!(config.cloud.routes[0].targets, [target]);
    check(
        &route("q"),
        &[("7:12 `routes[0].targets[0]` names a provider \"q\" that isn't configured", "known providers: p, local")],
    );
    check(&route("p/"), &[("7:12 `routes[0].targets[0]` has no model after the slash", "")]);
    check(&route("p").replace("\"m\"", "\"m[\""), &[("6:9 `routes[0].model` isn't a glob", "unclosed")]);
    check(&route("p").replace("[\"p\"]", "[]"), &[("7:11 `routes[0].targets` is empty", "")]);
    assert_eq!(config.cloud.routes[0].priority, None);
    let batch = |target: &str| loaded(&format!("{}\npriority = \"batch\"\n", route(target)));
    assert_eq!(batch("local").config.cloud.routes[0].priority, Some(Priority::Batch));
    assert!(batch("local").warnings.is_empty());
    let warnings = batch("p").render_warnings(false);
    assert!(warnings.contains("`routes[0].priority` has no effect"), "{warnings}");
    let reserved = provider.replace("\"p\"", "\"local\"") + "[[routes]]\nmodel = \"m\"\ntargets = [\"local\"]";
    check(&reserved, &[("2:8 `providers[0].name` can't be \"local\"", "own models")]);
    let own = format!("{}\nidle_timeout = \"5 s\"\nbreaker = {{ open = \"1 s\" }}\n", route("p"));
    check(&own, &[("8:1 unknown key `routes[0].idle_timeout`", ""), ("9:1 unknown key `routes[0].breaker`", "")]);
    let own =
        format!("cloud.retries = 7\nroutes = []\n{provider}idle_timeout = \"5 s\"\nbreaker = {{ open = \"1 s\" }}\n");
    let calls = &loaded(&own).config.providers[0].calls;
    assert_eq!((calls.idle_timeout, calls.retries), (Duration::from_secs(5), 7));
    assert_eq!(calls.breaker, Breaker { failures: 5, open: Duration::from_secs(1) });
    assert_eq!(calls.total_timeout, Duration::from_secs(3600));
}

#[test]
fn every_problem_is_reported_at_once() {
    check(
        "[server]\nlisten = 1\nmax_body = 2\n[traces]\nsample_ratio = 3\nx = 4\n[[local.models]]\npath = \"builtin:x\"\n\
         [[log.sinks]]\nname = \"a\"\nkind = \"file\"\nfile = \"a\"\n\
         [[log.sinks]]\nname = \"b\"\nkind = \"file\"\nfile = \"a\"\n",
        &[
            ("2:10 ", ""),
            ("3:12 ", ""),
            ("5:16 ", ""),
            ("6:1 ", ""),
            ("7:1 `local.models[0].name` is missing", ""),
            ("8:8 `local.models[0].path` can't be \"builtin:x\"", ""),
            ("16:8 `log.sinks[1].file` is the file of the sink \"a\" too", ""),
        ],
    );
}

#[test]
fn syntax_errors_come_together_and_without_noise() {
    let found = problems_of(load_file("[server]\nlisten = \nmax_body = 5\n[log\nlevel = \"x\"\n[[providers]]\n"));
    assert!(found.iter().any(|line| line.starts_with("2:")), "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("4:")), "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("3:12 `server.max_body`")), "{found:#?}");
    assert!(!found.iter().any(|line| line.contains("is missing")), "{found:#?}");
    let columns = problems_of(load_file("a = \"é\" x"));
    assert!(columns[0].starts_with("1:9 "), "{columns:#?}");
}

#[test]
fn listeners_collide() {
    let text = "server.listen = \"0.0.0.0:9464\"";
    check(text, &[("- `metrics.prometheus.listen` is 127.0.0.1:9464, which `server.listen` takes", "")]);
    assert!(load_file(&format!("{text}\nmetrics.prometheus.enabled = false")).is_ok());
}

#[test]
fn variables() {
    check(
        "telemetry.environment = \"${NOPE}\"",
        &[("1:25 `telemetry.environment` needs the environment variable NOPE", "${NOPE:-}")],
    );
    check("telemetry.environment = \"${NOPE\"", &[("1:25 `telemetry.environment` has a `${`", "$${")]);
    check("telemetry.environment = \"${A B}\"", &[("1:25 `telemetry.environment` names a variable \"A B\"", "")]);
    let environment = Environment::new("/").with("RATIO", "0.5").with("ON", "false").with("EMPTY", "");
    let text = "telemetry.environment = \"a${EMPTY:-b}$${c}${EMPTY}\"\ntraces.sample_ratio = \"${RATIO}\"\n\
                metrics.prometheus.enabled = \"${ON}\"";
    let config = load_with(text, environment).unwrap().config;
    assert_eq!(config.telemetry.environment, "ab${c}");
    assert_eq!(config.traces.sample_ratio, 0.5);
    assert!(!config.prometheus.enabled);
}

#[test]
fn precedence() {
    let text = "log.level = \"warn\"\nlog.dir = \"files\"";
    let level = |environment: Environment, overrides: &[(&str, &str)]| {
        let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let options = LoadOptions { environment, overrides, ..LoadOptions::default() };
        load_text(text, Some(Path::new("/etc/mlx/config.toml")), &options).unwrap().config.log
    };
    let environment = Environment::new("/cwd");
    assert_eq!(level(environment.clone(), &[]).level, Level::Warn);
    assert_eq!(level(environment.clone(), &[]).dir, Path::new("/etc/mlx/files"));
    let environment = environment.with("LOG_LEVEL", "WARNING,mlx_manager::server=Debug").with("LOG_DIR", "short");
    assert_eq!(level(environment.clone(), &[]).directives[0].level, Level::Debug);
    assert_eq!(level(environment.clone(), &[]).dir, Path::new("/cwd/short"));
    let environment = environment.with("MLX_MANAGER_LOG_LEVEL", "ERROR").with("MLX_MANAGER_LOG_DIR", "/long");
    assert_eq!(level(environment.clone(), &[]).level, Level::Error);
    assert_eq!(level(environment.clone(), &[]).dir, Path::new("/long"));
    assert_eq!(level(environment, &[("log.level", "trace")]).level, Level::Trace);
    let bad = problems_of(load_with(text, Environment::new("/").with("LOG_LEVEL", "loud")));
    assert!(bad.len() == 1 && bad[0].starts_with("$LOG_LEVEL `LOG_LEVEL` can't be \"loud\" | allowed: off"), "{bad:?}");
    let options = LoadOptions { overrides: vec![("log.levle".to_owned(), "x".to_owned())], ..options() };
    assert!(problems_of(load_text("", None, &options))[0].starts_with("args `log.levle` is no key"));
}

#[test]
fn logfire_variables() {
    let environment = Environment::new("/").with("LOGFIRE_TOKEN", "pylf_v1_eu_abc").with("LOGFIRE_SERVICE_NAME", "one");
    let builtin = |environment: Environment| {
        load_text("", None, &LoadOptions { environment, ..LoadOptions::default() }).unwrap().config
    };
    let config = builtin(environment.clone());
    assert_eq!(config.otlp[0].endpoint, "https://logfire-eu.pydantic.dev");
    assert!(config.otlp[0].is_active());
    assert_eq!(config.telemetry.service_name.as_deref(), Some("one"));
    assert_eq!(builtin(environment.clone().with("LOGFIRE_SEND_TO_LOGFIRE", "false")).otlp[0].send, Send::Never);
    let config =
        builtin(environment.with("LOGFIRE_BASE_URL", "http://localhost:1/").with("LOGFIRE_ENVIRONMENT", "prod"));
    assert_eq!(config.otlp[0].endpoint, "http://localhost:1");
    assert_eq!(config.telemetry.environment, "prod");
    let unknown = builtin(Environment::new("/").with("LOGFIRE_TOKEN", "other"));
    assert_eq!(unknown.otlp[0].endpoint, "https://logfire-us.pydantic.dev");
}

#[test]
fn secrets_are_never_shown() {
    let secret = "SeCrEt-0815";
    for text in [
        "[[providers]]\nname = \"p\"\nkind = 3\nbase_url = \"http://h\"\napi_key = \"SeCrEt-0815\"\n",
        "[[providers]]\nname = 3\nkind = \"openai\"\nbase_url = \"http://u:SeCrEt-0815@h\"",
        "[[providers]]\nname = 3\napi_kye = \"SeCrEt-0815\"",
        "[[providers]]\nname = 3\napi_key = [\"SeCrEt-0815\"]",
        "[[providers]]\nname = 3\napi_key = \"SeCrEt-0815é\"",
        "[[providers]]\nname = \"a\" x\napi_key = \"SeCrEt-0815",
        "[[providers]]\napi_key = SeCrEt-0815",
        "[[providers]]\napi_key = \"SeCrEt-0815\" extra",
        "database.url = \"postgres://u:SeCrEt-0815@\"\nx = 1",
        "database.url = \"postgres://u:SeCrEt-0815/@h/d\"\ndatabase.retention = 3",
        "database = { url = \"mysql://u:SeCrEt-0815@h/d\", retention = 3 }",
        "[[otlp]]\nname = \"c\"\nkind = \"otlp\"\nheaders = { Authorization = \"SeCrEt-0815\", \"a b\" = \"SeCrEt-0815\" }",
        "server.listen = \"${MY_SECRET}\"",
    ] {
        let result = load_with(text, Environment::new("/").with("MY_SECRET", secret));
        let problems = result.expect_err(text);
        let (plain, debug) = (problems.render(false), format!("{:?}", problems.problems));
        assert!(!plain.contains(secret) && !debug.contains(secret), "{text}\n{plain}\n{debug}");
    }
    let good = "database.url = \"postgres://u:SeCrEt-0815@h/d?sslpassword=SeCrEt-0815\"\n[[otlp]]\nname = \"l\"\n\
                kind = \"logfire\"\ntoken = \"SeCrEt-0815\"\nheaders = { A = \"SeCrEt-0815\" }";
    let loaded = loaded(good);
    let shown = format!("{:?} {:?}", loaded.shown, loaded.config);
    assert!(!shown.contains(secret), "{shown}");
    assert!(shown.contains("postgres://u:***@h/d") && loaded.config.otlp[0].token.expose() == secret);
}

#[test]
fn a_problem_is_drawn_with_its_line() {
    let problems = load_file("# first\n[traces]\nsample_ratio = 1.5\n").unwrap_err();
    let drawn = problems.render(false);
    for part in [
        "error: `traces.sample_ratio` can't be 1.5",
        "/etc/mlx/config.toml:3:16",
        "3 | sample_ratio = 1.5",
        "^^^ allowed: a number from 0 to 1",
    ] {
        assert!(drawn.contains(part), "{part}\n{drawn}");
    }
    assert!(drawn.ends_with("1 problem in /etc/mlx/config.toml\n") && !drawn.contains('\u{1b}'), "{drawn}");
    assert!(problems.render(true).contains('\u{1b}'));
}

#[test]
fn values_know_where_they_came_from() {
    let environment = Environment::new("/").with("LOG_LEVEL", "debug").with("KEY", "k");
    let text = "[server]\nlisten = \"127.0.0.1:1\"\n[[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = \"http://h\"\n\
                api_key = \"${KEY}\"\n[[routes]]\nmodel = \"m\"\ntargets = [\"p\"]";
    let loaded = load_with(text, environment).unwrap();
    let line = |key: &str| {
        let shown = loaded.shown.iter().find(|shown| shown.key == key).unwrap();
        format!("{} # {}", shown.value, shown.source("config.toml"))
    };
    assert_eq!(line("server.listen"), "\"127.0.0.1:1\" # config.toml:2");
    assert_eq!(line("log.level"), "\"debug\" # environment LOG_LEVEL");
    assert_eq!(line("traces.semconv"), "\"both\" # default");
    assert_eq!(line("providers[0].api_key"), "\"***\" # config.toml:7 via ${KEY}");
    assert_eq!(line("otlp[0].token"), "\"\" # default via ${LOGFIRE_TOKEN}");
    assert_eq!(line("routes[0].targets"), "[\"p\"] # config.toml:10");
}

#[test]
fn warnings_stop_nothing() {
    let warn = |text: &str, part: &str| {
        let loaded = loaded(text);
        let drawn = loaded.render_warnings(false);
        assert!(drawn.contains(part) && drawn.contains("warning: "), "{text}\n{drawn}");
    };
    warn(
        "[[routes]]\nmodel = \"gpt-*\"\ntargets = [\"openai\"]\n[[routes]]\nmodel = \"gpt-4\"\ntargets = [\"local\"]",
        "config.toml:5:9",
    );
    warn(
        "[[local.models]]\nname = \"m\"\npath = \"nowhere\"",
        "holds no model: /etc/mlx/nowhere/config.json is missing",
    );
    warn("[[log.sinks]]\nname = \"a\"\nkind = \"console\"\nlevel = \"off\"", "takes nothing");
    warn("database.url = \"sqlite:/proc/version/a.db\"", "/proc/version isn't a folder");
    warn("local.default_model = \"other\"", "neither in [[local.models]] nor in");
    warn("[[otlp]]\nname = \"l\"\nkind = \"logfire\"\nsend = \"always\"", "there is no token");
}

#[test]
fn lists_and_defaults_stand_together() {
    let config = loaded(
        "[log.targets]\nhyper = \"trace\"\n\"my::crate\" = \"error\"\n[[local.models]]\nname = \"x\"\npath = \"m\"",
    )
    .config;
    assert_eq!(config.local.default_model.as_deref(), Some("x"));
    assert_eq!(config.log.targets.len(), 7);
    assert_eq!(config.log.targets[0], Directive { target: "hyper".to_owned(), level: Level::Trace });
    assert_eq!(config.providers.len(), 2, "an absent list keeps the default entries");
    let none = loaded("providers = []\nroutes = []\notlp = []\n[log]\nsinks = []").config;
    assert!(none.providers.is_empty() && none.otlp.is_empty() && none.log.sinks.is_empty());
}

#[test]
fn folders_of_the_user() {
    let mut environment = Environment::new("/cwd");
    environment.home = Some("/home/u".into());
    let local = |environment: Environment| load_with("local.models_dir = \"~/m\"", environment).unwrap().config.local;
    let found = local(environment.clone());
    assert_eq!(found.models_dir, Path::new("/home/u/m"));
    assert_eq!(found.hub_dir.as_deref(), Some(Path::new("/home/u/.cache/huggingface/hub")));
    assert_eq!(found.cache_dir, Path::new("/home/u/.cache/mlx-manager"));
    let found = local(environment.clone().with("HF_HOME", "/hf").with("XDG_CACHE_HOME", "/cache"));
    assert_eq!(found.hub_dir.as_deref(), Some(Path::new("/hf/hub")));
    assert_eq!(found.cache_dir, Path::new("/cache/mlx-manager"));
    assert_eq!(local(environment.with("HF_HUB_CACHE", "/hub")).hub_dir.as_deref(), Some(Path::new("/hub")));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*|(\\[{0,2}(server|log|log\\.sinks|otlp|providers|routes)\\]{0,2}\n|[a-z_]{1,6} = [\"'\\[{${}0-9a-z.:é-]{0,12}\n){0,12}") {
        let result = load_file(&text);
        if let Err(problems) = result {
            prop_assert!(!problems.render(false).is_empty());
        }
    }

    #[test]
    fn no_value_panics(value in "\\PC{0,24}", key in 0usize..400) {
        // Every `key = value` line of the example in turn gets a value that it hardly expects.
        let lines: Vec<&str> = EXAMPLE.lines().collect();
        let text = lines.iter().enumerate().map(|(index, line)| match line.split_once(" = ") {
            Some((name, _)) if index == key % lines.len() => format!("{name} = {}\n", toml::Value::String(value.clone())),
            _ => format!("{line}\n"),
        }).collect::<String>();
        if let Err(problems) = load_file(&text) {
            prop_assert!(!problems.render(true).is_empty());
        }
    }
}

#[test]
fn levels_have_one_name_and_the_order_of_tracing() {
    use tracing::{Level as Event, level_filters::LevelFilter};
    let events = [Event::ERROR, Event::WARN, Event::INFO, Event::DEBUG, Event::TRACE];
    for level in [Level::Off, Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace] {
        assert_eq!(Level::from_name(level.as_str()), Some(level));
        for event in events {
            assert_eq!(level.allows(event), LevelFilter::from(level) >= event, "{level:?} {event}");
        }
    }
    for event in events {
        let level = Level::from(event);
        assert_eq!(LevelFilter::from(level).into_level(), Some(event));
        assert_eq!(level.as_str(), event.as_str().to_lowercase());
    }
}
