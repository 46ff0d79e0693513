use proptest::prelude::*;

use super::*;

fn options(reasoning: bool, begins_in_reasoning: bool, tools: bool) -> ParserOptions {
    ParserOptions {
        reasoning: reasoning.then(|| ReasoningFormat::of_template("<think>")).flatten(),
        begins: if begins_in_reasoning { Beginning::Reasoning } else { Beginning::Start },
        tools: tools.then_some(ToolFormat::Hermes),
        functions: vec!["f".to_owned(), "g".to_owned()],
        special: Vec::new(),
    }
}

/// All that is told, neighbours of a kind as one.
fn told(options: &ParserOptions, pieces: &[&str], cut: bool) -> Vec<Piece> {
    let mut parser = Parser::new(options);
    let mut found: Vec<Piece> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    found.extend(parser.finish(cut));
    let mut joined = Vec::new();
    for piece in found {
        match (piece, joined.last_mut()) {
            (Piece::Text(text), _) => add_text(&mut joined, &text),
            (Piece::Reasoning(text), _) => add_reasoning(&mut joined, &text),
            (Piece::Arguments(text), Some(Piece::Arguments(last))) => last.push_str(&text),
            (piece, _) => joined.push(piece),
        }
    }
    joined
}

/// What it comes to: calls that were dropped are none.
fn settled(told: Vec<Piece>) -> Vec<Piece> {
    let mut settled = Vec::new();
    for piece in told {
        match piece {
            Piece::CallDropped => {
                let call = settled.iter().rposition(|piece| matches!(piece, Piece::Call(_))).unwrap();
                settled.truncate(call);
            }
            Piece::Text(text) => add_text(&mut settled, &text),
            Piece::Reasoning(text) => add_reasoning(&mut settled, &text),
            piece => settled.push(piece),
        }
    }
    settled
}

fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

fn thought(text: &str) -> Piece {
    Piece::Reasoning(text.to_owned())
}

fn call(name: &str, arguments: &str) -> [Piece; 3] {
    [Piece::Call(name.to_owned()), Piece::Arguments(arguments.to_owned()), Piece::CallEnd]
}

/// The whole text, and the same text byte by byte as far as its characters allow.
fn check(options: &ParserOptions, input: &str, expected: &[Piece]) {
    assert_eq!(settled(told(options, &[input], false)), expected, "{input:?} in one piece");
    let characters: Vec<String> = input.chars().map(String::from).collect();
    let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
    assert_eq!(settled(told(options, &characters, false)), expected, "{input:?} in single characters");
}

/// One call of `f` with these arguments, as it is written and as it is told.
fn check_arguments(written: &str, expected: &str) {
    let input = format!("<tool_call>{{\"name\": \"f\", \"arguments\": {written}}}</tool_call>");
    check(&options(false, false, true), &input, &call("f", expected));
}

#[test]
fn reasoning_is_told_from_the_answer() {
    let plain = options(true, false, false);
    check(&plain, "<think>\nI see.\n</think>\n\nYes.", &[thought("I see."), text("Yes.")]);
    check(&plain, "  Yes, <think> is a tag.", &[text("  Yes, <think> is a tag.")]);
    check(&plain, "<thin", &[text("<thin")]);
    check(&plain, "<think>\nnever closed </thin", &[thought("never closed </thin")]);
    check(&plain, "<think></think>Yes.", &[text("Yes.")]);
    check(&plain, "<think>a</think>\n<think>b</think>c", &[thought("ab"), text("c")]);
    check(&plain, "<think>a <think> b</think>c</think>", &[thought("a <think> b"), text("c</think>")]);
    let open = options(true, true, false);
    check(&open, "\nI see.\n</think>\n\nYes.", &[thought("I see."), text("Yes.")]);
    check(&open, "<think>\nI see.</think>Yes.", &[thought("I see."), text("Yes.")]);
    check(&open, "\n</think>\n\nYes.", &[text("Yes.")]);
    check(&options(false, false, false), "<think>a</think>b", &[text("<think>a</think>b")]);
}

#[test]
fn calls_are_told_from_text() {
    let tools = options(true, false, true);
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}\n</tool_call>";
    let two = format!("Let me see. \n{one}\n{one}\n Done. ");
    let f = call("f", r#"{"a": [1, "}"]}"#);
    check(&tools, one, &f);
    check(&tools, &two, &[&[text("Let me see.")], &f[..], &f, &[text("Done. ")]].concat());
    check(&tools, &format!("<think>x</think>\n\n{one}"), &[&[thought("x")], &f[..]].concat());
    check(&options(true, false, false), one, &[text(one)]);
}

#[test]
fn calls_are_read_leniently_where_the_meaning_is_sure() {
    let tools = options(false, false, true);
    let string = r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#;
    check(&tools, string, &call("f", r#"{"a": 1}"#));
    check(&tools, r#"<tool_call>{"name": "f"}</tool_call>"#, &call("f", "{}"));
    check(&tools, r#"<tool_call>{"parameters": {"a": 1}, "name": "f"}</tool_call>"#, &call("f", r#"{"a": 1}"#));
    let inside = r#"<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>!"#;
    check(&tools, inside, &[&call("f", r#"{"a": "</tool_call>"}"#)[..], &[text("!")]].concat());
    let row = "<tool_call>{\"name\": \"f\"}\n{\"name\": \"g\"}</tool_call>";
    check(&tools, row, &[call("f", "{}"), call("g", "{}")].concat());
}

#[test]
fn a_call_that_ends_with_the_turn_is_closed() {
    let tools = options(false, false, true);
    for end in ["}}</tool_call>", "}}", "}", "", "}}}</tool_call>", "}}</tool_", "}</tool_call>", "</tool_call>"] {
        let input = format!(r#"<tool_call>{{"name": "f", "arguments": {{"a": [1]{end}"#);
        check(&tools, &input, &call("f", r#"{"a": [1]}"#));
    }
}

#[test]
fn forgotten_escapes_are_written() {
    for (written, expected) in [
        ("{\"a\": \"1\n2\r\n\t3\u{1}\"}", r#"{"a": "1\n2\r\n\t3\u0001"}"#),
        (r#"{"a": "\d+\s\(x\)"}"#, r#"{"a": "\\d+\\s\\(x\\)"}"#),
        (r#"{"a": "\u12", "b": "\uzz\x"}"#, r#"{"a": "\\u12", "b": "\\uzz\\x"}"#),
        ("{\"a\": \"ls \\\n -l\"}", r#"{"a": "ls \\\n -l"}"#),
        (
            r#"{"a": "\ud83e\udd89 \ud83e \udd89 \ud83e\n\ud83e\ud83e\udd89"}"#,
            r#"{"a": "\ud83e\udd89 \ufffd \ufffd \ufffd\n\ufffd\ud83e\udd89"}"#,
        ),
        (r#"{"a": "1\n\"2\"\\"}"#, r#"{"a": "1\n\"2\"\\"}"#),
    ] {
        check_arguments(written, expected);
        serde_json::from_str::<serde_json::Value>(expected).unwrap();
    }
}

#[test]
fn pythons_and_javascripts_forms_are_read() {
    for (written, expected) in [
        (
            "{'a': 'it\\'s \"so\"', 'b': True, 'c': [None, False]}",
            r#"{"a": "it's \"so\"", "b": true, "c": [null, false]}"#,
        ),
        (r#"{"a": [1, 2, ], "b": {"c": 1,},}"#, r#"{"a": [1, 2 ], "b": {"c": 1}}"#),
        (r#"{a: 1, b_c: "x"}"#, r#"{"a": 1, "b_c": "x"}"#),
        (r#""{'a': 1}""#, r#"{"a": 1}"#),
        (
            r#"{"n": -1.5e+300, "m": 123456789012345678901234567890}"#,
            r#"{"n": -1.5e+300, "m": 123456789012345678901234567890}"#,
        ),
    ] {
        check_arguments(written, expected);
        serde_json::from_str::<serde_json::Value>(expected).unwrap();
    }
    let input = "<tool_call>{'name': 'f', 'arguments': {'a': 1}}</tool_call>";
    check(&options(false, false, true), input, &call("f", r#"{"a": 1}"#));
}

#[test]
fn a_call_within_an_open_thought_is_a_call() {
    let f = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    let expected = [&[thought("I need f.")], &call("f", r#"{"a": 1}"#)[..]].concat();
    let (plain, open) = (options(true, false, true), options(true, true, true));
    for end in ["", "\n", "\n</think>", "</think>\n\n"] {
        check(&plain, &format!("<think>\nI need f.\n{f}{end}"), &expected);
        check(&open, &format!("I need f.\n{f}{end}"), &expected);
    }
    check(&open, &format!("{f}</think>Done."), &[&call("f", r#"{"a": 1}"#)[..], &[text("Done.")]].concat());
    // What is only spoken of is a thought: the tag, a pattern, a function that isn't there, a call without tools.
    for said in [
        "The tag <tool_call> is known.",
        "<tool_call>{\"name\": <name>}</tool_call> it is",
        "<tool_call>\n{\"name\": \"h\", \"arguments\": {\"a\": 1}}\n</tool_call> like so",
    ] {
        check(&open, &format!("{said}</think>Yes."), &[thought(said), text("Yes.")]);
    }
    check(&options(true, true, false), &format!("{f}</think>Yes."), &[thought(f), text("Yes.")]);
}

#[test]
fn arguments_are_told_as_they_come() {
    let mut parser = Parser::new(&options(false, false, true));
    let mut told = |text: &str| parser.push(text);
    assert_eq!(told("<tool_call>{\"name\": \"f\", "), Vec::new());
    assert_eq!(told("\"arguments\": {"), [Piece::Call("f".into()), Piece::Arguments("{".into())]);
    assert_eq!(told("\"a\": \"long"), [Piece::Arguments("\"a\": \"long".into())]);
    // A number may go on, and a comma may be one too many.
    assert_eq!(told("\", \"b\": 1"), [Piece::Arguments("\", \"b\": ".into())]);
    assert_eq!(told(", "), [Piece::Arguments("1".into())]);
    assert_eq!(told("}"), [Piece::Arguments(" }".into())]);
    assert_eq!(told("}\n"), Vec::new());
    assert_eq!(told("</tool_call>"), [Piece::CallEnd]);
}

#[test]
fn what_was_told_of_a_call_that_is_none_is_dropped_and_its_text_told() {
    let tools = options(false, false, true);
    let input = "See: <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": @}}</tool_call>";
    let expected = [text("See:"), Piece::Call("f".into()), Piece::Arguments("{\"a\": ".into()), Piece::CallDropped];
    let found = told(&tools, &[input], false);
    assert_eq!(found[..4], expected);
    assert_eq!(settled(found), [text(input)]);
    // So it is with a call that was cut off.
    let half = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1]";
    assert_eq!(settled(told(&tools, &[half], true)), [text(half)]);
    assert_eq!(settled(told(&tools, &[&format!("{half}}}}}")], true)), call("f", r#"{"a": [1]}"#));
}

#[test]
fn markers_that_are_special_tokens_count_only_as_such() {
    let special = ParserOptions {
        special: vec!["<think>", "</think>", "<tool_call>", "</tool_call>"],
        ..options(true, false, true)
    };
    let body = "{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}";
    let token = |marker: &str| format!("{SPECIAL}{marker}");
    let (think, end_think) = (token("<think>"), token("</think>"));
    let (open, close) = (token("<tool_call>"), token("</tool_call>"));
    let f = call("f", "{\"a\": \"</tool_call>\"}");
    let read = |pieces: &[&str]| settled(told(&special, pieces, false));
    let expected = [&[thought("I </think>.")], &f[..]].concat();
    assert_eq!(read(&[&think, "I </think>.", &end_think, "\n", &open, body, &close]), expected);
    let spelled = "<think>a</think><tool_call>{\"name\": \"f\"}</tool_call>";
    assert_eq!(read(&[spelled]), [text(spelled)]);
    // A string that isn't closed ends where the token says so.
    let open_string = "{\"name\": \"f\", \"arguments\": {\"a\": \"x";
    let shown = format!("<tool_call>{open_string}</tool_call> on");
    assert_eq!(read(&[&open, open_string, &close, " on"]), [text(&shown)]);
    assert_eq!(read(&["a ", &end_think, &think, " b"]), [text("a </think><think> b")]);
}

#[test]
fn an_answer_that_goes_on_opens_no_reasoning() {
    let given = ParserOptions { begins: Beginning::Answer, ..options(true, false, true) };
    check(&given, "<think> is a tag</think>", &[text("<think> is a tag</think>")]);
}

#[test]
fn what_is_no_call_stays_text() {
    let tools = options(false, false, true);
    for input in [
        "<tool_call>name\": \"f\", \"arguments\": {}}\n</tool_call> and on",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"x}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1,</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\":",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": say \"x\"}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"say \"x\" so\"}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 01}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": NaN}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\" 1}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {}} and more</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": true}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"name\": \"g\"}</tool_call>",
        "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>",
        "<tool_call>[\"f\", {\"a\": 1}]</tool_call>",
        "<tool_call>[{\"name\": \"f\"}]</tool_call>",
        "<tool_call>7</tool_call>",
        "Write  <tool_call> and\n </tool_call>, so.",
        "<tool_call></tool_call>",
        "<tool_call>",
        "a </tool_call> b ",
        "<tool_cal",
    ] {
        check(&tools, input, &[text(input)]);
    }
}

#[test]
fn templates_tell_their_formats() {
    assert_eq!(ToolFormat::of_template("{% if tools %}<tool_call>{% endif %}"), Some(ToolFormat::Hermes));
    assert_eq!(ToolFormat::of_template("{% if tools %}<tool_call><function=f>{% endif %}"), None);
    assert_eq!(ToolFormat::of_template("{% if tools %}[TOOL_CALLS]{% endif %}"), None);
    let format = ReasoningFormat::of_template("x <think> y").unwrap();
    assert!(format.is_open_after("<|im_start|>assistant\n<think>\n"));
    assert!(!format.is_open_after("<think>\n\n</think>\n\n"));
    assert_eq!(ReasoningFormat::of_template("nothing"), None);
}

proptest! {
    #[test]
    fn any_cut_gives_the_same(
        parts in prop::collection::vec(prop::sample::select(vec![
            "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": {\"a\": \"é\"}}",
            "{\"name\": \"g\", \"arguments\": {", "'b': [1, None,", "\"c\": \"", "]", ",", "\\u", "d83e",
            "{", "}", "\"", "\\", " ", "\n", "text", "<", "</", "é",
        ]), 0..14),
        cuts in prop::collection::vec(0usize..200, 0..12),
        begins_in_reasoning: bool,
        tools: bool,
        cut_off: bool,
    ) {
        let input = parts.concat();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| input.is_char_boundary(cut)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &input[cut[0]..cut[1]]).collect();
        let options = options(true, begins_in_reasoning, tools);
        let whole = told(&options, &[&input], cut_off);
        prop_assert_eq!(&told(&options, &pieces, cut_off), &whole);
        let mut arguments = String::new();
        for piece in settled(whole) {
            match piece {
                Piece::Call(_) => arguments.clear(),
                Piece::Arguments(more) => arguments.push_str(&more),
                Piece::CallEnd => prop_assert!(serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&arguments).is_ok(), "{}", arguments),
                _ => {}
            }
        }
    }
}
