//! The prefix cache on disk: answers are the same with it and without it, whatever becomes of the disk.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
};

use super::{prompts::long_enough, *};
use crate::cache::{self, DiskSettings, PrefixLookup};

const MODEL: &str = "qwen3-q4-tied";

/// What its keys and values take of a position.
const ROW: u64 = 1024;

/// Tokens of each answer.
const TOKENS: u32 = 16;

/// With so much in memory and on disk.
fn spilling(prefix_cache: u64, folder: &Path, limit_bytes: u64, open: cache::Open) -> EngineSettings {
    let disk = DiskSettings { folder: folder.to_owned(), limit_bytes, open };
    EngineSettings { prefix_cache, prefix_disk: Some(disk), ..settings() }
}

/// An answer, and what is said of the search for its prompt's beginning.
async fn answered(mut events: UnboundedReceiver<GenerationEvent>) -> (Vec<u32>, PrefixLookup) {
    let (mut tokens, mut explained) = (Vec::new(), None);
    while let Some(event) = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap() {
        match event {
            GenerationEvent::Started { lookup, .. } => explained = Some(lookup),
            GenerationEvent::Token(id) => tokens.push(id),
            GenerationEvent::Failed(error) => panic!("{error}"),
            GenerationEvent::Accepted | GenerationEvent::Finished { .. } => {}
        }
    }
    (tokens, explained.expect("it started"))
}

async fn ask(engine: &Handle, model: &str, prompt: &[u32]) -> (Vec<u32>, PrefixLookup) {
    answered(engine.generate(greedy(model, prompt, TOKENS))).await
}

async fn on_disk(engine: &Handle) -> u64 {
    engine.stats().await.unwrap().on_disk
}

/// A prompt of 40 tokens of the golden's, and its answer, of which 55 positions are kept.
fn fortieth(golden: &Golden, number: usize) -> &[u32] {
    &golden.prompt_ids[number * 40..number * 40 + 40]
}

/// An engine whose memory has room for one of these prompts, after two of them.
async fn after_two(folder: &Path, open: cache::Open) -> (Handle, Golden, Vec<u32>) {
    let engine = Handle::start(spilling(60 * ROW, folder, 1 << 20, open)).unwrap();
    let (_, golden) = loaded(&engine, MODEL).await;
    let (answer, _) = ask(&engine, MODEL, fortieth(&golden, 0)).await;
    ask(&engine, MODEL, fortieth(&golden, 1)).await;
    (engine, golden, answer)
}

#[tokio::test]
async fn answers_are_the_same_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let roomy = Handle::start(settings()).unwrap();
    for (name, (source, golden)) in goldens() {
        let prompt = long_enough(&golden.prompt_ids);
        roomy.load(&name, source.clone()).await.unwrap();
        let expected = ask(&roomy, &name, &prompt).await.0;
        let kept: u64 = roomy.stats().await.unwrap().models.iter().map(|(_, bytes)| bytes).sum();
        roomy.unload(&name, "idle").await.unwrap();
        // Room for one of two.
        let engine = Handle::start(spilling(kept * 3 / 2, folder.path(), 1 << 30, cache::create)).unwrap();
        engine.load(&name, source).await.unwrap();
        let reversed: Vec<u32> = prompt.iter().rev().copied().collect();
        assert_eq!(ask(&engine, &name, &prompt).await.0, expected, "{name}");
        assert_eq!(on_disk(&engine).await, 0, "{name}");
        ask(&engine, &name, &reversed).await;
        assert_eq!(on_disk(&engine).await, kept, "{name}");
        let (answer, lookup) = ask(&engine, &name, &prompt).await;
        let restored = prompt.len() - 1;
        assert_eq!((lookup.restored, lookup.from_disk), (restored, restored), "{name}");
        assert!(lookup.to_string().ends_with(&format!("reason=\"whole prompt\"; disk={restored}")), "{lookup}");
        assert_eq!(answer, expected, "{name}");
        if prompt == golden.prompt_ids {
            assert_eq!(answer, golden.greedy_ids[..TOKENS as usize], "{name}");
        }
        // Now it is in memory.
        let (answer, lookup) = ask(&engine, &name, &prompt).await;
        assert_eq!((answer, lookup.restored, lookup.from_disk), (expected, restored, 0), "{name}");
        engine.unload(&name, "idle").await.unwrap();
        assert_eq!(on_disk(&engine).await, 0, "{name}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "files have no names");
}

#[tokio::test]
async fn what_memory_has_is_not_read_and_what_the_disk_has_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Handle::start(spilling(140 * ROW, folder.path(), 1 << 20, cache::create)).unwrap();
    let cold = Handle::start(EngineSettings { prefix_cache: 0, ..settings() }).unwrap();
    loaded(&cold, MODEL).await;
    let (_, golden) = loaded(&engine, MODEL).await;
    // In common they have 40 tokens; of the rest, 45 positions are kept.
    let prompt = |number: u32| [fortieth(&golden, 0), &[3 + number; 30][..]].concat();
    for number in 0..3 {
        assert_eq!(ask(&engine, MODEL, &prompt(number)).await.1.from_disk, 0);
    }
    // The leaf of the first went, with what it is reached by.
    assert_eq!(on_disk(&engine).await, (40 + 45) * ROW);
    for number in [0, 1, 2, 0] {
        let (answer, lookup) = ask(&engine, MODEL, &prompt(number)).await;
        assert_eq!((lookup.matched, lookup.restored, lookup.from_disk), (69, 69, 29));
        assert_eq!(answer, ask(&cold, MODEL, &prompt(number)).await.0);
    }
    assert_eq!(on_disk(&engine).await, (40 + 3 * 45) * ROW);
    // Less than 16 tokens are computed sooner.
    let short = &prompt(1)[..55];
    assert_eq!(ask(&engine, MODEL, short).await.1.from_disk, 0);
}

#[tokio::test]
async fn the_bound_on_bytes_holds() {
    let folder = tempfile::tempdir().unwrap();
    for limit in [0, 55 * ROW - 1, 2 * 55 * ROW + 100] {
        let folder = folder.path().join(limit.to_string());
        let engine = Handle::start(spilling(60 * ROW, &folder, limit, cache::create)).unwrap();
        let (_, golden) = loaded(&engine, MODEL).await;
        for number in 0..6 {
            ask(&engine, MODEL, fortieth(&golden, number)).await;
            let most = if limit < 55 * ROW { 0 } else { 55 * ROW * (number as u64).min(2) };
            let held = on_disk(&engine).await;
            // They may begin with a token in common, which is kept once.
            assert!(held <= most && held + 10 * ROW > most, "{held} of {limit}");
        }
        let found = [4, 0].map(|number| fortieth(&golden, number));
        let restored = [ask(&engine, MODEL, found[0]).await.1, ask(&engine, MODEL, found[1]).await.1];
        let expected = if limit < 55 * ROW { [0, 0] } else { [39, 0] };
        assert_eq!(restored.map(|lookup| lookup.restored), expected);
        assert_eq!(restored[0].from_disk > 0, limit >= 55 * ROW);
        assert_eq!(folder.exists(), limit > 0);
    }
}

#[tokio::test]
async fn a_disk_that_fails_costs_nothing_but_itself() {
    fn is_not_there(_: &Path) -> io::Result<File> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn can_not_be_written(folder: &Path) -> io::Result<File> {
        fs::write(folder.join("file"), "")?;
        File::open(folder.join("file"))
    }
    fn can_not_be_read(folder: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(folder.join("file"))
    }
    fn is_too_short(folder: &Path) -> io::Result<File> {
        let file = cache::create(folder)?;
        let same = file.try_clone()?;
        // Whatever is written is gone before it is read.
        thread::spawn(move || (0..2000).for_each(|_| drop((same.set_len(0), thread::sleep(Duration::from_millis(1))))));
        Ok(file)
    }
    let opens: [cache::Open; 4] = [is_not_there, can_not_be_written, can_not_be_read, is_too_short];
    for (case, open) in opens.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (engine, golden, answer) = after_two(folder.path(), open).await;
        if case == 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for number in [0, 1] {
            let (again, lookup) = ask(&engine, MODEL, fortieth(&golden, number)).await;
            assert_eq!((lookup.restored, lookup.from_disk), (0, 0), "case {case}");
            assert!(number != 0 || again == answer, "case {case}");
        }
        assert_eq!(on_disk(&engine).await, 0, "case {case}");
        assert_eq!(ask(&engine, MODEL, fortieth(&golden, 1)).await.1.restored, 39, "case {case}");
    }
}

#[test]
fn a_disk_that_can_not_be_had_is_told_once() {
    let place = tempfile::NamedTempFile::new().unwrap();
    let lines = lines_of(|| {
        let (commands, inbox) = mpsc::channel();
        let mut core =
            Core::new(&spilling(1 << 20, place.path(), 1 << 20, cache::create), Default::default(), commands);
        for _ in 0..2 {
            match inbox.recv_timeout(PATIENCE) {
                Ok(Command::Work(work)) => core.obey(work),
                Ok(Command::Shutdown { .. }) => panic!("nobody asked"),
                // The thread is gone.
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("nothing is told"),
            }
        }
        panic!("more is told");
    });
    let told: Vec<_> =
        lines.iter().filter(|line| line.fields["message"] == "the prefix cache goes on without a disk").collect();
    let [line] = told.as_slice() else { panic!("{lines:?}") };
    assert_eq!(line.fields["folder"], place.path().to_str().unwrap());
}

#[tokio::test]
async fn a_slow_disk_is_not_waited_for() {
    fn is_slow(folder: &Path) -> io::Result<File> {
        thread::sleep(Duration::from_secs(5));
        cache::create(folder)
    }
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (engine, golden, answer) = after_two(folder.path(), is_slow).await;
    let gone = engine.generate(greedy(MODEL, fortieth(&golden, 0), TOKENS));
    assert!(matches!(engine.unload(MODEL, "idle").await, Err(EngineError::InUse { .. })));
    drop(gone);
    let (again, lookup) = ask(&engine, MODEL, fortieth(&golden, 0)).await;
    assert_eq!((again, lookup.from_disk), (answer, 0));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn who_waits_for_the_disk_hears_of_the_end() {
    fn hangs(folder: &Path) -> io::Result<File> {
        thread::sleep(PATIENCE);
        cache::create(folder)
    }
    let folder = tempfile::tempdir().unwrap();
    let (engine, golden, _) = after_two(folder.path(), hangs).await;
    let waiting = engine.generate(greedy(MODEL, fortieth(&golden, 0), TOKENS));
    let stats = engine.stats().await.unwrap();
    assert_eq!((stats.waiting, stats.running), (0, 0), "it is not in the queue yet");
    engine.shutdown().await;
    let (_, last) = drain(waiting).await;
    assert!(matches!(last, Some(GenerationEvent::Failed(EngineError::Stopped))), "{last:?}");
}

#[tokio::test]
async fn a_disk_that_was_slow_is_of_use_again() {
    fn is_slow(folder: &Path) -> io::Result<File> {
        thread::sleep(Duration::from_secs(3));
        cache::create(folder)
    }
    let folder = tempfile::tempdir().unwrap();
    let (engine, golden, answer) = after_two(folder.path(), is_slow).await;
    // What was read for nobody is in memory.
    drop(engine.generate(greedy(MODEL, fortieth(&golden, 0), TOKENS)));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (again, lookup) = ask(&engine, MODEL, fortieth(&golden, 0)).await;
    assert_eq!((again, lookup.restored, lookup.from_disk), (answer, 39, 0));
    assert_eq!(ask(&engine, MODEL, fortieth(&golden, 1)).await.1.from_disk, 39);
}

#[tokio::test]
async fn who_ask_together_each_get_their_answer_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, golden, answer) = after_two(folder.path(), cache::create).await;
    let together: Vec<_> = (0..4).map(|_| engine.generate(greedy(MODEL, fortieth(&golden, 0), TOKENS))).collect();
    for events in together {
        let (again, lookup) = answered(events).await;
        assert_eq!((again, lookup.restored, lookup.from_disk), (answer.clone(), 39, 39));
    }
}

#[test]
fn the_file_is_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let made = cache::create(&folder.path().join("new")).unwrap().metadata().unwrap();
    assert_eq!((made.mode() & 0o777, made.nlink()), (0o600, 0));
}
