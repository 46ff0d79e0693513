use std::io::BufRead;

use opentelemetry::trace::{SpanId, TraceFlags, TraceId};
use proptest::prelude::*;
use serde_json::Value as Json;
use tracing::Level;

use super::*;
use crate::log::record::{Fields, TraceIds, Value};

fn style(format: Format) -> Style {
    Style { format, color: false, journald: false, timezone: TimeZone::UTC }
}

fn fields(list: Vec<(&'static str, Value<'_>)>) -> Fields {
    let mut fields = Fields::default();
    for (key, value) in list {
        fields.set(key, value);
    }
    fields
}

/// What a reader of logfmt sees: keys, and values unescaped as Go's reader does it, by the rules of JSON strings.
/// Written from its description, without a look at how we write.
fn read_logfmt(line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = line.strip_suffix('\n').expect("a newline at the end");
    while !rest.is_empty() {
        let equals = rest.find('=').expect("every key has a value");
        let key = &rest[..equals];
        assert!(!key.is_empty() && key.bytes().all(|byte| byte > b' ' && byte != b'"'), "{key:?} in {line:?}");
        rest = &rest[equals + 1..];
        let value;
        if rest.starts_with('"') {
            // A quoted value is a JSON string; the reader says itself where it ends.
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            value = values.next().unwrap().unwrap();
            rest = &rest[values.byte_offset()..];
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            value = rest[..end].to_owned();
            assert!(value.bytes().all(|byte| byte > b' ' && byte != b'"' && byte != b'='), "{value:?} in {line:?}");
            rest = &rest[end..];
        }
        pairs.push((key.to_owned(), value));
        if !rest.is_empty() {
            rest = rest.strip_prefix(' ').expect("a space between pairs");
        }
    }
    pairs
}

fn record<'a>(message: &'a str, fields: &'a Fields) -> LogRecord<'a> {
    LogRecord {
        timestamp: "2026-11-20T23:11:34.123456789Z".parse().unwrap(),
        level: Level::INFO,
        target: "mlx_manager::server::dispatch",
        line: Some(88),
        message,
        fields,
        context: Fields::NONE,
        request_id: None,
        trace: None,
        spans: &[],
    }
}

fn written(style: &Style, record: &LogRecord<'_>) -> String {
    let mut bytes = Vec::new();
    render(style, record).append_to(&mut bytes, 7);
    String::from_utf8(bytes).unwrap()
}

fn many() -> Fields {
    fields(vec![
        ("model", Value::Text("gpt 4o")),
        ("plain", Value::Text("a-b")),
        ("empty", Value::Text("")),
        ("quoted", Value::Text("say \"a\\b\"")),
        ("tokens", Value::Signed(-3)),
        ("bytes", Value::Unsigned(u64::MAX)),
        ("seconds", Value::Float(0.5)),
        ("ratio", Value::Float(f64::NAN)),
        ("stream", Value::Bool(true)),
        ("level", Value::Text("own")),
    ])
}

fn full<'a>(fields: &'a Fields, context: &'a Fields) -> LogRecord<'a> {
    let trace =
        TraceIds { trace_id: TraceId::from(0x1_u128), span_id: SpanId::from(0xab_u64), flags: TraceFlags::SAMPLED };
    LogRecord { context, request_id: Some("r 1"), trace: Some(trace), ..record("message", fields) }
}

#[test]
fn text_line() {
    let (fields, context) = (many(), fields(vec![("tokens_left", Value::Signed(4))]));
    let expected = "2026-11-20T23:11:34.123456Z | INFO     | mlx_manager::server::dispatch:88 - message \
        model=\"gpt 4o\" plain=a-b empty=\"\" quoted=\"say \\\"a\\\\b\\\"\" tokens=-3 bytes=18446744073709551615 seconds=0.5 \
        ratio=NaN stream=true level=own tokens_left=4 request_id=\"r 1\" trace_id=00000000000000000000000000000001\n";
    assert_eq!(written(&style(Format::Text), &full(&fields, &context)), expected);
}

#[test]
fn json_line() {
    let (fields, context) = (many(), fields(vec![("tokens_left", Value::Signed(4))]));
    let expected = r#"{"timestamp":"2026-11-20T23:11:34.123456Z","level":"INFO","target":"mlx_manager::server::dispatch","line":88,"#
        .to_owned()
        + r#""message":"message","request_id":"r 1","trace_id":"00000000000000000000000000000001","span_id":"00000000000000ab","#
        + r#""trace_flags":"01","seq":7,"model":"gpt 4o","plain":"a-b","empty":"","quoted":"say \"a\\b\"","tokens":-3,"#
        + r#""bytes":18446744073709551615,"seconds":0.5,"ratio":"NaN","stream":true,"field.level":"own","tokens_left":4}"#
        + "\n";
    assert_eq!(written(&style(Format::Json), &full(&fields, &context)), expected);
}

#[test]
fn logfmt_line() {
    let (fields, context) = (many(), Fields::default());
    let expected = "timestamp=2026-11-20T23:11:34.123456Z level=INFO target=mlx_manager::server::dispatch line=88 \
        message=message request_id=\"r 1\" trace_id=00000000000000000000000000000001 span_id=00000000000000ab trace_flags=01 \
        seq=7 model=\"gpt 4o\" plain=a-b empty=\"\" quoted=\"say \\\"a\\\\b\\\"\" tokens=-3 bytes=18446744073709551615 seconds=0.5 \
        ratio=NaN stream=true field.level=own\n";
    assert_eq!(written(&style(Format::Logfmt), &full(&fields, &context)), expected);
}

#[test]
fn causes_span_path_and_backtrace_are_an_escaped_block() {
    let chain = ["top\n", "middle", "root\x1b[31m"].map(String::from);
    let fields = fields(vec![("error", Value::Error(&chain)), (BACKTRACE, Value::Text("0: main\n1: start\r"))]);
    let record = LogRecord { level: Level::ERROR, spans: &["http", "inference"], ..record("failed", &fields) };
    let text = written(&style(Format::Text), &record);
    let (line, block) = text.split_once('\n').unwrap();
    assert!(line.ends_with(" - failed error=\"top\\n\""), "{line}");
    assert_eq!(
        block,
        "    in http > inference\n    caused by: middle\n    caused by: root\\u001b[31m\n    0: main\n    1: start\\r\n"
    );
    let json: Json = serde_json::from_str(&written(&style(Format::Json), &record)).unwrap();
    assert_eq!(json["error"], "top\n");
    assert_eq!(json["error.causes"], serde_json::json!(["middle", "root\x1b[31m"]));
    assert_eq!(json["spans"], serde_json::json!(["http", "inference"]));
    assert!(written(&style(Format::Logfmt), &record).contains("error=\"top\\n: middle: root\\u001b[31m\""));
}

#[test]
fn journald_gets_a_priority_per_line() {
    let chain = ["top", "root"].map(String::from);
    let fields = fields(vec![("error", Value::Error(&chain))]);
    let mut style = style(Format::Text);
    style.journald = true;
    let text = written(&style, &LogRecord { level: Level::ERROR, ..record("failed", &fields) });
    assert_eq!(text.lines().filter(|line| line.starts_with("<3>")).count(), 2);
    let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
    for (level, priority) in levels.into_iter().zip([3, 4, 6, 7, 7]) {
        // No text can bring a priority of its own: journald looks at the start of a line only.
        let text = written(&style, &LogRecord { level, ..record("a\n<0>panic", Fields::NONE) });
        assert!(text.starts_with(&format!("<{priority}>2026-")) && text.lines().count() == 1, "{text}");
    }
    style.format = Format::Json;
    let text = written(&style, &record("message", Fields::NONE));
    let json: Json = serde_json::from_str(text.strip_prefix("<6>").unwrap()).unwrap();
    assert_eq!(json["seq"], 7);
}

#[test]
fn colors_and_local_time_only_where_asked() {
    let plain = written(&style(Format::Text), &record("message", Fields::NONE));
    assert!(!plain.contains('\x1b'));
    let colored = Style { color: true, timezone: TimeZone::fixed(jiff::tz::offset(1)), ..style(Format::Text) };
    let colored = written(&colored, &record("message", Fields::NONE));
    assert!(
        colored.contains("\x1b[32mINFO    \x1b[0m") && colored.contains("2026-11-21T00:11:34.123456+01:00"),
        "{colored}"
    );
}

#[test]
fn text_escapes_every_control_and_direction_mark() {
    let marks = "\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
    let controls = ('\0'..='\x1f').chain('\x7f'..='\u{9f}');
    for character in marks.chars().chain(controls) {
        for format in [Format::Text, Format::Json, Format::Logfmt] {
            let text = written(&style(format), &record(&format!("a{character}b"), Fields::NONE));
            assert!(!text.trim_end_matches('\n').contains(character), "{character:?} in {format:?}");
        }
    }
}

/// Characters that matter to terminals, line splitters and parsers, among any others.
fn nasty() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        '\n', '\r', '\t', '\0', '\x1b', '\x07', '\x0b', '\x0c', '\x7f', '\u{85}', '\u{9b}', '\u{2028}', '\u{2029}',
        '\u{202e}', '\u{2066}', '\u{200f}', '"', '\\', '=', ' ', '|', 'a', 'é', '🦀',
    ]);
    let part = prop_oneof![3 => special, 1 => any::<char>()];
    prop::collection::vec(part, 0..40).prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn no_text_can_forge_a_line(message in nasty(), value in nasty(), cause in nasty()) {
        let chain = [cause.clone(), "root".into()];
        let fields = fields(vec![("value", Value::Text(&value)), ("error", Value::Error(&chain))]);
        let record = LogRecord { request_id: Some(&value), ..record(&message, &fields) };
        for (format, lines) in [(Format::Text, 2), (Format::Json, 1), (Format::Logfmt, 1)] {
            let text = written(&style(format), &record);
            prop_assert_eq!(text.matches('\n').count(), lines);
            prop_assert!(text.ends_with('\n'));
            prop_assert!(!text.chars().any(|character| character != '\n' && is_forgeable(character)), "{:?}", text);
        }
        let json: Json = serde_json::from_str(&written(&style(Format::Json), &record)).unwrap();
        prop_assert_eq!(json["message"].as_str(), Some(message.as_str()));
        prop_assert_eq!(json["value"].as_str(), Some(value.as_str()));
        prop_assert_eq!(json["request_id"].as_str(), Some(value.as_str()));
        prop_assert_eq!(json["error"].as_str(), Some(cause.as_str()));
        let logfmt = read_logfmt(&written(&style(Format::Logfmt), &record));
        let value_of = |key: &str| logfmt.iter().find(|(found, _)| found == key).map(|(_, value)| value.as_str());
        prop_assert_eq!(value_of("message"), Some(message.as_str()));
        prop_assert_eq!(value_of("value"), Some(value.as_str()));
        prop_assert_eq!(value_of("request_id"), Some(value.as_str()));
        prop_assert_eq!(value_of("error").map(str::to_owned), Some(format!("{cause}: root")));
        prop_assert_eq!(value_of("seq"), Some("7"));
    }

    #[test]
    fn shippers_see_one_record_per_line(
        records in prop::collection::vec((nasty(), nasty(), any::<i64>(), any::<u64>(), any::<f64>(), any::<bool>()), 1..8)
    ) {
        let mut bytes = Vec::new();
        let mut logfmt = Vec::new();
        for (sequence, (message, value, signed, unsigned, float, bool)) in records.iter().enumerate() {
            let fields = fields(vec![
                ("value", Value::Text(value.as_str())),
                ("signed", Value::Signed(*signed)),
                ("unsigned", Value::Unsigned(*unsigned)),
                ("float", Value::Float(*float)),
                ("bool", Value::Bool(*bool)),
            ]);
            let record = LogRecord { target: message, ..record(message, &fields) };
            render(&style(Format::Json), &record).append_to(&mut bytes, sequence as u64);
            render(&style(Format::Logfmt), &record).append_to(&mut logfmt, sequence as u64);
        }
        // Some shippers cut at newlines and parse each piece, others parse one value after the other.
        let pieces: Vec<Json> = bytes.lines().map(|line| serde_json::from_slice(line.unwrap().as_bytes()).unwrap()).collect();
        let stream: Result<Vec<Json>, _> = serde_json::Deserializer::from_slice(&bytes).into_iter().collect();
        prop_assert_eq!(&pieces, &stream.unwrap());
        prop_assert_eq!(pieces.len(), records.len());
        let logfmt = String::from_utf8(logfmt).unwrap();
        prop_assert_eq!(logfmt.lines().count(), records.len());
        for (((message, value, signed, unsigned, float, bool), json), line) in records.iter().zip(&pieces).zip(logfmt.split_inclusive('\n')) {
            prop_assert_eq!((json["target"].as_str(), json["message"].as_str()), (Some(message.as_str()), Some(message.as_str())));
            prop_assert_eq!((json["signed"].as_i64(), json["unsigned"].as_u64()), (Some(*signed), Some(*unsigned)));
            prop_assert_eq!((json["value"].as_str(), json["bool"].as_bool()), (Some(value.as_str()), Some(*bool)));
            prop_assert_eq!(json["float"].is_number(), float.is_finite());
            let pairs = read_logfmt(line);
            let value_of = |key: &str| pairs.iter().find(|(found, _)| found == key).map(|(_, value)| value.as_str()).unwrap();
            prop_assert_eq!((value_of("target"), value_of("value")), (message.as_str(), value.as_str()));
            let read: f64 = value_of("float").parse().unwrap();
            prop_assert!(read == *float || read.is_nan() && float.is_nan());
        }
    }
}
