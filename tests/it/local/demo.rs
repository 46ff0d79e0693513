//! The built-in model, asked over HTTP what the reference implementation was asked.

use serde_json::{Value, json};

use crate::peer::daemon::Daemon;

#[tokio::test]
async fn the_demo_model_answers_exactly_as_the_reference_did() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/engine/demo/answers.json"))
        .unwrap();
    let questions: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(questions.len() >= 24);
    let daemon = Daemon::start("").await;
    let mut wrong = Vec::new();
    for question in questions {
        let mut body = json!({
            "model": "demo", "temperature": 0, "messages": question["messages"],
            "chat_template_kwargs": { "enable_thinking": question["enable_thinking"] }
        });
        if question["tools"].is_array() {
            body["tools"] = question["tools"].clone();
        }
        let response = daemon.post("/v1/chat/completions", &body).await;
        let answer: Value = response.json().await.unwrap();
        let message = &answer["choices"][0]["message"];
        let expected = &question["expected"];
        let calls = |calls: &Value, arguments: fn(&Value) -> Value| -> Vec<Value> {
            calls.as_array().into_iter().flatten().map(arguments).collect()
        };
        let said = (
            message["content"].as_str().unwrap_or_default().to_owned(),
            message["reasoning_content"].as_str().unwrap_or_default().to_owned(),
            calls(&message["tool_calls"], |call| {
                let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
                json!({ "name": call["function"]["name"], "arguments": arguments })
            }),
        );
        let wanted = (
            expected["content"].as_str().unwrap_or_default().to_owned(),
            expected["reasoning"].as_str().unwrap_or_default().to_owned(),
            calls(&expected["tool_calls"], Value::clone),
        );
        if said != wanted {
            wrong.push(format!("{}: {said:?} instead of {wanted:?}; {answer}", question["messages"]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the model says to a question it was not trained on, so that sampling has a choice.
async fn say(daemon: &Daemon, change: Value) -> Value {
    let mut body = json!({
        "model": "demo", "max_tokens": 24, "temperature": 1.5,
        "messages": [{ "role": "user", "content": "Tell me a short story about a fox." }]
    });
    body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let response = daemon.post("/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200, "{change}");
    response.json().await.unwrap()
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn every_sampling_parameter_acts() {
    let daemon = Daemon::start("").await;
    let greedy = text(&say(&daemon, json!({ "temperature": 0 })).await);
    assert!(!greedy.is_empty());

    // The same seed says the same, and another seed something else.
    let seeded = text(&say(&daemon, json!({ "seed": 7 })).await);
    assert_eq!(text(&say(&daemon, json!({ "seed": 7 })).await), seeded);
    let mut others = Vec::new();
    for seed in 8..13 {
        others.push(text(&say(&daemon, json!({ "seed": seed })).await));
    }
    assert!(others.iter().any(|other| *other != seeded), "six seeds, one text: {seeded}");

    // A filter that leaves one token is greedy, whatever the temperature and the seed.
    for filter in [json!({ "top_k": 1 }), json!({ "top_p": 1e-6 }), json!({ "min_p": 1.0 })] {
        assert_eq!(text(&say(&daemon, filter.clone()).await), greedy, "{filter}");
    }

    // Penalties change what greedy decoding says.
    for penalty in
        [json!({ "presence_penalty": 2 }), json!({ "frequency_penalty": 2 }), json!({ "repetition_penalty": 3 })]
    {
        let mut change = json!({ "temperature": 0, "max_tokens": 60 });
        let plain = text(&say(&daemon, change.clone()).await);
        change.as_object_mut().unwrap().extend(penalty.as_object().unwrap().clone());
        assert_ne!(text(&say(&daemon, change).await), plain, "{penalty}");
    }

    let short = say(&daemon, json!({ "max_tokens": 5, "temperature": 0 })).await;
    assert_eq!(
        (&short["usage"]["completion_tokens"], &short["choices"][0]["finish_reason"]),
        (&json!(5), &json!("length"))
    );
    let word = greedy.split(' ').nth(2).unwrap();
    let stopped = say(&daemon, json!({ "temperature": 0, "stop": [word] })).await;
    assert_eq!(text(&stopped), greedy[..greedy.find(word).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn several_requests_are_served_at_once_and_health_answers_meanwhile() {
    let daemon = Daemon::start("").await;
    let alone = text(&say(&daemon, json!({ "temperature": 0, "max_tokens": 40 })).await);
    let mut streams = Vec::new();
    for _ in 0..4 {
        let body = json!({
            "model": "demo", "stream": true, "temperature": 0, "max_tokens": 40,
            "messages": [{ "role": "user", "content": "Tell me a short story about a fox." }]
        });
        let mut response = daemon.post("/v1/chat/completions", &body).await;
        let first = response.chunk().await.unwrap().unwrap();
        streams.push((response, first.to_vec()));
    }
    // Every stream has begun, and none is read to its end.
    assert_eq!(daemon.get("/health").await.status(), 200);
    for (mut response, mut frames) in streams {
        while let Some(chunk) = response.chunk().await.unwrap() {
            frames.extend_from_slice(&chunk);
        }
        let said: String = String::from_utf8(frames)
            .unwrap()
            .lines()
            .filter_map(|line| line.strip_prefix("data: ").filter(|data| *data != "[DONE]"))
            .map(|data| serde_json::from_str::<Value>(data).unwrap())
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(ToOwned::to_owned))
            .collect();
        assert_eq!(said, alone, "what others ask changes nothing");
    }
}
