//! A simulated Hugging Face hub with one model, and beside it, on a port of its own, the store that the hub sends
//! everybody to for large files. Both keep a ledger, and answer well unless a test scripts otherwise.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use futures_util::stream;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Duration, sleep},
};
use tokio_util::task::TaskTracker;

use super::otlp::hex;

/// The model, and a name it had before.
pub const MODEL: &str = "acme/tiny";
pub const OLD_NAME: &str = "acme/older";
/// What signs the links to the store.
pub const SIGNATURE: &str = "X-Signature=5ec4e7";
/// The script of the API's answer; other scripts go by the file's name.
pub const LISTING: &str = "the listing";

/// How one request is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A status with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// So many bytes, then the connection breaks.
    Cut(usize),
    /// So many bytes, then silence.
    Hang(usize),
    /// All bytes, whatever was asked for.
    Whole,
    /// Bytes that are not the file's.
    Damaged,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// Whether it came to the store, and not to the hub.
    pub at_store: bool,
    pub path: String,
    pub headers: HeaderMap,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

#[derive(Debug, Default)]
struct Ledger {
    commit: String,
    files: Vec<(String, Bytes)>,
    /// Changes to what the listing says.
    listed: Vec<(String, Value)>,
    token: Option<String>,
    script: HashMap<String, VecDeque<Reply>>,
    received: Vec<Received>,
}

#[derive(Debug, Clone)]
pub struct Hub {
    pub address: SocketAddr,
    pub store: SocketAddr,
    ledger: Arc<Mutex<Ledger>>,
}

impl Hub {
    /// Starts with the demo model and, beside it, files that nobody needs.
    pub async fn start() -> Self {
        let (hub, store) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let this =
            Self { address: hub.local_addr().unwrap(), store: store.local_addr().unwrap(), ledger: Arc::default() };
        let mut files: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap().into()))
            .collect();
        for name in
            ["README.md", ".gitattributes", "picture.png", "pytorch_model.bin", "model.gguf", "original/params.json"]
        {
            files.push((name.to_owned(), Bytes::from_static(b"unwanted")));
        }
        this.put(&"c0".repeat(20), files);
        for (listener, at_store) in [(hub, false), (store, true)] {
            let state = (this.clone(), at_store);
            let routes = Router::new().fallback(answer).with_state(state);
            TaskTracker::new().spawn(async move { axum::serve(listener, routes).await.unwrap() });
        }
        this
    }

    /// From now on the model is this.
    pub fn put(&self, commit: &str, files: Vec<(String, Bytes)>) {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.commit = commit.to_owned();
        ledger.files = files;
    }

    pub fn commit(&self) -> String {
        self.ledger.lock().unwrap().commit.clone()
    }

    pub fn files(&self) -> Vec<(String, Bytes)> {
        self.ledger.lock().unwrap().files.clone()
    }

    pub fn file(&self, name: &str) -> Bytes {
        self.files().into_iter().find(|(file, _)| file == name).unwrap().1
    }

    /// Adds to the listing, or replaces in it, what it says of a file.
    pub fn list(&self, name: &str, says: Value) {
        self.ledger.lock().unwrap().listed.push((name.to_owned(), says));
    }

    /// From now on the model is gated, and only this token opens it.
    pub fn demand(&self, token: &str) {
        self.ledger.lock().unwrap().token = Some(token.to_owned());
    }

    /// Answers the next requests for a file's content, or for the listing, this way; after them, well.
    pub fn script(&self, name: &str, replies: impl IntoIterator<Item = Reply>) {
        self.ledger.lock().unwrap().script.entry(name.to_owned()).or_default().extend(replies);
    }

    pub fn received(&self) -> Vec<Received> {
        self.ledger.lock().unwrap().received.clone()
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn answer(State((hub, at_store)): State<(Hub, bool)>, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().to_owned();
    let mut ledger = hub.ledger.lock().unwrap();
    ledger.received.push(Received { at_store, path: path.clone(), headers: headers.clone() });
    if at_store {
        // As a real one does, which knows two ways to sign and wants one.
        if headers.contains_key("authorization") || uri.query() != Some(SIGNATURE) {
            return status(400, &[]);
        }
        let name = path.trim_start_matches('/').to_owned();
        return ledger.content(&name, &headers);
    }
    for prefix in ["/api/models/", "/"] {
        if let Some(rest) = path.strip_prefix(&format!("{prefix}{OLD_NAME}/")) {
            let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            return status(307, &[("location", format!("{prefix}{MODEL}/{rest}{query}"))]);
        }
    }
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let Some(revision) = rest.strip_prefix(&format!("{MODEL}/revision/")) else {
            return status(if authorization.is_some() { 404 } else { 401 }, &[("x-error-code", "RepoNotFound".into())]);
        };
        if let Some(refusal) = ledger.refusal(authorization.as_deref()) {
            return refusal;
        }
        if revision != "main" && revision != ledger.commit {
            return status(404, &[("x-error-code", "RevisionNotFound".into())]);
        }
        assert_eq!(uri.query(), Some("blobs=true"));
        return match ledger.next(LISTING) {
            Some(Reply::Status(code, headers)) => status(code, &headers),
            Some(other) => panic!("{other:?}"),
            None => Response::builder()
                .header("content-type", "application/json")
                .body(Body::from(ledger.listing().to_string()))
                .unwrap(),
        };
    }
    let resolve = format!("/{MODEL}/resolve/{}/", ledger.commit);
    let name = path.strip_prefix(&resolve).unwrap_or_else(|| panic!("nothing is at {path}")).to_owned();
    if let Some(refusal) = ledger.refusal(authorization.as_deref()) {
        return refusal;
    }
    if is_large(&name) {
        let location = format!("http://{}/{name}?{SIGNATURE}", hub.store);
        return status(302, &[("location", location), ("x-repo-commit", ledger.commit.clone())]);
    }
    ledger.content(&name, &headers)
}

impl Ledger {
    fn next(&mut self, name: &str) -> Option<Reply> {
        self.script.get_mut(name).and_then(VecDeque::pop_front)
    }

    fn refusal(&self, authorization: Option<&str>) -> Option<Response> {
        let token = self.token.as_ref()?;
        match authorization {
            None => Some(status(401, &[("x-error-code", "GatedRepo".into())])),
            Some(other) if other != format!("Bearer {token}") => {
                Some(status(401, &[("x-error-message", "Invalid credentials in Authorization header".into())]))
            }
            Some(_) => None,
        }
    }

    fn listing(&self) -> Value {
        let mut siblings: Vec<Value> = self.files.iter().map(|(name, content)| sibling(name, content)).collect();
        for (name, says) in &self.listed {
            siblings.retain(|sibling| sibling["rfilename"] != **name);
            if !says.is_null() {
                siblings.push(says.clone());
            }
        }
        json!({ "id": MODEL, "sha": self.commit, "tags": ["mlx"], "siblings": siblings })
    }

    fn content(&mut self, name: &str, headers: &HeaderMap) -> Response {
        assert_eq!(headers["accept-encoding"], "identity");
        let content = self.files.iter().find(|(file, _)| file == name).unwrap().1.clone();
        let range = headers.get("range").map(|range| range.to_str().unwrap().to_owned());
        let from = range.map_or(0, |range| {
            range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse().unwrap()
        });
        let rest = content.slice(from..);
        let answer = || match from {
            0 => Response::builder().header("content-length", content.len()),
            _ => Response::builder()
                .status(206)
                .header("content-length", rest.len())
                .header("content-range", format!("bytes {from}-{}/{}", content.len() - 1, content.len())),
        };
        match self.next(name) {
            None => answer().body(Body::from(rest.clone())).unwrap(),
            Some(Reply::Status(code, headers)) => status(code, &headers),
            Some(Reply::Cut(bytes)) => answer().body(ending(rest.slice(..bytes), End::Cut)).unwrap(),
            Some(Reply::Hang(bytes)) => answer().body(ending(rest.slice(..bytes), End::Hang)).unwrap(),
            Some(Reply::Whole) => Response::new(Body::from(content.clone())),
            Some(Reply::Damaged) => {
                let mut damaged = rest.to_vec();
                damaged[rest.len() / 2] ^= 1;
                answer().body(Body::from(damaged)).unwrap()
            }
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Cut,
    Hang,
}

fn ending(bytes: Bytes, end: End) -> Body {
    Body::from_stream(stream::unfold(Some(bytes), move |bytes| async move {
        match (bytes, end) {
            (Some(bytes), _) => Some((Ok(bytes), None)),
            (None, End::Cut) => {
                // Lets what was written leave the socket before the connection is torn down.
                sleep(Duration::from_millis(50)).await;
                Some((Err(std::io::Error::other("cut")), None))
            }
            (None, End::Hang) => std::future::pending().await,
        }
    }))
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".gguf"].iter().any(|end| name.ends_with(end))
}

/// What the API says of a file.
pub fn sibling(name: &str, content: &[u8]) -> Value {
    let blob = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
    let mut sibling = json!({
        "rfilename": name, "size": content.len(), "blobId": hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob).as_ref())
    });
    if is_large(name) {
        let sha256 = hex(digest(&SHA256, content).as_ref());
        sibling["lfs"] = json!({ "sha256": sha256, "size": content.len(), "pointerSize": 134 });
    }
    sibling
}

fn status(status: u16, headers: &[(&'static str, String)]) -> Response {
    let builder = Response::builder().status(status);
    headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, value)).body(Body::empty()).unwrap()
}
