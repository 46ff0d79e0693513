//! `models pull`: the real command between a simulated hub and a real OTLP receiver, beside a daemon that then serves it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use axum::body::Bytes;
use opentelemetry_proto::tonic::metrics::v1::{Histogram, HistogramDataPoint, metric::Data};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::peer::{
    daemon::{Daemon, PATIENCE, command},
    hub::{Hub, LISTING, MODEL, OLD_NAME, Reply, SIGNATURE, sibling},
    otlp::{Otlp, ReceivedSpan, names},
};

const TOKEN: &str = "hf_aVeryPrivateTokenOfSomebody";
const WEIGHTS: &str = "model.safetensors";
const FILES: [&str; 6] = [
    "config.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    WEIGHTS,
];

fn pulling(folder: &Path, hub: &Hub, model: &str) -> tokio::process::Command {
    let mut command = command(folder);
    command.args(["models", "pull", model]).env("HF_ENDPOINT", hub.endpoint());
    // A machine that is busy with other things is no broken connection.
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "600");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn pull(folder: &Path, hub: &Hub, model: &str) -> Output {
    timeout(PATIENCE, pulling(folder, hub, model).output()).await.unwrap().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asserts that it went well, and gives what it said.
fn well(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

fn failed(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), ""), "{said}");
    said
}

fn model_folder(folder: &Path) -> PathBuf {
    folder.join("models").join(MODEL)
}

fn partial(folder: &Path, hub: &Hub, name: &str) -> PathBuf {
    folder.join("models/.partial").join(MODEL.replace('/', "--")).join(hub.commit()).join(name)
}

fn assert_whole(folder: &Path, hub: &Hub) {
    for name in FILES {
        assert!(fs::read(model_folder(folder).join(name)).unwrap() == hub.file(name), "{name}");
    }
    let mut found: Vec<_> = fs::read_dir(model_folder(folder)).unwrap().map(|file| file.unwrap().file_name()).collect();
    found.retain(|name| name != ".pulled.json");
    assert_eq!(found.len(), FILES.len(), "{found:?}");
    assert!(!folder.join("models/.partial").join(MODEL.replace('/', "--")).exists(), "nothing is left over");
}

fn collector(otlp: &Otlp) -> String {
    format!(
        "[[otlp]]\nname = \"collector\"\nkind = \"otlp\"\nendpoint = \"{}\"\nspool = {{ dir = \"spool\", size = \"1 MB\" }}\n",
        otlp.endpoint()
    )
}

/// A folder with a configuration that exports.
fn exporting(otlp: &Otlp) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.toml"), collector(otlp)).unwrap();
    folder
}

/// The pull's span and those of its calls, in order.
fn trace(otlp: &Otlp) -> (ReceivedSpan, Vec<ReceivedSpan>) {
    let spans = otlp.spans();
    let root =
        spans.iter().find(|span| span.span.name.starts_with("pull ")).unwrap_or_else(|| panic!("{:?}", names(&spans)));
    let mut calls: Vec<_> = spans.iter().filter(|span| span.span.name == "GET").cloned().collect();
    calls.sort_by_key(|span| span.span.start_time_unix_nano);
    for call in &calls {
        assert_eq!((call.trace_id(), call.parent_id()), (root.trace_id(), root.id()));
        assert_eq!((call.service.as_str(), call.span.kind), ("mlx-manager", 3));
    }
    (root.clone(), calls)
}

fn calls_for(calls: &[ReceivedSpan], file: &str) -> Vec<(Option<i64>, Option<i64>, Option<String>)> {
    let end = format!("/{file}");
    let calls = calls.iter().filter(|call| call.text("url.path").unwrap().ends_with(&end));
    calls
        .map(|call| {
            let resend = call.integer("http.request.resend_count");
            (call.integer("http.response.status_code"), resend, call.text("error.type"))
        })
        .collect()
}

fn ranges(hub: &Hub, file: &str) -> Vec<Option<String>> {
    let at_store = hub.received().into_iter().filter(|request| request.at_store && request.path.ends_with(file));
    at_store.map(|request| request.header("range").map(str::to_owned)).collect()
}

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
async fn a_connection_that_breaks_costs_no_byte_and_is_a_failure_of_its_attempt_alone() {
    let (hub, otlp) = (Hub::start().await, Otlp::start().await);
    let folder = exporting(&otlp);
    hub.script(LISTING, [Reply::Status(429, vec![("retry-after", "1".into())])]);
    hub.script("tokenizer.json", [Reply::Status(503, vec![])]);
    let expired = Reply::Status(403, vec![]);
    hub.script(WEIGHTS, [Reply::Cut(100_000), Reply::Cut(200_000), expired, Reply::Whole]);
    let said = well(&pull(folder.path(), &hub, MODEL).await);
    assert_whole(folder.path(), &hub);
    let ranges = ranges(&hub, WEIGHTS);
    let at = |bytes: u32| Some(format!("bytes={bytes}-"));
    assert_eq!(ranges, [None, at(100_000), at(300_000), at(300_000)]);
    let (root, calls) = trace(&otlp);
    let status = |status: u16| Some(status.to_string());
    assert_eq!(root.text("error.type"), None);
    assert_eq!(calls_for(&calls, "main"), [(Some(429), None, status(429)), (Some(200), Some(1), None)]);
    assert_eq!(calls_for(&calls, "tokenizer.json"), [(Some(503), None, status(503)), (Some(200), Some(1), None)]);
    assert_eq!(
        calls_for(&calls, WEIGHTS),
        [
            (Some(302), None, None),
            (Some(200), Some(1), Some("body".to_owned())),
            (Some(302), Some(2), None),
            (Some(206), Some(3), Some("body".to_owned())),
            (Some(302), Some(4), None),
            (Some(403), Some(5), status(403)),
            (Some(302), Some(6), None),
            (Some(200), Some(7), None),
        ]
    );
    for reason in ["rate_limited", "server_error", "body", "expired"] {
        assert!(said.contains(&format!("reason={reason}")), "{reason}: {said}");
    }
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_broken() {
    let (hub, otlp) = (Hub::start().await, Otlp::start().await);
    let folder = exporting(&otlp);
    hub.script(WEIGHTS, [Reply::Hang(200_000)]);
    let mut command = pulling(folder.path(), &hub, MODEL);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "3");
    well(&timeout(PATIENCE, command.output()).await.unwrap().unwrap());
    assert_whole(folder.path(), &hub);
    let (_, calls) = trace(&otlp);
    let silent = (Some(200), Some(1), Some("timeout".to_owned()));
    assert!(calls_for(&calls, WEIGHTS).contains(&silent), "{calls:#?}");
    assert!(ranges(&hub, WEIGHTS).contains(&Some("bytes=200000-".to_owned())));
}

#[tokio::test]
async fn an_interrupted_pull_goes_on_in_the_next_process_and_is_no_model_meanwhile() {
    let (hub, otlp) = (Hub::start().await, Otlp::start().await);
    let folder = exporting(&otlp);
    hub.script(WEIGHTS, [Reply::Hang(123_456)]);
    let first = pulling(folder.path(), &hub, MODEL).spawn().unwrap();
    let path = partial(folder.path(), &hub, WEIGHTS);
    let deadline = Instant::now() + PATIENCE;
    while fs::metadata(&path).map_or(0, |metadata| metadata.len()) < 123_456 {
        assert!(Instant::now() < deadline, "the first bytes don't arrive");
        sleep(Duration::from_millis(20)).await;
    }
    let list = self::command(folder.path()).args(["models", "list"]).output().await.unwrap();
    assert!(!well_said(&list).contains("tiny"));
    let second = failed(&pull(folder.path(), &hub, MODEL).await, 1);
    assert!(second.contains("another process is pulling acme/tiny") && second.contains("wait for it"), "{second}");

    let kill = std::process::Command::new("kill").args(["-INT", &first.id().unwrap().to_string()]).status().unwrap();
    assert!(kill.success());
    let said = failed(&timeout(PATIENCE, first.wait_with_output()).await.unwrap().unwrap(), 1);
    assert!(said.contains("interrupted; the same command goes on"), "{said}");
    let interrupted = |span: &ReceivedSpan| span.text("mlx_manager.outcome").as_deref() == Some("interrupted");
    let root = otlp.span(interrupted).await;
    assert_eq!(root.text("error.type"), None);
    let unfinished = otlp
        .spans()
        .into_iter()
        .find(|span| span.parent_id() == root.id() && span.integer("server.port") == Some(i64::from(hub.store.port())));
    assert_eq!(unfinished.unwrap().integer("http.response.body.size"), Some(123_456));

    // The small files are there already.
    let before = hub.received().len();
    well(&pull(folder.path(), &hub, MODEL).await);
    assert_eq!(hub.received().len() - before, 3, "the listing, the redirect and the rest");
    assert_eq!(ranges(&hub, WEIGHTS), [None, Some("bytes=123456-".to_owned())]);
    assert_whole(folder.path(), &hub);
}

fn well_said(output: &Output) -> String {
    well(output);
    text(&output.stdout)
}

#[tokio::test]
async fn a_damaged_file_is_fetched_once_more_and_never_kept() {
    let hub = Hub::start().await;
    let folder = TempDir::new().unwrap();
    hub.script(WEIGHTS, [Reply::Damaged, Reply::Damaged]);
    let said = failed(&pull(folder.path(), &hub, MODEL).await, 1);
    assert!(said.contains("model.safetensors arrived damaged, twice"), "{said}");
    assert!(!model_folder(folder.path()).exists());
    hub.script(WEIGHTS, [Reply::Damaged]);
    well(&pull(folder.path(), &hub, MODEL).await);
    assert_whole(folder.path(), &hub);
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

#[tokio::test]
async fn what_cannot_be_pulled_says_what_to_do_and_writes_nothing() {
    let hub = Hub::start().await;
    let folder = TempDir::new().unwrap();
    for (model, code, expected) in [
        ("../../etc", 2, "ORG/NAME"),
        ("acme/..", 2, "ORG/NAME"),
        ("acme/tiny@", 2, "a branch, a tag or a commit"),
        ("acme/missing", 1, "the hub has no model acme/missing; check the name"),
        ("acme/tiny@v9", 1, "acme/tiny has no revision \"v9\"; leave out the @"),
    ] {
        let said = failed(&pull(folder.path(), &hub, model).await, code);
        assert!(said.contains(expected), "{model}: {said}");
    }
    for (variable, value, expected) in [
        ("HF_ENDPOINT", "huggingface.co", "HF_ENDPOINT \"huggingface.co\""),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "\"soon\""),
    ] {
        let output = pulling(folder.path(), &hub, MODEL).env(variable, value).output().await.unwrap();
        assert!(failed(&output, 2).contains(expected), "{variable}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    TaskTracker::new().spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let away = pulling(folder.path(), &hub, MODEL).env("HF_ENDPOINT", nobody).output().await.unwrap();
    let said = failed(&away, 1);
    assert!(said.contains("127.0.0.1 can't be reached") && said.contains("check the network"), "{said}");
    assert!(!folder.path().join("models").exists(), "nothing is written for a model that isn't there");

    let evil = [
        ("../../../evil.json", "names a file \"../../../evil.json\""),
        ("/tmp/evil.json", "names a file"),
        ("a\\evil.json", "names a file"),
    ];
    for (name, expected) in evil {
        hub.list(name, sibling(name, b"{}"));
        let said = failed(&pull(folder.path(), &hub, MODEL).await, 1);
        assert!(said.contains(expected), "{name}: {said}");
        hub.list(name, Value::Null);
    }
    let mut huge = sibling("model-2.safetensors", b"");
    huge["lfs"]["size"] = json!(1_u64 << 60);
    hub.list("model-2.safetensors", huge);
    let said = failed(&pull(folder.path(), &hub, MODEL).await, 1);
    assert!(said.contains("EiB more and has") && said.contains("free space"), "{said}");
    hub.list("model-2.safetensors", Value::Null);

    hub.list(WEIGHTS, Value::Null);
    let said = failed(&pull(folder.path(), &hub, MODEL).await, 1);
    assert!(said.contains("no model*.safetensors, only *.gguf; look for a conversion to MLX"), "{said}");
    hub.list(WEIGHTS, sibling(WEIGHTS, &hub.file(WEIGHTS)));

    let other = hub.files().into_iter().map(|(name, content)| match name.as_str() {
        "config.json" => (name, Bytes::from_static(br#"{"model_type": "mamba"}"#)),
        _ => (name, content),
    });
    hub.put(&"ab".repeat(20), other.collect());
    let said = failed(&pull(folder.path(), &hub, MODEL).await, 1);
    assert!(said.contains("\"mamba\", and the engine computes llama"), "{said}");
    assert!(hub.received().iter().all(|request| !request.at_store), "no weights were asked for");

    fs::create_dir_all(model_folder(folder.path())).unwrap();
    let said = failed(&pull(folder.path(), &hub, MODEL).await, 1);
    assert!(said.contains("is in the way") && said.contains("move it away"), "{said}");

    hub.demand(TOKEN);
    let said = failed(&pull(folder.path(), &hub, MODEL).await, 1);
    let terms = format!("(status 401); accept the licence at {}/acme/tiny, and set HF_TOKEN", hub.endpoint());
    assert!(said.contains(&terms), "{said}");
    let wrong = pulling(folder.path(), &hub, MODEL).env("HF_TOKEN", "hf_wrong").output().await.unwrap();
    let said = failed(&wrong, 1);
    assert!(said.contains("status 401; set HF_TOKEN to a valid access token") && !said.contains("hf_wrong"), "{said}");
}

#[tokio::test]
async fn a_pull_that_fails_is_a_failed_trace() {
    let (hub, otlp) = (Hub::start().await, Otlp::start().await);
    let folder = exporting(&otlp);
    failed(&pull(folder.path(), &hub, "acme/missing").await, 1);
    let (root, calls) = trace(&otlp);
    assert_eq!(root.text("error.type").unwrap(), "unknown_model");
    assert_eq!(root.integer("logfire.level_num"), Some(17));
    assert_eq!(root.span.events.len(), 1);
    assert!(format!("{:?}", root.span.events[0]).contains("the hub has no model acme/missing"));
    assert_eq!(calls_for(&calls, "main"), [(Some(401), None, Some("401".to_owned()))]);
}

#[tokio::test]
async fn a_model_is_shown_and_removed_unless_it_is_somebody_elses() {
    let hub = Hub::start().await;
    let folder = TempDir::new().unwrap();
    let cached = folder.path().join(".cache/huggingface/hub/models--acme--cached/snapshots/1");
    let named = folder.path().join("elsewhere");
    for other in [&cached, &named] {
        fs::create_dir_all(other).unwrap();
        fs::write(other.join("config.json"), r#"{"model_type": "qwen3"}"#).unwrap();
    }
    let config = "[[local.models]]\nname = \"named\"\npath = \"elsewhere\"\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    well(&pull(folder.path(), &hub, MODEL).await);
    let models = async |arguments: [&str; 2]| {
        let hub_cache = folder.path().join(".cache/huggingface/hub");
        command(folder.path()).env("HF_HUB_CACHE", hub_cache).arg("models").args(arguments).output().await.unwrap()
    };
    let shown = well_said(&models(["show", MODEL]).await);
    for line in [
        format!("pulled        {MODEL}@{}", hub.commit()),
        "architecture  qwen3".to_owned(),
        "listed        yes".to_owned(),
        "size          1.6 MiB".to_owned(),
    ] {
        assert!(shown.contains(&line), "{line}: {shown}");
    }
    for (name, expected) in [
        ("named", "is an entry of [[local.models]]"),
        ("acme/cached", "`hf cache rm model/acme/cached`"),
        ("../elsewhere", "`mlx-manager models list` names"),
    ] {
        assert!(failed(&models(["remove", name]).await, 1).contains(expected), "{name}");
    }
    assert!(cached.join("config.json").exists() && named.join("config.json").exists());
    assert!(well(&models(["remove", MODEL]).await).contains("acme/tiny is removed: 1.6 MiB freed"));
    assert!(!folder.path().join("models/acme").exists());
    assert!(failed(&models(["show", MODEL]).await, 1).contains("there is no model"));
}
