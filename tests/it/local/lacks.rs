//! What a local model can't do, where a route knows somebody who can.

use serde_json::{Value, json};

use super::serve::{ANSWER, question};
use crate::{
    peer::{
        daemon::Daemon,
        upstream::{Upstream, WORDS},
    },
    serve::audit_rows,
};

#[tokio::test]
async fn a_request_beyond_a_local_model_goes_to_the_next_target() {
    let upstream = Upstream::start().await;
    let mut daemon = Daemon::start(&format!(
        "[[providers]]\nname = \"up\"\nkind = \"openai\"\nbase_url = \"{}\"\n\
         [[routes]]\nmodel = \"either\"\ntargets = [\"local/demo\", \"up\"]\n\
         [[routes]]\nmodel = \"only\"\ntargets = [\"local/demo\"]\n",
        upstream.openai()
    ))
    .await;
    let ask = async |change: &dyn Fn(&mut Value)| {
        let mut body = question(false);
        body["model"] = json!("either");
        change(&mut body);
        let response = daemon.post("/v1/chat/completions", &body).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        (status, body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned(), body)
    };
    assert_eq!(ask(&|_| ()).await.1, ANSWER);
    let picture = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:," } }] }]);
    let long = json!([{ "role": "user", "content": "word ".repeat(20_000) }]);
    let beyond: [&dyn Fn(&mut Value); 4] = [
        &|body| body["n"] = json!(2),
        &|body| body["messages"] = picture.clone(),
        &|body| body["messages"] = long.clone(),
        &|body| body["a_field_of_tomorrow"] = json!(true),
    ];
    for change in beyond {
        assert_eq!(ask(change).await.1, WORDS.concat());
        let (status, _, body) = ask(&|body| {
            change(body);
            body["model"] = json!("only");
        })
        .await;
        assert_eq!(status, 400, "{body}");
    }
    assert!(daemon.stop().await.success());
    let rows = audit_rows(daemon.folder.path()).await;
    let outcomes: Vec<_> = rows.iter().map(|row| (row["provider"].clone(), row["outcome"].clone())).collect();
    let (up, local) = ((json!("up"), json!("ok")), (json!("mlx"), json!("invalid_request")));
    let pairs = (0..4).flat_map(|_| [up.clone(), local.clone()]);
    assert_eq!(outcomes, std::iter::once((json!("mlx"), json!("ok"))).chain(pairs).collect::<Vec<_>>());
}
