use std::fs;

use mlx_manager_config::{Compression, Format, Level, Retention, Rotation, Timezone};
use mlx_manager_signal::target::LOG;
use serde_json::Value as Json;
use tempfile::TempDir;
use tracing::subscriber::with_default;
use tracing_subscriber::{Registry, layer::SubscriberExt};

use super::*;

pub(super) const SOON: Duration = Duration::from_secs(20);

pub(super) fn file(folder: &TempDir, name: &str, format: Format) -> Sink {
    Sink {
        name: name.into(),
        kind: SinkKind::File {
            path: folder.path().join(format!("{name}.log")),
            rotation: Rotation::default(),
            retention: Retention::default(),
            compression: Compression::None,
        },
        format,
        include: vec![],
        exclude: vec![],
        level: Level::Trace,
    }
}

pub(super) fn config(level: Level, sinks: Vec<Sink>) -> LogConfig {
    LogConfig {
        level,
        directives: vec![],
        targets: vec![],
        dir: PathBuf::new(),
        timezone: Timezone::Utc,
        failure_story: false,
        sinks,
    }
}

pub(super) fn start(config: &LogConfig) -> (Router, LogHandle) {
    build(config, Terminal::default(), None, None).unwrap()
}

pub(super) fn log(router: Router, run: impl FnOnce()) {
    with_default(Registry::default().with(router), run);
}

pub(super) fn read(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(format!("{name}.log"))).unwrap()
}

#[test]
fn two_files_split_by_module_path() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = file(&folder, "server", Format::Text);
    server.include = vec!["mlx_manager::server".into()];
    let mut rest = file(&folder, "rest", Format::Json);
    rest.exclude = server.include.clone();
    let config = config(Level::Info, vec![server, rest]);
    let (router, handle) = start(&config);
    log(router, || {
        tracing::info!(target: "mlx_manager::server::dispatch", provider = "mlx", "routed");
        tracing::info!(rows = 3, "stored");
        tracing::debug!("too fine");
    });
    assert!(handle.flush(SOON));
    let server = read(&folder, "server");
    let (time, line) = server.split_once(" | ").unwrap();
    assert!(time.ends_with('Z') && time.len() == "2026-11-20T23:11:34.123456Z".len(), "{time}");
    assert!(line.starts_with("INFO     | mlx_manager::server::dispatch:"), "{line}");
    assert!(line.ends_with(" - routed provider=mlx\n"), "{line}");
    let rest: Json = serde_json::from_str(&read(&folder, "rest")).unwrap();
    assert_eq!((&rest["message"], &rest["rows"], &rest["seq"]), (&"stored".into(), &3.into(), &0.into()));
    assert_eq!(rest["target"], module_path!());
    let counters = handle.counters();
    assert_eq!(counters.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["server", "rest"]);
    assert!(counters.iter().all(|(_, counters)| counters.written(tracing::Level::INFO) == 1));
}

#[test]
fn dropping_everything_writes_everything_and_a_restart_counts_on() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let (router, handle) = start(&config(Level::Info, vec![file(&folder, "app", Format::Json)]));
        drop(handle);
        log(router, || (0..1_000).for_each(|index| tracing::info!(round, index, "message")));
    }
    let text = read(&folder, "app");
    let numbers = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()["seq"].as_u64().unwrap());
    assert!(numbers.eq(0..3_000));
}

#[test]
fn file_of_a_running_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(Level::Info, vec![file(&folder, "app", Format::Text)]);
    let first = start(&config);
    let error = build(&config, Terminal::default(), None, None).map(drop).unwrap_err();
    assert_eq!(error.kind(), "in_use");
    assert!(error.to_string().contains("app.log of sink \"app\" is in use"), "{error}");
    drop(first);
    start(&config);
}

#[test]
fn file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("app.log")).unwrap();
    let error = build(&config(Level::Info, vec![file(&folder, "app", Format::Text)]), Terminal::default(), None, None);
    let error = error.map(drop).unwrap_err();
    assert_eq!(error.kind(), "open");
    assert!(error.to_string().contains("app.log") && std::error::Error::source(&error).is_some());
}

#[test]
fn reopen_follows_a_rename() {
    let folder = tempfile::tempdir().unwrap();
    let (router, handle) = start(&config(Level::Info, vec![file(&folder, "app", Format::Text)]));
    log(router, || {
        tracing::info!("before");
        assert!(handle.flush(SOON));
        fs::rename(folder.path().join("app.log"), folder.path().join("moved.log")).unwrap();
        handle.reopen();
        tracing::info!("after");
        assert!(handle.flush(SOON));
    });
    assert!(read(&folder, "moved").contains("before") && read(&folder, "app").contains("after"));
}

#[test]
fn panic_is_on_disk_with_its_backtrace_and_request() {
    let folder = tempfile::tempdir().unwrap();
    let (router, handle) = start(&config(Level::Error, vec![file(&folder, "app", Format::Text)]));
    // Formatting that panics inside of the subscriber: its thread's events reach nobody at that moment.
    struct Broken;
    impl fmt::Debug for Broken {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("while formatting");
        }
    }
    let hook = panic_hook(handle);
    let previous = std::panic::take_hook();
    let ours = thread::current().id();
    // Other tests panic too, on other threads.
    std::panic::set_hook(Box::new(
        move |info| if thread::current().id() == ours { hook(info) } else { previous(info) },
    ));
    log(router, || {
        let span = tracing::info_span!(target: LOG, "request", request_id = "r1");
        let survive = |run: &dyn Fn()| {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| span.in_scope(run)));
            assert!(panicked.is_err());
        };
        survive(&|| panic!("out of {}", "luck"));
        survive(&|| {
            span.record("request_id", tracing::field::debug(Broken));
        });
        survive(&|| tracing::error!(value = ?Broken, "never finished"));
        let text = read(&folder, "app");
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("    ")).collect();
        assert!(lines[0].contains(" - panicked: out of luck ") && lines[0].ends_with(" request_id=r1"), "{}", lines[0]);
        assert!(
            lines[1].contains(" - panicked: while formatting ") && lines[1].ends_with(" request_id=r1"),
            "{}",
            lines[1]
        );
        assert!(lines[2].contains(" - panicked: while formatting "), "{}", lines[2]);
        assert_eq!(lines.len(), 3);
        assert!(text.contains("\n    in request\n"));
        assert!(text.matches("panic_is_on_disk").count() >= 3, "{text}");
    });
    drop(std::panic::take_hook());
}

#[test]
fn long_record_is_cut_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (router, handle) = start(&config(Level::Info, vec![file(&folder, "app", Format::Json)]));
    log(router, || tracing::info!(long = "x".repeat(1_000_000), "message"));
    assert!(handle.flush(SOON));
    let text = read(&folder, "app");
    assert!(text.len() < 70_000);
    let json: Json = serde_json::from_str(&text).unwrap();
    assert!(json["long"].as_str().unwrap().ends_with("x… (cut, 1000000 bytes in all)"));
}
