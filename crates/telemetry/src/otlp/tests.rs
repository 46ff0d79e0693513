//! A destination as the daemon starts it: before its logs are set up, and with a spool that an earlier run filled.

use std::{
    collections::HashSet,
    fmt::{Debug, Write as _},
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    time::SystemTime,
};

use mlx_manager_config::{Send, Spool as SpoolConfig};
use parking_lot::Mutex;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::{spool::Batch, *};

/// An endpoint that answers every request with the same status.
#[derive(Clone)]
struct Endpoint {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    answered: Arc<AtomicUsize>,
    held: Arc<AtomicBool>,
}

impl Endpoint {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Self {
            address: listener.local_addr().unwrap(),
            status: Arc::new(status.into()),
            answered: Arc::default(),
            held: Arc::default(),
        };
        let own = endpoint.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // The head and the few bytes of body that the test's batches have come in one or two pieces.
                let mut request = Vec::new();
                while !request.ends_with(b"the end") {
                    let mut piece = [0; 4096];
                    let length = stream.read(&mut piece).unwrap();
                    request.extend_from_slice(&piece[..length]);
                    assert!(length > 0, "the request broke off");
                }
                eventually("its release", || !own.held.load(Ordering::SeqCst));
                let status = own.status.load(Ordering::SeqCst);
                let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
                own.answered.fetch_add(1, Ordering::SeqCst);
            }
        });
        endpoint
    }

    fn wait_for_more(&self, requests: usize) {
        let enough = self.answered.load(Ordering::SeqCst) + requests;
        eventually("requests", || self.answered.load(Ordering::SeqCst) >= enough);
    }
}

fn eventually(what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Keeps `LEVEL fields` of this room's events.
#[derive(Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "mlx_manager::telemetry"
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn batch(items: u64) -> Batch {
    let body = bytes::Bytes::from_static(b"an old batch, the end");
    Batch { signal: Signal::Logs, gzip: false, items, body }
}

/// Exporters of logs to an endpoint, with a spool below a folder.
fn exporters(endpoint: &Endpoint, dir: &Path) -> Exporters {
    let config = OtlpConfig {
        name: "collector".to_owned(),
        kind: OtlpKind::Otlp,
        endpoint: format!("http://{}", endpoint.address),
        protocol: Protocol::HttpProtobuf,
        token: Secret::default(),
        headers: Vec::new(),
        send: Send::Always,
        signals: vec![Signal::Logs],
        timeout: Duration::from_secs(30),
        spool: Some(SpoolConfig { dir: dir.to_owned(), size: 1_000 }),
    };
    let telemetry =
        TelemetryConfig { environment: "test".to_owned(), service_prefix: String::new(), service_name: None };
    Exporters::start(&telemetry, &[config], crate::build::TEST_BUILD).unwrap()
}

fn reading(exporters: &Exporters) -> (u64, u64, u64) {
    let reading = exporters.counters().read().next().unwrap();
    (reading.exported, reading.dropped, reading.failed)
}

#[test]
fn an_endpoint_that_is_away_at_the_start_is_mentioned_once_and_so_is_its_return() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Spool::open(&dir.path().join("collector"), 1_000).unwrap();
    for _ in 0..2 {
        folder.push(&batch(1), SystemTime::now(), &mut Vec::new()).unwrap();
    }
    drop(folder);
    let endpoint = Endpoint::start(503);
    let exporters = exporters(&endpoint, dir.path());
    // The second attempt shows that the first was judged, with nobody there to hear of it.
    endpoint.wait_for_more(2);
    let heard = Heard::default();
    let subscriber = heard.clone();
    exporters.export_runtime().spawn(async move {
        // The thread is the test's own, and it keeps the subscriber to its end.
        std::mem::forget(tracing::subscriber::set_default(subscriber));
    });
    eventually("a warning", || !heard.lines().is_empty());
    endpoint.wait_for_more(2);
    endpoint.status.store(200, Ordering::SeqCst);
    eventually("an empty spool", || exporters.counters().spools().all(|spool| spool.bytes == 0));
    eventually("a word of its return", || heard.lines().len() >= 2);
    let lines = heard.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].starts_with("WARN") && lines[0].contains("telemetry endpoint is away"), "{lines:#?}");
    assert!(lines[0].contains("503") && lines[0].contains("collector"), "{lines:#?}");
    assert!(lines[1].starts_with("INFO") && lines[1].contains("telemetry endpoint is back"), "{lines:#?}");
}

#[test]
fn spooled_batches_that_are_damaged_are_counted_and_hold_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("collector");
    let spool = Spool::open(&folder, 1_000).unwrap();
    for items in [1, 10, 100] {
        spool.push(&batch(items), SystemTime::now(), &mut Vec::new()).unwrap();
    }
    drop(spool);
    let file = |items: u64| {
        let mut files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        files.find(|path| path.to_str().unwrap().contains(&format!(".logs.{items}."))).unwrap()
    };
    std::fs::write(file(1), "").unwrap();
    let ten = file(10);
    std::fs::remove_file(&ten).unwrap();
    std::fs::create_dir(ten).unwrap();
    let exporters = exporters(&Endpoint::start(200), dir.path());
    eventually("the one that is whole", || reading(&exporters) == (100, 11, 0));
}

#[test]
fn what_an_endpoint_takes_while_the_daemon_ends_is_not_left_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::start(200);
    endpoint.held.store(true, Ordering::SeqCst);
    let exporters = Arc::new(exporters(&endpoint, dir.path()));
    let client = Client { destination: Arc::clone(&exporters.destinations[0].destination), signal: Signal::Logs };
    let request = http::Request::new(batch(1).body);
    let spooled = exporters.export_runtime().block_on(opentelemetry_http::HttpClient::send_bytes(&client, request));
    assert!(spooled.is_ok() && exporters.counters().spools().all(|spool| spool.bytes > 0));
    let ending = Arc::clone(&exporters);
    let ending = thread::spawn(move || ending.shutdown(Duration::from_mins(2)));
    eventually("the end", || *exporters.closing.borrow());
    assert_eq!(reading(&exporters), (0, 0, 0));
    endpoint.held.store(false, Ordering::SeqCst);
    assert!(ending.join().unwrap());
    assert_eq!(reading(&exporters), (1, 0, 0));
    assert!(exporters.counters().spools().all(|spool| spool.bytes == 0));
}

#[test]
fn destinations_that_share_a_spool_folder_have_a_folder_each() {
    let names = ["a-b", "a.b", "a_b", "A-b", "logfire", "Logfire", ".", "..", "a%2eb"];
    let folders: HashSet<String> = names.iter().map(|name| spool_folder(name).to_lowercase()).collect();
    assert_eq!(folders.len(), names.len(), "{folders:?}");
    assert!(folders.contains("logfire") && !folders.contains(".."), "{folders:?}");
}
