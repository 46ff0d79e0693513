use std::fs;

use minijinja::value::Serde;
use serde_json::{Value as Json, json};

use super::*;

fn variables(others: Json) -> Variables {
    let Json::Object(others) = others else { panic!("an object") };
    let others = others.into_iter().map(|(name, value)| (name, Value::from(Serde(value))));
    let bos = ("bos_token".to_owned(), Value::from("<s>"));
    Variables {
        add_generation_prompt: true,
        others: std::iter::once(bos).chain(others).collect(),
        ..Variables::default()
    }
}

fn render_with(source: &str, others: Json) -> Result<String, TemplateError> {
    let now = "2026-11-20T09:05:00[UTC]".parse().unwrap();
    ChatTemplate::new(source, None)?.render(variables(others), now)
}

fn check(source: &str, others: Json, expected: &str) {
    assert_eq!(render_with(source, others).unwrap(), expected, "{source}");
}

#[test]
fn json_is_written_as_python_does() {
    let value = json!({"x": {"b": [1, 2.5, null, true], "a": "<é & \"q\">", "e": {}, "l": []}});
    check("{{ x | tojson }}", value.clone(), r#"{"b": [1, 2.5, null, true], "a": "<é & \"q\">", "e": {}, "l": []}"#);
    check(
        "{{ x | tojson(indent=2) }}",
        value.clone(),
        "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"a\": \"<é & \\\"q\\\">\",\n  \"e\": {},\n  \"l\": []\n}",
    );
    check("{{ x.a | tojson(ensure_ascii=true) }}", value.clone(), r#""<\u00e9 & \"q\">""#);
    check(
        "{{ x | tojson(sort_keys=true, separators=(',', ':')) }}",
        value,
        r#"{"a":"<é & \"q\">","b":[1,2.5,null,true],"e":{},"l":[]}"#,
    );
}

#[test]
fn blocks_are_trimmed_as_transformers_does() {
    check("{% for i in [1, 2] %}\n  {% if true %}\n{{ i }}\n  {% endif %}\n{% endfor %}", json!({}), "1\n2\n");
    check("a\n  {%- generation -%}\n b {% endgeneration %}\nc", json!({}), "ab c");
    check("{%generation%}b{%   endgeneration   %}c{{ generation }}", json!({"generation": 1}), "bc1");
}

#[test]
fn python_works_where_templates_use_it() {
    check("{{ x.strip().split('|')[1].upper() }}{{ y.get('k', 3) }}", json!({"x": " a|b ", "y": {}}), "B3");
    check(
        "{% for k, v in y.items() %}{{ k }}={{ v }};{% endfor %}",
        json!({"y": {"z": true, "a": null}}),
        "z=True;a=None;",
    );
    check("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", json!({}), "01");
    check("{{ x[::-1] }}{{ x[:-1] }}{{ bos_token }}{{ missing }}", json!({"x": "abc"}), "cbaab<s>");
    check("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", json!({}), "2");
    check("{{ strftime_now('%d %b %Y') }}", json!({}), "20 Nov 2026");
    // `transformers` passes them in any case.
    check("{{ tools is defined }}{{ tools is none }}{{ documents is none }}", json!({}), "TrueTrueTrue");
}

#[test]
fn a_refusal_carries_the_reason() {
    let error = render_with("{{ raise_exception('Roles must alternate') }}", json!({})).unwrap_err();
    assert!(matches!(&error, TemplateError::Refused(reason) if reason == "Roles must alternate"), "{error:?}");
    // Also from within a macro and a loop.
    let error = render_with(
        "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{% for i in [1] %}{{ m() }}{% endfor %}",
        json!({}),
    );
    assert!(matches!(error, Err(TemplateError::Refused(reason)) if reason == "no"));
}

#[test]
fn a_template_that_loops_is_stopped() {
    let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(matches!(render_with(source, json!({})), Err(TemplateError::Limit(Limit::Steps(_)))));
}

#[test]
fn templates_are_found_in_every_place() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let render = |tools: Option<Vec<Json>>| {
        let tools = tools.map(|tools| tools.into_iter().map(|tool| Value::from(Serde(tool))).collect());
        let variables = Variables { tools, ..Variables::default() };
        ChatTemplate::load(folder.path()).unwrap().render(variables, Zoned::default()).unwrap()
    };
    assert!(matches!(ChatTemplate::load(folder.path()), Err(TemplateError::Missing { .. })));
    write("chat_template.json", r#"{"chat_template": "of its own"}"#);
    assert_eq!(render(None), "of its own");
    write("tokenizer_config.json", r#"{"chat_template": "in the config"}"#);
    assert_eq!(render(None), "in the config");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "with tools"}, {"name": "default", "template": "plain"}]}"#,
    );
    assert_eq!((render(None), render(Some(vec![json!({})]))), ("plain".to_owned(), "with tools".to_owned()));
    write("chat_template.jinja", "in a file");
    assert_eq!(render(Some(vec![json!({})])), "in a file");
    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "with tools, in a file");
    assert_eq!(
        (render(None), render(Some(vec![json!({})]))),
        ("in a file".to_owned(), "with tools, in a file".to_owned())
    );
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    assert_eq!((render(None), render(Some(vec![json!({})]))), ("plain".to_owned(), "with tools, in a file".to_owned()));
    write("tokenizer_config.json", r#"{"chat_template": {"default": "by name"}}"#);
    assert_eq!(render(None), "by name");
    write("tokenizer_config.json", r#"{"chat_template": 7}"#);
    assert!(matches!(ChatTemplate::load(folder.path()), Err(TemplateError::Config(_))));
    write("chat_template.jinja", "{% if %}");
    assert!(matches!(ChatTemplate::load(folder.path()), Err(TemplateError::Invalid(_))));
}

#[test]
fn line_ends_and_marks_of_files_are_none_of_the_text() {
    let lines = "\u{feff}{% for m in [1, 2] %}\r\n<{{ m }}>\r\n{{ x }}\r{% endfor %}\r\n";
    check(lines, json!({"x": "one\r\ntwo"}), "<1>\none\r\ntwo\n<2>\none\r\ntwo\n");
    check("{{ 'a\r\nb' }}", json!({}), "a\nb");
}

/// Texts, and what Jinja2 makes of them where it is set up as `transformers` does.
#[test]
fn templates_are_rendered_as_jinja_does() {
    let golden = |name: &str| fs::read(format!("../../tests/goldens/engine/{name}.json")).unwrap();
    let cases: Vec<(String, String)> = serde_json::from_slice(&golden("templates")).unwrap();
    assert!(cases.len() > 600);
    let given: Json = serde_json::from_slice(&golden("template-variables")).unwrap();
    let seen = |source: &str| render_with(source, given.clone()).map_err(|error| format!("{error:?}"));
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|(source, expected)| {
            Some((source, expected, seen(source))).filter(|(.., seen)| seen.as_ref() != Ok(expected))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Each would take gigabytes, or a stack without end.
const BOMBS: [&str; 40] = [
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = ns.s * 2 %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = '%s%s' | format(ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = ns.s.join(['a', 'b', 'c']) %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = ns.s | replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1024) %}{% for i in range(60) %}{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}",
    "{% macro m(s, n) %}{% if n %}{{ m(s ~ s, n - 1) }}{% else %}{{ s }}{% endif %}{% endmacro %}{{ m('x' * 1024, 60) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endif %}{% endmacro %}{{ m(50) }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{{ 'x' * 10**10 }}",
    "{{ [1] * 10**10 }}",
    "{{ ([1] * 10**5 + [2]) * 10**5 }}",
    "{{ range(10**9) | list }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l | tojson }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ ns.l | string }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = ns.l | batch(1) %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = dict(l=ns.l) %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = namespace(l=ns.l) %}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}",
    "{% set s = 'x' * 8000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "{% set s = 'x' * 8000000 %}{% set l = [s] * 99999 %}{{ l }}",
    "{% set s = 'x' * 8000 %}{% set l = [s] * 99999 %}{{ l | tojson }}",
    "{% set s = 'x' * 1000000 %}{{ s | replace('x', s) }}",
    "{% set s = 'x' * 1000000 %}{{ s.split('x') | join(s) }}",
    "{% set s = '\n' * 1000000 %}{{ s | indent(1000000, true, true) }}",
    "{{ 'x' | center(10**10) }}{{ 'x'.center(10**10) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ '1'.zfill(10**10) }}",
    "{{ ('\t' * 100000).expandtabs(10**6) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>{w}}'.format('x', w=10**10) }}",
    "{{ [[1]] | tojson(indent=10**10) }}",
];

#[test]
fn a_template_is_stopped_before_it_takes_the_memory() {
    for source in BOMBS {
        let error = render_with(source, json!({})).map(|prompt| prompt.len());
        let is_limit = matches!(&error, Err(TemplateError::Limit(_)));
        // Some bounds are minijinja's own.
        assert!(is_limit || matches!(&error, Err(TemplateError::Render(_))), "{source}: {error:?}");
    }
    let error = render_with(BOMBS[0], json!({})).unwrap_err();
    assert!(error.to_string().contains("limit of a rendering: it makes a value of more than"), "{error}");
}

/// Pieces of templates; put together by chance most are wrong, and none may do more than fail.
const PIECES: [&str; 36] = [
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{%- ",
    " -%}",
    "{# ",
    " #}",
    "for x in y",
    "endfor",
    "if x",
    "else",
    "endif",
    "set x = ",
    "set ns.a = ",
    "macro m(x)",
    "endmacro",
    "m(x)",
    "loop.index",
    "loop(x)",
    "x",
    "y",
    "ns",
    "namespace(a=1)",
    " ~ ",
    " + ",
    " * ",
    " % ",
    " | tojson",
    " | join(x)",
    ".split(x)",
    "[1:]",
    "[x, y]",
    "{'a': x}",
    "9999999999",
    "'é{}%s'",
];

proptest::proptest! {
    #[test]
    fn no_template_does_more_than_fail(pieces in proptest::collection::vec(proptest::sample::select(PIECES.to_vec()), 0..40)) {
        let given = json!({"x": ["a", {"b": null}], "y": "text"});
        let _rendered = render_with(&pieces.concat(), given);
    }

    #[test]
    fn methods_of_texts_never_panic(
        text in ".{0,20}",
        argument in ".{0,3}",
        number in -25_i64..25,
        method in proptest::sample::select(vec![
            "title", "swapcase", "strip", "split", "rsplit", "splitlines", "partition", "rpartition", "find", "rfind", "count",
            "startswith", "endswith", "center", "ljust", "zfill", "expandtabs", "replace", "removeprefix", "isprintable",
        ]),
    ) {
        let given = json!({"t": text, "a": argument, "n": number});
        for arguments in ["", "a", "n", "a, n", "a, n, n", "a, a", "a, a, n", "n, a"] {
            let _rendered = render_with(&format!("{{{{ t.{method}({arguments}) }}}}"), given.clone());
        }
    }
}
