//! What spans look like to the one who reads them.

use mlx_manager_config::ProviderKind;
use mlx_manager_llm::{
    Body, Capture, CapturedMessage, Context, Conversation, Error, ErrorKind, FinishReason, Inference, Outcome, Part,
    Record, Request, Sampling, ToolCall, Usage,
};
use mlx_manager_signal::{
    genai,
    redact::ModelLabel,
    span::{Destination, InferenceEnd, InferenceStart, Server, Statement},
};
use opentelemetry::TraceId;
use opentelemetry_proto::tonic::trace::v1::{span::SpanKind, status::StatusCode};

use super::{collector::strings, *};

fn request() -> Request {
    Request {
        api: Api::ChatCompletions,
        model: "gpt-4o".to_owned(),
        stream: true,
        include_usage: false,
        sampling: Sampling {
            temperature: Some(0.5),
            max_tokens: Some(100),
            stop: vec!["END".to_owned()],
            ..Sampling::default()
        },
        body: Body::parse(bytes::Bytes::from_static(
            br#"{"messages":[{"role":"user","content":"hello"},{"role":"user","content":"the password is hunter2"}]}"#,
        ))
        .unwrap(),
    }
}

/// What a dialect would read of [`request`].
const CAPTURE: Capture = Capture {
    body: |request| {
        let fields = request.body.iter();
        fields.map(|(name, raw)| (name.to_owned(), serde_json::from_str(raw).unwrap())).collect()
    },
    conversation: |_| {
        let said = |text: &str| CapturedMessage { role: "user".into(), parts: vec![Part::Text(text.into())] };
        let messages = vec![said("hello"), said("the password is hunter2")];
        Conversation { messages, ..Conversation::default() }
    },
};

/// The span of an inference that was asked for by [`request`].
pub(super) fn start_inference(parent: &Span, model: &str, destination: Destination<'_>) -> Span {
    span::inference(
        parent,
        &InferenceStart { request: &request(), model: &ModelLabel::new(model), destination, capture: CAPTURE },
    )
}

pub(super) fn record() -> Record {
    Record {
        requested_model: "gpt-4o".to_owned(),
        provider: Some("openai".to_owned()),
        response_model: Some("gpt-4o-2024-08-06".to_owned()),
        stream: true,
        outcome: Outcome::Ok,
        status: 200,
        usage: Usage { input: Some(12), output: Some(7), cache_read: Some(4), reasoning: Some(2), ..Usage::default() },
        cost_usd: Some(0.0001),
        time_to_first_token: Some(Duration::from_millis(250)),
        chunks: 3,
        duration: Duration::from_secs(1),
        finish_reason: Some(FinishReason::Stop),
        retries: 1,
        inference: Some(Inference {
            system: "openai",
            model: "gpt-4o".to_owned(),
            duration: Duration::from_millis(900),
            time_to_first_token: Some(Duration::from_millis(200)),
        }),
        ..Record::begin(&Context::new("req-1", Span::none()), Api::ChatCompletions)
    }
}

pub(super) fn ended(record: &Record) -> InferenceEnd<'_> {
    InferenceEnd {
        record,
        response_id: Some("chatcmpl-1"),
        reported_usage: [Some(r#"{"prompt_tokens":12,"service_tier":null}"#), Some(r#"{"completion_tokens":7}"#)],
        content: None,
        error: None,
    }
}

fn statement<'a>(system: &'static str, server: Option<Server<'a>>) -> Statement<'a> {
    Statement { system, server, operation: "INSERT", table: "requests" }
}

pub(super) fn cloud(provider: &str) -> Destination<'_> {
    Destination::Cloud { provider, kind: ProviderKind::OpenAi, address: "api.openai.com", port: 443 }
}

#[test]
fn one_chat_completion_is_the_tree_that_the_conventions_want() {
    let collector = Collector::start();
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    within(&dispatch, || {
        let server = server_span();
        let incoming = http::Request::builder()
            .uri("/v1/chat/completions")
            .header("host", "localhost:10242")
            .header("user-agent", "curl/8")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .body(())
            .unwrap();
        span::http_server_request(&server, Some("/v1/chat/completions"), &incoming);
        extract(&server, incoming.headers());
        let route = span::route(&server, &ModelLabel::new("gpt-4o"));
        span::route_finished(&route, "gpt-*", &["openai".to_owned(), "backup".to_owned()]);
        let failing = start_inference(&server, "gpt-4o", cloud("openai"));
        let error = Error::new(ErrorKind::RateLimited, "try later")
            .with_source(std::io::Error::other("Authorization: Bearer sk-1234"));
        span::inference_failed_over(&failing, &ModelLabel::new("gpt-4o"), &error);
        let inference = start_inference(&server, "gpt-4o", cloud("backup"));
        assert!(!span::captures_content());
        let url = "https://user:hunter2@api.openai.com/v1/chat/completions?key=hunter2".parse().unwrap();
        span::attempt_finished(&span::attempt(&inference, &url, 0), Some(503), None);
        span::attempt_finished(&span::attempt(&inference, &url, 1), Some(200), None);
        span::inference_finished(&inference, &ended(&record()));
        span::http_server_finished(&server, Some(200), None);
        let database = span::database(statement("sqlite", None), &[written(&server)]);
        span::database_finished(&database, 1, None, None);
    });
    drop(dispatch);
    assert!(handle.flush(LONG));

    let (service, server) = collector.span("POST /v1/chat/completions");
    assert_eq!((service.as_str(), server.kind()), ("mlx-server", SpanKind::Server));
    assert_eq!(server.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(server.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    for (key, value) in [
        ("http.request.method", string("POST")),
        ("http.route", string("/v1/chat/completions")),
        ("url.path", string("/v1/chat/completions")),
        ("url.scheme", string("http")),
        ("server.address", string("localhost")),
        ("server.port", Some(Value::IntValue(10242))),
        ("client.address", string("127.0.0.1")),
        ("user_agent.original", string("curl/8")),
        ("network.protocol.version", string("1.1")),
        ("http.response.status_code", Some(Value::IntValue(200))),
        ("request_id", string("req-1")),
        ("logfire.msg", string("POST /v1/chat/completions")),
        ("logfire.span_type", string("span")),
        ("logfire.level_num", Some(Value::IntValue(9))),
        ("error.type", None),
    ] {
        assert_eq!(attribute(&server.attributes, key), value, "{key}");
    }
    assert!(server.status.is_none_or(|status| status.code() == StatusCode::Unset));

    let (_, route) = collector.span("route gpt-4o");
    assert_eq!((route.kind(), &route.parent_span_id), (SpanKind::Internal, &server.span_id));
    assert_eq!(attribute(&route.attributes, "mlx_manager.route.targets"), strings(&["openai", "backup"]));

    let inferences: Vec<_> =
        collector.spans().into_iter().map(|(_, span)| span).filter(|span| span.name == "chat gpt-4o").collect();
    let [failed, inference] = &inferences[..] else { panic!("{inferences:?}") };
    assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(attribute(&failed.attributes, "error.type"), string("rate_limited"));
    assert_eq!(attribute(&failed.attributes, "logfire.level_num"), Some(Value::IntValue(17)));
    assert_eq!(attribute(&failed.attributes, "gen_ai.usage.input_tokens"), None);
    assert_eq!(failed.events[0].name, "exception");
    assert_eq!(attribute(&failed.events[0].attributes, "exception.message"), string("try later"));
    assert_eq!(
        attribute(&failed.events[0].attributes, "exception.stacktrace"),
        string("rate_limited: try later\ncaused by: [Scrubbed due to 'auth']\n")
    );
    assert_eq!((inference.kind(), &inference.parent_span_id), (SpanKind::Client, &server.span_id));
    for (key, value) in [
        ("gen_ai.operation.name", string("chat")),
        ("gen_ai.provider.name", string("openai")),
        ("gen_ai.system", string("openai")),
        ("gen_ai.request.model", string("gpt-4o")),
        ("gen_ai.request.temperature", Some(Value::DoubleValue(0.5))),
        ("gen_ai.request.max_tokens", Some(Value::IntValue(100))),
        ("gen_ai.request.stop_sequences", strings(&["END"])),
        ("gen_ai.request.stream", Some(Value::BoolValue(true))),
        ("gen_ai.request.seed", None),
        ("gen_ai.response.id", string("chatcmpl-1")),
        ("gen_ai.response.model", string("gpt-4o-2024-08-06")),
        ("gen_ai.response.finish_reasons", strings(&["stop"])),
        ("gen_ai.usage.input_tokens", Some(Value::IntValue(12))),
        ("gen_ai.usage.output_tokens", Some(Value::IntValue(7))),
        ("gen_ai.usage.cache_read.input_tokens", Some(Value::IntValue(4))),
        ("gen_ai.usage.reasoning.output_tokens", Some(Value::IntValue(2))),
        ("gen_ai.client.operation.time_to_first_chunk", Some(Value::DoubleValue(0.2))),
        ("operation.cost", Some(Value::DoubleValue(0.0001))),
        ("server.address", string("api.openai.com")),
        ("server.port", Some(Value::IntValue(443))),
        ("logfire.msg", string("Chat Completion with 'gpt-4o'")),
        ("logfire.tags", strings(&["LLM"])),
        ("request_data", string(r#"{"model":"gpt-4o"}"#)),
        ("response_data", None),
        ("gen_ai.usage.raw", string(r#"{"prompt_tokens":12,"completion_tokens":7}"#)),
        ("logfire.exception.fingerprint", None),
        ("gen_ai.input.messages", None),
        ("error.type", None),
    ] {
        assert_eq!(attribute(&inference.attributes, key), value, "{key}");
    }

    let attempts: Vec<_> =
        collector.spans().into_iter().map(|(_, span)| span).filter(|span| span.name == "POST").collect();
    assert!(
        attempts
            .iter()
            .all(|attempt| attempt.parent_span_id == inference.span_id && attempt.kind() == SpanKind::Client)
    );
    for (key, value) in [
        ("http.request.method", string("POST")),
        ("http.response.status_code", Some(Value::IntValue(503))),
        ("url.path", string("/v1/chat/completions")),
        ("url.scheme", string("https")),
        ("server.address", string("api.openai.com")),
        ("server.port", Some(Value::IntValue(443))),
    ] {
        assert_eq!(attribute(&attempts[0].attributes, key), value, "{key}");
    }
    assert_eq!(attribute(&attempts[0].attributes, "http.request.resend_count"), None);
    assert_eq!(attribute(&attempts[0].attributes, "error.type"), string("503"));
    assert_eq!(attempts[0].status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(attribute(&attempts[1].attributes, "http.request.resend_count"), Some(Value::IntValue(1)));
    assert_eq!(attribute(&attempts[1].attributes, "url.full"), string("https://api.openai.com/v1/chat/completions"));

    let (service, database) = collector.span("INSERT requests");
    assert_eq!((service.as_str(), database.kind()), ("mlx-manager", SpanKind::Client));
    assert_eq!((&database.trace_id, &database.parent_span_id), (&server.trace_id, &server.span_id));
    assert_eq!(attribute(&database.attributes, "db.system.name"), string("sqlite"));

    assert_eq!(collector.spans().len(), 7);
    assert_eq!(counts(&handle), (7, 0, 0));
    assert!(!format!("{:?}", collector.spans()).contains("hunter2"));
    let headers = &collector.headers()[0];
    assert_eq!(headers["authorization"], TOKEN);
    assert_eq!(headers["x-team"], "blue");
    assert_eq!(headers["content-encoding"], "gzip");
    for resource in collector.resources() {
        assert_eq!(attribute(&resource, "service.version"), string(crate::build::TEST_BUILD.version));
        assert_eq!(attribute(&resource, "deployment.environment.name"), string("test"));
        assert!(attribute(&resource, "service.instance.id").is_some());
    }
}

#[test]
fn a_status_is_an_error_only_when_it_is_ours() {
    let collector = Collector::start();
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    within(&dispatch, || {
        for (route, status, error) in [
            ("/refused", Some(404), Some("invalid_request")),
            ("/abort", None, None),
            ("/broken", Some(500), Some("engine_error")),
            ("/cut", Some(200), Some("upstream_error")),
        ] {
            let server = span::http_server(Kind::Inference, "GET", Some(route), None, "r");
            server.in_scope(|| tracing::warn!(target: "mlx_manager::server", error = "some trouble", "talk"));
            span::http_server_finished(&server, status, error);
        }
        let server = server_span();
        let aborted = start_inference(&server, "aborted", Destination::Local);
        span::inference_finished(&aborted, &ended(&Record { outcome: Outcome::ClientAbort, ..record() }));
    });
    assert!(handle.flush(LONG));
    for (name, status, error) in [
        ("GET /refused", StatusCode::Unset, None),
        ("GET /abort", StatusCode::Unset, None),
        ("GET /broken", StatusCode::Error, string("engine_error")),
        ("GET /cut", StatusCode::Error, string("upstream_error")),
        ("chat aborted", StatusCode::Unset, None),
    ] {
        let (_, span) = collector.span(name);
        assert_eq!(span.status.clone().unwrap_or_default().code(), status, "{name}");
        assert_eq!(attribute(&span.attributes, "error.type"), error, "{name}");
    }
    let (_, abort) = collector.span("GET /abort");
    assert_eq!(attribute(&abort.attributes, "http.response.status_code"), None);
}

#[test]
fn content_is_captured_on_request_only_and_redacted() {
    let collector = Collector::start();
    let config = TracesConfig { capture_content: true, ..traces() };
    let (dispatch, handle, _) = subscriber(&config, &[logfire(&collector)]);
    within(&dispatch, || {
        assert!(span::captures_content());
        let inference = start_inference(&server_span(), "m", cloud("openai"));
        let call = ToolCall { id: "call_1".to_owned(), name: "f".to_owned(), arguments: r#"{"a":1}"#.to_owned() };
        let content = genai::Answer { text: "hi there", reasoning: "", tool_calls: &[call] };
        span::inference_finished(&inference, &InferenceEnd { content: Some(content), ..ended(&record()) });
    });
    assert!(handle.flush(LONG));
    let (_, span) = collector.span("chat m");
    assert_eq!(
        attribute(&span.attributes, "gen_ai.input.messages"),
        string(
            r#"[{"role":"user","parts":[{"type":"text","content":"hello"}]},{"role":"user","parts":[{"type":"text","content":"[Scrubbed due to 'password']"}]}]"#
        )
    );
    assert_eq!(
        attribute(&span.attributes, "gen_ai.output.messages"),
        string(
            r#"[{"role":"assistant","parts":[{"type":"text","content":"hi there"},{"type":"tool_call","id":"call_1","name":"f","arguments":{"a":1}}],"finish_reason":"stop"}]"#
        )
    );
    assert_eq!(
        attribute(&span.attributes, "response_data"),
        string(
            r#"{"message":{"role":"assistant","content":"hi there","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},"usage":{"prompt_tokens":12,"completion_tokens":7}}"#
        )
    );
    assert_eq!(
        attribute(&span.attributes, "request_data"),
        string(
            r#"{"model":"m","messages":[{"role":"user","content":"hello"},{"role":"user","content":"[Scrubbed due to 'password']"}]}"#
        )
    );
}

fn trace_id(span: &Span) -> Option<String> {
    ids(span).map(|ids| ids.trace_id)
}

/// A record as the meter leaves it, which outlives the request's spans.
fn written(server: &Span) -> Record {
    let Some(ids) = ids(server) else { return record() };
    Record { trace_id: Some(ids.trace_id), span_id: Some(ids.span_id), sampled: ids.sampled, ..record() }
}

#[test]
fn without_a_destination_there_are_ids_and_nothing_else() {
    let collector = Collector::start();
    let off = OtlpConfig { token: Secret::default(), ..logfire(&collector) };
    let (dispatch, handle, logs) = subscriber(&traces(), &[off]);
    assert!(logs.is_none());
    within(&dispatch, || {
        let server = server_span();
        let route = span::route(&server, &ModelLabel::new("m"));
        let id = trace_id(&server).unwrap();
        assert_eq!(id.len(), 32);
        assert_eq!(trace_id(&route), Some(id.clone()));
        let mut headers = HeaderMap::new();
        headers.insert("tracestate", HeaderValue::from_static("somebody=else"));
        inject(&route, &mut headers);
        let traceparent = headers["traceparent"].to_str().unwrap();
        assert!(traceparent.starts_with(&format!("00-{id}-")) && traceparent.ends_with("-00"), "{traceparent}");
        assert!(!headers.contains_key("tracestate"));
        assert_eq!(trace_id(&Span::none()), None);
    });
    assert_eq!(handle.counters().read().count(), 0);
    assert!(handle.shutdown(LONG));
    assert_eq!(collector.headers().len(), 0);
}

#[test]
fn trace_context_is_passed_on_as_the_callers_child() {
    let collector = Collector::start();
    let (dispatch, _handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    within(&dispatch, || {
        let mut headers = HeaderMap::new();
        headers
            .insert("traceparent", HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        headers.insert("tracestate", HeaderValue::from_static("vendor=1"));
        let server = server_span();
        extract(&server, &headers);
        let attempt = span::attempt(&server, &"http://127.0.0.1/".parse().unwrap(), 0);
        let mut outgoing = HeaderMap::new();
        inject(&attempt, &mut outgoing);
        let traceparent = outgoing["traceparent"].to_str().unwrap();
        assert!(traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && traceparent.ends_with("-01"));
        assert!(!traceparent.contains("b7ad6b7169203331"), "our span is the parent, not the caller's");
        assert_eq!(outgoing["tracestate"], "vendor=1");

        let other = server_span();
        headers.insert("traceparent", HeaderValue::from_static("00-nonsense-01"));
        extract(&other, &headers);
        assert_ne!(trace_id(&other), trace_id(&server));
        assert!(trace_id(&other).is_some());
    });
}

#[test]
fn a_statement_for_several_requests_is_linked_to_each() {
    let collector = Collector::start();
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    let ids = within(&dispatch, || {
        let requests = [server_span(), server_span(), Span::none()];
        let records = requests.each_ref().map(written);
        let server = Server { address: "db.local", port: 5432, database: "audit" };
        let database = span::database(statement("postgresql", Some(server)), &records);
        span::database_finished(&database, 0, Some(&std::io::Error::other("disk full")), Some("53100"));
        requests.map(|request| trace_id(&request))
    });
    assert!(handle.flush(LONG));
    let (_, database) = collector.span("INSERT requests");
    let linked: Vec<_> = database.links.iter().map(|link| link.trace_id.clone()).collect();
    let wanted: Vec<_> =
        ids.into_iter().flatten().map(|id| TraceId::from_hex(&id).unwrap().to_bytes().to_vec()).collect();
    assert_eq!((linked, wanted.len()), (wanted.clone(), 2));
    assert!(database.parent_span_id.is_empty());
    assert_eq!(database.status.unwrap().code(), StatusCode::Error);
    assert_eq!(attribute(&database.events[0].attributes, "exception.message"), string("disk full"));
    for (key, value) in [
        ("db.system.name", string("postgresql")),
        ("db.operation.name", string("INSERT")),
        ("db.collection.name", string("requests")),
        ("db.query.summary", string("INSERT requests")),
        ("db.namespace", string("audit")),
        ("db.response.status_code", string("53100")),
        ("error.type", string("53100")),
        ("server.address", string("db.local")),
        ("server.port", Some(Value::IntValue(5432))),
    ] {
        assert_eq!(attribute(&database.attributes, key), value, "{key}");
    }
}

#[test]
fn a_model_name_of_any_length_makes_a_short_span_name() {
    let collector = Collector::start();
    let (dispatch, handle, _) = subscriber(&traces(), &[logfire(&collector)]);
    within(&dispatch, || {
        span::route_finished(&span::route(&server_span(), &ModelLabel::new(&"é".repeat(100_000))), "none", &[])
    });
    assert!(handle.flush(LONG));
    assert!(collector.spans().iter().all(|(_, span)| span.name.len() < 300));
}

#[test]
fn with_a_sample_ratio_errors_slow_traces_and_the_callers_choice_are_kept() {
    let collector = Collector::start();
    let config = TracesConfig { sample_ratio: 0.0, keep_slower_than: Duration::from_millis(50), ..traces() };
    let (dispatch, handle, _) = subscriber(&config, &[logfire(&collector)]);
    within(&dispatch, || {
        let run = |route: &'static str, status: u16, before_the_end: fn()| {
            let server = span::http_server(Kind::Inference, "GET", Some(route), None, "r");
            span::route_finished(&span::route(&server, &ModelLabel::new(route)), "rule", &[]);
            before_the_end();
            span::http_server_finished(&server, Some(status), None);
            written(&server)
        };
        let write = |records: &[Record]| {
            span::database_finished(&span::database(statement("sqlite", None), records), 1, None, None);
        };
        let fine = run("/fine", 200, || {});
        let broken = run("/broken", 500, || {});
        let slow = run("/slow", 200, || std::thread::sleep(Duration::from_millis(60)));
        // The statements that write their rows share their fate, alone or together.
        write(std::slice::from_ref(&fine));
        write(std::slice::from_ref(&slow));
        write(&[fine.clone(), broken]);
        write(&[fine.clone(), fine]);
        let mut headers = HeaderMap::new();
        headers
            .insert("traceparent", HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        let sampled = span::http_server(Kind::Inference, "GET", Some("/sampled"), None, "r");
        extract(&sampled, &headers);
        span::http_server_finished(&sampled, Some(200), None);
        write(&[written(&sampled)]);
    });
    assert!(handle.flush(LONG));
    let mut names: Vec<_> = collector.spans().into_iter().map(|(_, span)| span.name).collect();
    names.sort_unstable();
    let statements = ["INSERT requests"; 3];
    let requests = ["GET /broken", "GET /sampled", "GET /slow", "route /broken", "route /slow"];
    assert_eq!(names, [&requests[..3], &statements, &requests[3..]].concat());
    assert_eq!(counts(&handle), (8, 0, 0));
}

#[test]
fn both_services_take_the_operators_names() {
    let collector = Collector::start();
    let named = |prefix: &str, name: Option<&str>| {
        let telemetry = TelemetryConfig {
            environment: "test".to_owned(),
            service_prefix: prefix.to_owned(),
            service_name: name.map(str::to_owned),
        };
        let Traces { layer, handle, .. } =
            build(&traces(), &telemetry, &[logfire(&collector)], crate::build::TEST_BUILD).unwrap();
        within(&Dispatch::new(Registry::default().with(layer)), || {
            served(200);
            span::http_server_finished(
                &span::http_server(Kind::Question, "GET", Some("/admin"), None, "r"),
                Some(200),
                None,
            );
        });
        assert!(handle.flush(LONG));
        collector.spans().into_iter().map(|(service, _)| service).rev().take(2).collect::<Vec<_>>()
    };
    assert_eq!(named("lab-", None), ["lab-mlx-manager", "lab-mlx-server"]);
    assert_eq!(named("lab-", Some("one")), ["one", "one"]);
}
