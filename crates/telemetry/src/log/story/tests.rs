use mlx_manager_config::{Format, Level as Limit, LogConfig};
use mlx_manager_signal::{hook::tell_story, target::SERVER_HTTP};
use serde_json::Value as Json;
use tracing::{Level, info_span};

use super::*;
use crate::log::{
    LogHandle, Router,
    tests::{SOON, config, file, log, read, start},
};

/// A file for our own server, one for the rest, and one for warnings.
fn three_files(folder: &tempfile::TempDir, failure_story: bool) -> LogConfig {
    let mut sinks = ["server", "rest", "warnings"].map(|name| file(folder, name, Format::Json));
    sinks[0].include = vec!["mlx_manager::server".into()];
    sinks[1].exclude = sinks[0].include.clone();
    sinks[2].level = Limit::Warn;
    LogConfig { failure_story, ..config(Limit::Info, sinks.into()) }
}

fn lines(folder: &tempfile::TempDir, name: &str) -> Vec<Json> {
    read(folder, name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Message, mark and request of each line.
fn told(folder: &tempfile::TempDir, name: &str) -> Vec<(String, bool, Option<String>)> {
    let text = |line: &Json, key: &str| line[key].as_str().map(str::to_owned);
    lines(folder, name)
        .iter()
        .map(|line| (text(line, "message").unwrap(), line[MARK] == true, text(line, "request_id")))
        .collect()
}

fn request(id: &str) -> tracing::Span {
    info_span!(target: SERVER_HTTP, "http", request_id = id)
}

#[test]
fn failed_request_tells_what_it_said_below_the_level() {
    let folder = tempfile::tempdir().unwrap();
    let (router, handle): (Router, LogHandle) = start(&three_files(&folder, true));
    log(router, || {
        let well = request("well");
        well.in_scope(|| tracing::debug!(target: "mlx_manager::server::api", "unheard"));
        drop(well);
        tracing::debug!(target: "mlx_manager::server::api", "outside");
        let failed = request("failed");
        let other = request("other");
        other.in_scope(|| tracing::debug!(target: "mlx_manager::server::api", "another's"));
        failed.in_scope(|| {
            tracing::debug!(target: "mlx_manager::server::api", key = 1, "first");
            tracing::trace!(target: "mlx_manager::server::api", "too fine");
            let inner = info_span!(target: "mlx_manager::server::dispatch", "inner", model = "m");
            inner.in_scope(|| tracing::debug!(target: "mlx_manager::store", "elsewhere"));
            inner.in_scope(|| tracing::debug!(target: "tokenizers", "a third party's"));
            tracing::info!(target: "mlx_manager::server::api", "seen at once");
            // From another thread, as the engine does it.
            let dispatch = tracing::dispatcher::get_default(Clone::clone);
            std::thread::spawn(move || {
                tracing::dispatcher::with_default(&dispatch, || {
                    inner.in_scope(|| tracing::debug!(target: "mlx_manager::server::engine", "last"));
                });
            })
            .join()
            .unwrap();
            tell_story();
            tell_story();
            tracing::debug!(target: "mlx_manager::server::api", "after");
            tracing::error!(target: "mlx_manager::server::api", "failed");
        });
    });
    assert!(handle.flush(SOON));
    let failed = || Some("failed".to_owned());
    let expected = [
        ("seen at once".to_owned(), false, failed()),
        ("first".to_owned(), true, failed()),
        ("a third party's".to_owned(), true, failed()),
        ("last".to_owned(), true, failed()),
        ("after".to_owned(), true, failed()),
        ("failed".to_owned(), false, failed()),
    ];
    assert_eq!(told(&folder, "server"), expected);
    assert_eq!(told(&folder, "rest"), [("elsewhere".to_owned(), true, failed())]);
    assert_eq!(told(&folder, "warnings"), [("failed".to_owned(), false, failed())], "a sink's own floor holds");
    let server = lines(&folder, "server");
    assert!(server[1]["timestamp"].as_str() < server[0]["timestamp"].as_str(), "it has the time at which it happened");
    assert_eq!(
        (&server[1]["key"], &server[1]["level"], &server[3]["model"]),
        (&1.into(), &"DEBUG".into(), &"m".into())
    );
}

#[test]
fn debug_is_on_only_where_it_may_be_told() {
    for failure_story in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (router, _handle) = start(&three_files(&folder, failure_story));
        log(router, || {
            let debug = || tracing::enabled!(target: "mlx_manager::server::api", Level::DEBUG);
            assert!(!debug());
            assert_eq!(request("r").in_scope(debug), failure_story);
            assert!(!info_span!(target: "mlx_manager::http", "http").in_scope(debug), "no inference request");
            let capped = || tracing::enabled!(target: "mlx_manager::server::api", Level::TRACE);
            assert!(!request("r").in_scope(capped));
        });
    }
}

#[test]
fn story_keeps_the_last_records_within_its_bounds_and_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let (router, handle) = start(&three_files(&folder, true));
    log(router, || {
        let counted = || {
            (0..STORY_RECORDS + 44)
                .for_each(|index| tracing::debug!(target: "mlx_manager::server::api", index, "counted"));
        };
        let large = || {
            let text = "x".repeat(STORY_BYTES / 4);
            (0..10).for_each(|index| tracing::debug!(target: "mlx_manager::server::api", index, text, "large"));
        };
        for run in [&counted as &dyn Fn(), &large] {
            request("r").in_scope(|| {
                run();
                tell_story();
            });
        }
    });
    assert!(handle.flush(SOON));
    let lines = lines(&folder, "server");
    let (first, second) = lines.split_at(STORY_RECORDS + 1);
    let indexes = |lines: &[Json]| lines.iter().filter_map(|line| line["index"].as_u64()).collect::<Vec<_>>();
    assert_eq!(indexes(first), (44..STORY_RECORDS as u64 + 44).collect::<Vec<_>>());
    assert_eq!(first[STORY_RECORDS]["omitted"], 44);
    assert_eq!(indexes(second), [7, 8, 9]);
    assert_eq!(second[3]["omitted"], 7);
}

#[test]
fn all_stories_share_one_bound_and_give_back_what_they_took() {
    let folder = tempfile::tempdir().unwrap();
    let (router, handle) = start(&three_files(&folder, true));
    let left = || handle.core.stories.left.load(Ordering::Relaxed);
    handle.core.stories.left.store(10_000, Ordering::Relaxed);
    log(router, || {
        let [greedy, modest, ended] = ["greedy", "modest", "ended"].map(request);
        let say = |span: &tracing::Span, count| {
            let text = "x".repeat(1_000);
            span.in_scope(|| {
                (0..count).for_each(|_| tracing::debug!(target: "mlx_manager::server::api", text, "said"));
            });
        };
        say(&greedy, 100);
        assert!(left() < 1_500, "{}", left());
        say(&modest, 1);
        greedy.in_scope(tell_story);
        assert_eq!(left(), 10_000, "what is told is not kept");
        say(&ended, 3);
        assert!(left() < 7_000);
        drop(ended);
        assert_eq!(left(), 10_000);
        modest.in_scope(tell_story);
    });
    assert!(handle.flush(SOON));
    let told = told(&folder, "server");
    let of = |id: &str| told.iter().filter(|(_, _, request)| request.as_deref() == Some(id)).count();
    assert!((5..10).contains(&of("greedy")), "{told:?}");
    assert_eq!((of("modest"), of("ended")), (1, 0), "only that something is missing: {told:?}");
}

#[test]
fn third_partys_record_lies_with_its_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut only_server = three_files(&folder, false);
    only_server.sinks.truncate(1);
    let (router, _handle) = start(&only_server);
    log(router, || {
        let warns = || tracing::enabled!(target: "hyper::proto", Level::WARN);
        assert!(!warns() && request("r").in_scope(warns));
    });
    drop(_handle);
    let (router, handle) = start(&three_files(&folder, false));
    log(router, || {
        let say = || tracing::warn!(target: "hyper::proto", "said");
        say();
        request("r").in_scope(say);
        info_span!(target: "mlx_manager::store", "database", request_id = "s").in_scope(say);
        tracing::warn!(target: "hyper::proto", parent: &request("p"), "said");
        request("r").in_scope(|| tracing::warn!(target: "mlx_manager::store", "our own"));
    });
    assert!(handle.flush(SOON));
    let id = |id: &str| ("said".to_owned(), false, Some(id.to_owned()));
    assert_eq!(told(&folder, "server"), [id("r"), id("p")]);
    let own = ("our own".to_owned(), false, Some("r".to_owned()));
    assert_eq!(told(&folder, "rest"), [("said".to_owned(), false, None), id("s"), own]);
    assert_eq!(lines(&folder, "warnings").len(), 5);
}
