use std::{
    fs,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use mlx_manager_config::{Directive, Format, Level as Limit, Period, Rotation, Sink, SinkKind};
use serde_json::Value as Json;
use tracing::{Dispatch, Level, dispatcher::with_default};
use tracing_subscriber::{Registry, layer::SubscriberExt};

use super::*;
use crate::log::{
    Terminal, build,
    tests::{SOON, config, file, log, read, start},
};

fn rotating(mut sink: Sink, size: u64) -> Sink {
    if let SinkKind::File { rotation, .. } = &mut sink.kind {
        *rotation = Rotation { size: Some(size), every: Some(Period::Hour) };
    }
    sink
}

/// The sequence numbers of a JSON sink's file and archives, in order.
fn sequence(folder: &tempfile::TempDir, name: &str) -> Vec<u64> {
    let archive = fs::read_dir(folder.path().join("archive")).into_iter().flatten();
    let paths = archive.map(|entry| entry.unwrap().path());
    let ours = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name));
    let text: String = ours.map(|path| fs::read_to_string(path).unwrap()).collect::<String>() + &read(folder, name);
    let number = |line: &str| serde_json::from_str::<Json>(line).unwrap()["seq"].as_u64().unwrap();
    let mut numbers: Vec<_> = text.lines().map(number).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn reloads_under_fire_lose_no_record() {
    const THREADS: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let app = || file(&folder, "app", Format::Json);
    let mut renamed = app();
    renamed.name = "renamed".into();
    // What changes about the sink that stays, and beside it.
    let plans = [
        config(Limit::Info, vec![app(), file(&folder, "extra", Format::Json)]),
        config(Limit::Debug, vec![rotating(app(), 20_000)]),
        config(Limit::Info, vec![file(&folder, "extra", Format::Json), renamed]),
        config(Limit::Trace, vec![rotating(app(), 5_000_000), file(&folder, "third", Format::Text)]),
    ];
    let (router, handle) = start(&plans[0]);
    let dispatch = Dispatch::new(Registry::default().with(router));
    let (started, stop) = (Barrier::new(THREADS + 1), AtomicBool::new(false));
    let said: u64 = thread::scope(|scope| {
        let writer = || {
            with_default(&dispatch, || {
                started.wait();
                let mut said = 0;
                // All of them have room in the queue, so that none is shed however slow the disk is.
                while !stop.load(Ordering::Relaxed) && said < 12_000 {
                    tracing::info!(said, "record");
                    said += 1;
                    if said % 20 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                said
            })
        };
        let writers: Vec<_> = (0..THREADS).map(|_| scope.spawn(writer)).collect();
        started.wait();
        // Under the subscriber too, since tracing asks the calling thread's when there is but one.
        with_default(&dispatch, || {
            for plan in plans.iter().cycle().skip(1).take(40) {
                handle.reload(plan).unwrap();
            }
        });
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    assert!(handle.flush(SOON));
    assert_eq!(handle.core.counters_of("app").dropped(Level::INFO), 0);
    let app = sequence(&folder, "app");
    let odd: Vec<_> = app.windows(2).filter(|pair| pair[1] != pair[0] + 1).take(10).collect();
    assert_eq!((app.len() as u64, odd), (said, vec![]), "each record once");
    let extra = sequence(&folder, "extra");
    assert!(extra.iter().copied().eq(0..extra.len() as u64), "a sink that comes back counts on");
    let written: u64 =
        ["app", "renamed"].map(|name| handle.core.counters_of(name).written(Level::INFO)).into_iter().sum();
    assert_eq!(written, said);
}

#[test]
fn levels_and_targets_change_for_callsites_that_were_reached_before() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |level| config(level, vec![file(&folder, "app", Format::Text)]);
    let (router, handle) = start(&plan(Limit::Info));
    let mut only_one = plan(Limit::Off);
    only_one.directives = vec![Directive { target: "one".into(), level: Limit::Trace }];
    log(router, || {
        let say = |round| {
            tracing::trace!(target: "one", "{round} one");
            tracing::debug!(target: "two", "{round} two");
            tracing::error!(target: "two", "{round} error");
        };
        say("info");
        for (round, plan) in [("debug", plan(Limit::Debug)), ("directive", only_one), ("off", plan(Limit::Off))] {
            handle.reload(&plan).unwrap();
            say(round);
        }
        handle.reload(&plan(Limit::Error)).unwrap();
        say("error");
    });
    assert!(handle.flush(SOON));
    let text = read(&folder, "app");
    let said: Vec<_> = text.lines().map(|line| line.split_once(" - ").unwrap().1).collect();
    assert_eq!(said, ["info error", "debug two", "debug error", "directive one", "error error"]);
}

#[test]
fn reload_that_fails_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("broken.log")).unwrap();
    let sinks = |names: &[&str]| names.iter().map(|name| file(&folder, name, Format::Json)).collect();
    let (router, handle) = start(&config(Limit::Info, sinks(&["app"])));
    log(router, || {
        tracing::info!("before");
        let error = handle.reload(&config(Limit::Off, sinks(&["new", "broken", "app"]))).unwrap_err();
        assert!(error.to_string().contains("broken.log of sink \"broken\""), "{error}");
        tracing::info!("after");
    });
    assert!(handle.flush(SOON));
    assert_eq!(sequence(&folder, "app"), [0, 1]);
    // The file that could be opened is free again.
    start(&config(Limit::Info, sinks(&["new"])));
}

#[test]
fn sink_that_is_no_more_has_written_everything_and_lets_go_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let sinks = |names: &[&str]| names.iter().map(|name| file(&folder, name, Format::Json)).collect();
    let (router, handle) = start(&config(Limit::Info, sinks(&["old", "stays"])));
    let stays = config(Limit::Info, sinks(&["stays"]));
    log(router, || {
        (0..500).for_each(|index| tracing::info!(index, "message"));
        handle.reload(&stays).unwrap();
        assert_eq!(sequence(&folder, "old").len(), 500);
        // A daemon of its own could have it now, and the one that stays it could not.
        let free = |names| build(&config(Limit::Info, sinks(names)), Terminal::default(), None, None).map(drop);
        free(&["old"]).unwrap();
        assert_eq!(free(&["stays"]).unwrap_err().kind(), "in_use");
        tracing::info!("for the other");
        handle.reload(&config(Limit::Info, sinks(&["old", "stays"]))).unwrap();
        tracing::info!("for both");
    });
    assert!(handle.flush(SOON));
    assert!(sequence(&folder, "old").into_iter().eq(0..501));
    assert!(sequence(&folder, "stays").into_iter().eq(0..502));
    assert_eq!(handle.core.counters_of("old").written(Level::INFO), 501);
}

#[test]
fn sink_that_stays_takes_its_new_rotation_and_format() {
    let folder = tempfile::tempdir().unwrap();
    let (router, handle) = start(&config(Limit::Info, vec![file(&folder, "app", Format::Json)]));
    log(router, || {
        tracing::info!("one");
        handle.reload(&config(Limit::Info, vec![rotating(file(&folder, "app", Format::Logfmt), 1)])).unwrap();
        tracing::info!("two");
        tracing::info!("three");
        assert!(handle.flush(SOON));
    });
    assert_eq!(fs::read_dir(folder.path().join("archive")).unwrap().count(), 2, "each record in a file of its own");
    let text = read(&folder, "app");
    assert!(text.starts_with("timestamp=") && text.contains(" seq=2 ") || text.ends_with(" seq=2\n"), "{text}");
}
