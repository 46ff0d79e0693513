//! What the disk has to say about a configuration: log files that can't be written, and files with several names.

use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;

use super::*;

fn sink(name: &str, file: &str) -> String {
    format!("[[log.sinks]]\nname = \"{name}\"\nkind = \"file\"\nfile = \"{file}\"\n")
}

fn load_in(folder: &TempDir, text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let environment = Environment::new(folder.path());
    let environment = variables.iter().fold(environment, |environment, (name, value)| environment.with(name, value));
    let options = LoadOptions { environment, ..LoadOptions::default() };
    load_text(text, Some(&folder.path().join("config.toml")), &options)
}

#[track_caller]
fn check_in(folder: &TempDir, text: &str, variables: &[(&str, &str)], expected: &[(&str, &str)]) {
    let found = problems_of(load_in(folder, text, variables).and_then(Loaded::startable));
    let matches = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, (start, rest))| found.starts_with(start) && found.contains(rest));
    assert!(matches, "{text}\nfound:\n{found:#?}\nexpected:\n{expected:#?}");
}

#[test]
fn log_file_that_cannot_be_written_stops_the_daemon_only() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    fs::create_dir_all(folder.path().join("logs/taken.log")).unwrap();
    fs::create_dir(folder.path().join("other")).unwrap();
    fs::write(folder.path().join("other/archive"), "").unwrap();
    symlink("nowhere", folder.path().join("dangling")).unwrap();
    let shown = folder.path().display().to_string();
    let check = |text: &str, expected: &[(&str, &str)]| check_in(&folder, text, &[], expected);

    check(&sink("a", "a.log"), &[]);
    check(&sink("a", "new/deep/a.log"), &[]);
    let taken = format!("4:8 `log.sinks[0].file` can't be written: {shown}/logs/taken.log is a folder");
    check(&sink("a", "taken.log"), &[(&taken, "name another file")]);
    check(&sink("a", "../file/a.log"), &[("4:8 `log.sinks[0].file` can't be written: ", "/file isn't a folder")]);
    let nowhere = format!("log.dir = \"nowhere\"\n{}", sink("a", "../file/a.log"));
    check(&nowhere, &[("5:8 `log.sinks[0].file` can't be written: ", "/file isn't a folder")]);
    check(&sink("a", "../dangling/a.log"), &[("4:8 `log.sinks[0].file` can't be written: ", "No such file")]);
    check(&sink("a", "../other/a.log"), &[("4:8 `log.sinks[0].file` can't be written: ", "/archive isn't a folder")]);
    check(&(sink("a", "../other/a.log") + "rotation = \"never\""), &[]);
    // The folder is at fault, once.
    let text = format!("log.dir = \"file/logs\"\n{}{}", sink("a", "a.log"), sink("b", "b.log"));
    check(&text, &[("1:11 `log.dir` can't hold log files: ", "/file isn't a folder | ")]);
    let variables = [("LOG_DIR", "file")];
    check_in(&folder, "", &variables, &[("$LOG_DIR `log.dir` can't hold log files: ", "name a folder")]);
    // Other commands need no log files.
    assert!(load_in(&folder, &text, &[]).is_ok());
}

#[test]
fn what_the_daemon_could_not_open_is_said_before() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let shown = logs.display().to_string();
    let check = |text: &str, expected: &[(&str, &str)]| check_in(&folder, text, &[], expected);
    let unwritable = "4:8 `log.sinks[0].file` can't be written: ";

    let long = "x".repeat(300);
    for file in ["x/", "x/.", "..", "a\\u0000b", long.as_str(), &format!("{long}/a.log")] {
        check(
            &sink("a", file),
            &[("4:8 `log.sinks[0].file` can't be ", "allowed: a file, with names of at most 200 bytes")],
        );
    }
    let deep = "x/".repeat(3000) + "a.log";
    check(&sink("a", &deep), &[(unwritable, "too long")]);
    symlink("loop.log", logs.join("loop.log")).unwrap();
    check(&sink("a", "loop.log"), &[(unwritable, "symbolic link")]);
    // The link is followed to where the file will be.
    fs::write(folder.path().join("file"), "").unwrap();
    symlink("../file/there.log", logs.join("dangling.log")).unwrap();
    check(&sink("a", "dangling.log"), &[(unwritable, "/file isn't a folder")]);
    let _socket = std::os::unix::net::UnixListener::bind(logs.join("socket.log")).unwrap();
    check(&sink("a", "socket.log"), &[(unwritable, "/socket.log is a socket")]);
    // Permissions don't stop root, so a folder stands for a lock file that isn't ours.
    fs::create_dir(logs.join(".f.log.lock")).unwrap();
    let lock = format!("{unwritable}{shown}/.f.log.lock is a folder");
    check(&sink("a", "f.log"), &[(&lock, "name another file")]);
    fs::remove_dir(logs.join(".f.log.lock")).unwrap();

    let many: String = (0..63).map(|index| sink(&format!("s{index}"), &format!("{index}.log"))).collect();
    check(&many, &[("250:8 `log.sinks[62]` is one sink too many", "allowed: 62 sinks")]);
    let locks = sink("a", ".f.log.lock") + &sink("b", "f.log");
    check(&locks, &[("4:8 `log.sinks[0].file` is the lock file of the sink \"b\"", "another name")]);
    let database = format!("database.url = \"sqlite:logs/a.log\"\n{}", sink("a", "a.log"));
    check(&database, &[("1:16 `database.url` is the log file of the sink \"a\"", "a file of its own")]);
    fs::write(folder.path().join("config.toml"), "").unwrap();
    check(&sink("a", "../config.toml"), &[("4:8 `log.sinks[0].file` is this very configuration", "another name")]);
    let never = sink("a", "a.log") + "rotation = \"never\"\n";
    let useless = "6:15 `log.sinks[0].compression` can do nothing, because the sink never rotates";
    check(&(never.clone() + "compression = \"gzip\""), &[(useless, "set a rotation, or leave it out")]);
    check(&(never + "compression = \"none\""), &[]);
}

#[test]
fn streams_are_written_to_as_they_are() {
    let folder = TempDir::new().unwrap();
    let load = |text: &str| load_in(&folder, text, &[]).unwrap();
    let plain = load(&sink("a", "/dev/null"));
    let SinkKind::File { rotation, retention, .. } = &plain.config.log.sinks[0].kind else { panic!() };
    assert_eq!((rotation, retention), (&Rotation::default(), &Retention::default()));
    assert!(plain.warnings.is_empty() && plain.obstacles.is_empty(), "{:?} {:?}", plain.warnings, plain.obstacles);
    let text = sink("a", "/dev/null") + "rotation.size = \"1 MB\"\nretention.files = 2\ncompression = \"gzip\"\n";
    let messages: Vec<_> = load(&text).warnings.iter().map(|warning| warning.message.clone()).collect();
    let expected = ["rotation", "retention", "compression"]
        .map(|name| format!("`log.sinks[0].{name}` has no effect, because /dev/null is a device or a pipe"));
    assert_eq!(messages, expected);
    // Whatever standard error is here, it isn't ours to move.
    let SinkKind::File { path, rotation, .. } = &load(&sink("a", "/dev/stderr")).config.log.sinks[0].kind else {
        panic!()
    };
    assert!(is_stream(path) && *rotation == Rotation::default(), "{path:?}");
}

#[test]
fn spool_that_cannot_be_written_stops_the_daemon_only() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let otlp = |dir: &str, send: &str| {
        format!(
            "[[otlp]]\nname = \"c\"\nkind = \"otlp\"\nendpoint = \"http://127.0.0.1:4318\"\nsend = \"{send}\"\nspool = {{ dir = \"{dir}\" }}\n"
        )
    };
    check_in(&folder, &otlp("new/deep", "always"), &[], &[]);
    let start = "6:17 `otlp[0].spool.dir` can't be used: ";
    check_in(&folder, &otlp("file/spool", "always"), &[], &[(start, "/file isn't a folder | ")]);
    check_in(&folder, &otlp("file/spool", "never"), &[], &[]);
    if cfg!(target_os = "linux") {
        check_in(&folder, &otlp("/proc/nope", "always"), &[], &[(start, "leave out `spool`")]);
    }
    // Other commands need no spool.
    assert!(load_in(&folder, &otlp("file/spool", "always"), &[]).is_ok());
}

#[test]
fn a_file_is_one_file_by_whatever_name() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("logs")).unwrap();
    let logs = folder.path().join("logs");
    symlink(&logs, folder.path().join("link")).unwrap();
    symlink("a.log", logs.join("alias.log")).unwrap();
    fs::write(logs.join("hard.log"), "").unwrap();
    fs::hard_link(logs.join("hard.log"), logs.join("same.log")).unwrap();
    let whole = logs.join("a.log").display().to_string();
    let twice = |first: &str, second: &str, variables: &[(&str, &str)]| {
        let text = sink("one", first) + &sink("two", second);
        let start = "8:8 `log.sinks[1].file` is the file of the sink \"one\" too: ";
        check_in(&folder, &text, variables, &[(start, "give each sink a file of its own")]);
    };
    twice("a.log", "./a.log", &[]);
    twice("a.log", "x/../a.log", &[]);
    twice("a.log", "../link/a.log", &[]);
    twice("a.log", "alias.log", &[]);
    twice("hard.log", "same.log", &[]);
    twice("a.log", &whole, &[]);
    // Two files by the configuration, one by the environment.
    let text = format!("log.dir = \"elsewhere\"\n{}{}", sink("one", &whole), sink("two", "a.log"));
    check_in(&folder, &text, &[], &[]);
    let link = folder.path().join("link").display().to_string();
    check_in(
        &folder,
        &text,
        &[("LOG_DIR", &link)],
        &[("9:8 `log.sinks[1].file` is the file of the sink \"one\" too", "")],
    );
    // Two files whose archives can't be told apart.
    let text = sink("one", "app.log") + &sink("two", "app");
    check_in(
        &folder,
        &text,
        &[],
        &[("8:8 `log.sinks[1].file` has archives with the names of those of", "another name")],
    );
    check_in(&folder, &(sink("one", "app.log") + &sink("two", "app.txt")), &[], &[]);
}

#[test]
fn exporters_are_known_kinds_at_real_urls() {
    check(
        "[[otlp]]\nname = \"c\"\nkind = \"jaeger\"\nendpoint = \"http://h:1\"",
        &[("3:8 `otlp[0].kind` can't be \"jaeger\"", "allowed: \"logfire\", \"otlp\"")],
    );
    check("[[otlp]]\nname = \"c\"\nkind = \"oltp\"\nendpoint = \"http://h:1\"", &[("3:8 `otlp[0].kind`", "`otlp`?")]);
    for kind in ["otlp", "logfire"] {
        for (endpoint, hint) in [
            ("collector:4318", "it needs a scheme: \"https://collector:4318\""),
            ("nonsense", "it needs a scheme"),
            ("", "it needs a scheme"),
            ("http://", "an http or https URL"),
            ("http://:4318", "an http or https URL"),
            ("http://h:99999", "an http or https URL"),
            ("http://h:0", "an http or https URL"),
            ("http://h:port", "an http or https URL"),
            ("http://two words:1", "an http or https URL"),
            ("grpc://h:4317", "an http or https URL"),
            ("http://h:1?a=b", "an http or https URL"),
        ] {
            let text = format!("[[otlp]]\nname = \"c\"\nkind = \"{kind}\"\nendpoint = \"{endpoint}\"");
            check(&text, &[(&format!("4:12 `otlp[0].endpoint` can't be \"{endpoint}\""), hint)]);
        }
    }
}
