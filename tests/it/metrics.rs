//! What a scrape reads after callers did their worst.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::peer::{
    daemon::{Daemon, sum},
    upstream::{Reply, Upstream},
};

const NAMES: usize = 10_000;
/// Names that may become labels because they answered.
const LEARNED: usize = 100;

/// A name that no two requests share, and that would break a page which doesn't escape.
fn hostile_name(number: usize) -> String {
    match number % 5 {
        0 => format!("gpt-{number}"),
        1 => format!("model\"}} 1\nevil_total{{n=\"{number}"),
        2 => format!("\\{number}\\\u{1b}[31m\u{2028}"),
        3 => format!("{number}{}", "x".repeat(250)),
        _ => format!("模型-{number}"),
    }
}

/// The values of a label on a page whose lines are whole.
fn values(page: &str, label: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| Some(line.split_once(&format!("{label}=\""))?.1))
        .map(|rest| {
            let end = rest.match_indices('"').find(|(at, _)| !rest[..*at].ends_with('\\')).expect("a value ends").0;
            rest[..end].to_owned()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_hostile_model_names_are_a_hundred_labels() {
    let upstream = Upstream::start().await;
    // Every other request fails: a name that never answered is no label at all.
    let refused = || Reply::Status(404, Vec::new(), r#"{"error":{"message":"no such model"}}"#.to_owned());
    upstream.script((0..NAMES).map(|number| if number % 2 == 0 { Reply::Well } else { refused() }));
    let config = format!(
        r#"
[local]
default_model = ""

[[providers]]
name = "up"
kind = "openai"
base_url = "{}"

[[routes]]
model = "*"
targets = ["up"]
"#,
        upstream.openai()
    );
    let daemon = Daemon::start(&config).await;
    let before = daemon.scrape().await;
    stream::iter(0..NAMES)
        .for_each_concurrent(16, |number| {
            let body = json!({"model": hostile_name(number), "messages": [{"role": "user", "content": "hi"}]});
            let daemon = &daemon;
            async move {
                let response = daemon.post("/v1/chat/completions", &body).await;
                let status = response.status();
                let said = response.text().await.unwrap();
                assert!(status == 200 || status == 404, "{status}: {said}");
            }
        })
        .await;
    let page = daemon.scrape().await;
    let total = |labels: &[(&str, &str)]| sum(&page, "mlx_manager_requests_total", labels);
    assert_eq!(total(&[]), NAMES as f64, "each is counted");
    assert_eq!(total(&[("outcome", "ok")]), NAMES as f64 / 2.0);
    for label in ["model", "gen_ai_request_model"] {
        let known = values(&before, label);
        let new = values(&page, label).difference(&known).count();
        assert!(new <= LEARNED && new > 0, "{new} new values of {label}");
        assert!(values(&page, label).iter().all(|name| name.len() < 200), "a name is longer than a label may be");
    }
    assert!(total(&[("model", "_other")]) >= (NAMES - LEARNED * 2) as f64 / 2.0, "the rest is not lost");
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(!line.starts_with("evil"), "a name wrote a line of its own");
        line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok()).expect(line);
    }
    // 100 names on each metric with a model, the histograms' buckets among them.
    assert!(page.len() < before.len() + 4_000_000, "the page grew from {} to {}", before.len(), page.len());
    let dropped = sum(&page, "mlx_manager_metric_series_dropped_total", &[]);
    assert_eq!(dropped, 0.0, "names are turned away long before the cap on series");
}
