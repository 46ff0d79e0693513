//! `models pull`: the real command between a simulated hub and a real OTLP receiver, beside a daemon that then serves it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use axum::body::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::peer::{
    daemon::{PATIENCE, command},
    hub::{Hub, LISTING, MODEL, Reply, sibling},
    otlp::{Otlp, ReceivedSpan, names},
};

pub const TOKEN: &str = "hf_aVeryPrivateTokenOfSomebody";
pub const WEIGHTS: &str = "model.safetensors";
pub const FILES: [&str; 6] = [
    "config.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    WEIGHTS,
];

pub fn pulling(folder: &Path, hub: &Hub, model: &str) -> tokio::process::Command {
    let mut command = command(folder);
    command.args(["models", "pull", model]).env("HF_ENDPOINT", hub.endpoint());
    // A machine that is busy with other things is no broken connection.
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "600");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub async fn pull(folder: &Path, hub: &Hub, model: &str) -> Output {
    timeout(PATIENCE, pulling(folder, hub, model).output()).await.unwrap().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asserts that it went well, and gives what it said.
pub fn well(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

fn failed(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), ""), "{said}");
    said
}

pub fn model_folder(folder: &Path) -> PathBuf {
    folder.join("models").join(MODEL)
}

fn partial(folder: &Path, hub: &Hub, name: &str) -> PathBuf {
    folder.join("models/.partial").join(MODEL.replace('/', "--")).join(hub.commit()).join(name)
}

pub fn assert_whole(folder: &Path, hub: &Hub) {
    for name in FILES {
        assert!(fs::read(model_folder(folder).join(name)).unwrap() == hub.file(name), "{name}");
    }
    let mut found: Vec<_> = fs::read_dir(model_folder(folder)).unwrap().map(|file| file.unwrap().file_name()).collect();
    found.retain(|name| name != ".pulled.json");
    assert_eq!(found.len(), FILES.len(), "{found:?}");
    assert!(!folder.join("models/.partial").join(MODEL.replace('/', "--")).exists(), "nothing is left over");
}

pub fn collector(otlp: &Otlp) -> String {
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
pub fn trace(otlp: &Otlp) -> (ReceivedSpan, Vec<ReceivedSpan>) {
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
