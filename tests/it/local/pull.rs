//! Models from the hub that a daemon beside the pull serves.

use std::{fs, time::Duration};

use axum::body::Bytes;
use opentelemetry_proto::tonic::metrics::v1::{Histogram, HistogramDataPoint, metric::Data};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    peer::{
        daemon::{Daemon, PATIENCE},
        hub::{Hub, MODEL, OLD_NAME, SIGNATURE},
        otlp::Otlp,
    },
    pull::{FILES, TOKEN, WEIGHTS, assert_whole, collector, model_folder, pull, pulling, text, trace, well},
};

/// Waits until the daemon lists the model; it looks at the disk once a second at most.
async fn listed(daemon: &Daemon) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let models: Value = daemon.get("/v1/models").await.json().await.unwrap();
        if models["data"].as_array().unwrap().iter().any(|model| model["id"] == MODEL) {
            return;
        }
        assert!(Instant::now() < deadline, "{models}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_pulled_model_is_served_by_the_daemon_beside_it_and_its_calls_are_one_trace() {
    let (hub, otlp) = (Hub::start().await, Otlp::start().await);
    hub.demand(TOKEN);
    // It holds the log files and the spool that the command's configuration names too.
    let mut daemon = Daemon::start(&collector(&otlp)).await;
    let mut command = pulling(daemon.folder.path(), &hub, MODEL);
    command.env("HF_TOKEN", TOKEN).env("LOG_LEVEL", "trace");
    let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let said = well(&output);
    let folder = daemon.folder.path().to_owned();
    assert_eq!(text(&output.stdout).trim_end(), model_folder(&fs::canonicalize(&folder).unwrap()).to_str().unwrap());
    assert!(
        said.contains("curl http://127.0.0.1:") && said.contains(&format!("default_model = \"{MODEL}\"")),
        "{said}"
    );
    assert_whole(&folder, &hub);

    listed(&daemon).await;
    let question = json!({
        "model": MODEL, "temperature": 0, "messages": [{ "role": "user", "content": "What is 23 + 14?" }]
    });
    let answer: Value = daemon.post("/v1/chat/completions", &question).await.json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "23 + 14 = 37.", "{answer}");
    assert!(daemon.stop().await.success());

    let (root, calls) = trace(&otlp);
    let weights = hub.file(WEIGHTS).len() as i64;
    let bytes: i64 = FILES.iter().map(|name| hub.file(name).len() as i64).sum();
    assert_eq!((root.span.name.as_str(), root.service.as_str(), root.span.kind), ("pull acme/tiny", "mlx-manager", 1));
    assert_eq!(root.text("target").unwrap(), "mlx_manager::manager::models");
    assert_eq!(root.text("logfire.msg").unwrap(), "pull acme/tiny");
    assert_eq!(root.text("mlx_manager.model.repository").unwrap(), MODEL);
    assert_eq!(root.text("mlx_manager.model.revision").unwrap(), "main");
    assert_eq!(root.text("mlx_manager.model.commit").unwrap(), hub.commit());
    assert_eq!(root.text("mlx_manager.outcome").unwrap(), "pulled");
    assert_eq!(root.integer("mlx_manager.files"), Some(FILES.len() as i64));
    assert_eq!(root.integer("mlx_manager.bytes"), Some(bytes));
    assert_eq!(root.integer("mlx_manager.bytes_downloaded"), Some(bytes));
    assert!(root.parent_id().is_empty() && root.text("error.type").is_none());
    // The listing, each small file, the large one's redirect, and the store.
    assert_eq!(calls.len(), 1 + 5 + 2, "{calls:#?}");
    let listing = &calls[0];
    assert_eq!(listing.text("url.full").unwrap(), format!("{}/api/models/{MODEL}/revision/main", hub.endpoint()));
    assert_eq!(listing.text("http.request.method").unwrap(), "GET");
    let [redirect, store] = calls.last_chunk().unwrap();
    assert_eq!(redirect.integer("http.response.status_code"), Some(302));
    assert_eq!(redirect.integer("http.request.resend_count"), None);
    assert_eq!(store.text("url.full").unwrap(), format!("http://{}/{WEIGHTS}", hub.store));
    assert_eq!(store.text("server.address").unwrap(), "127.0.0.1");
    assert_eq!(store.integer("server.port"), Some(i64::from(hub.store.port())));
    assert_eq!(store.integer("http.response.status_code"), Some(200));
    assert_eq!(store.integer("http.request.resend_count"), Some(1));
    assert_eq!(store.integer("http.response.body.size"), Some(weights));
    assert_eq!(store.text("logfire.msg").unwrap(), format!("GET 127.0.0.1/{WEIGHTS}"));
    assert!(calls.iter().all(|call| call.text("error.type").is_none() && call.integer("logfire.level_num") == Some(9)));
    // Totals so far, the last of which are those at the end.
    let measured = otlp.metrics().into_iter().rfind(|metric| metric.name == "http.client.request.duration");
    let Some(Data::Histogram(Histogram { data_points: points, .. })) = measured.unwrap().data else {
        panic!("it is no histogram");
    };
    let of = |port: u16| {
        let has =
            |point: &&HistogramDataPoint| format!("{:?}", point.attributes).contains(&format!("IntValue({port})"));
        points.iter().filter(has).map(|point| point.count).sum::<u64>()
    };
    assert_eq!((of(hub.address.port()), of(hub.store.port())), (7, 1), "{points:?}");

    for request in hub.received() {
        let authorization = request.header("authorization").map(str::to_owned);
        assert_eq!(authorization, (!request.at_store).then(|| format!("Bearer {TOKEN}")), "{}", request.path);
        assert_eq!(request.header("traceparent"), None, "{}", request.path);
    }
    // Logs at trace, spans, records and metrics.
    let told = format!("{said} {:?} {:?} {:?}", otlp.spans(), otlp.logs(), otlp.metrics());
    assert!(said.contains("file downloaded") && format!("{:?}", otlp.logs()).contains("file downloaded"), "{said}");
    assert!(!told.contains(TOKEN) && !told.contains(SIGNATURE), "{said}");
}

#[tokio::test]
async fn a_model_that_is_there_is_left_alone_and_another_commit_takes_its_place() {
    let hub = Hub::start().await;
    let folder = TempDir::new().unwrap();
    well(&pull(folder.path(), &hub, OLD_NAME).await);
    assert!(folder.path().join("models").join(OLD_NAME).join(WEIGHTS).exists(), "by the name that was asked for");
    well(&pull(folder.path(), &hub, MODEL).await);
    let before = hub.received().len();
    let output = pull(folder.path(), &hub, &format!("{MODEL}@{}", hub.commit())).await;
    assert!(well(&output).contains("acme/tiny is already there, complete"));
    assert!(text(&output.stdout).trim_end().ends_with(MODEL));
    assert_eq!(hub.received().len() - before, 1, "only the listing");

    fs::remove_file(model_folder(folder.path()).join("tokenizer.json")).unwrap();
    assert!(well(&pull(folder.path(), &hub, MODEL).await).contains("is up to date"));
    assert_whole(folder.path(), &hub);
    let mut files = hub.files();
    files.retain(|(name, _)| name != "generation_config.json");
    files.push(("added_tokens.json".to_owned(), Bytes::from_static(b"{}")));
    hub.put(&"d1".repeat(20), files);
    let said = well(&pull(folder.path(), &hub, MODEL).await);
    assert!(said.contains("is up to date") && said.contains(&"d1".repeat(20)) && said.contains("restart"), "{said}");
    let model = model_folder(folder.path());
    assert!(model.join("added_tokens.json").exists() && !model.join("generation_config.json").exists());
}
