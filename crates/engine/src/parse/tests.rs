use proptest::prelude::*;

use super::*;

fn options(reasoning: bool, begins_in_reasoning: bool, tools: bool) -> ParserOptions {
    ParserOptions {
        reasoning: reasoning.then(|| ReasoningFormat::of_template("<think>")).flatten(),
        begins_in_reasoning,
        tools: tools.then_some(ToolFormat::Hermes),
    }
}

fn read(options: &ParserOptions, pieces: &[&str]) -> Vec<Piece> {
    let mut parser = Parser::new(options);
    let mut found: Vec<Piece> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    found.extend(parser.finish());
    let mut joined = Vec::new();
    for piece in found {
        match piece {
            Piece::Text(text) => add_text(&mut joined, &text),
            Piece::Reasoning(text) => add_reasoning(&mut joined, &text),
            call @ Piece::ToolCall(_) => joined.push(call),
        }
    }
    joined
}

fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

fn thought(text: &str) -> Piece {
    Piece::Reasoning(text.to_owned())
}

fn call(name: &str, arguments: &str) -> Piece {
    Piece::ToolCall(ParsedCall { name: name.to_owned(), arguments: arguments.to_owned() })
}

/// The whole text, and the same text byte by byte as far as its characters allow.
fn check(options: &ParserOptions, input: &str, expected: &[Piece]) {
    assert_eq!(read(options, &[input]), expected, "{input:?} in one piece");
    let characters: Vec<String> = input.chars().map(String::from).collect();
    let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
    assert_eq!(read(options, &characters), expected, "{input:?} in single characters");
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
    check(&tools, one, std::slice::from_ref(&f));
    check(&tools, &two, &[text("Let me see."), f.clone(), f.clone(), text("Done. ")]);
    check(&tools, &format!("<think>x</think>\n\n{one}"), &[thought("x"), f]);
    check(&options(true, false, false), one, &[text(one)]);
}

#[test]
fn calls_are_read_leniently_where_the_meaning_is_sure() {
    let tools = options(false, false, true);
    let string = r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#;
    check(&tools, string, &[call("f", r#"{"a": 1}"#)]);
    check(&tools, r#"<tool_call>{"name": "f"}</tool_call>"#, &[call("f", "{}")]);
    check(&tools, r#"<tool_call>{"name": "f", "arguments": {"a": 1}}"#, &[call("f", r#"{"a": 1}"#)]);
    let inside = r#"<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>!"#;
    check(&tools, inside, &[call("f", r#"{"a": "</tool_call>"}"#), text("!")]);
    let row = "<tool_call>{\"name\": \"f\"}\n{\"name\": \"g\"}</tool_call>";
    check(&tools, row, &[call("f", "{}"), call("g", "{}")]);
}

#[test]
fn what_is_no_call_stays_text() {
    let tools = options(false, false, true);
    for input in [
        "<tool_call>name\": \"f\", \"arguments\": {}}\n</tool_call> and on",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
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
            "{", "}", "\"", "\\", " ", "\n", "text", "<", "</", "é",
        ]), 0..14),
        cuts in prop::collection::vec(0usize..200, 0..12),
        begins_in_reasoning: bool,
        tools: bool,
    ) {
        let input = parts.concat();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| input.is_char_boundary(cut)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &input[cut[0]..cut[1]]).collect();
        let options = options(true, begins_in_reasoning, tools);
        prop_assert_eq!(read(&options, &pieces), read(&options, &[&input]));
    }
}
